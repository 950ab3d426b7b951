"""What all refinements promise, for each of them; and the loop, the weights and the batches that they share."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time

import pytest
import torch

from gan_inversion.core.dhr import DhrConfig, refine
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.editing import Direction, Edit
from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureOverride, Inversion, PixelBlend, WeightOffset, render
from gan_inversion.core.perceptual import TrunkDistance, trunk_distance
from gan_inversion.core.refinement import (
    Best,
    Refined,
    Steps,
    StopOptimisation,
    add_gradients,
    after,
    check_settings,
    compact,
    refine_each,
    weight_leaves,
)
from gan_inversion.core.tuning import NearPerfectConfig, PtiConfig, near_perfect, tune

from .test_perceptual import random_trunk

SIDE = 32
RATE = 1e-2


@functools.cache
def tiny_generator() -> Generator:
    """Its parameters want gradients, as a host's may; its stored noise counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(SIDE, (12, 12, 10, 8), 16, 16, 2)).eval()
    with torch.no_grad():
        generator.mapping.w_avg.copy_(generator.estimate_w_avg(1000))
        for layer in generator.synthesis._noisy_layers():
            layer.noise_strength.fill_(0.05)
    return generator


def tiny_discriminator(resolution: int = SIDE) -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        channels = (8,) * (resolution.bit_length() - 2)
        return Discriminator(DiscriminatorConfig(resolution, channels)).eval()


def distance() -> TrunkDistance:
    with torch.inference_mode(False):  # as the registry makes it
        return trunk_distance(random_trunk())


def corner() -> torch.Tensor:
    """[1, 1, R, R], a square that counts as out of domain."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., :12, :16] = 1
    return mask


@torch.no_grad()
def inverted(count: int = 1, generator: Generator | None = None) -> Inversion:
    """Codes a step beside those of pictures that something else covers in a corner."""
    generator = generator or tiny_generator()
    w = generator.broadcast(generator.sample_w(count, 3))
    image = generator.synthesis(w).clamp(-1, 1)
    image = torch.where(corner() > 0, torch.tensor([0.9, -0.6, 0.2]).view(1, 3, 1, 1), image)
    beside = w + 0.4 * torch.randn(w.shape, generator=torch.Generator().manual_seed(4))
    return Inversion(image, beside, generator, info={"method": "made up"})


@torch.no_grad()
def drawn(inversion: Inversion, edit: Edit | None = None) -> torch.Tensor:
    return render(inversion, edit)


def one_by_one(inversion: Inversion) -> torch.Tensor:
    """A batch rounds a little differently."""
    return torch.cat([drawn(inversion[index]) for index in range(len(inversion))])


def error(inversion: Inversion, region: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each image, [B], where the region is 1."""
    squares = (drawn(inversion) - inversion.image).square()
    if region is None:
        return squares.mean(dim=(1, 2, 3))
    return (squares * region).sum(dim=(1, 2, 3)) / (3 * region.sum())


def by_dhr(inversion, steps=3, *, progress=None, seed=0, seconds=None, judge=None):
    config = DhrConfig(
        steps=steps,
        weight_steps=max(1, steps - 1),
        weight_learning_rate=RATE,
        scale_rate=False,
        seed=seed,
        seconds=seconds,
    )
    return refine(inversion, distance(), config, out_of_domain=corner(), progress=progress)


def by_segmented_dhr(inversion, steps=3, *, progress=None, seed=0, seconds=None, judge=None):
    config = DhrConfig(
        steps=steps, weight_steps=steps, coarse_steps=2, segments=9, threshold=10.0, scale_rate=False, seed=seed
    )
    return refine(inversion, distance(), config, out_of_domain=corner(), merge="union", progress=progress)


def by_pti(inversion, steps=3, *, progress=None, seed=0, seconds=None, judge=None):
    config = PtiConfig(steps=steps, learning_rate=RATE, scale_rate=False, stop_at=None, seed=seed, seconds=seconds)
    return tune(inversion, distance(), config, progress=progress)


def by_near_perfect(inversion, steps=3, *, progress=None, seed=0, seconds=None, judge=None):
    config = NearPerfectConfig(
        steps=steps,
        learning_rate=RATE / 8,
        momentum=0.0,
        stand_ins=2,
        local_probability=1.0,
        seed=seed,
        seconds=seconds,
    )
    return near_perfect(inversion, judge or tiny_discriminator(), config, progress=progress)


METHODS = {"dhr": by_dhr, "pti": by_pti, "near-perfect": by_near_perfect}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
SMILE = Edit.of(Direction("up", torch.linspace(-1, 1, 16)[None]), 1.5)


