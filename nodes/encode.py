"""Encode: aligned photographs -> inversions, by one pass (e4e, pSp) or a few (ReStyle) of an encoder."""

from __future__ import annotations

import logging

from torch import Tensor

from ..core.inversion import Inversion
from ._comfy import in_chunks, intermediate_device, io, load_models, progress, schema
from ._drawing import draw, fit_to_generator
from ._types import (
    CropSocket,
    CropsWire,
    EncoderSocket,
    EncoderWire,
    GeneratorSocket,
    GeneratorWire,
    InversionSocket,
    InversionWire,
    crops_for,
    to_comfy,
    to_core,
)

logger = logging.getLogger(__name__)

_CHUNK = 4  # images per pass
_ENCODER_BYTES = 400 * 2**20  # activations of an IR-SE50 at 256 px, for one image


class GANInversionEncode(io.ComfyNode):
    """Inverts photographs with an encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionEncode",
            display_name="Encode (e4e / ReStyle)",
            category="GAN Inversion/invert",
            description=(
                "Turns aligned photographs into codes of the generator with an encoder, in well under a second each on "
                "a GPU. Edits made afterwards never run the encoder again."
            ),
            search_aliases=["inversion", "e4e", "psp", "restyle", "invert photo", "gan inversion"],
            inputs=[
                io.Image.Input("image", tooltip="Aligned squares, as Align Face gives them; any size."),
                EncoderSocket.Input(
                    "encoder",
                    tooltip="From Load Encoder; trained for this generator. The log warns "
                    "where their kinds of pictures differ.",
                ),
                GeneratorSocket.Input("generator", tooltip="From Load StyleGAN."),
                CropSocket.Input(
                    "crop",
                    optional=True,
                    tooltip="From Align Face: kept with the inversion, and saved with it for Paste Back.",
                ),
                io.Int.Input(
                    "iterations",
                    default=5,
                    min=1,
                    max=20,
                    optional=True,
                    tooltip="Passes of a ReStyle encoder: 5 is usual, more brings little and takes longer in "
                    "proportion. Encoders of other kinds make one pass.",
                ),
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="For Apply Direction, Render and the others."),
                io.Image.Output(
                    display_name="reconstruction", tooltip="What the generator draws from the codes, unedited."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        encoder: EncoderWire,
        generator: GeneratorWire,
        crop: CropsWire | None = None,
        iterations: int = 5,
    ) -> io.NodeOutput:
        """Codes and reconstructions of a batch."""
        target = to_core(image)
        count = len(target)
        crops = tuple(crops_for(crop, count))
        report = progress(2 * count)
        network, module = encoder.encoder, generator.generator
        fitted = fit_to_generator(target, module, network)
        if None not in (encoder.domain, generator.domain) and encoder.domain != generator.domain:
            logger.warning(
                "Encoder %s was trained on %s pictures, generator %s draws %s: the codes fit in shape only, and the "
                "result may not resemble the photograph. Choose an encoder for this generator.",
                encoder.name,
                encoder.domain,
                generator.name,
                generator.domain,
            )
        memory = _ENCODER_BYTES * min(count, _CHUNK) + generator.activation_bytes
        networks = [encoder.network, generator.network]
        device = load_models(networks, memory)

        def encode(part: Tensor) -> Tensor:
            return network(part.to(device), generator=module, iterations=iterations)

        w_plus = in_chunks(encode, target, _CHUNK, networks, report)
        info = {"method": network.config.architecture, "encoder": encoder.name, "generator": generator.name}
        inversion = Inversion(fitted.to(intermediate_device()), w_plus, module, crops=crops, info=info)
        drawn = draw(inversion, generator, None, report, done=count)
        return io.NodeOutput(InversionWire(inversion, generator), to_comfy(drawn))
