"""Training of the identity embedding: who is who in the pool, what the losses want, and runs that can be taken up again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gan_inversion import model_registry
from gan_inversion.core.errors import CorruptFileError, InvalidInputError
from gan_inversion.core.identity import CROP_SIZE
from gan_inversion.core.training import identity as trainer
from gan_inversion.core.training.common import step_generator
from gan_inversion.core.training.identity import (
    IdentityTraining,
    augment,
    build_pool,
    classes_of,
    contrast_loss,
    draw_people,
    load_pool,
    people_loss,
    separation,
    train,
    verify_pairs,
    view_codes,
)
from gan_inversion.core.training.morphs import MIRRORED, MorphModel
from gan_inversion.model_registry import load_model

SMALL = IdentityTraining(widths=(4, 4, 8, 8), dim=8, pool=6, views=2, steps=5, batch=6)


@pytest.fixture
def mirrored_bank(bank):
    """The hand-made bank, whose person c is called the mirror image of a."""
    people = ["a" + MIRRORED if name == "c" else name for name in bank.people]
    return MorphModel(bank.textures, bank.fields, bank.mean_points, bank.point_offsets, people, bank.expressions)


def test_a_mirror_image_is_the_same_person(mirrored_bank):
    assert mirrored_bank.person_ids == ["a", "a" + MIRRORED, "b"]
    assert classes_of(mirrored_bank).tolist() == [0, 0, 1]
    pool = build_pool(mirrored_bank, SMALL)
    assert pool.mixes.shape == (6, 2) and torch.allclose(pool.mixes.sum(dim=1), torch.ones(6))


def test_people_are_alone_in_turn_and_then_mixed(bank):
    weights = draw_people(bank, 20, 0.45, step_generator(0, 0))
    assert torch.allclose(weights.sum(dim=1), torch.ones(20))
    alone = weights.amax(dim=1) == 1
    assert alone.tolist() == [True] * 9 + [False] * 11
    assert weights[:9].sum(dim=0).tolist() == [3, 3, 3]
    assert draw_people(bank, 4, 0.0, step_generator(0, 0)).amax(dim=1).max() < 1


def test_views_keep_the_person_and_change_the_rest(bank):
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.7, 0.0, 0.3]]).repeat_interleave(40, dim=0)
    codes = view_codes(bank, weights, step_generator(0, 0))
    n = bank.entries
    assert torch.equal(codes[:, :n], codes[:, n : 2 * n]), "shape and texture come from different people"
    per_person = torch.stack(
        [codes[:, :n][:, [i for i, p in enumerate(bank.people) if p == who]].sum(1) for who in "abc"]
    )
    assert torch.allclose(per_person.t(), weights, atol=1e-6)
    smiles = codes[:40, bank.people.index("b") + 1]
    assert {0.0, 1.0} <= set(smiles.tolist()) and 0 < smiles.mean() < 1
    assert codes[:, 2 * n :].std(dim=0).min() > 0


def test_pool_is_kept_and_made_anew_for_other_settings(bank, tmp_path, monkeypatch):
    path = tmp_path / "pool.safetensors"
    first = load_pool(bank, SMALL, path)
    assert first.pictures.shape == (6, 2, 3, CROP_SIZE, CROP_SIZE) and first.pictures.dtype == torch.uint8
    assert not torch.equal(first.pictures[:, 0], first.pictures[:, 1])
    other = load_pool(bank, dataclasses.replace(SMALL, seed=9), path)
    assert not torch.equal(first.pictures, other.pictures)
    assert torch.equal(load_pool(bank, SMALL, path).pictures, first.pictures)
    monkeypatch.setattr(trainer, "build_pool", lambda *_: pytest.fail("rendered again"))
    assert torch.equal(load_pool(bank, SMALL, path).pictures, first.pictures)
    path.write_bytes(b"no pool")
    with pytest.raises(CorruptFileError, match="delete it"):
        load_pool(bank, SMALL, path)


def test_augmented_pictures_are_seeded_and_in_range():
    image = torch.randint(0, 256, (1, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image[..., :48] //= 4  # dark on the left
    batch = image.expand(24, -1, -1, -1)
    found = augment(batch, step_generator(1, 0))
    assert found.shape == (24, 3, 96, 96) and found.abs().max() <= 1
    assert torch.equal(found, augment(batch, step_generator(1, 0)))
    assert not torch.equal(found, augment(batch, step_generator(1, 1)))
    turned = found[..., :48].mean(dim=(1, 2, 3)) > found[..., 48:].mean(dim=(1, 2, 3))
    assert 4 < turned.sum() < 20, "about half of the pictures are mirror images"


def test_coarse_blocks_round_the_cosine_transform():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine = torch.full((2, 1, 1, 1), 1e-4)
    assert torch.allclose(trainer._coarse_blocks(x, fine), x, atol=2e-3)
    flat = trainer._coarse_blocks(x, torch.full((2, 1, 1, 1), 1e-4) * torch.tensor([1.0, 1e3]).view(2, 1, 1, 1))
    assert (flat[1] - x[1]).abs().mean() > 0.05
    assert abs(flat[1].mean() - x[1].mean()) < 0.05
    with pytest.raises(InvalidInputError, match="multiple of 8"):
        trainer._coarse_blocks(x[..., :12, :12], fine)


def test_people_loss_is_cosface_and_wants_mixes_in_between():
    prototypes = 5 * torch.eye(3)
    embedding = F.normalize(torch.tensor([[0.9, 0.2, 0.1]]), dim=1)
    single = torch.tensor([[1.0, 0.0, 0.0]])
    cosines = embedding[0]
    expected = -torch.log(
        torch.exp(8 * (cosines[0] - 0.3)) / (torch.exp(8 * (cosines[0] - 0.3)) + torch.exp(8 * cosines[1:]).sum())
    )
    assert torch.allclose(people_loss(embedding, prototypes, single, 8.0, 0.3), expected, atol=1e-5)
    angles = torch.linspace(0, 1, 21) * torch.pi / 2
    between = torch.stack((angles.cos(), angles.sin(), torch.zeros(21)), dim=1)
    mix = torch.tensor([[0.7, 0.3, 0.0]])
    losses = [people_loss(e[None], prototypes, mix, 8.0, 0.2).item() for e in between]
    assert 0 < min(range(21), key=losses.__getitem__) < 10, "a 70/30 morph belongs between both, nearer to the first"


def test_contrast_wants_partners_together_and_others_apart():
    mixes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    good = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    lumped = torch.tensor([[1.0, 0.0]]).expand(4, -1)
    crossed = good[[0, 2, 1, 3]]
    losses = [contrast_loss(e, mixes, 0.2, 0.1).item() for e in (good, lumped, crossed)]
    assert losses[0] < losses[1] < losses[2]
    assert contrast_loss(good, mixes, 0.2, 0.3) > contrast_loss(good, mixes, 0.2, 0.0)
    everybody = torch.tensor([[1.0, 0.0]]).expand(4, -1)  # one person: no negatives, so nothing to tear apart
    assert torch.isfinite(contrast_loss(crossed, everybody, 0.2, 0.1))


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_goes_on_to_the_same_weights(bank, tmp_path, stop_at):
    straight = train(bank, tmp_path / "one", SMALL)
    train(bank, tmp_path / "two", SMALL, max_steps=stop_at)
    resumed = train(bank, tmp_path / "two", SMALL)
    pairs = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")]
    assert states[0]["step"] == states[1]["step"] == 5
    assert torch.equal(states[0]["prototypes"], states[1]["prototypes"])
    assert not straight.training and not any(p.requires_grad for p in straight.parameters())


@pytest.mark.parametrize("wrong", [{"views": 1}, {"batch": 3}, {"batch": 16}])
def test_settings_without_pairs_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="two pictures each"):
        dataclasses.replace(SMALL, **wrong)


def test_training_learns_who_is_who(bank, tmp_path):
    textures = bank.textures.clone()
    for index, name in enumerate(bank.people):
        coarse = torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(ord(name)))
        textures[index, :3] = (F.interpolate(coarse, size=textures.shape[2:], mode="bilinear")[0] * 255).byte()
    faces = MorphModel(textures, bank.fields, bank.mean_points, bank.point_offsets, bank.people, bank.expressions)
    net = train(faces, tmp_path, dataclasses.replace(SMALL, steps=40, learning_rate=1e-2, scale=8.0, single=1.0))
    assert (tmp_path / "identity.csv").read_text().startswith("step,people,contrast\n20,")
    codes = view_codes(faces, torch.eye(3).repeat(2, 1), step_generator(9, 9))
    embeddings = net(faces.render(codes, 128))
    cosines = embeddings[:3] @ embeddings[3:].t()
    own = torch.eye(3, dtype=torch.bool)
    assert cosines[own].min() > cosines[~own].max() + 0.2


def test_figures_of_separable_and_of_mixed_up_pairs():
    clear = separation(torch.tensor([0.9, 0.7]), torch.tensor([0.1, 0.3, -0.1]))
    assert clear["auc"] == 1 and clear["equal_error"] == 0 and clear["threshold"] == pytest.approx(0.5)
    assert clear["same"] == pytest.approx(0.8) and clear["different"] == pytest.approx(0.1)
    assert (clear["same_pairs"], clear["different_pairs"]) == (2, 3)
    mixed = separation(torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([0.5, 0.1, 0.0, -0.1]))
    assert mixed["auc"] == pytest.approx(15 / 16) and mixed["equal_error"] == pytest.approx(0.25)
    assert 0.2 < mixed["threshold"] < 0.5
    assert separation(torch.tensor([0.1]), torch.tensor([0.2]))["auc"] == 0


def test_pairs_are_people_of_equal_index():
    people = F.one_hot(torch.arange(4)).float()
    net = torch.nn.Module()
    net.forward = lambda image: people[image[:, 0, 0, 0].long()]
    numbers = torch.arange(4.0)[:, None, None, None].expand(-1, 3, 8, 8)
    assert verify_pairs(net, numbers, numbers)["auc"] == 1
    assert verify_pairs(net, numbers, numbers.roll(1, 0))["same"] == 0


def test_smiles_meet_their_own_neutral_photographs(monkeypatch):
    crops = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 8, 8)
    monkeypatch.setattr(trainer, "load_people", lambda *_: (["neutral/1", "canada/2", "neutral/3"], crops))
    smiles = {"neutral/3": crops[2:] + 10, "neutral/1": crops[:1] + 10}
    monkeypatch.setattr(trainer, "load_smiles", lambda *_, **__: smiles)
    neutral, smiling = trainer.portrait_pairs("anywhere")
    assert torch.equal(neutral + 10, smiling) and neutral[:, 0, 0, 0].tolist() == [2, 0]
    del smiles["neutral/1"]
    with pytest.raises(InvalidInputError, match="2 are needed"):
        trainer.portrait_pairs("anywhere")


def test_the_command_writes_a_file_with_its_figures(bank, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "IdentityTraining", lambda: SMALL)
    monkeypatch.setattr(trainer, "load_morphs", lambda *_: bank)
    pictures = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(trainer, "portrait_pairs", lambda *_: (pictures, pictures))
    out = tmp_path / "identity.safetensors"
    arguments = [
        "--portraits",
        str(tmp_path),
        "--runs",
        str(tmp_path),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--steps",
        "2",
    ]
    assert trainer.main(arguments, model_registry) == out
    loaded = load_model(out)
    assert loaded.architecture == "identity" and loaded.module.config.widths == (4, 4, 8, 8)
    assert loaded.metadata["steps"] == "2" and float(loaded.metadata["same"]) == 1
    assert float(loaded.metadata["auc"]) == 1 and loaded.metadata["licence"] == "CC-BY-4.0"