# --- what every method promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("method", [*METHODS.values(), by_segmented_dhr], ids=[*METHODS, "segmented dhr"])
def test_networks_and_their_gradients_stay_as_they_are(method, inference):
    generator, judge = copy.deepcopy(tiny_generator()), tiny_discriminator()
    for parameter in (*generator.parameters(), *judge.parameters()):
        parameter.grad = torch.full_like(parameter, 0.25)
    before = {n: t.clone() for net in (generator, judge) for n, t in net.state_dict().items()}
    with torch.inference_mode(inference):
        inversion = inverted(1, generator)
        found = method(inversion, judge=judge)
    assert all(torch.equal(t, before[n]) for net in (generator, judge) for n, t in net.state_dict().items())
    for parameter in (*generator.parameters(), *judge.parameters()):
        assert parameter.requires_grad and bool((parameter.grad == 0.25).all())
    assert found.inversion.generator is generator
    tensors = [t for m in found.inversion.modulations for t in m.weight_offsets().values()]
    assert tensors and not any(t.requires_grad for t in tensors)
    assert error(found.inversion) < error(inversion)


@each_method
def test_the_inversion_given_stays_as_it_is(method):
    inversion = inverted()
    image, code = inversion.image.clone(), inversion.w_plus.clone()
    found = method(inversion).inversion
    assert torch.equal(inversion.image, image) and torch.equal(inversion.w_plus, code) and not inversion.modulations
    assert torch.equal(found.image, image) and torch.equal(found.w_plus, code)
    assert found.info["method"] == "made up" and found.info["refined by"]


@each_method
def test_offsets_are_small_and_a_saved_inversion_renders_the_same(method, tmp_path):
    found = method(inverted()).inversion
    offsets = found.modulations[0].weight_offsets()
    assert offsets and all(t.dtype == torch.float16 and t.any() and t.shape[0] == 1 for t in offsets.values())
    for modulation in found.modulations[1:]:
        assert isinstance(modulation, FeatureOverride) and modulation.features.dtype == torch.float16
    loaded = Inversion.load(found.save(tmp_path / "refined.safetensors"), tiny_generator())
    assert torch.equal(drawn(loaded), drawn(found)) and torch.equal(drawn(loaded, SMILE), drawn(found, SMILE))


@each_method
def test_edits_of_the_refined_picture_are_pictures_of_their_own(method):
    inversion = inverted()
    found = method(inversion).inversion
    pictures = [drawn(inversion), drawn(found), drawn(inversion, SMILE), drawn(found, SMILE)]
    for index, first in enumerate(pictures):
        for second in pictures[index + 1 :]:
            assert (first - second).abs().max() > 0.01


@each_method
def test_what_is_refined_can_be_refined_again(method):
    inversion = inverted()
    once = method(inversion, 5).inversion
    twice = method(once, 5).inversion
    kept = twice.modulations[: len(once.modulations)]
    assert all(a is b for a, b in zip(kept, once.modulations, strict=True))
    assert len(twice.modulations) == 2 * len(once.modulations)
    assert error(twice) < error(once) < error(inversion)


@each_method
def test_a_batch_names_what_failed_and_refines_the_rest(method, tmp_path):
    inversion = inverted(3)
    image = inversion.image.clone()
    image[0], image[1, 2, 5, 5] = 0.3, float("nan")
    inversion = dataclasses.replace(inversion, image=image)
    found = method(inversion)
    assert set(found.failures) == {0, 1} and found.steps == (0, 0, 3)
    assert "one flat colour" in found.failures[0] and "NaN or infinity" in found.failures[1]
    assert found.problems() == f"Image 1: {found.failures[0]} Image 2: {found.failures[1]}"
    assert torch.equal(found.inversion.w_plus, inversion.w_plus) and len(found.inversion) == 3
    before, now = one_by_one(inversion), drawn(found.inversion)
    assert torch.equal(now[:2], before[:2])
    assert error(found.inversion)[2] < error(inversion)[2]
    assert found.out_of_domain is None or found.out_of_domain.flatten(1).sum(dim=1).tolist() == [0, 0, 192]
    for modulation in found.inversion.modulations:
        assert all(len(t) == 3 for t in modulation.weight_offsets().values())


