"""DeepLabV3+ on a ResNet: one map of features per pixel from one image, with the parameter names of the public PyTorch port.

Paper: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" (ECCV 2018).
Reference implementation: jfzhang95/pytorch-deeplab-xception with backbone "resnet", output stride 16 and plain BatchNorm;
agrees to 1e-4.
Deviations: widths, depths and the number of stages are free. The strides follow from the number of stages: the first and
the last stage keep the size, the others halve it, the last one is dilated. Four stages (ResNet101) give stride 16, three
give stride 8, so that 128 px images reach the pyramid at the 16x16 positions that 256 px images have in the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InvalidInputError, UnsupportedModelError

EXPANSION = 4  # output channels of a bottleneck unit over its inner width
RATES = (6, 12, 18)  # dilations of the pyramid, in positions of the last feature map
_MULTI_GRID = (2, 4, 8)  # dilations of the last stage's units: 2 * (1, 2, 4)
_LEAST_SIZE = 8  # pixels


@dataclass(frozen=True)
class DeepLabConfig:
    """Everything that fixes the shape of a `DeepLab`; the defaults are ResNet101 as published."""

    stem: int = 64
    widths: tuple[int, ...] = (
        64,
        128,
        256,
        512,
    )  # inner width of each stage's units; they give 4 times as many channels
    units: tuple[int, ...] = (3, 4, 23, 3)
    pyramid: int = 256  # channels of each pyramid branch
    low_level: int = 48  # channels taken from the first stage
    decoder: int = 256
    outputs: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "units", tuple(self.units))
        sizes = (self.stem, *self.widths, *self.units, self.pyramid, self.low_level, self.decoder, self.outputs)
        if len(self.widths) != len(self.units) or len(self.widths) < 2 or min(sizes) < 1:
            raise InvalidInputError(
                f"DeepLab with widths {self.widths} and units {self.units}: expected two stages or more, and as many "
                "widths as unit counts, all positive."
            )
        if self.units[-1] > len(_MULTI_GRID):
            raise InvalidInputError(
                f"DeepLab with {self.units[-1]} units in its last, dilated stage: expected up to 3."
            )

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the last feature map."""
        return 4 << (len(self.widths) - 2)

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Any], prefix: str = "") -> DeepLabConfig:
        """Sizes from shapes.

        Args:
            tensors: key -> tensor (or anything with `.shape`).
            prefix: of this network's keys.

        Raises:
            UnsupportedModelError: an expected key is not there.
        """

        def size(name: str, axis: int = 0) -> int:
            if prefix + name not in tensors:
                raise UnsupportedModelError(f"DeepLab network without {prefix + name}: the file is incomplete.")
            return int(tensors[prefix + name].shape[axis])

        stages = 1
        while f"{prefix}backbone.layer{stages + 1}.0.conv1.weight" in tensors:
            stages += 1
        units = []
        for stage in range(1, stages + 1):
            units.append(1)
            while f"{prefix}backbone.layer{stage}.{units[-1]}.conv1.weight" in tensors:
                units[-1] += 1
        try:
            return DeepLabConfig(
                stem=size("backbone.conv1.weight"),
                widths=tuple(size(f"backbone.layer{stage}.0.conv1.weight") for stage in range(1, stages + 1)),
                units=tuple(units),
                pyramid=size("aspp.conv1.weight"),
                low_level=size("decoder.conv1.weight"),
                decoder=size("decoder.last_conv.0.weight"),
                outputs=size("decoder.last_conv.8.weight"),
            )
        except InvalidInputError as error:
            raise UnsupportedModelError(f"Not a DeepLab network of this package: {error}") from error


class DeepLab(nn.Module):
    """Backbone, atrous spatial pyramid pooling (ASPP) and decoder."""

    def __init__(self, config: DeepLabConfig = DeepLabConfig()) -> None:
        super().__init__()
        self.config = config
        self.backbone = _ResNet(config)
        self.aspp = _Pyramid(config.widths[-1] * EXPANSION, config.pyramid)
        self.decoder = _Decoder(config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, outputs, H, W]. Raises InvalidInputError for other shapes and below 8 px a side."""
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < _LEAST_SIZE:
            raise InvalidInputError(
                f"DeepLab got an image of shape {tuple(image.shape)}: expected [batch, 3, height, width], both sides "
                f"{_LEAST_SIZE} px or more."
            )
        features, low_level = self.backbone(image)
        return _resized(self.decoder(self.aspp(features), low_level), image)


class _Bottleneck(nn.Module):
    """ResNet unit of a 1x1, a dilated 3x3 and a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 width, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class _ResNet(nn.Module):
    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem)
        self.stages = len(config.widths)
        inputs = config.stem
        for stage, (width, units) in enumerate(zip(config.widths, config.units, strict=True), start=1):
            last = stage == self.stages
            layers = []
            for unit in range(units):
                stride = 1 if last or stage == 1 or unit > 0 else 2
                layers.append(_Bottleneck(inputs, width, stride, _MULTI_GRID[unit] if last else 1))
                inputs = width * EXPANSION
            self.add_module(f"layer{stage}", nn.Sequential(*layers))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(features of the last stage, of the first stage)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, padding=1)
        stages = [getattr(self, f"layer{stage}") for stage in range(1, self.stages + 1)]
        low_level = x = stages[0](x)
        for stage in stages[1:]:
            x = stage(x)
        return x, low_level


class _Branch(nn.Module):
    def __init__(self, inputs: int, outputs: int, rate: int | None) -> None:
        super().__init__()
        kernel, dilation = (1, 1) if rate is None else (3, rate)
        padding = 0 if rate is None else rate
        self.atrous_conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        return F.relu(self.bn(self.atrous_conv(x)))


class _Pyramid(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for index, rate in enumerate((None, *RATES), start=1):
            self.add_module(f"aspp{index}", _Branch(inputs, width, rate))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(width * (len(RATES) + 2), width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, width, h, w]."""
        branches = [getattr(self, f"aspp{index}")(x) for index in range(1, len(RATES) + 2)]
        branches.append(self.global_avg_pool(x).expand(-1, -1, *x.shape[2:]))
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


class _Decoder(nn.Module):
    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(config.widths[0] * EXPANSION, config.low_level, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.low_level)
        self.last_conv = nn.Sequential(
            nn.Conv2d(config.pyramid + config.low_level, config.decoder, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.decoder),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(config.decoder, config.decoder, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.decoder),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(config.decoder, config.outputs, 1),
        )

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """Features of the pyramid and of the first stage -> [B, outputs, h, w] at the first stage's size."""
        low_level = F.relu(self.bn1(self.conv1(low_level)))
        return self.last_conv(torch.cat((_resized(x, low_level), low_level), dim=1))


def _resized(x: Tensor, onto: Tensor) -> Tensor:
    return F.interpolate(x, size=onto.shape[2:], mode="bilinear", align_corners=True)
