"""Training of the landmark net: people set aside stay aside, samples know their points, a run can be taken up again."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion import model_registry
from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.landmarks import MIRROR_ORDER, load_landmark_net
from gan_inversion.core.training import landmarks as trainer
from gan_inversion.core.training.landmark_samples import (
    LandmarkTrainingConfig,
    Pool,
    build_pool,
    ibug_points,
    sample_batch,
)

# Rows of the template that alignment stands on; the rest of a made-up face is scattered over it.
PLACES = {18: (-0.7, 0), 22: (-0.3, 0), 23: (0.3, 0), 27: (0.7, 0), 87: (-0.4, 1.1), 93: (0.4, 1.1)}


def made_up_template(seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).uniform((-0.9, -0.4), (0.9, 1.7), (189, 2))
    for rows, x in (((18, 19, 21, 22, 30, 28), -0.5), ((23, 24, 26, 27, 33, 31), 0.5)):
        points[list(rows)] = [x, 0.0]
    for row, place in PLACES.items():
        points[row] = place
    return points * 30 + [100, 90]


@pytest.fixture
def portraits(tmp_path):
    people = [("london", "001", "train"), ("london", "002", "test"), ("canada", "003f", "train")]
    with open(tmp_path / "info.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "id", "split"])
        writer.writerows(people)
    landmarks = {}
    for number, (source, name, _) in enumerate(people):
        folder = "neutral" if source == "london" else "canada"
        (tmp_path / folder).mkdir(exist_ok=True)
        grey = 40 + 80 * number  # a picture's colour tells whose it is
        Image.new("RGB", (200, 220), (grey, grey, grey)).save(tmp_path / folder / f"{name}.png")
        (tmp_path / folder / f"{name}.png").rename(tmp_path / folder / f"{name}.jpg")
        landmarks[f"{folder}/{name}"] = made_up_template(number).tolist()
    (tmp_path / "landmarks.json").write_text(json.dumps(landmarks))
    return tmp_path


def small_pool(count: int = 4) -> Pool:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (count, 3, 256, 256), generator=generator, dtype=torch.uint8)
    points = (ibug_points(made_up_template(0)) - [100, 90]) / 30
    return Pool(
        pictures,
        torch.from_numpy(points).float().expand(count, -1, -1),
        torch.tensor([True] * (count - 1) + [False]),
        torch.zeros(2, 3, 96, 96),
    )


def test_people_set_aside_never_enter_the_pool(portraits):
    pool = build_pool(portraits, LandmarkTrainingConfig(morphs=3))
    assert pool.pictures.shape == (5, 3, 256, 256) and pool.points.shape == (5, 68, 2) and bool(pool.complete.all())
    colours = pool.pictures.float().mean(dim=(1, 2, 3))
    assert colours[:2].round().tolist() == [40.0, 200.0]  # 120 is the person set aside
    eyes = pool.points[:2, 36:48].view(2, 2, 6, 2).mean(dim=2)
    assert torch.allclose(eyes, torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).expand(2, -1, -1), atol=1e-5)


def test_template_becomes_ibug_points():
    template = made_up_template(0)
    points = ibug_points(template)
    assert points.shape == (68, 2)
    for index, row in {36: 18, 39: 22, 42: 23, 45: 27, 48: 87, 54: 93, 8: 129}.items():
        assert np.allclose(points[index], template[row]), index
    with pytest.raises(InvalidInputError, match="189 London points"):
        ibug_points(points)


def test_samples_are_finite_and_unlabelled_points_are_masked():
    config = LandmarkTrainingConfig(batch=24)
    crops, points, known, is_face = sample_batch(small_pool(), config, torch.Generator().manual_seed(1))
    assert crops.shape == (24, 3, 96, 96) and bool(torch.isfinite(crops).all()) and crops.abs().max() <= 1
    assert points.shape == (24, 68, 2) and known.shape == (24, 68)
    assert 0 < is_face.mean() < 1 and bool((known[is_face == 0] == 0).all())
    partly = [sample for sample, face in zip(known, is_face, strict=True) if face and sample[:27].sum() == 0]
    assert partly, "the picture with five known groups shows no jaw or brow labels"


def test_labels_follow_the_picture():
    """A bright dot on a mouth corner stays under its point, mirrored, posed and placed at random."""
    pool = small_pool(2)
    pool.pictures[:] = 0
    points = pool.points[0, 54]
    x, y = ((points / 2.6 + 1) * 128 - 0.5).round().long().tolist()
    pool.pictures[:, :, y - 4 : y + 5, x - 4 : x + 5] = 255
    other = (pool.points[0, list(MIRROR_ORDER)][54] * torch.tensor([-1.0, 1.0])).tolist()
    assert abs(other[0] - points[0]) < 1e-5  # the made-up mouth is symmetric, so its mirror image has the same corner
    config = LandmarkTrainingConfig(batch=32, negative_part=0.0)
    pool.complete[:] = True
    near = 0
    for seed in range(3):
        crops, pixels, known, _ = sample_batch(pool, config, torch.Generator().manual_seed(seed))
        for crop, point, mask in zip(crops.mean(dim=1), pixels, known, strict=True):
            corners = [point[index] for index in (48, 54) if mask[index]]
            brightest = torch.tensor([float(crop.argmax() % 96), float(crop.argmax() // 96)])
            near += any(float((corner - brightest).norm()) < 4 for corner in corners)
    assert near > 30  # covers and light hide many; chance would give about one


@pytest.mark.parametrize("stop_at", [1, 2])
def test_training_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(trainer, "build_pool", lambda *_: small_pool())
    (tmp_path / "landmarks.json").write_text("{}")
    config = LandmarkTrainingConfig(steps=3, batch=4)
    straight = trainer.train(tmp_path, tmp_path / "one", config)
    trainer.train(tmp_path, tmp_path / "two", config, max_steps=stop_at)
    resumed = trainer.train(tmp_path, tmp_path / "two", config)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    fresh = trainer.train(tmp_path, tmp_path / "three", config, max_steps=1)
    assert not torch.equal(fresh.heatmaps.weight, straight.heatmaps.weight)


def test_the_command_writes_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build_pool", lambda *_: small_pool())
    (tmp_path / "landmarks.json").write_text("{}")
    out = tmp_path / "weights" / "landmarks.safetensors"
    argv = ["--portraits", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(out), "--device=cpu"]
    assert trainer.main([*argv, "--steps=1", "--batch=2"], model_registry) == out
    assert load_landmark_net(out)(torch.zeros(1, 3, 96, 96))[0].shape == (1, 68, 2)


def test_a_folder_without_portraits_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"has no landmarks\.json"):
        trainer.train(tmp_path, tmp_path / "out")
