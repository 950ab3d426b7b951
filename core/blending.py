"""Masks and blending: soften, combine and fit masks, and mix two pictures by one.

Masks are floats [B, 1, H, W] in 0..1, 1 = take the new picture. Everything is differentiable in masks and pictures
except `feather` with grow, whose dilation has a gradient at the largest pixel only.
"""

import math

import torch
import torch.nn.functional as F

from .errors import InvalidInputError
from .imaging import check_image, resize_antialiased

MERGE_MODES = ("union", "intersect", "replace", "subtract")

_SIGMA_PER_RADIUS = 0.5  # two standard deviations fit into the radius, so almost all of the ramp does


def check_mask(mask: torch.Tensor, name: str = "mask") -> torch.Tensor:
    """Return the mask unchanged if it is a finite float batch [B, 1, H, W] in 0..1.

    Raises InvalidInputError for another layout or range and NotFiniteError for NaN or infinity.
    """
    check_image(mask, name, channels=1)
    low, high = float(mask.detach().min()), float(mask.detach().max())
    if low < 0.0 or high > 1.0:
        raise InvalidInputError(f"{name} ranges from {low:g} to {high:g}; expected 0 (keep) to 1 (replace). Clamp it.")
    return mask


def match_mask(mask: torch.Tensor, size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    """Bring a mask [H, W], [B, H, W] or [B, 1, H, W] to [batch, 1, height, width] in 0..1.

    A single mask is repeated over the batch. Another size is resized (antialiased when shrinking), so the 64x64 zeros
    ComfyUI gives for a picture without alpha stay an empty mask of the right size. Values are clamped to 0..1.
    Raises InvalidInputError for other layouts and for a batch that is neither 1 nor the wanted one.
    """
    if mask.ndim == 2:
        mask = mask[None, None]
    elif mask.ndim == 3:
        mask = mask[:, None]
    if not mask.is_floating_point():
        mask = mask.float()
    check_image(mask, "mask", channels=1)
    mask = mask.clamp(0.0, 1.0)
    if tuple(mask.shape[-2:]) != tuple(size):
        mask = resize_antialiased(mask, size).clamp(0.0, 1.0)
    if mask.shape[0] not in (1, batch):
        raise InvalidInputError(f"Got {mask.shape[0]} masks for {batch} images; expected 1 or {batch}.")
    return mask.expand(batch, -1, -1, -1)


def feather(mask: torch.Tensor, radius: float, *, grow: bool = False) -> torch.Tensor:
    """Soften a mask's edge with a Gaussian that spans `radius` pixels to either side; radius 0 leaves it as it is.

    The picture's rim counts as more of the same, so a full mask stays full. grow=True widens the mask by the radius
    first, so that what was selected stays fully selected. Exactly 0 farther than the radius (twice with grow) from any
    selected pixel. Raises InvalidInputError for a negative radius.
    """
    check_mask(mask)
    if not math.isfinite(radius) or radius < 0:
        raise InvalidInputError(f"The feather radius is {radius}; expected 0 pixels or more.")
    reach = math.ceil(radius)
    if reach == 0:
        return mask
    if grow:
        # A square window is separable, so two one-dimensional maxima do it.
        mask = F.max_pool2d(mask, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        mask = F.max_pool2d(mask, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    offsets = torch.arange(-reach, reach + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-0.5 * (offsets / (radius * _SIGMA_PER_RADIUS)) ** 2)
    kernel = kernel / kernel.sum()
    rows = F.conv2d(F.pad(mask, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    both = F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return both.clamp(0.0, 1.0)


def merge_masks(first: torch.Tensor, second: torch.Tensor, mode: str = "union") -> torch.Tensor:
    """Combine a mask with a second one, for instance a predicted with a painted one.

    mode: "union" (the larger), "intersect" (the smaller), "replace" (the second) or "subtract" (the first where the
    second is not). The second is resized to the first; a batch of 1 on either side is repeated. Raises
    InvalidInputError for an unknown mode or batches that do not fit.
    """
    check_mask(first, "first mask")
    if mode not in MERGE_MODES:
        raise InvalidInputError(f"Unknown mask mode {mode!r}; expected one of {', '.join(MERGE_MODES)}.")
    batch = max(first.shape[0], second.shape[0] if second.ndim > 2 else 1)
    height, width = first.shape[-2:]
    first = match_mask(first, (height, width), batch)
    second = match_mask(second, (height, width), batch).to(first)
    if mode == "union":
        return torch.maximum(first, second)
    if mode == "intersect":
        return torch.minimum(first, second)
    if mode == "replace":
        return second
    return first * (1.0 - second)


def blend(source: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mix mask * image + (1 - mask) * source, all of one size; where the mask is 0 or 1 the bits of either are kept.

    source and image: [B, 3, H, W] in the same range; mask: [B, 1, H, W] in 0..1; a batch of 1 is repeated.
    Raises InvalidInputError for sizes that do not fit (see `match_mask`).
    """
    check_image(source, "source")
    check_image(image, "image")
    check_mask(mask)
    sizes = {tuple(tensor.shape[-2:]) for tensor in (source, image, mask)}
    if len(sizes) != 1:
        raise InvalidInputError(
            f"source, image and mask are {tuple(source.shape[-2:])}, {tuple(image.shape[-2:])} and "
            f"{tuple(mask.shape[-2:])} pixels; expected one size. Resize the image, or fit the mask with match_mask."
        )
    batches = {tensor.shape[0] for tensor in (source, image, mask)} - {1}
    if len(batches) > 1:
        raise InvalidInputError(f"Batches of {sorted(batches)} do not fit together; expected one size, or 1.")
    image, mask = image.to(source), mask.to(source)
    mixed = mask * image + (1.0 - mask) * source
    return torch.where(mask == 0, source, torch.where(mask == 1, image, mixed))
