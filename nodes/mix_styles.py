"""Mix Styles: some layers of one code, the rest of another."""

from __future__ import annotations

import dataclasses

from ..core.inversion import Inversion
from ..core.latents import mix_styles
from ._comfy import io, progress, schema
from ._drawing import draw
from ._types import (
    InversionSocket,
    InversionWire,
    check_finite,
    check_same_generator,
    common_batch,
    item,
    layer_range,
    to_comfy,
)


class GANInversionMixStyles(io.ComfyNode):
    """Mixes codes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionMixStyles",
            display_name="Mix Styles",
            category="GAN Inversion/sample",
            description=(
                "Takes some layers of a code from another one: the first layers carry pose and shape, the middle ones "
                "features, the last ones colours and texture. With all layers and an amount between 0 and 1 it is a "
                "morph."
            ),
            search_aliases=["style mixing", "morph", "interpolate", "crossover"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="The code to keep elsewhere. Its edits stay."),
                InversionSocket.Input(
                    "style", tooltip="The code that gives the chosen layers; one serves a whole batch."
                ),
                io.Int.Input(
                    "first_layer",
                    default=8,
                    min=0,
                    max=17,
                    optional=True,
                    tooltip="First layer to take from the style: 0 pose and shape, 4 to 7 features, 8 and above "
                    "colours.",
                ),
                io.Int.Input(
                    "last_layer",
                    default=-1,
                    min=-1,
                    max=17,
                    optional=True,
                    tooltip="Last layer to take, itself included; -1 is the generator's last one.",
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    tooltip="1 takes the layers whole, 0.5 is half way, 0 changes nothing.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The mixed code, for Apply Direction and Render."
                ),
                io.Image.Output(display_name="image", tooltip="Its picture, unedited."),
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        style: InversionWire,
        first_layer: int = 8,
        last_layer: int = -1,
        amount: float = 1.0,
    ) -> io.NodeOutput:
        """Codes mixed row by row; what refining nodes added belongs to the old pictures and is left out."""
        check_finite(amount=amount)
        check_same_generator(inversion.generator, style.generator, "Inputs 'inversion' and 'style'")
        wire, base, other = inversion.generator, inversion.inversion, style.inversion
        count = common_batch(inversion=len(base), style=len(other))
        num_ws = wire.generator.num_ws
        layers = layer_range(first_layer, last_layer, num_ws) or (0, num_ws)
        w_plus = mix_styles(base.w_plus.expand(count, -1, -1), other.w_plus, layers=layers, amount=amount)
        info = {"method": "style mixing", "layers": f"{layers[0]} to {layers[1] - 1}", "generator": wire.name}
        crops = base.crops if len(base) == count else base.crops * count
        photo = item(base.image, 0).expand(count, -1, -1, -1) if len(base) == 1 else base.image
        mixed = Inversion(photo, w_plus, wire.generator, crops=crops, info=info)
        drawn = draw(mixed, wire, None, progress(count))
        mixed = dataclasses.replace(mixed, image=drawn)
        return io.NodeOutput(InversionWire(mixed, wire, inversion.edit), to_comfy(drawn))
