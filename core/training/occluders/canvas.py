"""Coordinates of the face, the picture while it is drawn on, and the canvas with its shapes, light and shadows.

Coordinates of a drawing: u to the right, v down, origin between the eyes, unit = eye distance (`Frame`). Drawing is by
signed distances and height fields (Quilez, "2D distance functions"), on a grid finer than the picture (`Canvas`),
averaged at the end; outlines are OpenCV polygons. A `Scene` is one picture: its face, light and colours, and the layers
so far. The person is found by nearest seeds in colour and place, and carried to the edges by a guided filter (He et al.,
"Guided Image Filtering", ECCV 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InvalidInputError
from .textures import Colour, Draw, Surface, norm, relief, rgb, smoothstep, step

Point = tuple[float, float]
Ends = Sequence[float] | np.ndarray

_FAINT = 1 / 512  # weaker shadows and coverages are set to zero
SHIFT = 6  # binary digits behind the point in OpenCV coordinates
_POLYGON_SAMPLES = 4  # polygons are filled on a grid so many times finer than the canvas
SMALL = 64  # side of the picture from which colours are read
_COARSE = 32  # side of the grid on which the person is found
# The face of the FFHQ crop where no landmarks are given, in crop widths.
_EYES, _MOUTH = ((0.382, 0.48), (0.618, 0.48)), (0.5, 0.73)
_MOUTH_DROP = 1.06  # from the eyes to the mouth corners, in eye distances
_CHEEK, _CHIN = 1.155, 1.9  # half width of the face at the eyes, and its chin, likewise
_NARROW_EYES = 0.92  # of a turned face the height gives the scale


@dataclass(frozen=True)
class Frame:
    """Affine map from face coordinates (u, v) to the picture: x, y in crop widths, 0..1 inside the crop.

    `to_face` and `to_picture` are inverse to each other.
    """

    origin: np.ndarray  # between the eyes
    axes: np.ndarray  # [2, 2], columns: one step of u, one step of v
    eye: float = 0.5  # the pupils are at u = +-eye; less than half for a turned face
    cheek: float = _CHEEK
    chin: float = _CHIN
    middle: float = 0.0  # u of the head's middle

    @staticmethod
    def of(points: np.ndarray | None, size: int) -> Frame:
        """From iBUG points [68, 2] in pixels of a picture of this side; None: where an FFHQ crop has eyes and mouth."""
        if points is None:
            left, right, mouth = np.array(_EYES[0]), np.array(_EYES[1]), np.array(_MOUTH)
            return Frame((left + right) / 2, np.stack((right - left, (mouth - (left + right) / 2) / _MOUTH_DROP), 1))
        points = (points + 0.5) / size
        left, right = points[36:42].mean(0), points[42:48].mean(0)
        origin, mouth = (left + right) / 2, (points[48] + points[54]) / 2
        span = max(float(np.hypot(*(right - left))), 1e-3)
        down = (mouth - origin) / _MOUTH_DROP
        unit = max(span, _NARROW_EYES * float(np.hypot(*down)))
        (a, b), (c, d) = right - left, down
        if not np.isfinite(points).all() or abs(a * d - b * c) < 1e-4:
            raise InvalidInputError(
                "The landmarks' eyes and mouth lie on one line or are not finite; expected 68 iBUG points in pixels."
            )
        frame = Frame(origin, np.stack(((right - left) / span * unit, down), axis=1), 0.5 * span / unit)
        u, v = np.linalg.solve(frame.axes, (points - origin).T)
        return Frame(
            origin,
            frame.axes,
            frame.eye,
            cheek=float(np.clip((u[16] - u[0]) / 2, 0.9, 1.4)),
            chin=float(np.clip(v[8], 1.5, 2.2)),
            middle=float(np.clip((u[16] + u[0]) / 2, -0.3, 0.3)),
        )

    @cached_property
    def unit(self) -> float:
        """Eye distance in crop widths."""
        return float(math.sqrt(abs(np.linalg.det(self.axes))))

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """[..., 2] (u, v) to (x, y)."""
        return points @ self.axes.T + self.origin

    def to_face(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) to (u, v)."""
        (a, b), (c, d) = np.linalg.inv(self.axes).tolist()
        x, y = x - float(self.origin[0]), y - float(self.origin[1])
        return a * x + b * y, c * x + d * y


