"""PTI and near-perfect inversion: what stops them, what holds the generator in place, what each term does."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from gan_inversion.core import tuning
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError
from gan_inversion.core.inversion import Inversion, WeightOffset, render
from gan_inversion.core.refinement import rate_scale
from gan_inversion.core.tuning import (
    STOP_SCALES,
    NearPerfectConfig,
    PtiConfig,
    laplacian_distance,
    laplacian_pyramid,
    near_perfect,
    pyramid_up,
    tune,
)

from .test_refinement import SIDE, distance, drawn, error, inverted, random, tiny_discriminator, tiny_generator

PTI = PtiConfig(steps=8, learning_rate=1e-2, scale_rate=False, stop_at=None)
NEAR = NearPerfectConfig(
    steps=3, learning_rate=5e-3, discriminator_learning_rate=2e-3, stand_ins=2, local_probability=1.0,
    recon_weight=1.0, local_adversarial_weight=0.1, global_weight=1.0, adversarial_every=1, norm=1, level_ratio=1.0,
    momentum=0.0, batch=2, r1_gamma=1.0, r1_every=2,
)  # fmt: skip


def offsets_of(found) -> dict[str, torch.Tensor]:
    assert isinstance(found.inversion.modulations[-1], WeightOffset)
    return found.inversion.modulations[-1].offsets


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


# --- PTI -------------------------------------------------------------------------------------------------------------


def test_tuning_comes_closer():
    inversion = inverted()
    found = tune(inversion, distance(), PTI)
    assert error(found.inversion) < 0.6 * error(inversion) and found.steps == (8,)
    assert found.inversion.info["refinement distance"] == "trunk" and found.out_of_domain is None


def test_a_picture_that_is_close_enough_is_left_alone():
    inversion = inverted()
    calls = []
    config = dataclasses.replace(PTI, stop_at=1e6)
    found = tune(inversion, distance(), config, progress=lambda *call: calls.append(call))
    assert not offsets_of(found) and found.steps == (1,) and [c[:2] for c in calls] == [(1, 8)]
    assert torch.equal(drawn(found.inversion), drawn(inversion))


def test_the_threshold_is_tested_before_the_update():
    """What is drawn at step k is the work of k - 1 updates: with it below the threshold, step k changes nothing."""
    inversion, measure = inverted(), distance()
    seen = []
    config = dataclasses.replace(PTI, preview_every=1)
    tune(inversion, measure, config, progress=lambda *call: seen.append(float(measure(call[2], inversion.image))))
    assert seen[4] < min(seen[:4])
    stopped = tune(inversion, measure, dataclasses.replace(config, stop_at=seen[4] * (1 + 1e-5)))
    assert stopped.steps == (5,)
    torch.testing.assert_close(float(measure(drawn(stopped.inversion), inversion.image)), seen[4], atol=2e-4, rtol=1e-3)
    assert same(offsets_of(stopped), offsets_of(tune(inversion, measure, dataclasses.replace(PTI, steps=4))))
    assert tune(inversion, measure, dataclasses.replace(config, stop_at=0.9 * min(seen))).steps == (8,)


def test_the_threshold_is_scaled_to_the_distance():
    inversion, measure = inverted(), distance()
    now = float(measure(drawn(inversion), inversion.image))
    for scale, steps in ((1.1 * now, 1), (1e-3 * now, 8)):
        assert tune(inversion, measure, dataclasses.replace(PTI, stop_at=1.0, stop_scale=scale)).steps == (steps,)
    measure.name = "portraits-perceptual"
    for factor, steps in ((1.1, 1), (1e-3, 8)):
        config = dataclasses.replace(PTI, stop_at=factor * now / STOP_SCALES[measure.name])
        assert tune(inversion, measure, config).steps == (steps,)


def test_the_best_step_is_kept():
    inversion = inverted()
    found = tune(inversion, distance(), dataclasses.replace(PTI, learning_rate=3.0, steps=3))
    assert not offsets_of(found)


@pytest.mark.parametrize("term", ["pixel_weight", "perceptual_weight"])
def test_each_term_of_pti_counts(term):
    inversion = inverted()
    without = tune(inversion, distance(), dataclasses.replace(PTI, steps=2, **{term: 0.0}))
    assert not same(offsets_of(without), offsets_of(tune(inversion, distance(), dataclasses.replace(PTI, steps=2))))


def test_rates_grow_for_narrow_generators():
    inversion = inverted()
    assert rate_scale(inversion.generator) == pytest.approx((512 / 12) ** 0.5)
    scaled = tune(inversion, distance(), dataclasses.replace(PTI, steps=2, learning_rate=1e-3, scale_rate=True))
    rate = 1e-3 * rate_scale(inversion.generator)
    plain = tune(inversion, distance(), dataclasses.replace(PTI, steps=2, learning_rate=rate))
    assert same(offsets_of(scaled), offsets_of(plain))


def test_without_any_term_nothing_moves():
    found = tune(inverted(), distance(), dataclasses.replace(PTI, pixel_weight=0.0, perceptual_weight=0.0))
    assert not offsets_of(found)


@torch.no_grad()
def drift(found, inversion, radius: float = 2.0) -> float:
    """How much the tuned generator's pictures of codes near the pivot differ from the untuned one's."""
    generator = inversion.generator
    step = generator.broadcast(generator.sample_w(6, 9)) - inversion.w_plus
    codes = inversion.w_plus + radius * step / step.flatten(1).norm(dim=1)[:, None, None]
    images = inversion.image.expand(6, -1, -1, -1)
    tuned = Inversion(images, codes, generator, found.inversion.modulations)
    return float((render(tuned) - generator.synthesis(codes)).square().mean())


def test_locality_holds_the_neighbours():
    inversion = inverted()
    held = dataclasses.replace(PTI, locality=True, locality_radius=2.0, locality_pixel_weight=3.0)
    free, local = (tune(inversion, distance(), config) for config in (PTI, held))
    assert not same(offsets_of(free), offsets_of(local))
    assert drift(local, inversion) < 0.8 * drift(free, inversion)
    assert error(local.inversion) < error(inversion)


def held_in_place(**settings) -> dict[str, torch.Tensor]:
    config = dataclasses.replace(PTI, **{"steps": 3, "locality": True, "locality_radius": 5.0, **settings})
    return offsets_of(tune(inverted(), distance(), config))


@pytest.fixture(scope="module")
def usually_held():
    return held_in_place()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("locality_every", 2),
        ("locality_radius", 1.0),
        ("locality_psi", 0.9),
        ("locality_pixel_weight", 0.0),
        ("locality_perceptual_weight", 0.0),
    ],
)
def test_each_setting_reaches_locality(usually_held, name, value):
    assert not same(usually_held, held_in_place(**{name: value}))


def test_locality_follows_its_seed_and_goes_with_its_weights(usually_held):
    assert same(usually_held, held_in_place())
    without = held_in_place(locality_pixel_weight=0.0, locality_perceptual_weight=0.0)
    assert same(without, held_in_place(locality=False)) and not same(without, usually_held)


def test_locality_measures_against_the_weights_found_before():
    inversion = inverted().with_modulation(WeightOffset({"b8.conv1.weight": 0.3 * random(1, 12, 12, 3, 3)}))
    around = tuning._Locality(inversion, distance(), PTI, 0)
    with torch.no_grad():
        assert float(around({})) == 0
        assert float(around({"b8.conv1.weight": torch.full((1, 12, 12, 3, 3), 0.1)})) > 0


@pytest.mark.parametrize("method", ["pti", "near-perfect"])
def test_a_w_pivot_replaces_the_code(method):
    inversion = inverted(2)
    calls = []

    def run(**settings):
        if method == "pti":
            config = dataclasses.replace(PTI, steps=2, pivot_steps=4, **settings)
            return tune(inversion, distance(), config, progress=lambda *call: calls.append(call[:2]))
        config = dataclasses.replace(NEAR, steps=2, pivot_steps=4, **settings)
        return near_perfect(inversion, tiny_discriminator(), config, progress=lambda *call: calls.append(call[:2]))

    assert torch.equal(run().inversion.w_plus, inversion.w_plus)
    calls.clear()
    found = run(pivot="w").inversion
    assert torch.equal(found.w_plus, found.w_plus[:, :1].expand_as(found.w_plus))
    assert not torch.equal(found.w_plus[0], found.w_plus[1])
    assert calls == [(n, 12) for n in range(1, 13)]
    assert not torch.equal(inversion.w_plus, found.w_plus) and found.w_plus.shape == inversion.w_plus.shape


# --- Laplacian pyramid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 47)])
def test_a_pyramid_adds_up_to_the_picture(size):
    image = random(2, 3, *size)
    bands = laplacian_pyramid(image, 5)
    assert len(bands) == (4 if size[0] == 64 else 3)
    total = bands[-1]
    for band in bands[-2::-1]:
        total = band + pyramid_up(total, tuple(band.shape[2:]))
    torch.testing.assert_close(total, image)
    assert [tuple(band.shape[2:]) for band in bands[:2]] == [size, tuple(-(-side // 2) for side in size)]


def test_a_pyramid_has_the_levels_asked_for():
    image = random(1, 3, 64, 64)
    assert len(laplacian_pyramid(image, 2)) == 2
    assert torch.equal(laplacian_pyramid(image, 1)[0], image) and len(laplacian_pyramid(image, 1)) == 1
    assert laplacian_pyramid(image, 99)[-1].shape[-1] == 8


def test_a_flat_picture_is_all_in_the_rest():
    *bands, rest = laplacian_pyramid(torch.full((1, 3, 32, 32), 0.5), 3)
    assert all(band.abs().max() < 1e-6 for band in bands)
    torch.testing.assert_close(rest, torch.full((1, 3, 8, 8), 0.5))


def test_a_fine_pattern_is_in_the_finest_band():
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    bands = laplacian_pyramid(board.expand(1, 3, -1, -1), 3)
    assert bands[0].abs().mean() > 0.95 and bands[1].abs().mean() < 0.05 and bands[2].abs().mean() < 0.05


def test_laplacian_distance_by_hand():
    found = [torch.tensor([[[[1.0, -3.0], [0.0, 0.0]]]]), torch.tensor([[[[2.0]]]])]
    wanted = [torch.zeros(1, 1, 2, 2), torch.tensor([[[[-1.0]]]])]
    assert float(laplacian_distance(found, wanted)) == 4 / 4 + 3
    assert float(laplacian_distance(found, wanted, 2)) == 10 / 4 + 9
    flat, dark = (laplacian_pyramid(torch.full((1, 3, 32, 32), v), 3) for v in (0.5, 0.0))
    torch.testing.assert_close(laplacian_distance(flat, dark), torch.tensor(0.5))
    torch.testing.assert_close(laplacian_distance(flat, dark, 2), torch.tensor(0.25))
    assert float(laplacian_distance(found, wanted, 1, 4.0)) == 4 / 4 + 3 / 4


# --- near-perfect ----------------------------------------------------------------------------------------------------


def lap1(inversion) -> float:
    return float(laplacian_distance(laplacian_pyramid(drawn(inversion)), laplacian_pyramid(inversion.image)))


def test_near_perfect_comes_closer():
    inversion = inverted()
    found = near_perfect(inversion, tiny_discriminator(), dataclasses.replace(NEAR, steps=8))
    assert lap1(found.inversion) < 0.85 * lap1(inversion) and found.steps == (8,)


def test_other_seeds_play_other_games():
    def run(seed):
        return offsets_of(near_perfect(inverted(), tiny_discriminator(), dataclasses.replace(NEAR, seed=seed)))

    first = run(0)
    assert same(first, run(0)) and not same(first, run(1))


@pytest.fixture(scope="module")
def usual_game():
    return offsets_of(near_perfect(inverted(), tiny_discriminator(), NEAR))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recon_weight", 0.2),
        ("local_adversarial_weight", 0.0),
        ("global_weight", 0.0),
        ("norm", 2),
        ("levels", 1),
        ("level_ratio", 4.0),
        ("adversarial_every", 2),
        ("local_probability", 0.3),
        ("momentum", 0.9),
        ("batch", 1),
        ("r1_gamma", 0.0),
        ("discriminator_learning_rate", 0.1),
    ],
)
def test_each_setting_reaches_the_game(usual_game, name, value):
    config = dataclasses.replace(NEAR, **{name: value})
    assert not same(usual_game, offsets_of(near_perfect(inverted(), tiny_discriminator(), config)))


def game(**settings):
    """One photograph's game, before its first step."""
    inversion, config = inverted(), dataclasses.replace(NEAR, **settings)
    reals = tuning._StandIns(inversion.generator, config)
    return tuning._NearPerfect(inversion, tiny_discriminator(), config, reals, 0)


