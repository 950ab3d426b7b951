"""Multilayer Invert (SAM): an inversion and a latent map -> each region inverted in its own latent space."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, ModelNotFoundError
from ..core.generator import Generator
from ..core.inversion import FeatureOffset, FeatureOverride, FeatureWarp, Inversion, Modulation, tuned_weights
from ..core.invertibility import W_PLUS, LatentMap, feature_side, latent_spaces
from ..core.multilayer import MultilayerConfig, invert_multilayer, suited_config
from ..core.refinement import Progress as StepProgress
from ..core.refinement import Refined, Refinement, StopOptimisation, refine_each
from ..model_registry import load_model
from . import _models
from ._comfy import EXPERT, Progress, check_interrupt, io, optimising, progress, schema
from ._drawing import draw
from ._refinement import (
    AUTOMATIC,
    DISTANCES,
    distance_input,
    distance_named,
    distance_words,
    refine_wire,
    report_words,
    seconds_input,
    seed_input,
)
from ._types import (
    GeneratorWire,
    InversionSocket,
    InversionWire,
    LatentMapSocket,
    LatentMapWire,
    check_choice,
    check_finite,
    check_same_generator,
    to_comfy,
)

_METHODS = _OPTIMISE, _ENCODER = "optimise", "encoder (one pass)"
_KIND = "multilayer-encoder"
_PREFERRED = ("lpips-vgg",)
_PAINTED_OVER = (FeatureOffset, FeatureOverride, FeatureWarp)  # what the new features take the place of
_NAMES = {
    "feature-offset": "multilayer features",
    "feature-override": "DHR's features",
    "feature-warp": "SAMM's alignment",
}


class GANInversionMultilayerInvert(io.ComfyNode):
    """Inverts by regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionMultilayerInvert",
            display_name="Multilayer Invert (SAM)",
            category="GAN Inversion/refine",
            description=(
                "Inverts each region of the photograph in the space that Predict Invertibility chose: what the codes can "
                "draw stays fully editable, and the rest is kept by features at four layers, which later edits leave as it "
                "is. By optimisation (about half a minute for each, on a CPU with the bundled model or on a GPU with a "
                "large one), or in one pass of an encoder. Edits made afterwards do not run it again."
            ),
            search_aliases=["sam", "spatially adaptive", "multilayer inversion", "feature space", "keep background"],
            inputs=[
                InversionSocket.Input(
                    "inversion", tooltip="From Encode or Project: where the optimisation begins. Its edit is kept."
                ),
                LatentMapSocket.Input(
                    "latent_map",
                    tooltip="From Predict Invertibility, of the same photographs; one serves a whole batch.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(_METHODS),
                    default=_OPTIMISE,
                    optional=True,
                    tooltip="optimise: codes and features step by step, the closest. encoder: one pass of a network trained "
                    "for this generator, in a second, a little less close; the codes stay as they are.",
                ),
                io.Int.Input(
                    "steps",
                    default=200,
                    min=1,
                    max=5000,
                    optional=True,
                    tooltip="Of the optimisation, for each image. 100 is quick, 1001 the published number. Time grows in "
                    "proportion.",
                ),
                seconds_input("Time for each image, after which the best so far is kept. 0 is no limit."),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.005,
                    round=0.0001,
                    optional=True,
                    **EXPERT,
                    tooltip="Of codes and features; 0.02 to 0.1 is useful, higher is faster and rougher. 0 is automatic: 0.05 with "
                    "LPIPS, 0.1 with the bundled network.",
                ),
                io.Float.Input(
                    "feature_weight",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    **EXPERT,
                    tooltip="Keeps features near the generator's own: more is more natural, less is closer to the "
                    "photograph. 0 is automatic: 5 with LPIPS, as published, 0.2 with the bundled network.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=[AUTOMATIC, *_models.found(_KIND)],
                    default=AUTOMATIC,
                    optional=True,
                    **EXPERT,
                    tooltip="For the one-pass method. automatic is the one made for this generator: bundled, or a file in "
                    "models/stylegan that says so.",
                ),
                distance_input(),
                seed_input("Of the codes that tell the optimisation which ones are usual."),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The refined inversion, with its edit if any."
                ),
                io.Image.Output(display_name="reconstruction", tooltip="The refined inversion drawn unedited."),
                io.String.Output(display_name="report", tooltip="What was used, and which images failed and why."),
            ],
        )

    @classmethod
    def validate_inputs(cls, encoder: str = AUTOMATIC) -> bool | str:
        """Whether the encoder's name is known."""
        return encoder == AUTOMATIC or _models.check(encoder, _KIND)

    @classmethod
    def fingerprint_inputs(
        cls,
        inversion: InversionWire | None = None,
        latent_map: LatentMapWire | None = None,
        method: str = _OPTIMISE,
        steps: int = 200,
        seconds: float = 0.0,
        learning_rate: float = 0.0,
        feature_weight: float = 0.0,
        encoder: str = AUTOMATIC,
        distance: str = DISTANCES[0],
        seed: int = 0,
    ) -> str:
        """Changes with the encoder's file, where one is used; with "automatic", with those that may be chosen."""
        if method != _ENCODER:
            return method
        return _models.all_fingerprints(_KIND) if encoder == AUTOMATIC else _models.fingerprint(encoder, _KIND)

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        latent_map: LatentMapWire,
        method: str = _OPTIMISE,
        steps: int = 200,
        seconds: float = 0.0,
        learning_rate: float = 0.0,
        feature_weight: float = 0.0,
        encoder: str = AUTOMATIC,
        distance: str = DISTANCES[0],
        seed: int = 0,
    ) -> io.NodeOutput:
        """Inverts one image after another."""
        check_choice("method", method, _METHODS)
        check_choice("distance", distance, DISTANCES)
        check_finite(seconds=seconds, learning_rate=learning_rate, feature_weight=feature_weight)
        check_same_generator(latent_map.generator, inversion.generator, "Inputs 'latent_map' and 'inversion'")
        count, chosen = len(inversion.inversion), latent_map.latent_map
        if len(chosen) not in (1, count):
            raise InvalidInputError(
                f"Input 'latent_map' is of {len(chosen)} image(s), input 'inversion' holds {count}: expected one for each, "
                "or one for all."
            )
        if seconds < 0:
            raise InvalidInputError(f"seconds {seconds}: expected a finite number of at least 0.")
        if method == _ENCODER:
            network, called = _encoder(encoder, inversion.generator)
            taken: tuple[type[Modulation], ...] = (FeatureOffset,)
            each, helpers, said = 1, [network], f"One pass of {called}; the codes stayed as they are."
            work = _encoding(network)
        else:
            measure = distance_named(distance, _PREFERRED)
            given = {"learning_rate": learning_rate, "feature_weight": feature_weight}  # 0 is automatic
            chosen_ones = {name: value for name, value in given.items() if value}
            config = suited_config(measure.name, steps=steps, seed=seed, **chosen_ones)
            taken, each, helpers, said = _PAINTED_OVER, steps, [measure], distance_words(measure, distance)
            work = _optimising(config, measure, seconds)

        def run(begun: Inversion, report: Progress) -> Refinement:
            return _by_regions(begun, chosen, work, taken, each, report)

        wire, found = refine_wire(inversion, run, each, helpers)
        drawn = draw(wire.inversion, wire.generator, None, progress())
        said = " ".join(part for part in (said, _spaces_words(chosen), _left_out(inversion.inversion, taken)) if part)
        return io.NodeOutput(wire, to_comfy(drawn), report_words(found, said))


