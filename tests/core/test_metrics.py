"""Measures against independent references: numbers by hand, scikit-image, scipy, torchmetrics, brute force."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, MissingPackageError, NotFiniteError
from gan_inversion.core.metrics import (
    Interval,
    Moments,
    Stopwatch,
    bootstrap_interval,
    border_crop,
    frechet_distance,
    mask_iou,
    ms_ssim,
    ms_ssim_scales,
    mse,
    out_of_domain_area,
    peak_memory,
    psnr,
    ssim,
    verification_auc,
)

NEEDS_TORCHMETRICS = "torchmetrics is not installed"


def images(batch: int = 2, height: int = 40, width: int = 33, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A wavy picture and a noisy copy, each of another strength, in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.linspace(0, 7, height)[:, None], torch.linspace(0, 5, width)
    target = 0.8 * torch.sin(rows + torch.rand(batch, 3, 1, 1, generator=random) * 6 + columns**2 / 3)
    strength = torch.linspace(0.1, 0.4, batch).view(-1, 1, 1, 1)
    noisy = target + strength * torch.randn(target.shape, generator=random)
    return noisy.clamp(-1, 1), target


def left_half(batch: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(batch, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


# Mean squared error and PSNR


def test_mse_of_known_differences_on_the_papers_range():
    target = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -0.2)])
    torch.testing.assert_close(mse(image, target), torch.tensor([0.25, 0.04]))
    unit = (((image + 1) / 2 - (target + 1) / 2) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(mse(image, target), 4 * unit)


def test_mse_counts_overshoot_and_psnr_clamps_it():
    white = torch.ones(1, 3, 4, 4)
    assert float(mse(white * 1.5, white)) == pytest.approx(0.25)
    assert float(psnr(white * 1.5, white * 0.9)) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
    assert float(psnr(white * 0.9, white * 1.5)) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)


def test_psnr_by_hand_and_by_scikit_image():
    reference = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    zero = torch.zeros(1, 3, 2, 2)
    assert float(psnr(zero + 0.2, zero)) == pytest.approx(20.0, abs=1e-4)  # 4 / 0.04 = 100
    image, target = images()
    expected = [reference(a.numpy(), b.numpy(), data_range=2.0) for a, b in zip(target, image, strict=True)]
    assert psnr(image, target).tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_identical_images_is_infinite():
    image, _ = images()
    assert psnr(image, image.clone()).tolist() == [math.inf, math.inf]


def test_masks_weigh_pixels():
    image, target = images()
    mask = left_half(2, 40, 33)
    torch.testing.assert_close(mse(image, target, mask=mask), mse(image[..., :16], target[..., :16]))
    torch.testing.assert_close(psnr(image, target, mask=1 - mask), psnr(image[..., 16:], target[..., 16:]))
    torch.testing.assert_close(mse(image, target, mask=torch.full_like(mask, 0.3)), mse(image, target))
    weights = torch.tensor([[[[1.0, 0.5]]]])
    pair = torch.tensor([1.0, 0.4]).expand(1, 3, 1, 2)
    assert float(mse(pair, torch.zeros_like(pair), weights)) == pytest.approx((1.0 + 0.5 * 0.16) / 1.5)


def test_an_empty_region_has_no_value():
    image, target = images()
    mask = left_half(2, 40, 33)
    mask[1] = 0
    for measure in (mse, psnr, ssim):
        if measure is ssim:
            pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
        found = measure(image, target, mask)
        assert math.isfinite(found[0]) and math.isnan(found[1])


def test_half_precision_is_measured_in_single():
    image, target = (x.half() for x in images())
    assert mse(image, target).dtype == torch.float32
    torch.testing.assert_close(mse(image, target), mse(image.float(), target.float()))
    assert psnr(image.double(), target.double()).dtype == torch.float64


@pytest.mark.parametrize("measure", [mse, psnr, ssim, ms_ssim])
def test_unfit_images_are_named(measure):
    image, target = images()
    with pytest.raises(InvalidInputError, match=r"image is \(2, 3, 40, 33\) and target \(2, 3, 40, 32\)"):
        measure(image, target[..., :-1])
    with pytest.raises(InvalidInputError, match=r"\(1, 3, 40, 33\).*expected the same shape"):
        measure(image, target[:1])
    with pytest.raises(InvalidInputError, match=r"target ranges from 0 to 255; expected \[-1, 1\].*from_uint8"):
        measure(image, torch.linspace(0, 255, target.numel()).view_as(target))
    with pytest.raises(InvalidInputError, match=r"image has shape \(3, 40, 33\)"):
        measure(image[0], target[0])
    with pytest.raises(NotFiniteError, match="batch item 1"):
        measure(image * torch.tensor([1.0, math.nan]).view(2, 1, 1, 1), target)


@pytest.mark.parametrize("measure", [mse, psnr, ssim])
def test_unfit_masks_are_named(measure):
    image, target = images()
    with pytest.raises(InvalidInputError, match=r"mask is \(2, 1, 40, 32\) for images \(2, 3, 40, 33\)"):
        measure(image, target, left_half(2, 40, 32))
    with pytest.raises(InvalidInputError, match="for each image"):
        measure(image, target, left_half(1, 40, 33))
    with pytest.raises(InvalidInputError, match="ranges from 0 to 255"):
        measure(image, target, left_half(2, 40, 33) * 255)


# Structural similarity


def skimage_ssim(image: torch.Tensor, target: torch.Tensor, full: bool = False):
    """SSIM of one image in BasicSR's convention: its mean leaves out the border where the window does not fit."""
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    return structural_similarity(
        (image.double().numpy() + 1) / 2,
        (target.double().numpy() + 1) / 2,
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=full,
    )


