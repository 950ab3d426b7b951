"""Reads a weight file into tensors and plain data. The content decides what a file is, never its extension.

Nothing in a file is executed: safetensors hold no code, torch files are read with `weights_only=True`, and NVIDIA's
pickles by the recording unpickler of `unpickler.py`.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import (
    CorruptFileError,
    GANInversionError,
    ModelNotFoundError,
    UnsafeFileError,
    UnsupportedModelError,
)
from .unpickler import NUMPY_GLOBALS, Recorded, recorder, unpickle

logger = logging.getLogger(__name__)

_HEAD_BYTES = 4096
_LFS_HEAD = b"version https://git-lfs"
_LEGACY_TORCH_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_PICKLE_HEAD = re.compile(rb"\x80[\x02-\x05]|[c(\]}l][\s\S]")
_MAX_SAFETENSORS_HEADER = 100 * 2**20
_TEXT_LIMIT = 80
_MAX_PARTS = 2_000_000  # values in the containers of one file, shared ones counted each time; models have thousands
_MAX_MODULES = 100_000  # in one network
_TENSORFLOW_NETWORK = "dnnlib.tflib.network.Network"
_TORCH_OPTION_TYPES = (
    "argparse.Namespace",
    "easydict.EasyDict",
    "dnnlib.util.EasyDict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    *sorted(NUMPY_GLOBALS),
)
_READ_ERRORS = (  # what readers raise on damaged input; the list is theirs, not ours
    *(EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError),
    *(MemoryError, OverflowError, ImportError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)
_Part = TypeVar("_Part")
_EXPECTED = "Expected a safetensors file, a PyTorch .pt / .pth file, or an NVIDIA StyleGAN2 .pkl file."


@dataclass(frozen=True)
class RawFile:
    """What a weight file holds, before anybody knows which network it is."""

    path: Path
    container: str  # "safetensors", "torch", "torch-legacy" or "pickle"
    content: Any  # nested dicts, lists, tensors, numbers, strings, and `PickledNetwork`
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors header


class PickledNetwork:
    """One network of an NVIDIA pickle, by name: tensors and plain attributes. Its source text is never looked at."""

    path = Path()  # for messages: tensors are read when they are first used

    def __init__(self, record: Recorded) -> None:
        self.is_tensorflow = record.name == _TENSORFLOW_NETWORK
        self._record = record
        self._meta = _mapping(record.state if self.is_tensorflow else record.args[0] if record.args else None)

    @property
    def class_name(self) -> str:
        """Such as "Generator"; the build function's name for a TensorFlow network."""
        name = self._meta.get("build_func_name" if self.is_tensorflow else "class_name", "")
        return name if isinstance(name, str) else ""

    @property
    def version(self) -> int:
        """Of the container: at least 4 for a StyleGAN2 in TensorFlow."""
        version = self._meta.get("version", 0)
        return version if isinstance(version, int) else 0

    @cached_property
    def init_kwargs(self) -> dict[str, Any]:
        """Keyword arguments the network was built with (`static_kwargs` of a TensorFlow network)."""
        state, name = (self._meta, "static_kwargs") if self.is_tensorflow else (self._meta.get("state"), "_init_kwargs")
        with _one_clear_error(self.path):
            return dict(_mapping(_resolve(_mapping(state).get(name))))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Dotted (torch) or slashed (TensorFlow) variable name -> tensor, as stored. Read on first use."""
        with _one_clear_error(self.path):
            if self.is_tensorflow:
                return {
                    prefix + name: torch.as_tensor(_resolve(value))
                    for prefix, state in _counted(_tensorflow_components(self._record, ""))
                    for name, value in state.get("variables", ())
                }
            return {
                prefix + name: tensor
                for prefix, state in _counted(_torch_modules(self._record, ""))
                for group in ("_parameters", "_buffers")
                for name, stored in _mapping(state.get(group)).items()
                if isinstance(tensor := _resolve(stored), Tensor)
            }

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Dotted name -> number, string or list, for every public attribute of a torch network and its parts."""
        with _one_clear_error(self.path):
            return {
                prefix + name: _resolve(value)
                for prefix, state in _counted(_torch_modules(self._record, ""))
                for name, value in state.items()
                if not name.startswith("_")
            }


