"""SAM's multilayer optimisation, its loss terms, and errors measured on one image."""

import pytest
import torch
import torch.nn.functional as F

from gan_inversion.core.directions import Direction
from gan_inversion.core.editing import Edit
from gan_inversion.core.errors import GeneratorMismatchError, InvalidInputError, NotFiniteError
from gan_inversion.core.generator import Generator, GeneratorConfig, SynthesisHooks
from gan_inversion.core.inversion import FeatureOffset, Inversion, render
from gan_inversion.core.invertibility import LatentMap, latent_map, latent_spaces
from gan_inversion.core.losses import LayeredDistance, multiscale_distance
from gan_inversion.core.multilayer import (
    GaussianPrior,
    MultilayerConfig,
    code_prior,
    invert_multilayer,
    layered_map,
    measure_errors,
    multiscale_map,
    row_distances,
)
from gan_inversion.core.refinement import StopOptimisation

SPACES = ("W+", "F0", "F2", "F4")  # of a 32 px generator
QUICK = MultilayerConfig(steps=12, samples=50)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (12, 12, 10, 8), 16, 16, 2)).eval().requires_grad_(False)
    for block in generator.synthesis.blocks():
        block.torgb.weight.mul_(0.3)
    return generator


@pytest.fixture(scope="module")
def photo(generator):
    """Two generated images with something in the right half that no code draws: features of 16 px are changed there."""

    def change(x):
        x = x.clone()
        x[:, :, 4:12, 9:15] += 1.5 * torch.randn(1, x.shape[1], 1, 1, generator=torch.Generator().manual_seed(8))
        return x

    return generator.synthesis(codes(generator), hooks=SynthesisHooks(after_block={16: change})).clamp(-1, 1)


def split_map(batch=1, right="F4"):
    """Left half W+, right half a feature space."""
    index = torch.zeros(batch, 32, 32, dtype=torch.long)
    index[..., 16:] = SPACES.index(right)
    return LatentMap(SPACES, index)


def codes(generator, seed=5):
    return generator.broadcast(generator.mapping(torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))))


def test_prior_is_the_distance_in_the_space_before_the_last_activation(generator):
    prior = code_prior(generator, 400, seed=1)
    w = generator.sample_w(400, 1)
    v = torch.where(w < 0, 5 * w, w).double()
    precision = torch.linalg.inv(torch.cov(v.t()) + 1e-8 * torch.eye(16, dtype=torch.float64))
    mean = w.double().mean(dim=0).float()
    away = v[:6] - torch.where(mean < 0, 5 * mean, mean)
    expected = sum(away[row] @ precision @ away[row] for row in range(6))
    found = prior(w[:6][None])
    assert found.dtype == torch.float64 and found.shape == (1,)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)
    assert torch.equal(prior.precision, code_prior(generator, 400, seed=1).precision)


def test_row_distances_are_norms_not_squares():
    rows = torch.zeros(2, 3, 4)
    rows[0, 1:] = torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 2]])
    assert row_distances(rows).tolist() == [7.0, 0.0]


