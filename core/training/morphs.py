"""The "portraits" domain: photo-real morphs of licensed studio photographs, drawn from known codes.

A linear model of faces: every photograph is warped to one mean shape (its texture) and keeps the dense displacement
field that undoes the warp (its shape). Both are linear in the landmarks and colours, so a morph is a weighted sum of
textures seen through the inverse of a weighted sum of displacements, computed in batches on any device.
Idea: active appearance models (Cootes et al., 1998) with thin-plate splines (Bookstein, 1989).

The code of a morph is one vector: texture weights, shape weights (neutral and smiling photographs are separate
entries), then `EXTRA_NAMES`. Photographs: DeBruine & Jones, Face Research Lab London Set and Young Adult White Faces,
CC BY 4.0. People marked `test` in info.csv are never read.
"""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import ffhq_quad_from_five
from ..errors import InvalidInputError

logger = logging.getLogger(__name__)

LEFT_PUPIL, RIGHT_PUPIL, LEFT_MOUTH, RIGHT_MOUTH = 0, 1, 87, 93  # rows of landmarks.json; left and right in the image
NOSE = 55  # the crop does not depend on it
MOUTH_ROWS = slice(85, 110)
MARGIN = 0.125  # the mean-shape frame reaches this far (in crop widths) beyond the FFHQ crop
MIRRORED = " mirrored"  # appended to the name of a person's mirror image
OUTLINE_CONTRAST = 4.0
FIELD_SIZE = 96  # displacement fields are smooth: this grid is enough
EXTRA_NAMES = (
    "yaw",
    "pitch",
    "light_side",
    "brightness",
    "warmth",
    "contrast",
    "background_r",
    "background_g",
    "background_b",
)
_POSE_AND_LIGHT = 6  # of them, before the background


@dataclass(frozen=True)
class MorphConfig:
    """How codes are drawn."""

    max_people: int = 4
    concentration: float = 0.5  # of the mixing weights: small values let one person dominate
    separate_shape: float = 0.5  # probability that shape and texture come from different people
    yaw: float = 0.2  # radians, uniform in +-yaw
    pitch: float = 0.1
    light_side: float = 0.25  # relative brightness change from the middle to the side of the picture
    brightness: float = 0.25  # exponent of 2
    warmth: float = 0.08
    contrast: float = 0.15
    own_background: float = 0.5  # probability of the studio's grey


def ffhq_frame(points: np.ndarray) -> np.ndarray:
    """2x3 matrix from unit-square crop coordinates to image pixels, from pupils and mouth corners (FFHQ crop)."""
    top_left, bottom_left, _, top_right = ffhq_quad_from_five(
        points[[LEFT_PUPIL, RIGHT_PUPIL, NOSE, LEFT_MOUTH, RIGHT_MOUTH]]
    )
    return np.stack((top_right - top_left, bottom_left - top_left, top_left), axis=1)


def _thin_plate(points: np.ndarray, grid: np.ndarray, smooth: float) -> np.ndarray:
    """[G, K] matrix that takes displacements at K control points to displacements at G grid points."""

    def radial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        d2 = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.where(d2 > 0, d2 * np.log(np.maximum(d2, 1e-20)), 0.0)

    k = len(points)
    affine = np.concatenate((np.ones((k, 1)), points), axis=1)
    system = np.zeros((k + 3, k + 3))
    system[:k, :k] = radial(points, points) + smooth * np.eye(k)
    system[:k, k:], system[k:, :k] = affine, affine.T
    right = np.concatenate((radial(grid, points), np.ones((len(grid), 1)), grid), axis=1)
    return right @ np.linalg.solve(system, np.eye(k + 3)[:, :k])


