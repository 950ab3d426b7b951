"""Projection into W and W+ by optimisation."""

import copy
import dataclasses

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import render
from gan_inversion.core.losses import multiscale_distance
from gan_inversion.core.projection import ProjectionConfig, project, project_with_noise
from gan_inversion.core.refinement import StopOptimisation


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(32, (12, 12, 10, 8), 16, 16, 2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def target(generator):
    return generator(torch.randn(2, 16, generator=torch.Generator().manual_seed(5))).detach()


def error(inversion, target):
    return (render(inversion) - target).square().mean(dim=(1, 2, 3))


def test_w_finds_a_generated_image(generator, target):
    found = project(target, generator, ProjectionConfig(space="w", steps=120, learning_rate=0.1))
    start = generator.synthesis(generator.broadcast(generator.estimate_w_avg(1000)[None]))
    assert (error(found, target) < 0.35 * (start - target).square().mean(dim=(1, 2, 3))).all()
    assert torch.equal(found.w_plus[:, :1].expand_as(found.w_plus), found.w_plus)


def test_w_plus_comes_closer_than_w(generator):
    torch.manual_seed(3)
    mixed = generator.synthesis(torch.randn(1, generator.num_ws, 16))
    results = [
        project(mixed, generator, ProjectionConfig(space=s, steps=80, learning_rate=0.1)) for s in ("w", "w-plus")
    ]
    assert error(results[1], mixed) < error(results[0], mixed)


def test_a_good_start_is_never_made_worse(generator, target):
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
    start = generator.broadcast(generator.mapping(z))
    found = project(target, generator, ProjectionConfig(steps=5), start=start)
    assert (error(found, target) < 1e-6).all()


def test_same_seed_same_code(generator, target):
    config = ProjectionConfig(steps=6)
    assert torch.equal(project(target, generator, config).w_plus, project(target, generator, config).w_plus)


def test_works_inside_inference_mode_and_leaves_the_generator_alone(generator, target):
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    with torch.inference_mode():
        found = project(target, generator, ProjectionConfig(steps=3, optimise_noise=True))
    assert not found.w_plus.requires_grad
    assert all(torch.equal(v, generator.state_dict()[k]) for k, v in before.items())


def test_progress_reports_and_can_stop(generator, target):
    calls = []

    class Stop(Exception):
        pass

    def progress(step, steps, preview):
        calls.append((step, steps, preview is not None))
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        project(target, generator, ProjectionConfig(steps=50, preview_every=2), progress=progress)
    assert calls == [(1, 50, True), (2, 50, False), (3, 50, True)]


def test_nan_is_named(generator, target):
    bad = target.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"\[1\]"):
        project(bad, generator, ProjectionConfig(steps=2))


def test_wrong_input_is_named(generator):
    with pytest.raises(InvalidInputError, match="32, 32"):
        project(torch.zeros(1, 3, 64, 64), generator)
    with pytest.raises(InvalidInputError, match="w-plus"):
        ProjectionConfig(space="z")
    with pytest.raises(InvalidInputError, match="a code of this generator"):
        project(torch.zeros(1, 3, 32, 32), generator, start=torch.zeros(1, 18, 512))
    for wrong in (
        {"steps": 0},
        {"preview_every": 0},
        {"learning_rate": float("nan")},
        {"exploration_end": 0.0},
        {"seconds": -1.0},
        {"seconds": float("nan")},
    ):
        with pytest.raises(InvalidInputError, match="expected"):
            ProjectionConfig(**wrong)


def test_multiscale_distance_sees_blur():
    torch.manual_seed(0)
    sharp = (torch.rand(1, 3, 32, 32) > 0.5).float() * 2 - 1
    grey = torch.zeros_like(sharp)
    assert multiscale_distance(sharp, sharp).item() == 0
    assert multiscale_distance(grey, sharp) > 1.5 * (grey - sharp).abs().mean()


def noisy(generator):
    """A copy whose noise maps count."""
    generator = copy.deepcopy(generator)
    for layer in generator.synthesis._noisy_layers():
        layer.noise_strength.fill_(0.2)
    return generator