def test_the_terms_of_the_loss_are_switched_off_by_their_weights():
    none = {"recon_weight": 0.0, "local_adversarial_weight": 0.0, "global_weight": 0.0}
    still = game(**none)
    seen, fakes = still._generator_step(True, True)
    assert seen is not None and fakes is None
    assert not any(t.any() for t in still.offsets.values())
    for term in none:
        moved = game(**{**none, term: 1.0})
        moved._generator_step(True, True)
        assert any(t.any() for t in moved.offsets.values()), term
        aside = game(**{**none, term: 1.0})
        aside._generator_step(False, True)
        assert any(t.any() for t in aside.offsets.values()) == (term == "global_weight"), term
        alone = game(**{**none, term: 1.0})
        alone._generator_step(True, False)
        assert any(t.any() for t in alone.offsets.values()) == (term == "recon_weight"), term


def test_the_discriminator_learns_from_the_terms_that_it_is_in():
    none = {"local_adversarial_weight": 0.0, "global_weight": 0.0}
    for settings, learns in (
        (none, False),
        ({**none, "local_adversarial_weight": 1.0}, True),
        ({**none, "global_weight": 1.0}, True),
    ):
        one = game(**settings)
        before = copy.deepcopy(one.judge.state_dict())
        one._judge_step(*one._generator_step(True, True), regularised=True)
        assert any(not torch.equal(t, before[n]) for n, t in one.judge.state_dict().items()) == learns


