"""Finding faces: YuNet through OpenCV, or scikit-image's own LBP cascade refined by the bundled landmark net.

YuNet: Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector" (OpenCV Zoo file, path given by the caller).
Cascade: the frontal-face LBP cascade that ships inside scikit-image, so this way needs no download.
Points are (x, y) in pixels of the photograph, conventions of core/alignment.py; right and left are the person's own.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .alignment import CropTransform, ffhq_quad, five_points
from .errors import CorruptFileError, InvalidInputError, ModelNotFoundError
from .imaging import check_image, resize_antialiased, to_uint8
from .landmarks import LandmarkNet, default_weights_path, load_landmark_net, predict_landmarks, region_transform
from .resampling import resample

logger = logging.getLogger(__name__)

DETECTORS = ("auto", "yunet", "cascade")
SELECTIONS = ("largest", "index", "left", "right", "centre")

_YUNET_SIDES = (640, 1600)  # longer side; YuNet misses faces much above 300 px, and small ones when shrunk
_YUNET_SCORE = 0.7
_YUNET_OVERLAP = 0.3
# Longer sides of the picture it searches: the two of a group together, the next group only when nothing was found.
_CASCADE_SIDES = ((420, 600), (960,))
_CASCADE_STEP = 1.15
_CASCADE_WINDOW = 24  # the cascade's own smallest face
_CASCADE_ANGLES = (0.0, -25.0, 25.0)  # tilted heads are sought only when no upright one is found
_REGION_PER_CASCADE_BOX = 1.13  # side of the landmark net's region over the side of a cascade box, measured
_BOX_TRIALS = (0.8, 1.0, 1.25)
_PART_BOX_TRIALS = (1.0, 1.6)  # the cascade also fires on part of a face; the net then needs a wider look
_NET_SCORE = 0.5
_SURE_SCORE = 0.9  # asked of finds beyond the first look, where chance hits are far more common than faces
_SAME_FACE = 0.5  # two faces are one when their eyes lie closer than this, in eye distances


@dataclass(frozen=True)
class Face:
    """One face in one photograph.

    box: (x, y, width, height) in pixels. points: 5 or 68 (x, y), see `alignment.five_points`. score: 0..1 as its
    detector means it. detector: which one found it, for reports.
    """

    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]
    score: float
    detector: str

    def points_array(self) -> np.ndarray:
        """Return the points as float64 [N, 2]."""
        return np.array(self.points, dtype=np.float64)

    @property
    def five(self) -> np.ndarray:
        """Right eye, left eye, nose tip, right and left mouth corner, float64 [5, 2]."""
        return five_points(self.points_array())

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of eyes and mouth, (x, y) in pixels."""
        x, y = self.five[[0, 1, 3, 4]].mean(axis=0)
        return float(x), float(y)

    @property
    def area(self) -> float:
        """Area of the FFHQ square in square pixels: comparable between detectors, unlike their boxes."""
        quad = ffhq_quad(self.points_array())
        return float(np.hypot(*(quad[3] - quad[0])) ** 2)

    def crop_transform(self, source_size: tuple[int, int], output_size: int) -> CropTransform:
        """Return the FFHQ crop of this face in a photograph of the given (height, width)."""
        return CropTransform.from_landmarks(self.points_array(), source_size, output_size, self.detector)


def detect_faces(
    image: torch.Tensor,
    detector: str = "auto",
    *,
    yunet_path: str | Path | None = None,
    landmark_path: str | Path | None = None,
    check_interrupt: Callable[[], None] = lambda: None,
) -> list[list[Face]]:
    """Find the faces in each photograph of a batch [B, 3, H, W] in [-1, 1]; per photograph largest first.

    detector: "yunet" (needs yunet_path and OpenCV), "cascade" (offline), or "auto": YuNet when yunet_path is given and
    OpenCV is installed, else the cascade. A photograph without a face gives an empty list, not an error.
    check_interrupt: called before every search and every look at a find; may raise to stop.
    Raises InvalidInputError for an unknown detector or a missing OpenCV, ModelNotFoundError and CorruptFileError for
    the files.
    """
    check_image(image)
    if detector not in DETECTORS:
        raise InvalidInputError(f"Unknown face detector {detector!r}; expected one of {', '.join(DETECTORS)}.")
    if detector == "auto":
        detector = "yunet" if yunet_path is not None and _opencv() is not None else "cascade"
    found = []
    for single in image.detach().float().cpu().split(1):
        if detector == "yunet":
            check_interrupt()
            faces = _detect_yunet(single, yunet_path)
        else:
            faces = _detect_cascade(single, _cached_net(landmark_path), check_interrupt)
        found.append(sorted((face for face in faces if _is_face_shaped(face)), key=lambda face: -face.area))
    return found


