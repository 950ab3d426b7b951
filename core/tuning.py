"""Tuning the generator to one photograph: PTI, and near-perfect inversion with a discriminator.

Both leave the code as it is and give weight offsets in the inversion, never a changed generator.

PTI: Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (TOG 2022). Reference implementation:
danielroich/PTI `training/coaches/single_id_coach.py`, `criteria/localitly_regulizer.py`. Deviations: any code can be the
pivot (upstream: a W projection or e4e); the projection is that of core/projection.py; the stop threshold belongs to LPIPS on
AlexNet, and `STOP_SCALES` brings other distances to it; the best step is kept, not the last one.

Near-perfect inversion: Feng et al., "Near Perfect GAN Inversion" (arXiv 2202.11833). No code is public. From the paper:
L = 1_p (L_recon + L_adv_local) + L_global with a Laplacian-pyramid L_recon, an adversarial loss on this image, and the
original adversarial loss on training images and random samples, which keeps the generator from drifting. Open in the
paper and chosen here, by the ablation in docs/tuning.md: the pyramid's depth, norm and weights, p, rates, steps, batches,
the non-saturating losses, R1 every few steps. Where the training images are not at hand, samples of the untuned generator
stand in for them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .discriminator import Discriminator
from .errors import GeneratorMismatchError, InvalidInputError
from .generator import Generator
from .inversion import Inversion, WeightOffset, render
from .losses import Distance, LayeredDistance, multiscale_distance
from .projection import ProjectionConfig, project
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
    weight_leaves,
)

_PIVOT_SIZE = 256  # pixels at which a projection compares
# What a distance gives where LPIPS on AlexNet, which the stop threshold belongs to, gives 1. For the bundled trunk: such
# that the threshold is as far below what 350 steps reach on average as it is in the tables of GANInverter (.06, .075).
STOP_SCALES: Mapping[str, float] = {"lpips-alex": 1.0, "lpips-vgg": 1.0, "portraits-perceptual": 0.32}


@dataclass(frozen=True)
class PtiConfig:
    """Settings of pivotal tuning; defaults are upstream's."""

    pivot: str = "given"  # the code that stays: "given", the inversion's, or "w", found first in W
    pivot_steps: int = 450
    steps: int = 350
    learning_rate: float = 3e-4
    scale_rate: bool = True  # by `rate_scale`; makes no difference with 512 channels
    pixel_weight: float = 1.0
    perceptual_weight: float = 1.0
    stop_at: float | None = 0.06  # ends when the perceptual distance is at most this; None never does
    stop_scale: float | None = None  # distances are divided by this first; None: `STOP_SCALES` of the distance
    locality: bool = False  # keep the generator as it was around the pivot (off upstream)
    locality_every: int = 1
    locality_radius: float = 30.0  # norm of the step from the pivot, over all rows together
    locality_psi: float = 0.5  # truncation of the codes it goes towards
    locality_pixel_weight: float = 0.1
    locality_perceptual_weight: float = 0.1
    seconds: float | None = None  # for each image, of the tuning; a projection before it is not counted
    preview_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            steps=(self.steps, 1), learning_rate=(self.learning_rate, 0), pixel_weight=(self.pixel_weight, 0),
            perceptual_weight=(self.perceptual_weight, 0), stop_at=(self.stop_at, 0), seconds=(self.seconds, 0),
            stop_scale=(self.stop_scale, 1e-6), locality_every=(self.locality_every, 1),
            locality_radius=(self.locality_radius, 0), preview_every=(self.preview_every, 1),
            pivot_steps=(self.pivot_steps, 1), locality_psi=(self.locality_psi, 0),
            locality_pixel_weight=(self.locality_pixel_weight, 0),
            locality_perceptual_weight=(self.locality_perceptual_weight, 0),
        )  # fmt: skip
        _check_pivot(self.pivot)


def _check_pivot(pivot: str) -> None:
    if pivot not in ("given", "w"):
        raise InvalidInputError(f"pivot {pivot!r}: expected 'given' or 'w'.")


def _at_pivot(
    inversion: Inversion, config: PtiConfig | NearPerfectConfig, distance: Distance, progress: Progress | None
) -> tuple[Inversion, Progress | None]:
    """The inversion with the code to tune at, and the callback for the steps that come after finding it."""
    if config.pivot == "given":
        return inversion, progress
    projection = ProjectionConfig(space="w", steps=config.pivot_steps, seed=config.seed)
    found = project(inversion.image, inversion.generator, projection, distance=distance, progress=progress)
    return dataclasses.replace(inversion, w_plus=found.w_plus), after(progress, config.pivot_steps)