def test_loss_terms_and_first_steps_are_those_of_a_plain_loop(generator, photo):
    """The same optimisation written down once more, one image, without the library's hooks and bookkeeping."""
    image, start, config = photo[:1], codes(generator)[:1], MultilayerConfig(steps=4, samples=50, keep_best=False)
    found = invert_multilayer(image, generator, split_map(), config, start=start)
    prior: GaussianPrior = code_prior(generator, 50, 0)
    mask = split_map().masks_at(16)["F4"]
    w, offset = start.clone().requires_grad_(True), torch.zeros(1, 10, 16, 16, requires_grad=True)
    optimiser = torch.optim.Adam([w, offset], lr=0.05)
    for step, ramp in enumerate((0.0, 1.0, 1.0, 1.0)):
        optimiser.param_groups[0]["lr"] = 0.05 * ramp
        plain = Inversion(image, w, generator, (FeatureOffset(16, offset, mask),))
        drawn = render(plain).clamp(-1, 1)
        loss = F.mse_loss(drawn, image) + multiscale_distance(drawn, image).mean()
        loss = loss + 5 * offset.square().mean() + 1e-8 * prior(w)[0] + 1e-3 * row_distances(w)[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert step < config.steps
    assert float((found.w_plus - w).detach().abs().max()) < 1e-5
    assert float((found.modulations[0].offset - offset).detach().abs().max()) < 1e-4
    assert float(offset.detach().abs().max()) > 0.05


def test_a_region_the_codes_cannot_draw_is_drawn_by_its_features(generator, photo):
    config = MultilayerConfig(steps=25, samples=50, learning_rate=0.1, feature_weight=0.1)
    start = codes(generator)
    found = invert_multilayer(photo, generator, split_map(2), config, start=start)
    plain = invert_multilayer(photo, generator, LatentMap(SPACES, torch.zeros(1, 32, 32).long()), config, start=start)
    assert [m.resolution for m in found.modulations] == [16] and not plain.modulations

    def error(inversion):
        return (render(inversion) - photo)[..., 16:].square().mean(dim=(1, 2, 3))

    assert (error(found) < 0.6 * error(plain)).all()
    assert not bool(found.modulations[0].offset[..., :5].any())
    assert found.info["spaces"] == "W+, F4"


def test_an_edit_leaves_the_features_of_the_region(generator, photo):
    found = invert_multilayer(photo, generator, split_map(2), QUICK)
    towards = torch.zeros(generator.num_ws, 16)
    towards[:4] = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))  # rows of the blocks up to 8 px
    taps, edited = {}, {}
    offset, mask = found.modulations[0].offset, found.modulations[0].mask
    generator.synthesis(found.w_plus, taps=taps)
    generator.synthesis(found.w_plus + towards, taps=edited)
    expected = torch.lerp(edited["block16"], taps["block16"], mask) + offset * mask
    seen = {}

    def replace(x):
        seen["x"] = x
        return expected

    hooks = SynthesisHooks(after_block={16: replace})
    image = generator.synthesis(found.w_plus + towards, hooks=hooks)
    torch.testing.assert_close(render(found, Edit.of(Direction("d", towards), 1.0)), image, rtol=0, atol=1e-5)
    assert bool((render(found) - image).abs().max() > 1e-2)


def test_images_of_a_batch_do_not_influence_one_another(generator, photo):
    both = LatentMap(SPACES, torch.cat((split_map(right="F2").index, split_map(right="F4").index)))
    config = MultilayerConfig(steps=3, samples=50, keep_best=False)
    whole = invert_multilayer(photo, generator, both, config)
    assert [m.resolution for m in whole.modulations] == [8, 16]
    alone = invert_multilayer(photo[1:], generator, split_map(), config)
    assert [m.resolution for m in alone.modulations] == [16]
    torch.testing.assert_close(render(whole[1]), render(alone), rtol=0, atol=1e-4)


def test_seed_noise_and_best(generator, photo):
    for block in generator.synthesis.blocks():
        block.conv1.noise_strength.fill_(0.5)
    try:
        random = MultilayerConfig(steps=4, samples=50, noise="random", seed=3, keep_best=False)
        first, again = (invert_multilayer(photo, generator, split_map(), random) for _ in range(2))
        other = invert_multilayer(photo, generator, split_map(), MultilayerConfig(**{**vars(random), "noise": "const"}))
        assert torch.equal(first.w_plus, again.w_plus) and not torch.equal(first.w_plus, other.w_plus)
        start = codes(generator)
        exact = render(Inversion(photo, start, generator)).clamp(-1, 1)
        wild = MultilayerConfig(steps=4, samples=50, learning_rate=0.5, delta_weight=0, prior_weight=0)
        kept = invert_multilayer(exact, generator, split_map(), wild, start=start)
        assert torch.equal(kept.w_plus, start)  # nothing beats the start
    finally:
        for block in generator.synthesis.blocks():
            block.conv1.noise_strength.fill_(0.0)


def test_only_the_frame_of_the_map_counts(generator, photo):
    wide = LatentMap(SPACES, torch.full((1, 24, 32), 3))
    changed = photo.clone()
    changed[:, :, :4] = 1
    changed[:, :, 28:] = -1
    config = MultilayerConfig(steps=3, samples=50)
    found, same = (invert_multilayer(p, generator, wide, config).w_plus for p in (photo, changed))
    assert torch.equal(found, same)
    assert not torch.equal(found, invert_multilayer(photo, generator, split_map(), config).w_plus)


