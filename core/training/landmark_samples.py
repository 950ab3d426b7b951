"""Samples for the landmark net: photographs and morphs with known points, varied on the fly.

Pictures: neutral and canada portraits of training people, pairs of them morphed by thin-plate splines over their 189
template points, and smiling portraits labelled by a teacher with five points. Every sample is posed (a depth bump
turned by yaw and pitch), moved as a detector's boxes err, put before another background, partly covered and relit.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator

from ..alignment import align
from ..errors import InvalidInputError
from ..faces import detect_faces, select_face
from ..imaging import load_image, resize_antialiased
from ..landmarks import INPUT_SIZE, MIRROR_ORDER, POINT_COUNT, REGION_DROP, REGION_SIDE, region_transform

# The five groups of iBUG points whose means are the five alignment points.
FIVE_GROUPS = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,))
# Template rows that stand for iBUG points 17..67; two rows are averaged, the jaw is resampled from its own rows.
_BROWS = ((71,), (72,), (73,), (75,), (76,), (77,), (78,), (80,), (81,), (82,))
_NOSE = ((50, 56), (51, 57), (52, 58), (54, 60), (64,), (179,), (55,), (182,), (69,))
_EYES = ((18,), (19,), (21,), (22,), (30,), (28,), (23,), (24,), (26,), (27,), (33,), (31,))
_LIPS = (87, 88, 89, 90, 91, 92, 93, 108, 107, 106, 105, 104, 94, 95, 96, 97, 98, 102, 101, 100)
_MOUTH = tuple((row,) for row in _LIPS)
_JAW_RIGHT = (109, 110, 111, 125, 126, 127, 128, 129)
_JAW_LEFT = (129, 130, 131, 132, 133, 114, 113, 112)
_BASE_SIZE = 256
_BASE_HALF = 2.6  # half side of a stored picture in eye distances, its centre in the middle of the eyes
_BANK_PART = 300  # backgrounds of noise, and as many from pictures
_FIELD_SIZE = 48  # thin-plate fields are smooth, so they are solved on a coarse grid and interpolated


@dataclass(frozen=True)
class LandmarkTrainingConfig:
    """Settings of `train`; angles in degrees, lengths in eye distances."""

    steps: int = 2300
    batch: int = 32
    learning_rate: float = 2e-3
    morphs: int = 800
    seed: int = 0
    wide_part: float = 0.55  # samples with box errors as large as a detector's; the rest are as a second look sees them
    wide_shift: float = 0.3
    wide_scale: float = 0.3  # natural logarithm
    wide_angle: float = 25.0
    near_shift: float = 0.07
    near_scale: float = 0.08
    near_angle: float = 8.0
    yaw: float = 28.0
    pitch: float = 16.0
    negative_part: float = 0.15  # samples without a face, for the score
    five_weight: float = 2.0  # weight of the eye centres, nose and mouth corners beside the 68 points


@dataclass(frozen=True)
class Pool:
    """Stored pictures uint8 [N, 3, 256, 256], points [N, 68, 2] in eye distances, and which have all 68 points."""

    pictures: torch.Tensor
    points: torch.Tensor
    complete: torch.Tensor
    backgrounds: torch.Tensor


def ibug_points(template: np.ndarray) -> np.ndarray:
    """Turn the 189 template points [189, 2] of a portrait into 68 points [68, 2] in iBUG order.

    Raises InvalidInputError for another number of points.
    """
    template = np.asarray(template, dtype=np.float64)
    if template.shape != (189, 2):
        raise InvalidInputError(f"The template has shape {template.shape}; expected the 189 London points [189, 2].")
    jaw_right, jaw_left = _along(template[list(_JAW_RIGHT)], 9), _along(template[list(_JAW_LEFT)], 9)
    rest = [template[list(rows)].mean(axis=0) for rows in (*_BROWS, *_NOSE, *_EYES, *_MOUTH)]
    return np.concatenate([jaw_right, jaw_left[1:], np.stack(rest)])


def build_pool(portraits: Path, config: LandmarkTrainingConfig, teacher: Path | None = None) -> Pool:
    """Read the training people, morph pairs of them, and label smiles with the teacher (YuNet) when there is one."""
    generator = np.random.default_rng(config.seed)
    stored = json.loads((portraits / "landmarks.json").read_text())
    templates = {name: np.array(points) for name, points in stored.items()}
    folders = {"london": "neutral", "canada": "canada"}
    with open(portraits / "info.csv", newline="") as file:
        people = [row for row in csv.DictReader(file) if row["split"] == "train"]
    pictures, templates_in, labels = [], [], []
    for row in people:
        name = f"{folders[row['set']]}/{row['id']}"
        picture, points = _base_picture(portraits / f"{name}.jpg", ibug_points(templates[name]), templates[name])
        pictures.append(picture)
        templates_in.append(points)
        labels.append(ibug_points(points))
    originals = len(pictures)
    for _ in range(config.morphs):
        first, second = generator.choice(originals, size=2, replace=False)
        picture, points = _morph(
            (pictures[first], templates_in[first]), (pictures[second], templates_in[second]), generator
        )
        pictures.append(picture)
        labels.append(ibug_points(points))
    complete = [True] * len(pictures)
    if teacher is not None:
        for row in people:
            path = portraits / "smiling" / f"{row['id']}.jpg"
            if row["set"] != "london" or not path.is_file():
                continue
            five = _teacher_points(teacher, path, templates, people)
            if five is None:
                continue
            sparse = _spread_five(five)
            picture, _ = _base_picture(path, sparse, sparse)
            for _ in range(4):  # as many as a quarter of the morphs, so that open mouths are common
                pictures.append(picture)
                labels.append(_to_eye_units(sparse, sparse))
                complete.append(False)
    points_tensor = torch.from_numpy(np.stack(labels)).float()
    bank = _background_bank(torch.Generator().manual_seed(config.seed))
    return Pool(torch.stack(pictures), points_tensor, torch.tensor(complete), bank)


def sample_batch(
    pool: Pool, config: LandmarkTrainingConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw crops [B, 3, 96, 96] in [-1, 1], points [B, 68, 2] in crop pixels, known [B, 68] and is_face [B].

    known is 0 for points without a label (smiles have five groups only) and for points outside the crop.
    """
    count = config.batch
    chosen = torch.randint(len(pool.pictures), (count,), generator=generator)
    pictures = pool.pictures[chosen].float() / 127.5 - 1.0
    points, complete = pool.points[chosen], pool.complete[chosen]
    mirrored = torch.rand(count, generator=generator) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    flipped = points[:, list(MIRROR_ORDER)] * torch.tensor([-1.0, 1.0])
    points = torch.where(mirrored[:, None, None], flipped, points)
    is_face = torch.rand(count, generator=generator) >= config.negative_part
    posing = _Posing(count, config, generator)
    placing = _Placing(count, config, is_face, generator)
    # The pose is smooth, so it is undone on a grid of half the resolution.
    axis = (torch.arange(_FIELD_SIZE) + 0.5) / _FIELD_SIZE * 2 - 1
    crop_grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).view(1, -1, 2).expand(count, -1, -1)
    coarse = posing.undo(placing.to_face(crop_grid)).view(count, _FIELD_SIZE, _FIELD_SIZE, 2).permute(0, 3, 1, 2)
    face_grid = F.interpolate(coarse, size=INPUT_SIZE, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    crops = F.grid_sample(pictures, face_grid / _BASE_HALF, padding_mode="border", align_corners=False)
    crops = _change_background(crops, face_grid, pool.backgrounds, generator)
    in_crop = placing.to_crop(posing.apply(points))
    pixels = (in_crop + 1) / 2 * INPUT_SIZE - 0.5
    crops = _replace_negatives(crops, is_face, pool.backgrounds, generator)
    crops = _cover(crops, pixels, pool.backgrounds, generator)
    crops = _relight(crops, generator)
    inside = (in_crop.abs() < 0.98).all(dim=-1)
    labelled = complete[:, None] | _five_group_members()
    return crops, pixels, (inside & labelled & is_face[:, None]).float(), is_face.float()


class _Posing:
    """Turns a flat face by a smooth depth bump: x' = sx x cos(yaw) + z(x, y) sin(yaw) (y likewise), plus a smile."""

    def __init__(self, count: int, config: LandmarkTrainingConfig, generator: torch.Generator) -> None:
        angles = torch.randn(count, 1, 2, generator=generator).clamp(-1.8, 1.8) / 1.8
        limits = torch.tensor([config.yaw, config.pitch])
        angles = torch.deg2rad(angles * limits)
        stretch = torch.exp(_uniform((count, 1, 2), 0.08, generator))
        self.linear = torch.cos(angles) * stretch
        self.turn = torch.sin(angles)
        self.smile = torch.rand(count, 1, 1, generator=generator) * 0.16

    def displacement(self, points: torch.Tensor) -> torch.Tensor:
        x, y = points.unbind(-1)
        radius = (x / 1.35) ** 2 + ((y - 0.35) / 1.9) ** 2
        depth = 1.05 * (1 - radius).clamp(min=0) ** 1.2
        depth = depth + 0.22 * torch.exp(-(x**2 / 0.06 + (y - 0.65) ** 2 / 0.12))
        shift = depth[..., None] * self.turn
        for sign in (-1.0, 1.0):
            bump = torch.exp(-((x - sign * 0.4) ** 2 + (y - 1.1) ** 2) / 0.08)[..., None]
            shift = shift + bump * self.smile * torch.tensor([sign, -0.7])
        return shift

    def apply(self, points: torch.Tensor) -> torch.Tensor:
        return points * self.linear + self.displacement(points)

    def undo(self, points: torch.Tensor) -> torch.Tensor:
        found = points / self.linear
        for _ in range(6):
            found = (points - self.displacement(found)) / self.linear
        return found


class _Placing:
    """Where the crop lies on the face: a similarity from crop units (-1..1) to eye distances, with detector errors."""

    def __init__(
        self, count: int, config: LandmarkTrainingConfig, is_face: torch.Tensor, generator: torch.Generator
    ) -> None:
        wide = (torch.rand(count, 1, generator=generator) < config.wide_part).float()
        shift = wide * config.wide_shift + (1 - wide) * config.near_shift
        scale = wide * config.wide_scale + (1 - wide) * config.near_scale
        angle = wide * config.wide_angle + (1 - wide) * config.near_angle
        self.centre = _uniform((count, 2), 1.0, generator) * shift + torch.tensor([0.0, REGION_DROP])
        # Negatives lie well off the face, or are far too large or small.
        off = torch.rand(count, 1, generator=generator) * 6.2832
        away = torch.cat([off.cos(), off.sin()], dim=1) * (1.1 + torch.rand(count, 1, generator=generator))
        negative = (~is_face).float()[:, None]
        self.centre = self.centre + negative * away
        size = torch.exp(_uniform((count, 1), 1.0, generator) * scale - negative * 0.7)
        self.half = size * REGION_SIDE / 2
        radians = torch.deg2rad(_uniform((count, 1), 1.0, generator) * angle)
        cos, sin = radians.cos(), radians.sin()
        self.rotation = torch.stack([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)], dim=1)

    def to_face(self, points: torch.Tensor) -> torch.Tensor:
        return (points * self.half[:, None]) @ self.rotation.transpose(1, 2) + self.centre[:, None]

    def to_crop(self, points: torch.Tensor) -> torch.Tensor:
        return (points - self.centre[:, None]) @ self.rotation / self.half[:, None]


