"""Affine resampling of images: pixel grids, area-true shrinking, and the border that fades where a picture ends.

A matrix is 2x3 float64 and maps target pixels to source pixels, (x, y) = A @ (u, v, 1), both counted by pixel centres:
the centre of the pixel in column i and row j is (i, j).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

_SHRINK_FROM = 4.0  # above this minification whole pixels are averaged first, to bound the supersampling


def resample(image: torch.Tensor, matrix: np.ndarray, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """Resample [B, C, H, W] onto a target of (height, width) through the matrix from target to source pixels.

    Where the target is coarser than the source it averages over each target pixel's area. Outside the source its edge
    pixels go on. Bicubic may overshoot the source's range. Differentiable in the image.
    """
    if scale_of(matrix) >= _SHRINK_FROM:
        shrink = int(scale_of(matrix) / 2)
        image, matrix = shrink_whole(image, shrink), shrunk_matrix(matrix, shrink)
    # Bounded rounding noise must not double the work when the scale is a whole number.
    factor = max(1, math.ceil(scale_of(matrix) - 1e-6))
    height, width = size
    total = torch.zeros(())
    for row in range(factor):
        for column in range(factor):
            u = torch.arange(width, dtype=torch.float64) + ((column + 0.5) / factor - 0.5)
            v = torch.arange(height, dtype=torch.float64) + ((row + 0.5) / factor - 0.5)
            sample = _sample(image, _grid(matrix, u, v, image), mode)
            total = sample if row == column == 0 else total + sample
    return total / factor**2


def scale_of(matrix: np.ndarray) -> float:
    """Return the source pixels per target pixel (square root of the area ratio)."""
    return math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def shrink_whole(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Average whole blocks of factor x factor pixels; the last row and column are repeated to fill up."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.avg_pool2d(padded, factor)


def shrunk_matrix(matrix: np.ndarray, factor: int) -> np.ndarray:
    """Rewrite a matrix onto the pixel grid of `shrink_whole`'s result."""
    result = matrix / factor
    result[:, 2] = (matrix[:, 2] + 0.5) / factor - 0.5
    return result


def pad_fading(image: torch.Tensor, pads: list[int], sigma: float) -> torch.Tensor:
    """Extend an image (left, right, top, bottom) by reflection that fades into blur, then into the median colour."""
    left, right, top, bottom = pads
    height, width = image.shape[-2:]
    median = image.flatten(2).median(dim=2).values[..., None, None]
    columns = _reflected(torch.arange(-left, width + right), width).to(image.device)
    rows = _reflected(torch.arange(-top, height + bottom), height).to(image.device)
    padded = image.index_select(-1, columns).index_select(-2, rows)
    # Depth into the border: negative inside the picture, 0 at its edge, 1 at the outer rim.
    x = torch.arange(-left, width + right, device=image.device, dtype=image.dtype)
    y = torch.arange(-top, height + bottom, device=image.device, dtype=image.dtype)
    depth_x = torch.maximum(-x / max(left, 1) if left else -torch.ones_like(x),
                            (x - width + 1) / max(right, 1) if right else -torch.ones_like(x))  # fmt: skip
    depth_y = torch.maximum(-y / max(top, 1) if top else -torch.ones_like(y),
                            (y - height + 1) / max(bottom, 1) if bottom else -torch.ones_like(y))  # fmt: skip
    depth = torch.maximum(depth_x[None, :], depth_y[:, None])
    padded = torch.lerp(padded, _gaussian_blur(padded, sigma), (depth * 3.0).clamp(0.0, 1.0))
    return padded + (median - padded) * depth.clamp(0.0, 1.0)


def _reflected(index: torch.Tensor, length: int) -> torch.Tensor:
    """Mirror indices into 0..length-1 without repeating the edge, any number of times (F.pad allows only one)."""
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    folded = index.remainder(period)
    return torch.where(folded < length, folded, period - folded)


def _gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = math.ceil(3 * sigma)
    if radius < 1:
        return image
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    rows = F.pad(image, (radius, radius, 0, 0), mode="replicate")
    rows = F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    both = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(both, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _grid(matrix: np.ndarray, u: torch.Tensor, v: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sampling grid [1, len(v), len(u), 2] for F.grid_sample(align_corners=False) on the target's pixel grid."""
    m = matrix
    x = m[0, 0] * u[None, :] + m[0, 1] * v[:, None] + m[0, 2]
    y = m[1, 0] * u[None, :] + m[1, 1] * v[:, None] + m[1, 2]
    height, width = target.shape[-2:]
    # float64 until normalised: at 8000 px wide, float32 pixel positions are good to half a thousandth only.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]
    return grid.to(dtype=target.dtype, device=target.device)


def _sample(image: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    grid = grid.expand(image.shape[0], -1, -1, -1)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