def test_measured_errors_tell_what_each_space_can_draw(generator, photo):
    seen = []
    config = MultilayerConfig(steps=20, samples=50, learning_rate=0.04, feature_weight=0.1)
    errors = measure_errors(
        photo, generator, ("W+", "F4"), config, start=codes(generator), progress=lambda *a: seen.append(a[:2])
    )
    assert list(errors) == ["W+", "F4"] and seen[0] == (1, 40) and seen[-1] == (40, 40)
    assert all(e.shape == (2, 1, 32, 32) and float(e.min()) >= 0 for e in errors.values())
    inside, outside = errors["W+"][..., 10:22, 20:28], errors["W+"][..., :14]
    assert float(inside.mean()) > 2 * float(outside.mean())
    assert float(errors["F4"][..., 10:22, 20:28].mean()) < 0.8 * float(inside.mean())
    chosen = latent_map(errors, tau=float(inside.mean()) / 2)
    assert float(chosen.mask("F4")[..., 10:22, 20:28].mean()) > 3 * float(chosen.mask("F4")[..., :14].mean())


def test_measuring_stops_as_a_whole(generator, photo):
    def stop(step, steps, preview):
        raise StopOptimisation

    with pytest.raises(StopOptimisation):
        measure_errors(photo, generator, config=QUICK, progress=stop)
    found = invert_multilayer(photo, generator, split_map(), QUICK, progress=stop)
    assert found.info["steps"] == "1"


class Colours(LayeredDistance):
    """Mean squares at two sizes."""

    def features(self, image):
        return [image, F.avg_pool2d(image, 2)]

    def maps(self, found, wanted):
        return [(a - b).square().mean(dim=1, keepdim=True) for a, b in zip(found, wanted, strict=True)]


def test_a_layered_distance_is_the_same_as_a_function(generator, photo):
    config = MultilayerConfig(steps=3, samples=50)
    codes = [
        invert_multilayer(photo, generator, split_map(), config, distance=distance).w_plus
        for distance in (Colours(), lambda a, b: Colours()(a, b), multiscale_distance)
    ]
    torch.testing.assert_close(codes[0], codes[1], rtol=0, atol=1e-5)
    assert float((codes[0] - codes[2]).abs().max()) > 1e-3


def test_error_maps_add_up_to_their_distance():
    torch.manual_seed(1)
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    error = layered_map(Colours())(a, b)
    assert error.shape == (2, 1, 16, 16)
    torch.testing.assert_close(error.mean(dim=(1, 2, 3)), Colours()(a, b), rtol=0.05, atol=0)
    plain = multiscale_map(a, b)
    torch.testing.assert_close(plain.mean(dim=(1, 2, 3)), multiscale_distance(a, b), rtol=0.1, atol=0)
    assert not bool(multiscale_map(a, a).any())


def test_works_inside_inference_mode(generator, photo):
    with torch.inference_mode():
        found = invert_multilayer(photo.clone(), generator, split_map(), MultilayerConfig(steps=2, samples=50))
    assert not found.w_plus.requires_grad and not found.modulations[0].offset.requires_grad


def test_wrong_input_is_named(generator, photo):
    with pytest.raises(InvalidInputError, match="32, 32"):
        invert_multilayer(photo[..., :16], generator, split_map())
    with pytest.raises(InvalidInputError, match="expected one, or one for each"):
        invert_multilayer(photo, generator, split_map(3))
    with pytest.raises(GeneratorMismatchError, match="32 px generator uses W.*F0, F2, F4"):
        invert_multilayer(photo, generator, LatentMap(("W+", "F6"), torch.ones(1, 4, 4).long()))
    with pytest.raises(InvalidInputError, match="a code of this generator"):
        invert_multilayer(photo, generator, split_map(), QUICK, start=torch.zeros(1, 18, 512))
    bad = photo.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"\[1\]"):
        invert_multilayer(bad, generator, split_map(), QUICK)
    wrong_settings = [{"steps": 0}, {"noise": "none"}, {"resample": "nearest"}, {"learning_rate": float("nan")}]
    for wrong in (*wrong_settings, {"feature_weight": -1.0}):
        with pytest.raises(InvalidInputError, match="expected"):
            MultilayerConfig(**wrong)
    assert latent_spaces(32) == SPACES
