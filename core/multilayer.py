"""SAM's multilayer inversion: w_plus and feature offsets at several layers, optimised together under a latent map.

Paper: Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (SAM, CVPR 2022).
Reference implementation: adobe-research/sam_inversion `sam_inv_optimization.py`, `single_latent_inv.py`, `loss_utils.py`;
losses, codes and offsets of the first steps agree (docs/parity.md).
Followed where code and paper differ: the prior's matrix is the inverse of the covariance, its mean is the leaky ReLU of
the mean w (not the mean of the leaky ReLU), distances of rows are not squared, offsets are penalised by their mean
square, masks are resized with Lanczos.
Deviations: stored noise unless noise="random" (the original draws fresh noise in each step and in the result, which the
code then has to survive); the best step is returned unless keep_best=False; batches, whose images do not influence one
another; spaces that the latent map gives no pixel are left out, which changes nothing; the picture is resized in floating
point, and compared at its own size below 256 px; the distance is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import GeneratorMismatchError, InvalidInputError
from .generator import FeatureHook, Generator, SynthesisHooks
from .imaging import resize_antialiased
from .inversion import FeatureOffset, Inversion, Modulation, render
from .invertibility import RESAMPLING, TAU, W_PLUS, LatentMap, feature_side, latent_spaces
from .losses import Distance, LayeredDistance, multiscale_distance, require_finite
from .refinement import Progress, Steps, StopOptimisation, check_settings

DistanceMap = Callable[[Tensor, Tensor], Tensor]  # two [B, 3, H, W] in [-1, 1] -> error of each pixel [B, 1, H, W]

_INVERSE_SLOPE = 5.0  # undoes the leaky ReLU of 0.2 at the end of the mapping network, up to its gain
_RIDGE = 1e-8  # added to the covariance's diagonal


@dataclass(frozen=True)
class MultilayerConfig:
    """Settings of a multilayer inversion; the defaults are the published ones, noise and best step apart."""

    steps: int = 1001
    learning_rate: float = 0.05  # of codes and offsets, in their own units
    warmup: float = 0.05  # fraction of steps, linear
    cooldown: float = 0.25  # fraction of steps, cosine
    pixel_weight: float = 1.0  # on mean squared error
    distance_weight: float = 1.0  # LPIPS-VGG in the original; near 0.2 for the bundled perceptual trunk
    feature_weight: float = 5.0  # on the mean square of each space's offset
    prior_weight: float = 1e-8  # on the Mahalanobis distance of all rows
    delta_weight: float = 1e-3  # on the distances of the rows from the first one
    size: int = 256  # side at which pictures are compared; smaller ones stay as they are
    noise: str = "const"  # "const": stored maps; "random": fresh in each step, as in the original
    resample: str = "lanczos"  # of the masks: "lanczos" as in the original's code, "bilinear" as in the paper
    keep_best: bool = True  # False: the values after the last step, as in the original
    preview_every: int = 10
    samples: int = 5000  # of w, for the prior
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            steps=(self.steps, 1),
            preview_every=(self.preview_every, 1),
            size=(self.size, 16),
            samples=(self.samples, 2),
            learning_rate=(self.learning_rate, 0),
            warmup=(self.warmup, 0),
            cooldown=(self.cooldown, 0),
            **{
                name: (getattr(self, name), 0)
                for name in ("pixel_weight", "distance_weight", "feature_weight", "prior_weight", "delta_weight")
            },
        )
        if self.noise not in ("const", "random") or self.resample not in RESAMPLING:
            raise InvalidInputError(
                f"Multilayer inversion with noise {self.noise!r} and masks resized by {self.resample!r}: expected "
                f"'const' or 'random', and one of {', '.join(RESAMPLING)}."
            )


# By the name of a distance: what differs from the published settings where it takes the place of LPIPS. The bundled
# trunk comes with the bundled generator, whose codes lie near a space of few dimensions: the published prior would
# not let them leave it.
_SUITED: dict[str, dict[str, float]] = {
    "portraits-perceptual": {
        "learning_rate": 0.1, "distance_weight": 0.2, "feature_weight": 0.2, "prior_weight": 1e-10, "delta_weight": 1e-4,
    }
}  # fmt: skip
_MEASURED_TAUS = {"portraits-perceptual": 0.55}  # found on drawn objects


def suited_config(distance_name: str, **changes: Any) -> MultilayerConfig:
    """The published settings, or those found for a distance that stands in for LPIPS, with `changes`."""
    return MultilayerConfig(**{**_SUITED.get(distance_name, {}), **changes})


def measuring_config(distance_name: str, **changes: Any) -> MultilayerConfig:
    """Settings of `measure_errors`: the published ones but for the distance's weight, as thresholds were found with them."""
    return MultilayerConfig(**{"distance_weight": suited_config(distance_name).distance_weight, **changes})


