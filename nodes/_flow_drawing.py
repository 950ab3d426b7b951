"""Pictures of flows: direction as colour, with arrows, over the photograph."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.imaging import from_pil, resize_antialiased, to_pil

_ARROWS = 16  # per row
_SHORTEST = 2.0  # pixels; shorter arrows are left out
_GAINS = (8, 4, 2, 1)  # by which arrows may be longer than the shift they stand for
_HUES = (0.0, 2 / 3, 1 / 3)  # of red, green and blue on the wheel


def longest_shift(flow: Tensor, mask: Tensor) -> float:
    """Largest shift of a flow [1, 2, r, r] where its mask [1, 1, r, r] lets it act, in units of half the picture."""
    return float((flow * mask).norm(dim=1).max())


def draw_flow(image: Tensor, flow: Tensor, mask: Tensor, side: int) -> tuple[Tensor, int]:
    """A flow over a photograph, drawn where it acts.

    Colour tells the direction that the features move in (the wheel in the corner), its strength how far in units of the
    longest shift; arrows end where the features land.

    Args:
        image: [1, 3, H, W] in [-1, 1].
        flow: [1, 2, r, r], (x, y) in units of half the picture: from where each position takes its features.
        mask: [1, 1, r, r] in 0..1.
        side: of the result.

    Returns:
        ([1, 3, side, side] in [-1, 1], how many times too long the arrows are).
    """
    acting = F.interpolate(-flow.float() * mask.float(), size=(side, side), mode="bilinear", align_corners=False)
    longest = float(acting.norm(dim=1).max())
    grey = 0.5 * (resize_antialiased(image.float(), side).clamp(-1, 1).mean(dim=1, keepdim=True) - 0.6)
    x, y = acting[0, 0], acting[0, 1]
    strength = acting.norm(dim=1)[0] / max(longest, 1e-6)
    picture = torch.lerp(grey.expand(-1, 3, -1, -1), _wheel_colours(x, y)[None], strength)
    picture = _with_wheel(picture, side)
    shift = acting[0] * side / 2  # pixels of this picture
    gain = next((g for g in _GAINS if g * longest * side / 2 <= 1.5 * side / _ARROWS), 1)
    return _with_arrows(picture, gain * shift, side), gain


def _wheel_colours(x: Tensor, y: Tensor) -> Tensor:
    """Directions [h, w] -> [3, h, w] in [-1, 1] of full colour; red is to the right."""
    turn = torch.atan2(y, x) / (2 * math.pi)
    return torch.stack([(2 * torch.cos(2 * math.pi * (turn + hue))).clamp(-1, 1) for hue in _HUES])


def _with_wheel(picture: Tensor, side: int) -> Tensor:
    radius, gap = side // 12, side // 40
    line = torch.arange(side, dtype=torch.float32, device=picture.device) - (side - gap - radius)
    y, x = torch.meshgrid(line, line, indexing="ij")
    away = (x.square() + y.square()).sqrt()
    wheel = torch.lerp(-torch.ones_like(picture), _wheel_colours(x, y)[None], (away / radius).clamp(0, 1))
    picture = torch.where(away <= radius + 2, torch.ones_like(picture), picture)
    return torch.where(away <= radius, wheel, picture)


def _with_arrows(picture: Tensor, shift: Tensor, side: int) -> Tensor:
    from PIL import ImageDraw

    canvas = to_pil(picture)[0]
    pen, step, width = ImageDraw.Draw(canvas), side / _ARROWS, max(1, side // 300)
    for row in range(_ARROWS):
        for column in range(_ARROWS):
            end_x, end_y = (column + 0.5) * step, (row + 0.5) * step
            dx, dy = shift[:, int(end_y), int(end_x)].tolist()
            length = math.hypot(dx, dy)
            if length < _SHORTEST:
                continue
            head = min(0.4 * length, 0.02 * side)
            ux, uy = dx / length, dy / length
            wings = [(end_x - head * (ux + s * 0.6 * uy), end_y - head * (uy - s * 0.6 * ux)) for s in (1, -1)]
            for colour, thick in (((0, 0, 0), width + 2), ((255, 255, 255), width)):
                pen.line([(end_x - dx, end_y - dy), (end_x, end_y)], fill=colour, width=thick)
                pen.line([wings[0], (end_x, end_y), wings[1]], fill=colour, width=thick)
    return from_pil(canvas).to(picture)
