"""The trainer of the one-pass multilayer encoder: exact resumption, random regions, a loss that falls."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from gan_inversion import load_model
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.invertibility import latent_spaces
from gan_inversion.core.training import multilayer as training
from gan_inversion.core.training.common import load_checkpoint
from gan_inversion.core.training.multilayer import MultilayerTraining, random_map, train
from gan_inversion.model_registry.loading import save_model

W, SIDE = 8, 32
SPACES = latent_spaces(SIDE)
SMALL = MultilayerTraining(steps=3, batch=2, warmup=1, segments=20, occluded_share=1.0)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(SIDE, (8, 8, 8, 4), W, W, 1)).requires_grad_(False)
    config = EncoderConfig(
        num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(SIDE, SIDE)
    )
    return generator, Encoder(config)


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch):
    monkeypatch.setattr(training, "_HELD_OUT", 2)


def test_a_run_that_was_stopped_ends_in_the_same_weights(bank, networks, tmp_path):
    whole = train(bank, *networks, tmp_path / "whole", SMALL)
    for stop in (1, 2, None):
        parts = train(bank, *networks, tmp_path / "parts", SMALL, max_steps=stop)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    state = [load_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("whole", "parts")]
    assert state[0]["step"] == state[1]["step"] == 3
    assert (tmp_path / "whole" / "samples-000003.png").is_file()


def test_offsets_bring_the_pictures_nearer(bank, networks, tmp_path):
    settings = dataclasses.replace(SMALL, steps=40, learning_rate=3e-3, occluded_share=0.0)
    train(bank, *networks, tmp_path, settings)
    rows = (tmp_path / "held-out.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), map(float, rows[-1].split(",")), strict=True))
    assert last["psnr_features"] > last["psnr_plain_features"] + 0.3


def test_random_regions_follow_the_error_unless_shuffled():
    error = torch.linspace(0, 1, 32).expand(1, 1, 32, 32).contiguous()  # grows from left to right
    segments = (torch.arange(32) // 4).expand(1, 32, 32).contiguous()
    found = [random_map(error, segments, SPACES, torch.Generator().manual_seed(k), 0.0).index[0] for k in range(20)]
    for index in found:
        assert (index[:, 1:] >= index[:, :-1]).all()
        assert all(len(index[:, column : column + 4].unique()) == 1 for column in range(0, 32, 4))
    assert len({tuple(index[0].tolist()) for index in found}) > 10
    assert {int(k) for index in found for k in index.unique()} == set(range(len(SPACES)))
    shuffled = [random_map(error, segments, SPACES, torch.Generator().manual_seed(k), 1.0).index[0] for k in range(20)]
    assert any((index[:, 1:] < index[:, :-1]).any() for index in shuffled)
    same = random_map(error, segments, SPACES, torch.Generator().manual_seed(0), 0.0).index[0]
    assert torch.equal(same, found[0])


def test_frozen_networks_stay(bank, networks, tmp_path):
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    train(bank, *networks, tmp_path, SMALL, max_steps=1)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_settings_and_runs_that_do_not_fit_are_refused(bank, networks, tmp_path):
    for wrong in ({"steps": 0}, {"occluded_share": 2.0}, {"objects": (2, 1)}, {"shuffled_share": -1.0}):
        with pytest.raises(InvalidInputError):
            MultilayerTraining(**wrong)
    train(bank, *networks, tmp_path, SMALL, max_steps=1)
    other = Generator(GeneratorConfig(SIDE, (8, 8, 12, 4), W, W, 1)).requires_grad_(False)
    with pytest.raises(InvalidInputError, match="other sizes"):
        train(bank, other, networks[1], tmp_path, SMALL)


def test_the_command_writes_a_model_that_loads(bank, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_morphs", lambda portraits, runs: bank)
    monkeypatch.setattr(training, "MultilayerTraining", lambda: SMALL)
    monkeypatch.setattr("gan_inversion.core.perceptual.trunk_distance", lambda trunk: training.multiscale_distance)
    models = {"g": networks[0], "e": networks[1], "p": torch.nn.Identity()}
    registry = SimpleNamespace(load_model=lambda name: SimpleNamespace(module=models[name]), save_model=save_model)
    common = ["--portraits", "P", "--runs", str(tmp_path), "--out", str(tmp_path / "m.safetensors"), "--device", "cpu"]
    names = ["--generator", "g", "--encoder", "e", "--perceptual", "p"]
    loaded = load_model(training.main([*common, *names, "--steps", "2"], registry))
    assert loaded.architecture == "sam-encoder"
    assert loaded.module.config.spaces == SPACES[1:]