@each_method
def test_where_all_fail_the_first_error_is_raised(method):
    inversion = inverted(2)
    flat = dataclasses.replace(inversion, image=torch.full_like(inversion.image, 0.3))
    with pytest.raises(InvalidInputError, match="one flat colour: expected a photograph"):
        method(flat)
    nan = flat.image.clone()
    nan[0, 0, 0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        method(dataclasses.replace(flat, image=nan))
    code = torch.full_like(inversion.w_plus, float("nan"))
    with pytest.raises(NotFiniteError, match="code holds NaN"):
        method(dataclasses.replace(inversion, w_plus=code))


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("kind", [Cancelled, InvalidInputError, NotFiniteError, KeyboardInterrupt])
@each_method
def test_what_the_callback_raises_ends_everything_at_once(method, kind):
    calls, error = [], kind("from the callback")

    def progress(step, steps, preview):
        calls.append((step, steps))
        if step == 2:
            raise error

    with pytest.raises(kind) as caught:
        method(inverted(2), progress=progress)
    assert caught.value is error and calls == [(1, 6), (2, 6)]


@each_method
def test_stopping_keeps_the_best_and_goes_on_with_the_next_image(method):
    calls = []

    def progress(step, steps, preview):
        calls.append(step)
        if step == 2:
            raise StopOptimisation

    inversion = inverted(2)
    found = method(inversion, 4, progress=progress)
    assert calls == [1, 2, 5, 6, 7, 8] and found.steps == (2, 4) and not found.failures
    assert bool((error(found.inversion) < error(inversion)).all())


@each_method
def test_progress_counts_through_the_batch_and_shows_pictures(method):
    calls = []
    method(inverted(2), 3, progress=lambda *call: calls.append(call))
    assert [(step, steps) for step, steps, _ in calls] == [(n, 6) for n in range(1, 7)]
    assert [preview is not None for _, _, preview in calls] == [True, False, True] * 2  # the first and the last
    assert all(p is None or (p.shape == (1, 3, SIDE, SIDE) and not p.requires_grad) for _, _, p in calls)


@each_method
def test_time_that_is_up_ends_it_after_one_step_at_least(method):
    inversion = inverted(2)
    found = method(inversion, 1000, seconds=0.0)
    assert found.steps == (1, 1) and bool((error(found.inversion) < error(inversion)).all())


@each_method
def test_the_same_seed_gives_the_same_pictures(method):
    first, again = (drawn(method(inverted(), 2, seed=7).inversion) for _ in range(2))
    assert torch.equal(first, again)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_steps_end_with_their_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    steps = Steps(100, seconds=2.5)
    for _ in steps:
        now[0] += 1.0
        steps.done()
    assert steps.made == 3
    for seconds in (None, 1e9):
        steps = Steps(4, seconds=seconds)
        assert [steps.done() or step for step in steps] == [0, 1, 2, 3] and steps.made == 4


def test_steps_show_the_first_picture_of_a_batch_now_and_then():
    shown = []

    def progress(step, steps, preview):
        shown.append(None if preview is None else preview.shape[0])

    steps = Steps(6, progress, preview_every=2)
    for _ in steps:
        steps.done(torch.zeros(3, 3, 8, 8))
    assert shown == [1, None, 1, None, 1, 1]


def test_best_keeps_copies_from_the_lowest_loss():
    value = torch.zeros(2)
    best = Best({"value": value})
    for loss, now in ((3.0, 1.0), (1.0, 2.0), (2.0, 3.0)):
        value.fill_(now)
        best.offer(torch.tensor(loss))
    value.fill_(9.0)
    assert best.values["value"].tolist() == [2, 2] and best.loss == 1
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotFiniteError, match="diverged.*lower learning rate"):
            best.offer(torch.tensor(bad))


def test_after_counts_on():
    calls = []
    assert after(None, 5) is None
    after(lambda *call: calls.append(call), 5)(1, 10, None)
    assert calls == [(6, 15, None)]


def test_gradients_are_added_to_the_variables_and_to_nothing_else():
    a, b, other = (torch.tensor(2.0, requires_grad=True) for _ in range(3))
    add_gradients(a * other, {"a": a, "b": b})
    add_gradients(3 * a, {"a": a, "b": b})
    assert a.grad == 5 and b.grad is None and other.grad is None


def test_leaves_start_without_effect_and_reach_every_synthesis_parameter():
    generator, inversion = tiny_generator(), inverted()
    leaves = weight_leaves(generator)
    assert set(leaves) == {name for name, _ in generator.synthesis.named_parameters()}
    assert all(t.is_leaf and t.requires_grad for t in leaves.values())
    tuned = inversion.with_modulation(WeightOffset(leaves))
    assert torch.equal(drawn(tuned), drawn(inversion))
    assert not compact(leaves).offsets


