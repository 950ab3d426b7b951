"""Reads the containers directions come in, without executing anything: torch, npy, npz and safetensors.

The first bytes decide what a file is. Torch files are read with `weights_only=True` onto the CPU (some published ones
were saved from a GPU), numpy files with `allow_pickle=False`.
"""

from __future__ import annotations

import pickle
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CorruptFileError, GANInversionError, InvalidInputError, ModelNotFoundError, UnsafeFileError

_MAX_BYTES = 256 * 2**20  # the largest published direction file has a few megabytes
_HEAD_BYTES = 1024
_TEXT_SHOWN = 60
_NUMERIC = "fiub"  # numpy's kinds of real numbers and booleans
_FORMATS = "Expected a torch .pt, a numpy .npy or .npz, or a .safetensors file."
_DAMAGE = (  # what the readers raise on damaged input
    *(EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError),
    *(MemoryError, OverflowError, ImportError, struct.error, zlib.error, zipfile.BadZipFile),
    *(pickle.UnpicklingError, SyntaxError, tokenize.TokenError),  # numpy parses its header as a Python literal
)


@dataclass(frozen=True)
class StoredFile:
    """What a file holds, before anybody knows what it means."""

    container: str  # "torch", "npy", "npz" or "safetensors"
    content: Any  # a tensor, or a dict of tensors and plain values
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors header


def read_direction_file(path: Path) -> StoredFile:
    """Reads a small tensor file of any supported container.

    Raises:
        ModelNotFoundError: no such file.
        InvalidInputError: too large to be a direction.
        CorruptFileError: empty, truncated, a web page, an LFS pointer, or an unknown format.
        UnsafeFileError: the file wants to run code.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotFoundError(f"{path} {kind}: expected a direction file. Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    _refuse_text(path, head, size)
    if size > _MAX_BYTES:
        raise InvalidInputError(
            f"{path} has {size:,} bytes: a direction has a few megabytes at most. Load models with load_model instead."
        )
    try:
        return _read(path, head)
    except GANInversionError:
        raise
    except _DAMAGE as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise CorruptFileError(
            f"{path} ({size:,} bytes) cannot be read: {type(error).__name__}: {first}. It is probably truncated or "
            f"damaged; download it again. {_FORMATS}"
        ) from error


def _read(path: Path, head: bytes) -> StoredFile:
    if head.startswith(b"\x93NUMPY"):
        return StoredFile("npy", _read_npy(path))
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return StoredFile("npz", _read_npz(path))
        return StoredFile("torch", _read_torch(path))
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        return StoredFile("torch", _read_torch(path))
    raise CorruptFileError(f"{path} begins with {head[:16]!r}, which is no known format. {_FORMATS}")


def _refuse_text(path: Path, head: bytes, size: int) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        raise CorruptFileError(f"{path} is empty ({size} bytes): the download did not happen. Download it again.")
    if text.startswith(b"version https://git-lfs"):
        wanted = re.search(rb"size (\d+)", text)
        raise CorruptFileError(
            f"{path} is a Git LFS pointer of {size} bytes, not the file itself "
            f"({int(wanted[1]) if wanted else 0:,} bytes). Run `git lfs pull`, or download the file itself."
        )
    if text.startswith(b"<"):
        shown = text[:_TEXT_SHOWN].decode("utf-8", "replace")
        raise CorruptFileError(
            f"{path} is a web page ({shown!r}...), not a direction. The link led to a page: download the raw file."
        )


def _read_npy(path: Path) -> Tensor:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        dtype = reader(file)[2]
    if dtype.hasobject:
        raise UnsafeFileError(
            f"{path} holds pickled Python objects, which could run code while they are read. Nothing was executed. "
            "Expected an array of numbers: save it again with numpy.save from a float array."
        )
    if dtype.kind not in _NUMERIC:
        raise InvalidInputError(f"{path} holds an array of type {dtype}: expected floating-point numbers.")
    return _tensor(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> dict[str, Tensor | None]:
    """Arrays of numbers by name; None for other arrays. Those that hold objects are never unpickled."""
    content: dict[str, Tensor | None] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                array = archive[name]
            except ValueError:  # what numpy raises in place of unpickling
                array = np.empty(0, dtype=object)
            content[name] = _tensor(array) if array.dtype.kind in _NUMERIC else None
    return content


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; what cannot be read still raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        refused = named[1] if named else re.search(r"(Trying to|Can only|Unsupported operand)[^\n]*", str(error))
        if not refused:
            raise
        what = refused if isinstance(refused, str) else refused[0][:120]
        raise UnsafeFileError(
            f"{path} wants to load and run {what} while it is read. Nothing was executed and the file was not loaded. "
            "Expected tensors and plain values only: use the file of its original publisher."
        ) from error


def _read_safetensors(path: Path) -> StoredFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return StoredFile("safetensors", tensors, file.metadata() or {})
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is a damaged safetensors file ({error}). Download or save it again.") from error
