"""Draws the templates' thumbnails by running them on the astronaut that comes with scikit-image.

`python -m gan_inversion.nodes.headless.thumbnails [NAME ...]` writes workflows/NAME.jpg beside these templates, or all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from .core_video import VideoOfImages, write_video
from .demo import side_by_side
from .runner import Runner, RunResult
from .template_drawing import Shown, Template
from .templates import TEMPLATES, WORKFLOWS
from .workflow_files import Workflow, read_workflow, with_values

_PHOTOGRAPH, _CLIP = "astronaut.png", "astronaut.mp4"
_FRAMES, _FPS, _CLIP_SIDE = 8, 8.0, 480  # the clip: frames, their rate, pixels
_FAR, _NEAR = (70.0, 0.0, 410.0, 340.0), (115.0, 5.0, 345.0, 235.0)  # what it begins and ends with, in the photograph
_WIDTH = 640  # pixels
_GAP, _FONT, _CAPTION = 6, 15, 22  # pixels
_MARGIN = 0.25  # kept around what changed, in sizes of the change
_JPEG_QUALITY = 88


def write_thumbnails(folder: Path = WORKFLOWS, names: Collection[str] = ()) -> list[Path]:
    """Runs templates, all or those named, and writes what they show.

    That is the pictures that a template names for it, or else before and after where it edits a photograph, or else its
    last picture.
    """
    from skimage import data

    photograph = Image.fromarray(data.astronaut())
    written = []
    for template in TEMPLATES:
        if names and template.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="gan-inversion-") as scratch:
            photograph.save(Path(scratch) / _PHOTOGRAPH)
            write_video(Path(scratch) / _CLIP, _clip(photograph))
            workflow = _on_examples(read_workflow(folder / "api" / f"{template.name}.json"))
            out = Path(scratch) / "out"
            result = Runner(input_dir=Path(scratch), output_dir=out).run(workflow)
            picture = _drawn(template, result, out, photograph)
        path = folder / f"{template.name}.jpg"
        picture.save(path, quality=_JPEG_QUALITY)
        written.append(path)
    return written


def _clip(photograph: Image.Image) -> VideoOfImages:
    """A camera that slowly moves towards the face."""
    frames = []
    for place in np.linspace(0.0, 1.0, _FRAMES):
        left, top, right, bottom = ((1 - place) * far + place * near for far, near in zip(_FAR, _NEAR, strict=True))
        frame = photograph.resize((_CLIP_SIDE, _CLIP_SIDE), Image.Resampling.BICUBIC, (left, top, right, bottom))
        frames.append(torch.from_numpy(np.asarray(frame, dtype=np.float32) / 255.0))
    return VideoOfImages(torch.stack(frames), _FPS)


def _on_examples(workflow: Workflow) -> Workflow:
    """The workflow with the astronaut as its photograph or video."""
    files = {"LoadImage": f"image={_PHOTOGRAPH}", "LoadVideo": f"file={_CLIP}"}
    kinds = {node: content["class_type"] for node, content in workflow.items()}
    return with_values(workflow, [f"{node}.{files[kind]}" for node, kind in kinds.items() if kind in files])


def _drawn(template: Template, result: RunResult, out: Path, photograph: Image.Image) -> Image.Image:
    """The thumbnail, `_WIDTH` pixels wide."""
    if shown := template.thumbnail:
        pictures = [_picture(one, result, out) for one in shown]
        return _captioned(pictures, [one.caption for one in shown], template.columns or len(shown))
    with Image.open(result.images[-1]) as opened:
        picture = opened.convert("RGB")
    if picture.size == photograph.size:
        box = _around(ImageChops.difference(photograph, picture).getbbox() or (0, 0, *picture.size), picture.size)
        picture = side_by_side([photograph.crop(box), picture.crop(box)])
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)


def _captioned(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures in rows of equal cells, each with its caption above; rows without any caption have no room for one."""
    width = (_WIDTH - _GAP * (columns - 1)) / columns
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    heights = [max(round(pictures[i].height * width / pictures[i].width) for i in row) for row in rows]
    titled = [_CAPTION if any(captions[i] for i in row) else 0 for row in rows]
    page = Image.new("RGB", (_WIDTH, sum(heights) + sum(titled) + _GAP * (len(rows) - 1)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    top = 0
    for row, height, title in zip(rows, heights, titled, strict=True):
        for column, index in enumerate(row):
            left, right = round(column * (width + _GAP)), round(column * (width + _GAP) + width)
            draw.text(((left + right) / 2, top + title / 2), captions[index], fill="black", font=font, anchor="mm")
            scaled = pictures[index].resize((right - left, height), Image.Resampling.LANCZOS)
            page.paste(scaled, (left, top + title))
        top += title + height + _GAP
    return page


def _picture(shown: Shown, result: RunResult, out: Path) -> Image.Image:
    """One picture of a run; `out` is the output folder, which holds the temporary one."""
    whole = _whole(shown, result, out)
    if shown.part == (0.0, 0.0, 1.0, 1.0):
        return whole
    left, top, right, bottom = shown.part
    return whole.crop(
        (round(left * whole.width), round(top * whole.height), round(right * whole.width), round(bottom * whole.height))
    )


def _whole(shown: Shown, result: RunResult, out: Path) -> Image.Image:
    if shown.slot is not None:
        image = result.results[str(shown.node)][shown.slot][shown.index]
        return Image.fromarray((image.float().cpu().numpy() * 255.0).round().clip(0, 255).astype(np.uint8))
    entry: Mapping[str, Any] = result.outputs[str(shown.node)]["images"][shown.index]
    place = out if entry["type"] == "output" else out / "temp"
    with Image.open(place / entry["subfolder"] / entry["filename"]) as opened:
        return opened.convert("RGB")


def _around(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box and some of what surrounds it, within the picture."""
    left, top, right, bottom = box
    x, y = round((right - left) * _MARGIN), round((bottom - top) * _MARGIN)
    return max(0, left - x), max(0, top - y), min(size[0], right + x), min(size[1], bottom + y)


if __name__ == "__main__":
    write_thumbnails(names=sys.argv[1:])
