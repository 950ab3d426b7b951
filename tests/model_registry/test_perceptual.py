"""Learned distances: the backbone comes from the catalogue."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file

from gan_inversion.core.errors import InvalidInputError, MissingPackageError, UnsupportedModelError
from gan_inversion.core.losses import import_lpips, lpips_distance
from gan_inversion.model_registry import hub, perceptual_distance
from gan_inversion.model_registry.catalogue import find
from gan_inversion.model_registry.perceptual import _BACKBONES

from ..core.test_losses import images, random_vgg


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
        assert entry.kind == "perceptual" and entry.format == "safetensors" and entry.sha256


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
    with pytest.raises(InvalidInputError, match="No perceptual distance 'lpips': expected one of lpips-vgg"):
        perceptual_distance("lpips")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingPackageError, match="pip install lpips torchvision"):
        perceptual_distance()
    assert not asked