def register_upper_face(neutral: np.ndarray, smiling: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where the head of one photograph is in another of the same person, by hair, brows, eyes and nose.

    Args:
        neutral, smiling: uint8 [H, W, 3] of one person, one camera.
        points: [K, 2] pixels in `neutral`.

    Returns:
        Rigid motion [2, 3] from pixels of `neutral` to pixels of `smiling`.

    Raises:
        InvalidInputError: the pictures cannot be brought together.
    """
    import cv2

    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (neutral, smiling)]
    scale = 0.25
    small = [
        cv2.GaussianBlur(cv2.resize(g, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), (0, 0), 2) for g in grey
    ]
    eyes, mouth = points[[LEFT_PUPIL, RIGHT_PUPIL]].mean(0), points[[LEFT_MOUTH, RIGHT_MOUTH]].mean(0)
    reach = np.hypot(*(mouth - eyes))
    mask = np.zeros_like(small[0])
    x0, x1 = eyes[0] - 1.5 * reach, eyes[0] + 1.5 * reach
    y0, y1 = eyes[1] - 1.6 * reach, eyes[1] + 0.9 * reach  # hair to nose: what a smile moves least
    mask[max(0, int(y0 * scale)) : int(y1 * scale), max(0, int(x0 * scale)) : int(x1 * scale)] = 255
    start, best = np.eye(2, 3, dtype=np.float32), None
    for dy in (0, -12, 12, -24, 24):
        for dx in (0, -12, 12):
            guess = start.copy()
            guess[:, 2] = dx, dy
            try:
                score, warp = cv2.findTransformECC(
                    small[0], small[1], guess, cv2.MOTION_EUCLIDEAN, (3, 60, 1e-4), mask, 5
                )
            except cv2.error:
                continue
            if best is None or score > best[0]:
                best = (score, warp)
        if best is not None and best[0] > 0.97:
            break
    if best is None:
        raise InvalidInputError(
            "The smiling photograph could not be registered to the neutral one: is it the same person?"
        )
    rigid = best[1].astype(np.float64)
    rigid[:, 2] = rigid[:, 2] / scale
    return rigid


def smiling_landmarks(neutral: np.ndarray, smiling: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Carries the landmarks of a neutral photograph to a smiling one of the same person, by registration.

    Args:
        neutral, smiling: uint8 [H, W, 3] of one person, one camera.
        points: [K, 2] pixels in `neutral`.

    Returns:
        [K, 2] pixels in `smiling`: a rigid registration of the upper face, then dense optical flow (DIS).
    """
    import cv2

    rigid = register_upper_face(neutral, smiling, points)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (neutral, smiling)]
    h, w = grey[0].shape
    moved = cv2.warpAffine(
        grey[1], rigid, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(1)
    flow = dis.calc(grey[0], moved, None)
    flow = cv2.GaussianBlur(flow, (0, 0), 3)
    at = np.clip(np.rint(points).astype(int), 0, [w - 1, h - 1])
    carried = points + flow[at[:, 1], at[:, 0]]
    return carried @ rigid[:, :2].T + rigid[:, 2]


def _background_alpha(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Soft person mask in 0..1 [H, W] of a studio photograph, by GrabCut started from the landmarks."""
    import cv2

    h, w = image.shape[:2]
    scale = 300 / w
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    mask = np.full(small.shape[:2], cv2.GC_PR_FGD, np.uint8)
    hull = cv2.convexHull((points * scale).astype(np.float32)).astype(np.int32)
    top, low = int(hull[:, 0, 1].min()), int(hull[:, 0, 1].max())
    left, right = int(hull[:, 0, 0].min()), int(hull[:, 0, 0].max())
    span = right - left
    mask[:low] = cv2.GC_PR_BGD
    mask[: max(1, top - span // 4)] = cv2.GC_BGD
    mask[:low, : max(1, left - span // 3)] = cv2.GC_BGD
    mask[:low, right + span // 3 :] = cv2.GC_BGD
    ring = np.zeros_like(mask)
    cv2.fillConvexPoly(ring, hull, 1)
    mask[(ring == 1) & (mask != cv2.GC_BGD)] = cv2.GC_PR_FGD
    core = cv2.erode(ring, np.ones((span // 5, span // 5), np.uint8))
    mask[core == 1] = cv2.GC_FGD
    mask[small.shape[0] - 6 :, left:right] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(small, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    alpha = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    alpha = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, np.ones((3, 3)))
    alpha = cv2.GaussianBlur(cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, np.ones((7, 7))), (0, 0), 1.2)
    return np.clip(cv2.resize(alpha, (w, h), interpolation=cv2.INTER_LINEAR) * 1.4 - 0.4, 0, 1)


class MorphModel:
    """Bank of textures and displacement fields; draws codes and renders them."""

    def __init__(
        self,
        textures: Tensor,
        fields: Tensor,
        mean_points: Tensor,
        point_offsets: Tensor,
        people: list[str],
        expressions: list[str],
    ) -> None:
        """Use `build` or `load`.

        Args:
            textures: [N, 4, T, T] uint8: colours and person mask in the mean-shape frame (crop plus MARGIN).
            fields: [N, 2, FIELD_SIZE, FIELD_SIZE] float32: mean frame -> photograph, crop widths, (x, y).
            mean_points: [K, 2] landmarks of the mean shape, crop widths (0..1 inside the crop).
            point_offsets: [N, K, 2] each photograph's landmarks minus the mean.
            people, expressions: per entry, for example "london/004" and "smiling".
        """
        self.textures, self.fields = textures, fields
        self.mean_points, self.point_offsets = mean_points, point_offsets
        self.people, self.expressions = people, expressions
        ids = sorted(set(people))
        self.person_ids = ids
        entry = {(p, e): i for i, (p, e) in enumerate(zip(people, expressions, strict=True))}
        self.neutral_of = torch.tensor([entry[p, "neutral"] for p in ids])
        self.smiling_of = torch.tensor([entry.get((p, "smiling"), -1) for p in ids])

    @property
    def entries(self) -> int:
        """Photographs in the bank."""
        return len(self.people)

    @property
    def code_dim(self) -> int:
        """Length of a code: texture weights, shape weights, extras."""
        return 2 * self.entries + len(EXTRA_NAMES)

    def to(self, device: torch.device | str) -> MorphModel:
        """Copy on a device."""
        return MorphModel(
            self.textures.to(device),
            self.fields.to(device),
            self.mean_points.to(device),
            self.point_offsets.to(device),
            self.people,
            self.expressions,
        )

    def draw_codes(self, count: int, generator: torch.Generator, config: MorphConfig = MorphConfig()) -> Tensor:
        """Random codes [count, code_dim] from a CPU generator: sparse mixes of people, a shared smile, extras."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        codes = torch.zeros(count, self.code_dim)
        smile = uniform(count)
        smile = torch.where(uniform(count) < 0.5, (smile < 0.5).float(), smile)  # half of the pictures at the ends
        has_smile = self.smiling_of >= 0
        for row in range(count):
            mixes = [self._mix(generator, config)]
            mixes.append(self._mix(generator, config) if uniform(1).item() < config.separate_shape else mixes[0])
            for part, (persons, weights) in enumerate(mixes):
                s = smile[row] * has_smile[persons].float()
                base = part * self.entries
                codes[row].index_add_(0, base + self.neutral_of[persons], weights * (1 - s))
                codes[row].index_add_(0, base + self.smiling_of[persons].clamp(min=0), weights * s)
        signed = uniform(count, _POSE_AND_LIGHT) * 2 - 1
        scales = torch.tensor(
            [config.yaw, config.pitch, config.light_side, config.brightness, config.warmth, config.contrast]
        )
        extras = signed * scales
        grey = uniform(count, 1) * 1.6 - 0.9
        colour = (grey + (uniform(count, 3) - 0.5) * 0.5).clamp(-1, 1)
        studio = torch.tensor([0.55, 0.57, 0.57])
        own = uniform(count, 1) < config.own_background
        codes[:, 2 * self.entries :] = torch.cat((extras, torch.where(own, studio, colour)), dim=1)
        return codes

    def draw_edits(self, codes: Tensor, generator: torch.Generator, amount: float) -> Tensor:
        """Codes [B, code_dim] with shape, pose and light moved towards those of other morphs; texture and background stay.

        Args:
            codes: as `draw_codes` gives them.
            generator: on the CPU.
            amount: greatest part of the way, above 1 beyond; drawn for each picture, once for the shape and once for pose
                and light.
        """
        others = self.draw_codes(len(codes), generator).to(codes)
        shape, light = amount * torch.rand(2, len(codes), 1, generator=generator).to(codes)
        n = self.entries
        parts = [codes[:, :n], codes[:, n : 2 * n].lerp(others[:, n : 2 * n], shape)]
        pose = slice(2 * n, 2 * n + _POSE_AND_LIGHT)
        parts += [codes[:, pose].lerp(others[:, pose], light), codes[:, 2 * n + _POSE_AND_LIGHT :]]
        return torch.cat(parts, dim=1)

    def _mix(self, generator: torch.Generator, config: MorphConfig) -> tuple[Tensor, Tensor]:
        people = int(torch.randint(1, config.max_people + 1, (1,), generator=generator))
        persons = torch.randperm(len(self.person_ids), generator=generator)[:people]
        # Powers of uniforms give the same kind of sparse mixes as a Dirichlet distribution.
        weights = torch.rand(len(persons), generator=generator).pow(1 / config.concentration) + 1e-3
        return persons, weights / weights.sum()

    def landmarks(self, codes: Tensor) -> Tensor:
        """The morphs' landmarks [B, K, 2] in crop widths (0..1 inside the crop)."""
        shape = codes[:, self.entries : 2 * self.entries]
        offsets = (shape.to(self.point_offsets) @ self.point_offsets.flatten(1)).view(len(codes), -1, 2)
        points = self.mean_points + offsets
        extras = codes[:, 2 * self.entries :]
        return points + _turn(points, extras[:, 0], extras[:, 1])

    @torch.no_grad()
    def render(self, codes: Tensor, resolution: int) -> Tensor:
        """Codes [B, code_dim] -> morphs [B, 3, resolution, resolution] in [-1, 1]."""
        device, batch, n = self.textures.device, len(codes), self.entries
        codes = codes.to(device)
        extras = codes[:, 2 * n :]
        field = (codes[:, n : 2 * n] @ self.fields.flatten(1)).view(batch, 2, FIELD_SIZE, FIELD_SIZE)
        texture = torch.stack([self._mixed_texture(row) for row in codes[:, :n]])
        line = (torch.arange(resolution, device=device) + 0.5) / resolution
        target = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None].expand(batch, -1, -1, -1)  # [B, 2, r, r]

        def displaced(at: Tensor) -> Tensor:
            moved = F.grid_sample(field, _to_grid(at), padding_mode="border", align_corners=False)
            flat = (at + moved).flatten(2).transpose(1, 2)
            turned = _turn(flat, extras[:, 0], extras[:, 1]).transpose(1, 2).view_as(at)
            return moved + turned

        source = target
        for _ in range(6):  # fixed point of source + displacement(source) = target
            source = target - displaced(source)
        rgba = F.grid_sample(texture, _to_grid(source), padding_mode="border", align_corners=False)
        return self._light(rgba, extras, target)

    def _mixed_texture(self, weights: Tensor) -> Tensor:
        """[N] weights -> premultiplied RGBA [4, T, T], colours in 0..1; all but a few weights are zero."""
        used = weights.nonzero()[:, 0]
        picked = self.textures[used].float() / 255
        alpha = picked[:, 3:]
        picked = torch.cat((picked[:, :3] * alpha, alpha), dim=1)
        return (weights[used, None, None, None] * picked).sum(dim=0)

    @staticmethod
    def _light(rgba: Tensor, extras: Tensor, target: Tensor) -> Tensor:
        side, brightness, warmth, contrast = (extras[:, k, None, None, None] for k in (2, 3, 4, 5))
        background = (extras[:, 6:9, None, None] + 1) / 2
        colour = rgba[:, :3] / rgba[:, 3:].clamp(min=0.02)
        # Hair outlines of several people do not meet: without this, each leaves a ghost where the others end.
        alpha = ((rgba[:, 3:] - 0.5) * OUTLINE_CONTRAST + 0.5).clamp(0, 1)
        tint = 1 + warmth * torch.tensor([1.0, 0.1, -1.0], device=rgba.device)[:, None, None]
        colour = colour * torch.exp2(brightness) * (1 + side * (target[:, :1] * 2 - 1)) * tint
        colour = (0.45 + (colour - 0.45) * (1 + contrast)).clamp(0, 1)
        # A studio backdrop darkens a little towards the edges.
        falloff = 1 - 0.25 * ((target - 0.5).square().sum(dim=1, keepdim=True))
        return (alpha * colour + (1 - alpha) * background * falloff) * 2 - 1

    def save(self, path: str | Path) -> None:
        """Writes the bank as one safetensors file. It holds the photographs' pixels: keep it private."""
        from safetensors.torch import save_file

        tensors = {
            "textures": self.textures,
            "fields": self.fields,
            "mean_points": self.mean_points,
            "point_offsets": self.point_offsets,
        }
        meta = {"people": json.dumps(self.people), "expressions": json.dumps(self.expressions)}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, str(path), metadata=meta)

    @staticmethod
    def load(path: str | Path) -> MorphModel:
        """Reads what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            meta = file.metadata()
            tensors = {name: file.get_tensor(name) for name in ("textures", "fields", "mean_points", "point_offsets")}
        return MorphModel(**tensors, people=json.loads(meta["people"]), expressions=json.loads(meta["expressions"]))

    @staticmethod
    def build(portraits: str | Path, texture_size: int = 240) -> MorphModel:
        """Reads the portraits folder (README there) and makes the bank of its `train` people and their mirror images.

        Args:
            portraits: folder with neutral/, smiling/, canada/, landmarks.json, info.csv.
            texture_size: pixels across the mean-shape frame (1.25 crop widths); 1.5 times the training resolution or more.
        """
        photos = _with_mirror_images(_training_photos(Path(portraits)))
        photos, stacked = _without_bad_smiles(photos, np.stack([_crop_points(photo.points) for photo in photos]))
        mean = stacked.mean(0)
        line = np.linspace(-MARGIN, 1 + MARGIN, 9)
        border = np.array(
            [(x, y) for x in line for y in line if not (-MARGIN < x < 1 + MARGIN and -MARGIN < y < 1 + MARGIN)]
        )
        control = np.concatenate((mean, border))
        matrix_fields = _thin_plate(control, _frame_grid(FIELD_SIZE), smooth=1e-4)[:, : len(mean)]
        matrix_texture = _thin_plate(control, _frame_grid(texture_size), smooth=1e-4)[:, : len(mean)]
        textures, fields = [], []
        for photo, offsets in zip(photos, stacked - mean, strict=True):
            fields.append((matrix_fields @ offsets).T.reshape(2, FIELD_SIZE, FIELD_SIZE))
            at = _frame_grid(texture_size) + matrix_texture @ offsets
            textures.append(_sample_photo(photo, at, texture_size))
        return MorphModel(
            torch.stack(textures),
            torch.tensor(np.stack(fields), dtype=torch.float32),
            torch.tensor(mean, dtype=torch.float32),
            torch.tensor(stacked - mean, dtype=torch.float32),
            [photo.person for photo in photos],
            [photo.expression for photo in photos],
        )


@dataclass
class _Photo:
    person: str
    expression: str
    rgba: np.ndarray  # uint8 [H, W, 4], the last channel the person's mask
    points: np.ndarray  # [K, 2] pixels

    @staticmethod
    def of(person: str, expression: str, image: np.ndarray, points: np.ndarray) -> _Photo:
        """With the mask found in the picture."""
        alpha = (_background_alpha(image, points) * 255).astype(np.uint8)
        return _Photo(person, expression, np.dstack((image, alpha)), points)

    def mirrored(self, partners: np.ndarray) -> _Photo:
        """The picture seen in a mirror, as a person of its own; `partners` are the rows that trade places."""
        points = self.points[partners] * (-1, 1) + (self.rgba.shape[1] - 1, 0)
        return _Photo(self.person + MIRRORED, self.expression, np.ascontiguousarray(self.rgba[:, ::-1]), points)


def _with_mirror_images(photos: list[_Photo]) -> list[_Photo]:
    """The photographs and their mirror images. Which landmarks trade places follows from the mean face's symmetry."""
    from scipy.optimize import linear_sum_assignment

    mean = np.stack([_crop_points(photo.points) for photo in photos]).mean(0)
    distances = np.hypot(*(mean[:, None] - (mean * (-1, 1) + (1, 0))[None]).transpose(2, 0, 1))
    partners = linear_sum_assignment(distances)[1]
    return photos + [photo.mirrored(partners) for photo in photos]