def test_the_discriminator_learns_to_tell_the_pictures_apart():
    one = game(global_weight=0.0, local_adversarial_weight=1.0, discriminator_learning_rate=1e-3)
    seen, _ = one._generator_step(True, True)

    def margin() -> float:
        with torch.no_grad():
            return float(one.judge(one.inversion.image) - one.judge(seen))

    before = margin()
    for _ in range(4):
        one._judge_step(seen, None, regularised=False)
    assert margin() > before


def test_without_any_term_nothing_is_learned():
    config = dataclasses.replace(NEAR, recon_weight=0.0, local_adversarial_weight=0.0, global_weight=0.0)
    inversion = inverted()
    found = near_perfect(inversion, tiny_discriminator(), config)
    assert not offsets_of(found) and torch.equal(drawn(found.inversion), drawn(inversion))


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
def test_training_images_take_the_place_of_samples(monkeypatch, usual_game, inference):
    inversion, judge = inverted(), tiny_discriminator()
    monkeypatch.setattr(tuning, "_StandIns", None)  # none are drawn
    with torch.inference_mode(inference):
        images = (0.3 * random(3, 3, SIDE, SIDE)).requires_grad_(not inference)
        before = images.clone()
        found = near_perfect(inversion, judge, NEAR, training_images=images)
    assert not same(usual_game, offsets_of(found)) and torch.equal(images, before) and images.grad is None


