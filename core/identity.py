"""A small identity embedding for the "portraits" domain: do two face pictures show the same person?

Papers: Deng et al., "ArcFace" (CVPR 2019), whose network this follows in small: a residual trunk, one learned weight per
position in place of global pooling (the global depthwise convolution of Chen et al. 2018, "MobileFaceNets"), and a
normalised linear head. Trained by core/training/identity.py; inversion methods use 1 - cosine as an identity loss.
Deviations: 64 px input of the face alone. The picture's own brightness and contrast are divided out and everything
outside a soft oval (hair, clothes, background) is covered, so that neither can stand for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment import face_oval
from .errors import InvalidInputError, UnsupportedModelError
from .imaging import resize_antialiased
from .losses import Distance

CROP_SIZE = 96  # any FFHQ crop is resized to this first
WINDOW_TOP, WINDOW_LEFT, WINDOW_SIZE = 22, 16, 64  # what the network sees of it: brows to chin, cheek to cheek
_SMALLEST = 32  # pixels; below this a crop has no features left
_LEAST_SPREAD = 0.02  # a flat picture stays near zero in place of amplified rounding
_SLOPE = 0.1  # of the leaky ReLU


@dataclass(frozen=True)
class IdentityConfig:
    """Sizes of the network."""

    widths: tuple[int, int, int, int] = (24, 48, 96, 160)  # channels at 32, 16, 8 and 4 px
    dim: int = 96
    architecture: str = "identity"
    domain: str = "portraits"

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor], domain: str | None = None) -> IdentityConfig:
        """Sizes from shapes. Raises UnsupportedModelError where they are not those of an `IdentityNet`."""
        names = [f"{stage}.0.weight" for stage in _STAGES] + ["head.weight"]
        absent = [name for name in names if name not in tensors]
        wrong = [
            name for name in names if name in tensors and tensors[name].ndim != (2 if name == "head.weight" else 4)
        ]
        if absent or wrong:
            found = f"without {absent[0]}" if absent else f"with {wrong[0]} of shape {tuple(tensors[wrong[0]].shape)}"
            raise UnsupportedModelError(f"Identity embedding {found}: the file is incomplete or of another kind.")
        sizes = [int(tensors[name].shape[0]) for name in names]
        return IdentityConfig((sizes[0], sizes[1], sizes[2], sizes[3]), sizes[4], domain=domain or "portraits")


_STAGES = ("stem", "down_16", "down_8", "down_4")


class IdentityNet(nn.Module):
    """Face crops -> unit vectors; see `forward`."""

    def __init__(self, config: IdentityConfig = IdentityConfig()) -> None:
        super().__init__()
        self.config = config
        stem, first, second, third = config.widths
        self.stem = _convolution(3, stem, stride=2)
        self.down_16 = _convolution(stem, first, stride=2)
        self.residual_16 = _Residual(first)
        self.down_8 = _convolution(first, second, stride=2)
        self.residual_8 = _Residual(second)
        self.down_4 = _convolution(second, third, stride=2)
        self.positions = nn.Conv2d(third, third, WINDOW_SIZE // 16, groups=third, bias=False)
        self.positions_norm = nn.BatchNorm1d(third)
        self.head = nn.Linear(third, config.dim, bias=False)
        self.head_norm = nn.BatchNorm1d(config.dim)

    def forward(self, image: Tensor) -> Tensor:
        """FFHQ crops [B, 3, S, S] in [-1, 1], S at least 32 -> embeddings [B, dim] of length 1. Differentiable.

        Raises InvalidInputError for images that are not square or smaller.
        """
        x = self.down_16(self.stem(face_window(image.to(self.head.weight.dtype))))
        x = self.down_8(self.residual_16(x))
        x = self.down_4(self.residual_8(x))
        x = self.positions_norm(self.positions(x).flatten(1))
        return F.normalize(self.head_norm(self.head(x)).float(), dim=1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return F.leaky_relu(x + self.second(self.first(x)), _SLOPE)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(_SLOPE),
    )


def face_window(image: Tensor) -> Tensor:
    """FFHQ crops [B, 3, S, S] in [-1, 1] -> what the network sees, [B, 3, 64, 64]: mean 0 and deviation 1 in the face.

    One mean and one deviation for all three channels: exposure and contrast go, the skin's hue stays. The soft oval
    that weighs them also fades the rest to 0.
    Raises InvalidInputError for images that are not square or smaller than 32 pixels.
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3] or image.shape[2] < _SMALLEST:
        raise InvalidInputError(
            f"Got images of shape {tuple(image.shape)}; expected FFHQ crops [B, 3, S, S] with S at least {_SMALLEST}."
        )
    rows = slice(WINDOW_TOP, WINDOW_TOP + WINDOW_SIZE)
    columns = slice(WINDOW_LEFT, WINDOW_LEFT + WINDOW_SIZE)
    window = resize_antialiased(image, CROP_SIZE)[..., rows, columns]
    oval = face_oval(CROP_SIZE, device=image.device).to(image.dtype)[..., rows, columns]
    total = 3 * oval.sum()
    centred = window - (window * oval).sum(dim=(1, 2, 3), keepdim=True) / total
    spread = ((centred.square() * oval).sum(dim=(1, 2, 3), keepdim=True) / total + _LEAST_SPREAD**2).sqrt()
    return centred / spread * (2 * oval).clamp(max=1)  # the jaw's line stays in full


def identity_similarity(net: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the embeddings of two batches of FFHQ crops, [B] in -1..1; a batch of one serves all of the other.

    Raises InvalidInputError for batches that do not fit, and as `IdentityNet.forward`.
    """
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise InvalidInputError(f"Got batches of {len(a)} and {len(b)} images; expected as many, or one.")
    return (net(a) * net(b)).sum(dim=1)


def identity_distance(net: nn.Module) -> Distance:
    """1 - cosine as a loss: function of two batches of FFHQ crops giving [B] in 0..2. The target has no gradient."""

    def distance(image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = net(target)
        return 1 - (net(image) * wanted).sum(dim=1)

    return distance