def select_face(faces: Sequence[Face], by: str = "largest", index: int = 0) -> Face | None:
    """Choose one face, or None from none.

    by: "largest"; "left" or "right" (nearest that edge of the picture); "centre" (nearest the middle of the span of all
    faces); these take the index-th in that order. "index" counts faces from left to right. An index beyond the faces
    gives None. Raises InvalidInputError for an unknown rule or a negative index.
    """
    if by not in SELECTIONS:
        raise InvalidInputError(f"Unknown face selection {by!r}; expected one of {', '.join(SELECTIONS)}.")
    if index < 0:
        raise InvalidInputError(f"Face index is {index}; expected 0 or more.")
    if by == "largest":
        ordered = sorted(faces, key=lambda face: -face.area)
    elif by == "right":
        ordered = sorted(faces, key=lambda face: -face.centre[0])
    elif by == "centre":
        middle = np.mean([face.centre for face in faces], axis=0) if faces else np.zeros(2)
        ordered = sorted(faces, key=lambda face: float(np.hypot(*(np.array(face.centre) - middle))))
    else:
        ordered = sorted(faces, key=lambda face: face.centre[0])
    return ordered[index] if index < len(ordered) else None


def detect_batch(
    image: torch.Tensor,
    detector: str = "auto",
    *,
    by: str = "largest",
    index: int = 0,
    yunet_path: str | Path | None = None,
    landmark_path: str | Path | None = None,
) -> list[Face | None]:
    """Choose one face in each photograph of a batch [B, 3, H, W]; None, with a warning in the log, where there is none.

    Arguments and errors as in `detect_faces` and `select_face`.
    """
    found = detect_faces(image, detector, yunet_path=yunet_path, landmark_path=landmark_path)
    chosen = [select_face(faces, by, index) for faces in found]
    for number, (faces, face) in enumerate(zip(found, chosen, strict=True)):
        if face is None:
            logger.warning("No face %d in image %d of %d (found %d).", index, number, len(found), len(faces))
    return chosen


def face_from_landmarks(landmarks: Any, detector: str = "landmarks") -> Face:
    """Build a face from landmarks [N, 2] in pixels given by the user or another node (layouts of `five_points`).

    Raises InvalidInputError for a layout that is not known or points that form no face.
    """
    ffhq_quad(landmarks)
    points = np.asarray(landmarks.detach().cpu() if isinstance(landmarks, torch.Tensor) else landmarks, np.float64)
    kept = points[:68] if len(points) == 70 else points if len(points) in (5, 68) else five_points(points)
    low, size = kept.min(axis=0), np.ptp(kept, axis=0)
    return Face((low[0], low[1], size[0], size[1]), _as_points(kept), 1.0, detector)


def face_from_bounding_box(
    image: torch.Tensor, box: Sequence[float], *, landmark_path: str | Path | None = None
) -> Face | None:
    """Find the landmarks of the face in a box (x, y, width, height) of one photograph [1, 3, H, W] in [-1, 1].

    Boxes of any detector fit: several sizes are tried. Returns None where the landmark net sees no face.
    Raises InvalidInputError for an empty box, one outside the picture, or a batch.
    """
    check_image(image)
    if image.shape[0] != 1:
        raise InvalidInputError(f"Got {image.shape[0]} photographs for one box; give one photograph at a time.")
    x, y, width, height = (float(value) for value in box)
    rows, columns = image.shape[-2:]
    inside = x < columns and y < rows and x + width > 0 and y + height > 0
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0 and inside):
        raise InvalidInputError(
            f"The box (x {x:g}, y {y:g}, width {width:g}, height {height:g}) does not touch the {rows}x{columns} "
            "(height x width) picture; expected a box in its pixels."
        )
    net = _cached_net(landmark_path)
    image = image.detach().float().cpu()
    side = float(np.sqrt(width * height)) * _REGION_PER_CASCADE_BOX
    trials = [
        _refine(net, image, (x + width / 2, y + height / 2), side * factor, 0.0, (x, y, width, height), "box+landmarks")
        for factor in _BOX_TRIALS
    ]
    faces = [face for face in trials if face is not None and _is_face_shaped(face)]
    return max(faces, key=lambda face: face.score, default=None)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    return cv2 if hasattr(cv2, "FaceDetectorYN") else None


