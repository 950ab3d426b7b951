"""Face detection: offline on a photograph that always comes along, with YuNet and on real data where they are there."""

import json
import logging
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from gan_inversion.core import alignment
from gan_inversion.core import faces as faces_module
from gan_inversion.core.alignment import align, five_points
from gan_inversion.core.errors import CorruptFileError, InvalidInputError, ModelNotFoundError
from gan_inversion.core.faces import (
    Face,
    detect_batch,
    detect_faces,
    face_from_bounding_box,
    face_from_landmarks,
    select_face,
)
from gan_inversion.core.imaging import from_uint8, load_image, resize_antialiased
from gan_inversion.core.landmarks import (
    LandmarkNet,
    default_weights_path,
    load_landmark_net,
    mirror_points,
    predict_landmarks,
    region_of_face,
)

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("GAN_INVERSION_SHARED", ROOT.parent / "shared"))
YUNET = SHARED / "data" / "nets" / "face_detection_yunet_2023mar.onnx"
PHOTOS = SHARED / "data" / "photos"

needs_data = pytest.mark.skipif(
    not PHOTOS.is_dir(), reason=f"real photographs are absent: no {PHOTOS} (set GAN_INVERSION_SHARED)"
)
needs_yunet = pytest.mark.skipif(
    not YUNET.is_file(), reason=f"the YuNet file is absent: no {YUNET} (set GAN_INVERSION_SHARED)"
)

# Right eye, left eye, nose tip, right and left mouth corner, read off the astronaut by eye.
ASTRONAUT = np.array([[202.7, 100.6], [246.4, 102.6], [223.3, 125.8], [203.3, 140.2], [244.5, 140.8]])


@lru_cache(maxsize=1)
def astronaut() -> torch.Tensor:
    return from_uint8(data.astronaut())


@lru_cache(maxsize=1)
def astronaut_face() -> Face:
    (found,) = detect_faces(astronaut(), "cascade")
    assert len(found) == 1
    return found[0]


def face_at(x: float, y: float, span: float) -> Face:
    points = np.array([[-0.5, 0], [0.5, 0], [0, 0.5], [-0.4, 1.1], [0.4, 1.1]]) * span + [x, y]
    return face_from_landmarks(points)


def eye_distance(points: np.ndarray) -> float:
    return float(np.hypot(*(points[1] - points[0])))


def relative_error(face: Face, expected: np.ndarray) -> float:
    return float(np.hypot(*(face.five - expected).T).mean() / eye_distance(expected))


def test_astronaut_is_found_offline_and_the_detector_is_named():
    face = astronaut_face()
    assert face.detector == "cascade+landmarks" and len(face.points) == 68 and face.score > 0.5
    assert relative_error(face, ASTRONAUT) < 0.12
    assert face.crop_transform((512, 512), 128).detector == "cascade+landmarks"


def test_auto_works_without_a_yunet_file():
    assert detect_faces(astronaut())[0] == [astronaut_face()]


def test_mirrored_photograph_gives_the_mirrored_face():
    (found,) = detect_faces(astronaut().flip(-1), "cascade")
    expected = ASTRONAUT[[1, 0, 2, 4, 3]].copy()
    expected[:, 0] = 511 - expected[:, 0]
    assert relative_error(found[0], expected) < 0.12
    # Not merely the points of the upright picture in another order:
    assert relative_error(found[0], ASTRONAUT) > 0.5


def test_tilted_head_is_found_and_its_crop_is_upright():
    angle = 40.0
    tilted = faces_module.region_transform((224.0, 120.0), 400.0, -angle, (512, 512)).with_output_size(480)
    picture = align(astronaut(), tilted)
    (found,) = detect_faces(picture, "cascade")
    assert len(found) == 1
    assert found[0].crop_transform((480, 480), 64).angle == pytest.approx(angle, abs=8)
    assert relative_error(found[0], tilted.source_to_crop(ASTRONAUT)) < 0.15


def test_frame_without_a_face_gives_none_and_is_reported(caplog):
    wall = from_uint8(data.brick()[:256, :256])
    small = resize_antialiased(astronaut(), 256)
    with caplog.at_level(logging.WARNING):
        chosen = detect_batch(torch.cat([small, wall]), "cascade")
    assert chosen[0] is not None and chosen[1] is None
    assert "image 1 of 2" in caplog.text
    assert detect_faces(wall, "cascade") == [[]]


def test_the_turned_search_makes_no_faded_border(monkeypatch):
    # That of a large picture took minutes where there was no face.
    monkeypatch.setattr(alignment, "pad_fading", lambda *_, **__: pytest.fail("made the border that crops have"))
    assert detect_faces(torch.full((1, 3, 120, 200), 0.3), "cascade") == [[]]


def test_a_strip_that_holds_no_face_is_not_searched(monkeypatch):
    monkeypatch.setattr(faces_module, "_cascade", lambda: pytest.fail("searched"))
    assert detect_faces(torch.zeros(1, 3, 4, 900), "cascade") == [[]]


