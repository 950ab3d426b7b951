"""Attributes on points whose geometry is known, on flat and textured pictures, and on a photograph of a face."""

import numpy as np
import pytest
import torch

from gan_inversion.core import attributes
from gan_inversion.core.attributes import ATTRIBUTES, attribute_of_direction, attributes_of
from gan_inversion.core.errors import InvalidInputError, NotFiniteError

WIDTH, HALF, DEPTH = 0.8, 1.0, 0.97  # mouth, half the outer eye corners' distance, nose before them


def head(turn=0.0, roll=0.0, mouth=WIDTH, gap=0.0, scale=20.0):
    """68 points [1, 68, 2] of a head with eyes, nose and mouth in space, turned, seen from far away, tilted."""
    space = np.zeros((68, 3))  # x to the right of the picture, y down, z towards the camera
    for corner, side in ((36, -1), (39, -0.4), (42, 0.4), (45, 1)):
        space[corner : corner + 3] = space[corner] = side * HALF, 0, 0
    space[36:42, 0], space[42:48, 0] = np.linspace(-1, -0.4, 6), np.linspace(0.4, 1, 6)
    space[45, 0], space[47, 0] = 1, 0.88
    space[30] = 0, 0.6, DEPTH
    space[48], space[54] = (-mouth / 2, 1.2, 0), (mouth / 2, 1.2, 0)
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        space[upper] = space[lower] = 0.1 * (upper - 62), 1.2, 0
        space[lower, 1] += gap
    t, r = np.radians((turn, roll))
    x = space[:, 0] * np.cos(t) + space[:, 2] * np.sin(t)
    y = space[:, 1]
    return scale * np.stack((x * np.cos(r) - y * np.sin(r), x * np.sin(r) + y * np.cos(r)), axis=-1)[None] + 64


def of(points):
    return attributes_of(torch.zeros(len(points), 3, 16, 16), lambda images: points)


@pytest.mark.parametrize("turn", [-35.0, -10.0, 0.0, 4.0, 30.0])
@pytest.mark.parametrize("roll", [0.0, 25.0])
def test_yaw_is_the_angle_the_head_was_turned_by(turn, roll):
    assert of(head(turn, roll))["yaw"].tolist() == pytest.approx([turn], abs=1e-3)


def test_yaw_is_positive_to_the_right_of_the_picture():
    points = head()
    points[0, 30, 0] += 5
    assert float(of(points)["yaw"]) > 5


def test_mouth_in_eye_distances_whatever_the_size_turn_and_tilt():
    eyes = float(attributes.eye_distances(head(scale=1.0))[0])
    for points in (head(gap=0.2), head(gap=0.2, scale=3.0), head(gap=0.2, roll=20), head(gap=0.2)):
        found = of(points)
        assert float(found["smile_width"]) == pytest.approx(WIDTH / eyes, rel=1e-4)
        assert float(found["mouth_opening"]) == pytest.approx(0.2 / eyes, rel=1e-4)
    # Turning shortens eyes and mouth alike.
    assert float(of(head(turn=30))["smile_width"]) == pytest.approx(WIDTH / eyes, rel=1e-4)
    wider = ATTRIBUTES["smile_width"].change(of(head())["smile_width"], of(head(mouth=1.1 * WIDTH))["smile_width"])
    assert wider.tolist() == pytest.approx([10.0], abs=1e-3)
    assert float(of(head())["mouth_opening"]) == 0


def test_no_face_gives_nan_and_leaves_the_others():
    points = np.concatenate((np.full((1, 68, 2), np.nan), np.zeros((1, 68, 2)), head(10)))
    found = of(points)
    for name in ("smile_width", "yaw"):
        assert found[name].isnan().tolist() == [True, True, False], name
    assert found["brightness"].tolist() == [pytest.approx(0.5)] * 3


def test_brightness_and_sharpness():
    checks = torch.full((16, 16), -0.5)
    checks[::2, ::2], checks[1::2, 1::2] = 0.5, 0.5
    green = torch.full((3, 16, 16), -1.0)
    green[1] = 1
    images = torch.stack((torch.full((3, 16, 16), 3.0), torch.full((3, 16, 16), -0.5), checks.expand(3, -1, -1), green))
    found = attributes_of(images)
    assert found.keys() == {"brightness", "sharpness"}
    assert found["brightness"].tolist() == pytest.approx([1.0, 0.25, 0.5, 0.7152], abs=1e-5)
    flat, _, checked, _ = found["sharpness"].tolist()
    assert flat < 1e-5 and checked > 1
    blurred = torch.nn.functional.avg_pool2d(images[2:3], 3, 1, 1)
    assert attributes_of(blurred)["sharpness"] < 0.3 * checked
    assert attributes_of(images.half())["brightness"].dtype == torch.float32


def test_words():
    told = {name: about.change_words(0.126) for name, about in ATTRIBUTES.items()}
    assert told["smile_width"] == "+0%" and told["brightness"] == "+0.13" and told["yaw"] == "+0.1°"
    assert ATTRIBUTES["smile_width"].change_words(-11.6) == "-12%" and ATTRIBUTES["yaw"].value_words(8.04) == "+8.0°"
    assert ATTRIBUTES["mouth_opening"].change_words(0.126) == "+0.126"


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("smile", "smile_width"), ("portraits-smile", "smile_width"), ("sam-ffhq-laughing", "smile_width"),
        ("interfacegan-ffhq-pose", "yaw"), ("yaw", "yaw"), ("Head Rotation", "yaw"), ("brightness", "brightness"),
        ("age", None), ("light-side", None), ("sefa:0", None), ("smiley_hat", None),
    ],
)  # fmt: skip
def test_what_a_direction_is_about(name, about):
    assert attribute_of_direction(name) == about


def test_refusals():
    with pytest.raises(InvalidInputError, match=r"Landmarks are \(1, 5, 2\); expected \(2, 68, 2\)"):
        attributes_of(torch.zeros(2, 3, 16, 16), lambda images: np.zeros((1, 5, 2)))
    with pytest.raises(InvalidInputError, match="images has shape"):
        attributes_of(torch.zeros(3, 16, 16))
    with pytest.raises(NotFiniteError, match="batch item 1"):
        attributes_of(torch.stack((torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("nan")))))


def test_the_bundled_net_on_a_photograph_its_mirror_image_and_no_face():
    data = pytest.importorskip("skimage.data")
    from gan_inversion.core.alignment import CropTransform, align
    from gan_inversion.core.evaluation import aligned_landmarks
    from gan_inversion.core.imaging import from_uint8
    from gan_inversion.core.landmarks import load_landmark_net

    net = load_landmark_net()
    # The FFHQ square of the face in it, as Align Face finds it.
    square = CropTransform(((144.0, 16.4), (134.4, 186.9), (305.0, 196.6), (314.6, 26.1)), (512, 512), 128)
    face = align(from_uint8(data.astronaut()), square)
    noise = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.cat((face, face.flip(-1), noise))
    found = attributes_of(images, lambda x: aligned_landmarks(net, x, least_score=0.5))
    assert 0.75 < float(found["smile_width"][0]) < 1.1 and abs(float(found["yaw"][0])) < 6
    assert float(found["yaw"][0] + found["yaw"][1]) == pytest.approx(0, abs=1.5)
    assert float(found["smile_width"][0]) == pytest.approx(float(found["smile_width"][1]), rel=0.03)
    assert found["yaw"].isnan().tolist() == [False, False, True]
