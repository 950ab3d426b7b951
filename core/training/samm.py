"""Trains SAMM for a generator and an encoder: flows and masks that bring inversions to photographs with foreign objects.

Paper: Yang, Xu & Chen, "Out-of-domain GAN Inversion via Invertibility Decomposition" (ICCV 2023). Reference
implementation: AbnerVictor/OOD-GAN-inversion `src/models/OOD_faceGAN_model.py`, `options/train/E4E_Face.yml`: squared
error, perceptual and style distance, identity and discriminator on the blended picture; the mean of each mask above an
allowance, and its distance from 0 and 1. Generator and encoder are frozen; levels open one after another.

Pictures are morphs of --portraits, or a folder's (--images). The original's training is `--paper`
(`samm_settings.paper_settings`): real photographs, whose masks nobody knows.
Deviations of the defaults: objects are drawn on the pictures (core/training/occluders), whose exact masks are known. A
binary cross-entropy on the masks makes use of that: alone in a first stage ("masks"), in which no gradient passes the
generator, then beside the paper's losses ("images"). Stored noise; flows start small; Adam with momentum, higher
learning rates, a cosine schedule and clipped gradients, for a training of hours on a CPU; ten times the rate for the last
normalisations, whose few numbers set how sure masks are and are what the training waits for. The style distance is off,
because the small perceptual trunk is not made for it (the original: 50, on VGG19: --vgg19).
Deviations of --paper: the discriminator takes its step after SAMM's, on the same picture; the average of the weights
follows faster in the first steps; the encoder's picture is resized with antialiasing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..discriminator import Discriminator, DiscriminatorConfig
from ..encoders import Encoder
from ..errors import InvalidInputError
from ..generator import Generator
from ..losses import Distance, multiscale_distance
from ..metrics import psnr
from ..samm import Found, Samm, SammConfig, alignment_penalties, merge_levels
from .arcface import ArcFace
from .common import (
    Registry,
    card,
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
from .encoder import Embedder, deformed
from .images import FolderFiles, FolderImages, MorphImages, RealImages
from .morphs import MorphModel
from .occluders import occlude_some
from .samm_options import make_parser, settings_from
from .samm_settings import SammTraining, paper_settings
from .vgg19 import LAYERS, VGG19, weighted_l1

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Features = Callable[[Tensor], Sequence[Tensor]]  # [B, 3, H, W] in [-1, 1] -> maps [B, C, h, w]

_HELD_OUT = 8
_HELD_OUT_SHARE = 0.1  # of a small folder; of a large one _HELD_OUT_MOST pictures are kept out of the training
_HELD_OUT_MOST = 64
_SHEET_SIDE = 256  # pixels of a picture on a sheet
_REPORT_EVERY = 20
_CHECKPOINT_SECONDS, _LARGE_CHECKPOINT_SECONDS = 180.0, 900.0  # the latter from 512 px on: a gigabyte each
_PICTURES, _DEFORM, _OBJECTS, _ITERATIONS, _NOISE = range(5)  # streams of random numbers
_COLUMNS = (
    "loss",
    "l2",
    "perceptual",
    "style",
    "identity",
    "adversarial",
    "area",
    "binary",
    "mask",
    "discriminator",
)


@dataclass(frozen=True)
class Judges:
    """Frozen networks that the losses ask; None leaves the loss out.

    The perceptual distance is `distance`; without one, the L1 of the maps of `features`; without those,
    `multiscale_distance`.
    """

    distance: Distance | None = None  # perceptual
    features: Features | None = None  # for the style distance
    feature_weights: tuple[float, ...] = ()  # of its maps; (): 1 each
    identity: Embedder | None = None
    discriminator: Discriminator | None = None  # copied and trained on


def train(
    pictures: RealImages | MorphModel,
    generator: Generator,
    encoder: Encoder,
    out: Path,
    settings: SammTraining = SammTraining(),
    *,
    judges: Judges = Judges(),
    held_out: RealImages | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Samm:
    """Runs or resumes a training; returns the network with averaged weights, on the accelerator's device.

    Args:
        pictures: draws pictures of the generator's size; a bank stands for its morphs.
        generator: frozen.
        encoder: frozen, of that generator.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        judges: networks for the losses.
        held_out: where the pictures of the sheets come from; None: `pictures`, which serves where each is new.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder holds a run with other sizes, or `allowed_area` is too short.
    """
    accelerator = accelerator or make_accelerator()
    run = _Run(pictures, generator, encoder, settings, judges, accelerator, held_out)
    every = _CHECKPOINT_SECONDS if generator.resolution < 512 else _LARGE_CHECKPOINT_SECONDS
    run_training(
        run, out, "samm", settings.total, settings.batch, _COLUMNS, accelerator, time_budget=time_budget,
        max_steps=max_steps, report_every=_REPORT_EVERY, checkpoint_seconds=every,
    )  # fmt: skip
    return cast(Samm, cast(Any, copy.deepcopy(run.average)).to(memory_format=torch.contiguous_format))


def style_distance(found: Sequence[Tensor], wanted: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum over maps of the mean absolute difference of Gram matrices, each divided by C h w; scalar."""
    total = found[0].new_zeros(())
    for weight, a, b in zip(weights, found, wanted, strict=True):
        total = total + weight * (_gram(a) - _gram(b)).abs().mean()
    return total


