"""The trainer of the perceptual trunk: it learns, resumes exactly, and measures what it says it measures."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from gan_inversion import model_registry
from gan_inversion.core.errors import CorruptFileError
from gan_inversion.core.perceptual import PerceptualTrunk, PerceptualTrunkConfig, trunk_distance
from gan_inversion.core.training import perceptual, perceptual_samples
from gan_inversion.core.training.common import step_generator
from gan_inversion.core.training.morphs import LEFT_MOUTH, LEFT_PUPIL, NOSE, RIGHT_MOUTH, RIGHT_PUPIL
from gan_inversion.core.training.perceptual import LpipsTeacher, PerceptualTraining, agreement, recovery, train
from gan_inversion.core.training.perceptual_samples import KINDS, Pictures, distort, draw_comparisons
from gan_inversion.core.training.trunk import SqueezeNetTrunk
from gan_inversion.model_registry import load_model

WIDTHS = (4, 6, 8, 8, 8)
SMALL = PerceptualTraining(
    widths=WIDTHS,
    steps=3,
    sizes=(32, 48),
    side=48,
    faces=3,
    content=3,
    members=2,
    references=2,
    versions=3,
    pursuers=2,
    pursuit_size=32,
    pursuit_steps=4,
)
FIRES = {
    3: (4, 2, 3),
    4: (6, 2, 3),
    6: (6, 2, 4),
    7: (8, 2, 4),
    9: (8, 2, 5),
    10: (10, 2, 5),
    11: (10, 2, 6),
    12: (12, 2, 6),
}


def squeezenet_tensors() -> dict[str, torch.Tensor]:
    """Torchvision's names, a few channels."""
    random = torch.Generator().manual_seed(3)
    tensors = {"0.weight": torch.randn(4, 3, 3, 3, generator=random) * 0.01, "0.bias": torch.zeros(4)}
    for index, (wide, squeezed, expanded) in FIRES.items():
        for part, shape in (
            ("squeeze", (squeezed, wide, 1, 1)),
            ("expand1x1", (expanded, squeezed, 1, 1)),
            ("expand3x3", (expanded, squeezed, 3, 3)),
        ):
            scale = (2 / math.prod(shape[1:])) ** 0.5
            tensors[f"{index}.{part}.weight"] = torch.randn(shape, generator=random) * scale
            tensors[f"{index}.{part}.bias"] = 0.1 * torch.rand(shape[0], generator=random)
    return tensors


@pytest.fixture(scope="module")
def teacher():
    return LpipsTeacher(SqueezeNetTrunk(squeezenet_tensors()), [torch.full((1, 4), 0.1 * (n + 1)) for n in range(7)])


@pytest.fixture(scope="module")
def pictures(bank):
    return perceptual_samples.training_pictures(bank, faces=3, content=3, members=2, side=48, seed=1)


@pytest.fixture
def ready_made(pictures, monkeypatch):
    """Runs use these pictures in place of rendering their own."""
    monkeypatch.setattr(perceptual, "training_pictures", lambda *_: pictures)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Scaled(torch.nn.Module):
    """A teacher whose features are `factor` times another's."""

    def __init__(self, teacher, factor):
        super().__init__()
        self.teacher, self.factor = teacher, torch.nn.Parameter(torch.tensor(factor))

    def forward(self, image):
        return [self.factor * tap for tap in self.teacher(image)]


def test_a_run_resumes_to_the_same_weights(bank, teacher, tmp_path, ready_made):
    straight = train(bank, teacher, tmp_path / "straight", SMALL)
    stopped = train(bank, teacher, tmp_path / "stopped", SMALL, time_budget=0)  # one step: it is late at once
    assert not same(straight, stopped)
    train(bank, teacher, tmp_path / "stopped", SMALL, max_steps=2)
    assert same(straight, train(bank, teacher, tmp_path / "stopped", SMALL))
    assert same(straight, train(bank, teacher, tmp_path / "stopped", SMALL))  # nothing is left to do
    assert not straight.training and straight.config.widths == WIDTHS


def test_the_distance_comes_to_agree_with_the_teacher(bank, teacher, pictures, tmp_path, ready_made):
    settings = dataclasses.replace(SMALL, steps=40, sizes=(32,), learning_rate=4e-2, pursuit=0.0)
    four_times = Scaled(teacher, 2.0)
    untrained = train(bank, four_times, tmp_path / "none", settings, max_steps=0)
    trained = train(bank, four_times, tmp_path, settings)
    before, after = (
        agreement(trunk, four_times, pictures, size=32, references=6, versions=4) for trunk in (untrained, trained)
    )
    assert before["ratio"] < 0.25 < 0.35 < after["ratio"] < 1.6
    columns, *rows = (row.split(",") for row in (tmp_path / "perceptual.csv").read_text().splitlines())
    losses = [dict(zip(columns, map(float, row), strict=True)) for row in rows]
    assert [row["step"] for row in losses] == [20, 40] and losses[1]["distance"] < losses[0]["distance"]
    assert all(math.isfinite(value) for row in losses for value in row.values())


