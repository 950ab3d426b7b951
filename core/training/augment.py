"""Adaptive discriminator augmentation: random, differentiable changes of pictures before the discriminator sees them.

Paper: Karras et al., "Training Generative Adversarial Networks with Limited Data" (NeurIPS 2020), appendix B.
Reference implementation: NVlabs/stylegan3 `training/augment.py`, its "bgc" set (blits, geometry, colour).
Deviations: geometry is sampled bilinearly with reflected borders, without the wavelet low-pass filter, which costs a CPU
more than the discriminator itself; one mirror, turn and shift go into the same matrix as the other geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE_STD = 0.2  # of log2(scale)
SHIFT_STD = 0.125  # of the fractional shift, in widths
SHIFT_MAX = 0.125  # of the whole-pixel shift, in widths
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5  # of log2
SATURATION_STD = 1.0  # of log2


@dataclass(frozen=True)
class AdaptiveAugmentation:
    """How the probability of every augmentation follows the discriminator's over-confidence."""

    target: float = 0.6  # mean sign of the discriminator's answers to real pictures that is aimed at
    interval: int = 4  # steps between adjustments
    images: float = 500_000  # pictures after which the probability could have gone from 0 to 1

    def adjust(self, probability: float, signs: float, pictures: int) -> float:
        """The next probability, from the mean sign since the last adjustment and the pictures shown meanwhile."""
        step = math.copysign(pictures / self.images, signs - self.target) if signs != self.target else 0.0
        return min(1.0, max(0.0, probability + step))


def augment(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Applies each augmentation to each picture with the given probability.

    Args:
        images: [B, 3, H, W] in [-1, 1].
        probability: 0 to 1.
        generator: CPU random generator; the same one gives the same changes on every device.

    Returns:
        [B, 3, H, W], differentiable once with respect to `images`, values may leave [-1, 1].
    """
    if probability <= 0:
        return images
    batch, width = len(images), images.shape[3]
    draw = _Draws(batch, probability, generator)
    moved = _geometry(draw, width).to(images)
    grid = F.affine_grid(moved[:, :2], list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)
    colour = _colour(draw).to(images)
    return torch.einsum("bij,bjhw->bihw", colour[:, :3, :3], images) + colour[:, :3, 3, None, None]


class _Draws:
    """Random amounts [B] that are neutral where a picture's coin says no."""

    def __init__(self, batch: int, probability: float, generator: torch.Generator) -> None:
        self.batch, self.probability, self.generator = batch, probability, generator

    def uniform(self) -> Tensor:
        return torch.rand(self.batch, generator=self.generator)

    def normal(self) -> Tensor:
        return torch.randn(self.batch, generator=self.generator)

    def chosen(self, amount: Tensor, neutral: float, probability: float | None = None) -> Tensor:
        coin = self.uniform() < (self.probability if probability is None else probability)
        return torch.where(coin, amount, torch.full_like(amount, neutral))


def _geometry(draw: _Draws, width: int) -> Tensor:
    """[B, 3, 3], from output to input coordinates, both in [-1, 1]."""
    # Two rotations, before and after the stretching, together as likely as one of the other changes.
    rotation = 1 - math.sqrt(1 - draw.probability)
    mirror = draw.chosen(torch.where(draw.uniform() < 0.5, -1.0, 1.0), 1.0)
    quarter = draw.chosen((draw.uniform() * 4).floor() * (math.pi / 2), 0.0)
    whole = [draw.chosen(((draw.uniform() * 2 - 1) * SHIFT_MAX * width).round() / width * 2, 0.0) for _ in range(2)]
    scale = draw.chosen(torch.exp2(draw.normal() * SCALE_STD), 1.0)
    before = draw.chosen((draw.uniform() * 2 - 1) * math.pi, 0.0, rotation)
    stretch = draw.chosen(torch.exp2(draw.normal() * SCALE_STD), 1.0)
    after = draw.chosen((draw.uniform() * 2 - 1) * math.pi, 0.0, rotation)
    shift = [draw.chosen(draw.normal() * SHIFT_STD * 2, 0.0) for _ in range(2)]
    one = torch.ones(draw.batch)
    matrix = _diagonal(mirror, one) @ _rotation(quarter) @ _translation(*whole)
    matrix = matrix @ _diagonal(scale, scale) @ _rotation(before) @ _diagonal(stretch, 1 / stretch)
    return matrix @ _rotation(after) @ _translation(*shift)


def _colour(draw: _Draws) -> Tensor:
    """[B, 4, 4] on (red, green, blue, 1)."""
    eye = torch.eye(4).expand(draw.batch, 4, 4)
    luma = torch.full((3,), 1 / math.sqrt(3.0))
    project = torch.zeros(4, 4)
    project[:3, :3] = torch.outer(luma, luma)
    brightness = eye.clone()
    brightness[:, :3, 3] = draw.chosen(draw.normal() * BRIGHTNESS_STD, 0.0)[:, None]
    contrast = torch.diag_embed(torch.ones(draw.batch, 4))
    contrast[:, :3, :3] *= draw.chosen(torch.exp2(draw.normal() * CONTRAST_STD), 1.0)[:, None, None]
    flip = draw.chosen((draw.uniform() * 2).floor(), 0.0)[:, None, None]
    flipped = eye - 2 * project * flip
    angle = draw.chosen((draw.uniform() * 2 - 1) * math.pi, 0.0)
    saturation = draw.chosen(torch.exp2(draw.normal() * SATURATION_STD), 1.0)[:, None, None]
    grey = project.clone()
    grey[3, 3] = 1
    saturated = grey + (eye - grey) * saturation
    return saturated @ _hue(angle, luma) @ flipped @ contrast @ brightness


def _hue(angle: Tensor, axis: Tensor) -> Tensor:
    """Rotation about the grey axis (Rodrigues' formula), [B, 4, 4]."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    matrix = torch.eye(4).repeat(len(angle), 1, 1)
    matrix[:, :3, :3] = torch.eye(3) * c + torch.outer(axis, axis) * (1 - c) + cross * s
    return matrix


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack((x, y, torch.ones_like(x)), dim=1))


def _rotation(angle: Tensor) -> Tensor:
    c, s, o, i = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack((c, s, o, -s, c, o, o, o, i), dim=1).view(-1, 3, 3)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    o, i = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack((i, o, x, o, i, y, o, o, i), dim=1).view(-1, 3, 3)
