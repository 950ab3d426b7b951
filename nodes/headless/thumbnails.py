"""Draws the templates' thumbnails by running them on the astronaut that comes with scikit-image.

`python -m gan_inversion.nodes.headless.thumbnails [NAME ...]` writes workflows/NAME.jpg beside these templates, or all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from .demo import side_by_side
from .runner import Runner
from .templates import TEMPLATES, WORKFLOWS
from .workflow_files import read_workflow, with_values

_PHOTOGRAPH = "astronaut.png"
_WIDTH = 640  # pixels
_MARGIN = 0.25  # kept around what changed, in sizes of the change
_JPEG_QUALITY = 88


def write_thumbnails(folder: Path = WORKFLOWS, names: Collection[str] = ()) -> list[Path]:
    """Runs templates, all or those named, and writes what they show.

    That is the pictures that a template names for it side by side, or else before and after where it edits a photograph,
    or else its last picture.
    """
    from skimage import data

    photograph = Image.fromarray(data.astronaut())
    written = []
    for template in TEMPLATES:
        if names and template.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="gan-inversion-") as scratch:
            photograph.save(Path(scratch) / _PHOTOGRAPH)
            workflow = read_workflow(folder / "api" / f"{template.name}.json")
            loaders = [node for node, content in workflow.items() if content["class_type"] == "LoadImage"]
            workflow = with_values(workflow, [f"{node}.image={_PHOTOGRAPH}" for node in loaders])
            result = Runner(input_dir=Path(scratch), output_dir=Path(scratch) / "out").run(workflow)
            out = Path(scratch) / "out"
            if template.thumbnail:
                picture = side_by_side([_first_picture(result.outputs[str(i)], out) for i in template.thumbnail])
            else:
                with Image.open(result.images[-1]) as opened:
                    picture = opened.convert("RGB")
        if picture.size == photograph.size:
            box = _around(ImageChops.difference(photograph, picture).getbbox() or (0, 0, *picture.size), picture.size)
            picture = side_by_side([photograph.crop(box), picture.crop(box)])
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)
        path = folder / f"{template.name}.jpg"
        picture.save(path, quality=_JPEG_QUALITY)
        written.append(path)
    return written


def _first_picture(shown: Mapping[str, Any], out: Path) -> Image.Image:
    """What an output node shows first; `out` is the output folder, which holds the temporary one."""
    entry = shown["images"][0]
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