@lru_cache(maxsize=2)
def _net_of(path: Path) -> LandmarkNet:
    return load_landmark_net(path)


def _cached_net(path: str | Path | None) -> LandmarkNet:
    return _net_of(default_weights_path() if path is None else Path(path))


def _as_points(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)


def _is_face_shaped(face: Face) -> bool:
    try:
        ffhq_quad(face.points_array())
    except InvalidInputError:
        return False
    return True


def _shrunk(image: torch.Tensor, side: int) -> tuple[torch.Tensor, float]:
    """Shrink to the given longer side, never enlarge; returns the image and source pixels per shrunk pixel."""
    height, width = image.shape[-2:]
    ratio = max(height, width) / side
    if ratio <= 1:
        return image, 1.0
    return resize_antialiased(image, (max(1, round(height / ratio)), max(1, round(width / ratio)))), ratio


def _without_doubles(faces: list[Face]) -> list[Face]:
    """Keep the best-scored of faces whose eyes nearly coincide, for instance the same face at two sizes."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        five = face.five
        reach = _SAME_FACE * max(float(np.hypot(*(five[1] - five[0]))), 1.0)
        if all(np.abs(five[:2] - other.five[:2]).max() > reach for other in kept):
            kept.append(face)
    return kept


def _detect_yunet(image: torch.Tensor, path: str | Path | None) -> list[Face]:
    if path is None or not Path(path).is_file():
        raise ModelNotFoundError(
            f"The YuNet detector needs its ONNX file, and there is none at {path}. Fetch it from the catalogue "
            "(face_detection_yunet_2023mar.onnx), or choose the detector 'cascade', which needs no file."
        )
    cv2 = _opencv()
    if cv2 is None:
        raise InvalidInputError(
            "The YuNet detector needs OpenCV 4.8 or newer, which is not installed. Install opencv-python-headless, or "
            "choose the detector 'cascade'."
        )
    height, width = image.shape[-2:]
    sides = [side for side in _YUNET_SIDES if side < max(height, width)]
    # The smallest listed side that holds the picture stands for its full size.
    sides.append(next((side for side in _YUNET_SIDES if side >= max(height, width)), _YUNET_SIDES[-1]))
    faces = []
    for side in sorted(set(sides)):
        small, _ = _shrunk(image, side)
        pixels = np.ascontiguousarray(to_uint8(small)[0].numpy()[..., ::-1])  # OpenCV reads BGR
        rows, columns = pixels.shape[:2]
        scale = np.array([width / columns, height / rows])
        for row in _run_yunet(cv2, Path(path), pixels):
            # YuNet counts pixels by their corners when it scales, like the box; points follow pixel centres.
            points = (row[4:14].reshape(5, 2).astype(np.float64) + 0.5) * scale - 0.5
            x, y, w, h = (float(value) for value in row[:4].astype(np.float64) * np.tile(scale, 2))
            faces.append(Face((x, y, w, h), _as_points(points), float(np.clip(row[14], 0, 1)), "yunet"))
    return _without_doubles(faces)


def _run_yunet(cv2: Any, path: Path, pixels: np.ndarray) -> np.ndarray:
    rows, columns = pixels.shape[:2]
    levels = getattr(getattr(cv2, "utils", None), "logging", None)
    before = levels.getLogLevel() if levels is not None else None
    try:
        if levels is not None:  # OpenCV 5 warns about compute targets on every load
            levels.setLogLevel(levels.LOG_LEVEL_ERROR)
        detector = cv2.FaceDetectorYN.create(str(path), "", (columns, rows), _YUNET_SCORE, _YUNET_OVERLAP, 1000)
        _, found = detector.detect(pixels)
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise CorruptFileError(f"{path} does not run as YuNet ({reason}). Fetch the file again.") from error
    finally:
        if levels is not None:
            levels.setLogLevel(before)
    return np.zeros((0, 15), np.float32) if found is None else found


@lru_cache(maxsize=1)
def _cascade() -> Any:
    try:
        from skimage import data
        from skimage.feature import Cascade
    except ImportError as error:
        raise InvalidInputError(
            "The offline face detector needs scikit-image, which is not installed. Install scikit-image, choose the "
            "detector 'yunet', or give landmarks."
        ) from error
    return Cascade(data.lbp_frontal_face_cascade_filename())


def _detect_cascade(image: torch.Tensor, net: LandmarkNet, check_interrupt: Callable[[], None]) -> list[Face]:
    longest = max(image.shape[-2:])
    for sides in _CASCADE_SIDES:
        # A picture is never enlarged, so all sides beyond its own are one.
        copies = [_shrunk(image, side)[0] for side in sorted({min(side, longest) for side in sides})]
        for angle in _CASCADE_ANGLES:
            found: list[Face] = []
            for number, small in enumerate(copies):
                check_interrupt()
                scale = np.array([image.shape[-1] / small.shape[-1], image.shape[-2] / small.shape[-2]])
                least = _SURE_SCORE if number or angle else _NET_SCORE
                for centre, side in _cascade_boxes(small, angle):
                    check_interrupt()
                    x, y = (centre + 0.5) * scale - 0.5
                    face = _refine_box(net, image, (float(x), float(y)), side * float(scale[1]), angle, least)
                    if face is not None:
                        found.append(face)
                found = _without_doubles(found)
            if found:
                return found
        if longest <= max(sides):
            break
    return []


def _refine_box(
    net: LandmarkNet, image: torch.Tensor, centre: tuple[float, float], side: float, angle: float, least: float
) -> Face | None:
    box = (centre[0] - side / 2, centre[1] - side / 2, side, side)
    for factor in _PART_BOX_TRIALS:
        width = side * factor * _REGION_PER_CASCADE_BOX
        least = least if factor == 1.0 else _SURE_SCORE
        face = _refine(net, image, centre, width, angle, box, "cascade+landmarks", least)
        if face is not None and _is_face_shaped(face):
            return face
    return None


def _cascade_boxes(small: torch.Tensor, angle: float) -> list[tuple[np.ndarray, float]]:
    """Boxes of the cascade in a picture turned by `angle`, as (centre, side) in pixels of the picture as it is."""
    if min(small.shape[-2:]) < _CASCADE_WINDOW:
        return []
    searched, matrix = _turned(small, angle) if angle else (small, np.eye(2, 3))
    rows, columns = searched.shape[-2:]
    smallest = max(_CASCADE_WINDOW, min(rows, columns) // 14)
    hits = _cascade().detect_multi_scale(
        to_uint8(searched)[0].numpy(), _CASCADE_STEP, 1, (smallest, smallest), (columns, rows), min_neighbor_number=2
    )
    boxes = []
    for hit in hits:
        middle = np.array([hit["c"] + hit["width"] / 2 - 0.5, hit["r"] + hit["height"] / 2 - 0.5])
        boxes.append((matrix[:, :2] @ middle + matrix[:, 2], float(hit["width"])))
    return boxes


def _turned(image: torch.Tensor, angle: float) -> tuple[torch.Tensor, np.ndarray]:
    """Turn a picture by degrees into the frame that just holds it; returns it and the matrix back to the picture.

    Its edge pixels go on into the corners: the border that `align` makes would cost more than the whole search.
    """
    height, width = image.shape[-2:]
    cosine, sine = float(np.cos(np.deg2rad(angle))), float(np.sin(np.deg2rad(angle)))
    columns = round(width * abs(cosine) + height * abs(sine))
    rows = round(width * abs(sine) + height * abs(cosine))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    middle = np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([turn, middle - turn @ (np.array([columns - 1, rows - 1]) / 2)])
    return resample(image, matrix, (rows, columns)).clamp(-1.0, 1.0), matrix


def _refine(
    net: LandmarkNet,
    image: torch.Tensor,
    centre: tuple[float, float],
    side: float,
    angle: float,
    box: tuple[float, float, float, float],
    detector: str,
    least: float = _NET_SCORE,
) -> Face | None:
    """Run the landmark net on a region; None where its score is below `least`."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    region = region_transform(centre, side, angle, size)
    try:
        points, score = predict_landmarks(net, image, region, least_score=least)
    except InvalidInputError:  # the region ran out of the picture
        return None
    if score < least:
        return None
    return replace(Face(box, (), score, detector), points=_as_points(points))