def _steps_in_all(config: PtiConfig | NearPerfectConfig) -> int:
    return config.steps + (config.pivot_steps if config.pivot == "w" else 0)


def tune(
    inversion: Inversion,
    distance: LayeredDistance,
    config: PtiConfig = PtiConfig(),
    *,
    progress: Progress | None = None,
) -> Refinement:
    """PTI, second stage: tunes the generator until it draws the photograph from its code, the pivot.

    Args:
        inversion: gives the pivot; modulations it has already stay in force.
        distance: network features to compare with, at the generator's size (upstream: LPIPS on AlexNet).
        config: settings.
        progress: called after every step; `StopOptimisation` ends one image with the best found so far, what else it
            raises ends all.

    Returns:
        The inversion with a weight offset more; what failed is named.

    Raises:
        InvalidInputError, NotFiniteError: no image of the batch could be tuned.
    """

    def one(single: Inversion, index: int, report: Progress | None) -> Refined:
        at_pivot, rest = _at_pivot(single, config, distance.at_size(_PIVOT_SIZE), report)
        return _pivotal_tuning(at_pivot, distance.at_size(None), config, index, rest)

    return refine_each(inversion, one, _steps_in_all(config), progress)


def _pivotal_tuning(
    inversion: Inversion, distance: LayeredDistance, config: PtiConfig, index: int, progress: Progress | None
) -> Refined:
    target = inversion.image
    with torch.no_grad():
        wanted = distance.features(target)
    scale = config.stop_scale or STOP_SCALES.get(distance.name, 1.0)
    stop_at = -1.0 if config.stop_at is None else config.stop_at * scale
    offsets = weight_leaves(inversion.generator)
    trial = inversion.with_modulation(WeightOffset(offsets))
    neighbours = _Locality(inversion, distance, config, index) if config.locality else None
    rate = config.learning_rate * (rate_scale(inversion.generator) if config.scale_rate else 1.0)
    adam = torch.optim.Adam(offsets.values(), lr=rate)

    def look() -> tuple[Tensor, Tensor, Tensor]:
        """The picture, its perceptual distance [] and its loss []."""
        drawn = render(trial)
        perceptual = distance.between(distance.features(drawn), wanted).mean()
        return (
            drawn,
            perceptual,
            config.pixel_weight * (drawn - target).square().mean() + config.perceptual_weight * perceptual,
        )

    best = Best(offsets)
    steps = Steps(config.steps, progress, seconds=config.seconds, preview_every=config.preview_every)
    for step in steps:
        drawn, perceptual, loss = look()
        best.offer(loss)
        if float(perceptual.detach()) <= stop_at:
            steps.end()  # tested before the update, as upstream
            steps.done(drawn)
            break
        if neighbours is not None and step % config.locality_every == 0:
            loss = loss + neighbours(offsets)
        adam.zero_grad(set_to_none=True)
        add_gradients(loss, offsets)
        adam.step()
        steps.done(drawn)
    else:
        with torch.no_grad():
            best.offer(look()[2])
    tuned = inversion.with_modulation(compact(best.values))
    info = {**inversion.info, "refined by": "PTI", "refinement distance": distance.name}
    return Refined(dataclasses.replace(tuned, info=info), steps.made)


class _Locality:
    """What the tuned generator loses near the pivot: distance of its pictures of nearby codes to the untuned one's."""

    def __init__(self, inversion: Inversion, distance: LayeredDistance, config: PtiConfig, index: int) -> None:
        self.inversion, self.distance, self.config = inversion, distance, config
        self.random = torch.Generator().manual_seed(config.seed + index)

    def __call__(self, offsets: Mapping[str, Tensor]) -> Tensor:
        inversion, config = self.inversion, self.config
        generator = inversion.generator
        with torch.no_grad():
            z = torch.randn(1, generator.config.z_dim, generator=self.random).to(inversion.w_plus)
            towards = generator.truncate(generator.broadcast(generator.mapping(z)), config.locality_psi)
            step = towards - inversion.w_plus
            code = inversion.w_plus + config.locality_radius * step / step.norm()
            earlier = tuple(m for m in inversion.modulations if m.weight_offsets())
            there = Inversion(inversion.image, code, generator, earlier)
            before = render(there, noise="none")
            wanted = self.distance.features(before)
        drawn = render(there.with_modulation(WeightOffset(dict(offsets))), noise="none")
        perceptual = self.distance.between(self.distance.features(drawn), wanted).mean()
        pixels = (drawn - before).square().mean()
        return config.locality_pixel_weight * pixels + config.locality_perceptual_weight * perceptual


