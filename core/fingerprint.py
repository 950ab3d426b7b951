"""A short identity for a network: two modules with the same identity draw the same images from the same codes."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_ROW = 32  # neighbouring values read together, so that a memory-mapped file is not read in full
_ROWS = 16  # places per tensor
_NOT_RENDERING = frozenset({"mapping.w_avg"})  # truncation only: files with and without an average stay one generator


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits from names, shapes and a fixed sample of every tensor; the same on every device,
    and on several: hosts take a network off in parts.

    A few milliseconds for 30 million parameters. Any retraining or fine-tuning moves all sampled values; a change made
    by hand to single entries of a large tensor can go unnoticed.
    """
    digest = hashlib.sha256()
    samples = []
    for name, tensor in sorted(module.state_dict().items()):
        if name in _NOT_RENDERING:
            continue
        digest.update(f"{name}{tuple(tensor.shape)};".encode())
        samples.append(_sample(tensor.detach().reshape(-1)).to("cpu", torch.float32))
    if samples:
        digest.update(torch.cat(samples).numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def _sample(flat: torch.Tensor) -> torch.Tensor:
    if flat.numel() <= _ROW * _ROWS:
        return flat
    rows = flat[: flat.numel() // _ROW * _ROW].view(-1, _ROW)
    step = (rows.shape[0] - 1) / (_ROWS - 1)
    return rows[[int(index * step) for index in range(_ROWS)]].reshape(-1)
