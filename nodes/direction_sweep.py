"""Direction Sweep: one inversion at many strengths, side by side."""

from __future__ import annotations

from functools import partial

import torch

from ..core.attributes import ATTRIBUTES, attribute_of_direction
from ..core.editing import Direction
from ..core.errors import InvalidInputError
from ..core.imaging import from_pil
from ..core.latents import SweepGrid, sweep
from ._comfy import Progress, io, load_models, progress, schema, with_room
from ._drawing import draw
from ._measuring import IDENTITY_WORDS, FaceMeter, cell_captions
from ._types import DirectionSocket, InversionSocket, InversionWire, check_choice, check_finite, to_comfy

_RANGES = _OWN, _CUSTOM = "direction's own", "from low to high"


class GANInversionDirectionSweep(io.ComfyNode):
    """Shows what a direction does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionDirectionSweep",
            display_name="Direction Sweep",
            category="GAN Inversion/edit",
            description=(
                "Draws inversions at many strengths of a direction as one labelled grid, and as single frames for an "
                "animation. A second direction makes the grid two-dimensional. Other edits of the inversion stay "
                "applied. Nothing is encoded."
            ),
            search_aliases=["grid", "xy plot", "latent walk", "animation", "strength sweep"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="One or more pictures; each gets rows of its own."),
                DirectionSocket.Input("direction", tooltip="One column for each of its strengths."),
                io.Int.Input(
                    "steps",
                    default=5,
                    min=2,
                    max=64,
                    optional=True,
                    tooltip="Number of strengths; time grows in proportion, times the second direction's.",
                ),
                io.Combo.Input(
                    "range",
                    options=list(_RANGES),
                    default=_OWN,
                    optional=True,
                    tooltip="Strengths between which the direction stays natural, or those given below.",
                ),
                io.Float.Input(
                    "low",
                    default=-2.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    tooltip="First strength, with a range from low to high.",
                ),
                io.Float.Input(
                    "high",
                    default=2.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    tooltip="Last strength, with a range from low to high.",
                ),
                DirectionSocket.Input(
                    "second_direction", optional=True, tooltip="One row for each of its strengths, in its own range."
                ),
                io.Int.Input(
                    "second_steps",
                    default=3,
                    min=2,
                    max=16,
                    optional=True,
                    tooltip="Number of strengths of the second direction.",
                ),
                io.Int.Input(
                    "cell",
                    default=256,
                    min=64,
                    max=1024,
                    step=8,
                    optional=True,
                    tooltip="Width of one picture of the grid in pixels.",
                ),
                io.Boolean.Input(
                    "measure",
                    default=False,
                    optional=True,
                    tooltip="Write below each picture how much of the person is left (id, 1 is all, against Render's "
                    "unedited picture) and, for a smile, pose or brightness direction, how far the mouth, the head or the "
                    "light moved. For aligned faces; a few hundredths of a second for each picture.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid", tooltip="One labelled picture: names and strengths stand beside the faces."
                ),
                io.Image.Output(display_name="frames", tooltip="All pictures at full size, row by row."),
                io.String.Output(
                    display_name="labels", tooltip="What each row and column shows, and what was measured."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        direction: Direction,
        steps: int = 5,
        range: str = _OWN,
        low: float = -2.0,
        high: float = 2.0,
        second_direction: Direction | None = None,
        second_steps: int = 3,
        cell: int = 256,
        measure: bool = False,
    ) -> io.NodeOutput:
        """Grid, frames and labels."""
        check_choice("range", range, _RANGES)
        check_finite(low=low, high=high)
        if range == _CUSTOM and low == high:
            raise InvalidInputError(f"low and high are both {low:g}: expected two different strengths.")
        limits = (low, high) if range == _CUSTOM else direction.limits
        wire = inversion.generator
        seconds = () if second_direction is None else _spaced(second_direction.limits, second_steps)
        cells = len(inversion.inversion) * max(len(seconds), 1) * steps
        report = progress((1 + measure) * cells)
        device = load_models([wire.network], wire.activation_bytes)
        draw_all = partial(
            sweep,
            inversion.inversion,
            direction,
            _spaced(limits, steps),
            second_direction=second_direction,
            second_strengths=seconds,
            edit=inversion.edit,
            chunk=1,
            dtype=wire.dtype_on(device),
            on_progress=lambda done, _: report(done),
        )
        grid = with_room(draw_all, [wire.network])
        labels = f"Columns: {', '.join(grid.column_labels)}\nRows: {', '.join(grid.row_labels)}"
        captions: list[str] = []
        if measure:
            captions = _measured(grid, inversion, direction, report)
            labels += "\n" + _in_words(grid, captions, direction)
        return io.NodeOutput(to_comfy(from_pil(grid.draw(cell, captions))), to_comfy(grid.images), labels)


def _measured(grid: SweepGrid, wire: InversionWire, direction: Direction, report: Progress) -> list[str]:
    """A caption for each picture of the grid, against the unedited ones."""
    count = len(grid.images)
    plain = draw(wire.inversion, wire.generator, None, progress()).cpu().split(1)
    each, done = count // len(plain), iter(range(count + 1, 2 * count + 1))
    return cell_captions(
        FaceMeter.load(),
        grid.images,
        lambda index: plain[index // each],
        attribute_of_direction(direction.name),
        lambda: report(next(done)),
    )


def _in_words(grid: SweepGrid, captions: list[str], direction: Direction) -> str:
    columns = len(grid.column_labels)
    lines = []
    for row, label in enumerate(grid.row_labels):
        told = (caption.replace("\n", " ") for caption in captions[row * columns : (row + 1) * columns])
        parts = (f"{strength}: {words}" for strength, words in zip(grid.column_labels, told, strict=True))
        lines.append(f"{label}: {'; '.join(parts)}")
    about = attribute_of_direction(direction.name)
    meant = f" Change of {ATTRIBUTES[about].label}, faces by the bundled landmark net." if about else ""
    return "\n".join([*lines, f"All against the unedited picture.{meant} {IDENTITY_WORDS}"])


def _spaced(limits: tuple[float, float], steps: int) -> list[float]:
    # Rounded, so that the middle of a symmetric range is 0 and labels are short.
    return [round(value, 4) for value in torch.linspace(*limits, steps, dtype=torch.float64).tolist()]
