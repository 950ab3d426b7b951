"""Measures for tables: image fidelity, mask agreement, distribution distance, identity, time and memory.

Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004) and "Multiscale structural
similarity" (2003): both from the SSIM of torchmetrics.
Heusel et al., "GANs trained by a two time-scale update rule" (2017): the Frechet distance, here of any features.
Published tables differ in range, size and clamping, so every docstring states the convention used here.
LPIPS is in losses.py. Images are compared at the size they have: shrink both first where a paper measures at 256.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .blending import check_mask
from .errors import InvalidInputError, MissingPackageError, NotFiniteError
from .imaging import check_image

Values = Tensor | Sequence[float]

_OVERSHOOT = 1.5  # generators leave [-1, 1] a little; pixels in 0..255 leave it by far
_PEAK_TO_PEAK_SQUARED = 4.0  # of [-1, 1]
_WINDOW, _SIGMA = 11, 1.5
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
_CHUNK = 1 << 20  # random numbers held at once by the bootstrap


def mse(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error on [-1, 1] data, [B]: the "L2" of the e4e, ReStyle and DHR tables, 4 times that on [0, 1].

    Nothing is clamped: a generator's overshoot counts.

    Args:
        image, target: [B, 3, H, W] in [-1, 1].
        mask: [B, 1, H, W] in 0..1, weights of the pixels (1 - mask for the outside). An image whose mask is empty has no
            pixels to compare and gives NaN.

    Raises:
        InvalidInputError: shapes that differ, values outside [-1.5, 1.5] such as 0..255, or masks outside 0..1.
        NotFiniteError: NaN or infinity in an input.
    """
    image, target, mask = _check_pair(image, target, mask)
    return _region_mean((image - target).square(), mask)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(4 / mse) in dB, [B]; both images are clamped to [-1, 1] first.

    4 is the squared peak-to-peak range of [-1, 1], so the value is that of the same images in [0, 1] with peak 1, apart
    from the rounding to 8 bits of papers that measure written files. GANInverter's test script divides 2 by the mse and
    so reports 3.01 dB less. Identical images give infinity.
    Arguments and errors as in `mse`; SAMM's convention is `border_crop(..., 2)` of both images first.
    """
    image, target, mask = _check_pair(image, target, mask)
    error = _region_mean((image.clamp(-1, 1) - target.clamp(-1, 1)).square(), mask)
    return 10 * torch.log10(_PEAK_TO_PEAK_SQUARED / error)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, [B], at most 1, in the convention of BasicSR (SAMM's tables).

    Gaussian window of 11x11 pixels with sigma 1.5, K1 0.01, K2 0.03, population covariances, per RGB channel and then
    averaged; only windows that lie inside the image count, so 5 pixels at each side are no window's centre. Images are
    clamped and moved to [0, 1] with data range 1: the luminance term depends on where black is. Single precision is
    within 1e-5 of double on photographs and within 1e-3 on flat areas; float64 images are compared in double.

    Arguments and errors as in `mse`; the mask weighs windows by their centres, whose surroundings reach beyond it. Also
    raises InvalidInputError below 11 pixels a side and MissingPackageError without torchmetrics.
    """
    image, target, mask = _check_pair(image, target, mask)
    if min(image.shape[2:]) < _WINDOW:
        raise InvalidInputError(
            f"Images are {tuple(image.shape[2:])} pixels; SSIM's window needs {_WINDOW} or more a side. Use psnr."
        )
    similarities = _similarity_map(_to_unit_range(image), _to_unit_range(target))
    return _region_mean(similarities, None if mask is None else border_crop(mask, _WINDOW // 2))


def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity, [B] in 0..1, with the window, range and border of `ssim`.

    Contrast and structure of every scale times the luminance of the coarsest, each to the power of its published weight;
    2x2 means between scales (an odd last row or column is dropped), negative terms count 0, channels are averaged at the
    end: the convention of TensorFlow and pytorch-msssim, on sides that halve evenly. torchmetrics' own function differs:
    it averages channels earlier and, by version, lets reflected borders into the coarsest scale.

    Five scales from 176 pixels (shorter side) up; smaller images use the finest `ms_ssim_scales` of them with their
    weights renormalised to sum 1, and such values compare only with each other.

    Raises InvalidInputError as `mse` and below 11 pixels a side, and MissingPackageError without torchmetrics.
    """
    image, target, _ = _check_pair(image, target, None)
    weights = _MS_SSIM_WEIGHTS[: ms_ssim_scales(min(image.shape[2:]))]
    batch = len(image)
    # Each channel as an image of its own, [3B, 1, H, W]: torchmetrics averages the contrast over channels.
    image, target = (_to_unit_range(x).flatten(0, 1).unsqueeze(1) for x in (image, target))
    product = torch.ones(len(image), device=image.device, dtype=image.dtype)
    for scale, weight in enumerate(weights):
        if scale == len(weights) - 1:
            term = _region_mean(_similarity_map(image, target), None)
        else:
            term = _torchmetrics_ssim(image, target, return_contrast_sensitivity=True)
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
        product = product * term.clamp_min(0) ** (weight / sum(weights))
    return product.view(batch, -1).mean(dim=1)


def ms_ssim_scales(size: int) -> int:
    """How many scales `ms_ssim` uses for images whose shorter side is `size` pixels: 5 from 176, 4 from 88, 3 from 44.

    As many as leave room for the window in the coarsest. Raises InvalidInputError below 11 pixels, where there is none.
    """
    if size < _WINDOW:
        raise InvalidInputError(f"The shorter side is {size} pixels; MS-SSIM needs {_WINDOW} or more.")
    return sum(size >> scale >= _WINDOW for scale in range(len(_MS_SSIM_WEIGHTS)))


def mask_iou(mask: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of two masks [B, 1, H, W] in 0..1, [B]; a pixel is in where its value is >= threshold.

    Two empty masks agree: 1. Raises InvalidInputError for shapes that differ, masks outside 0..1 or a threshold outside
    0..1 (0 itself would select everything).
    """
    check_mask(mask)
    check_mask(truth, "truth")
    if mask.shape != truth.shape:
        raise InvalidInputError(f"mask is {tuple(mask.shape)} and truth {tuple(truth.shape)}; expected the same shape.")
    if not 0 < threshold <= 1:
        raise InvalidInputError(f"The mask threshold is {threshold}; expected a value above 0 and at most 1.")
    inside, expected = mask >= threshold, truth.to(mask.device) >= threshold
    union = (inside | expected).flatten(1).sum(dim=1)
    shared = (inside & expected).flatten(1).sum(dim=1)
    return torch.where(union == 0, 1.0, shared / union.clamp_min(1))


def out_of_domain_area(mask: Tensor) -> Tensor:
    """Mean of a mask [B, 1, H, W] in 0..1, [B]: SAMM's AOA as a fraction (its table prints percent).

    SAMM publishes no script; the mean of the soft mask follows from its mask loss. Raises as `check_mask`.
    """
    mask = check_mask(mask)
    return mask.to(_precision(mask)).mean(dim=(1, 2, 3))


def border_crop(images: Tensor, pixels: int) -> Tensor:
    """[..., H, W] without `pixels` rows and columns at each side: SAMM measures PSNR with 2 (at 1024), 0 keeps all.

    Raises InvalidInputError for a negative number or one that leaves nothing.
    """
    height, width = images.shape[-2:]
    if pixels < 0 or 2 * pixels >= min(height, width):
        raise InvalidInputError(
            f"Cannot cut {pixels} pixels from each side of {height}x{width}; expected 0 to {(min(height, width) - 1) // 2}."
        )
    return images[..., pixels : height - pixels, pixels : width - pixels]


class Moments:
    """Count, mean and covariance of features that arrive in batches, so that a folder need not fit into memory.

    Kept in float64 on the CPU, D x D numbers; batches are joined by the update of Chan et al. (1983), which stays exact
    where the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # [D]
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # [D, D], sum of outer products around the mean

    def update(self, features: Tensor) -> None:
        """Add features [N, D], N >= 1. Raises InvalidInputError for another layout or D, NotFiniteError for NaN."""
        if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
            raise InvalidInputError(
                f"Features are {features.dtype} {tuple(features.shape)}; expected floats [N, D], one row an image."
            )
        if not bool(torch.isfinite(features).all()):
            raise NotFiniteError("The features contain NaN or infinity. Check the images and the network behind them.")
        features = features.detach().cpu().double()  # in this order: MPS has no float64
        batch = Moments()
        batch.count, batch.mean = len(features), features.mean(dim=0)
        centred = features - batch.mean
        batch._scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Add what another accumulator saw, for instance that of another process. Raises InvalidInputError for another D."""
        if other.count == 0:
            return
        if self.count == 0:
            self.mean, self._scatter = torch.zeros_like(other.mean), torch.zeros_like(other._scatter)
        if self.mean.shape != other.mean.shape:
            raise InvalidInputError(
                f"Features of {len(other.mean)} dimensions do not join those of {len(self.mean)}. Use one network."
            )
        total = self.count + other.count
        shift = other.mean - self.mean
        weight = self.count * other.count / total
        self._scatter = self._scatter + other._scatter + weight * torch.outer(shift, shift)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by count - 1 as the FID scripts do. Raises InvalidInputError below two rows."""
        if self.count < 2:
            raise InvalidInputError(f"The features hold {self.count} rows; a covariance needs 2 or more.")
        return self._scatter / (self.count - 1)


def frechet_distance(features_a: Tensor | Moments, features_b: Tensor | Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2) in whatever feature space the caller chose: say which. It
    is an FID only with the Inception features of the FID scripts, which this package does not use. The estimate grows as
    sets shrink, so compare values of equal N only.

    Computed in float64 and symmetric. The last trace is the sum of singular values of F_a^T F_b with C = F F^T by
    eigenvalues, of which those within rounding of 0 are left out: fewer rows than dimensions (singular covariances) lose
    no accuracy and need no added diagonal.

    Args:
        features_a, features_b: [N, D] and [M, D], at least two rows each, or `Moments` of them.

    Raises:
        InvalidInputError: other layouts, fewer than two rows, or different D.
        NotFiniteError: NaN or infinity.
    """
    a, b = _moments(features_a), _moments(features_b)
    if a.mean.shape != b.mean.shape and a.count and b.count:
        raise InvalidInputError(
            f"Features have {len(a.mean)} and {len(b.mean)} dimensions; expected those of one network."
        )
    covariance_a, covariance_b = a.covariance, b.covariance
    shared = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    distance = (a.mean - b.mean).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(0.0, float(distance))  # equal sets end a rounding error below 0


def verification_auc(similarities_same: Values, similarities_different: Values) -> float:
    """Area under the ROC curve of an identity network: how often a pair of one person is more similar than one of two.

    The rank statistic of Mann and Whitney over all pairs of values, ties count half; 0.5 is chance, 1 separates. Raises
    InvalidInputError for an empty side or NaN.
    """
    same, different = _to_vector(similarities_same), _to_vector(similarities_different)
    ordered = different.sort().values
    below = torch.searchsorted(ordered, same)
    not_above = torch.searchsorted(ordered, same, right=True)
    return float(below.sum() + not_above.sum()) / (2 * len(same) * len(different))


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: Values, seed: int = 0, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Mean of per-image values with its percentile bootstrap interval (Efron 1979), the same for the same seed.

    The values are drawn with replacement `resamples` times; low and high leave (1 - level) / 2 of those means outside at
    either end. It is a little narrow for few values (by about 7% in 24, against Student's t). One value alone has no
    interval: low and high are NaN. Infinite values, such as the PSNR of identical images, make the mean infinite. Raises
    InvalidInputError for no values, NaN among them (leave out the images whose region is empty), or a level outside 0..1.
    """
    vector = _to_vector(values)
    if not 0 < level < 1 or resamples < 1:
        raise InvalidInputError(
            f"level={level}, resamples={resamples}; expected a level between 0 and 1, 1 resample up."
        )
    mean, count = float(vector.mean()), len(vector)
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    random = torch.Generator().manual_seed(seed)
    rows = max(1, _CHUNK // count)
    means = torch.cat(
        [
            vector[torch.randint(count, (min(rows, resamples - start), count), generator=random)].mean(dim=1)
            for start in range(0, resamples, rows)
        ]
    )
    ordered = means.sort().values  # order statistics, not quantile(): interpolating between infinities gives NaN
    outside = (1 - level) / 2 * (resamples - 1)
    return Interval(mean, float(ordered[math.floor(outside)]), float(ordered[resamples - 1 - math.floor(outside)]))


class Stopwatch:
    """Seconds and peak memory of a block: `with Stopwatch(device) as watch: ...`, then watch.seconds, watch.peak_bytes.

    The device finishes its queue before either reading of the clock. The first run of a network on a GPU also pays for
    loading kernels: warm up before measuring.

    peak_bytes:
        CUDA: most bytes of tensors alive at once on the device during the block, weights and everything made before it
            included (torch.cuda.max_memory_allocated; the context and the allocator's cache come on top). Starting a
            watch resets that counter, so do not nest two on one device.
        CPU: by how much the process's highest resident set so far rose: memory taken from the system, so 0 where
            something earlier reached higher or freed memory was used again. For exact figures, one block a process.
        None where the platform does not tell (CPU on Windows, other devices).
    """

    seconds: float
    peak_bytes: int | None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds, self.peak_bytes = math.nan, None

    def __enter__(self) -> Stopwatch:
        _synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._peak_before = peak_memory(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        peak = peak_memory(self.device)
        if self.device.type == "cpu" and peak is not None and self._peak_before is not None:
            peak -= self._peak_before
        self.peak_bytes = peak


def peak_memory(device: torch.device | str = "cpu") -> int | None:
    """Highest memory so far, in bytes: the process's resident set (CPU), or the tensors on a CUDA device since its reset.

    None where the platform does not tell (CPU on Windows, other devices).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _check_pair(image: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs of an image measure, checked, on the image's device and in at least float32."""
    for tensor, name in ((image, "image"), (target, "target")):
        check_image(tensor, name)
        low, high = float(tensor.detach().min()), float(tensor.detach().max())
        if low < -_OVERSHOOT or high > _OVERSHOOT:
            raise InvalidInputError(
                f"{name} ranges from {low:g} to {high:g}; expected [-1, 1]. Convert pixels in 0..255 with "
                "imaging.from_uint8, or clamp the output of a generator."
            )
    if image.shape != target.shape:
        raise InvalidInputError(
            f"image is {tuple(image.shape)} and target {tuple(target.shape)}; expected the same shape. Resize one of them."
        )
    dtype = _precision(image)
    if mask is not None:
        check_mask(mask)
        if mask.shape[0] != image.shape[0] or mask.shape[2:] != image.shape[2:]:
            raise InvalidInputError(
                f"mask is {tuple(mask.shape)} for images {tuple(image.shape)}; expected one of their size for each image. "
                "Fit it with blending.match_mask."
            )
        mask = mask.to(image.device, dtype)
    return image.to(dtype), target.to(image.device, dtype), mask


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _region_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, C, H, W] weighted by [B, 1, H, W], [B]; NaN where the weights sum to 0."""
    if mask is None:
        return values.mean(dim=(1, 2, 3))
    return (values.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def _to_unit_range(image: Tensor) -> Tensor:
    return (image.clamp(-1, 1) + 1) / 2


def _similarity_map(image: Tensor, target: Tensor) -> Tensor:
    """SSIM of every window inside the image, [B, C, H - 10, W - 10], of images in [0, 1]."""
    similarities = _torchmetrics_ssim(image, target, return_full_image=True)
    return border_crop(similarities, _WINDOW // 2)  # its map has the image's size, with reflected borders


def _torchmetrics_ssim(image: Tensor, target: Tensor, **wanted: bool) -> Tensor:
    """What one of its switches returns beside the mean: the map, or the contrast term of each image."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except Exception as error:  # it imports torchvision, which fails in ways of its own where it does not fit
        raise MissingPackageError(
            f"SSIM and MS-SSIM cannot be used: importing torchmetrics fails ({type(error).__name__}: {error}). "
            "Install it (pip install torchmetrics), or use psnr, which needs nothing more."
        ) from error
    # It derives the size of a Gaussian window from sigma: 11 for 1.5.
    _, found = structural_similarity_index_measure(
        image, target, sigma=_SIGMA, reduction="none", data_range=1.0, k1=0.01, k2=0.03, **wanted
    )
    return found


def _moments(features: Tensor | Moments) -> Moments:
    if isinstance(features, Moments):
        return features
    moments = Moments()
    moments.update(features)
    return moments


def _factor(covariance: Tensor) -> Tensor:
    """F [D, R] with F F^T = covariance and R its numerical rank."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept &= values > 0
    return vectors[:, kept] * values[kept].sqrt()


def _to_vector(values: Values) -> Tensor:
    """Float64 vector on the CPU of at least one value, none of them NaN."""
    if isinstance(values, Tensor):
        vector = values.detach().cpu().double().flatten()
    else:
        vector = torch.tensor(values, dtype=torch.float64).flatten()
    if len(vector) == 0:
        raise InvalidInputError("There are no values; expected one or more.")
    missing = int(vector.isnan().sum())
    if missing:
        raise InvalidInputError(f"{missing} of {len(vector)} values are NaN. Leave those images out and say so.")
    return vector


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