# An image without the modulations that are replaced, its latent map, progress -> its inversion and steps made.
_Work = Callable[[Inversion, LatentMap, StepProgress | None], tuple[Inversion, int]]


def _optimising(config: MultilayerConfig, distance: Any, seconds: float) -> _Work:
    def invert(one: Inversion, chosen: LatentMap, report: StepProgress | None) -> tuple[Inversion, int]:
        end = time.monotonic() + seconds

        def step(made: int, steps: int, preview: Tensor | None) -> None:
            if report is not None:
                report(made, steps, preview)
            if seconds and time.monotonic() >= end:
                raise StopOptimisation

        found = invert_multilayer(
            one.image, _tuned(one), chosen, config, start=one.w_plus, distance=distance, progress=step
        )
        added = dataclasses.replace(one, w_plus=found.w_plus, modulations=(*one.modulations, *found.modulations))
        return dataclasses.replace(added, info={**one.info, **found.info}), int(found.info["steps"])

    return invert


def _encoding(network: Any) -> _Work:
    def encode(one: Inversion, chosen: LatentMap, report: StepProgress | None) -> tuple[Inversion, int]:
        from ..core.multilayer_encoder import encode_multilayer

        found = encode_multilayer(one, chosen, network)
        if report is not None:
            report(1, 1, None)
        return found, 1

    return encode


