"""Masks: softening, combining, fitting, and blends that keep the bits where nothing is asked to change."""

import pytest
import torch

from gan_inversion.core.blending import blend, check_mask, feather, match_mask, merge_masks
from gan_inversion.core.errors import InvalidInputError, NotFiniteError


def square(size: int = 32, low: int = 12, high: int = 20) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., low:high, low:high] = 1.0
    return mask


def test_feather_is_symmetric_monotonous_and_zero_beyond_the_radius():
    soft = feather(square(), 4)
    assert torch.allclose(soft, soft.flip(-1)) and torch.allclose(soft, soft.transpose(-1, -2))
    row = soft[0, 0, 16, :16]
    assert (row.diff() >= 0).all() and 0.0 < float(row[11]) < 0.5 < float(row[12]) < 1.0
    assert (soft[..., :8, :] == 0).all() and (soft[..., 24:, :] == 0).all()


def test_feather_with_grow_keeps_the_selection_full():
    soft = feather(square(), 3, grow=True)
    assert (soft[square() == 1] > 0.999).all() and (soft[..., :6, :] == 0).all()


def test_feather_leaves_full_masks_and_radius_zero_alone():
    mask = square()
    assert feather(mask, 0) is mask
    assert torch.allclose(feather(torch.ones(2, 1, 8, 8), 20), torch.ones(2, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="radius is -1"):
        feather(mask, -1)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("union", [0.2, 1.0, 0.5]), ("intersect", [0.0, 0.3, 0.5]), ("replace", [0.2, 0.3, 0.5]),
     ("subtract", [0.0, 0.7, 0.25])],
)  # fmt: skip
def test_merge_modes(mode, expected):
    first, second = torch.tensor([0.0, 1.0, 0.5]).view(1, 1, 1, 3), torch.tensor([0.2, 0.3, 0.5]).view(1, 1, 1, 3)
    assert torch.allclose(merge_masks(first, second, mode).flatten(), torch.tensor(expected))


def test_merge_repeats_single_masks_and_resizes_the_second():
    merged = merge_masks(torch.zeros(3, 1, 8, 8), torch.ones(1, 1, 64, 64))
    assert merged.shape == (3, 1, 8, 8) and (merged == 1).all()
    assert merge_masks(torch.zeros(1, 1, 8, 8), torch.ones(2, 1, 8, 8)).shape == (2, 1, 8, 8)
    with pytest.raises(InvalidInputError, match="Unknown mask mode 'xor'"):
        merge_masks(square(), square(), "xor")
    with pytest.raises(InvalidInputError, match="Got 2 masks for 3 images"):
        merge_masks(torch.zeros(3, 1, 8, 8), torch.ones(2, 1, 8, 8))


def test_match_mask_accepts_every_comfyui_layout():
    for mask in (torch.zeros(64, 64), torch.zeros(1, 64, 64), torch.zeros(1, 1, 64, 64)):
        fitted = match_mask(mask, (48, 80), batch=3)
        assert fitted.shape == (3, 1, 48, 80) and (fitted == 0).all()
    assert match_mask(torch.ones(2, 4, 6, dtype=torch.bool), (4, 6), batch=2).dtype == torch.float32
    assert match_mask(torch.full((4, 4), 3.0), (4, 4)).max() == 1.0
    with pytest.raises(InvalidInputError, match="Got 2 masks for 5 images"):
        match_mask(torch.zeros(2, 8, 8), (8, 8), batch=5)


def test_blend_keeps_the_bits_of_either_side():
    generator = torch.Generator().manual_seed(0)
    source, image = torch.rand(2, 3, 16, 16, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:8], mask[..., 8:] = 0.25, 1.0
    mixed = blend(source, image, mask)
    assert torch.equal(mixed[..., :4], source[..., :4])
    assert torch.equal(mixed[..., 8:], image[..., 8:].expand(2, -1, -1, -1))
    assert torch.allclose(mixed[..., 4:8], 0.25 * image[..., 4:8] + 0.75 * source[..., 4:8])


def test_blend_passes_gradients_to_pictures_and_mask():
    source, image = (torch.rand(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    mask = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    blend(source, image, mask).sum().backward()
    for tensor in (source, image, mask):
        assert tensor.grad is not None and bool(tensor.grad.abs().sum() > 0)


def test_bad_masks_are_refused():
    picture = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InvalidInputError, match="fit the mask with match_mask"):
        blend(picture, picture, torch.zeros(1, 1, 64, 64))
    with pytest.raises(InvalidInputError, match="ranges from 0 to 2; expected 0"):
        check_mask(torch.tensor([0.0, 2.0]).view(1, 1, 1, 2))
    with pytest.raises(NotFiniteError, match="batch item 0"):
        check_mask(torch.full((1, 1, 2, 2), float("inf")))
    with pytest.raises(InvalidInputError, match="Batches of"):
        blend(picture.expand(2, -1, -1, -1), picture.expand(3, -1, -1, -1), torch.zeros(1, 1, 8, 8))
