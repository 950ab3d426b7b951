"""The portraits folder, made by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gan_inversion.core.errors import InvalidInputError, NoFaceError
from gan_inversion.core.training import portraits

ROWS = "set,id,split,age\nlondon,001,train,24\nlondon,002,test,30\ncanada,009f,test,19\n"


@pytest.fixture
def folder(tmp_path):
    """Three photographs with a bright dot at every landmark that places the crop."""
    marks = {}
    for index, name in enumerate(("neutral/001", "neutral/002", "canada/009f")):
        points = np.zeros((189, 2))
        points[list(portraits.FIVE_OF_189)] = np.array([(70, 90), (130, 90), (100, 120), (78, 150), (122, 150)]) + index
        marks[name] = points.tolist()
        pixels = np.full((220, 200, 3), 40 * index + 40, np.uint8)
        for x, y in points[list(portraits.FIVE_OF_189)].astype(int):
            pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=98)
    (tmp_path / "landmarks.json").write_text(json.dumps(marks))
    (tmp_path / "info.csv").write_text(ROWS)
    return tmp_path


def test_people_of_a_split_are_cropped_by_their_landmarks(folder):
    names, images = portraits.load_people(folder, "test", 64)
    assert names == ["neutral/002", "canada/009f"] and images.shape == (2, 3, 64, 64)
    assert images.min() >= -1 and images.max() <= 1
    train, others = portraits.load_people(folder, "train", 64)
    assert train == ["neutral/001"]
    # The landmarks are moved by as much as the picture's dots, so the dots of all crops lie in the same places.
    bright = [image[0] > image[0].median() + 0.4 for image in (*images, *others)]
    assert (bright[0] == bright[1]).float().mean() > 0.99 and (bright[0] == bright[2]).float().mean() > 0.99
    y, x = bright[0].nonzero().float().t()
    assert 0.25 * 64 < x.min() < x.max() < 0.75 * 64 and y.min() < 0.55 * 64


def test_unreadable_photographs_are_named_or_raise(folder):
    (folder / "canada" / "009f.jpg").write_bytes(b"not a picture")
    with pytest.raises(InvalidInputError, match="009f"):
        portraits.load_people(folder, "test", 32)
    problems = []
    names, images = portraits.load_people(folder, "test", 32, on_problem=lambda *entry: problems.append(entry))
    assert names == ["neutral/002"] and len(images) == 1
    assert problems[0][0] == "canada/009f" and "009f.jpg" in problems[0][1]


def test_what_is_no_such_folder(folder, tmp_path):
    with pytest.raises(InvalidInputError, match="info.csv"):
        portraits.load_people(tmp_path / "empty", "test", 32)
    with pytest.raises(InvalidInputError, match="Split 'valid'"):
        portraits.load_people(folder, "valid", 32)
    (folder / "info.csv").write_text("set,id,split,age\n")
    with pytest.raises(InvalidInputError, match="no readable photograph"):
        portraits.load_people(folder, "test", 32)
    (folder / "info.csv").write_text("set,id,split,age\nlondon,777,test,24\n")
    with pytest.raises(InvalidInputError, match="no landmarks of neutral/777"):
        portraits.load_people(folder, "test", 32)


def test_smiles_belong_to_their_people(folder, monkeypatch):
    names = ["neutral/001", "neutral/002", "canada/009f"]
    assert portraits.load_smiles(folder, names, 32) == {}
    (folder / "smiling").mkdir()
    for identity in ("001", "002", "009f"):
        Image.fromarray(np.full((50, 40, 3), 90, np.uint8)).save(folder / "smiling" / f"{identity}.jpg")
    with pytest.raises(NoFaceError):
        portraits.load_smiles(folder, names, 32)
    problems = []
    assert portraits.load_smiles(folder, names, 32, on_problem=lambda *entry: problems.append(entry)) == {}
    assert problems == [("neutral/001", "no face found"), ("neutral/002", "no face found")]
    monkeypatch.setattr(portraits, "align_face", lambda photograph, size: torch.full((1, 3, size, size), 0.5))
    assert list(portraits.load_smiles(folder, names, 32)) == names[:2]


def test_a_smile_in_the_frame_of_the_neutral_photograph(folder):
    """The smiling photograph is the neutral one moved by a few pixels: its crop is the neutral crop."""
    random = np.random.default_rng(0)
    scene = np.kron(random.integers(0, 255, (90, 90, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    marks = json.loads((folder / "landmarks.json").read_text())
    points = 300 + 300 * random.random((len(marks["neutral/002"]), 2))
    points[[0, 1, 55, 87, 93]] = (370, 400), (530, 400), (450, 500), (390, 570), (510, 570)
    marks["neutral/002"] = points.tolist()
    (folder / "landmarks.json").write_text(json.dumps(marks))
    (folder / "smiling").mkdir(exist_ok=True)
    Image.fromarray(scene).save(folder / "neutral" / "002.jpg", quality=98)
    Image.fromarray(np.roll(scene, (12, -8), (0, 1))).save(folder / "smiling" / "002.jpg", quality=98)
    _, images = portraits.load_people(folder, "test", 64, on_problem=lambda *_: None)
    (smile,) = portraits.load_smiles(folder, ["neutral/002"], 64, same_frame=True).values()
    assert (smile[0] - images[0])[:, 16:48, 16:48].abs().mean() < 0.05