def measured_tau(distance_name: str) -> float:
    """Threshold for errors measured with a distance: SAM's for LPIPS."""
    return _MEASURED_TAUS.get(distance_name, TAU)


@dataclass(frozen=True)
class GaussianPrior:
    """Gaussian of the codes that the mapping network makes, before its last activation; see `code_prior`."""

    mean_w: Tensor  # [w_dim]
    precision: Tensor  # [w_dim, w_dim], float64: inverse of the covariance

    def __call__(self, w_plus: Tensor) -> Tensor:
        """Squared Mahalanobis distance of [B, num_ws, w_dim], summed over rows, [B], float64."""
        away = _before_activation(w_plus.double()) - _before_activation(self.mean_w)
        return ((away @ self.precision) * away).sum(dim=(1, 2))


@torch.no_grad()
def code_prior(generator: Generator, samples: int = 5000, seed: int = 0) -> GaussianPrior:
    """The prior of a generator from seeded samples."""
    w = generator.sample_w(samples, seed)
    covariance = torch.cov(_before_activation(w).double().t())
    ridge = _RIDGE * torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    return GaussianPrior(w.double().mean(dim=0).float(), torch.linalg.inv(covariance + ridge))


def row_distances(w_plus: Tensor) -> Tensor:
    """Distances of the rows of [B, num_ws, w_dim] from the first row, summed, [B]."""
    return (w_plus[:, 1:] - w_plus[:, :1]).norm(dim=2).sum(dim=1)


def invert_multilayer(
    image: Tensor,
    generator: Generator,
    latent_map: LatentMap,
    config: MultilayerConfig = MultilayerConfig(),
    *,
    start: Tensor | None = None,
    distance: Distance = multiscale_distance,
    progress: Progress | None = None,
) -> Inversion:
    """Inverts each region of a photograph in its own latent space.

    Args:
        image: [B, 3, R, R] in [-1, 1], aligned, R the generator's resolution.
        generator: stays unchanged.
        latent_map: which space each region is inverted in, of any size; one map serves a whole batch. Where it is not
            square, only that part of the picture counts (a car's 4:3 frame).
        config: settings.
        start: [B, num_ws, w_dim] or [1, num_ws, w_dim], an encoder's code; None is the mean code.
        distance: perceptual or other distance between two batches, [B].
        progress: called after each step; `StopOptimisation` keeps the best so far, other exceptions pass through.

    Returns:
        An inversion with a `FeatureOffset` for each feature space in use. Under an edit each region keeps its features
        at its own layer.

    Raises:
        InvalidInputError: wrong sizes.
        GeneratorMismatchError: the map has a space whose layer this generator lacks.
        NotFiniteError: an image holds NaN, or the optimisation diverged; names the images.
    """
    if len(latent_map) not in (1, len(image)):
        raise InvalidInputError(
            f"{len(latent_map)} latent map(s) for {len(image)} image(s): expected one, or one for each."
        )
    masks = {}
    for space in latent_map.spaces:
        if space != W_PLUS:
            mask = latent_map.masks_at(_side_in(generator, space), config.resample)[space]
            if bool(mask.any()):
                masks[space] = mask.to(image).expand(len(image), -1, -1, -1).contiguous()
    return _invert(image, generator, masks, latent_map.index.shape[1:], config, start, distance, progress)


