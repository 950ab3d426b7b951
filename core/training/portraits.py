"""The portraits folder as aligned crops: photographs of the people of one split, for measuring and for trainers.

Photographs: DeBruine & Jones, Face Research Lab London Set and Young Adult White Faces, CC BY 4.0. The people marked
`test` are read for measuring only.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..alignment import CropTransform, align
from ..errors import GANInversionError, InvalidInputError, NoFaceError
from ..faces import detect_faces, select_face
from ..imaging import load_image, to_uint8
from .morphs import register_upper_face

SPLITS = ("train", "test")
FIVE_OF_189 = (0, 1, 55, 87, 93)  # pupils, a point of the nose (unused by the crop), mouth corners
OnProblem = Callable[[str, str], None]  # name of a photograph, why it is left out


def load_people(
    portraits: str | Path, split: str, size: int, *, on_problem: OnProblem | None = None
) -> tuple[list[str], Tensor]:
    """The neutral photographs of a split's people, cropped as FFHQ by the landmarks of the folder.

    Args:
        portraits: folder with info.csv, landmarks.json, neutral/ and canada/.
        split: "train" or "test" of info.csv; the test people must never train anything.
        size: side of the crops in pixels.
        on_problem: called for each photograph that cannot be read, which is then left out; None raises.

    Returns:
        Names such as "neutral/003" in the order of info.csv, and crops [N, 3, size, size] in [-1, 1].

    Raises:
        InvalidInputError: no such folder or split, nobody in it, or, without `on_problem`, an unreadable photograph.
    """
    portraits = Path(portraits)
    marks = _read_marks(portraits)

    def crop(name: str) -> Tensor:
        if name not in marks:
            raise InvalidInputError(f"landmarks.json has no landmarks of {name}.")
        photograph = load_image(portraits / f"{name}.jpg")
        five = np.array(marks[name])[list(FIVE_OF_189)]
        height, width = photograph.shape[2:]
        return align(photograph, CropTransform.from_landmarks(five, (height, width), size))

    found = _collect(_names(portraits, split), crop, on_problem)
    if not found:
        raise InvalidInputError(f"{portraits}: no readable photograph of a person of the split {split!r}.")
    return list(found), torch.cat(list(found.values()))


def load_smiles(
    portraits: str | Path,
    names: Sequence[str],
    size: int,
    *,
    same_frame: bool = False,
    on_problem: OnProblem | None = None,
) -> dict[str, Tensor]:
    """The smiling photographs of people, cropped as FFHQ.

    A smile moves the mouth corners, and the FFHQ crop with them. So there are two crops: around the face that is found
    in the photograph, as a user would make it, or in the frame of the neutral photograph, upper face upon upper face,
    where what a perfect smile edit would draw is to be found.

    Args:
        portraits: folder with smiling/.
        names: as `load_people` gives them; people of "canada" have no smiling photograph and are passed over.
        size: side of the crops in pixels.
        same_frame: in the frame of the neutral photograph (`morphs.register_upper_face`).
        on_problem: called for each photograph without a face or that cannot be read; None raises.

    Returns:
        Name -> crop [1, 3, size, size] in [-1, 1], for those that have one.

    Raises:
        InvalidInputError, NoFaceError: without `on_problem`, an unreadable photograph or one without a face.
    """
    pairs = {name: Path(portraits) / "smiling" / f"{name.partition('/')[2]}.jpg" for name in names}
    files = {name: path for name, path in pairs.items() if name.startswith("neutral/") and path.is_file()}
    marks = _read_marks(Path(portraits)) if same_frame else {}

    def crop(name: str) -> Tensor:
        photograph = load_image(files[name])
        if not same_frame:
            return align_face(photograph, size)
        points = np.array(marks[name])
        neutral = load_image(Path(portraits) / f"{name}.jpg")
        rigid = register_upper_face(_bytes(neutral), _bytes(photograph), points)
        five = points[list(FIVE_OF_189)] @ rigid[:, :2].T + rigid[:, 2]
        return align(photograph, CropTransform.from_landmarks(five, (photograph.shape[2], photograph.shape[3]), size))

    return _collect(list(files), crop, on_problem)


def align_face(photograph: Tensor, size: int, *, yunet_path: str | Path | None = None) -> Tensor:
    """FFHQ crop [1, 3, size, size] of the largest face in one photograph [1, 3, H, W]. Raises NoFaceError."""
    face = select_face(detect_faces(photograph, yunet_path=yunet_path)[0])
    if face is None:
        raise NoFaceError("no face found")
    return align(photograph, face.crop_transform((photograph.shape[2], photograph.shape[3]), size))


def _bytes(image: Tensor) -> np.ndarray:
    return to_uint8(image)[0].numpy()


def _names(portraits: Path, split: str) -> list[str]:
    if split not in SPLITS:
        raise InvalidInputError(f"Split {split!r}: expected one of {', '.join(SPLITS)}.")
    with (portraits / "info.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return [f"{'neutral' if row['set'] == 'london' else row['set']}/{row['id']}" for row in rows]


def _read_marks(portraits: Path) -> dict[str, list[list[float]]]:
    info, marks = portraits / "info.csv", portraits / "landmarks.json"
    if not info.is_file() or not marks.is_file():
        raise InvalidInputError(f"{portraits}: expected a portraits folder with info.csv and landmarks.json in it.")
    return json.loads(marks.read_text())


def _collect(names: Sequence[str], crop: Callable[[str], Tensor], on_problem: OnProblem | None) -> dict[str, Tensor]:
    found = {}
    for name in names:
        try:
            found[name] = crop(name)
        except GANInversionError as error:
            if on_problem is None:
                raise
            on_problem(name, str(error))
    return found
