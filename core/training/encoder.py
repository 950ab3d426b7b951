"""Trains the inversion encoders of a generator: e4e, pSp, ReStyle-e4e and ReStyle-pSp.

Papers: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (e4e, SIGGRAPH 2021); Richardson et al.,
"Encoding in Style" (pSp, CVPR 2021); Alaluf et al., "ReStyle" (ICCV 2021). Reference implementations:
omertov/encoder4editing and yuval-alaluf/restyle-encoder, `training/coach*.py`, `options/train_options.py`.

Pictures are morphs and the generator's own samples; both have a known w. First stage ("codes"): the encoder regresses
that w and nothing is drawn. Second stage ("images"): the papers' losses through the frozen generator (L2, a perceptual
distance, identity; for the e4e family also the norm of the row deltas and a discriminator on codes). ReStyle makes all
its passes at each step, with a loss and a backward pass for each and no gradient from one to the next.
Deviations: the code stage; the known w as a further anchor in the image stage; slim widths, Adam in place of Ranger,
clipped gradients, averaged weights; ReStyle's gradients are averaged over its passes in place of summed. In the code
stage ReStyle makes one pass, half of the time from the average, half of the time from another picture of the batch,
whose w and picture are both at hand.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder, EncoderConfig
from ..errors import GeneratorMismatchError, InvalidInputError
from ..generator import Generator
from ..losses import Distance, multiscale_distance
from ..metrics import psnr
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
    write_sheet,
)
from .generator import CodeEmbedding, load_trained
from .latent_discriminator import LatentAdversary
from .morphs import MorphModel

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Embedder = Callable[[Tensor], Tensor]  # [B, 3, H, W] in [-1, 1] -> embeddings [B, D] of length 1
Augment = Callable[[Tensor, int], Tensor]  # [B, 3, H, W] in [-1, 1] and a seed -> the same shape

OFFICIAL_CLASSES = {
    "e4e": "Encoder4Editing",
    "psp": "GradualStyleEncoder",
    "restyle-e4e": "ProgressiveBackboneEncoder",
    "restyle-psp": "BackboneEncoder",
}
_MAX_INPUT = 256  # pixels; larger pictures are brought to this size before the encoder and the losses
_VECTOR = 16  # float32 numbers in the widest vector register of an x86 processor (AVX-512)
_HELD_OUT = 16
_CODES, _Z, _REAL_CODES, _SPREAD, _POOL, _ROWS, _STARTS, _AUGMENT, _DEFORM = range(9)  # streams of random numbers
_COLUMNS = (
    "loss",
    "code",
    "l2",
    "perceptual",
    "identity",
    "delta_norm",
    "adversarial",
    "discriminator",
    "real",
    "fake",
)


@dataclass(frozen=True)
class EncoderTraining:
    """Settings of both stages."""

    encoder_type: str = "e4e"  # a key of OFFICIAL_CLASSES
    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 64, 128)
    units: tuple[int, ...] = (2, 2, 4, 2)
    style_channels: int = 64
    code_steps: int = 2000
    image_steps: int = 800
    batch: int = 16
    sample_share: float = 0.5  # of the batch: samples of the generator; the rest are morphs
    samples_from: str = "codes"  # w of the samples: "codes" of random morphs, or "mapping" of normal z
    deformation: float = (
        0.0  # largest shift of `deformed`, in widths, which the morphs go through: faces off the bank's span
    )
    occluded_share: float = 0.5  # of the pictures that `augment` changes, where one is given
    iterations: int = 5  # ReStyle's passes at each step
    learning_rate: float = 1e-3
    image_learning_rate: float = 5e-4
    final_learning_rate: float = 0.05  # fraction of the learning rate at the end of a stage
    warmup: int = 50  # steps of each stage
    clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.99
    l2: float = 1.0
    perceptual: float = 0.8
    identity: float = 0.1
    delta_norm: float = 2e-4  # e4e family
    w_discriminator: float = 0.1  # e4e family; 0: no discriminator
    code: float = 0.05  # squared error of w, in units of its spread, during the image stage
    discriminator_learning_rate: float = 1e-4  # a fifth of the encoder's, as the paper's 2e-5 is
    r1: float = 10.0
    r1_every: int = 16
    pool: int = 50
    progressive: tuple[int, int] | None = None  # e4e family: (step of the image stage that opens the first delta, steps
    # from one delta to the next); in the code stage all are closed then. None: every delta is open from the start
    seed: int = 2

    def __post_init__(self) -> None:
        if self.encoder_type not in OFFICIAL_CLASSES:
            raise InvalidInputError(
                f"Encoder type {self.encoder_type!r}: expected one of {', '.join(OFFICIAL_CLASSES)}."
            )
        if self.samples_from not in ("codes", "mapping"):
            raise InvalidInputError(f"samples_from {self.samples_from!r}: expected 'codes' or 'mapping'.")
        if not 0 <= self.sample_share <= 1 or self.iterations < 1:
            raise InvalidInputError(
                f"sample_share {self.sample_share}, iterations {self.iterations}: expected 0..1 and 1 or more."
            )
        if self.progressive is not None:
            if self.progressive[0] < 0 or self.progressive[1] < 1:
                raise InvalidInputError(f"progressive {self.progressive}: expected (start, every), 0 and 1 or more.")
            object.__setattr__(self, "progressive", tuple(self.progressive))

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.code_steps + self.image_steps

    def open_deltas(self, step: int) -> int | None:
        """Deltas in use at a step of the whole run; None: all."""
        if self.progressive is None:
            return None
        start, every = self.progressive
        within = step - self.code_steps - start
        return 0 if within < 0 else 1 + within // every


def encoder_config(generator: Generator, settings: EncoderTraining) -> EncoderConfig:
    """The slim encoder of `settings.encoder_type` that fits `generator`."""
    side = min(generator.resolution, _MAX_INPUT)
    return EncoderConfig(
        encoder_type=OFFICIAL_CLASSES[settings.encoder_type],
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
        input_size=(side, side),
        input_channels=6 if settings.encoder_type.startswith("restyle") else 3,
        stem=settings.stem,
        widths=settings.widths,
        units=settings.units,
        style_channels=settings.style_channels,
        domain="portraits",
    )


@torch.no_grad()
def initialise_from(encoder: Encoder, other: Encoder, passes: int = 1) -> list[str]:
    """Copies into `encoder` the weights of another encoder that mean the same in it; `latent_avg` stays its own.

    An encoder of the same class gives all it has. Another class gives its trunk and the map-to-style blocks whose row
    and feature map agree (row 0 of an e4e starts every coarse row of a pSp). Of a first convolution with more input
    channels, those of the image are copied and the others are zero: ReStyle then begins blind to its reconstruction.

    Args:
        encoder: changed in place.
        other: the encoder to start from.
        passes: for a ReStyle encoder begun from another kind: its steps are made so much shorter. With all its passes
            here it reaches in them what `other` gives at once; leave 1 if a code stage follows.

    Returns:
        Names of the tensors that keep their random start.

    Raises:
        InvalidInputError: the trunks have other widths or depths.
    """
    source, target = other.encoder.state_dict(), encoder.encoder.state_dict()
    first = "input_layer.0.weight" if "input_layer.0.weight" in target else "conv1.weight"
    same_kind = encoder.config.encoder_type == other.config.encoder_type
    left = []
    for name, value in target.items():
        given = source.get(name if same_kind else _matching(name, encoder.config, other.config))
        if name == first and given is not None and given.shape[1] != value.shape[1]:
            channels = min(given.shape[1], value.shape[1])
            given = torch.cat((given[:, :channels], torch.zeros_like(value[:, channels:])), dim=1)
        if given is None or given.shape != value.shape:
            left.append(name)
        else:
            value.copy_(given)
    misfits = [name for name in left if name.split(".")[0] in ("input_layer", "conv1", "body")]
    if misfits:
        raise InvalidInputError(
            f"The encoder to start from has another trunk ({misfits[0]} does not fit): expected stem "
            f"{encoder.config.stem}, widths {encoder.config.widths} and units {encoder.config.units}."
        )
    if encoder.config.is_restyle and not other.config.is_restyle and passes > 1:
        for block in encoder.encoder.styles:
            linear = cast(Any, block).linear
            linear.weight.div_(passes)
            linear.bias.div_(passes)
    return left


def _matching(name: str, config: EncoderConfig, other: EncoderConfig) -> str:
    """The tensor of the other encoder with the same meaning; "" where there is none."""
    if not name.startswith("styles."):
        return name
    row, rest = name.removeprefix("styles.").split(".", 1)
    level, other_level = (
        (int(row) >= c.coarse_ind) + (int(row) >= c.middle_ind) if c.kind.head == "pyramid" else 0
        for c in (config, other)
    )
    if config.kind.progressive == other.kind.progressive:
        return name if level == other_level else ""
    if config.kind.progressive:
        return name if row == "0" else ""
    return f"styles.0.{rest}" if level == 0 else ""


def train(
    morphs: MorphModel,
    generator: Generator,
    embedding: CodeEmbedding,
    out: Path,
    settings: EncoderTraining = EncoderTraining(),
    *,
    distance: Distance | None = None,
    identity: Embedder | None = None,
    augment: Augment | None = None,
    start: Encoder | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Encoder:
    """Runs or resumes both stages; returns the encoder with averaged weights, on the accelerator's device.

    Args:
        morphs: the bank of photographs.
        generator: frozen, its `w_avg` set.
        embedding: code -> w of that generator.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        distance: perceptual distance (LPIPS, `trunk.trunk_distance`); None: `multiscale_distance`.
        identity: embedding of a person; None leaves that loss out.
        augment: changes what the encoder sees of `settings.occluded_share` of the pictures, not what it has to draw.
        start: encoder whose weights a new run begins with, see `initialise_from`.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder holds a run of another encoder type, or `start` has another trunk.
        GeneratorMismatchError: the embedding gives other codes than the generator takes.
    """
    accelerator = accelerator or make_accelerator()
    run = _Run(morphs, generator, embedding, settings, accelerator, distance, identity, augment)
    log = RunLog(out, "encoder", time_budget=time_budget)
    held_out = RunLog(out, "held-out")
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        found = checkpoint["settings"]["encoder_type"]
        if found != settings.encoder_type:
            raise InvalidInputError(
                f"{out}: the run there trains a {found} encoder, not {settings.encoder_type}. Use another folder."
            )
        run.load(checkpoint)
    elif start is not None:
        run.begin_with(start)
    while run.step < settings.total:
        values = run.one_step()
        if run.step % 20 == 0 and accelerator.is_main_process:
            log.write(step=run.step, **{name: values.get(name, math.nan) for name in _COLUMNS}, rate=values["rate"])
        stop = agreed(accelerator, log.out_of_time() or (max_steps is not None and run.step >= max_steps))
        if accelerator.is_main_process and (stop or run.step == settings.total or log.checkpoint_due()):
            save_checkpoint(out / "checkpoint.pt", run.state())
            found_psnr = run.samples(out / f"samples-{run.step:06d}.png")
            held_out.write(step=run.step, **{f"psnr_{k}": value for k, value in enumerate(found_psnr, 1)})
        if stop:
            break
    return run.finished()


def deformed(images: Tensor, amount: float, random: torch.Generator) -> Tensor:
    """Random smooth warps and light: people whom no mix of the bank's photographs shows, so that an encoder copes with them.

    Args:
        images: [B, 3, H, W] in [-1, 1].
        amount: largest shift in widths; the light changes by up to five times as much, relatively. 0 changes nothing.
        random: CPU random generator.
    """
    if not amount:
        return images
    height, width = images.shape[2:]

    def smooth(channels: int, nodes: int) -> Tensor:
        coarse = torch.rand(len(images), channels, nodes, nodes, generator=random) * 2 - 1
        return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).to(images)

    shift = (smooth(2, 4) + smooth(2, 7)) * amount  # of a picture that is two units wide: half of `amount` widths each
    lines = [torch.linspace(-1, 1, size, device=images.device) for size in (height, width)]
    y, x = torch.meshgrid(*lines, indexing="ij")
    grid = torch.stack((x, y), dim=-1) + shift.permute(0, 2, 3, 1)
    warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    light = 1 + amount * (4 * smooth(1, 4) + smooth(3, 3))
    return ((warped + 1) * light - 1).clamp(-1, 1)


@dataclass(frozen=True)
class _Batch:
    image: Tensor  # [B, 3, *input_size], what is to be drawn
    seen: Tensor  # the same as the encoder sees it
    w: Tensor  # [B, 1, w_dim]


class _Run:
    """Networks, optimisers and the step of one training."""

    def __init__(
        self,
        morphs: MorphModel,
        generator: Generator,
        embedding: CodeEmbedding,
        settings: EncoderTraining,
        accelerator: Accelerator,
        distance: Distance | None,
        identity: Embedder | None,
        augment: Augment | None,
    ) -> None:
        if embedding.linear.out_features != generator.config.w_dim:
            raise GeneratorMismatchError(
                f"The embedding gives w of {embedding.linear.out_features} numbers, the generator takes "
                f"{generator.config.w_dim}: use the embedding that was trained with it."
            )
        device = accelerator.device
        self.settings, self.accelerator, self.step = settings, accelerator, 0
        self.distance, self.identity, self.augment = distance or multiscale_distance, identity, augment
        self.morphs = morphs.to(device)
        self.embedding = embedding.to(device).requires_grad_(False)
        self.generator = _laid_out(generator.to(device).eval().requires_grad_(False), torch.channels_last)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            encoder = Encoder(encoder_config(generator, settings))
            self.adversary = self._new_adversary(device)
        encoder.set_latent_avg(generator.w_avg)
        self.layout = _fast_layout(encoder, device)
        self.encoder = _laid_out(encoder.to(device).train(), self.layout)
        self.average = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        adam = torch.optim.Adam(self.encoder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        self.optimiser = accelerator.prepare_optimizer(adam, device_placement=False)
        with torch.no_grad():
            known = self.embedding(self.morphs.draw_codes(512, step_generator(settings.seed, 0, _SPREAD)).to(device))
            self.spread = known.var(dim=0).mean()
            self.average_image = self.encoder.draw(self.encoder.latent_avg[None], self.generator)

    @property
    def e4e(self) -> bool:
        """Whether the rows are row 0 plus deltas."""
        return self.encoder.config.kind.progressive

    def _new_adversary(self, device: torch.device) -> LatentAdversary | None:
        settings = self.settings
        if not OFFICIAL_CLASSES[settings.encoder_type].startswith(("Encoder4", "Progressive")):
            return None
        if not settings.w_discriminator:
            return None
        return LatentAdversary(
            self.generator.config.w_dim,
            learning_rate=settings.discriminator_learning_rate,
            r1=settings.r1,
            r1_every=settings.r1_every,
            pool=settings.pool,
            device=device,
        )

    def begin_with(self, other: Encoder) -> None:
        """Starts from another encoder's weights."""
        passes = 1 if self.settings.code_steps else self.settings.iterations
        left = initialise_from(self.encoder, other, passes)
        self.average.load_state_dict(self.encoder.state_dict())
        logger.info("started from a %s encoder; %d tensors are new", other.config.architecture, len(left))

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "step": self.step,
            "encoder": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else {},
            "scaler": scaler_state(self.accelerator),
            "settings": dataclasses.asdict(self.settings),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.step = state["step"]
        self.encoder.load_state_dict(state["encoder"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])
        load_scaler_state(self.accelerator, state["scaler"])

    def random(self, stream: int) -> torch.Generator:
        """Random numbers of this step and process."""
        return process_generator(self.accelerator, self.settings.seed, self.step, stream)

    def one_step(self) -> dict[str, float]:
        """One update; returns the losses by name, ReStyle's averaged over its passes."""
        settings = self.settings
        drawing = self.step >= settings.code_steps
        rate = self._rate(drawing)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        stage = settings.open_deltas(self.step) if self.e4e else None
        self.encoder.encoder.progressive_stage = self.average.encoder.progressive_stage = stage
        rows = self.encoder.num_ws if stage is None else min(stage + 1, self.encoder.num_ws)
        batch = self._batch()
        self.optimiser.zero_grad(set_to_none=True)
        found, values = self._image_losses(batch, rows) if drawing else self._code_loss(batch)
        self._update()
        if drawing and self.adversary:
            real = self._known_w(settings.batch, _REAL_CODES, _REAL_CODES)
            parameters = list(self.adversary.discriminator.parameters())
            share = functools.partial(share_gradients, self.accelerator, parameters)
            fake = self._some_rows(found, rows)
            values |= self.adversary.step(self.step, real, fake, self.random(_POOL), share)
        self.step += 1
        self._follow()
        return {**values, "rate": rate}

    def _rate(self, drawing: bool) -> float:
        settings = self.settings
        peak = settings.image_learning_rate if drawing else settings.learning_rate
        within = self.step - (settings.code_steps if drawing else 0)
        length = settings.image_steps if drawing else settings.code_steps
        return peak * cosine(within, length, warmup=settings.warmup, low=settings.final_learning_rate)

    @torch.no_grad()
    def _batch(self) -> _Batch:
        settings, device = self.settings, self.accelerator.device
        codes = self.morphs.draw_codes(settings.batch, self.random(_CODES)).to(device)
        samples = round(settings.batch * settings.sample_share)
        w = self.embedding(codes)
        if samples and settings.samples_from == "mapping":
            w[len(w) - samples :] = self._known_w(samples, _CODES, _Z)
        images = []
        if samples < len(codes):
            drawn = self.morphs.render(codes[: len(codes) - samples], self.generator.resolution)
            images.append(deformed(drawn, settings.deformation, self.random(_DEFORM)))
        if samples:
            with self.accelerator.autocast():
                images.append(self.generator.synthesis(self.generator.broadcast(w[len(w) - samples :])).float())
        image = self.encoder.resize(torch.cat(images)).contiguous(memory_format=self.layout)
        return _Batch(image, self._augmented(image), w[:, None])

    def _known_w(self, count: int, code_stream: int, z_stream: int) -> Tensor:
        """w [count, w_dim] of the generator's own."""
        if self.settings.samples_from == "codes":
            return self.embedding(self.morphs.draw_codes(count, self.random(code_stream)).to(self.accelerator.device))
        z = torch.randn(count, self.generator.config.z_dim, generator=self.random(z_stream))
        return self.generator.mapping(z.to(self.accelerator.device))

    def _augmented(self, image: Tensor) -> Tensor:
        if self.augment is None:
            return image
        random = self.random(_AUGMENT)
        chosen = torch.rand(len(image), generator=random) < self.settings.occluded_share
        seed = int(torch.randint(2**31, (), generator=random))
        if not chosen.any():
            return image
        rows = chosen.nonzero()[:, 0].to(image.device)
        return image.index_copy(0, rows, self.augment(image[rows], seed).to(image))

    def _code_loss(self, batch: _Batch) -> tuple[Tensor, dict[str, float]]:
        with self.accelerator.autocast():
            if self.encoder.config.is_restyle:
                codes, drawn = self._code_start(batch)
                codes = self.encoder.step(batch.seen, drawn, codes)
            else:
                codes = cast(Tensor, self.encoder(batch.seen))
        loss = (codes - batch.w).square().mean() / self.spread
        self.accelerator.backward(loss)
        return codes.detach(), {"loss": loss.item(), "code": loss.item()}

    def _code_start(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Codes and pictures that ReStyle corrects in the code stage."""
        random = self.random(_STARTS)
        other = torch.randperm(len(batch.w), generator=random).to(batch.w.device)
        chosen = (torch.rand(len(batch.w), generator=random) < 0.5).to(batch.w.device)
        codes = torch.where(chosen[:, None, None], batch.w[other], self.encoder.latent_avg)
        return codes, torch.where(chosen[:, None, None, None], batch.image[other], self.average_image)

    def _image_losses(self, batch: _Batch, rows: int) -> tuple[Tensor, dict[str, float]]:
        """Backward passes of one step. Returns the codes of every pass, one after another, and the mean losses."""
        restyle, passes = self.encoder.config.is_restyle, 1
        codes = self.encoder.latent_avg.expand(len(batch.w), -1, -1)
        drawn = self.average_image.expand(len(batch.w), -1, -1, -1)
        if restyle:
            passes = self.settings.iterations
        with torch.no_grad():
            person = self.identity(batch.image) if self.identity is not None else None
        found: list[Tensor] = []
        totals: dict[str, Any] = {}
        for _ in range(passes):
            with self.accelerator.autocast():
                if restyle:
                    codes = self.encoder.step(batch.seen, drawn, codes)
                else:
                    codes = cast(Tensor, self.encoder(batch.seen))
                drawn = self.encoder.draw(codes, self.generator)
            losses = self._losses(codes, drawn, batch, person, rows)
            weights = {name: getattr(self.settings, _WEIGHTS.get(name, name)) for name in losses}
            loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            self.accelerator.backward(loss / passes)
            codes, drawn = codes.detach(), drawn.detach()
            found.append(codes)
            for name, value in {"loss": loss, **losses}.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / passes
        return torch.cat(found), {name: value.item() for name, value in totals.items()}

    def _losses(
        self, codes: Tensor, drawn: Tensor, batch: _Batch, person: Tensor | None, rows: int
    ) -> dict[str, Tensor]:
        codes, drawn = codes.float(), drawn.float()
        losses = {
            "code": (codes - batch.w).square().mean() / self.spread,
            "l2": (drawn - batch.image).square().mean(),
            "perceptual": self.distance(drawn, batch.image).mean(),
        }
        if self.identity is not None and person is not None:
            losses["identity"] = (1 - (self.identity(drawn) * person).sum(dim=1)).mean()
        if self.e4e:
            deltas = codes[:, 1:rows] - codes[:, :1]
            losses["delta_norm"] = deltas.norm(dim=2).sum(dim=1).mean()
        if self.adversary:
            losses["adversarial"] = self.adversary.encoder_loss(codes[:, :rows])
        return losses

    def _some_rows(self, codes: Tensor, rows: int) -> Tensor:
        """One row of one pass for each picture: codes [passes * B, num_ws, w_dim] -> [B, w_dim]."""
        batch, random = self.settings.batch, self.random(_ROWS)
        passes = torch.randint(len(codes) // batch, (batch,), generator=random)
        picked = torch.randint(rows, (batch,), generator=random)
        return codes[passes * batch + torch.arange(batch), picked]

    def _update(self) -> None:
        parameters = list(self.encoder.parameters())
        share_gradients(self.accelerator, parameters)
        self.accelerator.unscale_gradients(self.optimiser)
        nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        self.optimiser.step()

    @torch.no_grad()
    def _follow(self) -> None:
        """Averages weights and normalisation statistics: those of single batches are noisy."""
        decay = min(self.settings.ema_decay, self.step / (9 + self.step))
        current = self.encoder.state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(current[name], 1 - decay)
            else:
                kept.copy_(current[name])

    def finished(self) -> Encoder:
        """A copy of the averaged encoder; deltas that were never opened are zero in it."""
        encoder = copy.deepcopy(self.average)
        stage = self.settings.open_deltas(max(self.step - 1, 0)) if self.e4e else None
        encoder.encoder.progressive_stage = None
        if stage is not None:
            with torch.no_grad():
                for block in list(encoder.encoder.styles)[stage + 1 :]:
                    cast(Any, block).linear.weight.zero_()
                    cast(Any, block).linear.bias.zero_()
        return cast(Encoder, _laid_out(encoder, torch.contiguous_format))

    @torch.no_grad()
    def samples(self, path: Path) -> list[float]:
        """Unseen morphs above the averaged encoder's reconstructions. Returns their mean PSNR in dB after each pass."""
        generator = self.generator
        codes = self.morphs.draw_codes(_HELD_OUT, step_generator(12345, 0)).to(generator.w_avg.device)
        image = self.morphs.render(codes, generator.resolution)
        passes = self.average(image, generator, iterations=self.settings.iterations, return_all=True)
        drawn = [generator.synthesis(w_plus) for w_plus in passes]
        found = [psnr(pictures.clamp(-1, 1), image).mean().item() for pictures in drawn]
        logger.info("%s: %s dB on unseen morphs", path.name, ", ".join(f"{value:.2f}" for value in found))
        half = _HELD_OUT // 2
        write_sheet(torch.cat((image[:half], drawn[-1][:half], image[half:], drawn[-1][half:])), path)
        return found


_WEIGHTS = {"adversarial": "w_discriminator"}  # settings that are not named like their loss


def _laid_out(module: Any, layout: torch.memory_format) -> Any:
    return module.to(memory_format=layout)  # an overload that some versions' stubs leave out


def _fast_layout(encoder: Encoder, device: torch.device) -> torch.memory_format:
    """Channels last, except for encoders whose training it would crash.

    torch's CPU convolutions (oneDNN, https://github.com/uxlfoundation/oneDNN/issues/6035) write past their scratch
    memory in the weight gradient of a strided 1x1 convolution, as the shortcuts of the trunk are, if it is in channels
    last and takes fewer channels than a vector register holds. Other tensors are overwritten: wrong gradients, a hang
    or a crash. How often depends on threads, batch and size; one thread is no protection. Seen in torch 2.13.
    """
    narrow = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < _VECTOR
        for module in encoder.modules()
    )
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train encoder`: trains or resumes an encoder for a generator run in the same --runs folder."""
    parser = argparse.ArgumentParser(prog="gan-inversion train encoder", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = EncoderTraining()
    parser.add_argument("--type", choices=tuple(OFFICIAL_CLASSES), default=defaults.encoder_type)
    parser.add_argument("--code-steps", type=int, default=defaults.code_steps)
    parser.add_argument("--image-steps", type=int, default=defaults.image_steps)
    parser.add_argument("--iterations", type=int, default=defaults.iterations, help="ReStyle's passes at each step")
    parser.add_argument("--sample-share", type=float, default=defaults.sample_share, help="generator's own pictures")
    parser.add_argument(
        "--deformation", type=float, default=defaults.deformation, help="smooth random warps of the morphs, in widths"
    )
    parser.add_argument("--samples-from", choices=("codes", "mapping"), default=defaults.samples_from)
    parser.add_argument("--ema-decay", type=float, default=defaults.ema_decay, help="of the averaged weights")
    parser.add_argument("--progressive", metavar="START:EVERY", help="open the deltas of an e4e one after another")
    parser.add_argument("--generator", type=Path, help="model file in place of the run's own generator, in the same W")
    parser.add_argument("--init", type=Path, metavar="FILE", help="encoder whose weights a new run begins with")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="identity network for the identity loss")
    perceptual = parser.add_mutually_exclusive_group()
    perceptual.add_argument("--trunk", type=Path, metavar="FILE", help=".npz of SqueezeNet weights: perceptual loss")
    perceptual.add_argument("--lpips", action="store_true", help="LPIPS as the perceptual loss")
    options = parser.parse_args(argv)

    keep_freed_memory()
    settings = dataclasses.replace(
        defaults,
        encoder_type=options.type,
        code_steps=options.code_steps,
        image_steps=options.image_steps,
        iterations=options.iterations,
        sample_share=options.sample_share,
        samples_from=options.samples_from,
        deformation=options.deformation,
        ema_decay=options.ema_decay,
        progressive=_two_numbers(options.progressive),
        batch=options.batch or defaults.batch,
    )
    accelerator = make_accelerator(options.device, options.mixed_precision)
    morphs = load_morphs(options.portraits, options.runs)
    generator, embedding = load_trained(options.runs / "generator", morphs)
    if options.generator is not None:
        generator = cast(Generator, registry.load_model(options.generator).module)
    elif settings.samples_from == "mapping":
        raise InvalidInputError(
            "--samples-from mapping: a generator run has no fitted mapping network. Give the finished model as "
            "--generator FILE."
        )
    distance: Distance | None = None
    if options.trunk is not None:
        from .trunk import SqueezeNetTrunk, trunk_distance

        distance = trunk_distance(SqueezeNetTrunk.load(options.trunk).to(accelerator.device))
    elif options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
    identity = None
    if options.identity is not None:
        identity = registry.load_model(options.identity).module.to(accelerator.device).eval().requires_grad_(False)
    encoder = train(
        morphs,
        generator,
        embedding,
        options.runs / options.type,
        settings,
        distance=distance,
        identity=identity,
        start=registry.load_model(options.init).module if options.init is not None else None,
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if not accelerator.is_main_process:
        return options.out
    return registry.save_model(encoder.cpu(), options.out, card(f"{options.type} encoder", settings), torch.float16)


def _two_numbers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        start, every = (int(part) for part in text.split(":"))
    except ValueError as error:
        raise InvalidInputError(f"--progressive {text}: expected START:EVERY, like 300:50.") from error
    return start, every
