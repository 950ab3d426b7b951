"""Discriminators in foreign files, in our own, and in files that have none; known answers from official code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.errors import UnsupportedModelError
from gan_inversion.core.skeleton import skeleton
from gan_inversion.model_registry import convert, load_model, save_model

from ..parity.discriminator_parity import FIXTURES, r1_gradients, seeded_images, tensorflow_pickle
from ..parity.generator_parity import borrowed_class, seeded_state
from .foreign_files import (
    DISCRIMINATOR,
    nvidia_pickle,
    random_discriminator,
    random_generator,
    rosinality_discriminator_tensors,
    rosinality_tensors,
)

FOLDER = Path(__file__).parents[1] / "fixtures" / "discriminators"
NAME = "stylegan2-discriminator"


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def save(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def attributes(**changes: object) -> dict[str, object]:
    known = {"c_dim": 0, "b4.architecture": "resnet", "b4.conv.activation": "lrelu", "b4.conv.conv_clamp": None}
    return {**known, "b4.mbstd.group_size": 4, **changes}


# Numbers written by the official code (tests/parity/discriminator_parity.py --fixtures) for weights that are made here.


@pytest.mark.parametrize("name", ["rosinality_8", "nvidia_32", "tensorflow_16"])
def test_logits_and_r1_gradients_are_those_of_the_official_code(tmp_path, name):
    stored = np.load(FOLDER / f"{name}.npz")
    if name == "rosinality_8":
        path = save(tmp_path, {"g_ema": {}, "d": seeded_state(json.loads(str(stored["shapes"])))})
    elif name == "nvidia_32":
        state = seeded_state(json.loads(str(stored["shapes"])))
        path = nvidia_pickle(tmp_path / "a.pkl", {}, discriminator=(state, attributes(**{"b4.conv.conv_clamp": 1.5})))
    else:
        path = tmp_path / "a.pkl"
        tensorflow_pickle(FIXTURES[name], path)
    module = load_model(path, part="discriminator").module
    images = seeded_images(FIXTURES[name]["resolution"], 8)
    expected = {key: torch.from_numpy(stored[key]) for key in ("logits", "on_images")}
    torch.testing.assert_close(module(images), expected["logits"], atol=1e-4, rtol=0)
    on_images, r1 = r1_gradients(module.requires_grad_(True), images)
    largest = expected["on_images"].abs().max().item()
    torch.testing.assert_close(on_images[:2], expected["on_images"], atol=1e-5 * largest, rtol=0)
    norms = {key: value for key, value in json.loads(str(stored["r1"])).items() if value}
    found = sorted(gradient.norm().item() for gradient in r1.values() if gradient.any())
    assert found == pytest.approx(sorted(norms.values()), rel=1e-3, abs=1e-4 * max(norms.values()))


# rosinality


@pytest.mark.parametrize("wrapping", ["checkpoint", "without the generator", "parallel", "bare", "prefixed"])
def test_rosinality_files_in_every_wrapping(tmp_path, wrapping):
    discriminator = random_discriminator()
    state, generator = rosinality_discriminator_tensors(discriminator), rosinality_tensors(random_generator())
    content = {
        "checkpoint": {"g": generator, "d": state, "g_ema": generator, "g_optim": {"state": {}}, "args": None},
        "without the generator": {"d": state},
        "parallel": {"g_ema": generator, "d": {f"module.{key}": value for key, value in state.items()}},
        "bare": state,
        "prefixed": {
            "state_dict": {
                **{f"generator.{key}": value for key, value in generator.items()},
                **{f"discriminator.{key}": value for key, value in state.items()},
            }
        },
    }[wrapping]
    loaded = load_model(save(tmp_path, content), part="discriminator")
    assert loaded.architecture == NAME and loaded.module.config == DISCRIMINATOR
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())
    assert_same(loaded.module, discriminator)
    if wrapping == "bare":
        assert_same(load_model(tmp_path / "a.pt").module, discriminator)
    elif wrapping != "without the generator":
        assert load_model(tmp_path / "a.pt").architecture == "stylegan2"


def test_a_rosinality_file_with_unknown_or_missing_keys_or_another_filter_is_refused(tmp_path):
    state = rosinality_discriminator_tensors(random_discriminator())

    def refused(message: str, **changes: torch.Tensor | None) -> None:
        content = {key: value for key, value in {**state, **changes}.items() if value is not None}
        with pytest.raises(UnsupportedModelError, match=f"a.pt cannot be used. .*{message}"):
            load_model(save(tmp_path, {"d": content}), part="discriminator")

    refused("Discriminator: the file has unknown convs.1.iwt.ll", **{"convs.1.iwt.ll": torch.zeros(2, 2)})
    refused(r"the file lacks b8.conv1.bias\.", **{"convs.2.conv2.2.bias": None})
    refused(r"do not fit: b16.conv0.bias \(9,\) instead of \(8,\)", **{"convs.1.conv1.1.bias": torch.zeros(9)})
    refused("discriminator without b16.fromrgb.weight", **{"convs.0.0.weight": None})
    refused("4-channel images: expected 3", **{"convs.0.0.weight": torch.zeros(8, 4, 1, 1)})
    refused(r"convs.1.skip.0.kernel is not the \[1, 3, 3, 1\] filter", **{"convs.1.skip.0.kernel": torch.ones(4, 4)})


# NVIDIA torch pickles


@pytest.mark.parametrize(
    "config",
    [
        DISCRIMINATOR,
        DiscriminatorConfig(16, (16, 12, 8), mbstd_group_size=8, conv_clamp=256.0),
        DiscriminatorConfig(32, (16, 12, 8, 4), mbstd_group_size=None, mbstd_channels=2),
        DiscriminatorConfig(8, (6, 5), mbstd_channels=0),
    ],
)
def test_nvidia_pickles_keep_clamp_and_groups(tmp_path, config):
    discriminator = random_discriminator(config)
    stored = {"b4.conv.conv_clamp": config.conv_clamp, "b4.mbstd.group_size": config.mbstd_group_size}
    path = nvidia_pickle(
        tmp_path / "a.pkl",
        random_generator().state_dict(),
        discriminator=(discriminator.state_dict(), attributes(**stored)),
    )
    loaded = load_model(path, part="discriminator")
    assert loaded.architecture == NAME and loaded.module.config == config
    assert_same(loaded.module, discriminator)
    assert load_model(path).architecture == "stylegan2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c_dim": 10}, "Class-conditional StyleGAN2 with 10 labels: only unconditional"),
        ({"b4.architecture": "skip"}, "discriminator architecture 'skip': only 'resnet'"),
        ({"b4.architecture": "orig"}, "discriminator architecture 'orig': only 'resnet'"),
        ({"b4.conv.activation": "relu"}, "activation 'relu': only 'lrelu'"),
    ],
)
def test_variants_that_are_not_built_are_refused(tmp_path, changes, message):
    state = random_discriminator().state_dict()
    path = nvidia_pickle(tmp_path / "a.pkl", {}, discriminator=(state, attributes(**changes)))
    with pytest.raises(UnsupportedModelError, match=rf"a.pkl cannot be used\. .*{message}"):
        load_model(path, part="discriminator")


def test_variants_are_told_by_their_tensors_too(tmp_path):
    state = random_discriminator().state_dict()
    without_skips = {name: tensor for name, tensor in state.items() if ".skip." not in name}
    with pytest.raises(UnsupportedModelError, match="without b8.skip.weight, b16.skip.weight: .* no 'resnet' network"):
        load_model(save(tmp_path, without_skips))
    with pytest.raises(UnsupportedModelError, match="Class-conditional StyleGAN2"):
        load_model(save(tmp_path, {**state, "mapping.embed.weight": torch.zeros(2, 2)}))
    with pytest.raises(UnsupportedModelError, match=r"b8.conv1.resample_filter is not the \[1, 3, 3, 1\] filter"):
        load_model(save(tmp_path, {**state, "b8.conv1.resample_filter": torch.ones(4, 4) / 16}))


# TensorFlow pickles: names and axis orders are checked above against the official reader


@pytest.mark.parametrize(
    ("function", "kwargs", "group"),
    [("D_stylegan2", {}, 4), ("D_main", {}, None), ("D_main", {"mbstd_group_size": 8}, 8)],
)
def test_groups_and_clamp_of_tensorflow_networks(tmp_path, function, kwargs, group):
    case = {**FIXTURES["tensorflow_16"], "tensorflow": {"conv_clamp": 256, **kwargs}}
    tensorflow_pickle(case, tmp_path / "a.pkl", function=function)
    config = load_model(tmp_path / "a.pkl", part="discriminator").module.config
    assert config.mbstd_group_size == group and config.conv_clamp == 256


@pytest.mark.parametrize(
    ("version", "kwargs", "variables", "message"),
    [
        (3, {}, {}, "container version 3, a StyleGAN1 or older"),
        (4, {"label_size": 4}, {}, "Class-conditional StyleGAN2 with 4 labels"),
        (4, {"architecture": "skip"}, {}, "discriminator architecture 'skip'"),
        (4, {}, {"FromRGB_lod0/weight": np.zeros((1, 1, 3, 8))}, "discriminator architecture 'orig'"),
        (4, {"resample_kernel": [1, 2, 1]}, {}, r"resample_kernel is not the \[1, 3, 3, 1\] filter"),
    ],
)
def test_tensorflow_variants_that_are_not_built_are_refused(tmp_path, version, kwargs, variables, message):
    variables = {"Output/weight": np.zeros((4, 1)), **variables}
    with borrowed_class("dnnlib.tflib.network.Network") as network_class:
        network = network_class()
        network.__dict__.update(version=version, static_kwargs=kwargs, variables=list(variables.items()), components={})
        (tmp_path / "a.pkl").write_bytes(pickle.dumps((network, network, network)))
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path / "a.pkl", part="discriminator")


# Our own files


@pytest.mark.parametrize("source", ["a.pt", "a.pkl", "a.safetensors"])
def test_converting_keeps_tensors_and_options(tmp_path, source):
    foreign = {} if source == "a.pt" else {"mbstd_group_size": 8, "conv_clamp": 256.0}
    discriminator = random_discriminator(DiscriminatorConfig(16, (16, 12, 8), **foreign))
    if source == "a.pt":
        torch.save({"g_ema": {}, "d": rosinality_discriminator_tensors(discriminator)}, tmp_path / source)
    elif source == "a.pkl":
        options = attributes(**{"b4.mbstd.group_size": 8, "b4.conv.conv_clamp": 256})
        nvidia_pickle(tmp_path / source, {}, discriminator=(discriminator.state_dict(), options))
    else:
        save_model(discriminator, tmp_path / source)
    written = convert(tmp_path / source, tmp_path / "converted.safetensors", part="discriminator")
    with safe_open(written, "pt") as file:
        assert file.metadata()["architecture"] == NAME
    for part in (None, "discriminator"):
        loaded = load_model(written, part=part, architecture=NAME)
        assert loaded.architecture == NAME and loaded.module.config == discriminator.config
        assert_same(loaded.module, discriminator)
    assert loaded.identity == load_model(tmp_path / source, part="discriminator").identity


def test_a_loaded_discriminator_gives_the_same_verdicts_and_can_be_trained(tmp_path):
    discriminator = random_discriminator()
    path = save_model(discriminator.to(memory_format=torch.channels_last), tmp_path / "a.safetensors")
    with torch.inference_mode():  # as in a ComfyUI node
        loaded = load_model(path).module
    images = seeded_images(16, 4)
    torch.testing.assert_close(loaded(images), discriminator(images), rtol=1e-5, atol=1e-5)
    loaded.requires_grad_(True)(images).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_bare_tensors_load_without_a_header(tmp_path):
    discriminator = random_discriminator()
    save_file(discriminator.state_dict(), tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.architecture == NAME and loaded.module.config == DISCRIMINATOR
    assert_same(loaded.module, discriminator)


def test_files_without_a_discriminator_say_so(tmp_path):
    generator = random_generator()
    paths = [
        save_model(generator, tmp_path / "a.safetensors"),
        nvidia_pickle(tmp_path / "a.pkl", generator.state_dict()),
        save(tmp_path, {"g_ema": rosinality_tensors(generator), "d": {}}),
    ]
    torch.save({"g_ema": rosinality_tensors(generator)}, tmp_path / "inference.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for path in (*paths, tmp_path / "inference.pt", tmp_path / "list.pt"):
        with pytest.raises(
            UnsupportedModelError, match=rf"{path.name} cannot be used\. It holds no discriminator: exp"
        ):
            load_model(path, part="discriminator")


def test_a_discriminator_is_no_generator(tmp_path):
    path = save_model(random_discriminator(), tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedModelError, match="It holds a stylegan2-discriminator network: expected stylegan2"):
        load_model(path, architecture="stylegan2")
    with pytest.raises(UnsupportedModelError, match="holds no decoder"):
        load_model(path, part="decoder")


def test_a_skeleton_has_the_structure_of_the_module():
    with skeleton():
        hollow = Discriminator(DISCRIMINATOR).state_dict()
    full = random_discriminator().state_dict()
    assert hollow.keys() == full.keys()
    assert all(hollow[n].shape == full[n].shape and hollow[n].is_meta for n in full)