def test_the_noise_found_goes_with_the_codes(generator, target):
    generator = noisy(generator)
    config = ProjectionConfig(space="w", steps=6, optimise_noise=True, exploration=0.0)
    found, noise = project_with_noise(target, generator, config)
    assert [tuple(maps.shape) for maps in noise] == [(2, 1, r, r) for r in generator.synthesis.noise_sizes()]
    assert not any(maps.requires_grad for maps in noise)
    own = generator.synthesis(found.w_plus, noise=noise)
    losses = ((own - target).square().mean(dim=(1, 2, 3)) + multiscale_distance(own, target)).tolist()
    stored = render(found)
    plain = ((stored - target).square().mean(dim=(1, 2, 3)) + multiscale_distance(stored, target)).tolist()
    assert losses[0] < plain[0] and losses[1] < plain[1]
    again = project_with_noise(target, generator, config)[1]
    assert all(torch.equal(a, b) for a, b in zip(noise, again, strict=True))
    assert torch.equal(project(target, generator, config).w_plus, found.w_plus)


def test_stored_noise_is_given_where_none_is_optimised(generator, target):
    noise = project_with_noise(target, generator, ProjectionConfig(steps=1))[1]
    assert all(torch.equal(a, b) for a, b in zip(noise, generator.synthesis.stored_noise(), strict=True))


def test_the_last_code_is_given_where_the_best_is_not_kept(generator, target):
    """With a rate that throws the code off: the best one is the start, the last one is not."""
    config = ProjectionConfig(space="w", steps=4, learning_rate=50.0, warmup=0.0, exploration=0.0)
    best = project(target, generator, config)
    last, _ = project_with_noise(target, generator, dataclasses.replace(config, keep_best=False, optimise_noise=True))
    start = generator.sample_w(1000).mean(dim=0)
    torch.testing.assert_close(best.w_plus, start.expand_as(best.w_plus))
    assert (last.w_plus - start).abs().mean() > 1 and bool((error(last, target) > error(best, target)).all())


@pytest.mark.parametrize("how", ["stop", "time"])
def test_ended_while_it_still_explores_it_gives_what_it_has(generator, target, how, monkeypatch):
    """Three quarters of the steps explore: the code of an early end is not just the start."""
    now = [0.0]
    monkeypatch.setattr("gan_inversion.core.refinement.time.monotonic", lambda: now[0])

    def progress(step, steps, preview):
        now[0] += 1.0
        if how == "stop" and step == 20:
            raise StopOptimisation

    config = ProjectionConfig(
        space="w", steps=1000, learning_rate=0.5, warmup=0.0, seconds=19.5 if how == "time" else None
    )
    found = project(target, generator, config, progress=progress)
    start = generator.synthesis(generator.broadcast(generator.estimate_w_avg(1000)[None]))
    assert found.info["steps"] == "20"
    assert bool((error(found, target) < 0.8 * (start - target).square().mean(dim=(1, 2, 3))).all())


def test_what_never_stops_exploring_finds_something(generator, target):
    config = ProjectionConfig(space="w", steps=20, learning_rate=0.3, exploration_end=2.0)
    start = generator.synthesis(generator.broadcast(generator.estimate_w_avg(1000)[None]))
    found = project(target, generator, config)
    assert bool((error(found, target) < 0.8 * (start - target).square().mean(dim=(1, 2, 3))).all())


def test_gradients_of_the_generator_and_of_the_distance_stay(generator, target):
    generator = copy.deepcopy(generator).requires_grad_(True)
    network = torch.nn.Conv2d(3, 2, 3)
    for parameter in (*generator.parameters(), *network.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5)

    def distance(image, wanted):
        return (network(image) - network(wanted)).square().mean(dim=(1, 2, 3))

    project(target, generator, ProjectionConfig(steps=2, optimise_noise=True), distance=distance)
    assert all(bool((p.grad == 0.5).all()) for p in (*generator.parameters(), *network.parameters()))
