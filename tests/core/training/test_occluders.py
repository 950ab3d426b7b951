"""Drawn objects on a hand-made portrait: a skin-coloured oval with dark hair on a plain ground."""

import math
import socket

import pytest
import torch
import torch.nn.functional as F

from gan_inversion.core.errors import InvalidInputError
from gan_inversion.core.training.occluders import OCCLUDER_KINDS, occlude, textures
from gan_inversion.core.training.occluders.canvas import Frame, Scene, squircle
from gan_inversion.core.training.occluders.compose import _choose

SIZE = 64
LIGHT_SKIN, DARK_SKIN = (0.85, 0.66, 0.56), (0.32, 0.2, 0.15)
ON_THE_PICTURE = ("background", "face_paint")  # their colours are made from the pixels below them


def face_coordinates(size):
    line = (torch.arange(size) + 0.5) / size
    x, y = torch.meshgrid(line, line, indexing="xy")
    return Frame.of(None, size).to_face(x, y)


def person_mask(size, hair_width=1.3):
    u, v = face_coordinates(size)
    head = (u / hair_width).square() + ((v + 0.1) / 1.75).square() < 1
    face = (u / 1.15).square() + ((v - 0.3) / 1.6).square() < 1
    return (head & (v < 0.6) | face | (u.abs() < 0.8) & (v > 1) | (v > 1.6 + 0.15 * u.abs())).float()[None, None]


def portrait(size=SIZE, skin=LIGHT_SKIN, ground=0.55, hair_width=1.3):
    u, v = face_coordinates(size)
    face = (((u / 1.15).square() + ((v - 0.35) / 1.55).square() < 1) | (v > 1.6)).float()
    person = person_mask(size, hair_width)[0]
    tone = torch.tensor(skin)[:, None, None]
    image = torch.full((3, size, size), ground)
    image = torch.where(person > 0.5, torch.full_like(image, 0.12), image)
    return (torch.where(face > 0.5, tone.expand_as(image), image) * 2 - 1)[None]


def ibug(size, angle=0.0, shift=(0.0, 0.0)):
    """68 points of the portrait, turned clockwise about the middle of the eyes; pixels."""
    points = torch.zeros(68, 2)
    points[36:42], points[42:48] = torch.tensor([0.382, 0.48]), torch.tensor([0.618, 0.48])
    points[48], points[54] = torch.tensor([0.41, 0.73]), torch.tensor([0.59, 0.73])
    points[0], points[16], points[8] = (
        torch.tensor([0.227, 0.48]),
        torch.tensor([0.773, 0.48]),
        torch.tensor([0.5, 0.93]),
    )
    middle = torch.tensor([0.5, 0.48])
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (((points - middle) @ turn + middle + torch.tensor(shift)) * size - 0.5)[None]


def one(kind, seed=3, image=None, **options):
    return occlude(portrait() if image is None else image, [seed], kinds=[kind], count=(1, 1), **options)


def centre(mask):
    """Mean place (u, v) of a mask."""
    u, v = face_coordinates(mask.shape[-1])
    return (mask * u).sum() / mask.sum(), (mask * v).sum() / mask.sum()


@pytest.mark.parametrize("kind", OCCLUDER_KINDS)
def test_only_masked_and_shaded_pixels_change(kind):
    image = portrait()
    for seed in (1, 2):
        found = one(kind, seed, image)
        assert found.images.shape == image.shape and found.masks.shape == found.shadows.shape == (1, 1, SIZE, SIZE)
        assert found.kinds == [(kind,)]
        for field in (found.masks, found.shadows):
            assert field.isfinite().all() and field.min() >= 0 and field.max() <= 1
        assert found.images.abs().max() <= 1
        touched = (found.masks > 0) | (found.shadows > 0)
        assert torch.equal(found.images[~touched.expand_as(image)], image[~touched.expand_as(image)])
        assert found.changed().mean() > 0.002 and found.masks.mean() < 0.95