def test_compact_keeps_what_changed_and_refuses_what_float16_cannot_hold():
    offsets = {"same": torch.zeros(1, 2), "moved": torch.tensor([[0.0, 1e-3]], requires_grad=True)}
    kept = compact(offsets).offsets
    assert list(kept) == ["moved"] and kept["moved"].dtype == torch.float16 and not kept["moved"].requires_grad
    torch.testing.assert_close(kept["moved"].float(), offsets["moved"].detach(), atol=1e-6, rtol=1e-3)
    for bad in (7e4, float("nan")):
        with pytest.raises(NotFiniteError, match=r"weight b4\.const is out of bounds"):
            compact({"b4.const": torch.tensor([[bad]])})


def test_settings_are_named():
    check_settings(a=(1, 1), b=(None, 0))
    for bad in (0.9, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match=r"^b .*: expected a finite number of at least 1\."):
            check_settings(a=(1, 1), b=(bad, 1))


# --- batches ---------------------------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def own_modulations(index: int) -> list:
    """Different kinds for different images, as DHR makes them where nothing is out of domain."""
    name, width = (("b8.conv1.weight", 12), ("b16.conv1.weight", 10))[index % 2]
    weight = WeightOffset({name: 0.1 * random(1, width, width, 3, 3)})
    override = FeatureOverride(16, random(1, 10, 16, 16, seed=index).half(), (random(1, 1, 16, 16) > 0).float())
    blend = PixelBlend(corner())
    return [[weight], [weight, override], [WeightOffset({})], [weight, override, blend], [weight, blend]][index]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 3, 1, 2), (4, 3), (3, 4), (2, 0), (2, 2)])
def test_images_of_a_batch_may_get_different_modulations(order):
    inversion = inverted(len(order)).with_modulation(WeightOffset({"b8.conv1.bias": 0.1 * random(len(order), 12)}))

    def refine_one(single, index, progress):
        for modulation in own_modulations(order[index]):
            single = single.with_modulation(modulation)
        return Refined(single, 1)

    found = refine_each(inversion, refine_one, 1)
    alone = [refine_one(inversion[index], index, None).inversion for index in range(len(order))]
    for edit in (None, SMILE):
        torch.testing.assert_close(drawn(found.inversion, edit), torch.cat([drawn(one, edit) for one in alone]))
    assert found.out_of_domain is None


def test_an_image_that_failed_renders_as_before_beside_any_modulation(tmp_path):
    inversion = inverted(4)
    image = inversion.image.clone()
    image[0, 0, 0, 0] = float("nan")
    inversion = dataclasses.replace(inversion, image=image)

    def refine_one(single, index, progress):
        if index == 2:
            raise NotFiniteError("diverged")
        for modulation in own_modulations(3):
            single = single.with_modulation(modulation)
        return Refined(single, 1, corner())

    found = refine_each(inversion, refine_one, 1)
    assert set(found.failures) == {0, 2} and found.steps == (0, 1, 0, 1)
    before, now = one_by_one(inversion), drawn(found.inversion)
    assert torch.equal(now[::2], before[::2]) and (now[1::2] - before[1::2]).abs().max() > 0.1
    torch.testing.assert_close(found.out_of_domain, torch.cat([corner() * n for n in (0, 1, 0, 1)]))


def test_stopping_in_an_early_part_ends_the_later_parts_too():
    calls, reached = [], []

    def progress(step, steps, preview):
        calls.append(step)
        if step == 2:
            raise StopOptimisation

    def refine_one(single, index, report):
        for part in (0, 3):
            steps = Steps(3, after(report, part))
            for _ in steps:
                steps.done()
            reached.append(steps.made)
        return Refined(single, 1)

    refine_each(inverted(2), refine_one, 6, progress)
    assert reached == [2, 1, 3, 3] and calls == [1, 2, *range(7, 13)]


def test_refining_runs_on_copies_with_gradients_switched_on():
    with torch.inference_mode():
        inversion = inverted(2).with_modulation(WeightOffset({"b8.conv1.bias": torch.zeros(1, 12)}))

        def refine_one(single, index, progress):
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and len(single) == 1
            tensors = (single.image, single.w_plus, *single.modulations[0].weight_offsets().values())
            assert not any(t.is_inference() for t in tensors)
            single.image.zero_()
            code = single.w_plus.requires_grad_(True) * 2
            return Refined(dataclasses.replace(single, w_plus=code.detach()), 1)

        found = refine_each(inversion, refine_one, 1)
        assert torch.equal(found.inversion.w_plus, 2 * inversion.w_plus)
        assert torch.equal(found.inversion.image, inversion.image) and inversion.image.abs().max() > 0


def test_other_errors_are_not_taken_for_a_bad_image():
    def refine_one(single, index, progress):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        refine_each(inverted(2), refine_one, 1)
