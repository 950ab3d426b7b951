"""The VGG19 perceptual and style losses of SAMM's original training, around ImageNet weights of the user's.

Networks: Simonyan & Zisserman, "Very Deep Convolutional Networks" (2015); losses as BasicSR's PerceptualLoss has them:
L1 of the convolutions' outputs before their ReLU, and of their Gram matrices.
Weights are torchvision's `vgg19` (its `features.N.weight` and `.bias`), as .pth or .safetensors; nothing is downloaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CorruptFileError, UnsupportedModelError

LAYERS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}  # conv1_2, 2_2, 3_4, 4_4, 5_4 in torchvision's order: weight
_WIDTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions between two poolings


class VGG19(nn.Module):
    """The convolutions up to conv5_4; frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Args: weights: named like torchvision's; the classifier's are passed over."""
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406))[:, None, None])
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225))[:, None, None])
        layers: list[nn.Module] = []
        channels = 3
        for width, count in _WIDTHS:
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        state = {key: value.float() for key, value in weights.items() if key.startswith("features.")}
        try:
            self.features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
        except RuntimeError as error:
            raise UnsupportedModelError(f"Not the weights of torchvision's vgg19: {error}") from error
        self.requires_grad_(False).eval()

    @staticmethod
    def load(path: str | Path) -> VGG19:
        """Reads a .safetensors or .pth file; nothing in it can execute."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            if Path(path).suffix == ".safetensors":
                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise CorruptFileError(f"{path}: not a readable file of VGG19 weights ({error}).") from error
        return VGG19(weights)

    @staticmethod
    def random(seed: int = 0) -> VGG19:
        """Random weights that keep the scale of what passes: for measurements of time and memory."""
        generator, weights = torch.Generator().manual_seed(seed), {}
        index, channels = 0, 3
        for width, count in _WIDTHS:
            for _ in range(count):
                scale = (2 / (9 * channels)) ** 0.5
                weights[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
                weights[f"features.{index}.bias"] = torch.zeros(width)
                index, channels = index + 2, width
            index += 1
        return VGG19(weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1], H and W at least 16 -> the maps of `LAYERS`, before their ReLU."""
        x = ((image.float() + 1) / 2 - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            if index > max(LAYERS):
                break
            x = layer(x)
            if index in LAYERS:
                taps.append(x)
        return taps


def weighted_l1(found: Sequence[Tensor], wanted: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The perceptual distance of two lists of maps [B, C, h, w]: weighted sum of their mean absolute differences, [B]."""
    total = found[0].new_zeros(len(found[0]))
    for weight, a, b in zip(weights, found, wanted, strict=True):
        total = total + weight * (a - b).abs().mean(dim=(1, 2, 3))
    return total