def _gram(features: Tensor) -> Tensor:
    flat = features.float().flatten(2)  # [B, C, h*w]
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def mask_cross_entropy(masks: Sequence[Tensor], exact: Tensor, rows: Tensor | None = None) -> Tensor:
    """Mean over masks of the cross-entropy with the exact mask [B, 1, H, W], brought to each one's size; scalar.

    rows: pictures whose exact mask is known; None: all; none of them: 0.
    """
    if rows is not None and not len(rows):
        return torch.stack([mask.float().sum() * 0 for mask in masks]).sum()
    losses = []
    for mask in masks:
        if rows is not None:
            mask = mask[rows]
        wanted = F.adaptive_avg_pool2d(exact, (mask.shape[2], mask.shape[3]))
        wanted = wanted if rows is None else wanted[rows]
        losses.append(F.binary_cross_entropy(mask.float().clamp(1e-4, 1 - 1e-4), wanted))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class _Batch:
    image: Tensor  # [B, 3, R, R] with objects
    mask: Tensor  # [B, 1, R, R], where they are
    known: Tensor | None  # pictures of which `mask` holds all that is foreign; None: of all
    w_plus: Tensor
    features: list[Tensor]

    def part(self, first: int, count: int) -> _Batch:
        """Some of the pictures; of those, `known` is not told."""
        rows = slice(first, first + count)
        features = [feature[rows] for feature in self.features]
        return _Batch(self.image[rows], self.mask[rows], None, self.w_plus[rows], features)