class Colours(torch.nn.Module):
    """Sees the mean colour only."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return [image.mean(dim=(2, 3), keepdim=True)]


def test_agreement_of_the_teacher_with_itself_is_perfect_and_of_another_network_is_not(teacher, pictures):
    found = agreement(Scaled(teacher, 2.0), teacher, pictures, size=32, references=10, versions=4)
    assert found["spearman"] == pytest.approx(1) and found["pearson"] == pytest.approx(1)
    assert found["triplets"] == found["triplets_clear"] == 1 and found["ratio"] == pytest.approx(4, rel=1e-3)
    assert found["pairs"] == 40 and {f"spearman_{kind}" for kind in KINDS} <= found.keys()
    other = agreement(Colours(), teacher, pictures, size=32, references=10, versions=4)
    assert other["spearman"] < 0.95 and other["triplets"] < 0.97
    assert found != agreement(Scaled(teacher, 2.0), teacher, pictures, size=32, references=10, versions=4, seed=5)


@pytest.mark.parametrize("kind", [*KINDS[:7], "mixed"])
def test_distortions_grow_with_their_strength_and_repeat_with_their_seed(kind):
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    image = torch.nn.functional.interpolate(image[None], (40, 56), mode="bicubic")[0].clamp(-1, 1)
    other = -image.flip(2)

    def change(strength):
        made = [distort(kind, image, strength, other, step_generator(0, seed)) for seed in range(12)]
        assert all(m.shape == image.shape and m.abs().max() <= 1 for m in made)
        return torch.stack([(m - image).abs().mean() for m in made]).mean().item()

    assert 0 < change(0.05) < change(0.5) < change(1.0)
    first, again = (distort(kind, image, 0.5, other, step_generator(1, 0)) for _ in range(2))
    assert torch.equal(first, again)


def test_blocks_with_a_fine_step_give_the_picture_back(monkeypatch):
    image = torch.rand(3, 21, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(perceptual_samples, "_between", lambda low, high, strength: 1e-6)
    torch.testing.assert_close(perceptual_samples._blocky(image, 0.0, step_generator(0, 0)), image, atol=1e-3, rtol=0)


def test_comparisons_are_seeded_in_range_and_cover_all_kinds(pictures):
    drawn = draw_comparisons(pictures, 12, 6, 32, step_generator(0, 0))
    assert drawn.references.shape == (12, 3, 32, 32) and drawn.versions.shape == (12, 6, 3, 32, 32)
    assert drawn.versions.abs().max() <= 1 and set(drawn.kinds.flatten().tolist()) == set(range(len(KINDS)))
    assert 0 < drawn.faces.sum() < 12
    again = draw_comparisons(pictures, 12, 6, 32, step_generator(0, 0))
    assert torch.equal(drawn.versions, again.versions)
    assert not torch.equal(drawn.versions, draw_comparisons(pictures, 12, 6, 32, step_generator(0, 1)).versions)
    only_faces = Pictures(pictures.images[:3], 3)
    assert draw_comparisons(only_faces, 4, 2, 32, step_generator(0, 0)).faces.all()


def test_members_of_a_group_are_near_groups_are_not_and_all_repeat_with_the_seed(bank, pictures):
    images = pictures.images.float()
    within = (images[:, 0] - images[:, 1]).abs().mean(dim=(1, 2, 3))
    across = (images[:, 0] - images[:, 0].roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert pictures.images.shape == (6, 2, 3, 48, 48) and pictures.faces == 3
    assert 0 < within.median() < across.median()
    again = perceptual_samples.training_pictures(bank, faces=3, content=3, members=2, side=48, seed=1)
    assert torch.equal(again.images, pictures.images)


def test_only_test_people_are_held_out(tmp_path):
    pytest.importorskip("skimage")
    points = np.full((120, 2), 60.0)
    points[[LEFT_PUPIL, RIGHT_PUPIL, NOSE, LEFT_MOUTH, RIGHT_MOUTH]] = (48, 50), (72, 50), (60, 65), (50, 80), (70, 80)
    (tmp_path / "canada").mkdir()
    for name, colour in (("a", (200, 10, 10)), ("b", (10, 10, 200))):
        Image.new("RGB", (120, 160), colour).save(tmp_path / "canada" / f"{name}.jpg")
    (tmp_path / "landmarks.json").write_text(json.dumps({"canada/a": points.tolist(), "canada/b": points.tolist()}))
    (tmp_path / "info.csv").write_text("set,id,split\ncanada,a,train\ncanada,b,test\n")
    held_out = perceptual_samples.held_out_pictures(tmp_path, side=40, content=2)
    assert held_out.faces == 1 and held_out.images.shape == (3, 2, 3, 40, 40)
    red, _, blue = held_out.images[0].float().mean(dim=(0, 2, 3))
    assert blue > 150 > 60 > red
    assert not set(perceptual_samples.PICTURES) & set(perceptual_samples.HELD_OUT_PICTURES)


def test_pursuers_move_towards_their_references_by_the_trunks_own_distance(teacher, pictures):
    settings = dataclasses.replace(SMALL, pursuers=6, pursuit_steps=12, pursuit_rate=0.001)
    pursuit = perceptual._Pursuit(settings, torch.device("cpu"))
    pursuit.renew(pictures, 0, step_generator(0, 0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = PerceptualTrunk(PerceptualTrunkConfig(WIDTHS))
    start, references = pursuit.images.clone(), pursuit.references.clone()
    assert bool(((start - references).flatten(1).abs().mean(dim=1) > 0).all())
    before = trunk_distance(trunk)(start, references)
    for _ in range(4):
        loss = pursuit.loss(trunk, teacher)
    assert int((trunk_distance(trunk)(pursuit.images, references) < before).sum()) >= 5
    assert loss.requires_grad and not pursuit.images.requires_grad and pursuit.images.abs().max() <= 1
    moved = pursuit.images.clone()
    pursuit.renew(pictures, 1, step_generator(0, 1))
    assert torch.equal(moved, pursuit.images)
    pursuit.renew(pictures, 4, step_generator(0, 4))  # 12 steps over 6 pursuers: every second step the next one
    changed = (moved != pursuit.images).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_recovery_says_whether_pictures_come_back(teacher, pictures):
    class Pixels(torch.nn.Module):
        """The best loss there is."""

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            return [image]

    found = recovery(Pixels(), teacher, pictures, size=32, steps=30)
    assert found["psnr_after"] > found["psnr_before"] + 3 and found["teacher_after"] < 0.7 * found["teacher_before"]
    stays = recovery(Colours(), teacher, pictures, size=32, steps=3)
    assert stays["psnr_after"] == pytest.approx(stays["psnr_before"], abs=1.0)


def write_teacher(folder):
    np.savez(folder / "squeezenet.npz", **{name: value.numpy() for name, value in squeezenet_tensors().items()})
    heads = {f"lin{tap}.model.1.weight": torch.tensor([0.2, -5.0, 0.4 * tap]) for tap in range(7)}
    torch.save(heads, folder / "heads.pth")
    return folder / "squeezenet.npz", folder / "heads.pth"


def test_a_head_counts_with_its_mean(tmp_path):
    teacher = LpipsTeacher.load(*write_teacher(tmp_path))
    assert teacher.weights == pytest.approx([(0.2 + 0.4 * tap) / 3 for tap in range(7)])
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for tap, plain, weight in zip(teacher(image), teacher.trunk(image), teacher.weights, strict=True):
        torch.testing.assert_close(tap.square(), weight * plain.square())
    (tmp_path / "heads.pth").write_bytes(b"no heads")
    with pytest.raises(CorruptFileError, match=r"heads\.pth: not the heads of LPIPS squeeze"):
        LpipsTeacher.load(tmp_path / "squeezenet.npz", tmp_path / "heads.pth")


def test_the_command_writes_a_file_that_says_what_was_measured(bank, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual, "PerceptualTraining", functools.partial(dataclasses.replace, SMALL))
    monkeypatch.setattr(perceptual, "load_morphs", lambda portraits, runs: bank)
    monkeypatch.setattr(perceptual, "held_out_pictures", lambda portraits: pictures)
    monkeypatch.setattr(perceptual, "agreement", functools.partial(agreement, size=32, references=2, versions=3))
    monkeypatch.setattr(perceptual, "recovery", functools.partial(recovery, size=32, steps=2))
    squeezenet, heads = write_teacher(tmp_path)
    arguments = [
        "--portraits",
        "x",
        "--runs",
        str(tmp_path),
        "--out",
        str(tmp_path / "a.safetensors"),
        "--device",
        "cpu",
    ]
    path = perceptual.main(
        [*arguments, "--teacher", str(squeezenet), "--heads", str(heads), "--steps", "2"], model_registry
    )
    loaded = load_model(path)
    assert loaded.architecture == "perceptual" and loaded.module.config.widths == WIDTHS
    assert loaded.domain == "portraits" and loaded.metadata["steps"] == "2"
    assert json.loads(loaded.metadata["agreement"])["pairs"] == 6
    assert "psnr_after" in json.loads(loaded.metadata["recovery"])
    with safe_open(str(path), "pt") as file:
        assert file.get_tensor("convs.0.weight").dtype == torch.float16
        assert file.get_tensor("scales.0").dtype == torch.float32
