"""Projection: the code of a photograph by optimisation, for generators without an encoder.

Paper: Karras et al. 2020, appendix D (W); Abdal et al. 2019, "Image2StyleGAN" (W+).
Reference implementations: danielroich/PTI `training/projectors/w_projector.py`, NVlabs `projector.py`.
As there: Adam, rate warmed up over the first 5 % and cosine-lowered over the last 25 %, Gaussian exploration noise on w
that fades out over the first 75 %.
Deviations: the distance is a parameter (multi-scale L1 without any weights; LPIPS where its backbone is at hand); noise
maps stay as stored unless `optimise_noise`; the best code met is returned, not the last one; batches of N; a pull
towards the mean code that can be switched off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InvalidInputError
from .generator import Generator
from .inversion import Inversion
from .losses import Distance, multiscale_distance, noise_regularization, require_finite
from .refinement import Progress, Steps, check_settings


@dataclass(frozen=True)
class ProjectionConfig:
    """Settings of a projection."""

    space: str = "w-plus"  # "w": one code for all rows, more editable; "w-plus": one for each row, closer
    steps: int = 200
    learning_rate: float = 0.05  # in units of the spread of w per coordinate
    warmup: float = 0.05  # fraction of steps
    cooldown: float = 0.25
    exploration: float = 0.05  # standard deviation of noise on w, in units of its spread
    exploration_end: float = 0.75  # fraction of steps after which no noise is added
    pixel_weight: float = 1.0  # on mean squared error
    distance_weight: float = 1.0
    mean_weight: float = 0.002  # pull towards the mean code, per squared spread; keeps codes editable
    spread_weight: float = 0.002  # pull of the rows of w_plus towards one another
    optimise_noise: bool = False  # helps the code past unexplained texture; the maps found are dropped, as PTI does
    noise_weight: float = 1e5
    keep_best: bool = True  # False: the last step's code, as upstream
    seconds: float | None = None  # for the batch
    preview_every: int = 10
    samples: int = 1000  # of w, for its mean and spread
    seed: int = 0

    def __post_init__(self) -> None:
        if self.space not in ("w", "w-plus"):
            raise InvalidInputError(f"Projection space {self.space!r}: expected 'w' or 'w-plus'.")
        if self.steps < 1 or self.preview_every < 1:
            raise InvalidInputError(
                f"Projection with {self.steps} steps and a preview every {self.preview_every}: expected at least 1."
            )
        check_settings(seconds=(self.seconds, 0))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0 and self.exploration_end > 0):
            raise InvalidInputError(
                f"Projection with learning rate {self.learning_rate} and exploration until {self.exploration_end}: "
                "expected positive numbers."
            )


def project(
    image: Tensor,
    generator: Generator,
    config: ProjectionConfig = ProjectionConfig(),
    *,
    start: Tensor | None = None,
    distance: Distance = multiscale_distance,
    progress: Progress | None = None,
) -> Inversion:
    """Finds codes whose pictures look like `image`.

    Args:
        image: [B, 3, R, R] in [-1, 1], aligned, R the generator's resolution.
        generator: stays unchanged.
        config: settings.
        start: [B, num_ws, w_dim] or [1, num_ws, w_dim] to begin from (an encoder's code); None is the mean code.
        distance: perceptual or other distance between two batches, [B].
        progress: called after each step; `StopOptimisation` ends it with the best code so far, what else it raises
            ends everything.

    Returns:
        An inversion without modulations; the best code of each image by the loss without exploration noise.

    Raises:
        InvalidInputError: wrong size.
        NotFiniteError: an image holds NaN, or the optimisation diverged; names the images.
    """
    return project_with_noise(image, generator, config, start=start, distance=distance, progress=progress)[0]


def project_with_noise(
    image: Tensor,
    generator: Generator,
    config: ProjectionConfig = ProjectionConfig(),
    *,
    start: Tensor | None = None,
    distance: Distance = multiscale_distance,
    progress: Progress | None = None,
) -> tuple[Inversion, list[Tensor]]:
    """`project`, and the noise maps that go with its codes, [1 or B, 1, r, r] each: stored ones, or those optimised."""
    size = (3, generator.resolution, generator.resolution)
    if image.ndim != 4 or tuple(image.shape[1:]) != size:
        raise InvalidInputError(
            f"Projection got an image of shape {tuple(image.shape)}: expected [batch, {size[0]}, {size[1]}, {size[2]}]."
        )
    require_finite(image, "The image to project")
    with torch.inference_mode(False), torch.enable_grad():
        return _optimise(image.detach().clone(), generator, config, start, distance, progress)


def _optimise(
    image: Tensor,
    generator: Generator,
    config: ProjectionConfig,
    start: Tensor | None,
    distance: Distance,
    progress: Progress | None,
) -> tuple[Inversion, list[Tensor]]:
    rows = 1 if config.space == "w" else generator.num_ws
    centre, spread = w_statistics(generator, config.samples, config.seed)
    begin = centre.expand(len(image), generator.num_ws, -1) if start is None else start.detach().clone().to(image)
    if begin.ndim != 3 or len(begin) not in (1, len(image)) or begin.shape[1:] != (generator.num_ws, centre.shape[0]):
        raise InvalidInputError(
            f"Projection got a start of shape {tuple(begin.shape)}: expected [1 or {len(image)}, {generator.num_ws}, "
            f"{centre.shape[0]}], a code of this generator."
        )
    begin = begin.expand(len(image), -1, -1)
    begin = begin.mean(dim=1, keepdim=True) if rows == 1 else begin
    w = begin.clone().requires_grad_(True)
    noises = [noise.clone() for noise in generator.synthesis.stored_noise()]
    parameters = [w]
    random = torch.Generator().manual_seed(config.seed)
    if config.optimise_noise:
        shapes = [(len(image), *noise.shape[1:]) for noise in noises]
        noises = [torch.randn(shape, generator=random).to(image).requires_grad_(True) for shape in shapes]
        parameters += noises
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    best_loss = torch.full((len(image),), math.inf, device=image.device)
    best, best_noises = w.detach().clone(), [noise.detach().clone() for noise in noises]

    def losses(code: Tensor) -> tuple[Tensor, Tensor]:
        drawn = generator.synthesis(code.expand(-1, generator.num_ws, -1), noise=noises)
        fit = config.pixel_weight * (drawn - image).square().mean(dim=(1, 2, 3))
        fit = fit + config.distance_weight * distance(drawn, image)
        pull = ((w - centre) / spread).square().mean(dim=(1, 2))
        parting = ((w - w.mean(dim=1, keepdim=True)) / spread).square().mean(dim=(1, 2))
        return fit + config.mean_weight * pull + config.spread_weight * parting, drawn

    def keep(loss: Tensor) -> None:
        nonlocal best, best_loss, best_noises
        better = (loss.detach() < best_loss) | (not config.keep_best)
        best_loss = torch.where(better, loss.detach(), best_loss)
        best = torch.where(better[:, None, None], w.detach(), best)
        if config.optimise_noise:
            better = better[:, None, None, None]
            pairs = zip(noises, best_noises, strict=True)
            best_noises = [torch.where(better, noise.detach(), kept) for noise, kept in pairs]

    explore = 0.0
    steps = Steps(config.steps, progress, seconds=config.seconds, preview_every=config.preview_every)
    for step in steps:
        done = step / config.steps
        optimiser.param_groups[0]["lr"] = config.learning_rate * float(spread) * _ramp(done, config)
        explore = config.exploration * max(0.0, 1 - done / config.exploration_end) ** 2 if start is None else 0.0
        jitter = torch.randn(w.shape, generator=random).to(w) * (explore * spread)
        loss, drawn = losses(w + jitter)
        require_finite(loss[:, None], "The projection loss")
        total = loss.sum()
        if config.optimise_noise:
            total = total + config.noise_weight * noise_regularization(noises)
        if explore == 0.0 or step == 0 or not config.keep_best:
            keep(loss)
        optimiser.zero_grad(set_to_none=True)
        total.backward(inputs=parameters)  # the generator and the distance's network get no gradient
        optimiser.step()
        if config.optimise_noise:
            with torch.no_grad():
                for noise in noises:
                    noise.sub_(noise.mean(dim=(1, 2, 3), keepdim=True)).div_(noise.std(dim=(1, 2, 3), keepdim=True))
        steps.done(drawn)
    if config.keep_best and explore > 0.0:  # it ended early: what was explored so far has not been looked at
        with torch.no_grad():
            keep(losses(w)[0])
    w_plus = best.expand(-1, generator.num_ws, -1).contiguous()
    info = {"method": f"projection ({config.space})", "steps": str(steps.made)}
    return Inversion(image, w_plus, generator, info=info), best_noises


def _ramp(done: float, config: ProjectionConfig) -> float:
    up = min(1.0, (done + 1e-3) / config.warmup) if config.warmup else 1.0
    down = min(1.0, (1 - done) / config.cooldown) if config.cooldown else 1.0
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


@torch.no_grad()
def w_statistics(generator: Generator, samples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(mean w [w_dim], root mean square deviation per coordinate []) of seeded samples."""
    w = generator.sample_w(samples, seed)
    mean = w.mean(dim=0)
    return mean, (w - mean).square().mean().sqrt()
