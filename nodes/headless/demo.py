"""The main job on one photograph: align, encode, edit, paste back; with pictures that show each step."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.errors import CorruptFileError, ModelNotFoundError, NoFaceError
from .runner import OnNode, Runner, RunResult
from .templates import WORKFLOWS
from .workflow_files import Workflow, WorkflowError, read_workflow, with_values

logger = logging.getLogger(__name__)

_WORKFLOW = WORKFLOWS / "api" / "edit_portrait.json"
_ASTRONAUT = "astronaut.png"
_GAP = 8  # white pixels between the pictures of a strip


@dataclass(frozen=True)
class DemoReport:
    """What the demo wrote."""

    files: tuple[Path, ...]  # the edited photograph, before and after, the aligned crop, the strip
    direction: str
    strength: float
    face: str  # what Align Face said
    seconds: float


def run_demo(
    output: str | Path,
    *,
    image: str | Path | None = None,
    strength: float | None = None,
    direction: str | None = None,
    on_node: OnNode | None = None,
) -> DemoReport:
    """Runs the template `edit_portrait` on a photograph and writes the result with its intermediate pictures.

    Args:
        output: folder for edited.png (full size), before_after.png, aligned.png and strip.png (crop, reconstruction,
            edited crop).
        image: any picture file; the photograph of an astronaut that comes with scikit-image by default.
        strength: of the edit; the template's by default.
        direction: catalogue id or file of the model folder; the template's smile by default.
        on_node: called before each node, see `Runner`.

    Raises:
        ModelNotFoundError, CorruptFileError: no such picture, or not a picture.
        NoFaceError: no face in it.
        WorkflowError: no such direction.
    """
    started = time.monotonic()
    output = Path(output)
    with tempfile.TemporaryDirectory(prefix="gan-inversion-") as folder:
        photograph = _prepared(None if image is None else Path(image), Path(folder))
        workflow = _adapted(read_workflow(_WORKFLOW), photograph.name, strength, direction)
        runner = Runner(input_dir=photograph.parent, output_dir=Path(folder) / "out", on_node=on_node)
        result = runner.run(workflow)
        with Image.open(photograph) as opened:
            before = ImageOps.exif_transpose(opened).convert("RGB")
    steps = _Steps(workflow, result)
    crop, report = steps.value("GANInversionAlignFace", 1), steps.value("GANInversionAlignFace", 3)
    if all(one is None for one in crop.crops):
        raise NoFaceError(f"{image or _ASTRONAUT}: {report} Choose a photograph that shows a face from the front.")
    edited = _picture(steps.value("GANInversionPasteBack", 0))
    aligned = _picture(steps.value("GANInversionAlignFace", 0))
    strip = [aligned, _picture(steps.value("GANInversionEncode", 1)), _picture(steps.value("GANInversionRender", 0))]
    output.mkdir(parents=True, exist_ok=True)
    pictures = {
        "edited.png": edited,
        "before_after.png": side_by_side([before, edited]),
        "aligned.png": aligned,
        "strip.png": side_by_side(strip),
    }
    for name, picture in pictures.items():
        picture.save(output / name)
    inputs = steps.inputs("GANInversionApplyDirection")
    return DemoReport(
        files=tuple(output / name for name in pictures),
        direction=steps.inputs("GANInversionLoadDirection")[_DIRECTION_INPUT],
        strength=inputs["strength"],
        face=report,
        seconds=time.monotonic() - started,
    )


_DIRECTION_INPUT = "direction"


def _prepared(image: Path | None, folder: Path) -> Path:
    """The photograph in a folder of its own, where LoadImage finds it."""
    place = folder / "in"
    place.mkdir()
    if image is None:
        from skimage import data

        Image.fromarray(data.astronaut()).save(place / _ASTRONAUT)
        return place / _ASTRONAUT
    if not image.is_file():
        raise ModelNotFoundError(f"{image}: no such picture.")
    try:
        with Image.open(image) as opened:
            opened.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{image}: not a readable picture. Expected PNG, JPEG, WebP or the like.") from error
    return Path(shutil.copy(image, place / image.name))


def _adapted(workflow: Workflow, photograph: str, strength: float | None, direction: str | None) -> Workflow:
    changes = [f"LoadImage.image={photograph}"]
    if strength is not None:
        changes.append(f"GANInversionApplyDirection.strength={strength!r}")
    if direction is not None:
        changes.append(f"GANInversionLoadDirection.{_DIRECTION_INPUT}={direction}")
    return with_values(workflow, changes)


@dataclass(frozen=True)
class _Steps:
    """Values of a run by node class; the template has one node of each."""

    workflow: Workflow
    result: RunResult

    def _id(self, kind: str) -> str:
        found = [node_id for node_id, node in self.workflow.items() if node["class_type"] == kind]
        if len(found) != 1:
            raise WorkflowError(
                f"{_WORKFLOW}: {len(found)} nodes of class {kind}, expected one. Reinstall the package."
            )
        return found[0]

    def value(self, kind: str, slot: int) -> Any:
        """What the node of that class put out."""
        return self.result.results[self._id(kind)][slot]

    def inputs(self, kind: str) -> dict[str, Any]:
        """What the node of that class was given."""
        return self.workflow[self._id(kind)]["inputs"]


def _picture(image: Any) -> Image.Image:
    """First image of an IMAGE [B, H, W, 3] in 0..1."""
    return Image.fromarray((image[0].cpu().numpy() * 255.0).round().clip(0, 255).astype(np.uint8))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in a row at the height of the first."""
    height = pictures[0].height
    scaled = [p if p.height == height else p.resize((round(p.width * height / p.height), height)) for p in pictures]
    row = Image.new("RGB", (sum(p.width for p in scaled) + _GAP * (len(scaled) - 1), height), "white")
    x = 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + _GAP
    return row
