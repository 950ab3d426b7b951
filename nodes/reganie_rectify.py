"""ReGANIE Rectify: an inversion, edited or not -> one whose pictures get back what the generator could not draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from ..core.editing import Edit
from ..core.errors import GeneratorMismatchError, InvalidInputError, ModelNotFoundError, NotFiniteError
from ..core.inversion import Inversion, PixelBlend, ResidualTransfer
from ..core.refinement import Refinement, check_refinable
from ..core.reganie import Rectification, Reganie, rectify
from ..model_registry import LoadedModel, load_model
from . import _models
from ._comfy import Progress, check_interrupt, io, optimising, progress, schema
from ._drawing import draw
from ._types import (
    GeneratorWire,
    InversionSocket,
    InversionWire,
    check_finite,
    mask_in,
    painted,
    to_comfy,
)

AUTOMATIC, BASELINE = "automatic", "residual transfer (baseline)"
_KIND = "reganie"
_INSTEAD = f"{BASELINE!r} works without a network: exact without an edit, it ghosts where an edit moves edges."


@dataclass(frozen=True)
class Trained:
    """A rectifying network."""

    network: Reganie
    name: str
    notes: tuple[str, ...] = ()  # for the report


class GANInversionReGANIERectify(io.ComfyNode):
    """Rectifies inversions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionReGANIERectify",
            display_name="ReGANIE Rectify",
            category="GAN Inversion/refine",
            description=(
                "Gives the picture back what the generator could not draw: a network looks at what the unedited "
                "inversion misses and redraws the edited picture with it. One pass, well under a second at 128 px on a "
                "CPU. Needs a network trained for this generator; a plain transfer of the missing parts serves as the "
                "baseline without one. Edits may come before or after this node."
            ),
            search_aliases=["reganie", "rectify", "residual", "reconstruction error", "detail", "out of domain"],
            inputs=[
                InversionSocket.Input(
                    "inversion", tooltip="From Encode, Project, a refining node or Apply Direction. Its edit is kept."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to rectify, 1 is there: painted, or of any other node, in the frame of the aligned "
                    "photograph. Everywhere without one; an empty mask counts as none.",
                ),
                io.Combo.Input(
                    "method",
                    options=[AUTOMATIC, BASELINE, *_models.found(_KIND)],
                    default=AUTOMATIC,
                    optional=True,
                    tooltip="automatic: the ReGANIE network trained for this generator; where there is none, the error "
                    "says how to train one. residual transfer: the baseline, which needs no network and adds what the "
                    "unedited inversion misses, moved nowhere; it ghosts where an edit moves edges. Or a network by its "
                    "name.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    tooltip="0 is the picture as the generator drew it, 1 the rectified one. Costs nothing.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The rectified inversion, with its edit if any. Holds the network, so a saved one needs no "
                    "other file.",
                ),
                io.Image.Output(
                    display_name="rectified",
                    tooltip="Rectified, with the edit that came with the inversion; the reconstruction where there is none.",
                ),
                io.Image.Output(display_name="reconstruction", tooltip="The rectified inversion drawn unedited."),
                io.String.Output(
                    display_name="report", tooltip="Which network or baseline, and which images failed and why."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str = AUTOMATIC) -> bool | str:
        """Whether the network's name is known."""
        return method in (AUTOMATIC, BASELINE) or _models.check(method, _KIND)

    @classmethod
    def fingerprint_inputs(
        cls,
        inversion: InversionWire | None = None,
        mask: Tensor | None = None,
        method: str = AUTOMATIC,
        strength: float = 1.0,
    ) -> str:
        """Changes with the network's file; with "automatic", with those that may be chosen."""
        if method == AUTOMATIC:
            return _models.all_fingerprints(_KIND)
        return method if method == BASELINE else _models.fingerprint(method, _KIND)

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        mask: Tensor | None = None,
        method: str = AUTOMATIC,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        """Adds the rectification and draws."""
        check_finite(strength=strength)
        if not 0 <= strength <= 1:
            raise InvalidInputError(f"Input 'strength' is {strength}: expected 0 to 1.")
        before = without_rectification(inversion.inversion)
        chosen = mask_in(painted(mask), before)
        failures = _failures(before)
        trained = None if method == BASELINE else trained_for(method, inversion)
        found = _rectified(before, trained, chosen, strength, failures)
        wire = dataclasses.replace(inversion, inversion=found)
        edits = [None, inversion.edit] if inversion.edit.terms else [None]
        report = progress(len(found) * len(edits))
        pictures = [
            _drawn(wire, before, edit, failures, report, place * len(found)) for place, edit in enumerate(edits)
        ]
        outcome = Refinement(found, failures)
        words = [
            _done(outcome, trained),
            "" if chosen is None else f"The mask takes {100 * float(chosen.mean()):.0f} % of the picture.",
            "" if strength == 1 else f"Strength {strength:g}.",
            *(() if trained is None else trained.notes),
            "The earlier rectification was replaced."
            if len(before.modulations) < len(inversion.inversion.modulations)
            else "",
            "Pixels of the photograph that an earlier node kept stay as they are."
            if any(isinstance(m, PixelBlend) for m in before.modulations)
            else "",
            outcome.problems(),
        ]
        edited = to_comfy(pictures[-1])
        return io.NodeOutput(wire, edited, to_comfy(pictures[0]), " ".join(part for part in words if part))


def without_rectification(inversion: Inversion) -> Inversion:
    """The inversion without what this node added to it before."""
    kept = tuple(m for m in inversion.modulations if not isinstance(m, (Rectification, ResidualTransfer)))
    return dataclasses.replace(inversion, modulations=kept)


def trained_for(method: str, wire: InversionWire) -> Trained:
    """The network that a widget names, or with "automatic" the one of the generator.

    Raises:
        GeneratorMismatchError: a network of another generator.
        ModelNotFoundError: no such file, or no network of this generator.
        UnsupportedModelError: the file holds something else.
    """
    generator = wire.generator
    place = known_network(generator) if method == AUTOMATIC else _models.resolve(method, _KIND)
    if place is None:
        raise ModelNotFoundError(
            f"No ReGANIE network for {generator.name} is on this machine (none was ever published). `gan-inversion train "
            f"reganie --generator {generator.name} --encoder ENCODER --out NAME.safetensors` trains one, which is found "
            f"once it lies in the folder models/stylegan. {_INSTEAD}"
        )
    with optimising():
        loaded = load_model(place, architecture="reganie", progress=progress(), check_interrupt=check_interrupt)
    name = loaded.catalogue_id or (method if method != AUTOMATIC else loaded.path.name)
    notes = (_check_generator(loaded, name, generator), _about_encoder(loaded, wire.inversion))
    return Trained(cast(Reganie, loaded.module), name, tuple(note for note in notes if note))


def known_network(generator: GeneratorWire) -> str | Path | None:
    """The first network on this machine that was made for a generator: bundled, downloaded, or a file that says so."""
    side = generator.generator.resolution
    return _models.network_of(_KIND, generator.domain, side, lambda facts: _models.says_made_for(facts, generator))


def _check_generator(loaded: LoadedModel, name: str, generator: GeneratorWire) -> str:
    """What a report says of the generator a network was trained for; empty where that is this one.

    Sizes tell nothing, as they adapt. Raises GeneratorMismatchError where it is known to be another one.
    """
    other = f"ReGANIE network {name} was trained for {{}}. Choose the network of this generator. {_INSTEAD}"
    domain = loaded.module.config.domain or _models.domain_of(loaded)
    if domain is not None and generator.domain is not None:
        if domain != generator.domain:
            raise GeneratorMismatchError(
                other.format(f"{domain} pictures, generator {generator.name} draws {generator.domain}")
            )
        return ""
    named = _models.last_part(loaded.metadata.get("generator"))
    if named is None or named in _models.names_of(generator):
        return ""
    if _models.check(named, "generator") is True:
        raise GeneratorMismatchError(other.format(f"generator {named}, not for {generator.name}"))
    # One that was renamed since, perhaps.
    return f"The network was trained for generator {named}, not for {generator.name}: look at the result."


def _about_encoder(loaded: LoadedModel, inversion: Inversion) -> str:
    named, own = _models.last_part(loaded.metadata.get("encoder")), _models.last_part(inversion.info.get("encoder"))
    if named is None or own is None or named == own:
        return ""
    return f"The network was trained with inversions of {named}, these are of {own}: it may do less."


def _failures(inversion: Inversion) -> dict[int, str]:
    """Images that cannot be rectified, and why. Raises the first one's error where that is all of them."""
    errors: dict[int, NotFiniteError | InvalidInputError] = {}
    for index in range(len(inversion)):
        try:
            check_refinable(inversion[index])
        except (NotFiniteError, InvalidInputError) as error:
            errors[index] = error.with_traceback(None)  # or it would hold this frame, which holds it
    if len(errors) == len(inversion):
        raise errors.pop(0)
    return {index: str(error) for index, error in errors.items()}


def _rectified(
    before: Inversion, trained: Trained | None, mask: Tensor | None, strength: float, failures: Collection[int]
) -> Inversion:
    """The inversion with a rectification behind its weights and features, and before its blends.

    So the network starts from all that was inverted, and pixels that are kept stay exact, edited or not.
    """
    side = before.generator.resolution
    with optimising():  # so that it may take part in a later optimisation
        where = before.image.new_ones(len(before), 1, side, side) if mask is None else mask.to(before.image).clone()
        where[sorted(failures)] = 0.0
        rest = tuple(m for m in before.modulations if not isinstance(m, PixelBlend))
        blends = tuple(m for m in before.modulations if isinstance(m, PixelBlend))
        begun = dataclasses.replace(before, modulations=rest)
        if trained is not None:
            found = rectify(begun, trained.network, strength=strength, mask=where)
        else:
            found = begun.with_modulation(ResidualTransfer(where, float(strength)))
            found = dataclasses.replace(found, info={**found.info, "rectification": "residual transfer"})
        return dataclasses.replace(found, modulations=(*found.modulations, *blends))


def _drawn(
    wire: InversionWire,
    before: Inversion,
    edit: Edit | None,
    failures: Collection[int],
    report: Progress,
    done: int,
) -> Tensor:
    """[B, 3, R, R]; images that failed as they were."""
    drawn = draw(wire.inversion, wire.generator, edit, report, done=done)
    for index in failures:
        own = None if edit is None else edit.of_image(index, len(before))
        drawn[index : index + 1] = draw(before[index], wire.generator, own, progress())
    return drawn


def _done(found: Refinement, trained: Trained | None) -> str:
    """The first sentences of a report."""
    count = len(found.inversion)
    made = f"Rectified {count - len(found.failures)} of {count} image(s)"
    if trained is not None:
        return f"{made} by the ReGANIE network {trained.name}."
    return (
        f"{made} by residual transfer, which is the baseline and not ReGANIE: exact without an edit, ghosts where an edit "
        "moves edges."
    )