@pytest.mark.parametrize("angle", [-25.0, 25.0])
def test_turned_picture_and_the_way_back(angle):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 90), indexing="ij")
    turned, matrix = faces_module._turned(torch.stack([x, y, 0 * x])[None], angle)
    rows, columns = turned.shape[-2:]
    assert (columns, rows) == (round(90 * 0.9063 + 60 * 0.4226), round(90 * 0.4226 + 60 * 0.9063))
    assert np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])) == pytest.approx(angle)
    inside = 0
    for u, v in ((columns // 2, rows // 2), (columns // 2 + 15, rows // 2 - 10), (columns // 3, rows // 2)):
        at = matrix @ (u, v, 1)
        expected = at / [89, 59] * 2 - 1
        inside += bool(np.abs(expected).max() < 0.9)
        assert np.allclose(turned[0, :2, v, u].numpy(), expected, atol=4e-3)  # 0.1 pixels
    assert inside == 3


def test_an_interrupt_ends_the_search_between_two_trials():
    class Stopped(Exception):
        pass

    calls = []

    def at(call):
        def check():
            calls.append(call)
            if len(calls) == call:
                raise Stopped

        return check

    wall = torch.full((1, 3, 100, 100), 0.3)
    detect_faces(wall, "cascade", check_interrupt=at(None))
    assert len(calls) == 3  # one for each angle
    calls.clear()
    with pytest.raises(Stopped):
        detect_faces(wall, "cascade", check_interrupt=at(2))
    assert len(calls) == 2


def test_tiny_picture_has_no_face_and_raises_nothing():
    assert detect_faces(torch.zeros(1, 3, 8, 8), "cascade") == [[]]


def test_two_faces_are_told_apart_by_size_and_place():
    small = resize_antialiased(astronaut()[..., :256, 96:352], 176)
    frame = torch.zeros(1, 3, 300, 520)
    frame[..., 20:276, 20:276] = astronaut()[..., :256, 96:352]
    frame[..., 60:236, 320:496] = small
    (found,) = detect_faces(frame, "cascade")
    assert len(found) == 2 and found[0].area > found[1].area
    left, right = select_face(found, "left"), select_face(found, "right")
    assert left is found[0] and right is found[1]
    assert select_face(found, "index", 1) is right and select_face(found, "index", 2) is None


def test_selection_rules():
    big, middle, small = face_at(100, 50, 40), face_at(200, 50, 20), face_at(330, 60, 10)
    crowd = [small, big, middle]
    assert select_face(crowd) is big and select_face(crowd, "largest", 2) is small
    assert select_face(crowd, "left") is big and select_face(crowd, "right") is small
    assert select_face(crowd, "right", 1) is middle and select_face(crowd, "centre") is middle
    assert [select_face(crowd, "index", i) for i in range(4)] == [big, middle, small, None]
    assert select_face([]) is None and select_face([], "centre") is None
    with pytest.raises(InvalidInputError, match="Unknown face selection 'best'"):
        select_face(crowd, "best")
    with pytest.raises(InvalidInputError, match="index is -1"):
        select_face(crowd, "index", -1)


def test_landmarks_given_directly():
    assert np.allclose(face_from_landmarks(torch.from_numpy(ASTRONAUT)).five, ASTRONAUT)
    points = astronaut_face().points_array()
    assert np.allclose(face_from_landmarks(points).five, five_points(points))
    assert np.allclose(face_from_landmarks(np.concatenate([points, points[:2]])).five, five_points(points))
    with pytest.raises(InvalidInputError, match="do not form a face"):
        face_from_landmarks(ASTRONAUT[[1, 0, 2, 4, 3]])


@pytest.mark.parametrize("grow", [0.85, 1.0, 1.3])
def test_bounding_box_alone_is_enough(grow):
    x, y, width, height = astronaut_face().box
    box = (x + width * (1 - grow) / 2, y + height * (1 - grow) / 2, width * grow, height * grow)
    face = face_from_bounding_box(astronaut(), box)
    assert face is not None and face.detector == "box+landmarks"
    assert relative_error(face, ASTRONAUT) < 0.12


def test_box_on_nothing_gives_none_and_bad_boxes_are_refused():
    assert face_from_bounding_box(from_uint8(data.brick()), (100, 100, 200, 200)) is None
    with pytest.raises(InvalidInputError, match="does not touch"):
        face_from_bounding_box(astronaut(), (600, 0, 50, 50))
    with pytest.raises(InvalidInputError, match="does not touch"):
        face_from_bounding_box(astronaut(), (10, 10, 0, 50))
    with pytest.raises(InvalidInputError, match="Got 2 photographs"):
        face_from_bounding_box(astronaut().expand(2, -1, -1, -1), (0, 0, 50, 50))


def test_region_of_predicted_points_is_stable():
    net = load_landmark_net()
    region = region_of_face(astronaut_face().points_array(), (512, 512))
    points, score = predict_landmarks(net, astronaut(), region, passes=1)
    moved = np.hypot(*(five_points(points) - astronaut_face().five).T).max()
    assert score > 0.5 and moved < 0.06 * eye_distance(ASTRONAUT)
    with pytest.raises(InvalidInputError, match="passes is 0"):
        predict_landmarks(net, astronaut(), region, passes=0)


def test_mirror_order_is_its_own_inverse_and_swaps_sides():
    points = np.random.default_rng(0).uniform(0, 96, (68, 2))
    assert np.allclose(mirror_points(mirror_points(points, 96), 96), points)
    mirrored = mirror_points(points, 96)
    assert np.allclose(mirrored[36:42].mean(axis=0), [95, 0] + points[42:48].mean(axis=0) * [-1, 1])
    assert np.allclose(mirrored[48], [95, 0] + points[54] * [-1, 1])


def test_bundled_weights_are_small_and_half_precision():
    from safetensors import safe_open

    path = default_weights_path()
    assert path.stat().st_size < 1_500_000
    with safe_open(path, "pt") as file:
        assert "figshare.5047666" in file.metadata()["credit"]
        assert file.get_tensor("heatmaps.weight").dtype == torch.float16


def test_wrong_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ModelNotFoundError, match=r"no landmark weights at .*none\.safetensors"):
        load_landmark_net(tmp_path / "none.safetensors")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CorruptFileError, match="does not hold the landmark net"):
        load_landmark_net(tmp_path / "other.safetensors")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CorruptFileError, match=r"page\.safetensors"):
        load_landmark_net(tmp_path / "page.safetensors")


