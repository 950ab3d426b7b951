"""The FFHQ square, the crop, and the way back: known answers, signs, round trips, and untouched surroundings."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.alignment import (
    CropTransform,
    align,
    face_oval,
    ffhq_quad,
    ffhq_quad_from_five,
    five_points,
    footprint_mask,
    paste_back,
)
from gan_inversion.core.errors import InvalidInputError, NotFiniteError
from gan_inversion.core.imaging import from_uint8, to_uint8


def turned(points: np.ndarray, degrees: float, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Turn points clockwise as seen (y down)."""
    a = math.radians(degrees)
    matrix = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return (np.asarray(points) - centre) @ matrix.T + centre


def square_transform(
    centre: tuple[float, float], side: float, angle: float, source: tuple[int, int], size: int
) -> CropTransform:
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * side / 2
    return CropTransform(tuple(map(tuple, turned(corners, angle) + centre)), source, size)


FIVE = np.array([[90.0, 100.0], [150.0, 100.0], [120.0, 130.0], [100.0, 170.0], [140.0, 170.0]])


def sixty_eight(five: np.ndarray) -> np.ndarray:
    points = np.zeros((68, 2))
    spread = np.array([[-3, 0], [-1, -2], [1, -2], [3, 0], [1, 2], [-1, 2]])
    points[36:42], points[42:48] = five[0] + spread, five[1] + spread
    points[30], points[48], points[54] = five[2], five[3], five[4]
    return points


def smooth_picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) / 40.0, torch.arange(width) / 40.0, indexing="ij")
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.rand(3, 3, generator=generator) * 2 + 0.5
    return torch.stack([0.9 * torch.sin(a[i] * x + b[i] * y + c[i]) for i in range(3)])[None]


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (first - second).square().mean()))


def test_quad_of_an_upright_face_is_the_formula_by_hand():
    # eye_to_eye = (60, 0), eye_to_mouth = (0, 70): x has direction (60 + 70, 0) and length max(120, 126) = 126;
    # y = (0, 126); the centre is (120, 100 + 7).
    expected = [[-6, -19], [-6, 233], [246, 233], [246, -19]]
    assert np.allclose(ffhq_quad_from_five(FIVE), expected)
    assert np.allclose(ffhq_quad(sixty_eight(FIVE)), expected)


def test_quad_follows_wide_eyes_when_they_are_the_larger_span():
    points = FIVE.copy()
    points[0, 0], points[1, 0] = 80, 160  # 2.0 * 80 = 160 > 1.8 * 70
    quad = ffhq_quad_from_five(points)
    assert np.allclose(quad[3] - quad[0], [320, 0])


@pytest.mark.parametrize("angle", [-35.0, 20.0, 90.0, 170.0])
def test_quad_turns_with_the_face_and_in_its_direction(angle):
    quad = ffhq_quad_from_five(turned(FIVE, angle, (120, 107)))
    assert np.allclose(quad, turned(ffhq_quad_from_five(FIVE), angle, (120, 107)))
    transform = CropTransform(quad, (300, 300), 64)
    assert transform.angle == pytest.approx(angle)


def test_quad_of_the_mirrored_face_is_the_mirrored_quad():
    tilted = turned(FIVE, 15.0) + [3.0, 0.0]
    mirrored = tilted[[1, 0, 2, 4, 3]] * [-1, 1]
    expected = ffhq_quad_from_five(tilted)[[3, 2, 1, 0]] * [-1, 1]
    assert np.allclose(ffhq_quad_from_five(mirrored), expected)
    assert not np.allclose(ffhq_quad_from_five(mirrored), ffhq_quad_from_five(tilted) * [-1, 1])


def test_points_that_form_no_face_are_refused():
    with pytest.raises(InvalidInputError, match="do not form a face"):
        ffhq_quad_from_five(FIVE[[1, 0, 2, 4, 3]])
    with pytest.raises(InvalidInputError, match="do not form a face"):
        ffhq_quad_from_five(np.zeros((5, 2)))
    with pytest.raises(InvalidInputError, match="Got 17 landmarks; expected 5"):
        ffhq_quad(np.zeros((17, 2)))
    with pytest.raises(InvalidInputError, match="NaN"):
        ffhq_quad(np.full((68, 2), np.nan))
    with pytest.raises(InvalidInputError, match=r"shape \(5, 3\)"):
        ffhq_quad(np.zeros((5, 3)))


