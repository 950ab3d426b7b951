"""DHR: keeps what a generator can draw as tuned weights, and what it cannot as features.

Paper: Cao et al., "What Decreases Editing Capability? Domain-Specific Hybrid Refinement for Improved GAN Inversion"
(WACV 2024). Reference implementation: caopulan/GANInverter `inference/dhr_infer.py`, `configs/dhr/dhr.yaml`.

1. `segment`: which parts are in domain. A coarse inversion in W is compared with the photograph layer by layer; the
   difference is averaged over superpixels; a superpixel is in domain where it stays below a threshold. A face parser, where
   there is one, takes background, cloth, hat and jewellery out beforehand and chooses the threshold of each part.
2. `refine`: the out-of-domain part is learned by the features that leave one block, the in-domain part by the weights of
   the generator. Both losses come from one picture, their gradients are kept apart. Both results are modulations
   (`FeatureOverride`, `WeightOffset`); an edit moves the codes in front of them.

Deviations, each of which is a setting where it has another value upstream (`DhrConfig.official` sets them all back):
superpixels are cut from RGB, not from BGR in the place of RGB; the best coarse code is used, not the last one.
In the coarse inversion, without settings: the picture is not clamped before it is compared and is shrunk by areas; the
noise penalty is the paper's, of unit deviation at every level; the first rate is not 0. docs/parity.md has the effect.
Without settings: layer maps are brought to the picture's size, where upstream shrinks the superpixels to each map's, so
that none comes out empty; a part that is empty has no loss, where upstream divides by zero; the best step is kept, not
the last one; generators below 1024 px keep features at no less than 64 px. Narrow generators get a higher weight rate
(`scale_rate`). The pixel loss divides a sum over three channels by a mask of one, as upstream: a weight of 3 on the usual
mean. Upstream parses with FaRL; any parser that names its classes will do. Its thresholds belong to LPIPS on VGG16;
`CALIBRATIONS` brings other distances to them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .blending import MERGE_MODES, match_mask, merge_masks
from .errors import InvalidInputError
from .generator import Generator
from .inversion import FeatureOverride, Inversion, PixelBlend, RenderContext, WeightOffset, render
from .losses import LayeredDistance
from .projection import ProjectionConfig, project_with_noise, w_statistics
from .refinement import (
    Best,
    Progress,
    Refined,
    Refinement,
    Steps,
    add_gradients,
    after,
    check_settings,
    compact,
    rate_scale,
    refine_each,
    to_float16,
    weight_leaves,
)
from .superpixels import mean_per_segment, superpixels

if TYPE_CHECKING:
    from .parsing import FaceParser, Parsing

logger = logging.getLogger(__name__)

_COARSE_SIZE = 256  # pixels at which the coarse inversion is compared
_FEATURES_AT = 8  # the overridden features are the picture's side divided by this
_LEAST_FEATURES = 64  # pixels: coarser ones could not hold the outline of an object
OUT_OF_DOMAIN_PARTS = ("background", "cloth", "hat", "earring", "necklace")


@dataclass(frozen=True)
class Calibration:
    """What a distance needs to segment like LPIPS on VGG16, which the thresholds belong to."""

    coarse_pixel_weight: float = 0.0  # on the mean absolute error, in the coarse inversion
    coarse_mean_weight: float = 0.0  # pull of the coarse code towards the mean one
    score_pixel_weight: float = 0.0  # of the absolute error in the score
    score_scale: float = 1.0  # the score is divided by this


OFFICIAL = Calibration()
# The bundled trunk sees shapes better than flat colours, and a narrow generator can follow a mask or a hood: found on
# occluded photographs of training people (docs/refinement.md). Scaled to miss little rather than for the best overlap.
CALIBRATIONS: Mapping[str, Calibration] = {"portraits-perceptual": Calibration(1.0, 0.3, 2.0, 1.13)}


@dataclass(frozen=True)
class DhrConfig:
    """Settings. Rates are Adam's; resolutions are pixels."""

    coarse_steps: int = 40
    coarse_learning_rate: float = 0.1  # in units of w
    coarse_exploration: float = 0.05  # standard deviation of noise on w, in units of the norm of its spread
    segments: int = 200  # superpixels
    compactness: float = 30.0
    sigma: float = 1.0
    bgr_superpixels: bool = False  # official: True
    best_coarse: bool = True  # official: False, the last step
    threshold: float = 0.6  # of the score below which a superpixel is in domain
    part_thresholds: Mapping[str, float] = field(
        default_factory=lambda: {
            "skin": 0.7,
            **dict.fromkeys(
                ("left-ear", "right-ear", "left-brow", "right-brow", "left-eye", "right-eye", "nose", "mouth",
                 "lower-lip", "upper-lip"), 0.8,
            ),
        }
    )  # fmt: skip
    calibration: Calibration | None = None  # None: that of the distance in `CALIBRATIONS`, else the official one
    feature_resolution: int | None = None  # block whose features are overridden; None: see `feature_block`
    steps: int = 100
    weight_steps: int = 50  # of these, the first ones also tune the weights
    feature_learning_rate: float = 9e-2
    weight_learning_rate: float = 1.5e-3
    scale_rate: bool = True  # the latter by `rate_scale`; makes no difference with 512 channels
    perceptual_weight: float = 1.0
    pixel_weight: float = 3.0
    keep_pixels: bool = False  # also paste the photograph's own pixels where it is out of domain
    seconds: float | None = None  # for each image, of the refinement
    preview_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            coarse_steps=(self.coarse_steps, 1), steps=(self.steps, 1), weight_steps=(self.weight_steps, 0),
            preview_every=(self.preview_every, 1), coarse_learning_rate=(self.coarse_learning_rate, 0),
            feature_learning_rate=(self.feature_learning_rate, 0), threshold=(self.threshold, 0),
            weight_learning_rate=(self.weight_learning_rate, 0), perceptual_weight=(self.perceptual_weight, 0),
            pixel_weight=(self.pixel_weight, 0), seconds=(self.seconds, 0), segments=(self.segments, 1),
            compactness=(self.compactness, 1e-6), sigma=(self.sigma, 0), coarse_exploration=(self.coarse_exploration, 0),
            **{f"part_thresholds[{name!r}]": (value, 0) for name, value in self.part_thresholds.items()},
        )  # fmt: skip
        if not self.coarse_learning_rate > 0:
            raise InvalidInputError(f"coarse_learning_rate {self.coarse_learning_rate}: expected more than 0.")

    @staticmethod
    def official() -> DhrConfig:
        """With the habits of the official code that are slips rather than choices."""
        return DhrConfig(bgr_superpixels=True, best_coarse=False, calibration=OFFICIAL, scale_rate=False)

    @staticmethod
    def paper(tau: float = 0.7) -> DhrConfig:
        """One threshold for all parts, as the paper has it."""
        return DhrConfig(threshold=tau, part_thresholds={})