@pytest.mark.parametrize("kind", [kind for kind in OCCLUDER_KINDS if kind not in ON_THE_PICTURE])
def test_composite_is_object_over_the_darkened_picture(kind):
    # A fine chess board changes no colour that the drawing reads, so both pictures get the same object.
    image = portrait(2 * SIZE) * 0.8
    board = 0.1 * ((torch.arange(2 * SIZE)[:, None] + torch.arange(2 * SIZE)[None]) % 2 * 2.0 - 1)
    first, second = one(kind, 5, image + board), one(kind, 5, image - board)
    torch.testing.assert_close(first.masks, second.masks)
    expected = (1 - first.masks) * (1 - first.shadows) * 2 * board
    torch.testing.assert_close(first.images - second.images, expected.expand(-1, 3, -1, -1), atol=2e-4, rtol=0)


def test_a_seed_is_one_picture_whatever_else_is_in_the_batch():
    images = torch.cat((portrait(), portrait(skin=DARK_SKIN)))
    together = occlude(images, [11, 12])
    assert torch.equal(occlude(images, [11, 12]).images, together.images)
    alone = occlude(images[1:], [12])
    assert torch.equal(alone.images[0], together.images[1]) and alone.kinds[0] == together.kinds[1]
    assert not torch.equal(occlude(images[1:], [13]).masks, alone.masks)


@pytest.mark.parametrize("kind", OCCLUDER_KINDS)
def test_seeds_give_different_designs(kind):
    drawn = occlude(portrait().expand(3, -1, -1, -1), range(20, 23), kinds=[kind], count=(1, 1))
    shapes = drawn.shadows if kind == "cast_shadow" else drawn.masks
    for row in range(1, 3):
        drawn_on = torch.maximum(drawn.changed()[row], drawn.changed()[0])
        assert ((drawn.images[row] - drawn.images[0]).abs() * drawn_on).sum() > 0.1 * drawn_on.sum()
        if kind != "background":  # there the shape is the person's
            assert (shapes[row] - shapes[0]).abs().sum() > 0.06 * torch.maximum(shapes[row], shapes[0]).sum()


@pytest.mark.parametrize(
    "kind", ["hat", "cap", "glasses", "hand", "phone", "scribble", "sticker", "bars", "text", "hair"]
)
def test_design_does_not_depend_on_the_resolution(kind):
    small, large = one(kind, 7, portrait(64)), one(kind, 7, portrait(192))
    shrunk = F.interpolate(large.masks, size=64, mode="area")
    overlap = torch.minimum(small.masks, shrunk).sum() / torch.maximum(small.masks, shrunk).sum()
    assert overlap > (0.75 if kind in ("glasses", "scribble", "text", "hair") else 0.9)


def test_objects_sit_where_they_belong():
    u, v = face_coordinates(SIZE)
    image = portrait().expand(4, -1, -1, -1)

    def masks(kind):
        return occlude(image, range(30, 34), kinds=[kind], count=(1, 1)).masks[:, 0]

    crown, eyes = (v < -1.35) & (person_mask(SIZE)[0, 0] > 0.5), (u.abs() - 0.5).abs() + v.abs() < 0.12
    for kind in ("hat", "cap"):
        for mask in masks(kind):
            assert mask[crown].mean() > 0.97 and mask[eyes].max() < 0.5
    for mask in masks("glasses"):
        across, down = centre(mask)
        assert abs(across) < 0.12 and abs(down) < 0.25
    for mask in masks("sunglasses"):
        assert mask[eyes].min() > 0.8
    for mask in masks("earrings"):
        assert mask[u.abs() < 0.75].max() == 0 and mask[v < 0.2].max() == 0 and mask.sum() > 0
    mouth = (u.abs() < 0.3) & ((v - 1.06).abs() < 0.1)
    for mask in masks("face_mask"):
        assert mask[mouth].min() > 0.95 and mask[eyes].max() == 0


def test_hats_cover_wide_hair():
    image, hair = portrait(hair_width=1.6), person_mask(SIZE, 1.6)
    _, v = face_coordinates(SIZE)
    on_top = (hair[0, 0] > 0.5) & (v < -1.3)
    for seed in range(40, 45):
        mask = one("hat", seed, image, person=hair).masks[0, 0]
        assert mask[on_top].mean() > 0.93
    narrow = one("cap", 41, portrait(), person=person_mask(SIZE)).masks.sum()
    assert one("cap", 41, image, person=hair).masks.sum() > 1.05 * narrow