def _by_regions(
    begun: Inversion,
    chosen: LatentMap,
    work: _Work,
    taken: tuple[type[Modulation], ...],
    steps: int,
    report: Progress,
) -> Refinement:
    """`refine_each`, whose results take the place of the modulations of some types; failed images keep theirs."""
    kept = tuple(m for m in begun.modulations if not isinstance(m, taken))
    spaces = [space for space in chosen.spaces if space != W_PLUS and bool(chosen.mask(space).any())]

    def one(image: Inversion, index: int, step: StepProgress | None) -> Refined:
        own = chosen if len(chosen) == 1 else LatentMap(chosen.spaces, chosen.index[index : index + 1])
        found, made = work(image, own, step)
        offsets = {m.resolution: m for m in found.modulations[len(kept) :] if isinstance(m, FeatureOffset)}
        # All images of a batch have the same kinds of modulations: where a space is not in use, it adds nothing.
        filled = [offsets.get(feature_side(space)) or _no_offset(image, space) for space in spaces]
        return Refined(dataclasses.replace(found, modulations=(*image.modulations, *filled)), made)

    found = refine_each(dataclasses.replace(begun, modulations=kept), one, steps, report)
    if not found.failures or len(kept) == len(begun.modulations):
        return found
    lost = [m for m in begun.modulations if isinstance(m, taken)]
    again = [_only(m, len(begun), found.failures) for m in lost]
    whole = dataclasses.replace(found.inversion, modulations=(*found.inversion.modulations, *again))
    return dataclasses.replace(found, inversion=whole)


def _only(modulation: Modulation, count: int, images: Any) -> Modulation:
    """A modulation of a batch that has its effect on some of the images alone."""
    rows = [modulation.map_tensors(lambda t, k=k: t[k : k + 1] if len(t) > 1 else t) for k in range(count)]
    return type(modulation).batch([row if k in images else row.without_effect() for k, row in enumerate(rows)])


def _no_offset(image: Inversion, space: str) -> FeatureOffset:
    config, side = image.generator.config, feature_side(space)
    channels = dict(zip(config.resolutions, config.channels, strict=True))[side]
    return FeatureOffset(side, image.image.new_zeros(1, channels, side, side), image.image.new_zeros(1, 1, side, side))


def _tuned(one: Inversion) -> Generator:
    """The generator as the inversion's weight offsets (PTI, DHR) make it: features fit the weights they are drawn with."""
    weights = tuned_weights(one)
    if not weights:
        return one.generator
    generator = copy.deepcopy(one.generator)
    parameters = dict(generator.synthesis.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return generator


def _encoder(name: str, generator: GeneratorWire) -> tuple[Any, str]:
    """The encoder a widget names, and what a report calls it.

    Raises ModelNotFoundError that says what to do where none is known for the generator.
    """
    network = generator.generator
    if name == AUTOMATIC:
        spaces = latent_spaces(network.resolution)
        place = _models.made_for(_KIND, generator.domain, generator.name, network.resolution, spaces)
        if place is None:
            raise ModelNotFoundError(
                f"No multilayer encoder for {generator.name} is on this machine. Use method {_OPTIMISE!r}, which needs "
                "none, or train one with `gan-inversion train multilayer` and put its file into models/stylegan."
            )
    else:
        place = _models.resolve(name, _KIND)
    with optimising():
        loaded = load_model(place, architecture="sam-encoder", progress=progress(), check_interrupt=check_interrupt)
    return loaded.module, loaded.catalogue_id or loaded.path.name


def _spaces_words(chosen: LatentMap) -> str:
    """What a report says of the map."""
    shares = {space: float(share.mean()) for space, share in chosen.shares().items()}
    return f"Regions: {', '.join(f'{space} {share:.0%}' for space, share in shares.items() if share)}."


def _left_out(before: Inversion, taken: Sequence[type[Modulation]]) -> str:
    """What a report says of earlier refinements."""
    kinds = [kind.kind for kind in taken]
    lost = dict.fromkeys(_NAMES[m.kind] for m in before.modulations if m.kind in kinds)
    return f"Replaced what was there before: {', '.join(lost)}." if lost else ""
