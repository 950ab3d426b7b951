"""Modules without values: for networks whose every tensor is about to be replaced by a file's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_INITIALISERS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_}
_SCALINGS = {torch.Tensor.div, torch.Tensor.__truediv__, torch.Tensor.mul, torch.Tensor.__mul__}


class _WithoutValues(TorchFunctionMode):
    """Skips random initial values: on the meta device they cost nothing by themselves, but load torch's compiler."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _INITIALISERS or func in _SCALINGS:
            return args[0]
        if func is torch.randn:
            return torch.empty(*args, device="meta")
        return func(*args, **(kwargs or {}))


@contextmanager
def skeleton() -> Iterator[None]:
    """Modules made in this context have shapes on the meta device and no values; assign a state dict to them.

    Their sizes, keys and types are right. Makes a 1024 px generator in milliseconds and without memory.
    """
    with torch.device("meta"), _WithoutValues():
        yield
