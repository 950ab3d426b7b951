"""The bundled landmark net: from a square around a face to 68 points in iBUG order and a face score.

A small convolutional encoder with a top-down path; every point is the expectation of a softmax over a 24x24 map
(integral regression, Sun et al. 2018, "Integral Human Pose Regression"), so that positions move with the picture.
Trained by core/training/landmarks.py. Jaw and brow points are coarse; eyes, nose and mouth are what alignment uses.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .alignment import CropTransform, align
from .errors import CorruptFileError, InvalidInputError, ModelNotFoundError

logger = logging.getLogger(__name__)

INPUT_SIZE = 96
POINT_COUNT = 68
# Shape of the net's input square on a face, in eye distances: measured from the middle of the eyes towards the mouth.
REGION_SIDE = 3.0
REGION_DROP = 0.4
_HEATMAP_SIZE = 24
_WIDTHS = (24, 48, 80, 112)


class LandmarkNet(nn.Module):
    """Predict points and a face score from crops; see `forward`."""

    def __init__(self) -> None:
        super().__init__()
        stem, first, second, third = _WIDTHS
        self.stem = _block(3, stem, stride=2)
        self.level_24 = nn.Sequential(_block(stem, first, stride=2), _block(first, first))
        self.level_12 = nn.Sequential(_block(first, second, stride=2), _block(second, second))
        self.level_6 = nn.Sequential(_block(second, third, stride=2), _block(third, third), _block(third, third))
        self.lateral_12 = nn.Conv2d(second, first, 1)
        self.lateral_6 = nn.Conv2d(third, first, 1)
        self.merge_12 = _block(first, first)
        self.merge_24 = _block(first, first)
        self.heatmaps = nn.Conv2d(first, POINT_COUNT, 1)
        self.score = nn.Linear(third, 1)
        centres = (torch.arange(_HEATMAP_SIZE) + 0.5) * (INPUT_SIZE / _HEATMAP_SIZE) - 0.5
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, crop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map crops [B, 3, 96, 96] in [-1, 1] to points [B, 68, 2] as (x, y) in crop pixels and face logits [B]."""
        level_24 = self.level_24(self.stem(crop))
        level_12 = self.level_12(level_24)
        level_6 = self.level_6(level_12)
        coarse = self.lateral_12(level_12) + F.interpolate(self.lateral_6(level_6), scale_factor=2, mode="nearest")
        coarse = self.merge_12(coarse)
        fine = self.merge_24(level_24 + F.interpolate(coarse, scale_factor=2, mode="nearest"))
        weights = self.heatmaps(fine).flatten(2).softmax(dim=-1).unflatten(2, (_HEATMAP_SIZE, _HEATMAP_SIZE))
        x = (weights.sum(dim=2) * self.centres).sum(dim=-1)
        y = (weights.sum(dim=3) * self.centres).sum(dim=-1)
        return torch.stack([x, y], dim=-1), self.score(level_6.mean(dim=(2, 3)))[:, 0]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def default_weights_path() -> Path:
    """Return the place of the bundled weights inside the package."""
    return Path(__file__).resolve().parent.parent / "model_registry" / "bundled" / "landmarks.safetensors"


def load_landmark_net(path: str | Path | None = None, device: str | torch.device = "cpu") -> LandmarkNet:
    """Load the landmark net in eval mode, float32; path None means the bundled weights.

    Raises ModelNotFoundError when the file is missing and CorruptFileError when it is not such a net.
    """
    path = default_weights_path() if path is None else Path(path)
    if not path.is_file():
        raise ModelNotFoundError(
            f"There are no landmark weights at {path}; reinstall the package, or train them with "
            "core/training/landmarks.py."
        )
    net = LandmarkNet()
    try:
        net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise CorruptFileError(f"{path} does not hold the landmark net ({error}); fetch the file again.") from error
    return net.eval().requires_grad_(False).to(device)