def test_stand_ins_are_samples_of_the_untuned_generator_drawn_when_needed():
    stand_ins = tuning._StandIns(tiny_generator(), dataclasses.replace(NEAR, stand_ins=3))
    assert len(stand_ins) == 3 and not stand_ins.drawn
    samples = stand_ins[torch.tensor([2, 0])]
    assert samples.shape == (2, 3, SIDE, SIDE) and not samples.requires_grad
    assert set(stand_ins.drawn) == {0, 2} and torch.equal(stand_ins[torch.tensor([0])], samples[1:])
    assert (samples[0] - samples[1]).abs().mean() > 0.01
    for sample, seed in zip(samples, (2, 0), strict=True):
        z = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        expected = tiny_generator()(z)[0].detach()
        assert (sample - expected).square().mean() < 0.3 * expected.square().mean()  # but for the random noise


def test_global_samples_have_the_tuned_weights_and_none_of_the_features():
    one = game()
    with torch.no_grad():
        plain = one._samples()
        one.random.manual_seed(0)
        again = one._samples()
        one.offsets["b32.torgb.bias"].fill_(1.0)
        one.random.manual_seed(0)
        tuned = one._samples()
    assert plain.shape == again.shape == (NEAR.batch, 3, SIDE, SIDE)
    torch.testing.assert_close(tuned, again + 1)


