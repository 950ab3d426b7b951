"""The trainer of SAM's invertibility predictor: labels by several processes, exact resumption, figures."""

import dataclasses
import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from gan_inversion import load_model
from gan_inversion.core.deeplab import DeepLabConfig
from gan_inversion.core.encoders import Encoder, EncoderConfig
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.invertibility import InvertibilityConfig, latent_spaces
from gan_inversion.core.training import invertibility as training
from gan_inversion.core.training.common import load_checkpoint
from gan_inversion.core.training.invertibility import (
    InvertibilityTraining,
    Labels,
    LabelSettings,
    blurred,
    correlations,
    load_labels,
    make_labels,
    overlaps,
    split_people,
    thresholds,
    train,
)
from gan_inversion.model_registry.loading import save_model

W, SIDE = 8, 32
SPACES = latent_spaces(SIDE)
TINY = LabelSettings(steps=1, held_out=0.34, held_out_every=2, chunk=2)
SHORT = InvertibilityTraining(steps=3, batch=2)
CONFIG = InvertibilityConfig(
    SPACES, DeepLabConfig(stem=8, widths=(4, 4), units=(1, 1), pyramid=8, low_level=4, decoder=8, outputs=4), hidden=2
)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(SIDE, (8, 8, 8, 4), W, W, 1)).requires_grad_(False)
    config = EncoderConfig(
        num_ws=8, w_dim=W, stem=4, widths=(8, 12, 16), units=(1, 1, 1), se_reduction=4, input_size=(SIDE, SIDE)
    )
    return generator, Encoder(config)


