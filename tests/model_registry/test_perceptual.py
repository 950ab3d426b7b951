"""Learned distances: the backbone comes from the catalogue."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from safetensors.torch import save_file

from gan_inversion.core.errors import (
    InvalidInputError,
    MissingPackageError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from gan_inversion.core.losses import import_lpips, lpips_distance
from gan_inversion.core.perceptual import trunk_distance
from gan_inversion.model_registry import catalogue, hub, load_model, perceptual, perceptual_distance, save_model
from gan_inversion.model_registry.catalogue import ManualSource, find
from gan_inversion.model_registry.perceptual import _BACKBONES, _TRUNKS, BUNDLED_DISTANCE, available_distance

from ..core.test_losses import images, random_vgg
from ..core.test_perceptual import SMALL, random_trunk


@pytest.fixture
def needs_lpips():
    try:
        import_lpips()
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Where the catalogue's file will lie, and which ids were asked for."""
    asked = []

    def fetch(model_id, *, progress, check_interrupt):
        progress(1, 1)
        asked.append((model_id, check_interrupt))
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(hub, "fetch", fetch)
    return tmp_path / "model.safetensors", asked


def test_the_backbones_are_in_the_catalogue():
    for _, model_id in _BACKBONES.values():
        entry = find(model_id)
        assert entry.kind == "perceptual"
        by_hand = isinstance(entry.source, ManualSource)
        assert by_hand or (entry.format == "safetensors" and entry.sha256)


def test_the_backbone_is_fetched_and_used(needs_lpips, fetched):
    path, asked = fetched
    vgg = random_vgg()
    save_file({**vgg, "pre_logits.fc1.weight": torch.zeros(2, 2)}, path)
    calls = []
    with torch.inference_mode():  # as in a ComfyUI node
        distance = perceptual_distance(size=16, progress=lambda *done: calls.append(done), check_interrupt=calls.clear)
    assert asked == [("vgg16", calls.clear)] and calls == [(1, 1)]
    image, target = images()
    image.requires_grad_()
    found = distance(image, target)
    torch.testing.assert_close(found, lpips_distance("vgg", vgg, 16)(image, target))
    found.sum().backward()
    assert image.grad is not None


def test_a_file_that_is_no_backbone_is_named(needs_lpips, fetched):
    path, _ = fetched
    save_file({"classifier.weight": torch.zeros(2)}, path)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: LPIPS backbone for 'vgg' lacks features\.0"):
        perceptual_distance("lpips-vgg", progress=lambda *_: None)


def test_nothing_is_downloaded_without_the_package_or_the_name(monkeypatch, fetched):
    _, asked = fetched
    with pytest.raises(
        InvalidInputError,
        match="No perceptual distance 'lpips': expected one of lpips-vgg, lpips-alex, portraits-perceptual",
    ):
        perceptual_distance("lpips")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingPackageError, match="pip install lpips torchvision"):
        perceptual_distance()
    assert not asked


def test_a_trunk_is_read_back_from_shapes(tmp_path):
    trunk = random_trunk()
    path = save_model(trunk, tmp_path / "a.safetensors", {"domain": "portraits"})
    with torch.inference_mode():
        loaded = load_model(path)
    assert loaded.architecture == "perceptual" and loaded.module.config.widths == SMALL.widths
    image, target = images()
    image.requires_grad_()
    found = trunk_distance(loaded.module)(image, target)
    torch.testing.assert_close(found, trunk_distance(trunk)(image, target))
    found.sum().backward()
    tensors = {name: value for name, value in trunk.state_dict().items() if name != "convs.4.weight"}
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"b\.safetensors cannot be used.*without convs\.4\.weight"):
        load_model(tmp_path / "b.safetensors")


def test_the_trunk_needs_no_package_and_no_download(monkeypatch, fetched, tmp_path):
    _, asked = fetched
    monkeypatch.setitem(sys.modules, "lpips", None)
    trunk = random_trunk()
    path = save_model(trunk, tmp_path / "trunk.safetensors")
    monkeypatch.setitem(perceptual._TRUNKS, "portraits-perceptual", path)
    with torch.inference_mode():  # as in a ComfyUI node
        distance = perceptual_distance("portraits-perceptual", size=32)
    image, target = images(64)
    image.requires_grad_()
    found = distance(image, target)
    torch.testing.assert_close(found, trunk_distance(trunk, size=32)(image, target))
    found.sum().backward()
    assert image.grad is not None and not asked
    path.unlink()
    with pytest.raises(ModelNotFoundError):
        perceptual_distance("portraits-perceptual")