def region_transform(
    centre: tuple[float, float], side: float, angle: float, source_size: tuple[int, int]
) -> CropTransform:
    """Build the net's input square: centre (x, y) and side in source pixels, angle in degrees clockwise as seen."""
    radians = np.deg2rad(angle)
    across = np.array([np.cos(radians), np.sin(radians)]) * side / 2
    down = np.array([-across[1], across[0]])
    middle = np.asarray(centre, dtype=np.float64)
    corners = np.stack([middle - across - down, middle - across + down, middle + across + down, middle + across - down])
    return CropTransform(tuple(map(tuple, corners)), source_size, INPUT_SIZE, "region")


def region_of_face(points: np.ndarray, source_size: tuple[int, int]) -> CropTransform:
    """Build the net's input square from 68 points [68, 2] in source pixels: upright on the face."""
    right, left = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eyes, mouth = (right + left) / 2, (points[48] + points[54]) / 2
    eye_to_eye, eye_to_mouth = left - right, mouth - eyes
    # As in the FFHQ square, the larger of both spans, so that a turned head does not shrink the region.
    span = max(float(np.hypot(*eye_to_eye)), 0.9 * float(np.hypot(*eye_to_mouth)))
    x_axis = eye_to_eye - eye_to_mouth[::-1] * np.array([-1.0, 1.0])
    down = np.array([-x_axis[1], x_axis[0]]) / max(float(np.hypot(*x_axis)), 1e-6)
    middle = eyes + down * REGION_DROP * span
    angle = float(np.rad2deg(np.arctan2(x_axis[1], x_axis[0])))
    return region_transform((float(middle[0]), float(middle[1])), REGION_SIDE * span, angle, source_size)


def predict_landmarks(
    net: LandmarkNet, image: torch.Tensor, region: CropTransform, passes: int = 3, *, least_score: float = 0.0
) -> tuple[np.ndarray, float]:
    """Find 68 points [68, 2] in source pixels, and the face score in 0..1, from a first guess of the region.

    image: [1, 3, H, W] in [-1, 1]. Each further pass looks again at the square the last points give, upright on the
    face; the last one also looks at its mirror image and averages. The score is the lowest of all passes;
    once it falls below least_score the search stops and the points are worth nothing.
    Raises InvalidInputError for fewer than one pass.
    """
    if passes < 1:
        raise InvalidInputError(f"passes is {passes}; expected 1 or more.")
    parameter = next(net.parameters())
    size = (int(image.shape[-2]), int(image.shape[-1]))
    scores: list[float] = []
    points = np.zeros((POINT_COUNT, 2))
    with torch.no_grad():
        for index in range(passes):
            crop = align(image, region).to(parameter)
            if index == passes - 1:
                crop = torch.cat([crop, crop.flip(-1)])
            found, logits = net(crop)
            in_crop = found.double().cpu().numpy()
            if len(in_crop) == 2:
                in_crop[1] = mirror_points(in_crop[1], INPUT_SIZE)
            points = region.crop_to_source(in_crop.mean(axis=0))
            scores.append(float(torch.sigmoid(logits).min()))
            if scores[-1] < least_score:
                break
            if index < passes - 1:
                following = region_of_face(points, size)
                if _is_lost(following, size):
                    return points, 0.0
                region = following
    return points, min(scores)


def _is_lost(region: CropTransform, size: tuple[int, int]) -> bool:
    """Whether a predicted region shrank to nothing or left the picture, as happens where there is no face."""
    middle = np.asarray(region.quad).mean(axis=0)
    return region.side < 8 or not (0 <= middle[0] < size[1] and 0 <= middle[1] < size[0])


# iBUG order seen in a mirror: point i of the mirrored face is point MIRROR_ORDER[i] of the original.
MIRROR_ORDER = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip


def mirror_points(points: np.ndarray, width: int) -> np.ndarray:
    """Mirror 68 points [68, 2] left to right in a picture of the given width; its own inverse."""
    mirrored = points[list(MIRROR_ORDER)].copy()
    mirrored[:, 0] = width - 1 - mirrored[:, 0]
    return mirrored
