"""The few nodes of ComfyUI itself that workflows with this package need, for running them without ComfyUI.

Same ids, inputs, outputs and meaning as ComfyUI's own (version 0.33.0), written anew from their behaviour.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...core.errors import CorruptFileError
from .. import _comfy
from .._comfy import io
from .._paths import inside
from ._input_files import check_input_file, input_file, input_files
from .stand_in import get_save_image_path

_NO_ALPHA = (64, 64)  # size of the empty mask that comes with an opaque picture
_SAVE_COMPRESSION, _PREVIEW_COMPRESSION = 4, 1
_IMAGE_TYPES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_COLOURS = ["red", "green", "blue"]
_WHITE = {"I": 65535.0, "F": 1.0}  # of grey pictures deeper than 8 bits, by the first letter of PIL's mode


def _pictures() -> list[str]:
    return input_files(lambda path: path.suffix.lower() in _IMAGE_TYPES)


def _open(name: str) -> Image.Image:
    path = input_file(name)
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFileError(
            f"{path}: not a readable picture ({error}). Expected PNG, JPEG, WebP or the like."
        ) from error
    return picture


def _digest(name: str) -> str:
    return hashlib.sha256(input_file(name).read_bytes()).hexdigest()


def _colours(picture: Image.Image) -> Tensor:
    """[H, W, 3] in 0..1, what is transparent in its own colour."""
    white = _WHITE.get(picture.mode[0])
    if white is None:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)
    # PIL would clip deep grey to 8 bits, which turns nearly all of it white.
    grey = np.clip(np.asarray(picture).astype(np.float32) / white, 0.0, 1.0)
    return torch.from_numpy(np.repeat(grey[..., None], 3, axis=-1))


def _has_alpha(picture: Image.Image) -> bool:
    """Whether its mask has its own size, full or empty: so have those of all palette pictures."""
    has_colours = picture.mode[0] not in _WHITE
    return has_colours and (picture.mode == "P" or "A" in picture.getbands() or "transparency" in picture.info)


class LoadImage(io.ComfyNode):
    """A picture file as IMAGE, its transparency as MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            category="image",
            inputs=[io.Combo.Input("image", options=_pictures(), upload=_comfy.IMAGE_UPLOAD, tooltip="Picture file.")],
            outputs=[io.Image.Output(display_name="IMAGE"), io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        """RGB [N, H, W, 3] and 1 - alpha [N, H, W]; N is the number of frames of an animation.

        A picture without an alpha channel gives empty masks of 64x64.
        """
        picture = _open(image)
        frames: list[Tensor] = []
        masks: list[Tensor] = []
        size, has_alpha = None, False
        for raw in ImageSequence.Iterator(picture):
            frame = ImageOps.exif_transpose(raw)
            if size is None:
                size, has_alpha = frame.size, _has_alpha(frame)
            if frame.size != size:
                continue
            frames.append(_colours(frame))
            if has_alpha:
                alpha = np.asarray(frame.convert("RGBA").getchannel("A"), dtype=np.float32)
                masks.append(1.0 - torch.from_numpy(alpha / 255.0))
            else:
                masks.append(torch.zeros(_NO_ALPHA))
            if picture.format == "MPO":  # its further pictures are other views, not frames
                break
        return io.NodeOutput(torch.stack(frames), torch.stack(masks))

    @classmethod
    def fingerprint_inputs(cls, image: str) -> str:
        """The file's content."""
        return _digest(image)

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """Whether the file is there."""
        return check_input_file(image, "a picture")


class LoadImageMask(io.ComfyNode):
    """One channel of a picture file as MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="LoadImageMask",
            display_name="Load Image (as Mask)",
            category="mask",
            inputs=[
                io.Combo.Input("image", options=_pictures(), upload=_comfy.IMAGE_UPLOAD, tooltip="Picture file."),
                io.Combo.Input("channel", options=["alpha", "red", "green", "blue"], tooltip="Channel to read."),
            ],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, image: str, channel: str) -> io.NodeOutput:
        """[N, H, W]; alpha is inverted, so that transparent means selected."""
        colours, mask = LoadImage.execute(image).result
        return io.NodeOutput(mask if channel == "alpha" else colours[..., _COLOURS.index(channel)].clone())

    @classmethod
    def fingerprint_inputs(cls, image: str, channel: str) -> str:
        """The file's content."""
        return _digest(image)

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """Whether the file is there."""
        return check_input_file(image, "a picture")


def _save(images: Tensor, prefix: str, kind: str, compression: int, workflow: Any) -> list[dict[str, str]]:
    """Writes PNG files `prefix_00001_.png`, ...; the prefix may name a subfolder and hold %width%, %year%, ..."""
    root = Path(_comfy.output_directory() if kind == "output" else _comfy.temp_directory()).resolve()
    inside(root, prefix, f"{kind} folder")
    height, width = images.shape[1:3]
    folder, stem, first, subfolder, _ = get_save_image_path(prefix, str(root), int(width), int(height))
    info = PngInfo()
    if workflow is not None:
        info.add_text("prompt", json.dumps(workflow))
    saved = []
    for index, image in enumerate(images):
        name = f"{stem.replace('%batch_num%', str(index))}_{first + index:05}_.png"
        pixels = (image.float().cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(folder) / name, pnginfo=info, compress_level=compression)
        saved.append({"filename": name, "subfolder": subfolder, "type": kind})
    return saved


class SaveImage(io.ComfyNode):
    """Writes pictures to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            category="image",
            inputs=[
                io.Image.Input("images", tooltip="Pictures to save."),
                io.String.Input("filename_prefix", default="ComfyUI", tooltip="Start of the file names."),
            ],
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str = "ComfyUI") -> io.NodeOutput:
        """Numbered PNG files with the workflow in their metadata, as ComfyUI reads it back."""
        saved = _save(images, filename_prefix, "output", _SAVE_COMPRESSION, cls.hidden.prompt)
        return io.NodeOutput(ui={"images": saved})


class PreviewImage(io.ComfyNode):
    """Writes pictures to the temporary folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            category="image",
            inputs=[io.Image.Input("images", tooltip="Pictures to show.")],
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor) -> io.NodeOutput:
        """PNG files in the temporary folder."""
        return io.NodeOutput(ui={"images": _save(images, "preview", "temp", _PREVIEW_COMPRESSION, cls.hidden.prompt)})


class PreviewAny(io.ComfyNode):
    """Any value as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="PreviewAny",
            display_name="Preview as Text",
            category="utils",
            inputs=[io.AnyType.Input("source", tooltip="Value to show.")],
            outputs=[io.String.Output(display_name="STRING")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, source: Any = None) -> io.NodeOutput:
        """Text as it is, plain data as JSON, the rest in Python's words."""
        if isinstance(source, str):
            text = source
        else:
            try:
                text = str(source) if isinstance(source, (bool, int, float)) or source is None else json.dumps(source)
            except (TypeError, ValueError):
                text = str(source)
        return io.NodeOutput(text, ui={"text": (text,)})


def core_nodes() -> dict[str, type[Any]]:
    """Node id -> class, those of `core_masks` and `core_video` included."""
    from . import core_masks, core_video

    own = (LoadImage, LoadImageMask, SaveImage, PreviewImage, PreviewAny)
    classes: tuple[type[Any], ...] = (*own, *core_masks.NODES, *core_video.NODES)
    return {cls.define_schema().node_id: cls for cls in classes}
