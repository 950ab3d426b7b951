"""FFHQ alignment: landmarks to an oriented square, the square to a crop, and the edited crop back into the photograph.

Source: the alignment of the FFHQ dataset (Karras et al. 2019, appendix; `align_images` in the encoder4editing family).
Deviations: the crop is resampled once in torch with supersampling where it shrinks, instead of an integer shrink
followed by an unfiltered bilinear transform; padding is made only on the sides the square leaves the picture, and its
blur starts at the picture's edge instead of inside, so that what is pasted back was never blurred.

Conventions: a point is (x, y) in pixels, x to the right, y down, and the centre of the pixel in column i and row j is
(i, j), as in dlib's landmarks. Sizes are (height, width). A quad lists its corners top-left, bottom-left,
bottom-right, top-right as they appear in the crop; corners lie on the outer edges of the crop's border pixels, so
crop pixel centre (u, v) is the fraction ((u + 0.5) / S, (v + 0.5) / S) of the way across.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .blending import check_mask
from .errors import InvalidInputError
from .imaging import check_image
from .resampling import pad_fading, resample, shrink_whole, shrunk_matrix

Points = tuple[tuple[float, float], ...]

_EYE_SPANS = 2.0  # half side of the FFHQ square in eye distances ...
_MOUTH_SPANS = 1.8  # ... or in eye-to-mouth distances, whichever is larger
_CENTRE_SHIFT = 0.1  # the square's centre lies this part of the way from the eyes to the mouth
_PAD_FRACTION = 0.3  # width of the reflected, fading border, as a part of the square's side
_BORDER_FRACTION = 0.1  # margin kept around the square before it is resampled
_BLUR_FRACTION = 0.02  # sigma of the border's blur, as a part of the square's side
_SHRINK_FROM = 4.0  # above this minification the region is shrunk before its border is made
_DEGENERATE = 1e-6
_OVAL_CENTRE, _OVAL_RADII = (0.5, 0.62), (0.31, 0.36)  # of the face in an FFHQ crop, in crop widths
_OVAL_SOFTNESS = 0.4  # width of the oval's soft edge, as a part of its radius
_PARALLELOGRAM_TOLERANCE = 1e-4  # of the square's side
# MediaPipe face mesh indices of the six eyelid points, nose tip and mouth corners, image-left side first.
_MESH_EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))
_MESH_NOSE, _MESH_MOUTH = 1, (61, 291)


def five_points(landmarks: Any) -> np.ndarray:
    """Reduce landmarks [N, 2] to five points [5, 2]: right eye, left eye, nose tip, right and left mouth corner.

    Right and left are the person's own, so in an upright, unmirrored picture the right eye comes first from the left.
    N = 5 (YuNet's order, returned as it is), 68 or 70 (iBUG; OpenPose appends two pupils), 468 or 478 (MediaPipe mesh).
    Raises InvalidInputError for any other count or for NaN.
    """
    points = _points(landmarks)
    count = len(points)
    if count == 5:
        return points
    if count in (68, 70):
        eyes = (points[36:42].mean(axis=0), points[42:48].mean(axis=0))
        return np.stack([*eyes, points[30], points[48], points[54]])
    if count in (468, 478):
        eyes = tuple(points[list(indices)].mean(axis=0) for indices in _MESH_EYES)
        return np.stack([*eyes, points[_MESH_NOSE], *points[list(_MESH_MOUTH)]])
    raise InvalidInputError(
        f"Got {count} landmarks; expected 5 (eyes, nose, mouth corners), 68 or 70 (iBUG), or 468 or 478 (MediaPipe)."
    )


def ffhq_quad(landmarks: Any) -> np.ndarray:
    """Compute the FFHQ crop square from landmarks [68, 2] in pixels (or any layout `five_points` knows).

    Returns corners [4, 2] float64: top-left, bottom-left, bottom-right, top-right. Raises InvalidInputError for
    landmarks that fit no face, such as swapped or coinciding eyes.
    """
    return ffhq_quad_from_five(five_points(landmarks))


def ffhq_quad_from_five(points: Any) -> np.ndarray:
    """Compute the FFHQ crop square from five points [5, 2]: right eye, left eye, nose, right and left mouth corner.

    The nose is not used. Right and left are the person's own (YuNet's order): the first eye is the one nearer the left
    edge of an upright, unmirrored picture. Returns corners [4, 2] as `ffhq_quad`; raises InvalidInputError likewise.
    """
    points = _points(points)
    if len(points) != 5:
        raise InvalidInputError(f"Got {len(points)} points; expected 5: eyes, nose, mouth corners.")
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    eye_to_eye = points[1] - points[0]
    eye_to_mouth = mouth - eyes
    # The mouth lies clockwise (in image axes) from the line of the eyes; otherwise two sides were swapped.
    if eye_to_eye[0] * eye_to_mouth[1] - eye_to_eye[1] * eye_to_mouth[0] <= 0:
        raise InvalidInputError(
            "The landmarks do not form a face: seen along the line from the first eye to the second, the mouth must "
            "lie on the right-hand side. Give the eye on the image's left first, or mirror the points."
        )
    x_axis = eye_to_eye - eye_to_mouth[::-1] * np.array([-1.0, 1.0])
    length = np.hypot(*x_axis)
    span = max(_EYE_SPANS * np.hypot(*eye_to_eye), _MOUTH_SPANS * np.hypot(*eye_to_mouth))
    if length < _DEGENERATE or span < _DEGENERATE:
        raise InvalidInputError("The landmarks coincide; expected distinct eyes and mouth corners in pixels.")
    x_axis = x_axis / length * span
    y_axis = x_axis[::-1] * np.array([-1.0, 1.0])
    centre = eyes + _CENTRE_SHIFT * eye_to_mouth
    return np.stack(
        [centre - x_axis - y_axis, centre - x_axis + y_axis, centre + x_axis + y_axis, centre + x_axis - y_axis]
    )


@dataclass(frozen=True)
class CropTransform:
    """The affine map between the pixels of a square crop and those of the photograph it was taken from.

    quad: corners (x, y) in source pixels, order top-left, bottom-left, bottom-right, top-right; it must be a
    parallelogram (FFHQ squares are). source_size: (height, width). output_size: side of the crop in pixels.
    detector: what found the face, for reports. Raises InvalidInputError for a quad without area or not affine.
    """

    quad: Points
    source_size: tuple[int, int]
    output_size: int
    detector: str = "manual"

    def __post_init__(self) -> None:
        corners = _points(self.quad)
        if corners.shape != (4, 2):
            raise InvalidInputError(f"A quad needs 4 corners (x, y); got {len(corners)}.")
        object.__setattr__(self, "quad", tuple((float(x), float(y)) for x, y in corners))
        object.__setattr__(self, "source_size", (int(self.source_size[0]), int(self.source_size[1])))
        object.__setattr__(self, "output_size", int(self.output_size))
        if self.output_size < 1 or min(self.source_size) < 1:
            raise InvalidInputError(f"Crop size {self.output_size} or source size {self.source_size} is empty.")
        down, across = corners[1] - corners[0], corners[3] - corners[0]
        area = across[0] * down[1] - across[1] * down[0]
        if area < _DEGENERATE:
            raise InvalidInputError(
                f"The quad {self.quad} has no area or is mirrored; list top-left, bottom-left, bottom-right, top-right."
            )
        if np.abs(corners[0] + corners[2] - corners[1] - corners[3]).max() > _PARALLELOGRAM_TOLERANCE * math.sqrt(area):
            raise InvalidInputError(f"The quad {self.quad} is not a parallelogram, so no affine map fits it.")

    @classmethod
    def from_landmarks(
        cls, landmarks: Any, source_size: tuple[int, int], output_size: int, detector: str = "landmarks"
    ) -> "CropTransform":
        """Build the FFHQ crop of a face with the given landmarks (see `five_points`)."""
        return cls(ffhq_quad(landmarks), source_size, output_size, detector)  # type: ignore[arg-type]

    @classmethod
    def whole_square(cls, source_size: tuple[int, int], output_size: int) -> "CropTransform":
        """Build the largest centred, upright square of a picture: for aligned input and for frames without a face."""
        height, width = source_size
        side = min(height, width)
        left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
        right, bottom = left + side, top + side
        return cls(((left, top), (left, bottom), (right, bottom), (right, top)), source_size, output_size, "none")

    @property
    def side(self) -> float:
        """Side of the crop in source pixels (mean of both axes)."""
        corners = np.asarray(self.quad)
        return float((np.hypot(*(corners[3] - corners[0])) + np.hypot(*(corners[1] - corners[0]))) / 2)

    @property
    def scale(self) -> float:
        """Source pixels per crop pixel: above 1 the crop shrinks the photograph, below 1 it enlarges it."""
        return self.side / self.output_size

    @property
    def angle(self) -> float:
        """Rotation of the crop's x axis in the photograph, in degrees, clockwise as seen (y points down)."""
        across = np.asarray(self.quad[3]) - np.asarray(self.quad[0])
        return math.degrees(math.atan2(across[1], across[0]))

    def matrix(self) -> np.ndarray:
        """Return the 2x3 matrix A of crop pixel (u, v) to source pixel: (x, y) = A @ (u, v, 1)."""
        corners = np.asarray(self.quad, dtype=np.float64)
        across = (corners[3] - corners[0]) / self.output_size
        down = (corners[1] - corners[0]) / self.output_size
        return np.column_stack([across, down, corners[0] + 0.5 * across + 0.5 * down])

    def inverse_matrix(self) -> np.ndarray:
        """Return the 2x3 matrix of source pixel (x, y) to crop pixel (u, v), the inverse of `matrix`."""
        matrix = self.matrix()
        inverse = np.linalg.inv(matrix[:, :2])
        return np.column_stack([inverse, -inverse @ matrix[:, 2]])

    def crop_to_source(self, points: Any) -> np.ndarray:
        """Map points [..., 2] from crop pixels to source pixels (float64)."""
        return _apply(self.matrix(), points)

    def source_to_crop(self, points: Any) -> np.ndarray:
        """Map points [..., 2] from source pixels to crop pixels (float64); the inverse of `crop_to_source`."""
        return _apply(self.inverse_matrix(), points)

    def with_output_size(self, output_size: int) -> "CropTransform":
        """Return the same region of the photograph at another crop resolution."""
        return CropTransform(self.quad, self.source_size, output_size, self.detector)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings that JSON can hold without loss."""
        return {
            "quad": [list(corner) for corner in self.quad],
            "source_size": list(self.source_size),
            "output_size": self.output_size,
            "detector": self.detector,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CropTransform":
        """Rebuild a transform from `to_dict`. Raises InvalidInputError when a field is missing or malformed."""
        try:
            height, width = data["source_size"]
            return cls(data["quad"], (height, width), data["output_size"], str(data["detector"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"The crop transform is malformed ({error!r}); expected quad, source_size, output_size and detector."
            ) from error


def align(image: torch.Tensor, transform: CropTransform) -> torch.Tensor:
    """Cut the crop [B, 3, S, S] of a transform out of a photograph [B, 3, H, W], both in [-1, 1].

    Where the crop shrinks the photograph it averages over each crop pixel's area; where it enlarges, it is bicubic.
    Parts outside the photograph are its reflection, fading into blur and the median colour. Differentiable.
    Raises InvalidInputError when the photograph's size is not the transform's source size.
    """
    check_image(image)
    _check_source(image, transform)
    if image.device.type == "mps":  # bicubic grid sampling is not available there
        return align(image.cpu(), transform).to(image.device)
    region, matrix = _source_region(image, transform)
    return resample(region, matrix, (transform.output_size, transform.output_size)).clamp(-1.0, 1.0)


def face_oval(size: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Mask [1, 1, S, S] of the face in an FFHQ crop: brows to chin, cheek to cheek, 1 inside and softly 0 outside.

    An FFHQ crop fixes eyes and mouth, so one oval serves every face that looks ahead; hair, neck and background are
    mostly outside it.
    """
    line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    distance = (
        ((x - _OVAL_CENTRE[0]) / _OVAL_RADII[0]).square() + ((y - _OVAL_CENTRE[1]) / _OVAL_RADII[1]).square()
    ).sqrt()
    edge = ((distance - 1 + _OVAL_SOFTNESS) / _OVAL_SOFTNESS).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * edge))[None, None]


