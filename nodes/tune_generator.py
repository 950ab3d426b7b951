"""Tune Generator: an inversion -> one with tuned weights, by PTI or by near-perfect inversion."""

from __future__ import annotations

from typing import Any

from ..core.tuning import NearPerfectConfig, PtiConfig, near_perfect, tune
from . import _models
from ._comfy import EXPERT, io, progress, schema
from ._drawing import draw
from ._refinement import (
    AUTOMATIC,
    DISTANCE_TOOLTIP,
    DISTANCES,
    discriminator_of,
    distance_input,
    distance_named,
    distance_words,
    refine_wire,
    report_words,
    seconds_input,
    seed_input,
)
from ._types import InversionSocket, InversionWire, check_choice, check_finite, to_comfy

_METHODS = _PTI, _NEAR_PERFECT = "PTI", "near-perfect"
_GIVEN, _PROJECTED = "the inversion's code", "W projection"
_PREFERRED = ("lpips-alex", "lpips-vgg")
_RATES = (
    f"0 is the method's own: {PtiConfig.learning_rate:g} for PTI, {NearPerfectConfig.learning_rate:g} for near-perfect. "
    "Either way generators narrower than 512 channels learn faster."
)
_ENOUGH = NearPerfectConfig.steps
_PIVOTS = {_GIVEN: "given", _PROJECTED: "w"}


class GANInversionTuneGenerator(io.ComfyNode):
    """Tunes the generator to photographs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionTuneGenerator",
            display_name="Tune Generator (PTI / near-perfect)",
            category="GAN Inversion/refine",
            description=(
                "Teaches the generator each photograph: its weights are tuned until it draws the picture from the code it "
                "has. The loaded generator stays as it is; what was learned travels with the inversion. Half a minute on "
                "a GPU; on a CPU one to two minutes with the bundled model, far more with a large one. Edits made "
                "afterwards do not run it again."
            ),
            search_aliases=["pti", "pivotal tuning", "fine-tune generator", "near perfect inversion"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Encode, Project or another refining node."),
                io.Combo.Input(
                    "method",
                    options=list(_METHODS),
                    default=_PTI,
                    optional=True,
                    tooltip="PTI compares pixels and features. near-perfect also plays the generator against its "
                    "discriminator, which keeps its other faces as they were: closer to the photograph, slower.",
                ),
                io.Int.Input(
                    "steps",
                    default=350,
                    min=1,
                    max=5000,
                    optional=True,
                    tooltip="At most so many for each image; PTI stops before when the picture is close enough, near-perfect needs "
                    f"about {_ENOUGH}. Time grows in proportion.",
                ),
                io.Combo.Input(
                    "pivot",
                    options=list(_PIVOTS),
                    default=_GIVEN,
                    optional=True,
                    tooltip="The code that stays fixed: that of the inversion, or one found first by 450 steps in W, which "
                    "edits better when the inversion's code is far off. W projection drops what the code had before.",
                ),
                io.Float.Input(
                    "stop_at",
                    default=0.06,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip="PTI ends at this perceptual distance; lower comes closer and takes longer. 0 makes all steps.",
                ),
                io.Boolean.Input(
                    "locality",
                    default=False,
                    optional=True,
                    tooltip="PTI: keep the generator as it was around the pivot. Doubles the time; helps "
                    "where edits of the tuned picture look broken.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=0.1,
                    step=0.0001,
                    round=0.00001,
                    optional=True,
                    **EXPERT,
                    tooltip=_RATES,
                ),
                seconds_input("Time for each image, after which the best so far is kept. 0 is no limit."),
                seed_input("Of the random codes that guard the generator's other pictures, and of the projection."),
                io.Combo.Input(
                    "discriminator",
                    options=[AUTOMATIC, *_models.choices("discriminator")],
                    default=AUTOMATIC,
                    optional=True,
                    **EXPERT,
                    tooltip="For near-perfect. automatic is the generator's own: bundled, or in the same NVIDIA .pkl.",
                ),
                distance_input(f"For PTI. {DISTANCE_TOOLTIP}"),
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="The tuned inversion, with its edit if any."),
                io.Image.Output(display_name="reconstruction", tooltip="The tuned inversion drawn unedited."),
                io.String.Output(display_name="report", tooltip="What was used, and which images failed and why."),
            ],
        )

    @classmethod
    def validate_inputs(cls, discriminator: str = AUTOMATIC) -> bool | str:
        """Whether the discriminator's name is known."""
        return discriminator == AUTOMATIC or _models.check(discriminator, "discriminator")

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        method: str = _PTI,
        steps: int = 350,
        pivot: str = _GIVEN,
        stop_at: float = 0.06,
        locality: bool = False,
        learning_rate: float = 0.0,
        seconds: float = 0.0,
        seed: int = 0,
        discriminator: str = AUTOMATIC,
        distance: str = DISTANCES[0],
    ) -> io.NodeOutput:
        """Tunes to one image after another."""
        check_choice("method", method, _METHODS)
        check_choice("pivot", pivot, _PIVOTS)
        check_choice("distance", distance, DISTANCES)
        check_finite(stop_at=stop_at, learning_rate=learning_rate, seconds=seconds)
        own: dict[str, Any] = {"steps": steps, "seconds": seconds or None, "seed": seed}
        own |= {"pivot": _PIVOTS[pivot]} | ({"learning_rate": learning_rate} if learning_rate else {})
        if method == _NEAR_PERFECT:
            judge, called = discriminator_of(discriminator, inversion.generator)
            against = NearPerfectConfig(**own)
            wire, found = refine_wire(
                inversion,
                lambda begun, report: near_perfect(begun, judge, against, progress=report),
                steps + (against.pivot_steps if pivot == _PROJECTED else 0),
                [judge],
            )
            said = f"Discriminator: {called}."
        else:
            measure = distance_named(distance, _PREFERRED)
            config = PtiConfig(stop_at=stop_at or None, locality=locality, **own)
            wire, found = refine_wire(
                inversion,
                lambda begun, report: tune(begun, measure, config, progress=report),
                steps + (config.pivot_steps if pivot == _PROJECTED else 0),
                [measure],
            )
            said = distance_words(measure, distance)
        drawn = draw(wire.inversion, wire.generator, None, progress())
        return io.NodeOutput(wire, to_comfy(drawn), report_words(found, said))
