"""Attributes of a face that can be read off a picture: smile, mouth, head turn, brightness, sharpness.

They answer whether an edit did what its name says, without a classifier: StyleGAN papers report the same with attribute
networks (Shen et al. 2020, "InterFaceGAN"), whose scores are saturated and have no unit. The numbers here are lengths,
angles and grey levels, good for comparing pictures of one person; between people they also differ by the shape of faces.

Yaw: weak perspective. With half the distance of the outer eye corners e and a nose tip that stands d before them, a turn
by t moves the nose tip d sin(t) across and shortens the eyes' half distance to e cos(t), so tan(t) = shift / half * e / d.
d / e is that of MediaPipe's canonical face model: (7.4756 - 3.1734) / 4.4459 = 0.97. Limits: faces with another nose are
off in proportion (a tenth for a tenth) and crooked noses by a few degrees; useful within about 40 degrees, where both
outer eye corners are seen; a camera nearer than about a metre exaggerates.

Values are no better than the landmarks. The bundled net learned from faces with closed mouths: it follows mouth corners
and nose, and hardly sees an open mouth ("mouth_opening" stays near 0, in smiles with teeth too); face-api's net does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InvalidInputError
from .imaging import check_image

FindLandmarks = Callable[[Tensor], np.ndarray]  # FFHQ crops [B, 3, S, S] -> 68 points [B, 68, 2] in pixels

_MOUTH_CORNERS = (48, 54)
_OUTER_EYE_CORNERS = (36, 45)
_NOSE_TIP = 30
_INNER_LIPS = ((61, 62, 63), (67, 66, 65))  # upper, and the lower point below each
_NOSE_DEPTH = 0.97  # d / e, see above
_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709


@dataclass(frozen=True)
class Attribute:
    """How an attribute is called and how a change of it is told."""

    label: str
    short: str  # for captions
    unit: str  # of the value
    change_unit: str  # "%" of the value before, or else that of the value
    decimals: int = 2

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """From before to after, both [B], in `change_unit`; NaN where either is not known."""
        return 100 * (after / before - 1) if self.change_unit == "%" else after - before

    def value_words(self, value: float) -> str:
        """A value with its unit, as in "0.91" or "+8.1°"."""
        return f"{value:+.1f}°" if self.unit == "degrees" else f"{value:.{self.decimals}f}"

    def change_words(self, change: float) -> str:
        """A change with its unit, as in "+12%", "-8.1°" or "+0.05"."""
        if self.change_unit == "%":
            return f"{change:+.0f}%"
        return f"{change:+.1f}°" if self.unit == "degrees" else f"{change:+.{self.decimals}f}"


ATTRIBUTES: dict[str, Attribute] = {
    "smile_width": Attribute("smile width", "smile", "mouth corners' distance in eye distances", "%", 3),
    "mouth_opening": Attribute("mouth opening", "mouth", "inner lips' distance in eye distances", "eye distances", 3),
    "yaw": Attribute("yaw", "yaw", "degrees", "degrees", 1),
    "brightness": Attribute("brightness", "light", "mean luma in 0..1", "luma"),
    "sharpness": Attribute("sharpness", "sharp", "deviation of the Laplacian of luma", "%", 4),
}
BUNDLED_LIMITS = (
    "The bundled landmark net learned from faces with closed mouths: an opened mouth hardly moves its mouth opening."
)
_MEANT = {
    "smile_width": ("smile", "smiles", "smiling", "laugh", "laughing", "grin"),
    "mouth_opening": ("mouth",),
    "yaw": ("yaw", "pose", "rotation", "turn"),
    "brightness": ("brightness", "exposure"),
    "sharpness": ("sharpness", "blur"),
}


def attribute_of_direction(name: str) -> str | None:
    """The key of `ATTRIBUTES` that a direction of this name is about; None where nothing here measures it (age, hair).

    By whole words of the name: "portraits-smile", "interfacegan-ffhq-pose".
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((key for key, meant in _MEANT.items() if any(word in meant for word in words)), None)