def footprint_mask(
    transform: CropTransform, mask: torch.Tensor | None = None, *, feather: float = 0.08, device: Any = "cpu"
) -> torch.Tensor:
    """Return the paste mask [1, 1, H, W] in 0..1 in the photograph: exactly 0 outside the crop's square.

    feather: width of the soft edge as a part of the crop's side (0 gives a hard square). mask [1, 1, S', S'] in 0..1 in
    crop coordinates, of any resolution, multiplies the feathered square. Raises InvalidInputError for a bad mask.
    """
    height, width = transform.source_size
    result = torch.zeros(1, 1, height, width, device=device)
    bounds = _bounds(transform)
    if bounds is not None:
        top, bottom, left, right = bounds
        result[..., top:bottom, left:right] = _mask_in(transform, bounds, mask, feather, torch.device(device))
    return result


def paste_back(
    source: torch.Tensor,
    crop: torch.Tensor,
    transform: CropTransform,
    mask: torch.Tensor | None = None,
    *,
    feather: float = 0.08,
    original_crop: torch.Tensor | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> torch.Tensor:
    """Put an edited crop [B, 3, S', S'] back into its photograph [B, 3, H, W] and return the whole picture.

    The mask is that of `footprint_mask`; where it is 0 the result is bit-identical to the source. A crop of another
    resolution than the transform's is taken to cover the same square. With original_crop (the crop before the edit, of
    the same shape) only the difference is added, so the photograph keeps its own detail and an edit that changes
    nothing gives the source back bit for bit. A batch of 1 on either side is repeated for the other. Both images may be
    in any one range, given as value_range; the result is clamped to it inside the mask. Differentiable in crop, source
    and mask. Raises InvalidInputError for sizes that do not fit.
    """
    check_image(source, "source")
    check_image(crop, "crop")
    _check_source(source, transform)
    if crop.shape[-1] != crop.shape[-2]:
        raise InvalidInputError(f"The crop is {crop.shape[-2]}x{crop.shape[-1]}; expected a square.")
    if crop.shape[0] != source.shape[0] and 1 not in (crop.shape[0], source.shape[0]):
        raise InvalidInputError(f"Got {source.shape[0]} photographs and {crop.shape[0]} crops; expected equal counts.")
    if source.device.type == "mps":
        moved = [None if t is None else t.cpu() for t in (mask, original_crop)]
        pasted = paste_back(
            source.cpu(), crop.cpu(), transform, moved[0], feather=feather, original_crop=moved[1],
            value_range=value_range,
        )  # fmt: skip
        return pasted.to(source.device)
    content = crop.to(source)
    if original_crop is not None:
        check_image(original_crop, "original_crop")
        if original_crop.shape[-2:] != crop.shape[-2:]:
            raise InvalidInputError(
                f"original_crop is {tuple(original_crop.shape)} and the edited crop {tuple(crop.shape)}; expected the "
                "same size, so that their difference can be taken."
            )
        content = content - original_crop.to(source)
    batch = max(content.shape[0], source.shape[0])
    if mask is not None and mask.shape[0] not in (1, batch):
        raise InvalidInputError(f"Got {mask.shape[0]} masks for {batch} pictures; expected 1 or {batch}.")
    result = source.expand(batch, -1, -1, -1).clone()
    bounds = _bounds(transform)
    if bounds is None:
        return result
    top, bottom, left, right = bounds
    window = result[..., top:bottom, left:right]
    weight = _mask_in(transform, bounds, mask, feather, source.device).to(source)
    warped = resample(
        content, _matrix_in(transform.with_output_size(crop.shape[-1]), bounds), (bottom - top, right - left)
    )
    if original_crop is None:
        changed = weight > 0
        pasted = weight * warped + (1.0 - weight) * window
    else:
        step = weight * warped
        changed = step != 0
        pasted = window + step
    merged = torch.where(changed, pasted.clamp(*value_range), window)
    # Assembled from parts, not assigned in place, so that gradients reach crop and source alike.
    middle = torch.cat([result[..., top:bottom, :left], merged, result[..., top:bottom, right:]], dim=-1)
    return torch.cat([result[..., :top, :], middle, result[..., bottom:, :]], dim=-2)


def _points(points: Any) -> np.ndarray:
    if isinstance(points, torch.Tensor):
        points = points.detach().cpu().numpy()
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Points are not numbers ({error}); expected an array [N, 2] of (x, y).") from error
    if array.ndim != 2 or array.shape[1] != 2:
        raise InvalidInputError(f"Points have shape {array.shape}; expected [N, 2] of (x, y) in pixels.")
    if not np.isfinite(array).all():
        raise InvalidInputError("Points contain NaN or infinity; expected finite (x, y) in pixels.")
    return array


def _apply(matrix: np.ndarray, points: Any) -> np.ndarray:
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def _check_source(image: torch.Tensor, transform: CropTransform) -> None:
    if tuple(image.shape[-2:]) != transform.source_size:
        raise InvalidInputError(
            f"The photograph is {image.shape[-2]}x{image.shape[-1]} (height x width), but the crop was taken from one "
            f"of {transform.source_size[0]}x{transform.source_size[1]}. Use the photograph that was aligned."
        )


def _source_region(image: torch.Tensor, transform: CropTransform) -> tuple[torch.Tensor, np.ndarray]:
    """Cut, shrink and pad what the crop needs; return it with the matrix from crop pixels to its own pixels."""
    height, width = image.shape[-2:]
    matrix = transform.matrix()
    shrink = int(transform.scale / 2) if transform.scale >= _SHRINK_FROM else 1
    corners = np.asarray(transform.quad)
    border = max(math.ceil(transform.side * _BORDER_FRACTION), 3 * shrink, 3)
    low = np.floor(corners.min(axis=0)).astype(int) - border
    high = np.ceil(corners.max(axis=0)).astype(int) + border + 1
    left, top = max(low[0], 0), max(low[1], 0)
    right, bottom = min(high[0], width), min(high[1], height)
    if left >= right or top >= bottom:
        raise InvalidInputError(f"The crop {transform.quad} lies wholly outside the {height}x{width} photograph.")
    region = image[..., top:bottom, left:right]
    matrix[:, 2] -= (left, top)
    if shrink > 1:
        region, matrix = shrink_whole(region, shrink), shrunk_matrix(matrix, shrink)
    least = math.ceil(transform.side * _PAD_FRACTION / shrink)
    overhang = [-(corners[:, 0].min() + 0.5), corners[:, 0].max() + 0.5 - width,
                -(corners[:, 1].min() + 0.5), corners[:, 1].max() + 0.5 - height]  # fmt: skip
    pads = [max(least, math.ceil((amount + border) / shrink)) if amount > 0 else 0 for amount in overhang]
    if any(pads):
        region = pad_fading(region, pads, sigma=transform.side * _BLUR_FRACTION / shrink)
        matrix[:, 2] += (pads[0], pads[2])
    return region, matrix


def _bounds(transform: CropTransform) -> tuple[int, int, int, int] | None:
    """Rows and columns (top, bottom, left, right) of the photograph that the square can touch, or None."""
    corners = np.asarray(transform.quad)
    height, width = transform.source_size
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (width, height))
    return (int(top), int(bottom), int(left), int(right)) if left < right and top < bottom else None