def test_the_bundled_trunk_judges_like_an_eye():
    skimage_data = pytest.importorskip("skimage.data")
    assert _TRUNKS["portraits-perceptual"].stat().st_size <= 2**20
    distance = perceptual_distance("portraits-perceptual")
    picture = torch.from_numpy(skimage_data.astronaut().copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    picture = torch.nn.functional.avg_pool2d(picture[..., :256, 96:352], 2)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    soft = [torch.nn.functional.interpolate(picture, (side, side), mode="area") for side in (64, 32, 16)]
    soft = [torch.nn.functional.interpolate(x, (128, 128), mode="bilinear") for x in soft]
    covered = [picture.clone() for _ in range(3)]
    for side, image in zip((12, 32, 64), covered, strict=True):
        image[..., 40 : 40 + side, 40 : 40 + side] = -0.5
    for versions in (soft, [picture + s * noise for s in (0.02, 0.1, 0.4)], covered):
        found = torch.stack([distance(version, picture) for version in versions]).flatten()
        assert bool((found.diff() > 0).all()) and 0 < found[0] < 0.5 * found[2], found
    shifted, mirrored = picture.roll(1, 3), picture.flip(3)
    assert distance(shifted, picture) < 0.4 * distance(mirrored, picture)


ALEX_WIDTHS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def random_alexnet() -> dict[str, torch.Tensor]:
    """Torchvision's names and shapes of the convolutions of AlexNet."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for index, (width, channels, side) in ALEX_WIDTHS.items():
        scale = (2 / (side * side * channels)) ** 0.5
        tensors[f"features.{index}.weight"] = scale * torch.randn(width, channels, side, side, generator=random)
        tensors[f"features.{index}.bias"] = torch.zeros(width)
    return tensors


@pytest.fixture
def own_models(monkeypatch, tmp_path):
    """The only model folder, empty; nothing may be downloaded."""
    monkeypatch.setattr(catalogue, "model_dirs", lambda kind: [tmp_path])
    monkeypatch.setattr(hub, "model_dirs", lambda kind: [tmp_path])

    def refuse(*arguments):
        raise AssertionError("a download was started")

    monkeypatch.setattr(hub, "_download", refuse)
    return tmp_path


def test_without_other_weights_the_bundled_distance_is_at_hand(own_models):
    distance = available_distance(size=48)
    assert distance.name == BUNDLED_DISTANCE == "portraits-perceptual" and distance.size == 48


def test_alexnet_in_a_model_folder_is_used(needs_lpips, own_models):
    alex = random_alexnet()
    torch.save({**alex, "classifier.1.weight": torch.zeros(2, 2)}, own_models / find("alexnet").file_name)
    distance = available_distance(size=None)
    assert distance.name == "lpips-alex" and distance.size is None
    image, target = images(64)
    torch.testing.assert_close(distance(image, target), lpips_distance("alex", alex)(image, target))
    assert available_distance(("lpips-vgg", "lpips-alex")).name == "lpips-alex"
    assert available_distance(("lpips-vgg",)).name == BUNDLED_DISTANCE
    assert available_distance(()).name == available_distance((BUNDLED_DISTANCE, "lpips-alex")).name == BUNDLED_DISTANCE


def test_a_damaged_backbone_is_passed_over_and_not_downloaded_again(monkeypatch, own_models):
    """A file of the right size whose bytes are wrong, and one of the wrong size."""
    entry = find("vgg16")
    path = own_models / entry.file_name
    path.write_bytes(b"short")
    assert available_distance(("lpips-vgg",)).name == BUNDLED_DISTANCE
    with path.open("wb") as file:
        file.truncate(2**25)
    smaller = dataclasses.replace(entry, size=2**25)
    monkeypatch.setattr(catalogue, "find", lambda model_id: smaller)
    monkeypatch.setattr(hub, "find", lambda model_id: smaller)
    assert available_distance(("lpips-vgg",)).name == BUNDLED_DISTANCE


def test_without_the_package_the_next_distance_is_taken(monkeypatch, own_models):
    torch.save(random_alexnet(), own_models / find("alexnet").file_name)
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert available_distance().name == BUNDLED_DISTANCE


def test_an_unknown_distance_is_named(own_models):
    with pytest.raises(InvalidInputError, match="No perceptual distance 'ssim'"):
        available_distance(("ssim",))


def test_names_tell_the_distances_apart(own_models):
    first, second = perceptual_distance("portraits-perceptual"), trunk_distance(random_trunk())
    assert (first.name, second.name) == ("portraits-perceptual", "trunk")
    assert first.at_size(None).name == first.name
