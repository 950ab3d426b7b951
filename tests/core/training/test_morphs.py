"""The morph domain on a bank made by hand: no photographs needed."""

import pytest
import torch

from gan_inversion.core.training.directions import extra_code, smile_code
from gan_inversion.core.training.morphs import EXTRA_NAMES, MorphModel, _turn


def one_code(bank, texture, shape, **extras):
    code = torch.zeros(1, bank.code_dim)
    code[0, texture] = 1
    code[0, bank.entries + shape] = 1
    for name, value in extras.items():
        code[0, 2 * bank.entries + EXTRA_NAMES.index(name)] = value
    return code


def dots(image):
    """Brightest place near each landmark would be ambiguous: the bright pixels' coordinates, crop widths."""
    y, x = (image[0, 0] > 0.6).nonzero().t()
    return (torch.stack((x, y), dim=1) + 0.5) / image.shape[-1]


@pytest.mark.parametrize(
    "code_options",
    [{"shape": 0}, {"shape": 3}, {"shape": 4}, {"shape": 2, "yaw": 0.2}, {"shape": 0, "yaw": -0.2, "pitch": 0.15}],
)
def test_landmarks_lie_where_the_picture_shows_them(bank, code_options):
    code = one_code(bank, 0, **code_options)
    image, marks = bank.render(code, 128), bank.landmarks(code)[0]
    distance = torch.cdist(marks, dots(image)).min(dim=1).values
    assert distance.max() < 0.012  # one and a half pixels


def test_yaw_turns_the_nose_to_the_right_and_leaves_the_eyes():
    nose, eye, ear = (0.5, 0.57), (0.38, 0.48), (0.15, 0.5)
    moved = _turn(torch.tensor([[nose, eye, ear]]), torch.tensor([0.2]), torch.tensor([0.0]))[0, :, 0]
    assert moved[0] > 0.005 and moved[2] < -0.005
    assert abs(moved[1]) < 0.003


def test_half_of_each_is_in_the_middle(bank):
    both = (one_code(bank, 0, 0) + one_code(bank, 3, 3)) / 2
    middle = (bank.landmarks(one_code(bank, 0, 0)) + bank.landmarks(one_code(bank, 3, 3))) / 2
    torch.testing.assert_close(bank.landmarks(both), middle)


def test_background_colour_shows_only_outside_the_person(bank):
    holed = MorphModel(
        bank.textures.clone(), bank.fields, bank.mean_points, bank.point_offsets, bank.people, bank.expressions
    )
    holed.textures[:, 3, :, : holed.textures.shape[-1] // 2] = 0
    red = one_code(holed, 0, 0, background_r=1.0, background_g=-1.0, background_b=-1.0)
    image = holed.render(red, 64)
    assert image[0, 0, :, :20].mean() > 0.6 and image[0, 1, :, :20].max() < -0.9
    torch.testing.assert_close(image[..., 40:], bank.render(one_code(bank, 0, 0), 64)[..., 40:])


def test_edits_of_codes_move_shape_pose_and_light_alone(bank):
    random = torch.Generator().manual_seed(4)
    codes, n = bank.draw_codes(16, random), bank.entries
    edited = bank.draw_edits(codes, random, 0.5)
    assert torch.equal(edited[:, :n], codes[:, :n]) and torch.equal(edited[:, -3:], codes[:, -3:])
    assert (edited[:, n:-3] != codes[:, n:-3]).any(dim=1).all()
    torch.testing.assert_close(edited[:, n : 2 * n].sum(dim=1), torch.ones(16))
    kept = torch.minimum(edited, codes)[:, n : 2 * n].sum(dim=1)
    assert (kept >= 0.5 - 1e-5).all() and kept.min() < 0.7  # at most half of the way
    assert torch.equal(bank.draw_edits(codes, random, 0.0), codes)


def test_drawn_codes_are_mixes(bank):
    codes = bank.draw_codes(64, torch.Generator().manual_seed(1))
    again = bank.draw_codes(64, torch.Generator().manual_seed(1))
    assert torch.equal(codes, again)
    n = bank.entries
    torch.testing.assert_close(codes[:, :n].sum(dim=1), torch.ones(64))
    torch.testing.assert_close(codes[:, n : 2 * n].sum(dim=1), torch.ones(64))
    assert (codes[:, : 2 * n] >= 0).all()
    assert bank.render(codes[:2], 32).shape == (2, 3, 32, 32)


def test_smile_code_only_swaps_photographs_of_the_same_people(bank):
    code = smile_code(bank)
    n = bank.entries
    torch.testing.assert_close(code[:n], torch.tensor([-0.5, 0.5, -0.5, 0.5, 0.0]))
    torch.testing.assert_close(code[n : 2 * n], code[:n])
    assert not code[2 * n :].any()


def test_extra_code(bank):
    assert extra_code(bank, "pitch", 0.3).nonzero().flatten().tolist() == [2 * bank.entries + 1]


def test_bank_survives_a_file(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    loaded = MorphModel.load(tmp_path / "bank.safetensors")
    codes = bank.draw_codes(2, torch.Generator().manual_seed(3))
    assert torch.equal(loaded.render(codes, 32), bank.render(codes, 32))
    assert loaded.person_ids == bank.person_ids