def test_five_points_reads_68_70_and_mesh_layouts():
    points = sixty_eight(FIVE)
    assert np.allclose(five_points(points), FIVE)
    assert np.allclose(five_points(np.concatenate([points, FIVE[:2]])), FIVE)
    assert np.allclose(five_points(torch.from_numpy(points)), FIVE)
    mesh = np.zeros((478, 2))
    mesh[[33, 160, 158, 133, 153, 144]], mesh[[362, 385, 387, 263, 373, 380]] = FIVE[0], FIVE[1]
    mesh[1], mesh[61], mesh[291] = FIVE[2], FIVE[3], FIVE[4]
    assert np.allclose(five_points(mesh), FIVE)


def test_point_to_crop_to_point_is_the_identity():
    transform = square_transform((1834.2, 977.7), 811.3, 23.4, (2000, 3000), 128)
    points = np.random.default_rng(0).uniform(0, 3000, (50, 2))
    assert np.abs(transform.crop_to_source(transform.source_to_crop(points)) - points).max() < 1e-9
    product = np.vstack([transform.matrix(), [0, 0, 1]]) @ np.vstack([transform.inverse_matrix(), [0, 0, 1]])
    assert np.allclose(product, np.eye(3))


def test_corners_lie_on_the_outer_edges_of_the_crop():
    transform = square_transform((50, 60), 40, 30, (100, 100), 16)
    edges = [[-0.5, -0.5], [-0.5, 15.5], [15.5, 15.5], [15.5, -0.5]]
    assert np.allclose(transform.crop_to_source(edges), transform.quad)
    assert transform.scale == pytest.approx(2.5)


def test_transform_survives_json_exactly():
    transform = square_transform((50.123456789, 60.1), 40.7, 30, (100, 120), 16)
    assert CropTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    with pytest.raises(InvalidInputError, match="malformed"):
        CropTransform.from_dict({"quad": [[0, 0]]})


def test_bad_quads_are_refused():
    with pytest.raises(InvalidInputError, match="mirrored"):
        CropTransform(((10, 0), (10, 10), (0, 10), (0, 0)), (20, 20), 8)
    with pytest.raises(InvalidInputError, match="parallelogram"):
        CropTransform(((0, 0), (0, 10), (12, 10), (10, 0)), (20, 20), 8)
    with pytest.raises(InvalidInputError, match="needs 4 corners"):
        CropTransform(((0, 0), (0, 10)), (20, 20), 8)


def test_whole_square_of_a_square_picture_is_the_picture():
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.allclose(align(picture, CropTransform.whole_square((32, 32), 32)), picture, atol=1e-6)
    wide = CropTransform.whole_square((20, 50), 20)
    cropped = align(picture.new_zeros(1, 3, 20, 50) + torch.linspace(-1, 1, 50), wide)
    assert torch.allclose(cropped[0, 0, 0], torch.linspace(-1, 1, 50)[15:35], atol=1e-5)


@pytest.mark.parametrize("side", [20.0, 64.0, 150.0, 700.0])
@pytest.mark.parametrize("angle", [0.0, -28.0])
def test_crop_of_a_gradient_is_the_gradient_at_the_mapped_points(side, angle):
    """Enlarging, one to one, shrinking by supersampling, and shrinking by blocks first."""
    size = 1200
    x = torch.arange(size) / size
    picture = torch.stack([x.expand(size, size), x[:, None].expand(size, size), torch.zeros(size, size)])[None]
    transform = square_transform((611.3, 587.9), side, angle, (size, size), 64)
    crop = align(picture, transform)
    u, v = np.meshgrid(np.arange(64), np.arange(64))
    expected = torch.from_numpy(transform.crop_to_source(np.stack([u, v], axis=-1)) / size).float()
    assert (crop[0, :2].permute(1, 2, 0) - expected).abs().max() < 6e-5  # 0.07 pixels, the bend of the cubic kernel


def test_crop_agrees_with_pils_quad_transform():
    picture = from_uint8(to_uint8(smooth_picture(200, 240)))
    transform = square_transform((118.4, 96.2), 60, 17, (200, 240), 96)
    corners = (np.array(transform.quad) + 0.5).flatten()
    pixels = Image.fromarray(to_uint8(picture)[0].numpy())
    expected = pixels.transform((96, 96), Image.Transform.QUAD, corners.tolist(), Image.Resampling.BILINEAR)
    assert (align(picture, transform) - from_uint8(np.asarray(expected))).abs().max() < 3 / 255


