"""Discover Directions: directions from the generator itself, or from two sets of inverted pictures."""

from __future__ import annotations

import dataclasses

from ..core.discovery import calibrate, direction_from_pairs, direction_from_sets, pca_of_w, sample_w, sefa
from ..core.editing import Direction
from ..core.errors import InvalidInputError
from ._comfy import EXPERT, io, load_models, schema
from ._types import (
    DirectionSocket,
    GeneratorSocket,
    GeneratorWire,
    InversionSocket,
    InversionWire,
    check_choice,
    check_same_generator,
    layer_range,
)
from .load_direction import in_words

_METHODS = _SEFA, _PCA, _PAIRS, _SETS = "SeFa", "PCA", "from pairs", "from two sets"
_CALIBRATION_SAMPLES = 2000  # a second for the largest generator on a CPU


class GANInversionDiscoverDirections(io.ComfyNode):
    """Makes directions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionDiscoverDirections",
            display_name="Discover Directions",
            category="GAN Inversion/edit",
            description=(
                "Makes a direction for any generator without labels: SeFa factorises its weights, PCA (GANSpace) its "
                "codes. Or from inverted pictures without and with an attribute, as pairs of the same person or as two "
                "sets. Strength 1 is one standard deviation of this generator's codes. Look at them with Direction Sweep."
            ),
            search_aliases=["sefa", "ganspace", "pca", "interfacegan", "unsupervised directions"],
            inputs=[
                GeneratorSocket.Input("generator", tooltip="From Load StyleGAN."),
                io.Combo.Input(
                    "method",
                    options=list(_METHODS),
                    default=_SEFA,
                    optional=True,
                    tooltip="SeFa and PCA need nothing else and take seconds. 'from pairs' and 'from two sets' need "
                    "the two inversions below.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=511,
                    optional=True,
                    tooltip="Which direction of SeFa or PCA, strongest first. The first 10 to 20 usually mean "
                    "something.",
                ),
                io.Int.Input(
                    "first_layer",
                    default=0,
                    min=0,
                    max=17,
                    optional=True,
                    tooltip="First layer the direction edits: 0 to 3 are pose and shape, the middle ones features, the "
                    "last ones colours. SeFa analyses only these layers.",
                ),
                io.Int.Input(
                    "last_layer",
                    default=-1,
                    min=-1,
                    max=17,
                    optional=True,
                    tooltip="Last layer the direction edits, itself included; -1 is the generator's last one.",
                ),
                InversionSocket.Input(
                    "without",
                    optional=True,
                    tooltip="Pictures without the attribute (neutral faces), from Encode or Project.",
                ),
                InversionSocket.Input(
                    "with_attribute",
                    optional=True,
                    tooltip="Pictures with the attribute (smiling faces). For pairs: the same people in the same "
                    "order.",
                ),
                io.String.Input(
                    "name", default="", optional=True, tooltip="What to call the direction; empty names it itself."
                ),
                io.Int.Input(
                    "samples",
                    default=10000,
                    min=100,
                    max=200000,
                    step=100,
                    optional=True,
                    **EXPERT,
                    tooltip="PCA only: random codes to analyse. 10,000 take a second; fewer than 1,000 give noisy "
                    "directions.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    optional=True,
                    **EXPERT,
                    tooltip="PCA only: of the random codes.",
                ),
            ],
            outputs=[
                DirectionSocket.Output(display_name="direction", tooltip="For Apply Direction and Direction Sweep."),
                io.String.Output(
                    display_name="info", tooltip="Name, natural range, layers, how it was made and calibrated."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        generator: GeneratorWire,
        method: str = _SEFA,
        index: int = 0,
        first_layer: int = 0,
        last_layer: int = -1,
        without: InversionWire | None = None,
        with_attribute: InversionWire | None = None,
        name: str = "",
        samples: int = 10000,
        seed: int = 0,
    ) -> io.NodeOutput:
        """One direction."""
        check_choice("method", method, _METHODS)
        network = generator.generator
        layers = layer_range(first_layer, last_layer, network.num_ws)
        load_models([generator.network])
        if method == _SEFA:
            found = sefa(network, index + 1, layers)[index]
        elif method == _PCA:
            found = pca_of_w(network, index + 1, samples, seed, layers=layers)[index]
        else:
            if without is None or with_attribute is None:
                raise InvalidInputError(
                    f"Method {method!r} needs the inputs 'without' and 'with_attribute': connect both."
                )
            for wire, socket in ((without, "without"), (with_attribute, "with_attribute")):
                check_same_generator(wire.generator, generator, f"Inputs {socket!r} and 'generator'")
            a, b = without.inversion.w_plus, with_attribute.inversion.w_plus
            make = direction_from_pairs if method == _PAIRS else direction_from_sets
            found = make(a, b, name or "discovered", layers=layers, generator=network)
        direction = calibrate(found, network, sample_w(network, _CALIBRATION_SAMPLES))
        direction = dataclasses.replace(direction, name=name or direction.name)
        return io.NodeOutput(direction, f"{in_words(direction)} {_calibration(found, direction, method, generator)}")


def _calibration(found: Direction, direction: Direction, method: str, generator: GeneratorWire) -> str:
    low, high = direction.limits
    text = (
        f"Calibrated on {_CALIBRATION_SAMPLES} random codes of {generator.name}: strength 1 is one standard deviation, "
        f"{low:g} to {high:g} are natural."
    )
    if method in (_PAIRS, _SETS):
        text += f" The whole step between the two groups is strength {found.unit / direction.unit:.3g}."
    return text