def test_ssim_agrees_with_scikit_image():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    image, target = images()
    expected = [skimage_ssim(a, b) for a, b in zip(image, target, strict=True)]
    assert ssim(image, target).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(image.double(), target.double()).tolist() == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(ssim(target, target), torch.ones(2))


def test_ssim_in_a_region_is_the_mean_of_the_map_there():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    image, target = images(1)
    _, similarity = skimage_ssim(image[0], target[0], full=True)
    for mask, columns in ((left_half(1, 40, 33), slice(5, 16)), (1 - left_half(1, 40, 33), slice(16, -5))):
        assert float(ssim(image, target, mask)) == pytest.approx(similarity[:, 5:-5, columns].mean(), abs=1e-5)


def test_ssim_of_flat_images_is_its_luminance_term_on_the_unit_range():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    flat = torch.zeros(1, 3, 16, 16)  # 0.5 and 0.75 in [0, 1]
    expected = (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4)
    assert float(ssim(flat.double(), flat.double() + 0.5)) == pytest.approx(expected, abs=1e-10)
    assert float(ssim(flat, flat + 0.5)) == pytest.approx(
        expected, abs=1e-3
    )  # the variance of nothing is rounding error


def test_ssim_needs_room_for_its_window():
    image, target = images(height=11, width=11)
    with pytest.raises(InvalidInputError, match=r"\(11, 10\) pixels; SSIM's window needs 11"):
        ssim(image[..., 1:], target[..., 1:])


