"""Foreign names, axis orders and defaults arrive as the canonical generator, with known answers from official code."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core.errors import UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.model_registry import load_model

from ..parity.generator_parity import FIXTURES, borrowed_class, seeded_state, tensorflow_pickle
from .foreign_files import CONFIG, noise_tensors, nvidia_pickle, random_generator, rosinality_tensors

FOLDER = Path(__file__).parents[1] / "fixtures" / "generators"
KERNEL = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0]))


def assert_same(generator: torch.nn.Module, expected: Generator) -> None:
    found, wanted = generator.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def save(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "a.pt")
    return tmp_path / "a.pt"


# Numbers written by the official code (tests/parity/generator_parity.py --fixtures) for weights that are made here.


@pytest.mark.parametrize("name", ["rosinality_16", "nvidia_32", "tensorflow_16"])
def test_images_are_those_of_the_official_code(tmp_path, name):
    stored = np.load(FOLDER / f"{name}.npz")
    expected = {key: torch.from_numpy(stored[key]) for key in ("z", "w", "w_plus", "image", "truncated", "average")}
    if name == "rosinality_16":
        state = seeded_state(json.loads(str(stored["shapes"])))
        path = save(tmp_path, {"g_ema": state, "latent_avg": expected["average"]})
    elif name == "nvidia_32":
        state = seeded_state(json.loads(str(stored["shapes"])))
        clamps = {
            f"synthesis.b{r}.{layer}.conv_clamp": 1.5 for r in (4, 8, 16, 32) for layer in ("conv0", "conv1", "torgb")
        }
        path = nvidia_pickle(tmp_path / "a.pkl", state, clamps)
    else:
        path = tmp_path / "a.pkl"
        tensorflow_pickle(FIXTURES[name], path)
    generator = load_model(path).module
    with torch.inference_mode():
        assert torch.equal(generator.w_avg, expected["average"])
        torch.testing.assert_close(generator.mapping(expected["z"]), expected["w"], atol=1e-4, rtol=0)
        torch.testing.assert_close(generator.synthesis(expected["w_plus"]), expected["image"], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            generator(expected["z"], truncation_psi=0.6), expected["truncated"], atol=1e-4, rtol=0
        )


# rosinality


def wrappings(generator: Generator) -> dict[str, dict]:
    state = {**rosinality_tensors(generator), **noise_tensors(generator)}
    average = generator.w_avg
    return {
        "g_ema": {"g_ema": state, "latent_avg": average, "g": state, "d": {}, "g_optim": {"state": {}}},
        "repeated average": {"g_ema": state, "latent_avg": average.repeat(6, 1)},
        "bare": {**state, "latent_avg": average},
        "decoder": {**{f"decoder.{name}": tensor for name, tensor in state.items()}, "latent_avg": average},
        "state_dict": {"state_dict": {f"generator.{name}": t for name, t in state.items()}, "latent_avg": average},
        "parallel": {"g_ema": {f"module.{name}": tensor for name, tensor in state.items()}, "latent_avg": average},
    }


@pytest.mark.parametrize("wrapping", wrappings(random_generator()))
def test_rosinality_files_in_every_wrapping(tmp_path, wrapping):
    generator = random_generator()
    loaded = load_model(save(tmp_path, wrappings(generator)[wrapping]))
    assert loaded.architecture == "stylegan2" and loaded.module.config == CONFIG
    assert_same(loaded.module, generator)


def test_old_conversions_without_noise_maps_and_average_get_seeded_ones_and_say_so(tmp_path, caplog):
    generator = random_generator()
    path = save(tmp_path, {"g_ema": rosinality_tensors(generator)})
    with caplog.at_level(logging.WARNING):
        first, second = load_model(path).module, load_model(path).module
    assert "no noise maps for 5 layers: seeded ones are used" in caplog.text
    assert "no average latent: it is computed from seeded samples of the mapping network" in caplog.text
    assert_same(first, second)
    assert all(noise.std() > 0.5 for noise in first.synthesis.stored_noise())
    z = torch.randn(20_000, CONFIG.z_dim, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(first.w_avg, generator.mapping(z).mean(dim=0), atol=0.05 * generator.mapping(z).std().item())
    assert torch.equal(first.synthesis.b8.conv0.weight, generator.synthesis.b8.conv0.weight)


def test_a_rosinality_file_with_unknown_or_missing_keys_is_refused(tmp_path):
    state = rosinality_tensors(random_generator())
    with pytest.raises(
        UnsupportedModelError, match=r"a.pt cannot be used. Generator: the file has unknown to_rgbs.0.iwt.ll"
    ):
        load_model(save(tmp_path, {"g_ema": {**state, "to_rgbs.0.iwt.ll": torch.zeros(2, 2)}}))
    del state["convs.2.activate.bias"]
    with pytest.raises(UnsupportedModelError, match=r"the file lacks synthesis.b16.conv0.bias\."):
        load_model(save(tmp_path, {"g_ema": state}))
    state["convs.2.activate.bias"] = torch.zeros(99)
    with pytest.raises(
        UnsupportedModelError, match=r"shapes that do not fit: synthesis.b16.conv0.bias \(99,\) instead of \(8,\)"
    ):
        load_model(save(tmp_path, {"g_ema": state}))
    state["convs.2.noise.weight"] = torch.zeros(2)
    with pytest.raises(UnsupportedModelError, match="its tensors are not what their names promise"):
        load_model(save(tmp_path, {"g_ema": state}))


def test_another_resampling_filter_is_refused(tmp_path):
    state = rosinality_tensors(random_generator())
    state["convs.0.conv.blur.kernel"] = torch.ones(4, 4) / 4
    with pytest.raises(UnsupportedModelError, match=r"convs.0.conv.blur.kernel is not the \[1, 3, 3, 1\] filter"):
        load_model(save(tmp_path, {"g_ema": state}))


# NVIDIA torch pickles


def nvidia_attributes(**changes: object) -> dict[str, object]:
    attributes = {"c_dim": 0, "synthesis.b4.architecture": "skip", "synthesis.b4.conv1.activation": "lrelu"}
    attributes |= {
        "synthesis.b4.conv1.conv_clamp": None,
        "mapping.fc0.bias_gain": 0.01,
        "mapping.fc0.activation": "lrelu",
    }
    return {**attributes, **changes}


@pytest.mark.parametrize("clamp", [None, 256])
def test_nvidia_pickles_keep_their_clamp_and_drop_filters(tmp_path, clamp):
    generator = random_generator()
    tensors = {**generator.state_dict(), "synthesis.b4.resample_filter": KERNEL / 64}
    attributes = nvidia_attributes(**{"synthesis.b4.conv1.conv_clamp": clamp})
    loaded = load_model(nvidia_pickle(tmp_path / "a.pkl", tensors, attributes))
    assert loaded.module.config.conv_clamp == clamp
    assert_same(loaded.module, generator)


@pytest.mark.parametrize("kwargs", [{"conv_clamp": 256}, {"synthesis_kwargs": {"conv_clamp": 256}}])
def test_the_clamp_is_read_from_flat_and_nested_arguments(tmp_path, kwargs):
    path = nvidia_pickle(tmp_path / "a.pkl", random_generator().state_dict(), init_kwargs=kwargs)
    assert load_model(path).module.config.conv_clamp == 256


def test_ada_auto_models_with_two_mapping_layers_and_half_the_channels(tmp_path):
    config = GeneratorConfig.official(64, channel_base=1024, channel_max=32, mapping_layers=2, conv_clamp=256.0)
    attributes = nvidia_attributes(**{"synthesis.b4.conv1.conv_clamp": 256})
    loaded = load_model(nvidia_pickle(tmp_path / "a.pkl", random_generator(config).state_dict(), attributes))
    assert loaded.module.config == config
    assert config.channels == (32, 32, 32, 32, 16)


def test_another_mapping_learning_rate_is_folded_into_the_weights(tmp_path):
    generator = random_generator()
    tensors = {name: t / 50 if "mapping.fc" in name else t for name, t in generator.state_dict().items()}
    attributes = nvidia_attributes(**{"mapping.fc0.bias_gain": 0.5})
    loaded = load_model(nvidia_pickle(tmp_path / "a.pkl", tensors, attributes))
    z = torch.randn(4, CONFIG.z_dim)
    torch.testing.assert_close(loaded.module.mapping(z), generator.mapping(z), rtol=1e-5, atol=1e-5)


def test_networks_built_without_noise_inputs_are_silent(tmp_path):
    generator = random_generator()
    tensors = {name: t for name, t in generator.state_dict().items() if "noise" not in name}
    loaded = load_model(nvidia_pickle(tmp_path / "a.pkl", tensors, nvidia_attributes()))
    w_plus = torch.randn(1, CONFIG.num_ws, CONFIG.w_dim)
    assert torch.equal(loaded.module.synthesis(w_plus), generator.synthesis(w_plus, noise="none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c_dim": 10}, r"Class-conditional StyleGAN2 with 10 labels: only unconditional"),
        ({"synthesis.b4.architecture": "resnet"}, r"architecture 'resnet': only 'skip'"),
        ({"synthesis.b4.architecture": "orig"}, r"architecture 'orig': only 'skip'"),
        ({"synthesis.b4.conv1.activation": "relu"}, r"activation 'relu': only 'lrelu'"),
    ],
)
def test_variants_that_are_not_built_are_refused(tmp_path, changes, message):
    path = nvidia_pickle(tmp_path / "a.pkl", random_generator().state_dict(), nvidia_attributes(**changes))
    with pytest.raises(UnsupportedModelError, match=rf"a.pkl cannot be used\. .*{message}"):
        load_model(path)


# TensorFlow pickles: names and orders are checked above against the official reader


@pytest.mark.parametrize(
    ("version", "kwargs", "message"),
    [
        (3, {}, "container version 3, a StyleGAN1 or older"),
        (4, {"label_size": 4}, "Class-conditional StyleGAN2 with 4 labels"),
        (4, {"architecture": "resnet"}, "architecture 'resnet'"),
        (4, {"resample_kernel": [1, 2, 1]}, r"resample_kernel is not the \[1, 3, 3, 1\] filter"),
    ],
)
def test_tensorflow_variants_that_are_not_built_are_refused(tmp_path, version, kwargs, message):
    import pickle

    with borrowed_class("dnnlib.tflib.network.Network") as network_class:
        network = network_class()
        network.__dict__.update(version=version, static_kwargs=kwargs, variables=[], components={})
        (tmp_path / "a.pkl").write_bytes(pickle.dumps((network, network, network)))
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path / "a.pkl")


def test_the_clamp_of_a_tensorflow_network_is_kept_and_the_average_generator_is_used(tmp_path):
    case = {**FIXTURES["tensorflow_16"], "static": {"conv_clamp": 256}}
    tensorflow_pickle(case, tmp_path / "a.pkl")
    assert load_model(tmp_path / "a.pkl").module.config.conv_clamp == 256
