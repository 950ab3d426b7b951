"""The per-image mode of SAMM: finds a foreign object without any trained network."""

import dataclasses

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import FeatureWarp, Inversion, PixelBlend, WeightOffset, render
from gan_inversion.core.samm_image import ImageAlignmentConfig, align_image

W = 8
QUICK = ImageAlignmentConfig(steps=25, learning_rate=0.3, allowed_area=0.5)


@pytest.fixture(scope="module")
def inversion():
    """Two pictures the generator draws itself; on the first lies a white square."""
    torch.manual_seed(1)
    generator = Generator(GeneratorConfig(32, (10, 8, 6, 4), W, W, 1)).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if "torgb.weight" in name:
            parameter.mul_(0.2)
    w_plus = torch.randn(2, generator.num_ws, W)
    image = generator.synthesis(w_plus).clamp(-1, 1)
    image[0, :, 8:20, 8:20] = 1.0
    return Inversion(image, w_plus, generator)


def test_mask_finds_the_object_and_nothing_else(inversion):
    result = align_image(inversion, QUICK)
    mask = result.mask
    assert float(mask[0, :, 10:18, 10:18].mean()) > 0.7
    assert float(mask[0, :, 24:, 24:].mean()) < 0.15 and float(mask[1].mean()) < 0.15
    errors = [(render(i) - inversion.image).square().mean(dim=(1, 2, 3)) for i in (inversion, result.inversion)]
    assert float(errors[1][0]) < 0.3 * float(errors[0][0])
    assert [type(m) for m in result.inversion.modulations] == [FeatureWarp] * 3 + [PixelBlend]
    assert torch.equal(result.inversion.w_plus, inversion.w_plus)
    assert not any(m.flow.requires_grad for m in result.inversion.modulations[:-1])


def test_flows_bring_shifted_features_back(inversion):
    generator = inversion.generator
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0] = 0.06  # about one pixel of the finest level
    ones = torch.ones(1, 1, 32, 32)
    shifted = render(Inversion(inversion.image[1:], inversion.w_plus[1:], generator, (FeatureWarp(32, flow, ones),)))
    target = Inversion(shifted.clamp(-1, 1), inversion.w_plus[1:], generator)
    config = dataclasses.replace(QUICK, resolutions=(32,), area=0.0, binary=0.0, price=2.0, start_error=0.02)
    found = align_image(target, config).flows[32]
    assert float(found[:, 0].mean()) > 0.01


def test_without_flows_masks_are_those_of_the_picture_as_it_is_drawn(inversion):
    bent, plain = align_image(inversion, QUICK), align_image(inversion, QUICK, warp=False)
    assert [type(m) for m in plain.inversion.modulations] == [PixelBlend]
    assert all(not flow.any() for flow in plain.flows.values())
    assert not torch.allclose(plain.mask, bent.mask, atol=1e-3)
    mixed = torch.lerp(render(inversion), inversion.image, plain.mask)
    torch.testing.assert_close(render(plain.inversion), mixed)
    assert float(plain.mask[0, :, 10:18, 10:18].mean()) > 0.7


def test_a_seed_gives_the_same_result_and_progress_can_stop(inversion):
    config = dataclasses.replace(QUICK, steps=3)
    first, second = align_image(inversion, config), align_image(inversion, config)
    assert all(torch.equal(first.flows[r], second.flows[r]) for r in first.flows)
    other = align_image(inversion, dataclasses.replace(config, seed=1))
    assert not torch.equal(first.flows[8], other.flows[8])
    seen = []

    def stop(step, steps, preview):
        seen.append((step, steps, None if preview is None else tuple(preview.shape)))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_image(inversion, config, progress=stop)
    assert seen == [(1, 3, (1, 3, 32, 32)), (2, 3, None)]


def test_the_best_step_is_kept(inversion):
    wild = dataclasses.replace(QUICK, steps=6, learning_rate=30.0)
    one = align_image(inversion, dataclasses.replace(wild, steps=1))
    many = align_image(inversion, wild)
    losses = [float((render(r.inversion) - inversion.image).square().mean()) for r in (one, many)]
    assert losses[1] <= losses[0] * 1.5 and float(many.mask.mean()) < 0.6


def test_code_can_be_refined_and_inference_mode_is_left(inversion):
    with torch.inference_mode():
        start = dataclasses.replace(inversion, w_plus=inversion.w_plus + 0.3, image=inversion.image.clone())
        result = align_image(start, dataclasses.replace(QUICK, steps=4, refine_w=True))
    assert not torch.equal(result.inversion.w_plus, start.w_plus)
    assert not result.inversion.w_plus.is_inference() and not result.inversion.w_plus.requires_grad


def test_each_image_has_its_tuned_weights(inversion):
    offset = torch.randn(2, 8, 8, 3, 3, generator=torch.Generator().manual_seed(8))
    tuned = inversion.with_modulation(WeightOffset({"b8.conv1.weight": offset}))
    config = dataclasses.replace(QUICK, steps=2)
    together, alone = align_image(tuned, config), align_image(tuned[1], config)
    torch.testing.assert_close(together.mask[1:], alone.mask)


def test_what_does_not_fit_is_refused(inversion):
    with pytest.raises(InvalidInputError, match="has \\[8, 16, 32\\]"):
        align_image(inversion, ImageAlignmentConfig(resolutions=(32, 64)))
    with pytest.raises(NotFiniteError):
        align_image(dataclasses.replace(inversion, image=inversion.image * float("nan")))
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"mask_cell": 0}):
        with pytest.raises(InvalidInputError):
            ImageAlignmentConfig(**wrong)
