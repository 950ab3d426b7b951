"""Trains SAMM for a generator and an encoder: flows and masks that bring inversions to photographs with foreign objects.

Paper: Yang, Xu & Chen, "Out-of-domain GAN Inversion via Invertibility Decomposition" (ICCV 2023). Reference
implementation: AbnerVictor/OOD-GAN-inversion `src/models/OOD_faceGAN_model.py`, `options/train/E4E_Face.yml`: squared
error, perceptual and style distance, identity and discriminator on the blended picture; the mean of each mask above an
allowance, and its distance from 0 and 1. Generator and encoder are frozen; levels open one after another.

Deviations: pictures are morphs with drawn objects (core/training/occluders), whose exact masks are known. A binary
cross-entropy on every mask makes use of that: alone in a first stage ("masks"), in which no gradient passes the
generator, then beside the paper's losses ("images"). `mask_steps` 0 and `mask` 0 is the paper's training. Stored noise;
flows start small; Adam with momentum, higher learning rates, a cosine schedule and clipped gradients, for a training of
hours on a CPU. The style distance is
off by default, because the small perceptual trunk is not made for it (the original: 50, on VGG19: --vgg19).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..discriminator import Discriminator
from ..encoders import Encoder
from ..errors import InvalidInputError
from ..generator import Generator
from ..losses import Distance, multiscale_distance
from ..metrics import psnr
from ..samm import Found, Samm, SammConfig, alignment_penalties, merge_levels
from .common import (
    Registry,
    RunLog,
    add_common_arguments,
    agreed,
    card,
    cosine,
    keep_freed_memory,
    load_checkpoint,
    load_morphs,
    load_scaler_state,
    make_accelerator,
    process_generator,
    save_checkpoint,
    scaler_state,
    share_gradients,
    step_generator,
    update_ema,
    write_sheet,
)
from .encoder import Embedder, deformed
from .morphs import MorphModel
from .occluders import occlude
from .vgg19 import LAYERS, VGG19, vgg_distance

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Features = Callable[[Tensor], Sequence[Tensor]]  # [B, 3, H, W] in [-1, 1] -> maps [B, C, h, w]

_OFFICIAL_STYLE = 50.0  # weight, on VGG19
_HELD_OUT = 8
_REPORT_EVERY = 20
_CODES, _DEFORM, _OBJECTS, _ITERATIONS = range(4)  # streams of random numbers
_FLOW_START = 0.1  # of the flow channels' normalisation at the start: shifts are near zero at first
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
class SammTraining:
    """Settings of a run; weights are the paper's unless said otherwise."""

    mask_steps: int = 1000
    image_steps: int = 500
    batch: int = 4
    occluded_share: float = 0.85  # of the pictures: those with objects
    objects: tuple[int, int] = (1, 2)  # in such a picture
    deformation: float = 0.02  # of the faces, see `encoder.deformed`
    iterations: tuple[int, int] = (1, 3)  # of Algorithm 1, drawn for each step; the original: 2
    encoder_iterations: int = 5  # ReStyle's passes
    warp_scale: float = 0.08
    level_every: int = 50  # steps to the next finer level; the original opens them at 2000, 6000, 10000 of 1.8 million
    adversarial_start: int = 100  # step of the image stage from which the discriminator counts
    learning_rate: float = 1e-3
    image_learning_rate: float = 3e-4  # the original: 2e-5 for a thousand times as many steps
    discriminator_learning_rate: float = 2e-5
    final_learning_rate: float = 0.05  # fraction of a learning rate at the end of its stage
    warmup: int = 50  # steps of each stage
    clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.99
    l2: float = 1.0
    perceptual: float = 1.0
    style: float = 0.0
    identity: float = 0.1
    adversarial: float = 0.5
    area: float = 5.0
    binary: float = 0.2
    mask: float = 2.0  # cross-entropy against the exact masks; ours
    # Of each level's mask, coarse first, and the merged one; with a `mask` weight, at least the exact mask's area.
    allowed_area: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2, 0.2)
    seed: int = 4

    def __post_init__(self) -> None:
        for name in ("objects", "allowed_area", "iterations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 <= self.occluded_share <= 1 or self.total < 1 or self.batch < 1 or self.level_every < 0:
            raise InvalidInputError(
                f"SAMM training of {self.total} steps of {self.batch} pictures, occluded_share {self.occluded_share}, "
                f"level_every {self.level_every}: expected positive numbers, and a share in 0..1."
            )
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise InvalidInputError(f"SAMM training with objects {self.objects}: expected 1 <= least <= greatest.")
        if len(self.iterations) != 2 or not 1 <= self.iterations[0] <= self.iterations[1]:
            raise InvalidInputError(
                f"SAMM training with iterations {self.iterations}: expected 1 <= least <= greatest."
            )

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.mask_steps + self.image_steps

    def open_levels(self, step: int) -> int:
        """Levels in use at a step of the whole run, from the coarsest on."""
        return 1 + (step // self.level_every if self.level_every else 1_000)


@dataclass(frozen=True)
class Judges:
    """Frozen networks that the losses ask; None leaves the loss out (`distance`: `multiscale_distance`)."""

    distance: Distance | None = None  # perceptual
    features: Features | None = None  # for the style distance
    feature_weights: tuple[float, ...] = ()  # of its maps; (): 1 each
    identity: Embedder | None = None
    discriminator: Discriminator | None = None  # copied and trained on


def train(
    morphs: MorphModel,
    generator: Generator,
    encoder: Encoder,
    out: Path,
    settings: SammTraining = SammTraining(),
    *,
    judges: Judges = Judges(),
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Samm:
    """Runs or resumes a training; returns the network with averaged weights, on the accelerator's device.

    Args:
        morphs: the bank of photographs.
        generator: frozen.
        encoder: frozen, of that generator.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        judges: networks for the losses.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder holds a run with other sizes, or `allowed_area` is too short.
    """
    accelerator = accelerator or make_accelerator()
    run = _Run(morphs, generator, encoder, settings, judges, accelerator)
    log, held_out = RunLog(out, "samm", time_budget=time_budget), RunLog(out, "held-out")
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        run.load(checkpoint)
    reported, begun = run.step, time.monotonic()
    while run.step < settings.total:
        values = run.one_step()
        if run.step % _REPORT_EVERY == 0 and accelerator.is_main_process:
            speed = (run.step - reported) * settings.batch / (time.monotonic() - begun)
            reported, begun = run.step, time.monotonic()
            logger.info("step %d: loss %.4f, %.2f images/s", run.step, values["loss"], speed)
            columns = {name: values.get(name, math.nan) for name in _COLUMNS}
            log.write(step=run.step, **columns, rate=values["rate"], images_per_second=speed)
        stop = agreed(accelerator, log.out_of_time() or (max_steps is not None and run.step >= max_steps))
        if accelerator.is_main_process and (stop or run.step == settings.total or log.checkpoint_due()):
            save_checkpoint(out / "checkpoint.pt", run.state())
            held_out.write(step=run.step, **run.samples(out / f"samples-{run.step:06d}.png"))
        if stop:
            break
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


def mask_cross_entropy(masks: Sequence[Tensor], exact: Tensor) -> Tensor:
    """Mean over masks of the cross-entropy with the exact mask [B, 1, H, W], brought to each one's size; scalar."""
    losses = []
    for mask in masks:
        wanted = F.adaptive_avg_pool2d(exact, (mask.shape[2], mask.shape[3]))
        losses.append(F.binary_cross_entropy(mask.float().clamp(1e-4, 1 - 1e-4), wanted))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class _Batch:
    image: Tensor  # [B, 3, R, R] with objects
    mask: Tensor  # [B, 1, R, R], where they are
    w_plus: Tensor
    features: list[Tensor]


class _Run:
    """Networks, optimisers and the step of one training."""

    def __init__(
        self,
        morphs: MorphModel,
        generator: Generator,
        encoder: Encoder,
        settings: SammTraining,
        judges: Judges,
        accelerator: Accelerator,
    ) -> None:
        device = accelerator.device
        self.settings, self.judges, self.accelerator, self.step = settings, judges, accelerator, 0
        self.distance = judges.distance or multiscale_distance
        self.morphs = morphs.to(device)
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
                last = cast(Any, samm.level(resolution).body.body[1])
                for norm in (last.res_layer[4], last.shortcut_layer[1]):
                    norm.weight[:2] = _FLOW_START
        self.samm = _channels_last(samm.to(device).train())
        self.average = copy.deepcopy(self.samm).eval().requires_grad_(False)
        self.optimiser = self._adam(self.samm, settings.learning_rate, 0.9)
        self.discriminator: Discriminator | None = None
        if judges.discriminator is not None and settings.adversarial:
            self.discriminator = copy.deepcopy(judges.discriminator).to(device).train()
            self.discriminator_optimiser = self._adam(self.discriminator, settings.discriminator_learning_rate, 0.0)

    def _adam(self, network: nn.Module, rate: float, momentum: float) -> Any:
        network.requires_grad_(True)
        adam = torch.optim.Adam(network.parameters(), lr=rate, betas=(momentum, 0.99))
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
        factor = cosine(within, length, settings.warmup, settings.final_learning_rate)
        rate = factor * (settings.image_learning_rate if drawing else settings.learning_rate)
        _set_rate(self.optimiser, rate)
        judging = drawing and self.discriminator is not None and within >= settings.adversarial_start
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        batch = self._batch(self.random, settings.batch)
        least, greatest = settings.iterations
        # The same number in every process, which therefore wait for each other no longer than they must.
        passes = int(
            torch.randint(least, greatest + 1, (), generator=step_generator(settings.seed, self.step, _ITERATIONS))
        )
        levels = settings.open_levels(self.step)
        with self.accelerator.autocast():
            picture, found, merged = self._blended(self.samm, batch, levels, passes, masks_only=not drawing)
        if drawing:
            losses = self._losses(picture.float(), found, merged, batch, judging)
        else:
            losses = {"mask": mask_cross_entropy(_all_masks(found, merged), batch.mask)}
        loss = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        self._update(self.optimiser, self.samm, loss)
        values = {name: value.item() for name, value in {"loss": loss, **losses}.items()}
        if judging:
            _set_rate(self.discriminator_optimiser, settings.discriminator_learning_rate * factor)
            values["discriminator"] = self._discriminator_step(batch.image, picture.detach())
        self.step += 1
        update_ema(self.average, self.samm, min(settings.ema_decay, self.step / (9 + self.step)))
        return {**values, "rate": rate}

    @torch.no_grad()
    def _batch(self, random: Callable[[int], torch.Generator], size: int) -> _Batch:
        settings, device, objects = self.settings, self.accelerator.device, random(_OBJECTS)
        image = self.morphs.render(self.morphs.draw_codes(size, random(_CODES)).to(device), self.generator.resolution)
        image = deformed(image, settings.deformation, random(_DEFORM)).clamp(-1, 1)
        mask = torch.zeros_like(image[:, :1])
        chosen = (torch.rand(size, generator=objects) < settings.occluded_share).nonzero()[:, 0]
        seeds = torch.randint(2**31 - 1, (size,), generator=objects)[: len(chosen)].tolist()
        if len(chosen):
            rows = chosen.to(device)
            occluded = occlude(image[rows], seeds, count=settings.objects)
            image, mask = image.index_copy(0, rows, occluded.images), mask.index_copy(0, rows, occluded.masks)
        with self.accelerator.autocast():
            w_plus = cast(Tensor, self.encoder(image, self.generator, settings.encoder_iterations))
            features = self.encoder.features(image, self.generator, settings.encoder_iterations)
        return _Batch(image, mask, w_plus.float(), features)

    def _blended(
        self, samm: Samm, batch: _Batch, levels: int, iterations: int | None = None, masks_only: bool = False
    ) -> tuple[Tensor, Found, Tensor]:
        """Picture [B, 3, R, R], what the levels found, and the merged mask. masks_only: no gradient goes by features."""
        hooks, found = samm.hooks(samm.encoded(batch.features, levels), iterations, detach=masks_only)
        drawn = self.generator.synthesis(batch.w_plus, hooks=hooks)
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
        losses = {
            "l2": (picture - batch.image).square().mean(),
            "perceptual": self.distance(picture, batch.image).mean(),
            "area": area.mean(),
            "binary": binary.mean(),
        }
        if settings.mask:
            losses["mask"] = mask_cross_entropy(masks, batch.mask)
        if judges.features is not None and settings.style:
            with torch.no_grad():
                wanted = judges.features(batch.image)
            weights = judges.feature_weights or (1.0,) * len(wanted)
            losses["style"] = style_distance(judges.features(picture), wanted, weights)
        if judges.identity is not None and settings.identity:
            with torch.no_grad():
                person = judges.identity(batch.image)
            losses["identity"] = (1 - (judges.identity(picture) * person).sum(dim=1)).mean()
        if judging and self.discriminator is not None:
            losses["adversarial"] = F.softplus(-self.discriminator(picture).float()).mean()
        return losses

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
        batch = self._batch(lambda stream: step_generator(12345, 0, stream), _HELD_OUT)
        picture, _, merged = self._blended(self.average, batch, self.settings.open_levels(self.step))
        plain = self.generator.synthesis(batch.w_plus)
        wanted, given = batch.mask > 0.5, merged > 0.5
        overlap = (wanted & given).sum() / (wanted | given).sum().clamp(min=1)
        found = {
            "psnr": psnr(picture.clamp(-1, 1), batch.image).mean().item(),
            "psnr_plain": psnr(plain.clamp(-1, 1), batch.image).mean().item(),
            "mask_overlap": overlap.item(),
            "area": merged.mean().item(),
            "exact_area": batch.mask.mean().item(),
        }
        logger.info("%s: %s", path.name, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        grey = (merged * 2 - 1).expand(-1, 3, -1, -1)
        write_sheet(torch.cat((batch.image, plain, picture, grey)), path, columns=_HELD_OUT)
        return found


def _all_masks(found: Found, merged: Tensor) -> list[Tensor]:
    """Those of the levels, coarse first, and the merged one."""
    return [*(found.masks[resolution].float() for resolution in sorted(found.masks)), merged.float()]


def _set_rate(optimiser: Any, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _channels_last(module: Any) -> Any:
    return module.to(memory_format=torch.channels_last)  # an overload that some versions' stubs leave out


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train samm`: trains or resumes SAMM for a generator and an encoder."""
    parser = argparse.ArgumentParser(prog="gan-inversion train samm", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = SammTraining()
    none = "; 'none' leaves that loss out"
    parser.add_argument("--generator", default="portraits", help="file or catalogue id")
    parser.add_argument("--encoder", default="portraits-e4e", help="file or catalogue id, of that generator")
    parser.add_argument("--perceptual", default="portraits-perceptual", help="trunk, file or id" + none)
    parser.add_argument("--identity", default="portraits-identity", help="file or id" + none)
    parser.add_argument("--discriminator", default="portraits-discriminator", help="file or id" + none)
    vgg = parser.add_mutually_exclusive_group()
    vgg.add_argument("--lpips", action="store_true", help="LPIPS on VGG16 in place of the perceptual trunk")
    vgg.add_argument("--vgg19", type=Path, metavar="FILE", help="torchvision's weights: the original's losses on VGG19")
    parser.add_argument("--mask-steps", type=int, default=defaults.mask_steps)
    parser.add_argument("--image-steps", type=int, default=defaults.image_steps)
    parser.add_argument(
        "--iterations",
        type=int,
        nargs=2,
        default=defaults.iterations,
        metavar=("LEAST", "GREATEST"),
        help="of Algorithm 1, drawn for each step",
    )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--deformation", type=float, default=defaults.deformation, help="of the faces, in widths")
    parser.add_argument("--mask", type=float, default=defaults.mask, help="weight of the exact masks; 0: the paper's")
    parser.add_argument("--adversarial-start", type=int, default=defaults.adversarial_start, metavar="STEP")
    parser.add_argument("--level-every", type=int, default=defaults.level_every, help="steps from level to level")
    options = parser.parse_args(argv)

    keep_freed_memory()
    settings = dataclasses.replace(
        defaults,
        mask_steps=options.mask_steps,
        image_steps=options.image_steps,
        batch=options.batch or defaults.batch,
        iterations=options.iterations,
        learning_rate=options.learning_rate,
        deformation=options.deformation,
        mask=options.mask,
        adversarial_start=options.adversarial_start,
        level_every=options.level_every,
    )
    accelerator = make_accelerator(options.device, options.mixed_precision)

    def judge(name: str) -> Any:
        if name == "none":
            return None
        return registry.load_model(name).module.to(accelerator.device).eval().requires_grad_(False)

    distance: Distance | None = None
    features: VGG19 | None = None
    feature_weights: tuple[float, ...] = ()
    if options.vgg19 is not None:
        features = VGG19.load(options.vgg19).to(accelerator.device)
        distance, feature_weights = vgg_distance(features), tuple(LAYERS.values())
        settings = dataclasses.replace(settings, style=_OFFICIAL_STYLE)
    elif options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
    elif options.perceptual != "none":
        from ..perceptual import trunk_distance

        distance = trunk_distance(judge(options.perceptual))
    samm = train(
        load_morphs(options.portraits, options.runs),
        registry.load_model(options.generator).module,
        registry.load_model(options.encoder).module,
        options.runs / "samm",
        settings,
        judges=Judges(distance, features, feature_weights, judge(options.identity), judge(options.discriminator)),
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if not accelerator.is_main_process:
        return options.out
    facts = {"generator": str(options.generator), "encoder": str(options.encoder)}
    return registry.save_model(samm.cpu(), options.out, card("SAMM", settings, **facts), torch.float16)