def test_shrinking_does_not_alias():
    """A checkerboard of single pixels is grey when it is shrunk, at any factor and angle."""
    y, x = torch.meshgrid(torch.arange(600), torch.arange(600), indexing="ij")
    board = ((x + y) % 2 * 2.0 - 1.0).expand(1, 3, -1, -1)
    for side, angle in ((128, 0), (170, 12), (400, 0), (500, 30)):
        crop = align(board, square_transform((299.5, 299.5), side, angle, (600, 600), 48))
        assert crop.abs().max() < 0.2, (side, angle)


def test_crop_beyond_the_picture_is_smooth_and_finite():
    picture = smooth_picture(60, 80)
    transform = square_transform((10, 50), 90, 20, (60, 80), 64)
    crop = align(picture, transform)
    assert torch.isfinite(crop).all() and crop.abs().max() <= 1
    inside = footprint_of_picture(transform)
    u, v = np.nonzero(inside.T)
    xy = transform.crop_to_source(np.stack([u, v], axis=-1))
    values = picture[0, :, np.clip(np.rint(xy[:, 1]), 0, 59).astype(int), np.clip(np.rint(xy[:, 0]), 0, 79).astype(int)]
    assert (crop[0][:, v, u] - values).abs().mean() < 0.03
    assert (crop[..., 1:] - crop[..., :-1]).abs().max() < 0.35
    with pytest.raises(InvalidInputError, match="wholly outside"):
        align(picture, square_transform((-500, -500), 90, 0, (60, 80), 64))


def footprint_of_picture(transform: CropTransform) -> np.ndarray:
    """Crop pixels [S, S] whose centre lies in the photograph."""
    size = transform.output_size
    u, v = np.meshgrid(np.arange(size), np.arange(size))
    xy = transform.crop_to_source(np.stack([u, v], axis=-1))
    height, width = transform.source_size
    return (xy[..., 0] >= 0) & (xy[..., 1] >= 0) & (xy[..., 0] <= width - 1) & (xy[..., 1] <= height - 1)


@pytest.mark.parametrize(("side", "size", "least"), [(100.0, 128, 55.0), (100.0, 512, 50.0), (170.0, 64, 40.0)])
def test_unedited_crop_pasted_back_reproduces_the_photograph(side, size, least):
    picture = smooth_picture(220, 260)
    transform = square_transform((131.2, 108.8), side, 21, (220, 260), size)
    pasted = paste_back(picture, align(picture, transform), transform)
    inside = footprint_mask(transform)[0, 0] > 0
    assert psnr(pasted[..., inside], picture[..., inside]) > least
    assert torch.equal(pasted[..., ~inside], picture[..., ~inside])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [32, 300])
def test_outside_is_bit_identical_also_in_uint8(residual, size):
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 150, 190, 3), dtype=np.uint8))
    source = from_uint8(pixels)
    transform = square_transform((80.6, 71.1), 90, -33, (150, 190), size)
    crop = align(source, transform)
    pasted = paste_back(source, -crop, transform, original_crop=crop if residual else None)
    outside = footprint_mask(transform)[0, 0] == 0
    assert 0.3 < outside.float().mean() < 0.9
    assert torch.equal(pasted[..., outside], source[..., outside])
    assert torch.equal(to_uint8(pasted)[:, outside], pixels[:, outside])
    assert (pasted - source).abs().max() > 0.5


def test_edit_lands_where_the_transform_says():
    source = torch.zeros(1, 3, 200, 200)
    transform = square_transform((100, 100), 80, 40, (200, 200), 80)
    crop = align(source, transform)
    crop[..., 18:23, 58:63] = 1.0  # a bright spot around crop pixel (60, 20)
    pasted = paste_back(source, crop, transform)
    spot = pasted[0, 0].double()
    x, y = ((spot.sum(dim=axis) * torch.arange(200)).sum() / spot.sum() for axis in (0, 1))
    assert np.abs(transform.crop_to_source([60.0, 20.0]) - [float(x), float(y)]).max() < 0.05


def test_residual_of_no_edit_gives_the_source_bit_for_bit():
    source = torch.rand(1, 3, 120, 120) * 2 - 1
    transform = square_transform((60, 60), 100, 10, (120, 120), 32)
    crop = align(source, transform)
    assert torch.equal(paste_back(source, crop, transform, original_crop=crop.clone()), source)
    assert not torch.equal(paste_back(source, crop, transform), source)