def _training_photos(portraits: Path) -> list[_Photo]:
    from PIL import Image

    info, marks = portraits / "info.csv", portraits / "landmarks.json"
    if not info.is_file() or not marks.is_file():
        raise InvalidInputError(f"{portraits}: expected a portraits folder with info.csv and landmarks.json in it.")
    landmarks = json.loads(marks.read_text())
    photos = []
    with info.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    for row in rows:
        folder = "neutral" if row["set"] == "london" else row["set"]
        person = f"{row['set']}/{row['id']}"
        points = np.array(landmarks[f"{folder}/{row['id']}"])
        image = np.asarray(Image.open(portraits / folder / f"{row['id']}.jpg").convert("RGB"))
        photos.append(_Photo.of(person, "neutral", image, points))
        smiling = portraits / "smiling" / f"{row['id']}.jpg"
        if folder == "neutral" and smiling.is_file():
            other = np.asarray(Image.open(smiling).convert("RGB"))
            photos.append(_Photo.of(person, "smiling", other, smiling_landmarks(image, other, points)))
    logger.info("%d photographs of %d people", len(photos), len(rows))
    return photos


def _crop_points(points: np.ndarray) -> np.ndarray:
    """Pixels -> crop widths of the photograph's own FFHQ crop."""
    frame = ffhq_frame(points)
    return (points - frame[:, 2]) @ np.linalg.inv(frame[:, :2]).T