@pytest.fixture(scope="module")
def folder(bank, networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels")
    assert make_labels(bank, *networks, out, 4, TINY)
    return out


def made_up_labels(count=8):
    """A bright square in each picture: an error of 1 in W+ there, of 0.5 in the next space, and so on."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 40, (count, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    masks = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.uint8)
    for row in range(count):
        x, y = torch.randint(0, SIDE - 12, (2,), generator=random).tolist()
        masks[row, :, y : y + 12, x : x + 12] = 255
    images = torch.maximum(images, masks)
    errors = torch.cat([masks.float() / 255 / 2**k + 0.05 for k in range(len(SPACES))], dim=1).half()
    return Labels(images, errors, masks, torch.arange(count) >= count - 2, SPACES)


def contents(path):
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_labels_do_not_depend_on_who_makes_them(bank, networks, folder, tmp_path):
    labels = load_labels(folder, 4, TINY)
    assert labels.images.shape == (4, 3, SIDE, SIDE) and labels.errors.shape == (4, len(SPACES), SIDE, SIDE)
    assert labels.spaces == SPACES and labels.held_out.tolist() == [False, False, True, True]
    assert labels.images.dtype == labels.masks.dtype == torch.uint8 and labels.errors.dtype == torch.float16
    assert float(labels.errors.min()) >= 0 and 0.01 < float(labels.errors.float().mean()) < 2
    assert not torch.equal(labels.images[0], labels.images[2])
    # One chunk made, the other one claimed by a process that died.
    claim = tmp_path / "chunk-000001.claim"
    claim.touch()
    assert not make_labels(bank, *networks, tmp_path, 4, TINY, time_budget=0.0)
    assert make_labels(bank, *networks, tmp_path, 2, TINY)
    assert contents(tmp_path).keys() == {"chunk-000000.safetensors"}
    old = time.time() - 1e6
    os.utime(claim, (old, old))
    assert make_labels(bank, *networks, tmp_path, 4, TINY)
    assert same(contents(tmp_path), contents(folder)) and not claim.exists()
    rows = (folder / "labels.csv").read_text().splitlines()
    assert rows[0] == "chunk,pictures,images_per_hour,cpu_seconds_per_image" and len(rows) == 3


def test_a_chunk_of_another_process_is_waited_for(bank, networks, folder, tmp_path, monkeypatch):
    claim = tmp_path / "chunk-000000.claim"
    claim.touch()
    waits = []

    def finished_meanwhile(seconds):
        waits.append(seconds)
        name = "chunk-000000.safetensors"
        (tmp_path / name).write_bytes((folder / name).read_bytes())

    monkeypatch.setattr(training.time, "sleep", finished_meanwhile)
    assert make_labels(bank, *networks, tmp_path, 2, TINY)
    assert len(waits) == 1


def test_labels_of_other_settings_are_refused(bank, networks, folder):
    other = dataclasses.replace(TINY, steps=2)
    with pytest.raises(InvalidInputError, match="labels made with settings"):
        make_labels(bank, *networks, folder, 4, other)
    with pytest.raises(InvalidInputError, match="Measure the labels first"):
        load_labels(folder, 6, TINY)
    for wrong in ({"chunk": 0}, {"held_out_every": 1}, {"occluded_share": 1.5}, {"objects": (2, 1)}):
        with pytest.raises(InvalidInputError):
            LabelSettings(**wrong)
    with pytest.raises(InvalidInputError):
        InvertibilityTraining(batch=1)


def test_held_out_people_are_never_trained_on(bank):
    bank.people, before = [*bank.people[:4], "a" + training.MIRRORED], bank.people
    try:
        parts = split_people(bank, TINY)
    finally:
        bank.people = before
    names = [{person.removesuffix(training.MIRRORED) for person in part.people} for part in parts]
    assert names[0] | names[1] == {"a", "b"} and not names[0] & names[1]
    assert sum(part.entries for part in parts) == 5


def test_pictures_of_a_chunk_follow_from_its_number(bank):
    images, masks = training.draw_pictures(bank, SIDE, 0, dataclasses.replace(TINY, occluded_share=1.0))
    plain, none = training.draw_pictures(bank, SIDE, 0, dataclasses.replace(TINY, occluded_share=0.0))
    assert int(masks.max()) > 127 and not bool(none.any())
    assert bool((images != plain).any())
    again = training.draw_pictures(bank, SIDE, 0, dataclasses.replace(TINY, occluded_share=1.0))
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path):
    labels = made_up_labels()
    straight = train(labels, tmp_path / "straight", SHORT, config=CONFIG)
    for stop_at in (1, 2):
        train(labels, tmp_path / "stopped", SHORT, config=CONFIG, max_steps=stop_at)
    resumed = train(labels, tmp_path / "stopped", SHORT, config=CONFIG)
    assert same(straight.state_dict(), resumed.state_dict()) and not straight.training
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "stopped")]
    assert same(*states) and states[0]["step"] == 3
    rows = (tmp_path / "straight" / "held-out.csv").read_text().splitlines()
    assert rows[0] == "step," + ",".join(f"correlation_{s}" for s in SPACES) + ",error" and len(rows) == 2
    assert (tmp_path / "straight" / "samples-000003.png").is_file()
    with pytest.raises(InvalidInputError, match="learns from 8 pictures, not 6"):
        train(made_up_labels(6), tmp_path / "straight", SHORT, config=CONFIG)
    with pytest.raises(InvalidInputError, match="another network"):
        wider = dataclasses.replace(CONFIG, hidden=3)
        train(labels, tmp_path / "straight", SHORT, config=wider)


def test_the_network_learns_where_the_errors_are(tmp_path):
    labels = made_up_labels()
    settings = InvertibilityTraining(steps=30, batch=4, learning_rate=0.05)
    network = train(labels, tmp_path, settings, config=CONFIG)
    figures = {**correlations(network, labels), **overlaps(network, labels)}
    assert figures["correlation_W+"] > 0.6
    assert figures["iou_measured"] > 0.7 and figures["iou"] > 0.4  # superpixels of a 32 px picture are coarse


def test_finished_networks_give_errors_in_their_own_unit():
    labels = made_up_labels()
    run = training._Run(labels, CONFIG, SHORT, training.make_accelerator())
    image, (inner, outer) = labels.pictures(torch.arange(2)), (run.network.eval(), run.finished())
    with torch.no_grad():
        for k, space in enumerate(SPACES):
            relative, error = inner(image)[space], outer(image)[space]
            torch.testing.assert_close(relative * run.spread[k], error)
            assert float(error.mean()) == pytest.approx(float(labels.errors[:6, k].float().mean()), rel=1.0)
    assert bool((run.spread.diff() < 0).all())


def test_thresholds_are_judged_over_all_pictures():
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    masks[0, ..., :2] = 255
    errors = {"W+": masks / 255.0, "F4": torch.zeros(2, 1, 4, 4)}
    errors["W+"][1, ..., :1] = 0.4
    taus, shares = thresholds(errors, masks, torch.tensor([0.3, 0.5, 2.0]))
    assert shares.tolist() == pytest.approx([8 / 12, 1.0, 0.0])
    found, shares = thresholds(errors, masks)
    assert float(shares.max()) == 1.0 and bool((found.diff() >= 0).all())


def test_blur_keeps_light_and_zero_keeps_all():
    image = torch.rand(2, 3, 8, 8)
    found = blurred(image, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(found[0], image[0])
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(blurred(flat, torch.tensor([0.9])), flat)
    point = torch.zeros(1, 3, 9, 9)
    point[:, 1, 4, 4] = 1
    spread = blurred(point, torch.tensor([0.8]))
    assert not bool(spread[:, ::2].any()) and float(spread.sum()) == pytest.approx(1, abs=1e-4)
    side = float(torch.exp(torch.tensor(-0.5 / 0.64)))
    assert float(spread[0, 1, 4, 5] / spread[0, 1, 4, 4]) == pytest.approx(side, abs=1e-4)
    torch.testing.assert_close(spread, spread.transpose(2, 3))


def test_the_command_writes_a_model_that_loads(bank, networks, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    bank.save(tmp_path / "runs" / "morphs.safetensors")
    known = {"G": networks[0], "E": networks[1]}
    registry = SimpleNamespace(
        load_model=lambda name: SimpleNamespace(module=known[str(name)]),
        perceptual_distance=lambda name: training.multiscale_distance,
        save_model=save_model,
    )
    monkeypatch.setattr(training, "LabelSettings", lambda: TINY)
    monkeypatch.setattr(training.InvertibilityConfig, "slim", lambda *_: CONFIG)
    arguments = [
        *("--portraits", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "i.safetensors")),
        *("--generator", "G", "--encoder", "E", "--lpips", "--device", "cpu", "--batch", "2"),
        *("--label-steps", "1", "--steps", "2", "--pictures", "4"),
    ]
    assert training.main([*arguments, "--labels-only"], registry) == tmp_path / "runs" / "invertibility" / "labels"
    assert not (tmp_path / "runs" / "invertibility" / "checkpoint.pt").exists()
    loaded = load_model(training.main(arguments, registry))
    assert loaded.architecture == "sam-invertibility" and loaded.module.config.spaces == SPACES
    facts = loaded.metadata
    assert facts["encoder"] == "E" and facts["pictures"] == "4" and '"steps": 2' in facts["settings"]
    assert json.loads(facts["labels"])["distance_weight"] == 1.0 and {"tau", "iou", "correlation_W+"} <= facts.keys()
