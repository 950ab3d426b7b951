"""Which trained SAMM network, and which encoder with it, an inversion is aligned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..core.encoders import Encoder
from ..core.errors import (
    CorruptFileError,
    GeneratorMismatchError,
    InvalidInputError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from ..core.samm import Samm
from ..model_registry import LoadedModel, catalogue, load_model
from . import _models
from ._comfy import check_interrupt, optimising, progress
from ._types import EncoderWire, GeneratorWire

AUTOMATIC, PER_IMAGE = "automatic", "per image (no network)"
_KIND = "samm"
_UNPUBLISHED = {"ffhq"}  # domains for which papers trained such a network and nobody released it


@dataclass(frozen=True)
class Trained:
    """A SAMM network with the encoder whose features it compares."""

    samm: Samm
    name: str
    encoder: Encoder
    encoder_name: str
    note: str = ""  # for the report


def methods() -> list[str]:
    """What the widget offers: both modes, catalogue ids, files."""
    return [AUTOMATIC, PER_IMAGE, *_models.found(_KIND)]


def trained_for(method: str, generator: GeneratorWire, encoder: EncoderWire | None) -> Trained | None:
    """The network that a widget names, for this generator; None for the mode that needs none.

    Raises:
        GeneratorMismatchError: a network of another generator.
        InvalidInputError: an encoder that is not the network's.
        ModelNotFoundError: the network's file or its encoder is not there.
        UnsupportedModelError: the file holds something else.
    """
    if method == PER_IMAGE:
        return None
    place = known_network(generator) if method == AUTOMATIC else _models.resolve(method, _KIND)
    if place is None:
        return None
    name = _models.listed_name(place, _KIND)
    with optimising():
        loaded = _loaded(place, architecture="samm")
        samm = cast(Samm, loaded.module)
        _check_generator(samm, loaded, name, generator)
        named = _models.last_part(loaded.metadata.get("encoder"))
        if encoder is None:
            network, called = _own_encoder(name, named, generator)
        else:
            network, called = encoder.encoder, encoder.name
    try:
        samm.check_fit(generator.generator, network)
    except InvalidInputError as error:
        raise InvalidInputError(f"Encoder {called} does not belong to the SAMM network {name}. {error}") from error
    other = encoder is not None and named is not None and _models.last_part(called) != named
    note = f"The network was trained with the encoder {named}, not with {called}: masks may be poor." if other else ""
    return Trained(samm, name, network, called, note)


def known_network(generator: GeneratorWire) -> str | Path | None:
    """The first network on this machine that was made for a generator: bundled, downloaded, or a file that says so."""
    network = generator.generator
    return _models.network_of(_KIND, generator.domain, network.resolution, lambda facts: _made_for(facts, generator))


def no_network(generator: GeneratorWire) -> str:
    """What a report says where the automatic choice found no network."""
    why = " (none was ever published)" if generator.domain in _UNPUBLISHED else ""
    return (
        f"No trained SAMM network is known for {generator.name}{why}, so flows and masks were optimised for each image "
        f"alone. `gan-inversion train samm --portraits FOLDER --generator {generator.name} --encoder ENCODER "
        "--out NAME.safetensors` trains one, which takes over once it lies in the folder models/stylegan."
    )


def _made_for(facts: Mapping[str, str], generator: GeneratorWire) -> bool:
    """Whether a file's header names this generator, or its domain and sizes."""
    config = _models.configured(facts)
    try:
        levels = dict(zip(config["resolutions"], config["channels"], strict=True))
    except (ValueError, LookupError, TypeError):
        return False
    sizes = generator.generator.config
    channels = dict(zip(sizes.resolutions, sizes.channels, strict=True))
    if any(channels.get(resolution) != count for resolution, count in levels.items()):
        return False
    return _models.says_made_for(facts, generator)


def _check_generator(samm: Samm, loaded: LoadedModel, name: str, generator: GeneratorWire) -> None:
    instead = f"Choose the network of this generator, or {PER_IMAGE!r}, which needs none."
    # The training's own record comes first: the header's domain may be that of the training pictures.
    domain = samm.config.domain or _models.domain_of(loaded)
    if None not in (domain, generator.domain) and domain != generator.domain:
        raise GeneratorMismatchError(
            f"SAMM network {name} was trained for {domain} pictures, generator {generator.name} draws "
            f"{generator.domain}. {instead}"
        )
    try:
        samm.check_fit(generator.generator)
    except GeneratorMismatchError as error:
        raise GeneratorMismatchError(
            f"SAMM network {name} was trained for another generator than {generator.name}. {error} {instead}"
        ) from error


def _own_encoder(network: str, named: str | None, generator: GeneratorWire) -> tuple[Encoder, str]:
    """The encoder a network was trained with: the one its file names, else the e4e encoder of the same pictures."""
    names = [named] if named is not None else _usual_encoders(generator)
    for name in names:
        try:
            found = _models.resolve(name, "encoder")
        except (InvalidInputError, ModelNotFoundError):
            continue
        loaded = _loaded(found)
        if not isinstance(loaded.module, Encoder):
            raise UnsupportedModelError(f"{loaded.path} holds a {loaded.architecture} network: expected an encoder.")
        return loaded.module, name
    which = f"the encoder {named}" if named else "the encoder it was trained with"
    raise ModelNotFoundError(
        f"SAMM network {network} compares with features of {which}, which is not known here: connect it to the input "
        "'encoder' by Load Encoder."
    )


def _usual_encoders(generator: GeneratorWire) -> list[str]:
    return [
        entry.id
        for entry in catalogue.load_catalogue()
        if entry.kind == "encoder" and entry.architecture == "e4e" and entry.domain == generator.domain is not None
        if entry.resolution in (None, generator.generator.resolution)
    ]


def _loaded(found: str | Path, **options: Any) -> LoadedModel:
    try:
        return load_model(found, progress=progress(), check_interrupt=check_interrupt, **options)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} Choose {PER_IMAGE!r} to go on without it.") from error
