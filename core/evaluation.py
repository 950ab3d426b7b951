"""Inversion methods measured side by side on the same photographs, what an edit does to them, and a generator's samples.

Conventions, all of which are repeated in the written settings: images in [-1, 1], drawn ones clamped first; every
value is computed for each image and then averaged (mean PSNR is not the PSNR of the mean error); MSE on [-1, 1], four
times the value on [0, 1]; PSNR = 10 log10(4 / MSE). "seconds" is the wall time of the method alone, for each image, on
a warm device with loaded models: drawing the result is not in it.
Deviations from published tables: which networks stand behind "lpips", "id" and "frechet" is the caller's choice and
named by the caller; with the bundled ones the numbers are not those of LPIPS, ArcFace and Inception.

What can be measured stands in core/methods.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .alignment import CropTransform
from .attributes import ATTRIBUTES, FindLandmarks, attribute_of_direction, attributes_of, eye_distances, mouth_widths
from .blending import match_mask
from .editing import Direction, Edit
from .errors import GANInversionError, InvalidInputError, MissingPackageError
from .generator import Generator
from .imaging import area_pool
from .inversion import render
from .landmarks import POINT_COUNT, LandmarkNet, predict_landmarks, region_of_face
from .latents import sample
from .losses import Distance, multiscale_distance
from .methods import METHODS, Context, Method, Result, find_methods, register

__all__ = [
    "METHODS", "AttributeTest", "Context", "EditTest", "Measures", "Method", "MethodReport", "Photographs", "Result",
    "SamplesReport", "attribute_response", "edit_response", "evaluate_method", "evaluate_samples", "find_methods",
    "measure_images", "mouth_widths", "register",
]  # fmt: skip

logger = logging.getLogger(__name__)

Embed = Callable[[Tensor], Tensor]  # [B, 3, H, W] in [-1, 1] -> unit vectors [B, D]
Features = Callable[[Tensor], Tensor]  # [B, 3, H, W] in [-1, 1] -> [B, D]
Progress = Callable[[str, int], None]  # method, images done since the last call

PSNR_FORMULA = "10 * log10(4 / MSE), per image, then the mean"
_MOUTH_CORNERS = (48, 54)
ALPHAS = (-2.0, 2.0)
# Where an FFHQ crop has eyes and mouth corners, in crop widths.
_RIGHT_EYE, _LEFT_EYE, _RIGHT_CORNER, _LEFT_CORNER = (0.385, 0.48), (0.615, 0.48), (0.41, 0.70), (0.59, 0.70)


@dataclass(frozen=True)
class Photographs:
    """What is inverted: aligned images [N, 3, R, R] in [-1, 1] at the generator's size, or what loads rows of them."""

    names: Sequence[str]
    images: Tensor | Callable[[list[int]], Tensor]
    masks: Tensor | None = None  # [N, 1, R, R], exactly where the photographs are out of domain, if that is known
    smiles: Mapping[str, Tensor] = field(default_factory=dict)  # name -> the same person smiling [1, 3, R, R]

    def __post_init__(self) -> None:
        counts = [len(part) for part in (self.images, self.masks) if isinstance(part, Tensor)]
        if not self.names or any(count != len(self.names) for count in counts):
            raise InvalidInputError(f"{len(self.names)} names for {counts} photographs and masks: expected as many.")

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Some of the images, [len(rows), 3, R, R]."""
        return self.images[list(rows)] if isinstance(self.images, Tensor) else self.images(list(rows))


@dataclass(frozen=True)
class Measures:
    """What results are measured with. What is absent leaves its keys out of the rows."""

    perceptual: Distance | None = None  # "lpips"
    embed: Embed | None = None  # "id"
    features: Features | None = None  # "frechet"
    landmarks: FindLandmarks | None = None  # mouth and head under an edit
    size: int | None = None  # both images are area-downsampled to this side first; None measures at full size


@dataclass(frozen=True)
class EditTest:
    """An edit whose effect is measured on each method's inversions."""

    name: str
    strength: float
    edit: Edit
    other_people: float | None = None  # mean identity similarity between different people, for the margin