def read_weights(path: str | Path) -> RawFile:
    """Reads any supported weight file without executing anything in it.

    Tensors stay on the CPU in their stored type; where the format permits they are memory-mapped. For NVIDIA pickles
    `content` holds a `PickledNetwork` under "G", "D" and "G_ema".

    Raises:
        ModelNotFoundError: no such file.
        CorruptFileError: empty, truncated, a web page, an LFS pointer, or no weight format at all.
        UnsafeFileError: the file wants to run code.
        UnsupportedModelError: a known format that holds no weights this package can use.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotFoundError(f"{path} {kind}: expected a weight file. Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, size - 1))
        last = file.read(1)
    _refuse_non_weights(path, head, size)
    with _one_clear_error(path):
        if head.startswith(b"PK\x03\x04"):
            _check_torch_zip(path, size)
            return RawFile(path, "torch", _resolve(_torch_load(path, mmap=True)))
        if head.startswith(_LEGACY_TORCH_HEAD):
            return RawFile(path, "torch-legacy", _resolve(_torch_load(path, mmap=False)))
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
            return _read_safetensors(path, int.from_bytes(head[:8], "little"), size)
        if _PICKLE_HEAD.match(head) and (last == b"." or head[0] == 0x80):
            with path.open("rb") as file:
                return RawFile(path, "pickle", _name_networks(_resolve(unpickle(file)), path))
    raise CorruptFileError(f"{path} begins with {head[:16]!r}, which is no weight format known here. {_EXPECTED}")


@contextmanager
def _one_clear_error(path: Path) -> Iterator[None]:
    """What readers raise on hostile or damaged input -> UnsafeFileError or CorruptFileError with the whole story."""
    try:
        yield
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{path} wants to load and run {error} while it is read. Nothing was executed and the file was not loaded. "
            "Expected tensors and plain values only; use a file from its original publisher, or a safetensors file."
        ) from error
    except CorruptFileError as error:
        if str(path) in str(error):
            raise
        raise CorruptFileError(f"{path} was not read. {error}") from error
    except GANInversionError:
        raise
    except _READ_ERRORS as error:
        raise CorruptFileError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read to its end: {_first_line(error)}. It is probably "
            "truncated or damaged; download it again and compare its size with the publisher's."
        ) from error


def _refuse_non_weights(path: Path, head: bytes, size: int) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        raise CorruptFileError(f"{path} is empty ({size} bytes): the download did not happen. Download it again.")
    if head.startswith(_LFS_HEAD):
        oid = re.search(rb"oid sha256:([0-9a-f]+)", head)
        wanted = re.search(rb"size (\d+)", head)
        facts = f"sha256 {oid[1].decode() if oid else 'unknown'}, {int(wanted[1]) if wanted else 0:,} bytes"
        raise CorruptFileError(
            f"{path} is a Git LFS pointer of {size} bytes, not the weights ({facts}). "
            "Run `git lfs pull`, or download the real file from the model's page."
        )
    if text[:1] == b"<":
        title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
        about = f" titled {title[1].decode('utf-8', 'replace').strip()[:_TEXT_LIMIT]!r}" if title else ""
        raise CorruptFileError(
            f"{path} is a web page{about}, not a weight file: the download returned an error, login or warning page. "
            "Open the model's page in a browser and download the file itself."
        )


def _read_safetensors(path: Path, length: int, size: int) -> RawFile:
    from safetensors.torch import load_file

    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    if len(raw) < length:
        raise _short(path, size, 8 + length, "at least ")
    header = json.loads(raw)
    metadata = header.pop("__metadata__", {})
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < end:
        raise _short(path, size, end)
    try:
        return RawFile(path, "safetensors", load_file(path), metadata)
    except Exception as error:  # the reader's own class differs between safetensors versions
        message = f"{path} has a damaged safetensors header: {_first_line(error)}. Download it again."
        raise CorruptFileError(message) from error


def _short(path: Path, size: int, expected: int, hedge: str = "") -> CorruptFileError:
    return CorruptFileError(
        f"{path} is truncated: {size:,} bytes, but its header announces {hedge}{expected:,}. Download it again."
    )


def _check_torch_zip(path: Path, size: int) -> None:
    if not zipfile.is_zipfile(path):
        raise CorruptFileError(
            f"{path} is truncated: a PyTorch (zip) file of {size:,} bytes without its closing directory. "
            "Download it again."
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("data.pkl") for name in names):
        raise UnsupportedModelError(
            f"{path} is a zip archive with {', '.join(names[:3])}, not a PyTorch weight file. {_EXPECTED} "
            "If the weights are inside the archive, unpack it first."
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise UnsupportedModelError(
            f"{path} is a TorchScript program, which holds code besides weights. {_EXPECTED} "
            "Save the network's state_dict() instead."
        )


def _torch_load(source: Path | io.BytesIO, mmap: bool = False) -> Any:
    options: list[Any] = [(recorder(name), name) for name in _TORCH_OPTION_TYPES]
    try:
        with torch.serialization.safe_globals(options):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise UnsafeFileError(named[1]) from error
        refused = re.search(r"(Trying to|Can only|Only persistent_load)[^\n]*", str(error))
        if refused:
            raise UnsafeFileError(f"something that is not plain data ({refused[0][:200]})") from error
        raise


def _name_networks(content: Any, path: Path) -> Any:
    """The TensorFlow container is the tuple (G, D, Gs): Gs is what torch files call G_ema."""
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, tuple) else ():
        if isinstance(part, PickledNetwork):
            part.path = path
    if isinstance(content, tuple) and len(content) == 3 and all(isinstance(part, PickledNetwork) for part in content):
        return dict(zip(("G", "D", "G_ema"), content, strict=True))
    return content


def _torch_modules(record: Any, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted prefix, attribute dictionary) of a pickled module and everything under it."""
    meta = _mapping(record.args[0]) if isinstance(record, Recorded) and record.args else {}
    state = _mapping(meta.get("state"))
    yield prefix, state
    for name, child in _mapping(state.get("_modules")).items():
        yield from _torch_modules(child, f"{prefix}{name}.")