def _without_bad_smiles(photos: list[_Photo], points: np.ndarray) -> tuple[list[_Photo], np.ndarray]:
    """Leaves out smiling photographs whose registered mouth moved unlike everybody else's: registration failed there."""
    index = {(photo.person, photo.expression): i for i, photo in enumerate(photos)}
    pairs = [(index[p, "neutral"], i) for (p, e), i in index.items() if e == "smiling"]
    if not pairs:
        return photos, points
    moves = np.stack([points[smiling] - points[neutral] for neutral, smiling in pairs])[:, MOUTH_ROWS]
    deviation = np.sqrt(((moves - np.median(moves, axis=0)) ** 2).sum(-1).mean(-1))
    bad = {smiling for (_, smiling), d in zip(pairs, deviation, strict=True) if d > 2.0 * np.median(deviation)}
    if bad:
        logger.info("left out %d smiling photographs that did not register", len(bad))
    kept = [i for i in range(len(photos)) if i not in bad]
    return [photos[i] for i in kept], points[kept]


def _frame_grid(size: int) -> np.ndarray:
    """Pixel centres of the mean-shape frame [size*size, 2] in crop widths, row by row."""
    line = ((np.arange(size) + 0.5) / size) * (1 + 2 * MARGIN) - MARGIN
    return np.stack(np.meshgrid(line, line, indexing="xy"), axis=-1).reshape(-1, 2)