def _uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * limit


def _textures(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random pictures [count, 3, size, size] in -1..1: coloured noise of several octaves."""
    total = _uniform((count, 3, 1, 1), 0.7, generator).expand(-1, -1, size, size)
    for cells in (2, 5, 12, 40):
        strength = torch.rand(count, 1, 1, 1, generator=generator)
        noise = torch.randn(count, 3, cells, cells, generator=generator) * strength
        total = total + 0.5 * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return total.clamp(-1, 1)


def _background_bank(generator: torch.Generator) -> torch.Tensor:
    """Things that are no face, float [N, 3, 96, 96]: noise, and squares of CC0 pictures that come with scikit-image."""
    from skimage import data

    patches = [_textures(_BANK_PART, INPUT_SIZE, generator)]
    pictures = []
    for picture in (data.coffee(), data.rocket(), data.chelsea(), data.brick(), data.grass(), data.gravel()):
        pixels = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)
    for number in range(_BANK_PART):
        picture = pictures[number % len(pictures)]
        height, width = picture.shape[-2:]
        part, across, down = torch.rand(3, generator=generator).tolist()
        side = int(min(height, width) * (0.3 + 0.7 * part))
        left, top = int((width - side) * across), int((height - side) * down)
        square = picture[..., top : top + side, left : left + side]
        patches.append(F.interpolate(square, size=INPUT_SIZE, mode="bilinear", antialias=True))
    return torch.cat(patches)


def _random_patches(bank: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Backgrounds [count, 3, 96, 96] drawn from the bank, half of them mirrored."""
    chosen = bank[torch.randint(len(bank), (count,), generator=generator)]
    return torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, chosen, chosen.flip(-1))


