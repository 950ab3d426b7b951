"""Trains ReGANIE for a generator and an encoder: what an inversion misses, carried over to its edits.

Paper: Li et al., "ReGANIE: Rectifying GAN Inversion Errors for Accurate Real Image Editing" (AAAI 2023), phase I; no code
is public. X = G(w) and Y = G(edit(w)) stand for photographs, hats are their inversions G(E(.)). Triplets (difference,
primary, wanted) are drawn uniformly from (Y - Y^, X^, X), (X - X^, Y^, Y) and (X - X^, X^, X). Losses: L1, a perceptual
distance and a non-saturating discriminator with R1 (StyleGAN2's, without minibatch statistics), 1 each; Adam of betas
(0, 0.99) and a fixed rate of 0.002.

The paper's editor (DyStyle) is not available. Edits here are mixes of given directions, of SeFa's and of principal
components of w, at random strengths, part of them on a random range of rows.
Ours: with `portraits`, a share of the pictures are morphs with drawn objects, which an encoder meets among photographs
and a generator's own pictures never show; their edits are those of the morph (shape, pose, light), the objects stay.
Further: style mixing; averaged weights; lazy R1; X and Y are clamped to -1..1, as photographs are. Options, off by
default: pictures that serve several steps (`uses`), each time in another triplet and half of the time mirrored; a late
start of the discriminator; a falling learning rate.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..discovery import pca_of_w, sefa
from ..discriminator import Discriminator, DiscriminatorConfig
from ..editing import Direction, Edit
from ..encoders import Encoder, EncoderConfig
from ..errors import InvalidInputError
from ..generator import Generator, GeneratorConfig
from ..inversion import Inversion, render
from ..losses import Distance, multiscale_distance
from ..metrics import peak_memory, psnr
from ..reganie import Reganie, ReganieConfig, rectify, resized
from .common import (
    HALF_TYPES,
    Registry,
    add_common_arguments,
    card,
    cosine,
    keep_freed_memory,
    load_morphs,
    load_scaler_state,
    make_accelerator,
    process_generator,
    run_training,
    scaler_state,
    share_gradients,
    step_generator,
    update_ema,
    write_sheet,
)
from .encoder import deformed
from .morphs import MorphModel
from .occluders import occlude_some

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

BUNDLED_DIRECTIONS = tuple(
    f"portraits-{name}"
    for name in (
        *("smile", "age", "feminine", "skin-tone", "hair-colour", "yaw", "pitch", "light-side"),
        *("brightness", "warmth", "contrast", "background", "complexion", "short-hair", "brows"),
    )
)
_REPORT_EVERY = 20
_HELD_OUT = 8
_CHUNK = 8  # pictures drawn at once
_FOUND_LIMIT = 2.0  # standard deviations along directions of SeFa and of the principal components
_SHOWN = 0.6  # of a direction's limit, in held-out edits
_Z, _MIXING, _EDITS, _SHARE, _MORPHS, _DEFORM, _OBJECTS, _TRIPLETS, _MIRROR = range(9)  # streams of random numbers
_COLUMNS = ("loss", "l1", "perceptual", "adversarial", "discriminator", "real", "fake", "r1")


@dataclass(frozen=True)
class ReganieTraining:
    """Settings of a run; the paper's unless said otherwise."""

    steps: int = 100_000
    batch: int = 8  # of each process
    learning_rate: float = 2e-3
    final_learning_rate: float = 1.0  # fraction of it at the end, by half a cosine; 1 is a fixed rate
    l1: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 1.0  # 0: no discriminator
    adversarial_start: int = 0  # first step with a discriminator
    r1: float = 10.0  # the Swapping Autoencoder's, as the paper is silent
    r1_every: int = 16
    discriminator_widths: tuple[int, ...] | None = (
        None  # from 4x4 up; None: the official ones, or 128 to 16 below 256 px
    )
    ema_decay: float = 0.999
    portrait_share: float = 0.5  # of the pictures, where there is a bank of photographs
    occluded_share: float = 0.85  # of those: with objects
    objects: tuple[int, int] = (1, 2)  # in such a picture
    deformation: float = 0.02  # of the faces, see `encoder.deformed`
    portrait_edits: float = 1.5  # greatest edit of a portrait, see `MorphModel.draw_edits`
    style_mixing: float = 0.5  # of the codes: fine rows from another z
    terms: tuple[int, int] = (1, 3)  # directions in one edit
    some_rows: float = 0.5  # probability that a direction acts on a random range of rows, not on its own
    encoder_iterations: int = 5  # ReStyle's passes
    uses: int = 1  # steps that the pictures of one step serve
    seed: int = 6

    def __post_init__(self) -> None:
        for name in ("objects", "terms", "discriminator_widths"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        shares = (self.portrait_share, self.occluded_share, self.style_mixing, self.some_rows)
        if not all(0 <= share <= 1 for share in shares) or min(self.steps, self.batch, self.uses, self.r1_every) < 1:
            raise InvalidInputError(
                f"ReGANIE training of {self.steps} steps of {self.batch} pictures for {self.uses} uses, shares {shares}: "
                "expected positive numbers, and shares in 0..1."
            )
        for name in ("objects", "terms"):
            least, greatest = getattr(self, name)
            if not 1 <= least <= greatest:
                raise InvalidInputError(
                    f"ReGANIE training with {name} {(least, greatest)}: expected 1 <= least <= greatest."
                )

    def widths(self, resolution: int) -> tuple[int, ...]:
        """Of the discriminator, from 4x4 up to `resolution`."""
        if self.discriminator_widths is not None:
            return self.discriminator_widths
        if resolution >= 256:
            return DiscriminatorConfig.official(resolution).channels
        return tuple(min(128, 16 * resolution // (4 << k)) for k in range(int(math.log2(resolution)) - 1))


class Editor:
    """Random edits of codes."""

    def __init__(self, families: Sequence[Sequence[Direction]], settings: ReganieTraining) -> None:
        """Args: families: lists of directions, each list as likely as the others. Those of style space are left out."""
        moving = [[d for d in family if d.offset is not None] for family in families]
        self.families = [family for family in moving if family]
        self.settings = settings
        if not self.families:
            raise InvalidInputError("ReGANIE training without directions of w: give --directions, or --sefa or --pca.")

    def __call__(self, w_plus: Tensor, random: torch.Generator) -> Tensor:
        """w_plus [B, num_ws, w_dim] -> edited codes of the same shape."""

        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=random))

        def uniform() -> float:
            return torch.rand((), generator=random).item()

        least, greatest = self.settings.terms
        num_ws, edited = w_plus.shape[1], []
        for code in w_plus.split(1):
            change = torch.zeros_like(code)
            for _ in range(least + below(greatest - least + 1)):
                family = self.families[below(len(self.families))]
                direction = family[below(len(family))]
                low, high = direction.limits
                rows = None
                if uniform() < self.settings.some_rows:
                    start = below(num_ws)
                    rows = start, start + 1 + below(num_ws - start)
                change = change + direction.delta(code, low + (high - low) * uniform(), rows)
            edited.append(code + change)
        return torch.cat(edited)


def families_of(
    generator: Generator, directions: Sequence[Direction], sefa_count: int = 8, pca_count: int = 12
) -> list[list[Direction]]:
    """Given directions, SeFa's and principal components of w, each within two standard deviations."""
    width = generator.config.w_dim
    found = [
        sefa(generator, min(sefa_count, width)) if sefa_count else [],
        pca_of_w(generator, min(pca_count, width)) if pca_count else [],
    ]
    limited = [[dataclasses.replace(d, limits=(-_FOUND_LIMIT, _FOUND_LIMIT)) for d in family] for family in found]
    return [list(directions), *limited]


@dataclass(frozen=True)
class Triplets:
    """What one step learns from."""

    difference: Tensor  # [B, 3, R, R]
    primary: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class _Pictures:
    """Synthetic ones and portraits, then their edits in the same order."""

    image: Tensor  # [2 N, 3, R, R] in [-1, 1], at the network's size
    hat: Tensor  # the same, inverted


def train(
    generator: Generator,
    encoder: Encoder,
    directions: Sequence[Sequence[Direction]],
    out: Path,
    settings: ReganieTraining = ReganieTraining(),
    config: ReganieConfig | None = None,
    *,
    morphs: MorphModel | None = None,
    held_out: Sequence[Direction] = (),
    distance: Distance | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Reganie:
    """Runs or resumes a training; returns the network with averaged weights, on the accelerator's device.

    Args:
        generator: frozen.
        encoder: frozen, of that generator.
        directions: families of them for the edits, see `Editor` and `families_of`.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        config: sizes of the network; None is the full one at 512 px and above, else the slim one.
        morphs: bank of photographs for the portraits; None trains on the generator's pictures alone.
        held_out: directions that the sheets and figures show; none of them should be in `directions`. None: the first.
        distance: perceptual distance; None: `multiscale_distance`.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder holds a run of another network.
    """
    accelerator = accelerator or make_accelerator()
    config = config or config_for(generator)
    run = _Run(generator, encoder, directions, settings, config, accelerator, morphs, held_out, distance)
    run_training(
        run, out, "reganie", settings.steps, settings.batch, _COLUMNS, accelerator, time_budget=time_budget,
        max_steps=max_steps, report_every=_REPORT_EVERY,
    )  # fmt: skip
    return run.finished()


def config_for(generator: Generator, **changes: Any) -> ReganieConfig:
    """The full network for generators of 512 px and above, the slim one at the generator's size below."""
    size = generator.resolution
    return ReganieConfig(**changes) if size >= 512 else ReganieConfig.slim(size, **changes)


class _Run:
    """Networks, optimisers and the step of one training."""

    def __init__(
        self,
        generator: Generator,
        encoder: Encoder,
        directions: Sequence[Sequence[Direction]],
        settings: ReganieTraining,
        config: ReganieConfig,
        accelerator: Accelerator,
        morphs: MorphModel | None = None,
        held_out: Sequence[Direction] = (),
        distance: Distance | None = None,
    ) -> None:
        device = accelerator.device
        self.settings, self.accelerator, self.step = settings, accelerator, 0
        self.distance = distance or multiscale_distance
        self.editor = Editor(directions, settings)
        self.held_out = [d for d in held_out if d.offset is not None] or self.editor.families[0][:1]
        self.morphs = None if morphs is None else morphs.to(device)
        self.generator = _channels_last(generator.to(device).eval().requires_grad_(False))
        self.encoder = _channels_last(encoder.to(device).eval().requires_grad_(False))
        self.dtype = HALF_TYPES.get(accelerator.mixed_precision, torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = Reganie(config)
            sizes = DiscriminatorConfig(config.resolution, settings.widths(config.resolution), mbstd_channels=0)
            discriminator = Discriminator(sizes)
        self.network = _channels_last(network.to(device).train())
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = self._adam(self.network, 1.0)
        self.discriminator: Discriminator | None = None
        if settings.adversarial:
            self.discriminator = _channels_last(discriminator.to(device).train())
            # Lazy regularisation: one step in `r1_every` counts double, so the others weigh a little less.
            self.lazy = settings.r1_every / (settings.r1_every + 1)
            self.discriminator_optimiser = self._adam(self.discriminator, self.lazy)
        self._prepared: tuple[int, _Pictures] | None = None

    def _adam(self, network: torch.nn.Module, lazy: float) -> Any:
        rate = self.settings.learning_rate * lazy
        adam = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99**lazy))
        return self.accelerator.prepare_optimizer(adam, device_placement=False)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        adversary = {}
        if self.discriminator is not None:
            adversary = {
                "discriminator": self.discriminator.state_dict(),
                "optimiser": self.discriminator_optimiser.state_dict(),
            }
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "adversary": adversary,
            "scaler": scaler_state(self.accelerator),
            "settings": dataclasses.asdict(self.settings),
            "config": dataclasses.asdict(self.network.config),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        found, wanted = ReganieConfig(**state["config"]), self.network.config
        if dataclasses.replace(found, domain=wanted.domain) != wanted:
            raise InvalidInputError(
                f"The run in this folder trains another network ({found}) than the one asked for ({wanted}). "
                "Use another folder, or the options it was begun with."
            )
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.discriminator is not None and state["adversary"]:
            self.discriminator.load_state_dict(state["adversary"]["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["adversary"]["optimiser"])
        load_scaler_state(self.accelerator, state["scaler"])

    def random(self, stream: int, step: int | None = None) -> torch.Generator:
        """Random numbers of this step and process."""
        return process_generator(self.accelerator, self.settings.seed, self.step if step is None else step, stream)

    def one_step(self) -> dict[str, float]:
        """One update of both networks; returns the losses by name."""
        settings = self.settings
        rate = settings.learning_rate * cosine(self.step, settings.steps, 0, settings.final_learning_rate)
        _set_rate(self.optimiser, rate)
        triplets = self.triplets()
        judging = self.discriminator is not None and self.step >= settings.adversarial_start
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            rectified = self.network(triplets.primary, triplets.difference).float()
        losses = {
            "l1": (rectified - triplets.wanted).abs().mean(),
            "perceptual": self.distance(rectified, triplets.wanted).mean(),
        }
        if judging:
            losses["adversarial"] = F.softplus(-self._judge(rectified)).mean()
        loss = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        self._update(self.optimiser, self.network, loss)
        values = {name: value.item() for name, value in {"loss": loss, **losses}.items()}
        if judging:
            _set_rate(self.discriminator_optimiser, rate * self.lazy)
            values |= self._discriminator_step(triplets.wanted, rectified.detach())
        self.step += 1
        update_ema(self.average, self.network, min(settings.ema_decay, self.step / (9 + self.step)))
        return {**values, "rate": rate}

    def triplets(self) -> Triplets:
        """Those of this step."""
        settings, made_at = self.settings, self.step - self.step % self.settings.uses
        if self._prepared is None or self._prepared[0] != made_at:
            self._prepared = made_at, self._pictures(made_at)
        return self._drawn(self._prepared[1], settings.batch)

    @torch.no_grad()
    def _pictures(self, step: int) -> _Pictures:
        """X, Y and portraits for all steps up to the next multiple of `uses`, inverted."""
        settings = self.settings
        portraits = 0
        if self.morphs is not None:
            wanted = settings.batch * settings.portrait_share
            portraits = int(wanted + torch.rand((), generator=self.random(_SHARE, step)).item())  # right on average
            portraits = min(portraits, settings.batch)
        count = settings.batch - portraits
        originals, edits = [], []
        if count:
            w_plus = self._codes(count, step)
            originals.append(self._draw(w_plus).clamp(-1, 1))
            edits.append(self._draw(self.editor(w_plus, self.random(_EDITS, step))).clamp(-1, 1))
        if portraits:
            own, edited = self._portraits(portraits, lambda stream: self.random(stream, step))
            originals.append(own)
            edits.append(edited)
        return self._inverted(torch.cat((*originals, *edits)))

    def _inverted(self, image: Tensor) -> _Pictures:
        hat, side = self._draw(self._encoded(image)), (self.average.config.resolution,) * 2
        image, hat = (resized(x, side).contiguous(memory_format=torch.channels_last) for x in (image, hat))
        return _Pictures(image, hat)

    def _codes(self, count: int, step: int) -> Tensor:
        generator, device = self.generator, self.accelerator.device
        z = torch.randn(2, count, generator.config.z_dim, generator=self.random(_Z, step)).to(device)
        w, other = generator.mapping(z[0]), generator.mapping(z[1])
        coins = self.random(_MIXING, step)
        cutoff = torch.randint(1, generator.num_ws, (count,), generator=coins)
        never = torch.rand(count, generator=coins) >= self.settings.style_mixing
        cutoff = torch.where(never, torch.full_like(cutoff, generator.num_ws), cutoff).to(device)
        rows = torch.arange(generator.num_ws, device=device)
        return torch.where((rows < cutoff[:, None])[..., None], generator.broadcast(w), generator.broadcast(other))

    def _draw(self, w_plus: Tensor) -> Tensor:
        with self.accelerator.autocast():
            parts = [self.generator.synthesis(part, dtype=self.dtype).float() for part in w_plus.split(_CHUNK)]
        return torch.cat(parts)

    def _encoded(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            parts = [
                cast(Tensor, self.encoder(part, self.generator, self.settings.encoder_iterations)).float()
                for part in image.split(_CHUNK)
            ]
        return torch.cat(parts)

    def _portraits(self, count: int, random: Callable[[int], torch.Generator]) -> tuple[Tensor, Tensor]:
        """Morphs, most of them with objects, at the generator's size, and edits of them with the same objects."""
        assert self.morphs is not None
        morphs, settings, drawing = self.morphs, self.settings, random(_MORPHS)
        codes = morphs.draw_codes(count, drawing).to(self.accelerator.device)
        edited = morphs.draw_edits(codes, drawing, settings.portrait_edits)

        def photographed(codes: Tensor) -> Tensor:
            image = morphs.render(codes, self.generator.resolution)
            image = deformed(image, settings.deformation, random(_DEFORM)).clamp(-1, 1)
            return occlude_some(image, settings.occluded_share, random(_OBJECTS), count=settings.objects)[0]

        return photographed(codes), photographed(edited)

    def _drawn(self, pictures: _Pictures, batch: int) -> Triplets:
        """One triplet for each picture, drawn anew at each step."""
        kinds = torch.randint(3, (batch,), generator=self.random(_TRIPLETS))
        own = torch.arange(batch)
        wanted = torch.where(kinds == 1, own + batch, own).to(pictures.image.device)
        seen = torch.where(kinds == 0, own + batch, own).to(pictures.image.device)
        missing = pictures.image[seen] - pictures.hat[seen]
        found = [missing, pictures.hat[wanted], pictures.image[wanted]]
        if self.settings.uses > 1:
            turned = (torch.rand(batch, generator=self.random(_MIRROR)) < 0.5).to(missing.device)[:, None, None, None]
            found = [torch.where(turned, x.flip(3), x) for x in found]
        return Triplets(*(x.contiguous(memory_format=torch.channels_last) for x in found))

    def _judge(self, images: Tensor) -> Tensor:
        assert self.discriminator is not None
        with self.accelerator.autocast():
            return self.discriminator(images).float()

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        assert self.discriminator is not None
        settings = self.settings
        self.discriminator.requires_grad_(True)
        on_real, on_fake = self._judge(real), self._judge(fake)
        loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        self._update(self.discriminator_optimiser, self.discriminator, loss)
        values = {"discriminator": loss.item(), "real": on_real.mean().item(), "fake": on_fake.mean().item()}
        if settings.r1 and self.step % settings.r1_every == 0:
            images = real.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.discriminator(images).sum(), images, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3)).mean()
            self._update(
                self.discriminator_optimiser, self.discriminator, penalty * (settings.r1 / 2) * settings.r1_every
            )
            values["r1"] = penalty.item()
        return values

    def _update(self, optimiser: Any, network: torch.nn.Module, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        share_gradients(self.accelerator, list(network.parameters()))
        optimiser.step()

    def finished(self) -> Reganie:
        """A copy of the averaged network."""
        return cast(Reganie, cast(Any, copy.deepcopy(self.average)).to(memory_format=torch.contiguous_format))

    @torch.no_grad()
    def samples(self, path: Path) -> dict[str, float]:
        """Unseen pictures, plain, rectified, edited by a held-out direction, and that rectified. Figures of the average.

        "edited" figures compare with the true edit: of the generator's own pictures by those directions, of portraits by
        the morph, whose inversion stands for the edited one.
        """
        held = lambda stream: step_generator(12345, 0, stream)  # noqa: E731
        portraits = _HELD_OUT // 2 if self.morphs is not None else 0
        count = _HELD_OUT - portraits
        z = torch.randn(count, self.generator.config.z_dim, generator=held(_Z)).to(self.accelerator.device)
        codes = self.generator.broadcast(self.generator.mapping(z))
        image = self._draw(codes).clamp(-1, 1)
        found: dict[str, float] = {}
        if portraits:
            pair = self._portraits(portraits, held)
            image = torch.cat((image, pair[0]))
            known = self._inverted(torch.cat(pair))
            moved = self.average(known.hat[portraits:], known.image[:portraits] - known.hat[:portraits])
            for name, pictures in (("edited_plain", known.hat[portraits:]), ("edited", moved)):
                found[f"portraits_{name}"] = psnr(pictures.clamp(-1, 1), known.image[portraits:]).mean().item()
        plain = Inversion(image, self._encoded(image), self.generator)
        rectified = rectify(plain, self.average)
        rows = [image, render(plain), render(rectified)]
        for index, direction in enumerate(self.held_out):
            edit = Edit.of(direction, _SHOWN * direction.limits[1])
            truth = self._draw(edit.apply(codes)).clamp(-1, 1)
            edited = [render(plain, edit), render(rectified, edit)]
            for name, pictures in zip(("edited_plain", "edited"), edited, strict=True):
                better = psnr(pictures[:count].clamp(-1, 1), truth).mean().item() / len(self.held_out)
                found[name] = found.get(name, 0.0) + better
            if not index:
                rows += edited
        for name, pictures in zip(("plain", "rectified"), rows[1:3], strict=True):
            each = psnr(pictures.clamp(-1, 1), image)
            found[name] = each[:count].mean().item()
            if portraits:
                found[f"portraits_{name}"] = each[count:].mean().item()
        logger.info("%s: %s dB", path.name, ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        write_sheet(torch.cat(rows), path, columns=_HELD_OUT)
        return {f"psnr_{name}": value for name, value in sorted(found.items())}


def _set_rate(optimiser: Any, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _channels_last(module: Any) -> Any:
    return module.to(memory_format=torch.channels_last)  # an overload that some versions' stubs leave out


@dataclass(frozen=True)
class DryRun:
    """What one step costs."""

    parameters: int
    discriminator_parameters: int
    seconds_per_step: float  # without the first step
    peak_bytes: int | None  # of the process on a CPU, of the tensors on a GPU

    def __str__(self) -> str:
        memory = "unknown" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.1f} GiB"
        return (
            f"dry run: {self.parameters / 1e6:.1f} million parameters (discriminator "
            f"{self.discriminator_parameters / 1e6:.1f}), {self.seconds_per_step:.2f} seconds per step, peak memory {memory}"
        )


def dry_run(
    settings: ReganieTraining = ReganieTraining(),
    config: ReganieConfig = ReganieConfig(),
    *,
    generator: GeneratorConfig | None = None,
    encoder: EncoderConfig | None = None,
    distance: Distance | None = None,
    accelerator: Accelerator | None = None,
    steps: int = 3,
) -> DryRun:
    """Some steps with random networks of full size, to see what a training will take.

    Args:
        settings: batch and widths count.
        config: of the network.
        generator, encoder: sizes; None is FFHQ's: a 1024 px config-f and e4e's IR-SE50.
        distance: perceptual distance; None: `multiscale_distance`.
        accelerator: see `common.make_accelerator`; None is the CPU.
        steps: to measure, after one that is not counted; the discriminator and R1 are part of the first.
    """
    accelerator = accelerator or make_accelerator()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        drawing = Generator(generator or GeneratorConfig.official(1024))
        encoding = Encoder(encoder or EncoderConfig(num_ws=drawing.num_ws))
    found = families_of(drawing, (), 4, 0)
    settings = dataclasses.replace(settings, adversarial_start=0)
    run = _Run(drawing, encoding, found, settings, config, accelerator, distance=distance)
    run.one_step()
    begun = time.monotonic()
    for _ in range(steps):
        run.one_step()  # reads its losses back, so a GPU has finished too
    sizes = [sum(p.numel() for p in net.parameters()) for net in (run.network, run.discriminator) if net is not None]
    seconds = (time.monotonic() - begun) / steps
    return DryRun(sizes[0], sizes[1] if len(sizes) > 1 else 0, seconds, peak_memory(accelerator.device))


class DirectionRegistry(Registry, Protocol):
    """`Registry` with directions."""

    def load_direction(self, path_or_id: str | Path) -> Direction:
        """Reads one direction from a file or the catalogue."""


def main(argv: Sequence[str], registry: DirectionRegistry) -> Path | str:
    """`gan-inversion train reganie`: trains or resumes ReGANIE for a generator and an encoder."""
    parser = argparse.ArgumentParser(prog="gan-inversion train reganie", description=__doc__.split("\n")[0])
    add_common_arguments(parser, portraits_required=False)
    defaults = ReganieTraining()
    parser.add_argument("--generator", default="portraits", help="file or catalogue id")
    parser.add_argument("--encoder", default="portraits-e4e", help="file or catalogue id, of that generator")
    parser.add_argument(
        "--directions",
        nargs="*",
        default=None,
        help="files or catalogue ids for the edits; default: the bundled ones for the generator 'portraits', else none",
    )
    parser.add_argument("--held-out", nargs="*", default=(), help="directions for sheets and figures only")
    parser.add_argument("--sefa", type=int, default=8, metavar="COUNT", help="directions of SeFa for the edits")
    parser.add_argument("--pca", type=int, default=12, metavar="COUNT", help="principal components of w for the edits")
    judging = parser.add_mutually_exclusive_group()
    judging.add_argument(
        "--perceptual", default="portraits-perceptual", help="trunk, file or id; 'none': multi-scale L1"
    )
    judging.add_argument("--lpips", action="store_true", help="LPIPS on VGG16, as the paper has it")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument(
        "--final-learning-rate", type=float, default=defaults.final_learning_rate, help="fraction; 1: fixed rate"
    )
    parser.add_argument("--adversarial", type=float, default=defaults.adversarial, help="weight; 0: no discriminator")
    parser.add_argument("--adversarial-start", type=int, default=defaults.adversarial_start, metavar="STEP")
    parser.add_argument("--r1", type=float, default=defaults.r1)
    parser.add_argument("--portrait-share", type=float, default=defaults.portrait_share, help="with --portraits")
    parser.add_argument("--occluded-share", type=float, default=defaults.occluded_share, help="of the portraits")
    parser.add_argument(
        "--portrait-edits", type=float, default=defaults.portrait_edits, help="greatest edit of a portrait"
    )
    parser.add_argument("--uses", type=int, default=defaults.uses, help="steps that the pictures of one step serve")
    parser.add_argument("--ema-decay", type=float, default=defaults.ema_decay, help="of the averaged weights")
    parser.add_argument("--dry-run", action="store_true", help="a few steps with random networks of FFHQ's size")
    sizes = parser.add_argument_group("ablations", "sizes of the network in place of the full or slim one's")
    sizes.add_argument("--spatial-channels", type=int)
    sizes.add_argument("--global-channels", type=int)
    sizes.add_argument("--base-blocks", type=int, help="residual blocks on f_x")
    sizes.add_argument("--encoder-widths", type=int, nargs="+")
    sizes.add_argument("--generator-widths", type=int, nargs="+")
    sizes.add_argument("--code-scale", choices=("unit", "rms", "free"))
    sizes.add_argument(
        "--global-first", action="store_true", default=None, help="the spatial code second in each block"
    )
    sizes.add_argument(
        "--residual",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="add what is drawn to the primary picture (the slim network does)",
    )
    options = parser.parse_args(argv)

    keep_freed_memory()
    names = (
        *("steps", "learning_rate", "final_learning_rate", "adversarial", "adversarial_start", "r1"),
        *("portrait_share", "occluded_share", "portrait_edits", "uses", "ema_decay"),
    )
    settings = dataclasses.replace(
        defaults, batch=options.batch or defaults.batch, **{name: getattr(options, name) for name in names}
    )
    ablations = ("spatial_channels", "global_channels", "base_blocks", "encoder_widths", "generator_widths")
    changes = {name: getattr(options, name) for name in (*ablations, "code_scale", "global_first", "residual")}
    changes = {name: value for name, value in changes.items() if value is not None}
    accelerator = make_accelerator(options.device, options.mixed_precision)
    distance: Distance | None = None
    if options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
    elif options.perceptual != "none":
        from ..perceptual import trunk_distance

        trunk = registry.load_model(options.perceptual).module
        distance = trunk_distance(trunk.to(accelerator.device).eval().requires_grad_(False))
    if options.dry_run:
        return str(dry_run(settings, ReganieConfig(**changes), distance=distance, accelerator=accelerator))
    loaded = registry.load_model(options.generator)
    generator = loaded.module
    bundled = BUNDLED_DIRECTIONS if options.generator == "portraits" else ()
    given = [name for name in (bundled if options.directions is None else options.directions)]
    taught = [registry.load_direction(name) for name in given if name not in options.held_out]
    domain = getattr(loaded, "domain", None)
    network = train(
        generator,
        registry.load_model(options.encoder).module,
        families_of(generator, taught, options.sefa, options.pca),
        options.runs / "reganie",
        settings,
        config_for(generator, domain=domain, **changes),
        morphs=load_morphs(options.portraits, options.runs) if options.portraits is not None else None,
        held_out=[registry.load_direction(name) for name in options.held_out],
        distance=distance,
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if not accelerator.is_main_process:
        return options.out
    facts = {
        "generator": str(options.generator),
        "encoder": str(options.encoder),
        "directions": ", ".join(direction.name for direction in taught),
        "held_out": ", ".join(map(str, options.held_out)),
    }
    if options.portraits is not None or domain == "portraits":
        facts = card("ReGANIE", settings, **facts)
    else:
        facts |= {"title": "ReGANIE", "settings": json.dumps(dataclasses.asdict(settings))}
    return registry.save_model(network.cpu(), options.out, facts, torch.float16)