def test_net_returns_points_in_crop_pixels():
    points, logits = LandmarkNet().eval()(torch.zeros(2, 3, 96, 96))
    assert points.shape == (2, 68, 2) and logits.shape == (2,)
    assert points.min() >= 0 and points.max() <= 95


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="Unknown face detector 'dlib'"):
        detect_faces(astronaut(), "dlib")
    with pytest.raises(InvalidInputError, match="expected"):
        detect_faces(astronaut()[0])
    with pytest.raises(ModelNotFoundError, match="choose the detector 'cascade'"):
        detect_faces(astronaut(), "yunet", yunet_path=tmp_path / "none.onnx")


def test_yunet_without_opencv_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "yunet.onnx").write_bytes(b"x")
    monkeypatch.setattr(faces_module, "_opencv", lambda: None)
    with pytest.raises(InvalidInputError, match="Install opencv-python-headless"):
        detect_faces(astronaut(), "yunet", yunet_path=tmp_path / "yunet.onnx")
    assert detect_faces(astronaut(), "auto", yunet_path=tmp_path / "yunet.onnx")[0] == [astronaut_face()]


def test_corrupt_yunet_file_is_named(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "yunet.onnx").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CorruptFileError, match=r"yunet\.onnx does not run as YuNet"):
        detect_faces(astronaut(), "yunet", yunet_path=tmp_path / "yunet.onnx")


@needs_yunet
def test_yunet_agrees_with_the_offline_way_on_the_astronaut():
    pytest.importorskip("cv2")
    (found,) = detect_faces(astronaut(), "auto", yunet_path=YUNET)
    assert len(found) == 1 and found[0].detector == "yunet" and len(found[0].points) == 5
    assert relative_error(found[0], ASTRONAUT) < 0.12
    assert relative_error(found[0], astronaut_face().five) < 0.15


@needs_data
@needs_yunet
def test_two_people_are_chosen_by_side_with_both_detectors():
    pytest.importorskip("cv2")
    photo = load_image(PHOTOS / "us_government" / "two_people.jpg")
    for detector in ("yunet", "cascade"):
        (found,) = detect_faces(photo, detector, yunet_path=YUNET)
        left, right = select_face(found, "left"), select_face(found, "right")
        assert len(found) == 2 and left is not None and right is not None, detector
        assert left.centre[0] + 1.5 * eye_distance(left.five) < right.centre[0]


@needs_data
@pytest.mark.parametrize("name", ["nasa/astronaut.png", "us_government/obama2.jpg", "us_government/biden.jpg"])
def test_real_photographs_have_one_face_offline(name):
    (found,) = detect_faces(load_image(PHOTOS / name), "cascade")
    assert len(found) == 1


@needs_data
@pytest.mark.parametrize("name", ["neutral/144", "canada/063f"])
def test_people_never_trained_on_are_placed_to_a_few_percent(name):
    from gan_inversion.core.training.landmark_samples import ibug_points

    portraits = SHARED / "data" / "portraits"
    template = json.loads((portraits / "landmarks.json").read_text())[name]
    (found,) = detect_faces(load_image(portraits / f"{name}.jpg"), "cascade")
    assert relative_error(found[0], five_points(ibug_points(np.array(template)))) < 0.06
