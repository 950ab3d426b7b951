"""What the refining nodes share: which distance and helper networks they use, their loop, and what they report."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.discriminator import Discriminator
from ..core.errors import ModelNotFoundError, UnsupportedModelError
from ..core.inversion import Inversion
from ..core.losses import LayeredDistance
from ..core.refinement import Refinement
from ..model_registry import catalogue, load_model, perceptual_distance
from ..model_registry.perceptual import BUNDLED_DISTANCE, available_distance
from . import _models
from ._comfy import (
    EXPERT,
    Network,
    Progress,
    check_interrupt,
    intermediate_device,
    io,
    on_device,
    optimising,
    progress,
    with_room,
)
from ._types import GeneratorWire, InversionWire

if TYPE_CHECKING:
    from ..core.parsing import FaceParser

AUTOMATIC = "automatic"
DISTANCES = (AUTOMATIC, "lpips-alex", "lpips-vgg", BUNDLED_DISTANCE)
DISTANCE_TOOLTIP = (
    "What the optimiser takes for likeness. automatic: LPIPS where its weights are on this machine, else the small bundled "
    "network, which needs no download; the report says which. lpips-vgg downloads 553 MB once; lpips-alex needs "
    "alexnet-owt-7be5be79.pth in models/stylegan. Both need the packages lpips and torchvision."
)
NO_PARSER = "none"
FACE_PARSER = "bisenet-face-parsing"
PARSERS = (AUTOMATIC, NO_PARSER, FACE_PARSER)
_FACES = ("ffhq", "portraits")  # domains of aligned faces
GRADIENT_COPIES = 6  # activations kept for the backward pass, in forward passes


def seconds_input(tooltip: str) -> Any:
    """The widget that limits the time of each image."""
    return io.Float.Input(
        "seconds", default=0.0, min=0.0, max=3600.0, step=1.0, round=0.1, optional=True, **EXPERT, tooltip=tooltip
    )


def seed_input(tooltip: str) -> Any:
    """The widget of a seed that stays as it is set."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, optional=True, **EXPERT, tooltip=tooltip
    )


def distance_input(tooltip: str = DISTANCE_TOOLTIP) -> Any:
    """The widget that names a distance; see `distance_named`."""
    return io.Combo.Input(
        "distance", options=list(DISTANCES), default=AUTOMATIC, optional=True, **EXPERT, tooltip=tooltip
    )


def distance_named(name: str, preferred: Sequence[str]) -> LayeredDistance:
    """The distance a widget names; "automatic" is the first of `preferred` that is at hand, or the bundled one."""
    # Weights made in inference mode could not take part in an optimisation.
    with optimising():
        if name == AUTOMATIC:
            return available_distance(preferred, size=None)
        return perceptual_distance(name, size=None, progress=progress(), check_interrupt=check_interrupt)


def distance_words(distance: LayeredDistance, chosen: str = AUTOMATIC) -> str:
    """What a report says of the distance used; `chosen` is what the widget says."""
    if distance.name != BUNDLED_DISTANCE:
        return f"Distance: {distance.name}."
    why = " (its weights or packages are not on this machine)" if chosen == AUTOMATIC else ""
    return f"Distance: {BUNDLED_DISTANCE}, the bundled stand-in for LPIPS{why}."


def find_face_parser(name: str, generator: GeneratorWire) -> FaceParser | None:
    """The parser a widget names; "automatic" is BiSeNet for faces where its file is on this machine, else none."""
    if name == NO_PARSER:
        return None
    if name == AUTOMATIC:
        path, problem = catalogue.locate(catalogue.find(FACE_PARSER), verify=False)
        if path is None or problem is not None or generator.domain not in _FACES:
            return None
    with optimising():
        loaded = load_model(FACE_PARSER, architecture="bisenet", progress=progress(), check_interrupt=check_interrupt)
    return loaded.module  # type: ignore[return-value]


def discriminator_of(name: str, generator: GeneratorWire) -> tuple[Discriminator, str]:
    """The discriminator a widget names, and what a report calls it; "automatic" is the generator's own: bundled, or in
    the same file.

    Raises ModelNotFoundError that says where one comes from.
    """
    with optimising():
        if name != AUTOMATIC:
            loaded = load_model(
                _models.resolve(name, "discriminator"), part="discriminator", check_interrupt=check_interrupt
            )
            return loaded.module, name  # type: ignore[return-value]
        for entry in catalogue.load_catalogue():
            fits = entry.kind == "discriminator" and entry.domain == generator.domain is not None
            if fits and entry.resolution in (None, generator.generator.resolution):
                loaded = load_model(entry.id, check_interrupt=check_interrupt)
                return loaded.module, entry.id  # type: ignore[return-value]
        try:
            if generator.source is not None:
                loaded = load_model(generator.source, part="discriminator", check_interrupt=check_interrupt)
                return loaded.module, loaded.path.name  # type: ignore[return-value]
        except UnsupportedModelError as error:
            raise ModelNotFoundError(
                f"Generator {generator.name} comes without its discriminator, which this method needs. NVIDIA's .pkl files "
                "hold both: load the generator from one, or choose the discriminator's file."
            ) from error
    raise ModelNotFoundError(f"No discriminator is known for {generator.name}: choose its file.")


def refine_wire(
    wire: InversionWire,
    refine: Callable[[Inversion, Progress], Refinement],
    steps: int,
    helpers: Sequence[Any] = (),
    networks: Sequence[Network] = (),
) -> tuple[InversionWire, Refinement]:
    """Runs a refinement of the library on what travels on the wire, and puts the result back there.

    Args:
        wire: stays as it is; the edit built up on it is kept.
        refine: takes the inversion, whose generator lies on the device it runs on, and the progress.
        steps: at most made for each image.
        helpers: further networks and distances that no other node has; None are left out. They leave that device again.
        networks: further networks of the host's, from other wires.
    """
    generator = wire.generator
    report = progress(steps * len(wire.inversion))
    memory = GRADIENT_COPIES * generator.activation_bytes
    with on_device([generator.network, *networks], modules_of(helpers), memory) as (_, loaded), optimising():
        begun = dataclasses.replace(wire.inversion, generator=differentiable(generator.generator))
        found = with_room(lambda: refine(begun, report), loaded)
        report(report.total or 1)  # images that were ended early leave steps over
    refined = dataclasses.replace(found.inversion.to(intermediate_device()), generator=generator.generator)
    return dataclasses.replace(wire, inversion=refined), found


def modules_of(helpers: Iterable[Any]) -> list[nn.Module]:
    """The networks among networks, distances and None."""
    found = (helper.network if isinstance(helper, LayeredDistance) else helper for helper in helpers)
    return [module for module in found if isinstance(module, nn.Module)]


def report_words(found: Refinement, *more: str) -> str:
    """What a node says of a refinement: how many images it took, in how many steps, which failed and why."""
    count, bad = len(found.inversion), len(found.failures)
    made = [steps for index, steps in enumerate(found.steps) if index not in found.failures]
    steps = f"{min(made)}" if min(made) == max(made) else f"{min(made)} to {max(made)}"
    words = f"Refined {count - bad} of {count} image(s) in {steps} steps each."
    return " ".join(part for part in (words, *more, found.problems()) if part)


def differentiable(generator: Any) -> Any:
    """The generator, or a copy where the host moved its weights in inference mode, which bars them from gradients."""
    return copy.deepcopy(generator) if any(p.is_inference() for p in generator.parameters()) else generator