def test_landmarks_carry_the_objects():
    plain = one("sunglasses", 4, portrait(128), landmarks=ibug(128)).masks
    shifted = one("sunglasses", 4, portrait(128), landmarks=ibug(128, shift=(10 / 128, -6 / 128))).masks
    torch.testing.assert_close(shifted[..., :-10, 12:], plain[..., 6:-4, 2:-10], atol=2e-3, rtol=0)
    turned = one("sunglasses", 4, portrait(128), landmarks=ibug(128, angle=0.3)).masks[0, 0]
    u, v = face_coordinates(128)
    right, left = turned * (u > 0), turned * (u < 0)
    lean = (centre(right)[1] - centre(left)[1]) / (centre(right)[0] - centre(left)[0])
    assert abs(math.atan(lean) - 0.3) < 0.1


def test_frame_goes_there_and_back():
    frame = Frame.of(ibug(100, 0.2, (0.05, 0.02))[0].double().numpy(), 100)
    u, v = frame.to_face(torch.tensor([0.3, 0.9]), torch.tensor([0.8, 0.1]))
    back = frame.to_picture(torch.stack((u, v), dim=1).numpy())
    assert abs(back - [[0.3, 0.8], [0.9, 0.1]]).max() < 1e-5
    assert abs(frame.cheek - 1.155) < 0.02 and abs(frame.chin - 1.9) < 0.02 and abs(frame.eye - 0.5) < 0.01


def test_background_keeps_the_person():
    person = person_mask(SIZE)
    given = one("background", 6, person=person)
    inner = -F.max_pool2d(-person, 3, 1, 1) > 0.5
    outer = F.max_pool2d(person, 3, 1, 1) < 0.5
    assert given.masks[inner].max() == 0 and given.masks[outer].min() > 0.99
    found = 1 - one("background", 6).masks
    overlap = torch.minimum(found, person).sum() / torch.maximum(found, person).sum()
    assert overlap > 0.86


def test_cast_shadow_only_takes_light_away():
    image = portrait()
    for seed in range(50, 54):
        found = one("cast_shadow", seed, image)
        assert found.masks.max() == 0 and found.shadows.max() > 0.2
        expected = (image + 1) * (1 - found.shadows) - 1
        torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)
        assert torch.equal(found.changed(0.06) > 0, found.shadows > 0.06)


def test_hands_have_the_persons_skin():
    for seed in (60, 61, 64):
        colours = []
        for skin in (LIGHT_SKIN, DARK_SKIN):
            found = one("hand", seed, portrait(skin=skin))
            solid = (found.masks > 0.99).expand_as(found.images)
            colours.append(((found.images + 1) / 2)[solid].view(3, -1).median(dim=1).values)
        light, dark = colours
        assert (light - torch.tensor(LIGHT_SKIN)).abs().max() < 0.25
        assert light.mean() - dark.mean() > 0.2 and light[0] > light[2]


def test_places_are_claimed_once_and_counts_are_kept():
    for seed in range(60):
        chosen = _choose(textures.Draw(seed), OCCLUDER_KINDS, (3, 5))
        assert 3 <= len(chosen) <= 5 and list(chosen) == sorted(chosen, key=OCCLUDER_KINDS.index)
        assert len({"hat", "cap", "headband", "head_scarf"} & set(chosen)) <= 1
        assert len({"glasses", "sunglasses"} & set(chosen)) <= 1
    assert len(_choose(textures.Draw(0), ("hat", "cap"), (2, 2))) == 1


def test_lines_keep_their_width_below_a_sample():
    scene = Scene(portrait()[0], None, None, textures.Draw(0))
    canvas = scene.canvas()
    for width in (0.3 * canvas.pixel, canvas.pixel, 3.7 * canvas.pixel):
        mean = canvas.line(canvas.u - 0.013, width).sum(dim=1).mean() * canvas.pixel
        assert abs(mean - width) < 0.02 * width
    distance, dome = squircle(canvas.u, canvas.v, 1.0, 0.5, 0.0)
    assert abs(canvas.inside(distance).sum() * canvas.pixel**2 - math.pi / 2) < 0.02
    assert dome.max() <= 1 and dome[distance > 0].max() == 0