def _tensorflow_components(record: Any, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(slashed prefix, state) of a pickled network and everything under it."""
    state = _mapping(record.state) if isinstance(record, Recorded) else {}
    yield prefix, state
    for name, component in _mapping(state.get("components")).items():
        yield from _tensorflow_components(component, f"{prefix}{name}/")


def _counted(parts: Iterable[_Part]) -> Iterator[_Part]:
    """The parts of one network, as long as their number is believable: one module can be its own children's child."""
    for number, part in enumerate(parts):
        if number == _MAX_MODULES:
            raise CorruptFileError(f"It holds a network of more than {_MAX_MODULES:,} parts: damaged or hostile.")
        yield part


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Recorded):
        return value.items
    return value if isinstance(value, Mapping) else {}


def _resolve(value: Any) -> Any:
    """Replaces every `Recorded` by what it stands for: tensors, numbers, dictionaries, `PickledNetwork`.

    Raises:
        CorruptFileError: written out in full, the value has more parts than any model. A file of a few hundred bytes
            can name one list so often inside others that walking or printing it would never end.
    """
    return _Resolver().resolve(value)[0]


class _Resolver:
    """One walk over a value: each shared part is resolved once and counted as often as it occurs."""

    def __init__(self) -> None:
        # By identity; the part itself is kept too, so that no other object gets its number meanwhile.
        self._done: dict[int, tuple[Any, Any, int]] = {}

    def resolve(self, value: Any) -> tuple[Any, int]:
        """(what it stands for, number of parts)."""
        if not isinstance(value, (Recorded, Mapping, list, tuple)):
            return value, 1
        known = self._done.get(id(value))
        if known is None:
            resolved, parts = self._resolve(value)
            if parts > _MAX_PARTS:
                raise CorruptFileError(
                    f"It repeats nested lists or dictionaries more than {_MAX_PARTS:,} times: expected tensors and a "
                    "few options. The file is damaged or hostile; use one from its original publisher."
                )
            known = self._done[id(value)] = value, resolved, parts
        return known[1:]

    def _resolve(self, value: Any) -> tuple[Any, int]:
        if isinstance(value, Recorded):
            return self._record(value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if type(value) not in (list, tuple):
            return value, 1 + len(value)
        items = [self.resolve(item) for item in value]
        return type(value)(item for item, _ in items), 1 + sum(parts for _, parts in items)

    def _mapping(self, mapping: Mapping[Any, Any]) -> tuple[dict[Any, Any], int]:
        resolved, total = {}, 1
        for key, item in mapping.items():
            key, key_parts = self.resolve(key)
            resolved[key], item_parts = self.resolve(item)
            total += key_parts + item_parts
        return resolved, total

    def _record(self, record: Recorded) -> tuple[Any, int]:
        name, args = record.name, record.args
        short = name.rpartition(".")[2]
        if short in ("Network", "_reconstruct_persistent_obj"):
            return PickledNetwork(record), 1
        if short == "_rebuild_parameter":
            return self.resolve(args[0])
        if short == "_rebuild_tensor_v2":
            storage = self.resolve(args[0])[0]
            return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, args[1], args[2], args[3]), 1
        if short == "_load_from_bytes":
            return _torch_load(io.BytesIO(self.resolve(args[0])[0])), 1
        if short == "encode":
            return args[0].encode("latin1"), 1
        if short == "_reconstruct":
            _, shape, dtype, fortran, data = record.state
            return _array(data, dtype, shape, "F" if fortran else "C"), 1
        if short == "_frombuffer":
            return _array(*args), 1
        if short == "scalar":
            return np.frombuffer(self.resolve(args[1])[0], _dtype(args[0]))[0].item(), 1
        if short == "dtype":
            return str(_dtype(record)), 1
        if short in ("PosixPath", "WindowsPath"):
            return "/".join(part for part in args if isinstance(part, str)), 1
        items, parts = self._mapping(record.items)
        state, more = self._mapping(_mapping(record.state))
        return {**items, **state}, parts + more


def _array(data: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Tensor:
    flat = np.frombuffer(_resolve(data), _dtype(dtype))
    native = flat.reshape(shape, order=order).astype(flat.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native)


def _dtype(record: Any) -> np.dtype:
    """Numbers and booleans only: object arrays would carry arbitrary pickled values."""
    code = _resolve(record.args[0]) if isinstance(record, Recorded) and record.args else "?"
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biuf]\d+", code):
        raise UnsafeFileError(f"a numpy array of type {code!r} (only numbers are read)")
    order: Any = record.state[1] if isinstance(record.state, tuple) else "="
    return np.dtype(code) if order in ("|", "=") else np.dtype(code).newbyteorder(order)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
