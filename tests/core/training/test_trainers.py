"""Trainers learn, stop, and resume to the same weights."""

import dataclasses

import pytest
import torch

from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.training import generator as generator_training

SMALL = generator_training.GeneratorTraining(
    channels=(16, 16, 16, 8), w_dim=16, mapping_layers=2, stages=((16, 3), (32, 5)), batch=4, levels=2
)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_generator_resumes_to_the_same_weights(bank, tmp_path, stop_at):
    straight = generator_training.train(bank, tmp_path / "straight", SMALL)
    generator_training.train(bank, tmp_path / "stopped", SMALL, max_steps=stop_at)
    resumed = generator_training.train(bank, tmp_path / "stopped", SMALL)
    assert straight.resolution == 32
    assert same(straight, resumed)


def test_generator_learns_the_picture(bank, tmp_path):
    settings = dataclasses.replace(SMALL, stages=((16, 120),), learning_rate=1e-2)
    generator_training.train(bank, tmp_path / "a", settings)
    rows = (tmp_path / "a" / "regression.csv").read_text().splitlines()
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[-1] < 0.6 * losses[0]


def test_mapping_is_fitted_to_the_codes(bank, tmp_path):
    settings = dataclasses.replace(SMALL, stages=((16, 2),))
    generator = generator_training.train(bank, tmp_path / "a", settings)
    _, embedding = generator_training.load_trained(tmp_path / "a", bank)
    error = generator_training.fit_mapping(generator, embedding, bank, steps=1500, batch=64)
    assert error < 0.5
    known = embedding(bank.draw_codes(2000, torch.Generator().manual_seed(0)))
    drawn = generator.mapping(torch.randn(2000, 16, generator=torch.Generator().manual_seed(1)))
    spread = known.std(dim=0).mean()
    assert (drawn.mean(dim=0) - known.mean(dim=0)).abs().max() < 0.3 * spread
    assert 0.6 < (drawn.std(dim=0).mean() / spread).item() < 1.4


def test_missing_checkpoint_is_named(bank, tmp_path):
    with pytest.raises(InvalidInputError, match=r"no checkpoint\.pt"):
        generator_training.load_trained(tmp_path, bank)