def _change_background(
    crops: torch.Tensor, face_grid: torch.Tensor, bank: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Replace what lies outside a head-shaped ellipse (and the shoulders, half of the time) in two samples of three.

    face_grid [B, 96, 96, 2] is each pixel's place on the face in eye distances.
    """
    count = len(crops)
    x, y = face_grid[..., 0][:, None], face_grid[..., 1][:, None]
    grow = 1 + 0.25 * torch.rand(count, 1, 1, 1, generator=generator)
    keep = (10 - 10 * ((x / (1.25 * grow)) ** 2 + ((y - 0.25) / (1.85 * grow)) ** 2)).clamp(0, 1)
    shoulders = (y * 10 - 16).clamp(0, 1) * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    whole = (torch.rand(count, 1, 1, 1, generator=generator) < 0.35).float()
    keep = torch.maximum(torch.maximum(keep, shoulders), whole)
    return keep * crops + (1 - keep) * _random_patches(bank, count, generator)


def _replace_negatives(
    crops: torch.Tensor, is_face: torch.Tensor, bank: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Turn half of the samples without a face into pictures of other things; the rest stay crops beside a face."""
    other = (~is_face) & (torch.rand(len(crops), generator=generator) < 0.5)
    patches = _random_patches(bank, len(crops), generator)
    return torch.where(other[:, None, None, None], patches, crops)


def _cover(crops: torch.Tensor, pixels: torch.Tensor, bank: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cover parts: free shapes anywhere, a cap over the brows, something held before the chin, glasses."""
    count = len(crops)
    axis = torch.arange(INPUT_SIZE, dtype=torch.float32)
    x, y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)

    def draw(limit: float = 1.0) -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) * limit

    def paint(image: torch.Tensor, shape: torch.Tensor, chance: float, opacity: torch.Tensor) -> torch.Tensor:
        weight = (draw() < chance).float() * shape.float() * opacity
        colour = _random_patches(bank, count, generator)
        flat = colour.mean(dim=(2, 3), keepdim=True)
        return image + weight * (torch.where(draw() < 0.5, colour, flat) - image)

    full = torch.ones(count, 1, 1, 1)
    for _ in range(2):
        across, down = (x - draw(96)) / (4 + draw(22)), (y - draw(96)) / (4 + draw(22))
        ellipse, box = across**2 + down**2 < 1, (across.abs() < 1) & (down.abs() < 1)
        crops = paint(crops, torch.where(draw() < 0.5, ellipse, box), 0.3, full)
    eyes = pixels[:, 36:48].mean(dim=1)[:, :, None, None]
    span = (pixels[:, 42:48].mean(dim=1) - pixels[:, 36:42].mean(dim=1)).norm(dim=1)[:, None, None, None]
    eye_x, eye_y = eyes[:, :1], eyes[:, 1:]
    crops = paint(crops, y < eye_y - span * (0.3 + draw(0.5)) + (x - eye_x) * (draw(0.4) - 0.2), 0.15, full)
    mouth = pixels[:, 48:60].mean(dim=1)[:, :, None, None]
    held_x = mouth[:, :1] + (draw(1.6) - 0.8) * span
    held = ((x - held_x).abs() < span * (0.12 + draw(0.3))) & (y > mouth[:, 1:] + span * (draw(0.7) - 0.15))
    crops = paint(crops, held, 0.15, full)
    lens, frame = torch.zeros_like(crops[:, :1], dtype=torch.bool), torch.zeros_like(crops[:, :1], dtype=torch.bool)
    half_width, half_height = 0.36 + draw(0.1), 0.24 + draw(0.12)
    power = torch.where(draw() < 0.5, 2.0, 4.0)
    for eye in (pixels[:, 36:42].mean(dim=1), pixels[:, 42:48].mean(dim=1)):
        across = (x - eye[:, :1, None, None]).abs() / (span * half_width)
        down = (y - eye[:, 1:, None, None]).abs() / (span * half_height)
        radius = across**power + down**power
        lens, frame = lens | (radius < 1), frame | ((radius >= 1) & (radius < 1.5))
    glasses = (draw() < 0.2).float()
    tint = torch.where(draw() < 0.5, draw(0.15), 0.5 + draw(0.5))
    crops = crops + glasses * (lens.float() * tint + frame.float() * 0.9) * (draw(1.0) - 1.0 - crops)
    return crops


def _relight(crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change light, colour, sharpness and noise, as cameras and small faces do."""
    count = len(crops)

    def draw(channels: int = 1) -> torch.Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator)

    light = ((crops + 1) / 2).clamp(1e-3, 1) ** torch.exp((draw() - 0.5) * 1.2)
    axis = torch.linspace(-1, 1, INPUT_SIZE)
    slope = (draw() - 0.5) * axis.view(1, 1, 1, -1) + (draw() - 0.5) * axis.view(1, 1, -1, 1)
    light = light * (1 + slope * 1.2).clamp(min=0.1) * torch.exp((draw(3) - 0.5) * 0.5) * (0.6 + 0.8 * draw())
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    light = mean + (light - mean) * (0.6 + 0.8 * draw())
    grey = light.mean(dim=1, keepdim=True)
    light = torch.where(draw() < 0.2, grey.expand_as(light), grey + (light - grey) * (0.4 + draw()))
    result = light.clamp(0, 1) * 2 - 1
    coarse = int(torch.randint(24, 80, (1,), generator=generator))
    small = F.interpolate(result, size=coarse, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=INPUT_SIZE, mode="bilinear")
    result = torch.where(draw() < 0.35, blurred, result)
    noise = torch.randn(result.shape, generator=generator) * 0.12 * draw() * (draw() < 0.5)
    return (result + noise).clamp(-1, 1)


def _five_group_members() -> torch.Tensor:
    members = torch.zeros(1, POINT_COUNT, dtype=torch.bool)
    for group in FIVE_GROUPS:
        members[:, list(group)] = True
    return members


def _along(points: np.ndarray, count: int) -> np.ndarray:
    """Resample a polyline [N, 2] to `count` points equally spaced along it."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.linspace(0.0, lengths[-1], count)
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def _to_eye_units(points: np.ndarray, ibug: np.ndarray) -> np.ndarray:
    right, left = ibug[36:42].mean(axis=0), ibug[42:48].mean(axis=0)
    return (points - (right + left) / 2) / np.hypot(*(left - right))


def _base_picture(path: Path, ibug: np.ndarray, points: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Cut the stored square around a face: uint8 [3, 256, 256] and the points in eye distances."""
    image = load_image(path)
    right, left = ibug[36:42].mean(axis=0), ibug[42:48].mean(axis=0)
    middle, span = (right + left) / 2, float(np.hypot(*(left - right)))
    region = region_transform((middle[0], middle[1]), 2 * _BASE_HALF * span, 0.0, (image.shape[-2], image.shape[-1]))
    crop = align(image, region.with_output_size(_BASE_SIZE))[0]
    return ((crop + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), _to_eye_units(points, ibug)


def _morph(
    first: tuple[torch.Tensor, np.ndarray], second: tuple[torch.Tensor, np.ndarray], generator: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    """Warp two people to a shape between (or a little beyond) theirs and mix their colours."""
    shape_part, colour_part = generator.uniform(-0.25, 1.25), generator.uniform(0.0, 1.0)
    target = (1 - shape_part) * first[1] + shape_part * second[1]
    axis = ((np.arange(_FIELD_SIZE) + 0.5) / _FIELD_SIZE * 2 - 1) * _BASE_HALF
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    corners = np.array([[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]) * _BASE_HALF
    warped = []
    for picture, points in (first, second):
        # Smoothing keeps pairs of almost equal template points (lips, lids) from tearing the field.
        field = RBFInterpolator(
            np.concatenate([target, corners]), np.concatenate([points - target, 0 * corners]), smoothing=1e-3,
            kernel="thin_plate_spline",
        )(grid)  # fmt: skip
        coarse = torch.from_numpy(field).float().view(1, _FIELD_SIZE, _FIELD_SIZE, 2).permute(0, 3, 1, 2)
        dense = F.interpolate(coarse, size=_BASE_SIZE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        line = (torch.arange(_BASE_SIZE) + 0.5) / _BASE_SIZE * 2 - 1
        plain = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)[None]
        warped.append(F.grid_sample(picture[None].float(), plain + dense / _BASE_HALF, padding_mode="border",
                                    align_corners=False)[0])  # fmt: skip
    mixed = (1 - colour_part) * warped[0] + colour_part * warped[1]
    return mixed.round().clamp(0, 255).to(torch.uint8), target


def _spread_five(five: np.ndarray) -> np.ndarray:
    """Write five points into a 68-point array; points without a label stay at the mouth and are masked in training."""
    points = np.tile(five[3:].mean(axis=0), (POINT_COUNT, 1))
    for group, point in zip(FIVE_GROUPS, five, strict=True):
        points[list(group)] = point
    return points


_TEACHER_OFFSETS: dict[Path, np.ndarray] = {}


def _teacher_points(
    teacher: Path, path: Path, templates: dict[str, np.ndarray], people: list[dict[str, str]]
) -> np.ndarray | None:
    """YuNet's five points of a photograph, corrected by its mean difference from the template points."""
    if teacher not in _TEACHER_OFFSETS:
        differences = []
        for row in people:
            if row["set"] != "london":
                continue
            known = ibug_points(templates[f"neutral/{row['id']}"])
            true = np.stack([known[list(group)].mean(axis=0) for group in FIVE_GROUPS])
            found = _yunet_five(teacher, path.parent.parent / "neutral" / f"{row['id']}.jpg")
            if found is not None:
                differences.append((found - true) / np.hypot(*(true[1] - true[0])))
        _TEACHER_OFFSETS[teacher] = np.mean(differences, axis=0)
    found = _yunet_five(teacher, path)
    if found is None:
        return None
    return found - _TEACHER_OFFSETS[teacher] * np.hypot(*(found[1] - found[0]))


def _yunet_five(teacher: Path, path: Path) -> np.ndarray | None:
    """Mean of YuNet's five points over three sizes and their mirror images, which halves its scatter."""
    image = load_image(path)
    found = []
    for height in (320, 400, 480):
        small = resize_antialiased(image, (height, round(height * image.shape[-1] / image.shape[-2])))
        ratio = image.shape[-2] / height
        for mirrored in (False, True):
            face = select_face(detect_faces(small.flip(-1) if mirrored else small, "yunet", yunet_path=teacher)[0])
            if face is None:
                continue
            points = face.points_array().copy()
            if mirrored:
                points[:, 0] = small.shape[-1] - 1 - points[:, 0]
                points = points[[1, 0, 2, 4, 3]]
            found.append((points + 0.5) * ratio - 0.5)
    return np.mean(found, axis=0) if found else None
