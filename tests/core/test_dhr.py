"""DHR: where a generator can draw a photograph, and what is learned where."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gan_inversion.core import dhr
from gan_inversion.core.dhr import (
    CALIBRATIONS,
    OFFICIAL,
    Calibration,
    DhrConfig,
    Segmentation,
    feature_block,
    refine,
    segment,
)
from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureOverride, PixelBlend, WeightOffset
from gan_inversion.core.parsing import CLASSES, LAPA_CLASSES

from .test_refinement import SIDE, SMILE, corner, distance, drawn, error, inverted, tiny_generator

QUICK = DhrConfig(steps=8, weight_steps=8, weight_learning_rate=1e-2, scale_rate=False)
WHOLE = torch.ones(1, 1, SIDE, SIDE)


def refined(inversion, mask=None, **settings):
    """The inversion, and its weight offset and feature override, None where there is none."""
    mask = corner() if mask is None else mask
    found = refine(inversion, distance(), dataclasses.replace(QUICK, **settings), out_of_domain=mask).inversion
    kinds = {type(m): m for m in found.modulations}
    assert len(kinds) == len(found.modulations)
    return found, kinds.get(WeightOffset), kinds.get(FeatureOverride)


def test_the_error_falls_inside_and_outside_the_mask():
    inversion = inverted()
    found, _, features = refined(inversion)
    for region in (corner(), 1 - corner()):
        assert error(found, region) < 0.7 * error(inversion, region)
    assert features.resolution == 16 and set(features.in_domain.unique().tolist()) == {0.0, 1.0}


def test_in_domain_is_soft_where_the_outline_crosses_a_cell():
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., :5, :4] = 0.6  # split at a half
    mask[..., 20:, :] = 0.4
    features = refined(inverted(), mask, steps=1)[2]
    expected = torch.ones(16, 16)
    expected[:2, :2], expected[2, :2] = 0, 0.5
    assert torch.equal(features.in_domain[0, 0], expected)


def test_weights_stay_where_everything_is_out_of_domain():
    inversion = inverted()
    found, weights, features = refined(inversion, WHOLE)
    assert not weights.offsets and features is not None
    assert error(found) < 0.7 * error(inversion)


def test_no_features_are_overridden_where_everything_is_in_domain():
    inversion = inverted()
    mask = torch.zeros(1, 1, SIDE, SIDE)
    found, weights, features = refined(inversion, mask)
    assert weights.offsets and features is None
    assert error(found) < 0.7 * error(inversion)
    config = dataclasses.replace(QUICK, steps=50, weight_steps=2)
    assert refine(inversion, distance(), config, out_of_domain=mask).steps == (2,)  # nothing moves afterwards


@pytest.mark.parametrize("inside", [True, False])
def test_each_part_learns_from_its_own_pixels_only(inside):
    """Two photographs that differ in one region, compared by pixels, after one step."""
    first = inverted()
    region = corner() if inside else 1 - corner()
    other = dataclasses.replace(first, image=torch.where(region > 0, first.image.flip(1), first.image))
    settings = {"perceptual_weight": 0.0, "steps": 1, "weight_learning_rate": 1e-4, "feature_learning_rate": 1e-3}
    (_, weights, features), (_, other_weights, other_features) = (refined(i, **settings) for i in (first, other))
    same_weights = all(torch.equal(t, other_weights.offsets[n]) for n, t in weights.offsets.items())
    assert weights.offsets and same_weights == inside
    assert torch.equal(features.features, other_features.features) != inside


def test_weights_stop_after_their_steps():
    inversion = inverted()
    short, long, longest = (
        refined(inversion, steps=steps, weight_steps=weight_steps, feature_learning_rate=1e-3)[1].offsets
        for steps, weight_steps in ((2, 2), (6, 2), (6, 6))
    )
    assert all(torch.equal(t, long[name]) for name, t in short.items()) and short.keys() == long.keys()
    assert not torch.equal(long["b16.conv1.weight"], longest["b16.conv1.weight"])
    assert not refined(inversion, weight_steps=0)[1].offsets


def test_the_best_step_is_kept():
    """A rate that throws everything off leaves the start, which was better."""
    inversion = inverted()
    found, weights, features = refined(inversion, weight_learning_rate=1.0, feature_learning_rate=30.0)
    assert not weights.offsets
    torch.testing.assert_close(drawn(found), drawn(inversion), atol=5e-3, rtol=0)


def test_kept_pixels_are_exact_also_under_an_edit():
    inversion = inverted()
    plain = refined(inversion)[0]
    found = refined(inversion, keep_pixels=True)[0]
    mask = corner().bool().expand(1, 3, -1, -1)
    assert isinstance(found.modulations[-1], PixelBlend)
    for edit in (None, SMILE):
        assert torch.equal(drawn(found, edit)[mask], inversion.image[mask])
        torch.testing.assert_close(drawn(found, edit)[~mask], drawn(plain, edit)[~mask])
    assert not torch.equal(drawn(plain)[mask], inversion.image[mask])


def test_a_batch_where_only_some_have_something_out_of_domain():
    inversion = inverted(2)
    masks = torch.cat([torch.zeros_like(corner()), corner()])
    config = dataclasses.replace(QUICK, steps=3, weight_steps=3, keep_pixels=True)
    for order in ([0, 1], [1, 0]):
        found = refine(inversion, distance(), config, out_of_domain=masks[order]).inversion
        assert [type(m) for m in found.modulations] == [WeightOffset, FeatureOverride, PixelBlend]
        alone = [
            refine(inversion[i], distance(), config, out_of_domain=masks[[n]]).inversion for i, n in enumerate(order)
        ]
        torch.testing.assert_close(drawn(found), torch.cat([drawn(one) for one in alone]))


def test_masks_of_other_forms_are_fitted():
    inversion = inverted(2)
    config = dataclasses.replace(QUICK, steps=1)
    for mask in (
        corner()[0, 0],
        corner()[0],
        corner().bool(),
        corner().repeat_interleave(2, 2).repeat_interleave(2, 3),
    ):
        found = refine(inversion, distance(), config, out_of_domain=mask)
        assert torch.equal((found.out_of_domain >= 0.5).float(), corner().expand(2, -1, -1, -1))


def test_wrong_masks_and_places_are_named():
    inversion = inverted()
    for mask, message in (
        (torch.zeros(3, 1, SIDE, SIDE), "3 masks for 1 images"),
        (torch.zeros(1, 2, SIDE, SIDE), "mask"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            refine(inversion, distance(), QUICK, out_of_domain=mask)
    with pytest.raises(InvalidInputError, match="merge 'add': expected one of union"):
        refine(inversion, distance(), QUICK, out_of_domain=corner(), merge="add")
    for resolution in (32, 64, 5):
        config = dataclasses.replace(QUICK, feature_resolution=resolution)
        with pytest.raises(InvalidInputError, match=rf"feature_resolution {resolution}: .*one of 4, 8, 16\."):
            refine(inversion, distance(), config, out_of_domain=corner())


def test_any_earlier_block_can_be_overridden():
    inversion = inverted()
    found, _, features = refined(inversion, feature_resolution=8)
    assert features.resolution == 8 and features.features.shape == (1, 12, 8, 8)
    assert error(found) < error(inversion)


def test_the_usual_block_follows_the_size():
    def tiny(resolution):
        return Generator(GeneratorConfig(resolution, (1,) * (int(math.log2(resolution)) - 1), 4, 4, 1))

    assert [feature_block(tiny(side)) for side in (8, 32, 64, 128, 256, 512, 1024)] == [4, 16, 32, 64, 64, 64, 128]


def test_masks_are_merged_with_the_segmentation(monkeypatch):
    calls = []
    own = torch.zeros(1, 1, SIDE, SIDE)
    own[..., :16] = 1
    painted = torch.zeros(1, 1, SIDE, SIDE)
    painted[..., :16, :] = 1

    def fake(image, generator, measure, config, *, parser, progress):
        for step in range(config.coarse_steps if progress is not None else 0):
            progress(step + 1, config.coarse_steps, None)
        calls.append((measure, parser))
        return Segmentation(own, own, own[:, 0].long(), image)

    monkeypatch.setattr(dhr, "segment", fake)
    config = dataclasses.replace(QUICK, steps=1, coarse_steps=2)
    first, second, inversion = distance(), distance(), inverted()
    expected = {
        "union": torch.maximum(own, painted),
        "intersect": own * painted,
        "subtract": own * (1 - painted),
        "replace": painted,
    }
    for merge, mask in expected.items():
        counted: list[tuple] = []

        def progress(*call, counted=counted):
            counted.append(call[:2])

        found = refine(inversion, first, config, out_of_domain=painted, merge=merge, progress=progress)
        assert torch.equal(found.out_of_domain, mask)
        total = 1 if merge == "replace" else 3
        assert counted == [(n, total) for n in range(1, total + 1)] and found.steps == (1,)
    assert calls == [(first, None)] * 3
    assert torch.equal(refine(inversion, first, config, segment_distance=second, parser="p").out_of_domain, own)
    assert calls[-1] == (second, "p")


# --- segmentation ----------------------------------------------------------------------------------------------------

COARSE = DhrConfig(coarse_steps=15, segments=36, compactness=5.0, threshold=0.05)
# A network of random weights sees little: pixels have to help it.
CLEAR = dataclasses.replace(COARSE, calibration=Calibration(1.0, 0.3, 2.0, 1.3), threshold=0.7)
SQUARE = (slice(8, 20), slice(14, 26))


@pytest.fixture(scope="module")
def covered():
    """A generated picture with a bright square on it."""
    pytest.importorskip("skimage")
    generator = tiny_generator()
    with torch.no_grad():
        code = generator.truncate(generator.broadcast(generator.sample_w(1, 8)), 0.3)
        image = generator.synthesis(code).clamp(-1, 1)
    image[..., SQUARE[0], SQUARE[1]] = torch.tensor([1.0, 0.95, 1.0]).view(3, 1, 1)
    return image


@pytest.fixture(scope="module")
def found(covered):
    return segment(covered, tiny_generator(), distance(), CLEAR)


def test_what_does_not_belong_is_found(covered, found):
    truth = torch.zeros(1, 1, SIDE, SIDE)
    truth[..., SQUARE[0], SQUARE[1]] = 1
    outside = found.out_of_domain
    both = (outside * truth).sum()
    union = torch.maximum(outside, truth).sum()
    chance = truth.mean() * outside.mean() / (truth.mean() + outside.mean() - truth.mean() * outside.mean())
    assert both / union > 0.5 > 3 * chance
    assert found.score.shape == (1, 1, SIDE, SIDE) and found.superpixels.shape == (1, SIDE, SIDE)
    assert found.coarse.shape == covered.shape and not found.coarse.requires_grad and found.parsing is None


def test_the_score_is_one_number_for_each_superpixel(found):
    for label in found.superpixels.unique():
        assert len(found.score[found.superpixels[:, None] == label].unique()) == 1
    assert torch.equal(found.out_of_domain, (found.score >= 0.7).float())


def test_a_lower_threshold_takes_more_out(covered):
    levels = [0.0, 0.01, 0.03, 0.06, 0.12, 10.0]
    config = dataclasses.replace(COARSE, coarse_steps=5)
    masks = [
        segment(covered, tiny_generator(), distance(), dataclasses.replace(config, threshold=level)).out_of_domain
        for level in levels
    ]
    assert masks[0].mean() == 1 and masks[-1].mean() == 0
    assert all(bool((lower >= higher).all()) for lower, higher in zip(masks, masks[1:], strict=False))
    assert len({float(mask.mean()) for mask in masks}) >= 4


def test_the_coarse_inversion_comes_closer_and_follows_the_seed(covered, found):
    rough = segment(covered, tiny_generator(), distance(), dataclasses.replace(CLEAR, coarse_steps=1))
    start, end = (float((s.coarse - covered).abs().mean()) for s in (rough, found))
    assert end < 0.9 * start
    short = dataclasses.replace(COARSE, coarse_steps=3, segments=4)
    first, again, other = (
        segment(covered, tiny_generator(), distance(), dataclasses.replace(short, seed=seed)).coarse
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


class FixedParser:
    """A face parser that sees the same in every picture: the left half is one class, the right half another."""

    def __init__(self, left: str, right: str, classes: tuple[str, ...] = CLASSES) -> None:
        self.left, self.right, self.classes = left, right, classes

    def __call__(self, image):
        logits = torch.zeros(len(image), len(self.classes), *image.shape[2:])
        logits[:, self.classes.index(self.left), :, : SIDE // 2] = 9.0
        logits[:, self.classes.index(self.right), :, SIDE // 2 :] = 9.0
        return logits


def halves(covered, parser, **settings):
    """Mean of the mask left and right of the middle, where the score says nothing against either."""
    config = dataclasses.replace(COARSE, coarse_steps=1, **{"threshold": 99.0, "part_thresholds": {}, **settings})
    mask = segment(covered, tiny_generator(), distance(), config, parser=parser).out_of_domain
    return float(mask[..., :12].mean()), float(mask[..., -12:].mean())


@pytest.mark.parametrize("part", ["background", "cloth", "hat", "earring", "necklace"])
def test_parts_that_are_no_face_are_out(covered, part):
    assert halves(covered, FixedParser(part, "skin")) == (1.0, 0.0)
    assert halves(covered, FixedParser("glasses", part)) == (0.0, 1.0)


def test_faces_are_in_and_superpixels_still_have_a_say(covered):
    assert halves(covered, FixedParser("hair", "neck")) == (0.0, 0.0)
    assert halves(covered, FixedParser("hair", "neck"), threshold=0.0) == (1.0, 1.0)


def test_a_parser_that_knows_fewer_parts_will_do(covered):
    assert halves(covered, FixedParser("background", "skin", LAPA_CLASSES)) == (1.0, 0.0)


def test_the_part_a_superpixel_lies_in_chooses_its_threshold(covered):
    parser = FixedParser("skin", "nose")
    config = {"segments": 64, "threshold": 0.0, "compactness": 1000.0}  # small squares: hardly any crosses the middle
    assert halves(covered, parser, **config, part_thresholds={"skin": 99.0}) == (0.0, 1.0)
    assert halves(covered, parser, **config, part_thresholds={"nose": 99.0}) == (1.0, 0.0)
    assert halves(covered, parser, threshold=99.0, part_thresholds={"hair": 0.0}) == (0.0, 0.0)


def test_a_distance_is_calibrated_by_its_name(covered):
    config = dataclasses.replace(COARSE, coarse_steps=1, best_coarse=False)  # the mean code, whatever the weights
    measure = distance()
    measure.name = "portraits-perceptual"
    own, official, scaled, pixels = (
        segment(covered, tiny_generator(), measure, dataclasses.replace(config, calibration=calibration)).score
        for calibration in (None, OFFICIAL, Calibration(score_scale=2.0), Calibration(score_pixel_weight=1.0))
    )
    unnamed = segment(covered, tiny_generator(), distance(), config).score
    torch.testing.assert_close(official, unnamed)
    torch.testing.assert_close(scaled, official / 2)
    assert bool((pixels > official).all())
    usual = CALIBRATIONS["portraits-perceptual"]
    torch.testing.assert_close(own, (official + usual.score_pixel_weight * (pixels - official)) / usual.score_scale)


def test_calibrations_of_the_coarse_code_reach_it(covered):
    config = dataclasses.replace(COARSE, coarse_steps=10, segments=4)
    generator = tiny_generator()
    mean = generator.synthesis(generator.broadcast(generator.sample_w(1000).mean(dim=0)[None])).detach()
    plain, pixels, held = (
        segment(covered, generator, distance(), dataclasses.replace(config, calibration=calibration)).coarse
        for calibration in (OFFICIAL, Calibration(coarse_pixel_weight=5.0), Calibration(coarse_mean_weight=100.0))
    )
    assert (pixels - covered).abs().mean() < (plain - covered).abs().mean()
    assert (held - mean).abs().mean() < (plain - mean).abs().mean()


def test_wrong_photographs_are_named():
    with pytest.raises(InvalidInputError, match="32, 32"):
        segment(torch.zeros(1, 3, 16, 16), tiny_generator(), distance(), COARSE)
    with pytest.raises(NotFiniteError, match="image to project is not finite"):
        segment(torch.full((1, 3, SIDE, SIDE), float("nan")), tiny_generator(), distance(), COARSE)


def test_pictures_of_a_batch_are_segmented_each_for_itself(covered):
    config = dataclasses.replace(COARSE, coarse_steps=1, best_coarse=False)
    both = segment(torch.cat([covered, covered.flip(3)]), tiny_generator(), distance(), config)
    assert both.out_of_domain.shape == (2, 1, SIDE, SIDE) and both.superpixels.shape == (2, SIDE, SIDE)
    for index in range(2):
        for label in both.superpixels[index].unique():
            assert len(both.score[index, 0][both.superpixels[index] == label].unique()) == 1


# --- settings --------------------------------------------------------------------------------------------------------


def test_official_settings_undo_each_deviation(covered):
    assert DhrConfig.official() == DhrConfig(
        bgr_superpixels=True, best_coarse=False, calibration=OFFICIAL, scale_rate=False
    )
    tinted = (0.3 * covered + torch.linspace(-0.7, 0.7, SIDE) * torch.tensor([1.0, 0.0, -0.3]).view(3, 1, 1)).clamp(
        -1, 1
    )
    config = dataclasses.replace(COARSE, coarse_steps=1)
    rgb, bgr = (
        segment(tinted, tiny_generator(), distance(), dataclasses.replace(config, bgr_superpixels=value)).superpixels
        for value in (False, True)
    )
    assert not torch.equal(rgb, bgr)
    hasty = dataclasses.replace(COARSE, coarse_steps=4, coarse_learning_rate=30.0, coarse_exploration=0.0, segments=4)
    best, last = (
        segment(covered, tiny_generator(), distance(), dataclasses.replace(hasty, best_coarse=value)).coarse
        for value in (True, False)
    )
    assert float(distance()(best, covered)) < float(distance()(last, covered))


def test_the_paper_has_one_threshold():
    config = DhrConfig.paper(0.45)
    assert config.threshold == 0.45 and not config.part_thresholds
    usual = DhrConfig().part_thresholds
    assert usual["skin"] == 0.7 and usual["nose"] == usual["left-eye"] == 0.8
    assert set(usual) <= set(CLASSES) and not {"hair", "neck", "glasses", "hat", "background"} & set(usual)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coarse_steps", 0),
        ("steps", 0),
        ("weight_steps", -1),
        ("segments", 0),
        ("preview_every", 0),
        ("coarse_learning_rate", 0.0),
        ("coarse_exploration", -0.1),
        ("compactness", 0.0),
        ("sigma", float("nan")),
        ("feature_learning_rate", float("nan")),
        ("weight_learning_rate", -1.0),
        ("threshold", float("inf")),
        ("perceptual_weight", -1.0),
        ("pixel_weight", float("nan")),
        ("seconds", -1.0),
    ],
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(InvalidInputError, match=rf"^{name} .*expected"):
        DhrConfig(**{name: value})


def test_a_wrong_threshold_of_a_part_is_named():
    with pytest.raises(InvalidInputError, match=r"part_thresholds\['skin'\] nan"):
        DhrConfig(part_thresholds={"skin": float("nan")})
