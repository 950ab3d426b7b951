"""Apply Direction: adds one direction to the edit of an inversion. Nothing is encoded, optimised or drawn here."""

from __future__ import annotations

import logging

from ..core.editing import Direction, Edit
from ._comfy import EXPERT, io, schema
from ._types import DirectionSocket, InversionSocket, InversionWire, check_finite, layer_range

logger = logging.getLogger(__name__)


class GANInversionApplyDirection(io.ComfyNode):
    """The slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionApplyDirection",
            display_name="Apply Direction",
            category="GAN Inversion/edit",
            description=(
                "Moves an inversion along a direction by a slider. Chain several to combine edits; their order does "
                "not matter. Moving the slider runs neither encoder nor optimiser again, only Render."
            ),
            search_aliases=["edit face", "smile", "age", "slider", "latent edit", "attribute"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Encode, Project, Sample, or another Apply Direction."),
                DirectionSocket.Input("direction", tooltip="From Load Direction or Discover Directions."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-5.0,
                    max=5.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far to go; 0 changes nothing, negative reverses. Beyond the direction's natural range "
                    "(see its info) pictures fall apart.",
                ),
                io.Int.Input(
                    "first_layer",
                    default=0,
                    min=0,
                    max=17,
                    optional=True,
                    **EXPERT,
                    tooltip="First layer to edit: 0 to 3 are pose and shape, the middle ones features, the last ones "
                    "colours. 0 together with last_layer -1 takes the layers the direction was made for.",
                ),
                io.Int.Input(
                    "last_layer",
                    default=-1,
                    min=-1,
                    max=17,
                    optional=True,
                    **EXPERT,
                    tooltip="Last layer to edit, itself included; -1 is the generator's last one.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The inversion with one more edit, for Render."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        direction: Direction,
        strength: float = 1.0,
        first_layer: int = 0,
        last_layer: int = -1,
    ) -> io.NodeOutput:
        """The same inversion with a longer edit."""
        check_finite(strength=strength)
        layers = layer_range(first_layer, last_layer, inversion.generator.generator.num_ws)
        # Refuses a direction of another shape here, where the user can see which one it is.
        direction.delta(inversion.inversion.w_plus[:1], strength, layers)
        if direction.generator_id not in (None, inversion.generator.identity):
            logger.warning(
                "Direction %s was made with another generator (%s) than this inversion (%s, %s): it may mean something "
                "else.",
                direction.name,
                direction.generator_id,
                inversion.generator.name,
                inversion.generator.identity,
            )
        return io.NodeOutput(inversion.with_edit(Edit.of(direction, strength, layers)))
