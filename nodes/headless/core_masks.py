"""ComfyUI's own mask and scaling nodes, for running workflows without ComfyUI.

Same ids, inputs, outputs and results as ComfyUI's (version 0.33.0), written anew from their behaviour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .._comfy import io

_LARGEST = 16384
_COLOURS = ["red", "green", "blue", "alpha"]
_OPERATIONS = ["multiply", "add", "subtract", "and", "or", "xor"]
_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


def _flat(mask: Tensor) -> Tensor:
    return mask.reshape(-1, *mask.shape[-2:])


def _size(name: str, low: int = 0, default: int = 0) -> Any:
    return io.Int.Input(name, default=default, min=low, max=_LARGEST, step=1)


class MaskToImage(io.ComfyNode):
    """A mask as a grey picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="MaskToImage",
            display_name="Convert Mask to Image",
            category="mask",
            inputs=[io.Mask.Input("mask")],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )

    @classmethod
    def execute(cls, mask: Tensor) -> io.NodeOutput:
        """[B, H, W] -> [B, H, W, 3]."""
        return io.NodeOutput(_flat(mask)[..., None].expand(-1, -1, -1, 3))


class ImageToMask(io.ComfyNode):
    """One channel of a picture as a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="ImageToMask",
            display_name="Convert Image to Mask",
            category="mask",
            inputs=[io.Image.Input("image"), io.Combo.Input("channel", options=_COLOURS)],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, image: Tensor, channel: str) -> io.NodeOutput:
        """[B, H, W, C] -> [B, H, W]."""
        return io.NodeOutput(image[..., _COLOURS.index(channel)])


class InvertMask(io.ComfyNode):
    """Selects what was not selected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="InvertMask",
            display_name="Invert Mask",
            category="mask",
            inputs=[io.Mask.Input("mask")],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, mask: Tensor) -> io.NodeOutput:
        """1 - mask."""
        return io.NodeOutput(1.0 - mask)


class SolidMask(io.ComfyNode):
    """A mask of one value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="SolidMask",
            display_name="Solid Mask",
            category="mask",
            inputs=[
                io.Float.Input("value", default=1.0, min=0.0, max=1.0, step=0.01),
                _size("width", 1, 512),
                _size("height", 1, 512),
            ],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, value: float, width: int, height: int) -> io.NodeOutput:
        """[1, height, width]."""
        return io.NodeOutput(torch.full((1, height, width), value))


class GrowMask(io.ComfyNode):
    """Makes a mask larger, or smaller with a negative number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="GrowMask",
            display_name="Grow Mask",
            category="mask",
            inputs=[
                io.Mask.Input("mask"),
                _size("expand", -_LARGEST),
                io.Boolean.Input("tapered_corners", default=True),
            ],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, mask: Tensor, expand: int, tapered_corners: bool) -> io.NodeOutput:
        """One pixel in each of 4 (tapered) or 8 directions per step."""
        grown = _flat(mask)[:, None]
        sign = 1.0 if expand >= 0 else -1.0
        for _ in range(abs(expand)):
            # Pooling pads with minus infinity, so the border never counts as selected or unselected.
            x = sign * grown
            if tapered_corners:
                x = torch.maximum(F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1)))
            else:
                x = F.max_pool2d(x, 3, 1, 1)
            grown = sign * x
        return io.NodeOutput(grown[:, 0])


class FeatherMask(io.ComfyNode):
    """Fades a mask towards the picture's borders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="FeatherMask",
            display_name="Feather Mask",
            category="mask",
            inputs=[io.Mask.Input("mask"), _size("left"), _size("top"), _size("right"), _size("bottom")],
            outputs=[io.Mask.Output(display_name="MASK")],
        )

    @classmethod
    def execute(cls, mask: Tensor, left: int, top: int, right: int, bottom: int) -> io.NodeOutput:
        """Multiplies by ramps 1/n, 2/n, ..., 1 from each border."""
        mask = _flat(mask)
        height, width = mask.shape[1:]
        across = _ramp(width, left, right)
        down = _ramp(height, top, bottom)
        return io.NodeOutput(mask * down[None, :, None] * across[None, None, :])


def _ramp(length: int, start: int, end: int) -> Tensor:
    rate = torch.ones(length)
    start, end = min(start, length), min(end, length)
    rate[:start] *= torch.arange(1, start + 1) / max(start, 1)
    rate[length - end :] *= torch.arange(end, 0, -1) / max(end, 1)
    return rate


class MaskComposite(io.ComfyNode):
    """Combines two masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="MaskComposite", display_name="Combine Masks", category="mask",
            inputs=[
                io.Mask.Input("destination"), io.Mask.Input("source"), _size("x"), _size("y"),
                io.Combo.Input("operation", options=_OPERATIONS),
            ],
            outputs=[io.Mask.Output(display_name="MASK")],
        )  # fmt: skip

    @classmethod
    def execute(cls, destination: Tensor, source: Tensor, x: int, y: int, operation: str) -> io.NodeOutput:
        """`source` at (x, y) over `destination`, whose size the result has."""
        result, source = _flat(destination).clone(), _flat(source)
        under = result[:, y : y + source.shape[1], x : x + source.shape[2]]
        over = source[:, : under.shape[1], : under.shape[2]]
        if operation in ("and", "or", "xor"):
            a, b = under.round().bool(), over.round().bool()
            mixed = {"and": a & b, "or": a | b, "xor": a ^ b}[operation].float()
        else:
            mixed = {"multiply": under * over, "add": under + over, "subtract": under - over}[operation]
        result[:, y : y + under.shape[1], x : x + under.shape[2]] = mixed
        return io.NodeOutput(result.clamp(0.0, 1.0))


class ImageScale(io.ComfyNode):
    """Resizes a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="ImageScale", display_name="Upscale Image", category="image/upscaling",
            inputs=[
                io.Image.Input("image"), io.Combo.Input("upscale_method", options=_METHODS),
                _size("width", default=512), _size("height", default=512),
                io.Combo.Input("crop", options=["disabled", "center"]),
            ],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> io.NodeOutput:
        """A width or height of 0 keeps the proportions; both 0 keep the picture."""
        if width == 0 and height == 0:
            return io.NodeOutput(image)
        x = image.movedim(-1, 1)
        width = width or max(1, round(x.shape[3] * height / x.shape[2]))
        height = height or max(1, round(x.shape[2] * width / x.shape[3]))
        if crop == "center":
            x = _cut_to_proportions(x, width / height)
        if upscale_method == "lanczos":
            return io.NodeOutput(torch.stack([_lanczos(one, width, height) for one in x.movedim(1, -1)]))
        return io.NodeOutput(F.interpolate(x, size=(height, width), mode=upscale_method).movedim(1, -1))


def _cut_to_proportions(x: Tensor, proportions: float) -> Tensor:
    height, width = x.shape[-2:]
    across = max(0, round((width - height * proportions) / 2))
    down = max(0, round((height - width / proportions) / 2))
    return x[..., down : height - down, across : width - across]


def _lanczos(image: Tensor, width: int, height: int) -> Tensor:
    pixels = (image.cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
    resized = Image.fromarray(pixels).resize((width, height), resample=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0).to(image)


NODES = (
    MaskToImage, ImageToMask, InvertMask, SolidMask, GrowMask, FeatherMask, MaskComposite, ImageScale,
)  # fmt: skip