@dataclass(frozen=True)
class AttributeTest:
    """Directions whose effect on measured attributes is asked for, each at the same strengths."""

    directions: Mapping[str, Direction]  # by the name that rows carry, which also says what they are about
    alphas: Sequence[float] = ALPHAS  # strengths in each direction's own unit

    def __post_init__(self) -> None:
        if not self.directions or not self.alphas or not all(math.isfinite(alpha) for alpha in self.alphas):
            raise InvalidInputError(
                f"Directions {list(self.directions)} at strengths {list(self.alphas)}: expected one or more of each, "
                "finite strengths."
            )


@dataclass(frozen=True)
class MethodReport:
    """The row of a method, and its first pictures for a sheet; white where the method failed."""

    row: dict[str, Any]
    images: Tensor  # [K, 3, R, R] in [-1, 1]
    edited: Tensor | None = None


def evaluate_method(
    method: Method,
    photographs: Photographs,
    context: Context,
    measures: Measures = Measures(),
    *,
    batch: int = 8,
    edit: EditTest | None = None,
    attributes: AttributeTest | None = None,
    keep: int = 48,
    progress: Progress | None = None,
) -> MethodReport:
    """Inverts the photographs and measures the results.

    Args:
        method: with its needed models in `context.models`, on the generator's device.
        photographs: at least one.
        context: what the method may use.
        measures: with what to measure.
        batch: photographs at a time. A batch that fails is tried again one by one.
        edit: also measured when given.
        attributes: also measured when given, see `attribute_response`.
        keep: how many pictures the report holds at most.
        progress: called after each batch.

    Returns:
        A row with "method", "images", means, "psnr_min" (the worst image), "intervals" (95 % by bootstrap over the
        images), "per_image" and, where photographs failed, "failed". Keys without a meaning are absent.

    Raises:
        GANInversionError: the method failed on every photograph (the first one's error).
    """
    device = context.generator.w_avg.device
    with torch.no_grad(), contextlib.suppress(GANInversionError):  # the real run names what fails
        method.run(photographs.rows([0]).to(device), dataclasses.replace(context, warm_up=True))
    size = context.generator.resolution
    values: dict[str, list[float]] = {}
    responses: dict[str, list[float]] = {}
    effects: _Effects = {}
    names: list[str] = []
    failed: list[tuple[str, GANInversionError]] = []
    pictures = torch.ones(min(keep, len(photographs)), 3, size, size)
    edited = None if edit is None else torch.ones_like(pictures)
    found, wanted = metrics.Moments(), metrics.Moments()
    seconds, peak_bytes = 0.0, 0
    for part in torch.arange(len(photographs)).split(batch):
        for rows, target, result, watch in _run(method, photographs, part.tolist(), context, failed):
            seconds, peak_bytes = seconds + watch.seconds, max(peak_bytes, watch.peak_bytes or 0)
            with torch.no_grad():
                drawn = render(result.inversion).clamp(-1, 1)
                changed = None if edit is None else render(result.inversion, edit.edit).clamp(-1, 1)
                if measures.features is not None:
                    found.update(measures.features(drawn))
                    wanted.update(measures.features(target))
            truth = None if photographs.masks is None else photographs.masks[rows].to(device)
            _extend(values, measure_images(drawn, target, measures, truth=truth, mask=result.mask))
            _keep(pictures, rows, drawn)
            if edited is not None and changed is not None:
                smiles = [photographs.smiles.get(photographs.names[row]) for row in rows]
                _extend(
                    responses, edit_response(target, drawn, changed, measures, smiles, truth=truth, mask=result.mask)
                )
                _keep(edited, rows, changed)
            if attributes is not None:
                _add_effects(effects, target, drawn, result, measures, attributes)
            names += [photographs.names[row] for row in rows]
        if progress is not None:
            progress(method.name, len(part))
    if not names:
        raise failed[0][1]
    row: dict[str, Any] = {"method": method.name, "images": len(names), **_means(values)}
    if finite := _finite(values["psnr"]):
        row["psnr_min"] = round(min(finite), 6)
    if found.count > 1:
        row["frechet"] = metrics.frechet_distance(found, wanted)
    row["seconds"] = seconds / len(names)
    if device.type == "cuda":  # elsewhere only the peak of the whole process is known, whatever reached it
        row["peak_memory_mb"] = peak_bytes / 1e6
    if edit is not None:
        row["edit"] = _edit_row(edit, responses)
    if attributes is not None:
        row["attributes"] = _effect_rows(effects, context.seed)
    row["intervals"] = {key: interval for key, v in values.items() if (interval := _interval(v, context.seed))}
    row["per_image"] = {"names": names, **{key: [_rounded(v) for v in per] for key, per in values.items()}}
    if failed:
        row["failed"] = [{"name": name, "why": str(error)} for name, error in failed]
    return MethodReport(row, pictures, edited)


