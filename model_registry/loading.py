"""Files in, ready networks out; and back to safetensors."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import directions
from ..core.discriminator import Discriminator
from ..core.editing import Direction
from ..core.errors import InvalidInputError, ModelNotFoundError, UnsupportedModelError
from ..core.files import check_destination, replacing
from ..core.fingerprint import fingerprint
from ..core.generator import Generator
from . import catalogue, hub
from .architectures import detect
from .layouts import FORMAT, canonicalise
from .reading import read_weights

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_HALF_LIMIT = 60_000.0  # float16 ends at 65,504


@dataclass(frozen=True)
class LoadedModel:
    """A network and what is known about it."""

    architecture: str
    module: nn.Module  # eval mode, float32, no gradients
    path: Path
    identity: str  # see `core.fingerprint`; saved inversions name their generator by it
    catalogue_id: str | None = None
    domain: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file


def load_model(
    path_or_id: str | Path,
    *,
    part: str | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    check_interrupt: Callable[[], None] | None = None,
    architecture: str | None = None,
) -> LoadedModel:
    """Loads any supported weight file; its architecture is detected from keys and shapes, and no code in it runs.

    Args:
        path_or_id: a file, or the id of a catalogue entry, which is downloaded at first use.
        part: "decoder" for the generator inside an encoder checkpoint, "discriminator" for the discriminator beside a
            generator (architecture "stylegan2-discriminator").
        device: where the network goes; the CPU by default.
        progress: called with (bytes done, bytes in all or None) during a download.
        check_interrupt: called between steps; may raise to stop.
        architecture: refuse the file unless this is what it holds, e.g. "stylegan2". Also decides between e4e and pSp
            for encoder files that do not say which they are.

    Returns:
        The network in eval mode, float32, with gradients switched off.

    Raises:
        ModelNotFoundError, CorruptFileError, UnsafeFileError, UnsupportedModelError, DownloadError.
    """
    path, entry = _locate(path_or_id, progress, check_interrupt)
    if check_interrupt is not None:
        check_interrupt()
    # Tensors made in inference mode could never be optimised later; ComfyUI runs nodes in it.
    with torch.inference_mode(False):
        raw = read_weights(path)
        try:
            state = canonicalise(raw, part)
            if architecture is not None:
                state = dataclasses.replace(state, options={"architecture": architecture, **state.options})
            kind = detect(state)
            if architecture is not None and kind.name != architecture:
                raise UnsupportedModelError(f"It holds a {kind.name} network: expected {architecture}.")
            module = kind.build(state)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path} cannot be used. {error}") from error
        except (RuntimeError, LookupError, ValueError, TypeError) as error:  # names fit, shapes or values do not
            raise UnsupportedModelError(
                f"{path} cannot be used: its tensors are not what their names promise "
                f"({type(error).__name__}: {error}). The file is damaged or of another kind."
            ) from error
        module = module.eval().requires_grad_(False)
        if device is not None:
            module = module.to(device)
        identity = fingerprint(module)
    logger.info("Loaded %s from %s (%s, identity %s)", kind.name, path, state.layout, identity)
    known = entry.domain if entry else None
    domain = known or raw.metadata.get("domain") or getattr(getattr(module, "config", None), "domain", None) or None
    return LoadedModel(kind.name, module, path, identity, entry.id if entry else None, domain, dict(raw.metadata))


def load_direction(
    path_or_id: str | Path,
    *,
    progress: Callable[[int, int | None], None] | None = None,
    check_interrupt: Callable[[], None] | None = None,
    **options: Any,
) -> Direction:
    """Loads one direction from a file of any supported format, or from the catalogue.

    Args:
        path_or_id: a file, or the id of a catalogue entry of kind "direction", which is downloaded at first use.
        progress: called with (bytes done, bytes in all or None) during a download.
        check_interrupt: called during a download; may raise to stop.
        options: name, component, layers, unit, limits and absolute of `core.directions.load_direction`.

    Raises:
        InvalidInputError: the id of another kind of model, or a readable file that holds no such direction.
        ModelNotFoundError, CorruptFileError, UnsafeFileError, DownloadError.
    """
    path, _ = _locate(path_or_id, progress, check_interrupt, kind="direction")
    return directions.load_direction(path, **options)


def save_model(
    module: nn.Module,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    architecture: str | None = None,
) -> Path:
    """Writes a network as safetensors that `load_model` reads back; the file appears under its name only when complete.

    Args:
        module: a generator, discriminator or encoder of this package.
        path: ends in ".safetensors"; missing folders are made.
        metadata: further facts for the header; values become strings.
        dtype: float32, float16 or bfloat16. In the short types, vectors (biases, averages, normalisation statistics)
            and tensors beyond float16's range stay float32.
        architecture: name, where the class does not tell.

    Raises:
        InvalidInputError: another type or ending, a path that cannot be a file, or a module of unknown architecture.
    """
    path = Path(path)
    check_destination(path)
    if dtype not in _FLOAT_TYPES:
        raise InvalidInputError(f"dtype {dtype}: expected one of {', '.join(map(str, _FLOAT_TYPES))}.")
    if path.suffix != ".safetensors":
        raise InvalidInputError(f"{path}: expected a name ending in .safetensors.")
    header = {
        **{key: str(value) for key, value in (metadata or {}).items()},
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": architecture or architecture_of(module),
        "config": json.dumps(_config_of(module)),
        "dtype": str(dtype).removeprefix("torch."),
    }
    tensors = {name: _stored(tensor.detach(), dtype) for name, tensor in module.state_dict().items()}
    _write_atomically(tensors, header, path)
    return path


def convert(
    src: str | Path,
    dst: str | Path,
    dtype: torch.dtype | None = None,
    *,
    part: str | None = None,
    check_interrupt: Callable[[], None] | None = None,
) -> Path:
    """Any supported file -> safetensors under canonical names that loads to the same tensors.

    Args:
        src: a weight file or a catalogue id.
        dst: ends in ".safetensors"; a missing ending is added.
        dtype: float32 (exact) by default; float16 halves the file.
        part: "decoder" or "discriminator", see `load_model`.
        check_interrupt: called between steps; may raise to stop.

    Raises:
        As `load_model`; InvalidInputError where `dst` is `src`, a folder or below a file.
    """
    destination = check_destination(dst)
    if destination.suffix != ".safetensors":
        destination = check_destination(destination.with_name(destination.name + ".safetensors"))
    loaded = load_model(src, part=part, check_interrupt=check_interrupt)
    if destination.exists() and destination.samefile(loaded.path):
        raise InvalidInputError(f"{destination} is the source itself: give the converted file another name.")
    digest = catalogue.sha256_of(loaded.path, check_interrupt)
    metadata = {**loaded.metadata, "source": loaded.path.name, "source_sha256": digest}
    if loaded.catalogue_id:
        metadata["catalogue_id"] = loaded.catalogue_id
    if loaded.domain:
        metadata["domain"] = loaded.domain
    return save_model(loaded.module, destination, metadata, dtype or torch.float32, architecture=loaded.architecture)


def architecture_of(module: nn.Module) -> str:
    """Architecture name of a network of this package."""
    if isinstance(module, Generator):
        return "stylegan2"
    if isinstance(module, Discriminator):
        return "stylegan2-discriminator"
    name = getattr(getattr(module, "config", None), "architecture", None)
    if isinstance(name, str):
        return name
    raise InvalidInputError(f"{type(module).__name__} is no network of this package: pass architecture=.")


def _config_of(module: nn.Module) -> dict:
    config = getattr(module, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensor.cpu().contiguous()
    if dtype == torch.float32 or not tensor.is_floating_point():
        return tensor
    beyond = dtype == torch.float16 and bool((tensor.abs() > _HALF_LIMIT).any())
    return tensor.float() if tensor.ndim < 2 or beyond else tensor.to(dtype)


def _write_atomically(tensors: dict[str, torch.Tensor], header: dict[str, str], path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _locate(
    path_or_id: str | Path,
    progress: Callable[[int, int | None], None] | None,
    check_interrupt: Callable[[], None] | None,
    kind: str | None = None,
) -> tuple[Path, catalogue.CatalogueEntry | None]:
    """(file, catalogue entry); fetches it. A file of that name comes before an entry, which must be of `kind`."""
    if not isinstance(path_or_id, (str, os.PathLike)):
        raise InvalidInputError(
            f"Got {path_or_id!r} of type {type(path_or_id).__name__}: expected the path of a file or a catalogue id."
        )
    path = Path(path_or_id)
    if not isinstance(path_or_id, str) or path.is_file() or len(path.parts) != 1:
        return path, None
    try:
        entry = catalogue.find(path_or_id)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{path_or_id}: no such file, and no catalogue entry of that id. {error}") from error
    if kind is not None and entry.kind != kind:
        raise InvalidInputError(
            f"{entry.id} is a model of kind {entry.kind!r} ({entry.title}), expected kind {kind!r}. "
            "`gan-inversion models` lists every id; load networks with load_model."
        )
    return hub.fetch(entry, progress=progress, check_interrupt=check_interrupt), entry