def test_wrong_partners_are_named():
    inversion = inverted()
    with pytest.raises(GeneratorMismatchError, match="pictures of 64 px, the generator draws 32 px"):
        near_perfect(inversion, tiny_discriminator(64), NEAR)
    for shape in ((4, 3, 64, 64), (1, 3, SIDE, SIDE), (4, 1, SIDE, SIDE), (3, SIDE, SIDE)):
        with pytest.raises(InvalidInputError, match=r"training_images of shape .*expected \[2 or more, 3, 32, 32\]"):
            near_perfect(inversion, tiny_discriminator(), NEAR, training_images=torch.zeros(shape))


# --- settings --------------------------------------------------------------------------------------------------------


def test_published_settings():
    config = PtiConfig()
    assert (config.steps, config.learning_rate, config.stop_at, config.locality) == (350, 3e-4, 0.06, False)
    assert (config.locality_radius, config.locality_psi, config.locality_every) == (30.0, 0.5, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pivot", "z"),
        ("pivot_steps", 0),
        ("steps", 0),
        ("learning_rate", float("nan")),
        ("pixel_weight", -1.0),
        ("perceptual_weight", float("inf")),
        ("stop_at", -0.1),
        ("stop_scale", 0.0),
        ("locality_every", 0),
        ("locality_radius", -1.0),
        ("locality_psi", float("nan")),
        ("locality_pixel_weight", -1.0),
        ("locality_perceptual_weight", float("nan")),
        ("seconds", -1.0),
        ("preview_every", 0),
    ],
)
def test_wrong_settings_of_pti_are_named(name, value):
    with pytest.raises(InvalidInputError, match=rf"^{name} .*expected"):
        PtiConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pivot", "w-plus"),
        ("pivot_steps", 0),
        ("steps", 0),
        ("learning_rate", -1.0),
        ("discriminator_learning_rate", float("nan")),
        ("levels", 0),
        ("norm", 3),
        ("recon_weight", -1.0),
        ("local_adversarial_weight", float("nan")),
        ("global_weight", -1.0),
        ("local_probability", 0.0),
        ("local_probability", 1.5),
        ("batch", 0),
        ("stand_ins", 1),
        ("momentum", 1.0),
        ("level_ratio", 0.0),
        ("adversarial_every", 0),
        ("r1_gamma", -1.0),
        ("r1_every", 0),
        ("seconds", float("nan")),
        ("preview_every", 0),
    ],
)
def test_wrong_settings_of_near_perfect_are_named(name, value):
    with pytest.raises(InvalidInputError, match=rf"^{name} .*expected"):
        NearPerfectConfig(**{name: value})
