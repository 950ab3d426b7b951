"""An ImageNet SqueezeNet 1.1 as a perceptual loss while training: sharper than pixels alone, small enough for a CPU.

Paper: Iandola et al., "SqueezeNet" (2016); the distance is LPIPS without learned weights (Zhang et al. 2018, the
"perceptual" baseline): channel-normalised features, squared differences, averaged over positions, summed over taps.
Weights are a file of the user's: a converted Caffe model, BGR input in 0..255 minus the ImageNet mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CorruptFileError, InvalidInputError, UnsupportedModelError
from ..perceptual import trunk_distance

__all__ = ["SqueezeNetTrunk", "trunk_distance"]

CAFFE_MEAN = (104.0, 117.0, 123.0)  # blue, green, red
TAPS = (1, 4, 7, 9, 10, 11, 12)  # indices in torchvision's `squeezenet1_1().features`, the seven of LPIPS
_POOLS = (2, 5, 8)
_FIRES = (3, 4, 6, 7, 9, 10, 11, 12)


class SqueezeNetTrunk(nn.Module):
    """The convolutional part of SqueezeNet 1.1; frozen."""

    mean: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Args: weights: 50 tensors named like torchvision's, `features.3.squeeze.weight` or `3.squeeze.weight`."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(CAFFE_MEAN)[:, None, None])
        self.names = {}
        for name, value in weights.items():
            short = name.removeprefix("features.")
            self.names[short] = short.replace(".", "_")
            self.register_buffer(self.names[short], value.float())
        missing = [f"{n}.squeeze.weight" for n in _FIRES if f"{n}.squeeze.weight" not in self.names]
        if "0.weight" not in self.names or missing:
            raise UnsupportedModelError(
                f"SqueezeNet weights lack {(['0.weight'] if '0.weight' not in self.names else missing)[0]}: expected "
                "the 50 arrays of torchvision's squeezenet1_1().features."
            )

    @staticmethod
    def load(path: str | Path) -> SqueezeNetTrunk:
        """Reads an .npz file; nothing in it can execute."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return SqueezeNetTrunk({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{path}: not a readable .npz file of SqueezeNet weights ({error}).") from error

    def _conv(self, x: Tensor, name: str, **kwargs: int) -> Tensor:
        weight, bias = (getattr(self, self.names[f"{name}.{part}"]) for part in ("weight", "bias"))
        return F.relu(F.conv2d(x, weight, bias, **kwargs))

    def forward(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1], H and W at least 32 -> features at `TAPS`, channel-normalised."""
        if min(image.shape[2:]) < 32:
            raise InvalidInputError(
                f"SqueezeNet features of a {image.shape[3]}x{image.shape[2]} image: 32 px at least."
            )
        x = self._conv((image.float().flip(1) + 1) * 127.5 - self.mean, "0", stride=2)
        taps = [x]
        for index in range(2, 13):
            if index in _POOLS:
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
                continue
            x = self._conv(x, f"{index}.squeeze")
            x = torch.cat((self._conv(x, f"{index}.expand1x1"), self._conv(x, f"{index}.expand3x3", padding=1)), dim=1)
            if index in TAPS:
                taps.append(x)
        return [F.normalize(tap, dim=1, eps=1e-8) for tap in taps]
