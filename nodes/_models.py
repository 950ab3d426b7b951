"""What the loading nodes offer: catalogue entries by id, and files of the model folders by name."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InvalidInputError, ModelNotFoundError
from ..model_registry import LoadedModel, catalogue
from ..model_registry.catalogue import BundledSource, CatalogueEntry, ManualSource
from ._paths import inside, is_file

if TYPE_CHECKING:
    from ._types import GeneratorWire

WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".ckpt", ".safetensors"})
DIRECTION_SUFFIXES = frozenset({".pt", ".pth", ".npy", ".npz", ".safetensors"})
NO_MODEL = "none found"

_FORMATS = {"rosinality", "nvidia-torch-pickle", "nvidia-tensorflow-pickle", "psp-checkpoint", "safetensors"}
_ARCHITECTURES = {"generator": {"stylegan2"}, "encoder": {"e4e", "psp", "restyle-e4e", "restyle-psp"},
                  "discriminator": {"stylegan2-discriminator"}, "samm": {"samm"},
                  "invertibility": {"sam-invertibility"}, "multilayer-encoder": {"sam-encoder"},
                  "reganie": {"reganie"}}  # fmt: skip
_DETECTED = {"invertibility", "multilayer-encoder", "reganie"}  # kinds of one form only, so that files need no format
_NOT_DIRECTIONS = {"styleclip-global"}
_A = {"generator": "a generator", "encoder": "an encoder", "direction": "a direction",
      "discriminator": "a discriminator", "samm": "a SAMM network", "invertibility": "an invertibility predictor",
      "multilayer-encoder": "a multilayer encoder", "reganie": "a ReGANIE network"}  # fmt: skip
_SHOWN = 3  # names suggested in a message
_DIRECTION_BYTES = 64 * 2**20  # no direction file is larger; weights are


def choices(kind: str) -> list[str]:
    """Names a loader of this kind ("generator", "encoder", "direction") offers: bundled, catalogue, files.

    Reads folder listings only: no file is opened and no network touched.
    """
    entries = [entry for entry in catalogue.load_catalogue() if entry.kind == kind and _usable(entry)]
    bundled = [entry.id for entry in entries if isinstance(entry.source, BundledSource)]
    fetched = [e.id for e in entries if not isinstance(e.source, (BundledSource, ManualSource)) or _is_there(e)]
    return [*bundled, *(i for i in fetched if i not in bundled), *_files(kind)] or [NO_MODEL]


def found(kind: str) -> list[str]:
    """As `choices`, but empty where there is nothing: for widgets that offer more than files."""
    return [name for name in choices(kind) if name != NO_MODEL]


def resolve(name: str, kind: str) -> str | Path:
    """A catalogue id as it is, a file's name as its path.

    Raises ModelNotFoundError naming both places; InvalidInputError for a name that leads out of the model folders, and
    for a catalogue id of another kind or of a network this package cannot draw with.
    """
    for folder in catalogue.model_dirs(kind):
        path = inside(folder, name, "model folder", follow_links=False)
        if is_file(path):
            return path
    entry = next((entry for entry in catalogue.load_catalogue() if entry.id == name), None)
    if entry is not None and entry.kind == kind and _usable(entry):
        return name
    if entry is not None:
        found = f"a {entry.kind}" if entry.kind[0] not in "aeiou" else f"an {entry.kind}"
        if entry.kind == kind:
            found += f" of a form that cannot be used here ({entry.architecture}, {entry.format})"
        offered = ", ".join(choices(kind)[:_SHOWN])
        raise InvalidInputError(f"{name!r} is {found}; choose {_A[kind]} from the list, such as {offered}.")
    folders = ", ".join(map(str, catalogue.model_dirs(kind)))
    if name == NO_MODEL:
        raise ModelNotFoundError(f"There is no {kind} to load. Put a file into one of {folders}.")
    raise ModelNotFoundError(f"{name!r} is no catalogue id and no file in {folders}. Choose one from the list.")


def check(name: str, kind: str) -> bool | str:
    """True, or why this name cannot be loaded: for `validate_inputs`."""
    try:
        resolve(name, kind)
    except (InvalidInputError, ModelNotFoundError) as error:
        return str(error)
    return True


def file_fingerprint(path: Path) -> str:
    """Changes when the file does."""
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def fingerprint(name: str, kind: str) -> str:
    """Changes when the file behind a name does: for `fingerprint_inputs`."""
    try:
        found = resolve(name, kind)
    except (InvalidInputError, ModelNotFoundError):
        return name
    return file_fingerprint(found) if isinstance(found, Path) else name


def domain_of(loaded: LoadedModel) -> str | None:
    """What a network draws or encodes ("ffhq", "car"), where its file or the catalogue says so."""
    if loaded.domain is not None:
        return loaded.domain
    size = loaded.path.stat().st_size
    # A file chosen by its name may still be a published one; the size tells it from others called the same.
    known = (e for e in catalogue.load_catalogue() if e.file_name == loaded.path.name and e.size == size)
    return next((entry.domain for entry in known), None)


def header(path: Path) -> Mapping[str, str]:
    """What the header of a safetensors file says; empty for files of other kinds and damaged ones."""
    try:
        found = path.stat()
        return _header(path, found.st_size, found.st_mtime_ns)
    except OSError:
        return {}


def configured(facts: Mapping[str, str]) -> Mapping[str, Any]:
    """The network's configuration in a header of this package; empty where there is none."""
    try:
        found = json.loads(facts.get("config", ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=256)
def _header(path: Path, size: int, changed: int) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def made_for(kind: str, domain: str | None, name: str, resolution: int, spaces: Collection[str]) -> str | Path | None:
    """The network of a kind that belongs to a generator, as `resolve` gives it; None where none is on this machine.

    A catalogue entry of its domain and resolution, or else a file whose header says that it was trained for a generator
    of that name or domain. Latent spaces in the header must be some of `spaces`.
    """

    def has_spaces(facts: Mapping[str, str]) -> bool:
        return set(configured(facts).get("spaces", ())) <= set(spaces)

    def says_so(facts: Mapping[str, str]) -> bool:
        named = Path(facts.get("generator", "")).name == name or facts.get("domain") == domain is not None
        return named and has_spaces(facts)

    return network_of(kind, domain, resolution, says_so, has_spaces)


def network_of(
    kind: str,
    domain: str | None,
    resolution: int,
    says_so: Callable[[Mapping[str, str]], bool],
    allowed: Callable[[Mapping[str, str]], bool] = lambda facts: True,
) -> str | Path | None:
    """The first network of a kind on this machine that was made for a generator, as `resolve` gives it; None for none.

    Args:
        kind: of the catalogue.
        domain, resolution: the generator's; a catalogue entry must have both, or leave the resolution open.
        says_so: whether the header of a user's file names that generator.
        allowed: whether the header of a catalogue entry's file speaks against it.
    """
    for entry, path in _known(kind):
        if entry.domain == domain is not None and entry.resolution in (None, resolution) and allowed(header(path)):
            return entry.id
    return next((path for path in _own(kind) if says_so(header(path))), None)


def listed_name(place: str | Path, kind: str) -> str:
    """What `choices` calls something that `resolve` gave."""
    if isinstance(place, str):
        return place
    folders = [folder for folder in catalogue.model_dirs(kind) if place.is_relative_to(folder)]
    return place.relative_to(folders[0]).as_posix() if folders else place.name


def last_part(name: str | None) -> str | None:
    """A file's name without its folders, in whatever system's writing; an id as it is."""
    return re.split(r"[\\/]", name)[-1] if name else None


def names_of(generator: GeneratorWire) -> set[str]:
    """What a file may call a generator: its name, or what it was loaded from, without folders."""
    names = (generator.name, None if generator.source is None else str(generator.source))
    return {part for name in names if (part := last_part(name)) is not None}


def says_made_for(facts: Mapping[str, str], generator: GeneratorWire) -> bool:
    """Whether a file's header names this generator, or its domain.

    The domain of the training's own record; the header's may be that of the training pictures.
    """
    named = last_part(facts.get("generator")) in names_of(generator)
    return named or configured(facts).get("domain") == generator.domain is not None


def all_fingerprints(kind: str) -> str:
    """Changes when what `network_of` may find does."""
    return "; ".join(file_fingerprint(path) for path in [*(path for _, path in _known(kind)), *_own(kind)])


def _known(kind: str) -> Iterator[tuple[CatalogueEntry, Path]]:
    """Catalogue entries of a kind whose file is here and undamaged."""
    for entry in catalogue.load_catalogue():
        if entry.kind == kind and _usable(entry):
            path, problem = catalogue.locate(entry, verify=False)
            if path is not None and problem is None:
                yield entry, path


def _own(kind: str) -> Iterator[Path]:
    """Files of the model folders whose header says that they hold such a network."""
    for folder in catalogue.model_dirs(kind):
        for name in files_below(folder, {".safetensors"}):
            if header(folder / name).get("architecture") in _ARCHITECTURES[kind]:
                yield folder / name


def _usable(entry: CatalogueEntry) -> bool:
    if entry.kind == "direction":
        return entry.architecture not in _NOT_DIRECTIONS
    known = isinstance(entry.source, BundledSource) or entry.format in _FORMATS or entry.kind in _DETECTED
    return known and entry.architecture in _ARCHITECTURES[entry.kind]


def _is_there(entry: CatalogueEntry) -> bool:
    return any((folder / entry.file_name).is_file() for folder in catalogue.model_dirs(entry.kind))


def _files(kind: str) -> list[str]:
    directions = kind == "direction"
    suffixes = DIRECTION_SUFFIXES if directions else WEIGHT_SUFFIXES
    largest = _DIRECTION_BYTES if directions else None
    found = [name for folder in catalogue.model_dirs(kind) for name in files_below(folder, suffixes, largest)]
    return list(dict.fromkeys(found))


def files_below(folder: Path, suffixes: Collection[str], largest: int | None = None) -> Iterator[str]:
    """Names, relative to the folder and with "/" in them, of its files; hidden ones are left out."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            # By name first: the output folder may hold many thousand pictures.
            if file.startswith(".") or os.path.splitext(file)[1].lower() not in suffixes:
                continue
            path = Path(place, file)
            if not path.is_file():
                continue
            if largest is None or path.stat().st_size <= largest:
                yield path.relative_to(folder).as_posix()
