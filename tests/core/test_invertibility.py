"""SAM's invertibility predictor and latent map, against numbers of the official code and by their rules."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_inversion.core.errors import InvalidInputError, UnsupportedModelError
from gan_inversion.core.invertibility import (
    InvertibilityConfig,
    InvertibilityNet,
    LatentMap,
    colour_preview,
    feature_side,
    latent_map,
    latent_spaces,
    legend,
    out_of_domain,
    space_name,
    with_region,
)
from gan_inversion.core.skeleton import skeleton

from ..parity.invertibility_parity import FIXTURE, SPACES, seeded, seeded_image, seeded_segments

FILE = Path(__file__).parents[1] / "fixtures" / "invertibility" / "sam_narrow.npz"


@pytest.fixture(scope="module")
def official():
    with np.load(FILE) as arrays:
        return {name: torch.from_numpy(value) if value.ndim else value.item() for name, value in arrays.items()}


def official_state(official):
    """The narrow checkpoint, in the published layout and under our names."""
    shapes = json.loads(official["shapes"])
    names = {part: "base" if part == "sd_base" else f"heads.{part}" for part in shapes}
    nested = {part: {k: seeded(f"{names[part]}.{k}", s) for k, s in keys.items()} for part, keys in shapes.items()}
    return nested, {f"{names[part]}.{k}": v for part, tensors in nested.items() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def net(official):
    _, state = official_state(official)
    net = InvertibilityNet(InvertibilityConfig.from_state_dict(state))
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def test_error_maps_are_the_official_ones(official, net):
    found = net(seeded_image(FIXTURE["batch"], FIXTURE["size"]))
    assert tuple(found) == net.spaces == SPACES
    for space, error in found.items():
        assert error.shape == (1, 1, *FIXTURE["size"]) and float(error.min()) >= 0
        assert float((error - official[f"error {space}"]).abs().max()) <= 1e-4
        assert 0.01 < float(error.mean()) < 2


def test_latent_map_is_the_official_one(official):
    errors = {space: official[f"error {space}"] for space in SPACES}
    segments = torch.from_numpy(seeded_segments(FIXTURE["size"]))[None]
    chosen = latent_map(errors, segments, official["tau"])
    assert chosen.spaces == SPACES
    assert float((chosen.masks_at(16)["F4"] - official["mask F4"]).abs().max()) <= 1e-5
    assert float(official["mask F4"].max()) > 0.5


def test_sizes_come_from_shapes():
    for config in (InvertibilityConfig.slim(128, "portraits"), InvertibilityConfig.slim(64, "portraits")):
        with skeleton():
            state = InvertibilityNet(config).state_dict()
        assert InvertibilityConfig.from_state_dict(state, "portraits") == config
    with skeleton():
        assert InvertibilityConfig.from_state_dict(InvertibilityNet().state_dict()) == InvertibilityConfig()
    assert InvertibilityConfig().base.stride == 16 and InvertibilityConfig.slim().base.stride == 8
    for key in ("base.decoder.conv1.weight", "heads"):
        cut = {name: value for name, value in state.items() if not name.startswith(key)}
        with pytest.raises(UnsupportedModelError, match=r"decoder\.conv1|heads"):
            InvertibilityConfig.from_state_dict(cut)


def test_slim_network_learns_and_takes_any_size():
    torch.manual_seed(0)
    config = InvertibilityConfig.slim()
    net = InvertibilityNet(config)
    assert sum(p.numel() for p in net.parameters()) < 700_000
    found = net(torch.rand(2, 3, 40, 56))
    assert all(float(error.detach().max()) > 0 for error in found.values())
    sum(error.mean() for error in found.values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.heads["F8"].m[3].parameters())
    with pytest.raises(InvalidInputError, match="8 px"):
        net(torch.zeros(1, 3, 4, 40))


def test_spaces_of_generators():
    assert latent_spaces(1024) == latent_spaces(512) == latent_spaces(256) == ("W+", "F4", "F6", "F8", "F10")
    assert latent_spaces(128) == ("W+", "F2", "F4", "F6", "F8")
    assert latent_spaces(16) == ("W+", "F0", "F2")
    assert [feature_side(space) for space in ("F0", "F4", "F10")] == [4, 16, 128]
    assert all(feature_side(space_name(side)) == side for side in (4, 8, 16, 32, 64, 128))
    for wrong in ("W+", "F5", "G4"):
        with pytest.raises(InvalidInputError, match="even number"):
            feature_side(wrong)


def maps(*values):
    """W+, F4, ... with a constant error each, on 4x6 pixels."""
    return {space: torch.full((1, 1, 4, 6), value) for space, value in zip(SPACES, values, strict=False)}


def test_the_most_editable_space_that_passes_wins():
    assert latent_map(maps(0.2, 0.1, 0.1), tau=0.2).spaces == ("W+", "F4", "F6")
    cases = {(0.2, 0.1, 0.1): 0, (0.3, 0.1, 0.3): 1, (0.3, 0.3, 0.1): 2, (0.3, 0.3, 0.3): 2}
    for values, expected in cases.items():
        chosen = latent_map(maps(*values), tau=0.2)
        assert (chosen.index == expected).all(), values
    reordered = latent_map(maps(0.2, 0.1, 0.1), tau=0.2, order=("F6", "W+"))
    assert reordered.spaces == ("F6", "W+") and (reordered.index == 0).all()


def test_segments_decide_by_their_mean():
    errors = maps(0.0, 0.0)
    errors["W+"][..., :2] = 0.9  # the mean of columns 0..2 is 0.6, of 3..5 it is 0
    segments = torch.tensor([0, 0, 0, 5, 5, 5]).expand(1, 4, 6)
    assert latent_map(errors, segments, 0.5).index[0, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert latent_map(errors, segments, 0.7).index.max() == 0
    assert latent_map(errors, None, 0.5).index[0, 0].tolist() == [1, 1, 0, 0, 0, 0]
    both = {space: error.expand(2, -1, -1, -1).clone() for space, error in errors.items()}
    both["W+"][1] = 0.1
    found = latent_map(both, segments, 0.5)
    assert len(found) == 2 and found.index[0].max() == 1 and found.index[1].max() == 0


def halves():
    index = torch.zeros(1, 12, 16, dtype=torch.long)
    index[..., 8:] = 2
    return LatentMap(("W+", "F4", "F6"), index)


def test_masks_cover_the_picture_once_and_get_margins():
    chosen = halves()
    assert torch.equal(sum(chosen.mask(space) for space in chosen.spaces), torch.ones(1, 1, 12, 16))
    assert float(chosen.shares()["F6"]) == 0.5 and not bool(chosen.mask("F4").any())
    assert torch.equal(out_of_domain(chosen), chosen.mask("F6"))
    for resample in ("lanczos", "bilinear"):
        masks = chosen.masks_at(16, resample)
        assert masks["F6"].shape == (1, 1, 16, 16)
        assert not bool(masks["F6"][..., :2, :].any()) and not bool(masks["F6"][..., -2:, :].any())
        assert masks["F6"][0, 0, 8].tolist() == [0.0] * 8 + [1.0] * 8
        small = chosen.masks_at(5, resample)["F6"]
        assert float(small.min()) >= 0 and float(small.max()) <= 1
        assert 0 < float(small[0, 0, 2, 2]) < 1
    assert {space: mask.shape[-1] for space, mask in chosen.feature_masks().items()} == {"F4": 16, "F6": 32}


def test_a_region_is_put_into_a_space_by_hand():
    before = halves()
    height, width = before.index.shape[1:]
    region = torch.zeros(1, 1, 2 * height, 2 * width)
    region[:, :, : 2 * (height // 2)] = 1
    changed = with_region(before, region, "F4")
    assert (changed.index[:, : height // 2] == 1).all() and changed.spaces == before.spaces
    assert torch.equal(changed.index[:, height // 2 :], before.index[:, height // 2 :])
    assert torch.equal(before.index, halves().index) and not torch.equal(changed.index, before.index)
    assert torch.equal(with_region(before, 0.49 * torch.ones(1, 1, 4, 4), "F6").index, before.index)
    with pytest.raises(InvalidInputError, match="'F10': this map has"):
        with_region(before, region, "F10")
    with pytest.raises(InvalidInputError, match=r"shape \(3, 1, 4, 4\) for 1 latent map"):
        with_region(before, torch.ones(3, 1, 4, 4), "F4")


def test_preview_shows_the_legend():
    chosen = halves()
    colours = legend(chosen)
    assert list(colours) == ["W+", "F4", "F6"] and len(set(colours.values())) == 3
    plain = colour_preview(chosen)
    found = ((plain[0, :, 0] + 1) * 127.5).round().long()
    assert tuple(found[:, 0].tolist()) == colours["W+"] and tuple(found[:, -1].tolist()) == colours["F6"]
    over = colour_preview(chosen, torch.zeros(1, 3, 24, 32))
    assert over.shape == (1, 3, 24, 32) and torch.allclose(over[0, :, 0, 0], 0.6 * plain[0, :, 0, 0])


def test_wrong_input_is_named():
    with pytest.raises(InvalidInputError, match="F8"):
        latent_map(maps(0.1, 0.1), order=("W+", "F8"))
    with pytest.raises(InvalidInputError, match="the same for every space"):
        latent_map({**maps(0.1), "F4": torch.zeros(1, 1, 5, 6)})
    with pytest.raises(InvalidInputError, match="integer labels"):
        latent_map(maps(0.1), torch.zeros(1, 5, 6, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="NaN"):
        latent_map(maps(0.1), tau=float("nan"))
    with pytest.raises(InvalidInputError, match="up to one less"):
        LatentMap(("W+",), torch.ones(1, 2, 2, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="lanczos, bilinear"):
        halves().masks_at(8, "nearest")
    with pytest.raises(InvalidInputError, match="this map has"):
        halves().mask("F10")
    with pytest.raises(InvalidInputError, match="Preview of 1"):
        colour_preview(halves(), torch.zeros(2, 3, 8, 8))