# --- near-perfect inversion ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearPerfectConfig:
    """Settings of near-perfect inversion; all but the terms of the loss are choices of this package."""

    pivot: str = "given"  # as in `PtiConfig`
    pivot_steps: int = 450
    steps: int = 300
    learning_rate: float = 2e-3
    scale_rate: bool = True  # the latter, as in `PtiConfig`
    discriminator_learning_rate: float = 5e-4
    levels: int = 5  # of the Laplacian pyramid; fewer where the coarsest one would be below 8 px
    norm: int = 2  # of the differences: 1 or 2
    level_ratio: float = 4.0  # weight of each level against the next coarser one
    recon_weight: float = 20000.0
    local_adversarial_weight: float = 0.1
    global_weight: float = 0.1
    adversarial_every: int = 4  # both adversarial terms count, as many times, in every so many updates
    local_probability: float = 0.9  # p: how often the terms of this image take part in an update
    momentum: float = 0.9  # Adam's first beta for the generator; 0 takes twice the steps
    batch: int = 2  # random samples and training images in each global term
    stand_ins: int = 64  # samples of the untuned generator, where there are no training images
    r1_gamma: float = 1.0
    r1_every: int = 4  # updates with adversarial terms
    seconds: float | None = None  # for each image, of the tuning; a projection before it is not counted
    preview_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            steps=(self.steps, 1), pivot_steps=(self.pivot_steps, 1), learning_rate=(self.learning_rate, 0),
            levels=(self.levels, 1), level_ratio=(self.level_ratio, 0.01),
            discriminator_learning_rate=(self.discriminator_learning_rate, 0), recon_weight=(self.recon_weight, 0),
            local_adversarial_weight=(self.local_adversarial_weight, 0), global_weight=(self.global_weight, 0),
            adversarial_every=(self.adversarial_every, 1), momentum=(self.momentum, 0),
            batch=(self.batch, 1), stand_ins=(self.stand_ins, self.batch), r1_gamma=(self.r1_gamma, 0),
            r1_every=(self.r1_every, 1), seconds=(self.seconds, 0), preview_every=(self.preview_every, 1),
        )  # fmt: skip
        _check_pivot(self.pivot)
        if self.norm not in (1, 2):
            raise InvalidInputError(f"norm {self.norm}: expected 1 or 2.")
        if self.momentum >= 1:
            raise InvalidInputError(f"momentum {self.momentum}: expected 0 or more, below 1.")
        if not 0 < self.local_probability <= 1:
            raise InvalidInputError(f"local_probability {self.local_probability}: expected more than 0, at most 1.")


def laplacian_pyramid(image: Tensor, levels: int = 5) -> list[Tensor]:
    """Band-pass images from fine to coarse and the low-pass rest, with the 5-tap binomial filter of Burt and Adelson.

    Args:
        image: [B, C, H, W]; stops early where a side would come below 8 pixels.
        levels: at most, the rest included.

    Returns:
        [B, C, H, W], [B, C, H/2, W/2], ...; upsampled and added up they give the image.
    """
    bands = []
    for _ in range(levels - 1):
        if min(image.shape[2:]) < 16:
            break
        low = _binomial(image)[:, :, ::2, ::2]
        bands.append(image - pyramid_up(low, (image.shape[2], image.shape[3])))
        image = low
    return [*bands, image]


def pyramid_up(low: Tensor, size: tuple[int, int]) -> Tensor:
    """The next finer level's low-pass image, [B, C, *size], of a coarser one."""
    wide = low.new_zeros(*low.shape[:2], *size)
    wide[:, :, ::2, ::2] = low
    ones = low.new_zeros(1, 1, *size)
    ones[:, :, ::2, ::2] = 1.0
    return _binomial(wide, pad="constant") / _binomial(ones, pad="constant")


def _binomial(image: Tensor, pad: str = "reflect") -> Tensor:
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    channels = image.shape[1]
    rows = F.conv2d(
        F.pad(image, (0, 0, 2, 2), mode=pad), taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels
    )
    return F.conv2d(
        F.pad(rows, (2, 2, 0, 0), mode=pad), taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels
    )