def _matrix_in(transform: CropTransform, bounds: tuple[int, int, int, int]) -> np.ndarray:
    """Matrix from the pixels of the photograph's part inside the bounds to crop pixels."""
    matrix = transform.inverse_matrix()
    matrix[:, 2] += matrix[:, :2] @ (bounds[2], bounds[0])
    return matrix


def _mask_in(
    transform: CropTransform,
    bounds: tuple[int, int, int, int],
    mask: torch.Tensor | None,
    feather: float,
    device: torch.device,
) -> torch.Tensor:
    """Paste mask [1 or B, 1, h, w] inside the bounds."""
    if not 0.0 <= feather <= 0.5:
        raise InvalidInputError(f"feather is {feather}; expected a part of the crop's side between 0 and 0.5.")
    top, bottom, left, right = bounds
    inverse = _matrix_in(transform, bounds)
    u = torch.arange(right - left, dtype=torch.float64)
    v = torch.arange(bottom - top, dtype=torch.float64)
    across = inverse[0, 0] * u[None, :] + inverse[0, 1] * v[:, None] + inverse[0, 2] + 0.5
    down = inverse[1, 0] * u[None, :] + inverse[1, 1] * v[:, None] + inverse[1, 2] + 0.5
    size = transform.output_size
    # Distance to the nearest side of the square as a part of it; negative outside.
    depth = torch.minimum(torch.minimum(across, size - across), torch.minimum(down, size - down)) / size
    if feather > 0:
        ramp = (depth / feather).clamp(0.0, 1.0)
        ramp = ramp * ramp * (3.0 - 2.0 * ramp)
    else:
        ramp = (depth > 0).double()
    weight = ramp.float()[None, None].to(device)
    if mask is None:
        return weight
    check_mask(mask)
    if mask.shape[-1] != mask.shape[-2]:
        raise InvalidInputError(
            f"The mask is {mask.shape[-2]}x{mask.shape[-1]}; expected a square in crop coordinates."
        )
    matrix = _matrix_in(transform.with_output_size(mask.shape[-1]), bounds)
    # Bilinear, not bicubic: it cannot overshoot 0..1, and it stays exactly 0 where the mask is 0.
    warped = resample(mask.to(device=device, dtype=torch.float32), matrix, (bottom - top, right - left), "bilinear")
    return weight * warped.clamp(0.0, 1.0)
