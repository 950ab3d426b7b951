"""The perceptual trunk: shapes, gradients, refusals, and the distance made of its features."""

from __future__ import annotations

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, UnsupportedModelError
from gan_inversion.core.perceptual import PerceptualTrunk, PerceptualTrunkConfig, tap_distance, trunk_distance
from gan_inversion.core.training import trunk as squeezenet

SMALL = PerceptualTrunkConfig((4, 6, 8, 10, 12))


def random_trunk(config: PerceptualTrunkConfig = SMALL, seed: int = 0) -> PerceptualTrunk:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PerceptualTrunk(config).eval().requires_grad_(False)


def images(height: int = 48, width: int = 48, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    target = torch.rand(count, 3, height, width, generator=random) * 2 - 1
    return (target + 0.3 * torch.randn(target.shape, generator=random)).clamp(-1, 1), target


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 80), (50, 35)])
def test_taps_lie_at_strides_2_to_16_and_have_unit_length(height, width):
    trunk = random_trunk()
    image, _ = images(height, width)
    features = trunk.features(image)
    sides = [(height // 2, width // 2)]
    for _ in range(3):
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    assert [tuple(tap.shape[1:]) for tap in features] == [
        (channels, *side) for channels, side in zip(SMALL.widths, [*sides, sides[-1]], strict=True)
    ]
    for tap, weighted in zip(features, trunk(image), strict=True):
        lengths = tap.norm(dim=1)
        assert lengths.max() < 1 + 1e-5 and lengths.median() > 0.999  # less where hardly a channel is active
        torch.testing.assert_close(weighted, tap * 0.3)


def test_the_default_size_fits_a_small_file():
    parameters = sum(p.numel() for p in PerceptualTrunk().parameters())
    assert 200_000 < parameters < 500_000  # half a megabyte to one in float16


def test_distance_is_zero_for_the_same_picture_and_grows_with_noise():
    distance = trunk_distance(random_trunk())
    _, target = images()
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    found = torch.stack([distance(target + amount * noise, target) for amount in (0.0, 0.05, 0.2, 0.8)])
    torch.testing.assert_close(found[0], torch.zeros(2))
    assert bool((found.diff(dim=0) > 0).all())


def test_pictures_of_a_batch_do_not_see_each_other():
    distance = trunk_distance(random_trunk())
    image, target = images()
    torch.testing.assert_close(distance(image[1:], target[1:]), distance(image, target)[1:])
    torch.testing.assert_close(distance(image, target), distance(target, image))


def test_distance_is_the_weighted_squared_difference_of_features():
    trunk = random_trunk()
    image, target = images()
    for scale in trunk.scales:
        scale.copy_(torch.linspace(-1, 1, len(scale)))  # a negative root is a positive weight
    expected = torch.zeros(2)
    for a, b, scale in zip(trunk.features(image), trunk.features(target), trunk.scales, strict=True):
        weights = scale.square()[:, None, None]
        expected += (weights * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(trunk_distance(trunk)(image, target), expected)
    torch.testing.assert_close(tap_distance(trunk(image), trunk(target)), expected)


def test_gradient_reaches_the_first_picture_only_unless_asked():
    trunk = random_trunk()
    image, target = (x.requires_grad_() for x in images())
    trunk_distance(trunk)(image, target).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0 and target.grad is None
    trunk_distance(trunk, target_gradient=True)(image, target).sum().backward()
    assert target.grad is not None and target.grad.abs().sum() > 0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (36, 50)])
def test_no_pixel_is_left_out_at_the_border(height, width):
    image, target = images(height, width)
    image.requires_grad_()
    trunk_distance(random_trunk(PerceptualTrunkConfig()))(image, target).sum().backward()
    assert bool((image.grad.abs().sum(dim=1) > 0).all())


def test_gradient_is_finite_on_flat_pictures():
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    trunk_distance(random_trunk())(image, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert bool(torch.isfinite(image.grad).all())


def test_larger_pictures_are_shrunk_by_area_and_keep_their_shape():
    trunk = random_trunk()
    image, target = images(64, 96)
    small = [torch.nn.functional.avg_pool2d(x, 2) for x in (image, target)]
    torch.testing.assert_close(trunk_distance(trunk, size=48)(image, target), trunk_distance(trunk)(*small))
    torch.testing.assert_close(trunk_distance(trunk, size=96)(image, target), trunk_distance(trunk)(image, target))


def test_works_in_inference_mode_and_with_any_function():
    image, target = images()
    trunk = random_trunk()
    with torch.inference_mode():
        found = trunk_distance(trunk)(image, target)
    torch.testing.assert_close(found.clone(), trunk_distance(trunk.forward)(image, target))
    assert squeezenet.trunk_distance is trunk_distance


def test_refusals_say_what_was_found():
    trunk = random_trunk()
    with pytest.raises(InvalidInputError, match=r"found an image \(1, 3, 64, 31\), expected .* 32 px at least"):
        trunk(torch.zeros(1, 3, 64, 31))
    with pytest.raises(InvalidInputError, match=r"found an image \(1, 4, 64, 64\)"):
        trunk(torch.zeros(1, 4, 64, 64))
    with pytest.raises(InvalidInputError, match=r"\(1, 3, 64, 64\) and \(1, 3, 64, 32\): expected equal sides"):
        trunk_distance(trunk)(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 32))
    with pytest.raises(InvalidInputError, match=r"widths \(1, 2\): expected 5"):
        PerceptualTrunkConfig((1, 2))


def test_sizes_are_read_from_shapes():
    tensors = random_trunk().state_dict()
    assert PerceptualTrunkConfig.from_state_dict(tensors, "portraits") == PerceptualTrunkConfig(
        SMALL.widths, "portraits"
    )
    del tensors["convs.3.weight"]
    with pytest.raises(UnsupportedModelError, match=r"without convs\.3\.weight"):
        PerceptualTrunkConfig.from_state_dict(tensors)


def test_a_distance_can_be_looked_at_layer_by_layer():
    distance = trunk_distance(random_trunk())
    image, target = images()
    found, wanted = distance.features(image), distance.features(target)
    maps = distance.maps(found, wanted)
    assert [tuple(layer.shape) for layer in maps] == [(2, 1, side, side) for side in (24, 12, 6, 3, 3)]
    for layer, a, b in zip(maps, found, wanted, strict=True):
        torch.testing.assert_close(layer[1, 0, 2, 1], ((a - b)[1, :, 2, 1] ** 2).sum())
    torch.testing.assert_close(distance.between(found, wanted), distance(image, target))
    torch.testing.assert_close(distance.between(found, wanted), tap_distance(found, wanted))


def test_maps_tell_where_pictures_differ():
    distance = trunk_distance(random_trunk())
    _, target = images(64, 64)
    changed = target.clone()
    changed[..., :16, :16] *= -1
    finest = distance.maps(distance.features(changed), distance.features(target))[0]
    assert finest[..., :8, :8].mean() > 0.01 and finest[..., 10:, 10:].abs().max() == 0


def test_one_network_at_several_sizes():
    distance = trunk_distance(random_trunk(), size=32)
    distance.name = "tiny"
    full = distance.at_size(None)
    image, target = images(64, 64)
    assert (full.size, distance.size, full.name) == (None, 32, "tiny") and full.trunk is distance.trunk
    assert full.features(image)[0].shape[-1] == 32 and distance.features(image)[0].shape[-1] == 16
    torch.testing.assert_close(full(image, target), trunk_distance(random_trunk())(image, target))
    torch.testing.assert_close(full.at_size(32)(image, target), distance(image, target))