def _run(
    method: Method,
    photographs: Photographs,
    rows: list[int],
    context: Context,
    failed: list[tuple[str, GANInversionError]],
) -> Iterator[tuple[list[int], Tensor, Result, metrics.Stopwatch]]:
    """(rows, their images, result, time) of a batch, or of its images one by one where the batch fails."""
    images = photographs.rows(rows).to(context.generator.w_avg.device)
    try:
        with torch.no_grad(), metrics.Stopwatch(images.device) as watch:
            result = method.run(images, context)
    except GANInversionError as error:
        if len(rows) == 1:
            name = photographs.names[rows[0]]
            logger.warning("%s failed on %s: %s", method.name, name, error)
            failed.append((name, error))
            return
        for row in rows:
            yield from _run(method, photographs, [row], context, failed)
        return
    yield rows, images, result, watch


def _keep(pictures: Tensor, rows: Sequence[int], drawn: Tensor) -> None:
    for row, picture in zip(rows, drawn, strict=True):
        if row < len(pictures):
            pictures[row] = picture.cpu()


def _extend(values: dict[str, list[float]], per_image: Mapping[str, Tensor]) -> None:
    for key, one in per_image.items():
        values.setdefault(key, []).extend(one.double().cpu().tolist())


@torch.no_grad()
def measure_images(
    image: Tensor, target: Tensor, measures: Measures, *, truth: Tensor | None = None, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Every measure of a pair of batches, by its key, each [B].

    Args:
        image, target: [B, 3, H, W] in [-1, 1].
        measures: with what.
        truth: [B, 1, H, W], exactly where the target is out of domain; splits PSNR into inside and outside.
        mask: [B, 1, h, w], what a method predicts of it.
    """
    full = image, target
    if measures.size is not None and measures.size < image.shape[-1]:
        image, target = (area_pool(x, measures.size) for x in full)
    values = {"mse": metrics.mse(image, target), "psnr": metrics.psnr(image, target)}
    with contextlib.suppress(MissingPackageError):
        values |= {"ssim": metrics.ssim(image, target), "ms_ssim": metrics.ms_ssim(image, target)}
    if measures.perceptual is not None:
        values["lpips"] = measures.perceptual(image, target)
    if measures.embed is not None:
        values["id"] = (measures.embed(full[0]) * measures.embed(full[1])).sum(dim=1)
    if truth is not None:
        outside = (_mask_like(truth, image) >= 0.5).to(image.dtype)
        values["psnr_in_domain"] = metrics.psnr(image, target, 1 - outside)
        values["psnr_out_of_domain"] = metrics.psnr(image, target, outside)
    if mask is not None:
        values["aoa"] = metrics.out_of_domain_area(mask)
        if truth is not None:
            values["mask_iou"] = metrics.mask_iou(_mask_like(mask, truth), truth)
    return values


def _mask_like(mask: Tensor, image: Tensor) -> Tensor:
    return match_mask(mask, (image.shape[2], image.shape[3]), len(image))


@torch.no_grad()
def edit_response(
    source: Tensor,
    plain: Tensor,
    edited: Tensor,
    measures: Measures,
    smiles: Sequence[Tensor | None] = (),
    *,
    truth: Tensor | None = None,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """What an edit does to each image, besides being there.

    Args:
        source, plain, edited: [B, 3, R, R] in [-1, 1]: photographs, their drawn inversions, the edited ones.
        measures: `landmarks` gives the mouth, `embed` the identity, `perceptual` the nearness to a real smile.
        smiles: for each image [1, 3, R, R] of the same person smiling, or None; empty is None for all.
        truth: [B, 1, R, R], exactly where the photographs are out of domain.
        mask: [B, 1, h, w], what the method predicts of it.

    Returns:
        Each [B], as far as it can be measured: "mouth_wider_percent"; "id_to_inversion" and "id_to_source" of the
        edited image; "nearer_to_real_smile", 1 where the edited image is perceptually nearer to the real smile than
        the unedited one is, 0 where not, NaN where there is none; "psnr_out_of_domain" and "psnr_in_mask", how well the
        edited image keeps the photograph where it is out of domain, by the truth and by the method's own mask.
    """
    values: dict[str, Tensor] = {}
    for key, region in (("psnr_out_of_domain", truth), ("psnr_in_mask", mask)):
        if region is not None:
            values[key] = metrics.psnr(edited, source, (_mask_like(region, edited) >= 0.5).to(edited.dtype))
    if measures.landmarks is not None:
        before, after = (mouth_widths(measures.landmarks(x)) for x in (plain, edited))
        values["mouth_wider_percent"] = torch.from_numpy(100 * (after / before - 1))
    if measures.embed is not None:
        photograph, inverted, changed = (measures.embed(x) for x in (source, plain, edited))
        values["id_to_inversion"] = (inverted * changed).sum(dim=1)
        values["id_to_source"] = (photograph * changed).sum(dim=1)
    if measures.perceptual is not None and any(smile is not None for smile in smiles):
        nearer = torch.full((len(source),), math.nan)
        for row, smile in enumerate(smiles):
            if smile is not None:
                pair, real = torch.stack((edited[row], plain[row])), smile.to(edited).expand(2, -1, -1, -1)
                to_edited, to_plain = _distances(measures, pair, real, 2, pair.device).tolist()
                nearer[row] = float(to_edited < to_plain)
        values["nearer_to_real_smile"] = nearer
    return values


def _edit_row(edit: EditTest, responses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": edit.name, "strength": edit.strength, **_means(responses)}
    if widths := _finite(responses.get("mouth_wider_percent", ())):
        row["wider_in"] = sum(width > 0 for width in widths) / len(widths)
    if smiling := _finite(responses.get("nearer_to_real_smile", ())):
        row["smiling_photographs"] = len(smiling)
    if edit.other_people is not None:
        row["id_other_people"] = edit.other_people
    row["per_image"] = {key: [_rounded(value) for value in per_image] for key, per_image in responses.items()}
    return row


_Effects = dict[tuple[str, float], dict[str, list[float]]]  # (direction, strength) -> measure -> images


def attribute_response(
    method: Method,
    photographs: Photographs,
    context: Context,
    measures: Measures,
    directions: Mapping[str, Direction],
    alphas: Sequence[float] = ALPHAS,
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """How far directions move what they are named for, and who the person is afterwards, on a method's inversions.

    Args:
        method, photographs, context, batch, progress: as in `evaluate_method`.
        measures: `landmarks` gives smile, mouth and yaw, `embed` the identity; without them brightness is left.
        directions: by name; the name says which attribute is meant (`attribute_of_direction`).
        alphas: strengths, in each direction's own unit.

    Returns:
        A row for each direction and strength: "direction", "alpha", "images"; "attribute", what is meant, and "change",
        its mean, where one of `ATTRIBUTES` measures it; "changes", means of all of them, each against the method's own
        unedited picture and in its `change_unit`; "id_to_source", mean similarity of the edited picture to the
        photograph, and "id_to_inversion", to the unedited picture; "intervals" (95 % by bootstrap) and "per_image".
        Photographs on which the method fails are left out.

    Raises:
        InvalidInputError: no direction or strength, or one that is not finite.
        GeneratorMismatchError: a direction of another generator.
        GANInversionError: the method failed on every photograph (the first one's error).
    """
    test = AttributeTest(directions, alphas)
    effects: _Effects = {}
    failed: list[tuple[str, GANInversionError]] = []
    for part in torch.arange(len(photographs)).split(batch):
        for _, target, result, _ in _run(method, photographs, part.tolist(), context, failed):
            with torch.no_grad():
                drawn = render(result.inversion).clamp(-1, 1)
            _add_effects(effects, target, drawn, result, measures, test)
        if progress is not None:
            progress(method.name, len(part))
    if not effects:
        raise failed[0][1]
    return _effect_rows(effects, context.seed)


@torch.no_grad()
def _add_effects(
    effects: _Effects, source: Tensor, plain: Tensor, result: Result, measures: Measures, test: AttributeTest
) -> None:
    """What the directions do to a batch, added to `effects`; source and plain [B, 3, R, R] in [-1, 1]."""
    before = attributes_of(plain, measures.landmarks)
    known = None if measures.embed is None else (measures.embed(source), measures.embed(plain))
    for name, direction in test.directions.items():
        for alpha in test.alphas:
            edited = render(result.inversion, Edit.of(direction, alpha)).clamp(-1, 1)
            after = attributes_of(edited, measures.landmarks)
            values = {key: ATTRIBUTES[key].change(before[key], after[key]) for key in before}
            if measures.embed is not None and known is not None:
                embedded = measures.embed(edited)
                values["id_to_source"] = (known[0] * embedded).sum(dim=1)
                values["id_to_inversion"] = (known[1] * embedded).sum(dim=1)
            _extend(effects.setdefault((name, alpha), {}), values)


def _effect_rows(effects: _Effects, seed: int) -> list[dict[str, Any]]:
    rows = []
    for (name, alpha), values in effects.items():
        means = _means(values)
        meant = attribute_of_direction(name)
        row: dict[str, Any] = {"direction": name, "alpha": alpha, "images": max(map(len, values.values()))}
        if meant is not None and meant in means:
            row |= {"attribute": meant, "change": means[meant]}
        row["changes"] = {key: means[key] for key in ATTRIBUTES if key in means}
        row |= {key: mean for key, mean in means.items() if key not in ATTRIBUTES}
        row["intervals"] = {key: interval for key, v in values.items() if (interval := _interval(v, seed))}
        row["per_image"] = {key: [_rounded(v) for v in per_image] for key, per_image in values.items()}
        rows.append(row)
    return rows


@torch.no_grad()
def _distances(measures: Measures, a: Tensor, b: Tensor, batch: int, device: torch.device | str) -> Tensor:
    distance = measures.perceptual or multiscale_distance
    size = measures.size if measures.size is not None and measures.size < a.shape[-1] else None
    pairs = zip(a.split(batch), b.split(batch), strict=True)
    moved = ([area_pool(x.to(device), size) if size else x.to(device) for x in pair] for pair in pairs)
    return torch.cat([distance(x, y).cpu() for x, y in moved])


@torch.no_grad()
def _in_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch: int, device: torch.device | str) -> Tensor:
    return torch.cat([function(part.to(device)).cpu() for part in x.split(batch)])


def aligned_landmarks(net: LandmarkNet, images: Tensor, *, least_score: float | None = None) -> np.ndarray:
    """68 points [B, 68, 2] in pixels of FFHQ crops [B, 3, S, S] in [-1, 1], by the package's own landmark net.

    With `least_score`, images in which the net's face score (0..1) is lower, or whose points lead out of the picture,
    give rows of NaN.
    """
    return np.stack([_aligned_points(net, image.clamp(-1, 1), least_score) for image in images.split(1)])


def _aligned_points(net: LandmarkNet, image: Tensor, least_score: float | None) -> np.ndarray:
    region = _aligned_region(image.shape[2])
    if least_score is None:
        return predict_landmarks(net, image, region)[0]
    try:
        points, score = predict_landmarks(net, image, region, least_score=least_score)
    except InvalidInputError:
        score = 0.0
    return points if score >= least_score else np.full((POINT_COUNT, 2), math.nan)


def _aligned_region(size: int) -> CropTransform:
    guess = np.zeros((68, 2))
    guess[36:42], guess[42:48], guess[48], guess[54] = _RIGHT_EYE, _LEFT_EYE, _RIGHT_CORNER, _LEFT_CORNER
    return region_of_face(guess * size, (size, size))


def landmark_agreement(points: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far two nets' 68 points [B, 68, 2] lie apart on average, in eye distances of `other`: all, and mouth corners."""
    apart = np.hypot(*(points - other).transpose(2, 0, 1)) / eye_distances(other)[:, None]
    return {"all_points": float(apart.mean()), "mouth_corners": float(apart[:, list(_MOUTH_CORNERS)].mean())}


def similarity_between_people(embed: Embed, images: Tensor, *, batch: int = 8) -> float | None:
    """Mean similarity of the embeddings of different images [N, 3, S, S], all pairs; None for fewer than two."""
    if len(images) < 2:
        return None
    embedded = _in_batches(embed, images, batch, images.device)
    total = embedded.sum(dim=0).square().sum() - embedded.square().sum()
    return float(total / (len(images) * (len(images) - 1)))


@dataclass(frozen=True)
class SamplesReport:
    """A generator's own faces: figures, and pictures for a sheet."""

    values: dict[str, Any]
    samples: dict[str, Tensor]  # "truncation 1" and so on -> [N, 3, R, R]
    nearest: dict[str, Tensor]  # of the same keys: the nearest training photograph of each; empty without photographs


def evaluate_samples(
    generator: Generator,
    count: int,
    measures: Measures = Measures(),
    *,
    truncations: Sequence[float] = (1.0, 0.7),
    seed: int = 0,
    training: Tensor | None = None,
    morphs: Tensor | None = None,
    batch: int = 8,
) -> SamplesReport:
    """Draws random faces, and asks whether they are as varied as the domain and not copies of the training pictures.

    Args:
        generator: what is measured.
        count: faces for each truncation, with the seeds seed, seed + 1 and so on.
        measures: `features` gives the Frechet distances; `embed`, or else `perceptual`, or else `multiscale_distance`,
            gives nearness.
        truncations: see `latents.sample`.
        seed: the first one.
        training: photographs [M, 3, R, R] the generator learned from; their mirror images count too.
        morphs: [2 * K, 3, R, R] fresh pictures of the domain, none of which trained anything. The samples are compared
            with the first half; so is the second half, for a measure of what a perfect generator would get.
        batch: pictures at a time.

    Returns:
        values: "count"; "frechet" and "nearest_distance" by "truncation 1", ... and "fresh morphs", as far as the
        pictures for them are there. "nearest_distance" holds "min" and "median" over the faces.

    Raises:
        InvalidInputError: no face asked for, or pictures of another size.
    """
    if count < 1:
        raise InvalidInputError(f"{count} samples: expected one or more.")
    size = generator.resolution
    for pictures in (training, morphs):
        if pictures is not None and pictures.shape[-1] != size:
            raise InvalidInputError(
                f"Pictures of {pictures.shape[-1]} px beside samples of {size} px: expected the same."
            )
    device = generator.w_avg.device
    seeds = range(seed, seed + count)
    samples = {
        f"truncation {psi:g}": torch.cat(
            [_draw(generator, list(seeds)[start : start + batch], psi) for start in range(0, count, batch)]
        )
        for psi in truncations
    }
    values: dict[str, Any] = {"count": count}
    half = 0 if morphs is None else len(morphs) // 2
    compared = dict(samples)
    if morphs is not None and half:
        compared["fresh morphs"] = morphs[half : 2 * half]
    if measures.features is not None and morphs is not None and half > 1 and count > 1:
        real = _in_batches(measures.features, morphs[:half], batch, device)
        values["frechet"] = {
            name: float(metrics.frechet_distance(_in_batches(measures.features, pictures, batch, device), real))
            for name, pictures in compared.items()
        }
    nearest = {}
    if training is not None:
        bank = torch.cat((training, training.flip(-1)))
        values["nearest_distance"] = {}
        for name, pictures in compared.items():
            distances, at = nearest_pictures(pictures, bank, measures, batch=batch, device=device)
            values["nearest_distance"][name] = {"min": float(distances.min()), "median": float(distances.median())}
            nearest[name] = bank[at]
    return SamplesReport(values, samples, nearest)


@torch.no_grad()
def _draw(generator: Generator, seeds: list[int], psi: float) -> Tensor:
    return generator.synthesis(sample(generator, seeds, psi)).clamp(-1, 1).cpu()


def nearest_pictures(
    images: Tensor, bank: Tensor, measures: Measures, *, batch: int = 8, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(distance [N], index [N]) of the picture of `bank` [M, 3, S, S] nearest to each of `images` [N, 3, S, S].

    The distance is 1 - similarity of the embeddings, or else the perceptual or the multi-scale distance.
    """
    if measures.embed is not None:
        a, b = (_in_batches(measures.embed, x, batch, device) for x in (images, bank))
        return (1 - a @ b.T).min(dim=1)
    rows = [_distances(measures, image.expand_as(bank), bank, batch, device) for image in images.split(1)]
    return torch.stack(rows).min(dim=1)


def nearness_name(measures: Measures) -> str:
    """Which distance `nearest_pictures` uses: "id", "lpips" or "multiscale"."""
    return "id" if measures.embed is not None else "lpips" if measures.perceptual is not None else "multiscale"


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of the finite values: a measure that has no meaning for one image must not hide the others."""
    kept = {key: _finite(per_image) for key, per_image in values.items()}
    return {key: sum(finite) / len(finite) for key, finite in kept.items() if finite}


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    kept = _finite(values)
    if len(kept) < 2:
        return None
    interval = metrics.bootstrap_interval(kept, seed=seed)
    return [interval.low, interval.high]


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