def reference_ms_ssim(image: torch.Tensor, target: torch.Tensor, scales: int) -> float:
    """The documented formula for one image, written with scipy's filter in float64."""
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    x, y = ((tensor.double().numpy() + 1) / 2 for tensor in (image, target))
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]

    def smooth(array):
        return gaussian_filter(array, 1.5, mode="mirror", truncate=3.5, axes=(1, 2))

    terms = []
    for scale in range(scales):
        mean_x, mean_y = smooth(x), smooth(y)
        variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
        term = (2 * (smooth(x * y) - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
        if scale == scales - 1:
            term *= (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        terms.append(term[:, 5:-5, 5:-5].mean(axis=(1, 2)))
        x, y = (a[:, : a.shape[1] // 2 * 2, : a.shape[2] // 2 * 2] for a in (x, y))
        x, y = (a.reshape(3, a.shape[1] // 2, 2, a.shape[2] // 2, 2).mean(axis=(2, 4)) for a in (x, y))
    powers = (weights / weights.sum())[:, None]
    return float(np.prod(np.maximum(terms, 0) ** powers, axis=0).mean())


@pytest.mark.parametrize(
    ("height", "width", "scales"), [(176, 180, 5), (120, 99, 4), (88, 95, 4), (44, 60, 3), (22, 22, 2)]
)
def test_ms_ssim_follows_its_formula_at_every_number_of_scales(height, width, scales):
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    image, target = images(1, height, width)
    assert ms_ssim_scales(min(height, width)) == scales
    expected = reference_ms_ssim(image[0], target[0], scales)
    assert 0.1 < expected < 0.995
    assert float(ms_ssim(image, target)) == pytest.approx(expected, abs=2e-5)
    assert float(ms_ssim(target, target)) == pytest.approx(1.0, abs=1e-6)


def test_ms_ssim_is_one_value_for_each_image():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    image, target = images(3, 44, 44)
    alone = torch.cat([ms_ssim(image[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ms_ssim(image, target), alone)
    assert bool((alone.diff() < 0).all()), "more noise, less similar"


def test_ms_ssim_scales_at_the_edges():
    sizes = (11, 21, 22, 43, 44, 87, 88, 128, 175, 176, 256, 1024)
    assert [ms_ssim_scales(size) for size in sizes] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5]
    with pytest.raises(InvalidInputError, match="10 pixels; MS-SSIM needs 11"):
        ms_ssim_scales(10)


def test_ms_ssim_of_the_smallest_images_is_their_ssim():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    image, target = images(2, 12, 11)
    torch.testing.assert_close(ms_ssim(image, target), ssim(image, target))


def test_ms_ssim_of_opposite_images_is_zero():
    pytest.importorskip("torchmetrics", reason=NEEDS_TORCHMETRICS)
    _, target = images(1, 44, 44)
    assert float(ssim(-target, target)) < 0
    assert float(ms_ssim(-target, target)) == 0.0


def test_missing_torchmetrics_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for measure in (ssim, ms_ssim):
        with pytest.raises(MissingPackageError, match="pip install torchmetrics"):
            measure(*images())


# Masks and borders


def test_mask_iou_counts_pixels():
    mask, truth = torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 4, 4)
    mask[0, :, :2], truth[0, :, 1:3] = 1, 1  # 4 shared of 12
    mask[1], truth[1] = 0.5, 1  # at the threshold is in
    mask[2, :, 0], truth[2, :, 3] = 1, 1  # apart
    torch.testing.assert_close(mask_iou(mask, truth), torch.tensor([1 / 3, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(mask_iou(mask, truth, threshold=0.6), torch.tensor([1 / 3, 0.0, 0.0, 1.0]))
    with pytest.raises(InvalidInputError, match="the same shape"):
        mask_iou(mask, truth[:1])
    with pytest.raises(InvalidInputError, match="threshold is 0"):
        mask_iou(mask, truth, threshold=0)
    with pytest.raises(InvalidInputError, match="truth ranges from 0 to 255"):
        mask_iou(mask, truth * 255)


def test_out_of_domain_area_is_a_fraction():
    mask = torch.zeros(2, 1, 4, 5)
    mask[0, :, 0] = 1
    mask[1, :, :, 0] = 0.5
    torch.testing.assert_close(out_of_domain_area(mask), torch.tensor([0.25, 0.1]))
    with pytest.raises(InvalidInputError, match="ranges from 0 to 2"):
        out_of_domain_area(mask * 2)


def test_border_crop_leaves_out_each_side():
    picture = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(border_crop(picture, 2), torch.tensor([[[[14.0, 15.0]]]]))
    assert torch.equal(border_crop(picture, 0), picture)
    for pixels in (-1, 3):
        with pytest.raises(
            InvalidInputError, match=f"Cannot cut {pixels} pixels from each side of 5x6; expected 0 to 2"
        ):
            border_crop(picture, pixels)


# Frechet distance


def features(rows: int, dimensions: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64)
    return scale * torch.randn(rows, dimensions, generator=random, dtype=torch.float64) @ mixing + shift


def with_moments(mean: list[float], deviations: list[float]) -> torch.Tensor:
    """Rows with exactly this mean and a diagonal covariance: each axis alone moves by the same step, both ways."""
    dimensions = len(mean)
    step = torch.diag(torch.tensor(deviations, dtype=torch.float64)) * math.sqrt((2 * dimensions - 1) / 2)
    return torch.cat([step, -step]) + torch.tensor(mean, dtype=torch.float64)


def test_frechet_distance_of_diagonal_gaussians_in_closed_form():
    first, second = with_moments([0.0, 1.0, -2.0], [1.0, 2.0, 0.5]), with_moments([3.0, 1.0, 2.0], [2.0, 0.5, 0.0])
    # |mean difference|^2 = 9 + 0 + 16; standard deviations differ by 1, 1.5 and 0.5
    assert frechet_distance(first, second) == pytest.approx(25 + 1 + 2.25 + 0.25, rel=1e-12)


def test_frechet_distance_agrees_with_the_usual_formulas():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = features(200, 12, 0), features(150, 12, 1, scale=1.3, shift=0.5)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (first, second)]
    difference = ((first.mean(0) - second.mean(0)) ** 2).sum()
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float(difference) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    compute = pytest.importorskip("torchmetrics.image.fid", reason=NEEDS_TORCHMETRICS)._compute_fid
    by_torchmetrics = compute(first.mean(0), first.T.cov(), second.mean(0), second.T.cov())
    assert frechet_distance(first, second) == pytest.approx(float(by_torchmetrics), rel=1e-9)


def test_frechet_distance_is_symmetric_and_zero_for_equal_sets():
    first, second = features(200, 12, 0), features(150, 12, 1, shift=0.5)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-12)
    assert frechet_distance(first, first.clone()) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(first, first + 2.0) == pytest.approx(12 * 4.0, rel=1e-12)


def test_frechet_distance_with_fewer_rows_than_dimensions():
    """Rotated into more dimensions nothing changes, though covariances become singular."""
    first, second = features(9, 4, 0), features(7, 4, 1, shift=1.0)
    random = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=random, dtype=torch.float64)).Q[:4]
    expected = frechet_distance(first, second)
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(expected, rel=1e-10)
    apart = torch.linalg.qr(torch.randn(64, 64, generator=random, dtype=torch.float64)).Q
    left, right = first @ apart[:4], second @ apart[4:8]  # nothing shared: the last trace of the formula is 0
    expected = float((left.mean(0) - right.mean(0)).square().sum() + left.T.cov().trace() + right.T.cov().trace())
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-12)
    wide = features(5, 64, 4)
    assert frechet_distance(wide, wide.clone()) == pytest.approx(0, abs=1e-9 * float(wide.T.cov().trace()))
    flat = torch.zeros(3, 4, dtype=torch.float64)
    assert frechet_distance(flat, first) == pytest.approx(float(first.mean(0).square().sum() + first.T.cov().trace()))
    assert frechet_distance(flat, flat + 1) == pytest.approx(4.0)


def test_moments_of_batches_are_those_of_the_whole():
    whole = features(101, 6, 0) + 1e6  # sums of squares would lose the spread under such a mean
    streamed = Moments()
    for batch in whole.split(8):
        streamed.update(batch)
    assert streamed.count == 101
    torch.testing.assert_close(streamed.mean, whole.mean(0))
    torch.testing.assert_close(streamed.covariance, whole.T.cov(), rtol=1e-8, atol=1e-8)
    halves = [Moments(), Moments(), Moments()]
    halves[0].update(whole[:40])
    halves[1].update(whole[40:])
    halves[0].merge(halves[1])
    halves[0].merge(halves[2])  # saw nothing
    torch.testing.assert_close(halves[0].covariance, streamed.covariance)
    other = features(50, 6, 1)
    # 1e6 squared leaves 4 digits behind the point
    assert frechet_distance(streamed, other) == pytest.approx(frechet_distance(whole, other), abs=1e-2)


def test_single_precision_features_are_summed_in_double():
    first, second = features(100, 8, 0).float(), features(100, 8, 1).float()
    assert frechet_distance(first, second) == pytest.approx(
        frechet_distance(first.double(), second.double()), rel=1e-12
    )


def test_unfit_features_are_named():
    first = features(20, 4, 0)
    with pytest.raises(InvalidInputError, match="4 and 3 dimensions"):
        frechet_distance(first, first[:, :3])
    with pytest.raises(InvalidInputError, match="1 rows; a covariance needs 2"):
        frechet_distance(first, first[:1])
    with pytest.raises(InvalidInputError, match="0 rows"):
        frechet_distance(first, Moments())
    with pytest.raises(InvalidInputError, match=r"\(20,\); expected floats \[N, D\]"):
        frechet_distance(first[:, 0], first)
    with pytest.raises(InvalidInputError, match="int64"):
        frechet_distance(first.long(), first)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        frechet_distance(first / 0, first)
    moments = Moments()
    moments.update(first)
    with pytest.raises(InvalidInputError, match="3 dimensions do not join those of 4"):
        moments.update(first[:, :3])


# Identity


def test_verification_auc_by_brute_force_with_ties():
    random = torch.Generator().manual_seed(0)
    same = (torch.rand(40, generator=random) * 10 + 2).round() / 10
    different = (torch.rand(60, generator=random) * 10).round() / 10
    pairs = [(a > b) + 0.5 * (a == b) for a in same.tolist() for b in different.tolist()]
    expected = sum(pairs) / len(pairs)
    assert 0.5 < expected < 0.9
    assert verification_auc(same, different) == pytest.approx(expected, abs=1e-12)
    assert verification_auc(different.tolist(), same.tolist()) == pytest.approx(1 - expected, abs=1e-12)


def test_verification_auc_at_its_ends():
    assert verification_auc([0.9, 0.8], [0.1, 0.2, 0.3]) == 1.0
    assert verification_auc([0.1], [0.8, 0.9]) == 0.0
    assert verification_auc([0.5, 0.5], [0.5]) == 0.5
    with pytest.raises(InvalidInputError, match="no values"):
        verification_auc([], [0.1])
    with pytest.raises(InvalidInputError, match="1 of 2 values are NaN"):
        verification_auc([0.1, math.nan], [0.1])


# Intervals


def test_bootstrap_interval_agrees_with_scipy():
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    values = torch.randn(24, generator=torch.Generator().manual_seed(0)).exp()
    for level in (0.8, 0.95):
        found = bootstrap_interval(values, seed=1, level=level)
        expected = bootstrap(
            (values.numpy(),), np.mean, confidence_level=level, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        width = expected.high - expected.low
        assert found.mean == pytest.approx(float(values.mean()), rel=1e-6)
        assert found.low == pytest.approx(expected.low, abs=0.04 * float(width))
        assert found.high == pytest.approx(expected.high, abs=0.04 * float(width))


def test_bootstrap_interval_is_the_same_for_the_same_seed_and_covers_many_values():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values.tolist(), seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    found = bootstrap_interval(values)
    standard_error = float(values.std()) / math.sqrt(300)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_bootstrap_interval_of_special_values():
    assert bootstrap_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    mean, low, high = bootstrap_interval([2.5])
    assert mean == 2.5 and math.isnan(low) and math.isnan(high)
    mean, low, high = bootstrap_interval([30.0] * 23 + [math.inf])
    assert (mean, low, high) == (math.inf, 30.0, math.inf)
    with pytest.raises(InvalidInputError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(InvalidInputError, match="1 of 3 values are NaN"):
        bootstrap_interval([1.0, math.nan, 2.0])
    with pytest.raises(InvalidInputError, match="level=95"):
        bootstrap_interval([1.0, 2.0], level=95)


# Time and memory


def test_stopwatch_takes_the_time_of_its_block():
    with Stopwatch() as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 5
    with pytest.raises(ZeroDivisionError), Stopwatch() as watch:
        _ = 1 / 0
    assert 0 <= watch.seconds < 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak resident set")
def test_stopwatch_sees_memory_that_is_used():
    import resource

    peak = peak_memory()
    assert peak is not None and peak > 30 * 2**20, "an interpreter with torch takes more"
    unit = 1 if sys.platform == "darwin" else 1024
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    current = _resident_bytes()
    headroom = max(0, peak - current) if current else 0
    size = headroom + 64 * 2**20
    with Stopwatch() as watch:
        block = np.ones(size, dtype=np.uint8)
    assert watch.peak_bytes is not None and watch.peak_bytes >= 48 * 2**20
    assert block[-1] == 1
    with Stopwatch() as quiet:
        pass
    assert quiet.peak_bytes is not None and quiet.peak_bytes < 2**20


def _resident_bytes() -> int:
    """What is resident now, on Linux; elsewhere 0."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def test_stopwatch_waits_for_cuda_and_reads_its_counter(monkeypatch):
    """The order of calls, on any machine."""
    calls: list[str] = []
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda found: calls.append(f"wait {found}"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda found: calls.append(f"reset {found}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda found: 12345)
    with Stopwatch(device) as watch:
        calls.append("work")
    assert calls == ["wait cuda:0", "reset cuda:0", "work", "wait cuda:0"]
    assert watch.peak_bytes == 12345


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_stopwatch_and_measures_on_cuda():
    with Stopwatch("cuda") as watch:
        torch.ones(1 << 20, device="cuda")
    assert watch.peak_bytes is not None and watch.peak_bytes >= 4 << 20
    image, target = images(height=64, width=64)
    for measure in (mse, psnr, ssim, ms_ssim):
        torch.testing.assert_close(measure(image.cuda(), target.cuda()).cpu(), measure(image, target))
    torch.testing.assert_close(mse(image.cuda(), target), mse(image, target).cuda())
    assert frechet_distance(image.cuda().flatten(1), target.flatten(1)) > 0


def test_devices_without_a_counter_say_so():
    assert peak_memory("meta") is None
