"""The whole policy for pickled files: nothing that a file names is ever called.

Every permitted global is replaced by a recording class: what the file asks to call is written down as (name, arguments,
state) and turned into tensors and numbers afterwards by `reading.py`. Any other global ends the reading.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

from ..core.errors import UnsafeFileError

_CONTAINERS = {("builtins", "set"): set, ("__builtin__", "set"): set, ("collections", "OrderedDict"): OrderedDict}

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
PYTHON_GLOBALS = {"_codecs.encode", "argparse.Namespace"}
NUMPY_GLOBALS = {f"{m}.{n}" for m in _NUMPY for n in ("ndarray", "dtype", "scalar", "_reconstruct", "_frombuffer")}
RECORDED_GLOBALS = frozenset(PYTHON_GLOBALS | NUMPY_GLOBALS) | {
    "dnnlib.EasyDict",
    "dnnlib.util.EasyDict",
    "dnnlib.tflib.network.Network",
    "torch_utils.persistence._reconstruct_persistent_obj",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
}


class Recorded:
    """One call the file asked for, not made: the global's name, the arguments, the state, and what was put into it."""

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **_: Any) -> Recorded:
        """Keeps the arguments; construction is all that a pickle can make happen."""
        self = object.__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


def recorder(name: str) -> type[Recorded]:
    """A fresh recording class for one global, so that a file which writes to it spoils only its own copy."""
    return type("Recorded", (Recorded,), {"name": name})


class RecordingUnpickler(pickle.Unpickler):
    """Reads a pickle without running it. Raises UnsafeFileError at the first global that is not on the list."""

    def find_class(self, module: str, name: str) -> type:
        """Called by pickle for each global, before anything is done with it."""
        if (module, name) in _CONTAINERS:
            return _CONTAINERS[module, name]
        if f"{module}.{name}" in RECORDED_GLOBALS:
            return recorder(f"{module}.{name}")
        raise UnsafeFileError(f"{module}.{name}")


def unpickle(file: BinaryIO) -> Any:
    """The pickled object, with `Recorded` in place of everything that is not plain data."""
    return RecordingUnpickler(file).load()