class _Run:
    """Networks, optimisers and the step of one training."""

    def __init__(
        self,
        pictures: RealImages | MorphModel,
        generator: Generator,
        encoder: Encoder,
        settings: SammTraining,
        judges: Judges,
        accelerator: Accelerator,
        held_out: RealImages | None = None,
    ) -> None:
        device = accelerator.device
        self.settings, self.judges, self.accelerator, self.step = settings, judges, accelerator, 0
        if isinstance(pictures, MorphModel):
            pictures = MorphImages(pictures.to(device), generator.resolution)
        self.pictures, self.held_out = pictures, held_out or pictures
        self.generator = _channels_last(generator.to(device).eval().requires_grad_(False))
        self.encoder = _channels_last(encoder.to(device).eval().requires_grad_(False))
        usual = sum(settings.iterations) // 2
        config = SammConfig.for_networks(generator, encoder, warp_scale=settings.warp_scale, iterations=usual)
        if len(settings.allowed_area) != len(config.resolutions) + 1:
            raise InvalidInputError(
                f"allowed_area of {len(settings.allowed_area)} numbers: expected one for each level "
                f"({', '.join(map(str, config.resolutions))} px) and one for the merged mask."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            samm = Samm(config)
        with torch.no_grad():
            for resolution in config.resolutions:
                for norm in _last_norms(samm, resolution):
                    norm.weight[:2] = settings.flow_start
        self.samm = _channels_last(samm.to(device).train())
        self.average = copy.deepcopy(self.samm).eval().requires_grad_(False)
        last = [
            parameter
            for resolution in config.resolutions
            for norm in _last_norms(self.samm, resolution)
            for parameter in norm.parameters()
        ]
        self.optimiser = self._adam(self.samm, settings.learning_rate, settings.momentum, last, settings.last_norm_rate)
        self.discriminator: Discriminator | None = None
        if judges.discriminator is not None and settings.adversarial:
            self.discriminator = copy.deepcopy(judges.discriminator).to(device).train()
            self.discriminator_optimiser = self._adam(self.discriminator, settings.discriminator_learning_rate, 0.0)

    def _adam(
        self, network: nn.Module, rate: float, momentum: float, fast: Sequence[nn.Parameter] = (), factor: float = 1.0
    ) -> Any:
        """Adam of a network, whose `fast` parameters have a rate so many times as high."""
        network.requires_grad_(True)
        apart = {id(parameter) for parameter in fast}
        groups = [{"params": [p for p in network.parameters() if id(p) not in apart], "factor": 1.0}]
        if fast:
            groups.append({"params": list(fast), "factor": factor})
        adam = torch.optim.Adam(groups, lr=rate, betas=(momentum, 0.99))
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
            "samm": self.samm.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "adversary": adversary,
            "scaler": scaler_state(self.accelerator),
            "settings": dataclasses.asdict(self.settings),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.step = state["step"]
        try:
            self.samm.load_state_dict(state["samm"])
        except RuntimeError as error:
            raise InvalidInputError(
                f"The run in this folder has other sizes than the generator and encoder given: {error}. "
                "Use another folder, or the networks it was begun with."
            ) from error
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.discriminator is not None and state["adversary"]:
            self.discriminator.load_state_dict(state["adversary"]["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["adversary"]["optimiser"])
        load_scaler_state(self.accelerator, state["scaler"])

    def random(self, stream: int) -> torch.Generator:
        """Random numbers of this step and process."""
        return process_generator(self.accelerator, self.settings.seed, self.step, stream)

    def one_step(self) -> dict[str, float]:
        """One update; returns the losses by name."""
        settings = self.settings
        drawing = self.step >= settings.mask_steps
        within = self.step - (settings.mask_steps if drawing else 0)
        length = settings.image_steps if drawing else settings.mask_steps
        factor = settings.rate_factor(within, length)
        rate = factor * (settings.image_learning_rate if drawing else settings.learning_rate)
        _set_rate(self.optimiser, rate)
        judging = drawing and self.discriminator is not None and within >= settings.adversarial_start
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        batch = self._batch(self.pictures, self.random, settings.batch)
        noise = self.random(_NOISE) if settings.noise == "random" else None
        passes = self._passes() if drawing else 1
        levels = settings.open_levels(self.step)
        with self.accelerator.autocast():
            picture, found, merged = self._blended(self.samm, batch, levels, passes, noise, masks_only=not drawing)
        if drawing:
            losses = self._losses(picture.float(), found, merged, batch, judging)
        else:
            losses = {"mask": mask_cross_entropy(_all_masks(found, merged), batch.mask, batch.known)}
        loss = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        self._update(self.optimiser, self.samm, loss)
        values = {name: value.item() for name, value in {"loss": loss, **losses}.items()}
        if judging:
            _set_rate(self.discriminator_optimiser, settings.discriminator_learning_rate * factor)
            values["discriminator"] = self._discriminator_step(batch.image, picture.detach())
        self.step += 1
        update_ema(self.average, self.samm, min(settings.ema_decay, self.step / (9 + self.step)))
        return {**values, "rate": rate}

    def _passes(self) -> int:
        """Iterations of this step: the same in every process, so that none waits for a longer one."""
        least, greatest = self.settings.iterations
        random = step_generator(self.settings.seed, self.step, _ITERATIONS)
        return int(torch.randint(least, greatest + 1, (), generator=random))

    @torch.no_grad()
    def _batch(self, pictures: RealImages, random: Callable[[int], torch.Generator], size: int) -> _Batch:
        settings = self.settings
        image = pictures.draw(size, random(_PICTURES)).to(self.accelerator.device)
        image = deformed(image, settings.deformation, random(_DEFORM)).clamp(-1, 1)
        image, mask, occluded = occlude_some(image, settings.occluded_share, random(_OBJECTS), count=settings.objects)
        with self.accelerator.autocast():
            w_plus = cast(Tensor, self.encoder(image, self.generator, settings.encoder_iterations))
            features = self.encoder.features(image, self.generator, settings.encoder_iterations)
        known = None if settings.clean_pictures else occluded
        return _Batch(image, mask, known, w_plus.float(), [feature.float() for feature in features])

    def _blended(
        self,
        samm: Samm,
        batch: _Batch,
        levels: int,
        iterations: int | None = None,
        noise: torch.Generator | None = None,
        masks_only: bool = False,
    ) -> tuple[Tensor, Found, Tensor]:
        """Picture [B, 3, R, R], what the levels found, and the merged mask.

        noise: draws the generator's noise; None: the stored one. masks_only: no gradient goes by features.
        """
        hooks, found = samm.hooks(samm.encoded(batch.features, levels), iterations, detach=masks_only)
        kind = "const" if noise is None else "random"
        drawn = self.generator.synthesis(batch.w_plus, kind, generator=noise, hooks=hooks)
        merged = merge_levels(found.masks, drawn.shape[2])
        return torch.lerp(drawn, batch.image, merged.to(drawn)), found, merged

    def _losses(self, picture: Tensor, found: Found, merged: Tensor, batch: _Batch, judging: bool) -> dict[str, Tensor]:
        settings, judges = self.settings, self.judges
        masks = _all_masks(found, merged)
        allowed: list[float | Tensor] = [*settings.allowed_area[: len(masks) - 1], settings.allowed_area[-1]]
        if settings.mask:
            exact_area = batch.mask.mean(dim=(1, 2, 3))
            allowed = [exact_area.clamp(min=float(phi)) for phi in allowed]
        area, binary = alignment_penalties(masks, allowed)
        # In this order: gradients are added up in the order in which the losses were computed.
        losses = {"l2": (picture - batch.image).square().mean()}
        losses["perceptual"], style = self._perceptual(picture, batch.image)
        losses |= {
            "area": area.mean(),
            "binary": binary.mean(),
        }
        if settings.mask:
            losses["mask"] = mask_cross_entropy(masks, batch.mask, batch.known)
        if style is not None:
            losses["style"] = style
        if judges.identity is not None and settings.identity:
            with torch.no_grad():
                person = judges.identity(batch.image)
            losses["identity"] = (1 - (judges.identity(picture) * person).sum(dim=1)).mean()
        if judging and self.discriminator is not None:
            losses["adversarial"] = F.softplus(-self.discriminator(picture).float()).mean()
        return losses

    def _perceptual(self, picture: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Perceptual and style distance, scalars; the maps of `Judges.features` are computed once for both."""
        judges, style = self.judges, None
        if judges.features is not None and (self.settings.style or judges.distance is None):
            with torch.no_grad():
                maps = judges.features(wanted)
            found, weights = judges.features(picture), judges.feature_weights or (1.0,) * len(maps)
            style = style_distance(found, maps, weights) if self.settings.style else None
            if judges.distance is None:
                return weighted_l1(found, maps, weights).mean(), style
        return (judges.distance or multiscale_distance)(picture, wanted).mean(), style

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> float:
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        with self.accelerator.autocast():
            on_real, on_fake = self.discriminator(real).float(), self.discriminator(fake.float()).float()
        loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        self._update(self.discriminator_optimiser, self.discriminator, loss)
        return loss.item()

    def _update(self, optimiser: Any, network: nn.Module, loss: Tensor) -> None:
        parameters = list(network.parameters())
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        share_gradients(self.accelerator, parameters)
        self.accelerator.unscale_gradients(optimiser)
        nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        optimiser.step()

    @torch.no_grad()
    def samples(self, path: Path) -> dict[str, float]:
        """Unseen pictures, their plain inversions, blended ones and masks. Returns figures of the averaged network."""
        batch = self._batch(self.held_out, lambda stream: step_generator(12345, 0, stream), _HELD_OUT)
        levels, size = self.settings.open_levels(self.step), self.settings.batch
        parts = [batch.part(first, size) for first in range(0, _HELD_OUT, size)]  # no more memory than in training
        blended = [self._blended(self.average, part, levels) for part in parts]
        picture, merged = torch.cat([p for p, _, _ in blended]), torch.cat([m for _, _, m in blended])
        plain = torch.cat([self.generator.synthesis(part.w_plus) for part in parts])
        rows = slice(None) if batch.known is None else batch.known
        wanted, given = batch.mask[rows] > 0.5, merged[rows] > 0.5
        overlap = (
            (wanted & given).sum() / (wanted | given).sum().clamp(min=1) if len(wanted) else torch.tensor(math.nan)
        )
        found = {
            "psnr": psnr(picture.clamp(-1, 1), batch.image).mean().item(),
            "psnr_plain": psnr(plain.clamp(-1, 1), batch.image).mean().item(),
            "mask_overlap": overlap.item(),
            "area": merged.mean().item(),
            "exact_area": batch.mask.mean().item(),
        }
        logger.info("%s: %s", path.name, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        grey = (merged * 2 - 1).expand(-1, 3, -1, -1)
        sheet = torch.cat((batch.image, plain, picture, grey))
        if sheet.shape[2] > _SHEET_SIDE:
            sheet = F.interpolate(sheet, size=_SHEET_SIDE, mode="bilinear", antialias=True)
        write_sheet(sheet, path, columns=_HELD_OUT)
        return found


def _last_norms(samm: Samm, resolution: int) -> list[nn.InstanceNorm2d]:
    """The two normalisations whose sum is a level's flow and mask, before tanh and sigmoid: they set how sure masks are."""
    unit = cast(Any, samm.level(resolution).body.body[1])
    return [unit.res_layer[4], unit.shortcut_layer[1]]


def _all_masks(found: Found, merged: Tensor) -> list[Tensor]:
    """Those of the levels, coarse first, and the merged one."""
    return [*(found.masks[resolution].float() for resolution in sorted(found.masks)), merged.float()]


def _set_rate(optimiser: Any, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def _channels_last(module: Any) -> Any:
    return module.to(memory_format=torch.channels_last)  # an overload that some versions' stubs leave out


def main(argv: Sequence[str], registry: Registry) -> Path | str:
    """`gan-inversion train samm`: trains or resumes SAMM for a generator and an encoder; writes safetensors.

    With --dry-run it measures steps on random weights, writes the figures to --out and returns them as JSON.
    """
    parser = make_parser(__doc__.split("\n")[0])
    options = parser.parse_args(argv)
    keep_freed_memory()
    accelerator = make_accelerator(options.device, options.mixed_precision)
    if options.dry_run is not None:
        from .samm_dry_run import dry_run

        text = json.dumps(dry_run(options.dry_run, batch=options.batch, accelerator=accelerator), indent=1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
        return text
    if (options.portraits is None) == (options.images is None):
        parser.error("give either --portraits or --images (or --dry-run)")
    if options.paper and options.vgg19 is None:
        parser.error("--paper needs --vgg19 FILE: its perceptual and style distance are those of VGG19")
    if options.paper and options.arcface is None and options.identity is None:
        parser.error("--paper needs --arcface FILE (model_ir_se50.pth), or --identity MODEL, or --identity none")
    settings = settings_from(options)

    def judge(name: str) -> Any:
        if name == "none":
            return None
        return registry.load_model(name).module.to(accelerator.device).eval().requires_grad_(False)

    generator, encoder = (registry.load_model(name).module for name in (options.generator, options.encoder))
    distance: Distance | None = None
    features: VGG19 | None = None
    feature_weights: tuple[float, ...] = ()
    if options.vgg19 is not None:
        features, feature_weights = VGG19.load(options.vgg19).to(accelerator.device), tuple(LAYERS.values())
    elif options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
    elif options.perceptual != "none":
        from ..perceptual import trunk_distance

        distance = trunk_distance(judge(options.perceptual))
    if options.arcface is not None:
        identity: Any = ArcFace.load(options.arcface).to(accelerator.device)
    else:
        identity = judge(options.identity or "portraits-identity")
    discriminator = options.discriminator or ("new" if options.images or options.paper else "none")
    if discriminator != "none" and not settings.adversarial:
        settings = dataclasses.replace(settings, adversarial=paper_settings().adversarial)
    adversary = new_discriminator(generator, settings.seed) if discriminator == "new" else judge(discriminator)
    pictures, held_out = _pictures(options, generator.resolution, accelerator)
    samm = train(
        pictures,
        generator,
        encoder,
        options.runs / "samm",
        settings,
        judges=Judges(distance, features, feature_weights, identity, adversary),
        held_out=held_out,
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if not accelerator.is_main_process:
        return options.out
    facts = {"generator": str(options.generator), "encoder": str(options.encoder)}
    if options.images is not None:
        domain = encoder.config.domain or "custom"
        facts |= {"title": options.out.stem, "domain": domain, "licence": "unknown"}
        facts["data"] = f"pictures of {options.images.name}"
    return registry.save_model(samm.cpu(), options.out, card("SAMM", settings, **facts), torch.float16)


def _pictures(
    options: argparse.Namespace, resolution: int, accelerator: Accelerator
) -> tuple[RealImages | MorphModel, RealImages | None]:
    """Pictures for training and others for the sheets; None: the same."""
    with accelerator.main_process_first():
        if options.images is None:
            return load_morphs(options.portraits, options.runs), None
        mirror, device, folder = not options.no_mirror, accelerator.device, options.runs / "samm"
        if options.no_cache:
            found: FolderFiles | FolderImages = FolderFiles.open(
                options.images, resolution, mirror=mirror, device=device
            )
        else:
            found = FolderImages.open(options.images, folder, resolution, mirror=mirror, device=device)
    return found.split(max(1, min(_HELD_OUT_MOST, round(len(found) * _HELD_OUT_SHARE))))


def new_discriminator(generator: Generator, seed: int) -> Discriminator:
    """A discriminator of the generator's widths with random weights: the original's start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(DiscriminatorConfig(generator.resolution, generator.config.channels))