def measure_errors(
    image: Tensor,
    generator: Generator,
    spaces: Sequence[str] | None = None,
    config: MultilayerConfig = MultilayerConfig(steps=100),
    *,
    start: Tensor | None = None,
    distance: Distance = multiscale_distance,
    distance_map: DistanceMap | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Measures what SAM's invertibility predictor predicts: the error of a short inversion in each space alone.

    Needs no trained predictor, only time: steps times the number of spaces. W+ is inverted by its codes, a feature
    space by codes and an offset over the whole picture, each from the same start, and `latent_map` reads the result.
    A threshold tau belongs to a distance map: SAM's 0.225 to LPIPS-VGG.

    Args:
        image: [B, 3, R, R] in [-1, 1], aligned, R the generator's resolution.
        generator: stays unchanged.
        spaces: names; None is `latent_spaces` of the generator.
        config: settings of each inversion.
        start, distance: as in `invert_multilayer`.
        distance_map: what is measured; None is the layers of `distance` where it has them, else `multiscale_map`.
        progress: called after each step with (steps done, steps in all, preview or None); may raise to stop.

    Returns:
        Space -> error map [B, 1, R, R], 0 or more.

    Raises:
        As `invert_multilayer`.
    """
    spaces = latent_spaces(generator.resolution) if spaces is None else tuple(spaces)
    if distance_map is None:
        distance_map = layered_map(distance) if isinstance(distance, LayeredDistance) else multiscale_map
    sides = {space: _side_in(generator, space) for space in spaces if space != W_PLUS}
    total, stopped = config.steps * len(spaces), False
    errors = {}
    for position, space in enumerate(spaces):

        def report(value: int, steps: int, preview: Tensor | None, position: int = position) -> None:
            nonlocal stopped
            try:
                if progress is not None:
                    progress(position * steps + value, total, preview)
            except StopOptimisation:
                stopped = True  # half of the maps are of no use: it passes through
                raise

        masks = {s: image.new_ones(len(image), 1, side, side) for s, side in sides.items() if s == space}
        found = _invert(image, generator, masks, image.shape[2:], config, start, distance, report)
        if stopped:
            raise StopOptimisation
        with torch.no_grad():
            size = min(config.size, generator.resolution)
            error = distance_map(_shrunk(render(found), size).clamp(-1, 1), _target(image, size))
            errors[space] = F.interpolate(error, size=image.shape[2:], mode="bilinear", align_corners=False)
    return errors


def layered_map(distance: LayeredDistance) -> DistanceMap:
    """The terms of a layered distance at each pixel, as `lpips` with spatial=True: their mean is the distance."""

    def error(image: Tensor, target: Tensor) -> Tensor:
        maps = distance.maps(distance.features(image), distance.features(target))
        grown = [F.interpolate(m, size=image.shape[2:], mode="bilinear", align_corners=False) for m in maps]
        return torch.stack(grown).sum(dim=0)

    return error


def multiscale_map(image: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """The terms of `multiscale_distance` at each pixel, [B, 1, H, W]: needs no weights."""
    size, maps = image.shape[2:], []
    for level in range(levels):
        error = (image - target).abs().mean(dim=1, keepdim=True)
        for axis, padding in ((2, (0, 0, 0, 1)), (3, (0, 1, 0, 0))):
            slopes = (image.diff(dim=axis) - target.diff(dim=axis)).abs().mean(dim=1, keepdim=True)
            error = error + F.pad(slopes, padding)
        maps.append(F.interpolate(error, size=size, mode="bilinear", align_corners=False))
        if min(image.shape[2:]) < 16 or level == levels - 1:
            break
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return torch.stack(maps).mean(dim=0)


def _invert(
    image: Tensor,
    generator: Generator,
    masks: Mapping[str, Tensor],
    frame: Sequence[int],
    config: MultilayerConfig,
    start: Tensor | None,
    distance: Distance,
    progress: Progress | None,
) -> Inversion:
    side = generator.resolution
    if image.ndim != 4 or tuple(image.shape[1:]) != (3, side, side):
        raise InvalidInputError(
            f"Multilayer inversion got an image of shape {tuple(image.shape)}: expected [batch, 3, {side}, {side}]."
        )
    require_finite(image, "The image to invert")
    with torch.inference_mode(False), torch.enable_grad():
        image = image.detach().clone()
        masks = {space: mask.detach().clone() for space, mask in masks.items()}
        w_plus, offsets, steps = _optimise(image, generator, masks, frame, config, start, distance, progress)
        modulations: list[Modulation] = [
            FeatureOffset(feature_side(space), offset, masks[space]) for space, offset in offsets.items()
        ]
        info = {"method": "multilayer", "spaces": ", ".join((W_PLUS, *offsets)), "steps": str(steps)}
        return Inversion(image, w_plus, generator, tuple(modulations), info=info)


def _optimise(
    image: Tensor,
    generator: Generator,
    masks: Mapping[str, Tensor],
    frame: Sequence[int],
    config: MultilayerConfig,
    start: Tensor | None,
    distance: Distance,
    progress: Progress | None,
) -> tuple[Tensor, dict[str, Tensor], int]:
    """(w_plus [B, num_ws, w_dim], space -> offset [B, C, r, r], steps made)."""
    prior = code_prior(generator, config.samples, config.seed)
    w = _start(image, generator, prior.mean_w, start).requires_grad_(True)
    widths = dict(zip(generator.config.resolutions, generator.config.channels, strict=True))
    offsets = {
        space: image.new_zeros(len(image), widths[feature_side(space)], *mask.shape[2:]).requires_grad_(True)
        for space, mask in masks.items()
    }
    hooks = SynthesisHooks(
        after_block={feature_side(space): _adding(offset, masks[space]) for space, offset in offsets.items()}
    )
    size = min(config.size, generator.resolution)
    rows, columns = _useful(size, frame)
    target = _target(image, size)[:, :, rows, columns]
    remaining = _towards(target, distance)
    variables = {W_PLUS: w, **offsets}
    optimiser = torch.optim.Adam(list(variables.values()), lr=config.learning_rate)
    random = torch.Generator().manual_seed(config.seed)
    best_loss = torch.full((len(image),), math.inf, device=image.device)
    best = {name: value.detach().clone() for name, value in variables.items()}
    steps = Steps(config.steps, progress, preview_every=config.preview_every)
    for step in steps:
        optimiser.param_groups[0]["lr"] = config.learning_rate * _ramp(step / config.steps, config)
        fresh = config.noise == "random"
        noise = generator.synthesis.random_noise(len(image), random) if fresh else "const"
        drawn = generator.synthesis(w, noise=noise, hooks=hooks)
        seen = _shrunk(drawn, size).clamp(-1, 1)[:, :, rows, columns]
        loss = config.pixel_weight * (seen - target).square().mean(dim=(1, 2, 3))
        loss = loss + config.distance_weight * remaining(seen)
        loss = loss + config.prior_weight * prior(w) + config.delta_weight * row_distances(w)
        for offset in offsets.values():
            loss = loss + config.feature_weight * offset.square().mean(dim=(1, 2, 3))
        require_finite(loss[:, None], "The loss of the multilayer inversion")
        if config.keep_best:
            better = loss.detach() < best_loss
            best_loss = torch.where(better, loss.detach().to(best_loss), best_loss)
            for name, value in variables.items():
                best[name][better] = value.detach()[better]
        optimiser.zero_grad(set_to_none=True)
        loss.sum().backward(inputs=list(variables.values()))  # nothing else gets a gradient
        optimiser.step()
        steps.done(drawn)
    if not config.keep_best:
        best = {name: value.detach() for name, value in variables.items()}
    return best.pop(W_PLUS), best, steps.made


def _towards(target: Tensor, distance: Distance) -> Callable[[Tensor], Tensor]:
    """The distance to a target that stays, whose features are computed once."""
    if not isinstance(distance, LayeredDistance):
        return lambda image: distance(image, target)
    with torch.no_grad():
        wanted = distance.features(target)
    return lambda image: distance.between(distance.features(image), wanted)


def _adding(offset: Tensor, mask: Tensor) -> FeatureHook:
    return lambda x: x + offset * mask


def _start(image: Tensor, generator: Generator, mean: Tensor, start: Tensor | None) -> Tensor:
    code = mean.expand(1, generator.num_ws, -1) if start is None else start.detach()
    if code.ndim != 3 or len(code) not in (1, len(image)) or code.shape[1:] != (generator.num_ws, len(mean)):
        raise InvalidInputError(
            f"Multilayer inversion got a start of shape {tuple(code.shape)}: expected [1 or {len(image)}, "
            f"{generator.num_ws}, {len(mean)}], a code of this generator."
        )
    return code.to(image).expand(len(image), -1, -1).clone()


def _side_in(generator: Generator, space: str) -> int:
    """Feature side of a space. Raises GeneratorMismatchError where an offset there would not reach the picture."""
    side = feature_side(space)
    if side >= generator.resolution:
        raise GeneratorMismatchError(
            f"Latent space {space} lies at {side} px features: the {generator.resolution} px generator uses "
            f"{', '.join(latent_spaces(generator.resolution))}. Take a predictor made for this generator, or "
            "measure_errors."
        )
    return side


def _useful(size: int, frame: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a square picture that a frame of that aspect, centred in it, covers."""
    longest = max(frame)
    margins = [size * (longest - length) // (2 * longest) for length in frame]
    return slice(margins[0], size - margins[0]), slice(margins[1], size - margins[1])


def _shrunk(drawn: Tensor, size: int) -> Tensor:
    return drawn if drawn.shape[-1] <= size else F.interpolate(drawn, size=(size, size), mode="area")


def _target(image: Tensor, size: int) -> Tensor:
    return resize_antialiased(image, size, "lanczos").clamp(-1, 1)


def _before_activation(w: Tensor) -> Tensor:
    return F.leaky_relu(w, _INVERSE_SLOPE)


def _ramp(done: float, config: MultilayerConfig) -> float:
    up = min(1.0, done / config.warmup) if config.warmup else 1.0
    down = min(1.0, (1 - done) / config.cooldown) if config.cooldown else 1.0
    return up * (0.5 - 0.5 * math.cos(math.pi * down))