@torch.no_grad()
def attributes_of(images: Tensor, landmarks: FindLandmarks | None = None) -> dict[str, Tensor]:
    """Measured attributes of pictures, by the keys of `ATTRIBUTES`, each [B] float32 on the CPU.

    Args:
        images: [B, 3, H, W] in [-1, 1]; FFHQ crops where landmarks are to be found.
        landmarks: finds 68 points in iBUG order; rows of NaN, where it found no face, give NaN. None leaves out what
            needs them.

    Returns:
        "smile_width": distance of the mouth corners, in distances of the eyes' centres.
        "mouth_opening": mean distance of the inner lips at three points, in the same unit; 0 is closed.
        "yaw": degrees, 0 is frontal, positive where the nose points to the right of the picture (see the module).
        "brightness": mean Rec. 709 luma of the whole picture's gamma-encoded values, 0 is black, 1 white.
        "sharpness": standard deviation of luma's 4-neighbour Laplacian; compare pictures of one size only.

    Raises:
        InvalidInputError: not a batch of pictures, or points of another shape.
        NotFiniteError: NaN or infinity in the pictures.
    """
    check_image(images, "images")
    values: dict[str, Tensor] = {}
    if landmarks is not None:
        points = np.asarray(landmarks(images), dtype=np.float64)
        if points.shape != (len(images), 68, 2):
            raise InvalidInputError(
                f"Landmarks are {points.shape}; expected {(len(images), 68, 2)}, 68 for each image."
            )
        eyes = eye_distances(points)
        eyes = np.where(eyes > 0, eyes, math.nan)
        found = {
            "smile_width": mouth_widths(points) / eyes,
            "mouth_opening": _mouth_openings(points) / eyes,
            "yaw": yaw_degrees(points),
        }
        values = {name: torch.from_numpy(value).float() for name, value in found.items()}
    weights = images.new_tensor(_LUMA)[:, None, None]
    luma = ((images.clamp(-1, 1) + 1) / 2 * weights).sum(dim=1, keepdim=True).float()
    values["brightness"] = luma.mean(dim=(1, 2, 3)).cpu()
    values["sharpness"] = _laplacian(luma).flatten(1).std(dim=1, correction=0).cpu()
    return values


def mouth_widths(points: np.ndarray) -> np.ndarray:
    """Distance of the mouth corners [B] of 68 points [B, 68, 2]."""
    right, left = _MOUTH_CORNERS
    return _lengths(points[:, left] - points[:, right])


def eye_distances(points: np.ndarray) -> np.ndarray:
    """Distance of the eyes' centres [B] of 68 points [B, 68, 2]."""
    return _lengths(points[:, 42:48].mean(axis=1) - points[:, 36:42].mean(axis=1))


def yaw_degrees(points: np.ndarray) -> np.ndarray:
    """Head turn [B] in degrees of 68 points [B, 68, 2], positive to the right of the picture; NaN without eyes.

    Measured along the line of the outer eye corners, so that a tilted head gives the same; see the module for the limits.
    """
    right, left = (points[:, index] for index in _OUTER_EYE_CORNERS)
    half = (left - right) / 2
    length = _lengths(half)
    length = np.where(length > 0, length, math.nan)
    shift = ((points[:, _NOSE_TIP] - (right + left) / 2) * half).sum(axis=1) / length
    return np.degrees(np.arctan(shift / length / _NOSE_DEPTH))


def _mouth_openings(points: np.ndarray) -> np.ndarray:
    upper, lower = (points[:, list(indices)] for indices in _INNER_LIPS)
    return np.hypot(*(lower - upper).transpose(2, 0, 1)).mean(axis=1)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.hypot(*vectors.T)


def _laplacian(luma: Tensor) -> Tensor:
    kernel = luma.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernel)