def test_painting_a_crop_paints_the_canvas():
    canvas = Scene(portrait()[0], None, None, textures.Draw(0)).canvas()
    part = canvas.crop(-0.5, -0.5, 0.5, 0.5)
    part.paint(textures.rgb((1.0, 0.0, 0.0), part.u), torch.ones_like(part.u))
    assert torch.equal(canvas.alpha > 0, (canvas.colour[0] > 0)) and 0 < canvas.alpha.mean() < 0.2
    assert abs((canvas.alpha * canvas.u).sum()) < 0.05 * canvas.alpha.sum()


def test_other_float_types_come_back_as_they_were():
    image = portrait().to(torch.bfloat16)
    found = one("sticker", 3, image)
    assert found.images.dtype == found.masks.dtype == torch.bfloat16
    untouched = ((found.masks == 0) & (found.shadows == 0)).expand_as(image)
    assert torch.equal(found.images[untouched], image[untouched])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(1, 3, 64, 48)}, "square crops"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "floating point"),
        ({"seeds": [1, 2]}, "2 seeds for 1 pictures"),
        ({"seeds": [-4]}, "-4"),
        ({"kinds": ["hat", "spaceship"]}, "spaceship.*choose from"),
        ({"kinds": []}, "No kinds"),
        ({"landmarks": torch.zeros(1, 5, 2)}, r"landmarks.*\(1, 68, 2\)"),
        ({"landmarks": torch.zeros(1, 68, 2)}, "one line"),
        ({"person": torch.zeros(1, 1, 32, 32)}, r"person.*\(1, 1, 64, 64\)"),
        ({"count": (2, 1)}, "count"),
        ({"count": (0, 1)}, "count"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    arguments = {"images": portrait(), "seeds": [1]} | change
    with pytest.raises(InvalidInputError, match=words):
        occlude(arguments.pop("images"), arguments.pop("seeds"), **arguments)


@pytest.mark.parametrize("material", sorted(set(textures.MATERIALS), key=lambda m: m.__name__))
def test_materials_fill_the_plane(material):
    line = torch.linspace(-2, 2, 48)
    s, t = torch.meshgrid(line, line, indexing="xy")
    surface = material(textures.Draw(5), s, t)
    colour = surface.colour.expand(3, 48, 48)
    assert colour.isfinite().all() and colour.min() > -0.2 and colour.max() < 1.8
    assert (surface.bump + torch.zeros(48, 48)).isfinite().all() and surface.bump.abs().max() < 0.3
    again = material(textures.Draw(5), s, t)
    assert torch.equal(again.colour, surface.colour)


def test_photographs_load_without_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a photograph was looked for on the network")

    monkeypatch.setattr(socket, "socket", refuse)
    textures._photograph.cache_clear()
    line = torch.linspace(-1, 1, 8)
    s, t = torch.meshgrid(line, line, indexing="xy")
    for name in textures.PHOTOGRAPHS:
        assert textures.photograph(textures.Draw(1), s, t, 2.0, (name,)).std() > 0.005


def test_noise_is_standard_and_periodic():
    line = (torch.arange(256) + 0.5) / 256 * 3.0
    x, y = torch.meshgrid(line, line, indexing="xy")
    for channel in (textures.CLOUDS, textures.ROUGH, textures.BLOBS, textures.GRAIN):
        field = textures.noise(textures.Draw(2), channel, x, y, 3.0)
        assert abs(field.mean()) < 0.05 and 0.6 < field.std() < 1.1
        moved = textures.noise(textures.Draw(2), channel, x + 3.0, y - 6.0, 3.0)
        torch.testing.assert_close(moved, field, atol=2e-3, rtol=0)


def test_relief_is_bright_towards_the_lamp():
    line = torch.linspace(-1, 1, 65)
    x, y = torch.meshgrid(line, line, indexing="xy")
    ball = (1 - x * x - y * y).clamp(min=0).sqrt()
    shade, gloss = textures.relief(ball, 2 / 64, (0.6, 0.0, 0.8))
    assert shade[32, 48] > shade[32, 32] > shade[32, 16]
    torch.testing.assert_close(shade[32, 32], torch.tensor(1.0), atol=0.02, rtol=0)
    assert gloss.argmax() % 65 > 36


def test_lookup_repeats():
    table = torch.arange(6.0).view(1, 2, 3)
    row, column = torch.meshgrid(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([-1.0, 0.0, 4.0]), indexing="ij")
    assert textures.lookup(table, row, column)[0].tolist() == [[2, 0, 1], [5, 3, 4], [2, 0, 1]]
