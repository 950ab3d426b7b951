"""The perceptual trunk: a small network of this project whose feature distance stands in for LPIPS where none is at hand.

Distance of Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (CVPR 2018): features
at several strides, of unit length over channels, weighted per channel, squared differences averaged over positions and
summed over taps. Deviations: five plain convolutions that core/training/perceptual.py distils from a SqueezeNet, in
place of an ImageNet classifier, so the values are of LPIPS' size without being LPIPS; average pooling and an even
first convolution, so that the gradient in the picture has no checkerboard.
As a loss it belongs beside pixels (L2 or `multiscale_distance`), at a weight near 0.2: alone, or at 0.8 on an optimised
picture, it can be fooled and tints hair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InvalidInputError, UnsupportedModelError
from .losses import LayeredDistance

TAPS = 5
MIN_SIZE = 32
_POOLED = (1, 2, 3)  # convolutions that come after a pooling: taps at strides 2, 4, 8, 16, 16
_EPSILON = 1e-6  # keeps the gradient finite where no channel is active


@dataclass(frozen=True)
class PerceptualTrunkConfig:
    """Sizes of a `PerceptualTrunk`."""

    widths: tuple[int, ...] = (32, 64, 96, 128, 160)  # channels of each tap, finest first
    domain: str | None = None

    def __post_init__(self) -> None:
        if len(self.widths) != TAPS:
            raise InvalidInputError(f"Perceptual trunk of widths {self.widths}: expected {TAPS}, one for each tap.")

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "perceptual"

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor], domain: str | None = None) -> PerceptualTrunkConfig:
        """Sizes from shapes. Raises UnsupportedModelError where a tap is absent."""
        names = [f"convs.{tap}.weight" for tap in range(TAPS)]
        absent = [name for name in names if name not in tensors]
        if absent:
            raise UnsupportedModelError(f"Perceptual trunk without {absent[0]}: the file is incomplete.")
        return PerceptualTrunkConfig(tuple(tensors[name].shape[0] for name in names), domain)


class PerceptualTrunk(nn.Module):
    """Features whose squared differences are a perceptual distance; see `trunk_distance`."""

    def __init__(self, config: PerceptualTrunkConfig = PerceptualTrunkConfig()) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.widths[:-1])
        # 4x4 at stride 2: every pixel lies under as many weights as its neighbours do.
        self.convs = nn.ModuleList(
            nn.Conv2d(wide, out, 4 if tap == 0 else 3, stride=2 if tap == 0 else 1, padding=1)
            for tap, (wide, out) in enumerate(zip(inputs, config.widths, strict=True))
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        # Roots of the weights of the distance, which therefore are never negative.
        self.scales = nn.ParameterList(torch.full((width,), 0.3) for width in config.widths)

    def features(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1], H and W at least 32 -> five maps of unit length over channels.

        Their sides are H and W over 2, 4, 8, 16, 16, rounded up from the second on.

        Raises:
            InvalidInputError: a smaller picture, or another number of axes or channels.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < MIN_SIZE:
            raise InvalidInputError(
                f"Perceptual trunk: found an image {tuple(image.shape)}, expected [B, 3, H, W] of {MIN_SIZE} px at least."
            )
        x = image.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        taps = []
        for index, conv in enumerate(self.convs):
            if index in _POOLED:
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            x = F.relu(conv(x))
            tap = x.float()
            taps.append(tap * torch.rsqrt(tap.square().sum(dim=1, keepdim=True) + _EPSILON))
        return taps

    def weighted(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features times the roots of the distance's weights."""
        return [tap * scale[:, None, None] for tap, scale in zip(features, self.scales, strict=True)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1], H and W at least 32 -> five weighted maps; see `features`."""
        return self.weighted(self.features(image))


def tap_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared differences of two lists of [B, C, h, w], summed over channels and taps, averaged over positions, [B]."""
    distances = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).sum(dim=0)


class TrunkDistance(LayeredDistance):
    """Perceptual distance by a network's features; see `trunk_distance`."""

    name = "trunk"

    def __init__(self, trunk: Callable[[Tensor], list[Tensor]], size: int | None, target_gradient: bool) -> None:
        self.trunk, self.size, self.target_gradient = trunk, size, target_gradient
        self.network = trunk if isinstance(trunk, nn.Module) else None

    def features(self, image: Tensor) -> list[Tensor]:
        """Weighted taps of the trunk."""
        if self.network is not None:
            self.network.to(image.device)
        longest = max(image.shape[2:])
        if self.size is not None and longest > self.size:
            height, width = (max(1, round(side * self.size / longest)) for side in image.shape[2:])
            image = F.interpolate(image, size=(height, width), mode="area")
        return self.trunk(image)

    def maps(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """One map for each tap, finest first."""
        return [(a - b).square().sum(dim=1, keepdim=True) for a, b in zip(found, wanted, strict=True)]

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance [B] of two [B, 3, H, W] in [-1, 1]. Raises InvalidInputError where their sides differ."""
        if image.shape[1:] != target.shape[1:]:
            raise InvalidInputError(
                f"Perceptual distance of images {tuple(image.shape)} and {tuple(target.shape)}: expected equal sides."
            )
        return super().__call__(image, target)


def trunk_distance(
    trunk: Callable[[Tensor], list[Tensor]], *, size: int | None = None, target_gradient: bool = False
) -> TrunkDistance:
    """Perceptual distance by a network's features.

    Args:
        trunk: a `PerceptualTrunk` or another function from images to maps normalised over channels. A module is moved
            to the device of the images.
        size: images with a longer side are area-downsampled until it is this many pixels; None compares at full size.
        target_gradient: also differentiate in the second image.

    Returns:
        Function of two [B, 3, H, W] in [-1, 1] giving [B], with its layers; it raises InvalidInputError where their
        sides differ.
    """
    return TrunkDistance(trunk, size, target_gradient)
