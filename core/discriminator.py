"""StyleGAN2 discriminator ("resnet" architecture), sizes 8 to 1024, in plain PyTorch.

Paper: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), section 4.1; the minibatch
standard deviation is that of Karras et al., "Progressive Growing of GANs" (ICLR 2018), section 3.
Reference implementations: NVlabs/stylegan3 `training/networks_stylegan2.py` (whose parameter names are used here) and
rosinality/stylegan2-pytorch `model.py`. Both load and agree to 1e-4.
Deviations: the activation's gain sqrt(2) and the residual's sqrt(1/2) are folded into the weights, which a leaky ReLU
permits (same numbers); a batch that the minibatch groups do not divide is refused by name; class-conditional networks
and the "orig" and "skip" ablations are not built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InvalidInputError
from .ops import FIR, LRELU_GAIN, LRELU_SLOPE, EqualLinear, leaky_relu_gained

RESIDUAL_GAIN = math.sqrt(0.5)  # of each of the two branches of a block: their sum keeps its variance


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Everything that fixes a discriminator's shape."""

    resolution: int  # input height and width, a power of two
    channels: tuple[int, ...]  # features at each size, from 4x4 up to `resolution`
    mbstd_group_size: int | None = 4  # images per minibatch-statistics group; None: the whole batch is one group
    mbstd_channels: int = 1  # statistics maps appended before the last convolution; 0 switches them off
    conv_clamp: float | None = None  # NVIDIA nets trained in mixed precision clamp every layer to +-256

    def __post_init__(self) -> None:
        log2 = math.log2(self.resolution) if self.resolution > 0 else 0.0
        if log2 != int(log2) or not 3 <= log2 <= 10:
            raise InvalidInputError(
                f"Discriminator resolution {self.resolution}: expected a power of two from 8 to 1024."
            )
        if len(self.channels) != int(log2) - 1:
            raise InvalidInputError(
                f"{len(self.channels)} channel counts {self.channels} for resolution {self.resolution}: "
                f"expected {int(log2) - 1}, one for each size from 4x4 up."
            )
        if self.mbstd_group_size is not None and self.mbstd_group_size < 1:
            raise InvalidInputError(
                f"mbstd_group_size {self.mbstd_group_size}: expected 1 or more, or None for the whole batch."
            )
        if self.mbstd_channels < 0 or (self.mbstd_channels and self.channels[0] % self.mbstd_channels):
            raise InvalidInputError(
                f"mbstd_channels {self.mbstd_channels}: expected 0 (none) or a divisor of the {self.channels[0]} "
                "channels at 4x4."
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """(4, 8, ..., resolution)."""
        return tuple(4 << k for k in range(len(self.channels)))

    @staticmethod
    def official(
        resolution: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        mbstd_group_size: int | None = 4,
        mbstd_channels: int = 1,
        conv_clamp: float | None = None,
    ) -> DiscriminatorConfig:
        """config-f widths (channel_base 32768), config-e with 16384: C(r) = min(channel_base / r, channel_max)."""
        count = int(math.log2(resolution)) - 1 if resolution > 0 else 0
        channels = tuple(min(channel_base // (4 << k), channel_max) for k in range(count))
        return DiscriminatorConfig(resolution, channels, mbstd_group_size, mbstd_channels, conv_clamp)


class _Filter(torch.autograd.Function):
    """`ops.upfirdn2d` without upsampling, or its transpose: each is the other's derivative.

    Autograd's second derivative of a convolution (R1 needs it) computes that of the fixed filter too, which takes more
    time than the rest, and its first keeps the input alive, which a linear map does not need.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: int, pad: int, transposed: bool) -> Tensor:
        ctx.options = down, pad, not transposed
        taps = torch.tensor(FIR, device=x.device, dtype=x.dtype)
        kernel = (torch.outer(taps, taps) / taps.sum() ** 2).expand(x.shape[1], 1, 4, 4)
        if transposed:
            return F.conv_transpose2d(x, kernel, stride=down, padding=pad, groups=x.shape[1])
        return F.conv2d(x, kernel, stride=down, padding=pad, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Filter.apply(gradient, *ctx.options), None, None, None


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, leaky ReLU of gain sqrt(2) and clamp; can halve the size first.

    Stored weights have unit variance; they are divided by sqrt(in k k) at run time, as in the official checkpoints.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        down: bool = False,
        activated: bool = True,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activated else None
        self.down = down
        self.gain = gain * (LRELU_GAIN if activated else 1.0)
        self.weight_gain = self.gain / math.sqrt(in_channels * kernel * kernel)
        self.clamp = None if clamp is None else clamp * gain

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H, W], or [B, O, H / 2, W / 2] with `down`."""
        weight = self.weight * self.weight_gain
        kernel = weight.shape[2]
        if not self.down:
            x = F.conv2d(x, weight, self._scaled_bias(), padding=kernel // 2)
        elif kernel == 1:  # filter and decimate first: the convolution then sees a quarter of the pixels
            x = F.conv2d(_Filter.apply(x, 2, 1, False), weight, self._scaled_bias())
        else:
            x = F.conv2d(_Filter.apply(x, 1, 2, False), weight, self._scaled_bias(), stride=2)
        if self.bias is not None:
            x = F.leaky_relu(x, LRELU_SLOPE, inplace=True)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def _scaled_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias * self.gain

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        o, i, k, _ = self.weight.shape
        return f"{i} -> {o}, {k}x{k}, down={self.down}"


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a 1x1 skip, from one resolution to half of it; the first block also reads the RGB image."""

    def __init__(self, in_channels: int, out_channels: int, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        clamp = config.conv_clamp
        self.resolution = resolution
        if resolution == config.resolution:
            self.fromrgb = EqualConv2d(3, in_channels, 1, clamp=clamp)
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, gain=RESIDUAL_GAIN, clamp=clamp)
        self.skip = EqualConv2d(in_channels, out_channels, 1, down=True, activated=False, gain=RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, r, r], or the image [B, 3, r, r] in the first block -> [B, O, r / 2, r / 2]."""
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        return self.skip(x).add_(self.conv1(self.conv0(x)))


def minibatch_std(x: Tensor, group_size: int | None = 4, channels: int = 1) -> Tensor:
    """Appends maps with the mean standard deviation over a group of images, by which a lack of variety is seen.

    Image n belongs to group n mod (B / G), as in the official code. A group of one image gives 1e-4.

    Args:
        x: [B, C, H, W].
        group_size: images per group G; at most B is used, None means B.
        channels: number of maps, each the mean over its share of the C channels.

    Returns:
        [B, C + channels, H, W].

    Raises:
        InvalidInputError: B is not a multiple of the group size.
    """
    b, c, h, w = x.shape
    group = _group_of(b, group_size)
    y = x.reshape(group, b // group, channels, c // channels, h, w)
    y = y - y.mean(dim=0)
    y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))  # [B / G, channels]
    return torch.cat((x, y.repeat(group, 1)[:, :, None, None].expand(-1, -1, h, w)), dim=1)


def _group_of(batch: int, group_size: int | None) -> int:
    """Images per group of a batch."""
    group = batch if group_size is None else min(group_size, batch)
    if batch % group:
        raise InvalidInputError(
            f"The discriminator got a batch of {batch} images: expected 1 to {group}, or a multiple of {group}, its "
            "minibatch group. Split the batch, or use a configuration with another mbstd_group_size."
        )
    return group


class DiscriminatorEpilogue(nn.Module):
    """Minibatch statistics, a convolution and two linear layers at 4x4, always float32."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        channels = config.channels[0]
        self.config = config
        self.conv = EqualConv2d(channels + config.mbstd_channels, channels, 3, clamp=config.conv_clamp)
        self.fc = EqualLinear(channels * 4 * 4, channels)
        self.out = EqualLinear(channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, 4, 4] -> (features before the linear layers [B, C, 4, 4], logits [B, 1])."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.fc.weight.dtype)
            if self.config.mbstd_channels:
                x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_channels)
            x = self.conv(x)
            return x, self.out(leaky_relu_gained(self.fc(x.flatten(1))))


class Discriminator(nn.Module):
    """Judges images: high logits for real ones.

    On a CPU, `discriminator.to(memory_format=torch.channels_last)` makes training a third faster.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        for index in range(len(config.channels) - 1, 0, -1):
            r, wide, narrow = config.resolutions[index], config.channels[index], config.channels[index - 1]
            self.add_module(f"b{r}", DiscriminatorBlock(wide, narrow, config, r))
        self.b4 = DiscriminatorEpilogue(config)

    @property
    def resolution(self) -> int:
        """Height and width of the images it takes."""
        return self.config.resolution

    def blocks(self) -> list[DiscriminatorBlock]:
        """In the order in which they run: `resolution` down to 8x8."""
        return [getattr(self, f"b{resolution}") for resolution in self.config.resolutions[:0:-1]]

    def forward(self, images: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Logits of a batch. Convolutions follow autocast, except at 4x4.

        The statistics of the batch are part of the verdict: an image's logit depends on the others in its group.

        Args:
            images: [B, 3, resolution, resolution] in [-1, 1]; B at most the minibatch group or a multiple of it.
            features: a dict that receives "block<r>", what leaves the block of resolution r ([B, C(r/2), r/2, r/2] for
                r = resolution ... 8, and [B, C(4), 4, 4] for r = 4).

        Returns:
            [B, 1], float32: real above 0, generated below, in a trained network.

        Raises:
            InvalidInputError: images of another shape or type, or a batch that the minibatch group does not divide.
        """
        self._check_images(images)
        x = images
        for block in self.blocks():
            x = block(x)
            if features is not None:
                features[f"block{block.resolution}"] = x
        x, logits = self.b4(x)
        if features is not None:
            features["block4"] = x
        return logits

    def _check_images(self, images: Tensor) -> None:
        r = self.config.resolution
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, r, r) or not len(images):
            raise InvalidInputError(
                f"The discriminator got images of shape {tuple(images.shape)}: expected [batch, 3, {r}, {r}] "
                "with at least one image."
            )
        if not images.is_floating_point():
            raise InvalidInputError(
                f"The discriminator got images of type {images.dtype}: expected floating point in [-1, 1]."
            )
        if self.config.mbstd_channels:
            _group_of(len(images), self.config.mbstd_group_size)
