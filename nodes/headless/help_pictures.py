"""Draws the pictures of the help pages by running the nodes on the astronaut that comes with scikit-image.

`python -m gan_inversion.nodes.headless.help_pictures [NODE ...]` writes web/docs/NODE/picture.jpg of these nodes, or of all.
"""

from __future__ import annotations

import io as bytes_io
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .demo import side_by_side
from .help_pages import DOCS
from .runner import Runner
from .workflow_files import Workflow, with_values

LARGEST = 60_000  # bytes of one picture
NAME = "picture.jpg"
PREFIX = "GANInversion"

_PHOTOGRAPH = "astronaut.png"
_HEIGHTS = {1: 320, 2: 320, 3: 256, 4: 224, 5: 224}  # pixels, by the number of pictures in a row
_SMALL, _WIDTH = 112, 1000  # pixels: height in longer rows, largest width of a row
_QUALITIES = (90, 85, 80, 70, 60, 50)

_Place = tuple[str, int]  # (node of the workflow, output slot)


@dataclass(frozen=True)
class Picture:
    """What one page shows: outputs side by side, every image of a batch by itself."""

    outputs: tuple[_Place, ...]
    whole: bool = False  # one drawn picture, such as a grid, at its own height


# Every node that a picture needs; the numbers of steps are those at which a CPU takes up to a minute for each.
_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "photo": ("LoadImage", {"image": _PHOTOGRAPH}),
    "g": ("LoadStyleGAN", {"model": "portraits"}),
    "e4e": ("LoadEncoder", {"model": "portraits-e4e"}),
    "align": ("AlignFace", {"image": ["photo", 0], "generator": ["g", 0]}),
    "encode": (
        "Encode", {"image": ["align", 0], "encoder": ["e4e", 0], "generator": ["g", 0], "crop": ["align", 1]},
    ),
    "psp": ("LoadEncoder", {"model": "portraits-psp"}),
    "encode-psp": (
        "Encode", {"image": ["align", 0], "encoder": ["psp", 0], "generator": ["g", 0], "crop": ["align", 1]},
    ),
    "project": ("Project", {"image": ["align", 0], "generator": ["g", 0], "start": ["encode", 0], "steps": 100}),
    "predict": ("PredictInvertibility", {"inversion": ["encode", 0]}),
    "samm": ("SAMMAlign", {"inversion": ["encode", 0]}),
    "multilayer": ("MultilayerInvert", {"inversion": ["encode", 0], "latent_map": ["predict", 0], "steps": 100}),
    "dhr": ("DHRRefine", {"inversion": ["encode", 0]}),
    "reganie": ("ReGANIERectify", {"inversion": ["more", 0]}),
    "pti": ("TuneGenerator", {"inversion": ["encode", 0], "steps": 150}),
    "smile": ("LoadDirection", {"direction": "portraits-smile"}),
    "age": ("LoadDirection", {"direction": "portraits-age"}),
    "hair": ("LoadDirection", {"direction": "portraits-hair-colour"}),
    "yaw": ("LoadDirection", {"direction": "portraits-yaw"}),
    "pca": ("DiscoverDirections", {"generator": ["g", 0], "method": "PCA", "index": 1}),
    "less": ("ApplyDirection", {"inversion": ["encode", 0], "direction": ["smile", 0], "strength": -1.5}),
    "more": ("ApplyDirection", {"inversion": ["encode", 0], "direction": ["smile", 0], "strength": 1.5}),
    "older": ("ApplyDirection", {"inversion": ["encode", 0], "direction": ["age", 0], "strength": 2.0}),
    "dyed": ("ApplyDirection", {"inversion": ["encode", 0], "direction": ["hair", 0], "strength": 2.0}),
    "turned": ("ApplyDirection", {"inversion": ["encode", 0], "direction": ["yaw", 0], "strength": 2.0}),
    "draw-less": ("Render", {"inversion": ["less", 0]}),
    "draw": ("Render", {"inversion": ["more", 0]}),
    "draw-older": ("Render", {"inversion": ["older", 0]}),
    "draw-dyed": ("Render", {"inversion": ["dyed", 0]}),
    "draw-turned": ("Render", {"inversion": ["turned", 0]}),
    "disc": ("SolidMask", {"value": 0.0, "width": 128, "height": 128}),
    "box": ("SolidMask", {"value": 1.0, "width": 64, "height": 72}),
    "region": ("MaskComposite", {"destination": ["disc", 0], "source": ["box", 0], "x": 32, "y": 40, "operation": "add"}),
    "blend": ("Blend", {"source": ["align", 0], "image": ["draw", 0], "mask": ["region", 0]}),
    "paste": (
        "PasteBack",
        {"photo": ["photo", 0], "edited": ["draw", 0], "crop": ["align", 1], "unedited": ["draw", 1], "region": "face"},
    ),
    "compare": ("Compare", {"before": ["align", 0], "after": ["encode", 1], "layout": "difference"}),
    "sweep": ("DirectionSweep", {"inversion": ["encode", 0], "direction": ["smile", 0], "cell": 160}),
    "pca-sweep": ("DirectionSweep", {"inversion": ["encode", 0], "direction": ["pca", 0], "cell": 160}),
    "sample": ("Sample", {"generator": ["g", 0], "seed": 5, "count": 4}),
    "calm": ("Sample", {"generator": ["g", 0], "seed": 5, "count": 4, "psi": 0.3}),
    "other": ("Sample", {"generator": ["g", 0], "seed": 8}),
    "mix-fine": ("MixStyles", {"inversion": ["encode", 0], "style": ["other", 0], "first_layer": 7}),
    "mix-coarse": ("MixStyles", {"inversion": ["encode", 0], "style": ["other", 0], "first_layer": 0, "last_layer": 3}),
}  # fmt: skip

