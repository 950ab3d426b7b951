"""Superpixels: segments of like colour, for methods that decide per segment and have no semantic segmenter at hand.

Paper: Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods" (TPAMI 2012), in the version of
scikit-image. Defaults as in DHR (caopulan/GANInverter, `inference/dhr_infer.py`).
Deviations: RGB order, where DHR hands over BGR, whose conversion to Lab then sees swapped channels; labels from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import InvalidInputError, MissingPackageError
from .imaging import check_image, to_uint8


def superpixels(image: Tensor, segments: int = 200, compactness: float = 30.0, sigma: float = 1.0) -> Tensor:
    """Cuts pictures into connected segments of like colour. The same picture gives the same segments.

    Args:
        image: [B, 3, H, W] in [-1, 1], rounded to 8 bits first.
        segments: about how many per picture; the number found differs a little.
        compactness: weight of distance against colour; larger makes squarer segments.
        sigma: width of the Gaussian blur beforehand, in pixels.

    Returns:
        Labels [B, H, W], int64, on the image's device; 0, 1, ... in each picture without gaps.

    Raises:
        InvalidInputError: wrong image, or settings that are no positive numbers.
        NotFiniteError: an image holds NaN or infinity.
        MissingPackageError: scikit-image is not installed.
    """
    check_image(image)
    if (
        segments < 1
        or not (math.isfinite(compactness) and compactness > 0)
        or not (math.isfinite(sigma) and sigma >= 0)
    ):
        raise InvalidInputError(
            f"Superpixels with segments={segments}, compactness={compactness}, sigma={sigma}: expected at least one "
            "segment, a positive compactness and a sigma of 0 or more."
        )
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MissingPackageError("Superpixels need the package scikit-image: pip install scikit-image.") from error
    found = []
    for pixels in to_uint8(image).cpu().numpy():
        labels = slic(pixels, n_segments=segments, compactness=compactness, sigma=sigma, start_label=0)
        found.append(torch.from_numpy(labels).long().unique(return_inverse=True)[1])
    return torch.stack(found).to(image.device)


def mean_per_segment(values: Tensor, labels: Tensor) -> Tensor:
    """Replaces every value by the mean over its segment.

    Args:
        values: [B, C, H, W], floating point; each channel has means of its own.
        labels: [B, H, W] or [1, H, W], integers of any value.

    Returns:
        The shape of `values`.

    Raises:
        InvalidInputError: shapes that do not fit, or labels that are no integers.
    """
    check_labels(labels, values)
    flat = labels.expand(len(values), -1, -1).flatten(1)
    result = torch.empty_like(values)
    for index, (picture, marks) in enumerate(zip(values.flatten(2), flat, strict=True)):
        _, segment, count = marks.unique(return_inverse=True, return_counts=True)
        sums = picture.new_zeros(len(picture), len(count)).index_add_(1, segment, picture)
        result[index] = (sums / count)[:, segment].view_as(result[index])
    return result


def check_labels(labels: Tensor, picture: Tensor) -> None:
    """Raises InvalidInputError unless `labels` are integers [B or 1, H, W] for `picture` [B, C, H, W]."""
    shape = tuple(labels.shape)
    fits = picture.ndim == 4 and shape in {(n, *picture.shape[2:]) for n in (1, len(picture))}
    if not fits or labels.is_floating_point() or labels.is_complex():
        raise InvalidInputError(
            f"Segments are {labels.dtype} of shape {shape} for a picture or map of shape {tuple(picture.shape)}: "
            "expected integer labels [batch or 1, height, width] of the same height and width."
        )