class Scene:
    """One picture while it is drawn on: its face, light and colours, and the layers so far."""

    _coarse: Tensor | None

    def __init__(self, image: Tensor, points: np.ndarray | None, person: Tensor | None, draw: Draw) -> None:
        self.image, self.size, self.device = image, image.shape[-1], image.device
        self.samples = 2 if self.size <= 512 else 1
        self.frame = Frame.of(points, self.size)
        self.small = F.interpolate(image[None], size=(SMALL, SMALL), mode="area")[0].add(1).div(2).clamp(0, 1)
        self._table = self.small.permute(1, 2, 0).cpu().numpy()
        self._person, self._coarse = person, None
        grey = self._table.mean(-1)
        self.exposure = float(np.clip(0.5 + 0.55 * np.quantile(grey, 0.95), 0.65, 1.05))
        self.light = self._find_light(draw)
        self.skin = self._find_skin(draw)
        self.softness = draw.number(0.0, 0.012)  # of the objects' edges, as a lens would show them; eye distances
        self.colour = torch.zeros(3, self.size, self.size, device=self.device)  # premultiplied by coverage
        self.coverage = torch.zeros(self.size, self.size, device=self.device)
        self.lit = torch.ones(self.size, self.size, device=self.device)

    def _find_light(self, draw: Draw) -> tuple[float, float, float]:
        """Unit vector to the lamp; from the side of the brighter cheek."""
        left, right = (sum(self.sample(side * 0.75, 0.55)) for side in (-1, 1))
        across = float(np.clip(2.5 * (right - left) / (right + left + 1e-3), -0.6, 0.6)) + draw.number(-0.35, 0.35)
        down, front = -draw.number(0.35, 0.75), 0.85
        length = math.sqrt(across**2 + down**2 + front**2)
        return across / length, down / length, front / length

    def _find_skin(self, draw: Draw) -> Colour:
        places = ((-0.6, 0.65), (0.6, 0.65), (0.0, -0.6), (0.0, 0.3), (-0.45, 0.75), (0.45, 0.75))
        red, green, blue = np.median([self.sample(u, v) for u, v in places], axis=0) * draw.number(0.96, 1.08)
        return float(red), float(green), float(blue)

    def sample(self, u: float, v: float) -> Colour:
        """Mean colour around a place of the face."""
        x, y = np.clip((self.frame.to_picture(np.array([u, v])) * SMALL).astype(int), 1, SMALL - 2)
        red, green, blue = self._table[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
        return float(red), float(green), float(blue)

    def person(self) -> Tensor:
        """[S, S] in 0..1, given or estimated."""
        if self._person is None:
            self._person = _refine_person(self.image, self.coarse_person())
        return self._person

    def coarse_person(self) -> Tensor:
        """[_COARSE, _COARSE] in 0..1."""
        if self._coarse is None:
            if self._person is None:
                self._coarse = _find_person(self.image, self.frame)
            else:
                self._coarse = F.interpolate(self._person[None, None], size=(_COARSE, _COARSE), mode="area")[0, 0]
        return self._coarse

    def head(self, hem: float, rise: float, square: float) -> tuple[float, float]:
        """Middle and half width, in u, of a dome that covers head and hair above v = hem; see `squircle`.

        Very wide hair is left out at the sides.
        """
        cells = np.argwhere(self.coarse_person().cpu().numpy() > 0.5)[:, ::-1]
        u, v = np.linalg.solve(self.frame.axes, ((cells + 0.5) / _COARSE - self.frame.origin).T)
        centre, cheek, cell = self.frame.middle, self.frame.cheek, 0.5 / _COARSE / self.frame.unit
        level = np.clip((hem - v) / rise, 0, 0.9) ** 2
        needed = (np.abs(u - centre) + cell) / np.sqrt((1 - level) / (1 - square * level))
        above = v < hem
        halves = []
        for side in (u < centre, u >= centre):
            reach = np.quantile(needed[above & side], 0.97) if (above & side).any() else cheek + 0.12
            halves.append(float(np.clip(reach, cheek + 0.02, cheek + 0.55)))
        return centre + (halves[1] - halves[0]) / 2, sum(halves) / 2

    def canvas(self, box: tuple[float, float, float, float] = (-9, -9, 9, 9)) -> Canvas:
        """A canvas for the part (left, top, right, bottom) of the face's plane; the whole picture by default."""
        low, high = self.window(_corners(box))
        low, high = np.clip(low, 0, self.size - 1), np.clip(high, 1, self.size)
        high = np.maximum(high, low + 1)
        n = self.samples
        xs = torch.arange(int(low[0]) * n, int(high[0]) * n, device=self.device)
        ys = torch.arange(int(low[1]) * n, int(high[1]) * n, device=self.device)
        y, x = torch.meshgrid((ys + 0.5) / (n * self.size), (xs + 0.5) / (n * self.size), indexing="ij")
        u, v = self.frame.to_face(x, y)
        lit = u.new_ones(int(high[1] - low[1]), int(high[0] - low[0]))
        return Canvas(self, (int(low[0]), int(low[1])), u, v, u.new_zeros(3, *u.shape), torch.zeros_like(u), lit)

    def window(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and one-behind-last pixel (x, y) of the box around points [N, 2]; not clipped."""
        pixels = self.frame.to_picture(points) * self.size
        return np.floor(pixels.min(0)).astype(int), np.ceil(pixels.max(0)).astype(int)

    def add(self, canvas: Canvas) -> None:
        """Lays what was painted over the layers so far; its shadows darken them and the picture."""
        height, width = canvas.lit.shape
        left, top = canvas.corner
        part = (slice(top, top + height), slice(left, left + width))
        painted = pooled(torch.cat((canvas.colour, canvas.alpha[None])), self.samples)
        blur = self.softness * self.frame.unit * self.size
        if blur >= 0.25:
            painted = torch.stack([gaussian_blur(channel, blur) for channel in painted])
        alpha = painted[3].clamp(0, 1)
        visible = ((alpha - _FAINT) * 1e6).clamp(0, 1)
        alpha = alpha * visible
        below = (1 - alpha) * canvas.lit
        self.colour[:, part[0], part[1]] = painted[:3] * visible + self.colour[:, part[0], part[1]] * below
        self.coverage[part] = alpha + (1 - alpha) * self.coverage[part]
        self.lit[part] *= canvas.lit

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Picture [3, S, S], mask and shadow [1, S, S]."""
        mask = torch.where(self.coverage > 1 - _FAINT, torch.ones_like(self.coverage), self.coverage)
        shadow = torch.where((1 - self.lit < _FAINT) | (mask >= 1), torch.zeros_like(mask), 1 - self.lit)
        light = (self.image + 1) / 2 * (1 - shadow)
        picture = self.colour + (1 - mask) * light
        return (picture * 2 - 1).clamp(-1, 1), mask[None], shadow[None]


def _corners(box: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([(box[i], box[j]) for i in (0, 2) for j in (1, 3)])


def _find_person(image: Tensor, frame: Frame) -> Tensor:
    """Rough person mask [_COARSE, _COARSE] of a portrait on a fairly plain ground.

    Each cell goes to the nearer of two sets of seeds, in colour and place: the picture's upper borders, and the face
    with the hair above and what is below the chin. A second round takes in the cells the first one is sure of.
    """
    small = F.interpolate(image[None], size=(_COARSE, _COARSE), mode="area")[0].add(1).div(2)
    line = (torch.arange(_COARSE, device=image.device) + 0.5) / _COARSE
    x, y = torch.meshgrid(line, line, indexing="xy")
    u, v = frame.to_face(x, y)
    a = (u - frame.middle).abs()
    ground = ((v < 1.0) & (a > 1.85) | (v < -1.0) & (a > 1.65) | (v < -1.6) & (a > 1.45)).flatten()
    face = (a.square() + ((v - 0.4) / 1.3).square() < 1).flatten()
    own = ((a / 1.1).square() + ((v - 0.35) / 1.5).square() < 1) | (a < 0.8) & (v < 0) & (v > -1.45)
    own = (own | (a < 0.75) & (v > 1) | (a < 1.0) & (v > 2.05)).flatten()
    rank = 0.04 * (((a / 1.5).square() + ((v - 0.1) / 2.1).square()).sqrt() - 1)
    rank = torch.where(v > 1.4, 0.03 * (a - 1.25 - (v - 1.5)), rank).clamp(-0.05, 0.05).flatten()
    features = torch.cat((small, 0.25 * torch.stack((x, y)))).flatten(1).t()
    if ground.sum() < 12 or own.sum() < 12:
        return face.float().view(_COARSE, _COARSE)

    def to_seeds(chosen: Tensor, count: int, channels: int = 5) -> Tensor:
        seeds = features[chosen][:, :channels]
        seeds = seeds[:: max(1, len(seeds) // count)]
        return torch.stack([torch.cdist(seeds[k::4], features[:, :channels]).amin(0) for k in range(4)]).mean(0)

    # What lies in the hair's place but has the ground's colour is ground behind short hair.
    seeds_own, seeds_ground = own & (face | (to_seeds(ground, 60, 3) > 0.04)), ground
    for _ in range(2):
        label = ((to_seeds(seeds_ground, 90) - to_seeds(seeds_own, 130) - rank) / 0.03).sigmoid()
        seeds_ground = (ground | (label < 0.08)) & ~own
        seeds_own = seeds_own | (label > 0.95) & ~ground
    label = torch.where(ground, torch.zeros_like(label), torch.where(face, torch.ones_like(label), label))
    opened = F.max_pool2d(-F.max_pool2d(-label.view(1, 1, _COARSE, _COARSE), 3, 1, 1), 3, 1, 1)
    return -F.max_pool2d(-F.max_pool2d(opened, 3, 1, 1), 3, 1, 1)[0, 0]


def _refine_person(image: Tensor, coarse: Tensor) -> Tensor:
    """Carries a rough mask to the edges of the picture [3, S, S] with a guided filter (He et al., 2010)."""
    label = F.interpolate(gaussian_blur(coarse, 0.6)[None, None], size=image.shape[-2:], mode="bilinear")[0, 0]
    guide = (image.mean(0) + 1) / 2
    radius = 0.015 * image.shape[-1]
    mean_guide, mean_label = gaussian_blur(guide, radius), gaussian_blur(label, radius)
    covariance = gaussian_blur(guide * label, radius) - mean_guide * mean_label
    slope = covariance / (gaussian_blur(guide * guide, radius) - mean_guide * mean_guide + 4e-4)
    refined = gaussian_blur(slope, radius) * guide + gaussian_blur(mean_label - slope * mean_guide, radius)
    return smoothstep(0.15, 0.85, refined)


def pooled(fine: Tensor, samples: int) -> Tensor:
    """Means [C, h, w] of blocks of samples x samples."""
    if samples == 1:
        return fine
    rows = fine[:, 0::2] + fine[:, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def gaussian_blur(field: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [h, w]; sigma in samples, borders repeated. Wide ones are taken on a coarser grid."""
    factor = max(1, int(sigma / 1.6))
    size = field.shape
    if factor > 1 and min(size) >= 2 * factor:
        coarse = F.interpolate(field[None, None], scale_factor=1 / factor, mode="area")
        fine = gaussian_blur(coarse[0, 0], sigma / factor)
        return F.interpolate(fine[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    if sigma < 0.25:
        return field
    reach = max(1, math.ceil(2.5 * sigma))
    weights = [math.exp(-0.5 * (at / sigma) ** 2) for at in range(-reach, reach + 1)]
    for _ in range(2):  # sums of shifted rows, then of shifted columns: several times faster than a convolution here
        padded = F.pad(field[None, None], (0, 0, reach, reach), mode="replicate")[0, 0]
        rows = len(field)
        total = padded[:rows] * (weights[0] / sum(weights))
        for at in range(1, len(weights)):
            total.add_(padded[at : at + rows], alpha=weights[at] / sum(weights))
        field = total.t()
    return field


@dataclass
class Canvas:
    """A window of the picture on a finer grid; collects paint, coverage and shadows of one object."""

    scene: Scene
    corner: tuple[int, int]  # first pixel (x, y)
    u: Tensor  # [h, w] face coordinates of the samples
    v: Tensor
    colour: Tensor  # [3, h, w], premultiplied by alpha
    alpha: Tensor  # [h, w]
    lit: Tensor  # [h / samples, w / samples] part of the light that the object's shadows leave

    @cached_property
    def pixel(self) -> float:
        """Distance of neighbouring samples in eye distances."""
        return 1 / (self.scene.samples * self.scene.size * self.scene.frame.unit)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples: rows, columns."""
        return self.u.shape[0], self.u.shape[1]

    def crop(self, left: float, top: float, right: float, bottom: float) -> Canvas:
        """Part of this canvas; painting on it paints here."""
        low, high = self.scene.window(_corners((left, top, right, bottom)))
        corner, size = np.array(self.corner), np.array(self.lit.shape[::-1])
        low, high = np.clip(low - corner, 0, size - 1), np.clip(high - corner, 1, size)
        high = np.maximum(high, low + 1)
        n = self.scene.samples
        rows, columns = (slice(int(low[k]) * n, int(high[k]) * n) for k in (1, 0))
        return Canvas(
            self.scene,
            (int(corner[0] + low[0]), int(corner[1] + low[1])),
            self.u[rows, columns],
            self.v[rows, columns],
            self.colour[:, rows, columns],
            self.alpha[rows, columns],
            self.lit[int(low[1]) : int(high[1]), int(low[0]) : int(high[0])],
        )

    def around(self, points: np.ndarray, margin: float) -> Canvas:
        """Part of this canvas around points [N, 2] in face coordinates."""
        (left, top), (right, bottom) = points.min(0) - margin, points.max(0) + margin
        return self.crop(float(left), float(top), float(right), float(bottom))

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage [h, w] of the region of negative distance."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def line(self, distance: Tensor, width: float) -> Tensor:
        """Coverage of a line around distance 0; exact for lines thinner than a sample as well."""
        half = width / (2 * self.pixel)
        at = distance.abs() / self.pixel
        return ((at + 0.5).clamp(max=half) - (at - 0.5).clamp(min=-half)).clamp(0, 1)

    def local(self, centre: Point, angle: float = 0.0) -> tuple[Tensor, Tensor]:
        """Coordinates from `centre`, turned clockwise by `angle` radians."""
        u, v = self.u - centre[0], self.v - centre[1]
        if not angle:
            return u, v
        cos, sin = math.cos(angle), math.sin(angle)
        return cos * u + sin * v, cos * v - sin * u

    def paint(self, colour: Tensor, alpha: Tensor) -> None:
        """Lays colour [3, h, w] or [3, 1, 1] in 0..1 with coverage alpha [h, w] over what is there."""
        keep = 1 - alpha
        self.colour.mul_(keep).add_(colour.clamp(0, 1) * alpha)
        self.alpha.mul_(keep).add_(alpha)

    def solid(self, alpha: Tensor, surface: Surface, height: Tensor | float = 0.0, ambient: float = 0.45) -> None:
        """Paints a surface lit by the scene's lamp; height [h, w] in eye distances."""
        relieved = (surface.bump + height).expand(self.shape)
        shade, gloss = relief(relieved, self.pixel, self.scene.light, ambient, surface.polish)
        exposure = self.scene.exposure
        colour = surface.colour * (shade * exposure)
        if surface.shine:
            colour = colour + surface.shine * exposure * gloss
        self.paint(colour, alpha)

    def darken(self, strength: Tensor) -> None:
        """Shades the paint laid so far, not the picture."""
        self.colour.mul_(1 - strength.clamp(0, 1))

    def cast(self, alpha: Tensor, offset: Point, softness: float, strength: float, everywhere: bool = False) -> None:
        """Shadow on the picture: alpha moved by offset, blurred by softness (eye distances); on the head only, else."""
        samples, frame = self.scene.samples, self.scene.frame
        low = pooled(alpha[None], samples)[None]
        height, width = low.shape[-2:]
        x, y = ((frame.axes @ np.array(offset)) * self.scene.size).tolist()
        shift = torch.tensor([[[1.0, 0.0, -2 * x / width], [0.0, 1.0, -2 * y / height]]], device=low.device)
        grid = F.affine_grid(shift, [1, 1, height, width], align_corners=False)
        moved = F.grid_sample(low, grid, padding_mode="border", align_corners=False)[0, 0]
        shadow = strength * gaussian_blur(moved, softness / (self.pixel * samples))
        if not everywhere:
            v = self.v[::samples, ::samples]
            reach = norm((self.u[::samples, ::samples] - frame.middle) / (frame.cheek + 0.13), (v - 0.1) / 2.0)
            shadow = shadow * torch.maximum(smoothstep(1.06, 0.94, reach), smoothstep(1.7, 2.0, v))
        self.lit.mul_(1 - shadow.clamp(0, 1))

    def polygon(self, points: np.ndarray | Sequence[Point]) -> Tensor:
        """Coverage [h, w] of a closed outline [N, 2] in face coordinates."""
        import cv2

        height, width = self.shape
        mask = np.zeros((_POLYGON_SAMPLES * height, _POLYGON_SAMPLES * width), np.uint8)
        cv2.fillPoly(mask, [self.samples_of(np.asarray(points), _POLYGON_SAMPLES)], 255, cv2.LINE_8, SHIFT)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(mask).to(self.u.device).float() / 255

    def samples_of(self, points: np.ndarray, finer: int = 1) -> np.ndarray:
        """Face coordinates [N, 2] to OpenCV's fixed-point coordinates on a grid `finer` times this window's."""
        pixels = self.scene.frame.to_picture(points) * self.scene.size - np.array(self.corner)
        at = pixels * (self.scene.samples * finer) - 0.5
        return np.rint(at.clip(-16000, 16000) * 2**SHIFT).astype(np.int32)

    def part(self, points: np.ndarray, margin: float) -> tuple[slice, slice] | None:
        """Rows and columns of samples within `margin` of the points' box; None when outside the window."""
        pixels = self.scene.frame.to_picture(points) * self.scene.size - np.array(self.corner)
        at, reach = pixels * self.scene.samples, margin / self.pixel * 1.2 + 2
        low = np.maximum(np.floor(at.min(0) - reach).astype(int), 0)
        high = np.minimum(np.ceil(at.max(0) + reach).astype(int), self.shape[::-1])
        if (high <= low).any():
            return None
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


class Bars:
    """Union of round tapered bars: signed distance, and height of the surface towards the viewer."""

    def __init__(self, canvas: Canvas, solid: bool = True) -> None:
        self.canvas = canvas
        self.distance = torch.full(canvas.shape, 9.0, device=canvas.u.device)
        self.height = torch.full(canvas.shape, -9.0, device=canvas.u.device) if solid else None

    def bar(self, a: Ends, b: Ends, radius_a: float, radius_b: float, blend: float = 0.0) -> None:
        """Adds a bar between a and b, (u, v) or (u, v, height); `blend` rounds where it meets the others."""
        a, b = [float(x) for x in a], [float(x) for x in b]
        part = self.canvas.part(np.array([a[:2], b[:2]]), max(radius_a, radius_b) + blend)
        if part is None:
            return
        u, v = self.canvas.u[part] - a[0], self.canvas.v[part] - a[1]
        du, dv = b[0] - a[0], b[1] - a[1]
        along = ((u * du + v * dv) / max(du * du + dv * dv, 1e-9)).clamp(0, 1)
        across = norm(u - du * along, v - dv * along)
        radius = radius_a + (radius_b - radius_a) * along
        self.distance[part] = torch.minimum(self.distance[part], across - radius)
        if self.height is not None:
            base_a, base_b = (a[2], b[2]) if len(a) > 2 else (0.0, 0.0)
            dome = (radius * radius - across * across).clamp(min=0).sqrt() + base_a + (base_b - base_a) * along
            dome = dome - 9.0 * step(across - radius)
            old = self.height[part]
            joined = torch.maximum(old, dome)
            if blend:
                joined = joined + (blend - (old - dome).abs()).clamp(min=0).square() / (4 * blend)
            self.height[part] = joined

    def path(self, points: np.ndarray, radius: float | Sequence[float]) -> None:
        """Adds bars along a polyline [N, 2 or 3]; one radius, or one for each point."""
        radii = [radius] * len(points) if isinstance(radius, float) else radius
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            self.bar(a, b, ra, rb)

    def coverage(self) -> Tensor:
        """[h, w]."""
        return self.canvas.inside(self.distance)

    def surface_height(self) -> Tensor:
        """Height with 0 outside."""
        height = torch.zeros_like(self.distance) if self.height is None else self.height
        return height * step(height + 4.0)


def spline(points: Sequence[Point] | np.ndarray, closed: bool = False, steps: int = 8) -> np.ndarray:
    """Catmull-Rom curve [N, D] through points."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate((p[-1:], p, p[:2])) if closed else np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
    t = (np.arange(steps) / steps)[:, None]
    pieces = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    curve = np.concatenate(pieces)
    return curve if closed else np.concatenate((curve, p[-2:-1]))


def squircle(u: Tensor, v: Tensor, width: float, height: float, square: float) -> tuple[Tensor, Tensor]:
    """Distance [h, w] to a shape between ellipse (square 0) and rectangle (1) of these half sizes, and its dome.

    The dome is 1 in the middle and 0 at the outline.
    """
    p, q = (u / width).square(), (v / height).square()
    level = torch.maximum(p + q - square * p * q, torch.maximum(p, q))  # p and q rule beyond the rectangle
    slope = norm(u * (1 - square * q).clamp(min=0.02) / width**2, v * (1 - square * p).clamp(min=0.02) / height**2)
    return (level - 1) / (2 * slope + 1e-3), (1 - level).clamp(min=0).sqrt()


def arc_length(u: Tensor, radius: float) -> Tensor:
    """Arc length on a round head seen from the front: cloth gets narrower towards the sides."""
    return radius * torch.asin((u / radius).clamp(-0.98, 0.98))


def flat_surface(colour: Colour, canvas: Canvas, shine: float = 0.0, polish: int = 4) -> Surface:
    """A smooth surface of one colour."""
    return Surface(rgb(colour, canvas.u), torch.zeros(1, 1, device=canvas.u.device), shine, polish)


def turn_matrix(angle: float) -> np.ndarray:
    """Matrix that turns row vectors clockwise."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


Drawing = Callable[[Scene, Draw], None]
"""Draws one object of a kind onto the picture."""
