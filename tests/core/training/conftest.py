"""A bank of morphs made by hand: no photographs needed."""

import pytest
import torch

from gan_inversion.core.training.morphs import FIELD_SIZE, MARGIN, MorphModel

TEXTURE, MARKS = 160, 12


def hand_made_bank() -> MorphModel:
    """Three people (two of them smile): white dots at landmarks on grey; shapes are smooth shifts."""
    torch.manual_seed(0)
    people = ["a", "a", "b", "b", "c"]
    expressions = ["neutral", "smiling", "neutral", "smiling", "neutral"]
    mean = torch.rand(MARKS, 2) * 0.5 + 0.25
    shifts = torch.tensor([[0.0, 0.0], [0.02, 0.0], [0.0, 0.03], [0.03, 0.03], [-0.03, 0.01]])
    fields = shifts[:, :, None, None].expand(-1, -1, FIELD_SIZE, FIELD_SIZE).contiguous()
    textures = torch.full((5, 4, TEXTURE, TEXTURE), 128, dtype=torch.uint8)
    textures[:, 3] = 255
    for x, y in ((mean + MARGIN) / (1 + 2 * MARGIN) * TEXTURE).long().tolist():
        textures[:, :3, y - 1 : y + 2, x - 1 : x + 2] = 255
    return MorphModel(textures, fields, mean, shifts[:, None].expand(-1, MARKS, -1).contiguous(), people, expressions)


@pytest.fixture(scope="session")
def bank():
    return hand_made_bank()
