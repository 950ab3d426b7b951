"""Direction Sweep: one inversion at many strengths, side by side."""

from __future__ import annotations

import torch

from ..core.editing import Direction
from ..core.errors import InvalidInputError
from ..core.imaging import from_pil
from ..core.latents import sweep
from ._comfy import io, load_models, progress, schema
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
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="One labelled picture."),
                io.Image.Output(display_name="frames", tooltip="All pictures at full size, row by row."),
                io.String.Output(display_name="labels", tooltip="What each row and column shows."),
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
    ) -> io.NodeOutput:
        """Grid, frames and labels."""
        check_choice("range", range, _RANGES)
        check_finite(low=low, high=high)
        if range == _CUSTOM and low == high:
            raise InvalidInputError(f"low and high are both {low:g}: expected two different strengths.")
        limits = (low, high) if range == _CUSTOM else direction.limits
        wire = inversion.generator
        device = load_models([wire.network], wire.activation_bytes)
        grid = sweep(
            inversion.inversion.to(device),
            direction,
            _spaced(limits, steps),
            second_direction=second_direction,
            second_strengths=() if second_direction is None else _spaced(second_direction.limits, second_steps),
            edit=inversion.edit,
            chunk=1,
            dtype=wire.dtype_on(device),
            on_progress=progress(),
        )
        labels = f"Columns: {', '.join(grid.column_labels)}\nRows: {', '.join(grid.row_labels)}"
        return io.NodeOutput(to_comfy(from_pil(grid.draw(cell))), to_comfy(grid.images), labels)


def _spaced(limits: tuple[float, float], steps: int) -> list[float]:
    # Rounded, so that the middle of a symmetric range is 0 and labels are short.
    return [round(value, 4) for value in torch.linspace(*limits, steps, dtype=torch.float64).tolist()]
