"""Image distances: LPIPS takes the backbone it is given, and says what is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, MissingPackageError
from gan_inversion.core.losses import import_lpips, lpips_distance, multiscale_distance

VGG_WIDTHS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}


def random_vgg(seed: int = 0) -> dict[str, torch.Tensor]:
    """Torchvision's names and shapes of the convolutions of VGG16."""
    random = torch.Generator().manual_seed(seed)
    tensors, channels = {}, 3
    for index, width in VGG_WIDTHS.items():
        scale = (2 / (9 * channels)) ** 0.5
        tensors[f"features.{index}.weight"] = scale * torch.randn(width, channels, 3, 3, generator=random)
        tensors[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    return tensors


@pytest.fixture(scope="module")
def vgg():
    try:
        import_lpips()
    except MissingPackageError as error:
        pytest.skip(str(error))
    return random_vgg()


def images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    target = torch.rand(2, 3, size, size, generator=random) * 2 - 1
    return (target + 0.3 * torch.randn(target.shape, generator=random)).clamp(-1, 1), target


def test_lpips_is_a_distance_with_a_gradient(vgg):
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    distance = lpips_distance("vgg", vgg)
    assert torch.equal(torch.rand(1), expected_next), "the caller's random numbers moved on"
    image, target = images()
    image.requires_grad_()
    found = distance(image, target)
    assert found.shape == (2,) and bool((found > 0).all())
    torch.testing.assert_close(distance(target, target), torch.zeros(2))
    torch.testing.assert_close(distance(image[1:], target[1:]), found[1:])
    found.sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_lpips_uses_the_backbone_it_is_given(vgg):
    image, target = images()
    first, again = (lpips_distance("vgg", vgg)(image, target) for _ in range(2))
    torch.testing.assert_close(first, again)
    other = {**vgg, "features.28.weight": -vgg["features.28.weight"]}
    assert not torch.allclose(lpips_distance("vgg", other)(image, target), first)


def test_lpips_shrinks_larger_images_first(vgg):
    image, target = images(64)
    small = [torch.nn.functional.avg_pool2d(x, 2) for x in (image, target)]
    torch.testing.assert_close(lpips_distance("vgg", vgg, size=32)(image, target), lpips_distance("vgg", vgg)(*small))


def test_another_backbone_is_refused(vgg):
    cut = {name: value for name, value in vgg.items() if "28" not in name}
    with pytest.raises(
        InvalidInputError, match=r"lacks features\.28\.weight and 1 more: expected torchvision's weights"
    ):
        lpips_distance("vgg", cut)
    with pytest.raises(InvalidInputError, match=r"size mismatch for .*0\.weight"):
        lpips_distance("vgg", {**vgg, "features.0.weight": torch.zeros(64, 4, 3, 3)})
    with pytest.raises(InvalidInputError, match="LPIPS network 'resnet': expected one of vgg, alex"):
        lpips_distance("resnet", vgg)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingPackageError, match=r"lpips is not installed.*pip install lpips torchvision"):
        lpips_distance("vgg", {})


def test_a_broken_torchvision_is_named(monkeypatch, tmp_path):
    (tmp_path / "lpips.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingPackageError, match=rf"nms does not exist.*made for torch {torch.__version__.split('+')[0]}"
    ):
        lpips_distance("vgg", {})


def test_multiscale_distance_needs_nothing_and_sees_edges():
    image, target = images()
    assert bool((multiscale_distance(image, target) > 0).all())
    torch.testing.assert_close(multiscale_distance(target, target), torch.zeros(2))


def test_lpips_equals_the_package(vgg):
    distance = lpips_distance("vgg", vgg)
    image, target = images()
    torch.testing.assert_close(distance(image, target), distance.model(image, target).flatten())
    assert distance.name == "lpips-vgg" and not any(p.requires_grad for p in distance.model.parameters())


def test_lpips_can_be_looked_at_layer_by_layer(vgg):
    distance = lpips_distance("vgg", vgg)
    image, target = images()
    found, wanted = distance.features(image), distance.features(target)
    maps = distance.maps(found, wanted)
    assert [tuple(layer.shape) for layer in maps] == [(2, 1, side, side) for side in (32, 16, 8, 4, 2)]
    torch.testing.assert_close(sum(layer.mean(dim=(1, 2, 3)) for layer in maps), distance(image, target))
    torch.testing.assert_close(distance.between(found, wanted), distance(image, target))
    _, layers = distance.model(image, target, retPerLayer=True)
    for layer, official in zip(maps, layers, strict=True):
        torch.testing.assert_close(layer.mean(dim=(2, 3), keepdim=True), official)


def test_lpips_at_another_size_has_the_same_network(vgg):
    distance = lpips_distance("vgg", vgg)
    small = distance.at_size(16)
    image, target = images()
    assert small.model is distance.model and (small.size, distance.size) == (16, None)
    torch.testing.assert_close(small(image, target), lpips_distance("vgg", vgg, 16)(image, target))
    assert not torch.allclose(small(image, target), distance(image, target))


def test_lpips_has_a_gradient_in_both_pictures_and_on_flat_ones(vgg):
    distance = lpips_distance("vgg", vgg)
    image, target = (x[:1].requires_grad_() for x in images())
    distance(image, target).sum().backward()
    assert target.grad is not None and target.grad.abs().sum() > 0
    dead = {name: torch.full_like(t, -1.0) if t.ndim == 1 else 0 * t for name, t in vgg.items()}  # nothing is active
    image = images()[0][:1].requires_grad_()
    lpips_distance("vgg", dead)(image, images()[1][:1]).sum().backward()
    assert bool(torch.isfinite(image.grad).all())