@dataclass(frozen=True)
class Segmentation:
    """Where a generator can draw a photograph, and what says so."""

    out_of_domain: Tensor  # [B, 1, R, R], 0 or 1
    score: Tensor  # [B, 1, R, R], mean difference over each superpixel, in units of LPIPS on VGG16
    superpixels: Tensor  # [B, R, R], labels
    coarse: Tensor  # [B, 3, R, R], the coarse inversion
    parsing: Parsing | None = None  # parts of the face; None: decided by the superpixels alone


def feature_block(generator: Generator) -> int:
    """Resolution of the block whose features DHR overrides: 128 of 1024, 64 of the smaller ones, half of a 64 px one."""
    return min(max(generator.resolution // _FEATURES_AT, _LEAST_FEATURES), generator.resolution // 2)


def segment(
    image: Tensor,
    generator: Generator,
    distance: LayeredDistance,
    config: DhrConfig = DhrConfig(),
    *,
    parser: FaceParser | None = None,
    progress: Progress | None = None,
) -> Segmentation:
    """Domain-specific segmentation (paper, section 3.2).

    Args:
        image: [B, 3, R, R] in [-1, 1], aligned, at the generator's size.
        generator: stays unchanged.
        distance: network features to compare with; its `name` says how it is calibrated (`CALIBRATIONS`).
        config: settings.
        parser: finds the parts of the face; None leaves the decision to the superpixels.
        progress: called after each coarse step.

    Returns:
        The segmentation; nothing of it depends on an inversion made before.

    Raises:
        InvalidInputError: wrong size.
        NotFiniteError: an image holds NaN, or the coarse inversion diverged.
        MissingPackageError: scikit-image is not installed.
    """
    calibration = config.calibration or CALIBRATIONS.get(distance.name, OFFICIAL)
    coarse = _coarse_inversion(image, generator, distance, config, calibration, progress)
    side = (image.shape[2], image.shape[3])
    full = distance.at_size(None)
    with torch.no_grad():
        layers = full.maps(full.features(coarse), full.features(image))
        # Nearest: a superpixel's mean is then the mean of the map under it, weighted by how much of each cell it covers.
        difference = torch.stack([F.interpolate(layer, size=side) for layer in layers]).sum(dim=0)
        cut_from = image.flip(1) if config.bgr_superpixels else image
        labels = superpixels(cut_from, config.segments, config.compactness, config.sigma)
        difference = difference + calibration.score_pixel_weight * (coarse - image).abs().mean(dim=1, keepdim=True)
        score = mean_per_segment(difference, labels) / calibration.score_scale
        parsing = None if parser is None else _parse(parser, image)
        inside = score < _thresholds(score, labels, parsing, config)
        if parsing is not None:
            inside &= parsing.of(*OUT_OF_DOMAIN_PARTS, ignore_absent=True) < 0.5
    return Segmentation((~inside).to(image.dtype), score, labels, coarse, parsing)


def _coarse_inversion(
    image: Tensor,
    generator: Generator,
    distance: LayeredDistance,
    config: DhrConfig,
    calibration: Calibration,
    progress: Progress | None,
) -> Tensor:
    small = distance.at_size(_COARSE_SIZE)

    def likeness(drawn: Tensor, target: Tensor) -> Tensor:
        perceptual = small(drawn, target)
        if not calibration.coarse_pixel_weight:
            return perceptual
        return perceptual + calibration.coarse_pixel_weight * (drawn - target).abs().mean(dim=(1, 2, 3))

    spread = float(w_statistics(generator, seed=config.seed)[1])
    projection = ProjectionConfig(
        space="w",
        steps=config.coarse_steps,
        learning_rate=config.coarse_learning_rate / spread,
        exploration=config.coarse_exploration * math.sqrt(generator.config.w_dim),
        pixel_weight=0.0,
        mean_weight=calibration.coarse_mean_weight,
        spread_weight=0.0,
        optimise_noise=True,
        keep_best=config.best_coarse,
        preview_every=config.preview_every,
        seed=config.seed,
    )
    found, noise = project_with_noise(image, generator, projection, distance=likeness, progress=progress)
    with torch.no_grad():
        return generator.synthesis(found.w_plus, noise=noise)


def _parse(parser: FaceParser, image: Tensor) -> Parsing:
    from .parsing import parse

    return parse(parser, image)


def _thresholds(score: Tensor, labels: Tensor, parsing: Parsing | None, config: DhrConfig) -> Tensor:
    """What each superpixel's score must stay below, as a map: that of the part which most of it belongs to."""
    if parsing is None or not config.part_thresholds:
        return torch.full_like(score, config.threshold)
    names = parsing.classes
    part = parsing.dominant()
    votes = F.one_hot(part, len(names)).movedim(-1, 1).to(score.dtype)
    most = mean_per_segment(votes, labels).argmax(dim=1, keepdim=True)
    values = torch.tensor([config.part_thresholds.get(name, config.threshold) for name in names]).to(score)
    return values[most]


def refine(
    inversion: Inversion,
    distance: LayeredDistance,
    config: DhrConfig = DhrConfig(),
    *,
    out_of_domain: Tensor | None = None,
    merge: str = "replace",
    segment_distance: LayeredDistance | None = None,
    parser: FaceParser | None = None,
    progress: Progress | None = None,
) -> Refinement:
    """Segmentation, then hybrid modulation refinement (paper, section 3.3).

    Args:
        inversion: an encoder's or any other one; its w_plus stays. Modulations it has already stay in force.
        distance: network features to refine with, at the generator's size (upstream: LPIPS on AlexNet).
        config: settings.
        out_of_domain: a mask [B or 1, 1, H, W], [B, H, W] or [H, W] in 0..1, 1 where the generator cannot draw, painted
            or of any other method; None: that of `segment` alone. Brought to the generator's size, split at 0.5 for the
            losses.
        merge: what it does to the segmentation: "replace" (nothing is segmented then), "union", "intersect", "subtract".
        segment_distance: network features to segment with (upstream: LPIPS on VGG16); None: `distance`.
        parser: see `segment`.
        progress: called after every step; `StopOptimisation` ends one image with the best found so far, what else it
            raises ends all.

    Returns:
        The inversion with a weight offset and a feature override more, the masks used; what failed is named.

    Raises:
        InvalidInputError, NotFiniteError: no image of the batch could be refined; or settings or a mask that do not fit.
    """
    generator, count = inversion.generator, len(inversion)
    side = (generator.resolution, generator.resolution)
    given = None if out_of_domain is None else match_mask(out_of_domain, side, count).to(inversion.image)
    if merge not in MERGE_MODES:
        raise InvalidInputError(f"merge {merge!r}: expected one of {', '.join(MERGE_MODES)}.")
    resolution = config.feature_resolution or feature_block(generator)
    known = generator.config.resolutions[:-1]
    if resolution not in known:
        raise InvalidInputError(
            f"feature_resolution {resolution}: expected a block before the last one, one of {', '.join(map(str, known))}."
        )
    coarse_steps = 0 if given is not None and merge == "replace" else config.coarse_steps

    def one(single: Inversion, index: int, report: Progress | None) -> Refined:
        mask = None if given is None else given[index : index + 1].to(single.image.device, copy=True)
        if coarse_steps:
            own = segment(
                single.image, single.generator, segment_distance or distance, config, parser=parser, progress=report
            ).out_of_domain
            mask = own if mask is None else merge_masks(own, mask, merge)
        assert mask is not None
        refined, made = _refine_one(
            single, mask, distance.at_size(None), resolution, config, after(report, coarse_steps)
        )
        return Refined(refined, made, mask)

    return refine_each(inversion, one, coarse_steps + config.steps, progress)


def _refine_one(
    inversion: Inversion,
    mask: Tensor,
    distance: LayeredDistance,
    resolution: int,
    config: DhrConfig,
    progress: Progress | None,
) -> tuple[Inversion, int]:
    target = inversion.image
    outside = (mask >= 0.5).to(target.dtype)
    in_domain = F.adaptive_avg_pool2d(1 - outside, resolution)  # soft along the outline
    with torch.no_grad():
        wanted = distance.features(target)
        own = RenderContext(inversion, None, "const", torch.float32).unedited_features(f"block{resolution}")
    features = own.detach().clone().requires_grad_(True)
    offsets = weight_leaves(inversion.generator)
    weights = list(offsets.values())
    parts = [part for part, region in (("weights", 1 - outside), ("features", outside)) if bool(region.any())]
    feature_adam = torch.optim.Adam([features], lr=config.feature_learning_rate)
    rate = config.weight_learning_rate * (rate_scale(inversion.generator) if config.scale_rate else 1.0)
    weight_adam = torch.optim.Adam(weights, lr=rate)

    def trial() -> Inversion:
        return inversion.with_modulation(WeightOffset(offsets)).with_modulation(
            FeatureOverride(resolution, features, in_domain)
        )

    def losses_of(drawn: Tensor) -> dict[str, Tensor]:
        maps = distance.maps(distance.features(drawn), wanted)
        error = (drawn - target).square().mean(dim=1, keepdim=True)
        return {
            "weights": _region_loss(maps, error, in_domain, 1 - outside, config),
            "features": _region_loss(maps, error, 1 - in_domain, outside, config),
        }

    def total(losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([losses[part].detach() for part in parts]).sum()

    best = Best({"features": features, **offsets})
    count = config.steps if "features" in parts else min(config.steps, config.weight_steps)  # then nothing moves
    steps = Steps(count, progress, seconds=config.seconds, preview_every=config.preview_every)
    for step in steps:
        tune = "weights" in parts and step < config.weight_steps
        if not tune and weights[0].requires_grad:
            for weight in weights:
                weight.requires_grad_(False)
        drawn = render(trial())
        losses = losses_of(drawn)
        best.offer(total(losses))
        # Each part's gradient goes to its own variables only.
        if "features" in parts:
            (features.grad,) = torch.autograd.grad(losses["features"], features, retain_graph=tune)
            feature_adam.step()
        if tune:
            weight_adam.zero_grad(set_to_none=True)
            add_gradients(losses["weights"], offsets)
            weight_adam.step()
        steps.done(drawn)
    with torch.no_grad():
        best.offer(total(losses_of(render(trial()))))
    kept = best.values.pop("features")
    refined = inversion.with_modulation(compact(best.values))
    if "features" in parts:
        refined = refined.with_modulation(FeatureOverride(resolution, to_float16(kept, "features"), in_domain))
    if config.keep_pixels:
        refined = refined.with_modulation(PixelBlend(outside))
    info = {**inversion.info, "refined by": "DHR", "refinement distance": distance.name}
    return dataclasses.replace(refined, info=info), steps.made


def _region_loss(maps: Sequence[Tensor], error: Tensor, soft: Tensor, hard: Tensor, config: DhrConfig) -> Tensor:
    """Perceptual and pixel loss over one region: `soft` at the features' size, `hard` at the picture's."""
    perceptual = error.new_zeros([])
    for layer in maps:
        region = F.interpolate(soft, size=layer.shape[2:])
        perceptual = perceptual + (layer * region).sum() / region.sum().clamp(min=1e-6)
    pixels = (error * hard).sum() / hard.sum().clamp(min=1)
    return config.perceptual_weight * perceptual + config.pixel_weight * pixels