def laplacian_distance(
    found: Sequence[Tensor], wanted: Sequence[Tensor], norm: int = 1, level_ratio: float = 1.0
) -> Tensor:
    """Distance [] of two Laplacian pyramids: the sum over levels of the mean of |difference|^norm.

    With norm 1 and a level_ratio of 1 it is Lap1 of Bojanowski et al., "Optimizing the Latent Space of Generative Networks"
    (GLO), per pixel of the picture: there level j, with a quarter of the pixels of the one before, is summed up and
    weighted by 4^j. A larger ratio divides each level's mean by it once more than that of the next finer one.
    """
    means = [(a - b).abs().pow(norm).mean() for a, b in zip(found, wanted, strict=True)]
    return torch.stack([mean / level_ratio**level for level, mean in enumerate(means)]).sum()


def near_perfect(
    inversion: Inversion,
    discriminator: Discriminator,
    config: NearPerfectConfig = NearPerfectConfig(),
    *,
    training_images: Tensor | None = None,
    progress: Progress | None = None,
) -> Refinement:
    """Tunes the generator to the photograph against a discriminator that also guards its other pictures.

    Args:
        inversion: gives the code (upstream: ReStyle's); modulations it has already stay in force.
        discriminator: the generator's own opponent; a copy of it is tuned along.
        config: settings.
        training_images: [N, 3, R, R] in [-1, 1], N at least `config.batch`, the real pictures of the global terms; None:
            samples of the untuned generator.
        progress: called after every step; `StopOptimisation` ends one image with the best found so far, what else it
            raises ends all.

    Returns:
        The inversion with a weight offset more; what failed is named.

    Raises:
        GeneratorMismatchError: a discriminator of another size.
        InvalidInputError, NotFiniteError: no image of the batch could be tuned; or training images that do not fit.
    """
    side = inversion.generator.resolution
    if discriminator.resolution != side:
        raise GeneratorMismatchError(
            f"The discriminator takes pictures of {discriminator.resolution} px, the generator draws {side} px: give the "
            "discriminator that was trained with this generator."
        )
    if training_images is not None and (
        tuple(training_images.shape[1:]) != (3, side, side) or len(training_images) < config.batch
    ):
        raise InvalidInputError(
            f"training_images of shape {tuple(training_images.shape)}: expected [{config.batch} or more, 3, {side}, {side}]."
        )

    reals = _StandIns(inversion.generator, config) if training_images is None else training_images

    def one(single: Inversion, index: int, report: Progress | None) -> Refined:
        at_pivot, rest = _at_pivot(single, config, multiscale_distance, report)
        return _NearPerfect(at_pivot, discriminator, config, reals, index).run(rest)

    return refine_each(inversion, one, _steps_in_all(config), progress)


