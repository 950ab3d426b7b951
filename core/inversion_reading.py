"""Reads the file that `Inversion.save` writes, and says what is wrong with one that is damaged."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor

from . import reganie  # noqa: F401 (a modulation that `inversion` does not define: known once it is imported)
from .alignment import CropTransform
from .errors import CorruptFileError, GeneratorMismatchError, ModelNotFoundError
from .fingerprint import fingerprint
from .generator import Generator
from .inversion import FORMAT, FORMAT_VERSION, Inversion, Modulation

_HEADER = ("format_version", "generator", "resolution", "modulations", "crops", "info")
_DAMAGE = (  # what Python and torch raise over values of the wrong kind; this package's own errors are ValueErrors
    *(ValueError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError),
)


def read_inversion(path: str | Path, generator: Generator) -> Inversion:
    """The inversion in a file, on the generator's device.

    Raises:
        ModelNotFoundError: no such file.
        CorruptFileError: not a saved inversion, a damaged one, or one of a newer version.
        GeneratorMismatchError: it was made with another generator.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotFoundError(f"{path} {kind}: expected a saved inversion. Check the path.")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, *_DAMAGE) as error:
        raise CorruptFileError(f"{path}: not a readable inversion file ({error}). Save the inversion again.") from error
    if metadata.get("format") != FORMAT:
        raise CorruptFileError(
            f"{path}: a safetensors file, but not a saved inversion (format {metadata.get('format')!r}, expected {FORMAT!r})."
        )
    try:
        inversion = _inversion(metadata, tensors, generator)
    except (CorruptFileError, GeneratorMismatchError) as error:
        raise type(error)(f"{path}: {error}") from error
    except _DAMAGE as error:
        problem = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
        raise CorruptFileError(f"{path}: a damaged inversion ({problem}). Save the inversion again.") from error
    return inversion.to(generator.w_avg.device)


def _inversion(metadata: Mapping[str, str], tensors: dict[str, Tensor], generator: Generator) -> Inversion:
    if absent := [name for name in _HEADER if name not in metadata]:
        raise ValueError(f"its header lacks {', '.join(absent)}")
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise CorruptFileError("written by a newer version of this package. Update gan-inversion to read it.")
    made_with, have = metadata["generator"], fingerprint(generator)
    if made_with != have:
        raise GeneratorMismatchError(
            f"made with generator {made_with} ({metadata['resolution']} px), but the given one is {have} "
            f"({generator.resolution} px). Load the generator the inversion was made with."
        )
    described, crops = _json(metadata, "modulations", list), _json(metadata, "crops", list)
    unused = dict(tensors)
    image, w_plus = _take(unused, "image"), _take(unused, "w_plus")
    modulations = tuple(_modulation(item, index, unused) for index, item in enumerate(described))
    if unused:
        raise ValueError(f"the tensor {min(unused)!r} belongs to nothing in it")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}, expected floating point")
        if tensor.ndim == 0 or len(tensor) not in (1, len(image)):
            raise ValueError(f"{name} has shape {list(tensor.shape)} for {len(image)} image(s)")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} contains NaN or infinity")
    places = tuple(None if crop is None else CropTransform.from_dict(crop) for crop in crops)
    return Inversion(image, w_plus, generator, modulations, places, _json(metadata, "info", dict))


def _json(metadata: Mapping[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(metadata[name])
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _take(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing")
    return tensors.pop(name)


def _modulation(item: Any, index: int, tensors: dict[str, Tensor]) -> Modulation:
    """Number `index` of the list; takes its tensors out of `tensors`."""
    place = f"modulations.{index}"
    if not isinstance(item, dict) or not isinstance(item.get("settings"), dict):
        raise TypeError(f"{place} is not an object with kind and settings")
    cls = Modulation.registry.get(str(item.get("kind")))
    if cls is None:
        raise CorruptFileError(
            f"it holds a modulation {item.get('kind')!r} unknown to this version. Update gan-inversion."
        )
    plain, hints = dict(item["settings"]), get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, hint = f"{place}.{field.name}", hints[field.name]
        if hint is Tensor:
            values[field.name] = _take(tensors, name)
            continue
        if field.name not in plain:
            if field.default is not dataclasses.MISSING:
                continue  # written before there was such a field
            raise ValueError(f"{name} is missing")
        value = plain.pop(field.name)
        if get_origin(hint) is dict:
            values[field.name] = {str(key): _take(tensors, f"{name}.{key}") for key in _names(value, name)}
        else:
            values[field.name] = _checked(value, hint, name)
    if plain:
        raise ValueError(f"{place} has an unknown field {min(plain)!r}")
    return cls(**values)


def _names(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} is not a list of names")
    return value


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value`, if it is what a field of type `hint` takes; types other than plain ones are not looked at."""
    if hint not in (int, float, bool, str):
        return value
    fits = isinstance(value, (int, float) if hint is float else hint)
    if hint in (int, float):
        fits = fits and not isinstance(value, bool) and math.isfinite(value)
    if not fits:
        raise TypeError(f"{name} is {value!r}, expected {hint.__name__}")
    return value
