"""Convolutional trunks of the inversion encoders: IR-SE50 and ResNet34, with the official parameter names.

IR-SE50 comes from TreB1eN/InsightFace_Pytorch (ArcFace, CVPR 2019; squeeze-and-excitation, CVPR 2018) by way of
omertov/encoder4editing `models/encoders/helpers.py`. ResNet34 is torchvision's, as yuval-alaluf/restyle-encoder
changes it: PReLU after the stem and no max-pool. Widths and depths are free, so that slim encoders use the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IR_SE50 = "ir-se50"
RESNET34 = "resnet34"
DEFAULT_UNITS = {IR_SE50: (3, 4, 14, 3), RESNET34: (3, 4, 6, 3)}


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        gate = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class ImprovedResidualUnit(nn.Module):
    """IR unit with squeeze-and-excitation: normalised before, and no activation after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, se_reduction: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if in_channels == channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)  # takes every stride-th pixel
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcite(channels, se_reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""
        return self.res_layer(x) + self.shortcut_layer(x)


class BasicBlock(nn.Module):
    """torchvision's ResNet unit of two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Trunk(nn.Module):
    """Stem and residual stages. Each stage ends at half the size of the one before: 1/2, 1/4, ... of the input.

    The modules sit directly on the trunk (`input_layer`, `body` / `conv1`, `bn1`, `relu`, `body`), and the encoders
    inherit from it, because the official keys have no prefix for the trunk.
    """

    def __init__(
        self,
        backbone: str,
        input_channels: int,
        stem: int,
        widths: Sequence[int],
        units: Sequence[int],
        se_reduction: int = 16,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if backbone == IR_SE50:
            self.input_layer = nn.Sequential(
                nn.Conv2d(input_channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
            )
        else:
            self.conv1 = nn.Conv2d(input_channels, stem, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem)
            self.relu = nn.PReLU(stem)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []  # index in `body` of the last unit of each stage
        channels = stem
        for stage, (width, count) in enumerate(zip(widths, units, strict=True)):
            for unit in range(count):
                # ResNet's stem has already halved the image, so its first stage keeps the size.
                halves = unit == 0 and not (backbone == RESNET34 and stage == 0)
                stride = 2 if halves else 1
                if backbone == IR_SE50:
                    blocks.append(ImprovedResidualUnit(channels, width, stride, se_reduction))
                else:
                    blocks.append(BasicBlock(channels, width, stride))
                channels = width
            self.stage_ends.append(len(blocks) - 1)
        self.body = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """[B, input_channels, H, W] -> every stage's output, largest first: [B, widths[s], H/2^(s+1), W/2^(s+1)]."""
        return self.maps(x)[1:]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The stem's output [B, stem, H, W] (ResNet34: H/2, W/2), then those of `stages`."""
        x = self.input_layer(x) if self.backbone == IR_SE50 else self.relu(self.bn1(self.conv1(x)))
        outputs = [x]
        for index, unit in enumerate(self.body):
            x = unit(x)
            if index in self.stage_ends:
                outputs.append(x)
        return outputs
