"""SAM's published invertibility files: nested dictionaries of tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gan_inversion.core.errors import UnsafeFileError, UnsupportedModelError
from gan_inversion.core.invertibility import InvertibilityConfig, InvertibilityNet
from gan_inversion.model_registry import convert, load_model

from ..core.test_invertibility import FIXTURE, official, official_state, seeded_image  # noqa: F401


@pytest.fixture
def published(official, tmp_path):  # noqa: F811
    nested, _ = official_state(official)
    torch.save(nested, tmp_path / "invertibility_faces_sg2.pt")
    return tmp_path / "invertibility_faces_sg2.pt"


def test_a_published_file_loads_and_converts_to_the_same_numbers(official, published, tmp_path):  # noqa: F811
    loaded = load_model(published)
    assert loaded.architecture == "sam-invertibility" and not loaded.module.training
    image = seeded_image(FIXTURE["batch"], FIXTURE["size"])
    found = loaded.module(image)
    for space, error in found.items():
        assert float((error - official[f"error {space}"]).abs().max()) <= 1e-4
    again = load_model(convert(published, tmp_path / "converted"))
    assert again.architecture == "sam-invertibility" and again.identity == loaded.identity
    assert again.path.suffix == ".safetensors" and again.module.config == loaded.module.config
    converted = again.module(image)
    assert all(torch.equal(found[space], converted[space]) for space in found)
    half = load_model(convert(published, tmp_path / "half", torch.float16)).module(image)
    assert max(float((half[space] - found[space]).abs().max()) for space in found) < 2e-3


def test_prefixes_of_parallel_training_are_dropped(official, published):  # noqa: F811
    nested, _ = official_state(official)
    torch.save({part: {f"module.{k}": v for k, v in keys.items()} for part, keys in nested.items()}, published)
    assert load_model(published).module.spaces == ("W+", "F4", "F6", "F8", "F10")


def test_damaged_and_dangerous_files_are_refused(official, published):  # noqa: F811
    nested, _ = official_state(official)
    del nested["sd_base"]["backbone.layer2.0.conv2.weight"]
    torch.save(nested, published)
    with pytest.raises(UnsupportedModelError, match=r"lacks base\.backbone\.layer2\.0\.conv2\.weight"):
        load_model(published)
    nested, _ = official_state(official)
    torch.save({**nested, "F4": print}, published)
    with pytest.raises(UnsafeFileError):
        load_model(published)


def test_a_slim_network_keeps_its_domain(tmp_path):
    from gan_inversion.model_registry import save_model

    torch.manual_seed(0)
    net = InvertibilityNet(InvertibilityConfig.slim(128, "portraits")).eval()
    loaded = load_model(save_model(net, tmp_path / "slim.safetensors"))
    assert loaded.architecture == "sam-invertibility" and loaded.domain == "portraits"
    assert loaded.module.config == net.config
    image = seeded_image(1, (32, 32))
    with torch.no_grad():
        assert all(torch.equal(loaded.module(image)[space], error) for space, error in net(image).items())


def test_a_threshold_travels_with_the_network(tmp_path):
    from gan_inversion.core.errors import InvalidInputError
    from gan_inversion.core.invertibility import TAU
    from gan_inversion.model_registry import save_model

    config = InvertibilityConfig.slim(32, "portraits")
    assert config.tau == TAU
    own = InvertibilityNet(dataclasses.replace(config, threshold=0.4))
    loaded = load_model(save_model(own, tmp_path / "own.safetensors"))
    assert loaded.module.config == own.config and loaded.module.config.tau == 0.4
    for bad in (0.0, float("nan")):
        with pytest.raises(InvalidInputError, match="Invertibility threshold .* expected a number above 0"):
            dataclasses.replace(config, threshold=bad)