_ALIGNED, _PLAIN = ("align", 0), ("encode", 1)
PICTURES: dict[str, Picture] = {
    "LoadStyleGAN": Picture((("sample", 1),)),
    "LoadEncoder": Picture((_ALIGNED, _PLAIN, ("encode-psp", 1))),
    "LoadInversion": Picture((_PLAIN, ("draw-less", 0), ("draw-turned", 0))),
    "SaveInversion": Picture((_ALIGNED, _PLAIN)),
    "AlignFace": Picture((("photo", 0), ("align", 2), _ALIGNED)),
    "Encode": Picture((_ALIGNED, _PLAIN)),
    "Project": Picture((_ALIGNED, _PLAIN, ("project", 1))),
    "PredictInvertibility": Picture((_ALIGNED, ("predict", 3))),
    "SAMMAlign": Picture((_PLAIN, ("samm", 1), ("samm", 4))),
    "MultilayerInvert": Picture((_ALIGNED, _PLAIN, ("predict", 3), ("multilayer", 1))),
    "DHRRefine": Picture((_ALIGNED, _PLAIN, ("dhr", 3), ("dhr", 1))),
    "TuneGenerator": Picture((_ALIGNED, _PLAIN, ("pti", 1))),
    "ReGANIERectify": Picture((_ALIGNED, _PLAIN, ("reganie", 2), ("draw", 0), ("reganie", 1))),
    "LoadDirection": Picture((_PLAIN, ("draw", 0), ("draw-older", 0), ("draw-turned", 0), ("draw-dyed", 0))),
    "DiscoverDirections": Picture((("pca-sweep", 0),), whole=True),
    "ApplyDirection": Picture((("draw-less", 0), _PLAIN, ("draw", 0))),
    "Render": Picture((_ALIGNED, ("draw", 1), ("draw", 0))),
    "Blend": Picture((_ALIGNED, ("draw", 0), ("blend", 1), ("blend", 0))),
    "PasteBack": Picture((("photo", 0), ("draw", 0), ("paste", 0))),
    "Compare": Picture((("compare", 0),), whole=True),
    "DirectionSweep": Picture((("sweep", 0),), whole=True),
    "Sample": Picture((("sample", 1), ("calm", 1))),
    "MixStyles": Picture((_PLAIN, ("other", 1), ("mix-coarse", 1), ("mix-fine", 1))),
}


def write_pictures(names: Collection[str] = (), docs: Path = DOCS) -> list[Path]:
    """Runs what the pictures of some nodes need, or of all, and returns the files written.

    `names` are node ids or display names without spaces, such as Encode. Raises KeyError for a node without a picture.
    """
    from skimage import data

    chosen = {name: PICTURES[name] for name in ([one.removeprefix(PREFIX) for one in names] or PICTURES)}
    with tempfile.TemporaryDirectory(prefix="gan-inversion-") as scratch:
        Image.fromarray(data.astronaut()).save(Path(scratch) / _PHOTOGRAPH)
        runner = Runner(input_dir=Path(scratch), output_dir=Path(scratch) / "out")
        results = runner.run(_workflow(chosen)).results
    written = []
    for name, picture in chosen.items():
        path = docs / f"{PREFIX}{name}" / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(_drawn(picture, results)))
        written.append(path)
    return written


def _workflow(pictures: Mapping[str, Picture]) -> Workflow:
    """Every node at hand, and one that shows each output wanted: only what these need is run."""
    workflow: Workflow = {
        key: {"class_type": kind if kind in _CORE else f"{PREFIX}{kind}", "inputs": dict(inputs)}
        for key, (kind, inputs) in _NODES.items()
    }
    for node, slot in sorted({place for picture in pictures.values() for place in picture.outputs}):
        workflow[f"{node}.{slot}"] = {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}}
    return with_values(workflow, [])


_CORE = {"LoadImage", "SolidMask", "MaskComposite"}


def _drawn(picture: Picture, results: Mapping[str, tuple[Any, ...]]) -> Image.Image:
    tiles = [tile for node, slot in picture.outputs for tile in _tiles(results[node][slot])]
    if not picture.whole:
        size = _HEIGHTS.get(len(tiles), _SMALL)
        tiles = [
            tile.resize((round(tile.width * size / tile.height), size), Image.Resampling.LANCZOS) for tile in tiles
        ]
    row = side_by_side(tiles)
    if row.width > _WIDTH:
        row = row.resize((_WIDTH, round(row.height * _WIDTH / row.width)), Image.Resampling.LANCZOS)
    return row


def _tiles(value: Tensor) -> list[Image.Image]:
    """Of an IMAGE [B, H, W, C] or a MASK [B, H, W] in 0..1."""
    pixels = value if value.ndim == 4 else value.unsqueeze(-1).expand(-1, -1, -1, 3)
    return [Image.fromarray(one.numpy()) for one in pixels[..., :3].mul(255).round().clamp(0, 255).to(torch.uint8)]


def _encoded(picture: Image.Image) -> bytes:
    """JPEG at the best quality that keeps it small."""
    for quality in _QUALITIES:
        buffer = bytes_io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
    raise ValueError(f"A picture of {picture.width}x{picture.height} does not fit in {LARGEST} bytes: draw it smaller.")


if __name__ == "__main__":
    write_pictures(sys.argv[1:])
