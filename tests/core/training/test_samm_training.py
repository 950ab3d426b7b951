"""The SAMM trainer: exact resumption, losses that fall, levels and discriminator that come in on time."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gan_inversion import load_model
from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import CorruptFileError, InvalidInputError, UnsupportedModelError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.training import samm as training
from gan_inversion.core.training.common import load_checkpoint, make_accelerator, save_checkpoint
from gan_inversion.core.training.samm import Judges, SammTraining, mask_cross_entropy, style_distance, train
from gan_inversion.core.training.vgg19 import LAYERS, VGG19, vgg_distance
from gan_inversion.model_registry.loading import save_model

W = 8
SMALL = SammTraining(
    mask_steps=1,
    image_steps=2,
    batch=2,
    level_every=1,
    adversarial_start=0,
    warmup=1,
    allowed_area=(0.3, 0.2, 0.2, 0.2),
    occluded_share=1.0,
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, (8, 8, 8, 4), W, W, 1)).requires_grad_(False)
    config = EncoderConfig(
        num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(32, 32)
    )
    return generator, Encoder(config)


@pytest.fixture(scope="module")
def judges():
    torch.manual_seed(1)
    return Judges(
        features=lambda image: [F.avg_pool2d(image, 4)],
        identity=lambda image: F.normalize(image[:, :, ::8, ::8].flatten(1), dim=1),
        discriminator=Discriminator(DiscriminatorConfig(32, (8, 8, 8, 4))),
    )


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch):
    monkeypatch.setattr(training, "_HELD_OUT", 2)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_that_was_stopped_ends_in_the_same_weights(bank, networks, judges, tmp_path):
    settings = dataclasses.replace(SMALL, style=50.0)
    straight = train(bank, *networks, tmp_path / "straight", settings, judges=judges)
    for stop_at in (1, 2):
        train(bank, *networks, tmp_path / "stopped", settings, judges=judges, max_steps=stop_at)
    resumed = train(bank, *networks, tmp_path / "stopped", settings, judges=judges)
    assert same(straight.state_dict(), resumed.state_dict())
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped")]
    assert same(*states) and states[0]["step"] == 3
    assert not same(states[0]["adversary"]["discriminator"], judges.discriminator.state_dict())
    assert not straight.training and straight.config.resolutions == (8, 16, 32)
    rows = (tmp_path / "straight" / "held-out.csv").read_text().splitlines()
    assert rows[0] == "step,psnr,psnr_plain,mask_overlap,area,exact_area" and len(rows) == 2
    assert (tmp_path / "straight" / "samples-000003.png").is_file()


def new_run(bank, networks, settings, judges=Judges()):
    return training._Run(bank, *networks, settings, judges, make_accelerator())


def test_exact_masks_are_learned(bank, networks):
    settings = dataclasses.replace(SMALL, level_every=0, image_learning_rate=1e-2, image_steps=1000)
    run, values = new_run(bank, networks, settings), []
    for _ in range(15):
        run.step = 1  # the same batch again and again
        values.append(run.one_step())
    for name in ("loss", "mask", "binary"):
        assert values[-1][name] < 0.8 * values[0][name], name
    assert "adversarial" not in values[0] and "identity" not in values[0]


def test_mask_stage_learns_masks_without_passing_the_generator(bank, networks):
    run = new_run(bank, networks, dataclasses.replace(SMALL, level_every=0, learning_rate=1e-2, mask_steps=1000))
    batch = run._batch(run.random, 2)
    picture, found, merged = run._blended(run.samm, batch, 3, masks_only=True)
    assert merged.requires_grad and found.flows[8].grad_fn is not None
    (slope,) = torch.autograd.grad(found.masks[32].sum(), run.samm.feats_conv[2].weight, retain_graph=True)
    assert slope.abs().sum() > 0  # masks pass from level to level
    values = []
    for _ in range(12):
        run.step = 0
        values.append(run.one_step())
    assert values[-1]["mask"] < 0.8 * values[0]["mask"] and set(values[0]) == {"loss", "mask", "rate"}


def test_levels_and_discriminator_come_in_on_time(bank, networks, judges):
    run = new_run(bank, networks, dataclasses.replace(SMALL, adversarial_start=1), judges)
    seen = []
    blended = run._blended
    run._blended = lambda *arguments: seen.append(blended(*arguments)) or seen[-1]
    values = [run.one_step() for _ in range(3)]
    assert [sorted(found.masks) for _, found, _ in seen] == [[8], [8, 16], [8, 16, 32]]
    assert ["adversarial" in value for value in values] == [False, False, True]
    assert SMALL.open_levels(0) == 1 and dataclasses.replace(SMALL, level_every=0).open_levels(0) > 4


def test_flows_start_small_and_frozen_networks_stay(bank, networks):
    run = new_run(bank, networks, SMALL)
    before = {name: value.clone() for name, value in networks[0].state_dict().items()}
    batch = run._batch(run.random, 2)
    with torch.no_grad():
        _, found, merged = run._blended(run.samm, batch, 3)
    assert max(float(flow.abs().mean()) for flow in found.flows.values()) < 0.02
    assert merged.shape == batch.mask.shape and 0 < float(batch.mask.mean()) < 1
    run.one_step()
    assert same(before, networks[0].state_dict())
    assert not any(p.requires_grad for p in [*networks[0].parameters(), *networks[1].parameters()])


def test_losses_are_what_they_say():
    exact = torch.zeros(1, 1, 4, 4)
    exact[..., :2] = 1
    half = torch.full((1, 1, 2, 2), 0.5)
    assert float(mask_cross_entropy([half, half], exact)) == pytest.approx(0.6931, abs=1e-4)
    assert float(mask_cross_entropy([exact], exact)) < 1e-3
    a, b = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    assert float(style_distance([a], [b], [0.5])) == pytest.approx(4.0)  # 0.5 |1 - 9|


def test_settings_and_runs_that_do_not_fit_are_refused(bank, networks, tmp_path):
    for wrong in ({"occluded_share": 2.0}, {"objects": (0, 1)}, {"mask_steps": 0, "image_steps": 0}):
        with pytest.raises(InvalidInputError):
            SammTraining(**wrong)
    with pytest.raises(InvalidInputError, match="allowed_area"):
        new_run(bank, networks, dataclasses.replace(SMALL, allowed_area=(0.3, 0.2)))
    state = new_run(bank, networks, SMALL).state()
    state["samm"] = {name: value for name, value in state["samm"].items() if "feats_conv.2" not in name}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(InvalidInputError, match="another folder"):
        train(bank, *networks, tmp_path, SMALL)


def test_the_command_writes_a_model_that_loads(bank, networks, judges, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    bank.save(tmp_path / "runs" / "morphs.safetensors")
    known = {"G": networks[0], "E": networks[1], "D": judges.discriminator}
    registry = SimpleNamespace(load_model=lambda name: SimpleNamespace(module=known[str(name)]), save_model=save_model)
    monkeypatch.setattr(training, "SammTraining", lambda: SMALL)
    written = training.main(
        [
            *("--portraits", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "s.safetensors")),
            *("--generator", "G", "--encoder", "E", "--discriminator", "D", "--identity", "none"),
            *("--perceptual", "none", "--mask-steps", "1", "--image-steps", "0", "--device", "cpu"),
        ],
        registry,
    )
    loaded = load_model(written)
    assert loaded.architecture == "samm" and loaded.module.config.resolutions == (8, 16, 32)
    assert loaded.metadata["encoder"] == "E" and '"mask_steps": 1' in loaded.metadata["settings"]


def test_vgg19_losses_take_torchvisions_names(tmp_path):
    torch.manual_seed(0)
    widths = iter((64, 64, 128, 128, *(256,) * 4, *(512,) * 8))
    state, channels = {}, 3
    for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34):
        width = next(widths)
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        state[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    path = tmp_path / "vgg19.pth"
    torch.save({**state, "classifier.0.bias": torch.zeros(1)}, path)
    trunk = VGG19.load(path)
    image, other = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    taps = trunk(image)
    assert [tuple(t.shape[1:]) for t in taps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    assert all(float(tap.min()) < 0 for tap in taps)  # before the ReLU
    distance = vgg_distance(trunk)
    expected = sum(
        w * (a - b).abs().mean(dim=(1, 2, 3)) for w, a, b in zip(LAYERS.values(), taps, trunk(other), strict=True)
    )
    assert torch.equal(distance(image, image), torch.zeros(2))
    torch.testing.assert_close(distance(image, other), expected)
    del state["features.34.bias"]
    with pytest.raises(UnsupportedModelError, match="vgg19"):
        VGG19(state)
    path.write_bytes(b"no weights")
    with pytest.raises(CorruptFileError):
        VGG19.load(path)