def _to_grid(at: Tensor) -> Tensor:
    """Crop widths [B, 2, h, w] -> grid_sample coordinates over the mean-shape frame [B, h, w, 2]."""
    return ((at + MARGIN) / (1 + 2 * MARGIN) * 2 - 1).permute(0, 2, 3, 1)


def _turn(points: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Displacement [B, P, 2] of a small head turn, as it looks after alignment: eyes and mouth stay, nose and outline move.

    Depth in crop widths: an ellipsoid head with a nose, less the depth of eyes and mouth, which alignment holds fixed.
    """
    centred = points - torch.tensor([0.5, 0.55], device=points.device)
    head = (centred / torch.tensor([0.38, 0.52], device=points.device)).square().sum(-1)
    nose = ((points - torch.tensor([0.5, 0.57], device=points.device)) / 0.055).square().sum(-1)
    depth = 0.25 * (torch.exp(-1.5 * head.square()) - 0.97) + 0.06 * torch.exp(-nose)
    return torch.stack((yaw[:, None] * depth, pitch[:, None] * depth), dim=-1)


def _sample_photo(photo: _Photo, at: np.ndarray, size: int) -> Tensor:
    """Colours and person mask [4, size, size] uint8 of a photograph at crop coordinates `at` [size*size, 2]."""
    import cv2

    frame = ffhq_frame(photo.points)
    rgba = photo.rgba
    pixels = at @ frame[:, :2].T + frame[:, 2]
    ratio = np.hypot(*frame[:, 0]) * (1 + 2 * MARGIN) / size
    if ratio > 1:
        rgba = cv2.GaussianBlur(rgba, (0, 0), 0.4 * ratio)
    maps = pixels.astype(np.float32).reshape(size, size, 2)
    sampled = cv2.remap(rgba, maps[..., 0], maps[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(sampled).permute(2, 0, 1)