class _StandIns:
    """Samples of the generator as it is, each drawn when it is first asked for, so that no step takes long."""

    def __init__(self, generator: Generator, config: NearPerfectConfig) -> None:
        self.generator, self.count, self.seed = generator, config.stand_ins, config.seed
        self.drawn: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Rows by index, [B, 3, R, R]."""
        return torch.cat([self._sample(index) for index in chosen.tolist()])

    def _sample(self, index: int) -> Tensor:
        if index not in self.drawn:
            random = torch.Generator().manual_seed(self.seed * self.count + index)
            z = torch.randn(1, self.generator.config.z_dim, generator=random).to(self.generator.w_avg)
            with torch.no_grad():
                code = self.generator.broadcast(self.generator.mapping(z))
                self.drawn[index] = self.generator.synthesis(code, "random", generator=random).cpu()
        return self.drawn[index]


class _NearPerfect:
    """One photograph's game of generator and discriminator."""

    def __init__(
        self,
        inversion: Inversion,
        discriminator: Discriminator,
        config: NearPerfectConfig,
        reals: Tensor | _StandIns,
        index: int,
    ) -> None:
        self.inversion, self.config, self.reals = inversion, config, reals
        self.random = torch.Generator().manual_seed(config.seed + index)
        self.wanted = laplacian_pyramid(inversion.image, config.levels)
        self.offsets = weight_leaves(inversion.generator)
        self.trial = inversion.with_modulation(WeightOffset(self.offsets))
        self.judge = copy.deepcopy(discriminator).to(inversion.image.device).requires_grad_(True)
        rate = config.learning_rate * (rate_scale(inversion.generator) if config.scale_rate else 1.0)
        self.generator_adam = torch.optim.Adam(self.offsets.values(), lr=rate, betas=(config.momentum, 0.99))
        self.judge_adam = torch.optim.Adam(
            self.judge.parameters(), lr=config.discriminator_learning_rate, betas=(0.0, 0.99)
        )
        self.best = Best(self.offsets)
        # Counted less often, they count as many times more.
        weights = config.local_adversarial_weight, config.global_weight
        self.adversarial_weights = tuple(config.adversarial_every * weight for weight in weights)

    def run(self, progress: Progress | None) -> Refined:
        """All steps; gives the weights whose reconstruction was best."""
        config = self.config
        steps = Steps(config.steps, progress, seconds=config.seconds, preview_every=config.preview_every)
        drawn: Tensor | None = None
        for step in steps:
            local = bool(torch.rand((), generator=self.random) < config.local_probability)  # 1_p
            adversarial = step % config.adversarial_every == 0
            seen, fakes = self._generator_step(local, adversarial)
            drawn = drawn if seen is None else seen
            if adversarial:
                regularised = step // config.adversarial_every % config.r1_every == 0
                self._judge_step(seen, fakes, regularised=regularised)
            steps.done(drawn)
        with torch.no_grad():
            self.best.offer(self._reconstruction(render(self.trial)))
        tuned = self.inversion.with_modulation(compact(self.best.values))
        info = {**self.inversion.info, "refined by": "near-perfect inversion"}
        return Refined(dataclasses.replace(tuned, info=info), steps.made)

    def _reconstruction(self, drawn: Tensor) -> Tensor:
        pyramid = laplacian_pyramid(drawn, self.config.levels)
        return laplacian_distance(pyramid, self.wanted, self.config.norm, self.config.level_ratio)

    def _generator_step(self, local: bool, adversarial: bool) -> tuple[Tensor | None, Tensor | None]:
        """Descends the generator's losses, one graph after the other; gives the pictures drawn, local and global."""
        config, drawn, fakes = self.config, None, None
        local_weight, global_weight = (adversarial * weight for weight in self.adversarial_weights)
        self.generator_adam.zero_grad(set_to_none=True)
        if local:
            drawn = render(self.trial)
            reconstruction = self._reconstruction(drawn)
            self.best.offer(reconstruction)
            loss = config.recon_weight * reconstruction
            if local_weight:
                loss = loss + local_weight * F.softplus(-self.judge(drawn)).mean()
            add_gradients(loss, self.offsets)
        if global_weight:
            fakes = self._samples()
            add_gradients(global_weight * F.softplus(-self.judge(fakes)).mean(), self.offsets)
        if local or global_weight:
            self.generator_adam.step()
        return drawn, fakes

    def _judge_step(self, drawn: Tensor | None, fakes: Tensor | None, *, regularised: bool) -> None:
        """Teaches the discriminator this picture and random ones, those of the generator's step."""
        config, weights = self.config, list(self.judge.parameters())
        local_weight, global_weight = self.adversarial_weights
        loss = self.judge.b4.out.weight.new_zeros([])
        if drawn is not None and local_weight:
            told_apart = F.softplus(self.judge(drawn.detach())) + F.softplus(-self.judge(self.inversion.image))
            loss = loss + local_weight * told_apart.mean()
        if fakes is not None:
            chosen = torch.randint(len(self.reals), (config.batch,), generator=self.random)
            reals = self.reals[chosen].to(self.inversion.image).detach().requires_grad_(regularised)
            verdict = self.judge(reals)
            told_apart = F.softplus(self.judge(fakes.detach())) + F.softplus(-verdict)
            loss = loss + global_weight * told_apart.mean()
            if regularised and config.r1_gamma:  # R1, as rarely as it is strong
                (slope,) = torch.autograd.grad(verdict.sum(), reals, create_graph=True)
                penalty = config.r1_gamma / 2 * slope.square().sum(dim=(1, 2, 3)).mean()
                loss = loss + config.r1_every * global_weight * penalty
        if not loss.requires_grad:
            return
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        self.judge_adam.step()

    def _samples(self) -> Tensor:
        """Random pictures [batch, 3, R, R] of the tuned generator."""
        generator, count = self.inversion.generator, self.config.batch
        z = torch.randn(count, generator.config.z_dim, generator=self.random).to(self.inversion.w_plus)
        with torch.no_grad():
            codes = generator.broadcast(generator.mapping(z))
            noise = generator.synthesis.random_noise(count, self.random)
        weights = tuple(m for m in self.trial.modulations if m.weight_offsets())
        image = self.inversion.image.expand(count, -1, -1, -1)
        return render(Inversion(image, codes, generator, weights), noise=noise)