def test_residual_keeps_detail_the_crop_cannot_hold():
    source = torch.rand(1, 3, 200, 200) - 0.5
    transform = square_transform((100, 100), 160, 0, (200, 200), 32)
    crop = align(source, transform)
    brighter = paste_back(source, crop + 0.2, transform, original_crop=crop)
    assert torch.allclose(brighter[..., 80:120, 80:120], source[..., 80:120, 80:120] + 0.2, atol=1e-5)


def test_user_mask_limits_the_paste_and_feather_softens_the_square():
    source = torch.zeros(1, 3, 100, 100)
    transform = square_transform((49.5, 49.5), 64, 0, (100, 100), 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :, 32:] = 1.0
    pasted = paste_back(source, torch.ones(1, 3, 64, 64), transform, mask, feather=0.0)
    assert (pasted[..., :49] == 0).all() and (pasted[..., 20:80, 51:80] == 1).all()
    soft = footprint_mask(transform, feather=0.2)[0, 0, 50]
    assert soft[17] == 0 and (soft[18:50].diff() >= 0).all() and soft[40] == 1 and 0 < soft[24] < 1
    assert torch.equal(footprint_mask(transform, feather=0.0).unique(), torch.tensor([0.0, 1.0]))
    small = torch.nn.functional.avg_pool2d(mask, 8)
    assert paste_back(source, torch.ones(1, 3, 64, 64), transform, small).shape == source.shape


def test_paste_takes_any_crop_resolution_batch_and_value_range():
    source = torch.rand(1, 3, 90, 90)
    transform = square_transform((45, 45), 60, 5, (90, 90), 64)
    for size in (16, 64, 500):
        pasted = paste_back(source, torch.full((3, 3, size, size), 0.75), transform, value_range=(0.0, 1.0))
        assert pasted.shape == (3, 3, 90, 90) and torch.allclose(pasted[..., 45, 45], torch.tensor(0.75), atol=1e-5)
        assert pasted.min() >= 0


def test_gradients_reach_photograph_and_crop():
    source = smooth_picture(50, 50).requires_grad_()
    transform = square_transform((25, 25), 30, 5, (50, 50), 16)
    crop = align(source, transform)
    (from_crop,) = torch.autograd.grad(crop.sum(), source)
    assert from_crop.abs().sum() > 0
    edited = crop.detach().requires_grad_()
    to_source, to_crop = torch.autograd.grad(paste_back(source, edited, transform).sum(), (source, edited))
    assert to_source.abs().sum() > 0 and to_crop.abs().sum() > 0


def test_misfits_are_refused_in_plain_words():
    source = torch.zeros(1, 3, 50, 60)
    transform = square_transform((25, 25), 30, 0, (50, 60), 16)
    crop = torch.zeros(1, 3, 16, 16)
    with pytest.raises(InvalidInputError, match="Use the photograph that was aligned"):
        paste_back(torch.zeros(1, 3, 60, 50), crop, transform)
    with pytest.raises(InvalidInputError, match="expected a square"):
        paste_back(source, torch.zeros(1, 3, 16, 12), transform)
    with pytest.raises(InvalidInputError, match="their difference"):
        paste_back(source, crop, transform, original_crop=torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidInputError, match="Got 2 photographs and 3 crops"):
        paste_back(source.expand(2, -1, -1, -1), crop.expand(3, -1, -1, -1), transform)
    with pytest.raises(InvalidInputError, match="feather is 2"):
        paste_back(source, crop, transform, feather=2)
    with pytest.raises(InvalidInputError, match="ranges from"):
        paste_back(source, crop, transform, torch.full((1, 1, 16, 16), 2.0))
    with pytest.raises(NotFiniteError, match="crop contains NaN"):
        paste_back(source, crop * float("nan"), transform)


def test_face_oval_covers_the_face_and_leaves_the_border():
    oval = face_oval(128)[0, 0]
    for x, y in ((0.385, 0.48), (0.615, 0.48), (0.5, 0.6), (0.41, 0.70), (0.59, 0.70)):  # eyes, nose, mouth corners
        assert oval[int(y * 128), int(x * 128)] > 0.9
    assert oval[:24].max() == 0 and oval[:, :20].max() == 0 and oval[:, -20:].max() == 0
    torch.testing.assert_close(oval, oval.flip(1))
