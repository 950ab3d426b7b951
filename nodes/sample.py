"""Sample: random codes of the generator."""

from __future__ import annotations

import dataclasses

import torch

from ..core.inversion import Inversion
from ..core.latents import sample
from ._comfy import intermediate_device, io, load_models, progress, schema
from ._drawing import draw
from ._types import GeneratorSocket, GeneratorWire, InversionSocket, InversionWire, check_finite, to_comfy

_SEEDS = 2**64


class GANInversionSample(io.ComfyNode):
    """Draws random pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionSample",
            display_name="Sample",
            category="GAN Inversion/sample",
            description=(
                "Random pictures of the generator, as inversions: they can be edited, mixed and saved like inverted "
                "photographs. The same seed gives the same picture on every device."
            ),
            search_aliases=["random face", "generate", "stylegan sample", "truncation"],
            inputs=[
                GeneratorSocket.Input("generator", tooltip="From Load StyleGAN."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=_SEEDS - 1,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Which random picture. A batch uses this seed and the following ones.",
                ),
                io.Float.Input(
                    "psi",
                    default=0.7,
                    min=0.0,
                    max=1.5,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    tooltip="Truncation: 0 is the average picture, 0.5 to 0.8 clean and typical, 1 full variety with "
                    "failures.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="How many pictures; time grows in proportion.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="Random codes, for Apply Direction, Mix Styles, Render."
                ),
                io.Image.Output(display_name="image", tooltip="Their pictures."),
            ],
        )

    @classmethod
    def execute(cls, generator: GeneratorWire, seed: int = 0, psi: float = 0.7, count: int = 1) -> io.NodeOutput:
        """Codes and their pictures."""
        check_finite(psi=psi)
        network = generator.generator
        load_models([generator.network], generator.activation_bytes)
        seeds = [(seed + offset) % _SEEDS for offset in range(count)]
        w_plus = sample(network, seeds, psi).to(intermediate_device())
        empty = torch.zeros(count, 3, network.resolution, network.resolution)
        info = {"method": "sample", "seeds": ", ".join(map(str, seeds)), "psi": f"{psi:g}", "generator": generator.name}
        codes = Inversion(empty, w_plus, network, info=info)
        drawn = draw(codes, generator, None, progress(count))
        return io.NodeOutput(InversionWire(dataclasses.replace(codes, image=drawn), generator), to_comfy(drawn))
