"""Trains SAM's invertibility predictor for a generator: photograph -> error of a short inversion in each latent space.

Paper: Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (SAM, CVPR 2022). Reference
implementation: adobe-research/sam_inversion `train_invertibility.py`, `single_latent_inv.py`: squared error to LPIPS
maps of 501-step inversions of 10,000 photographs, SGD with momentum, polynomial decay, mirror images and random blur.

First stage ("labels"): seeded pictures are inverted in each space alone and their error maps written in chunks. A chunk
depends on the settings and its number only, so a run can stop after any chunk and several processes can share the work.
Second stage: the network learns the maps.

Deviations: pictures are morphs, part of them with drawn objects, whose exact masks say how well a threshold finds them;
errors are of the given distance after fewer steps (see `LabelSettings`); the network starts from random weights, so its
backbone learns as fast as the rest and gradients are clipped; errors are in units of each space's spread. Not taken over:
files whose names the official loader does not read, a validation set that is the training set, the shape error in F10.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder
from ..errors import InvalidInputError
from ..files import replacing
from ..fingerprint import fingerprint
from ..generator import Generator
from ..invertibility import (
    W_PLUS,
    InvertibilityConfig,
    InvertibilityNet,
    colour_preview,
    latent_map,
    latent_spaces,
    out_of_domain,
)
from ..losses import Distance, LayeredDistance, multiscale_distance
from ..multilayer import MultilayerConfig, measure_errors
from ..superpixels import mean_per_segment, superpixels
from .common import (
    Registry,
    RunLog,
    add_common_arguments,
    card,
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
from .encoder import deformed
from .morphs import MIRRORED, MorphModel
from .occluders import occlude_some

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_STALE = 300.0  # seconds without a step after which the process that claimed a chunk counts as gone
_POLL = 5.0  # seconds between looks at chunks that other processes work on
_REPORT_EVERY = 20
_SHOWN = 8  # held-out pictures on a sheet
_TUNING = 96  # training pictures, at most, on which the threshold is chosen
_THRESHOLDS = 48  # values of the threshold that are tried
_PREDICTED_AT_ONCE = 16
_RADIUS = 3  # pixels of the blur's kernel
_CODES, _DEFORM, _OBJECTS, _PEOPLE, _ROWS, _CHANGES, _DROPOUT = range(7)  # streams of random numbers


@dataclass(frozen=True)
class LabelSettings:
    """Everything that fixes the labels of a generator, an encoder and a distance.

    Measured on four pictures of the bundled domain: in W+, the maps after 40 steps correlate with those after 300 at
    0.977 (20 steps at a rate of 0.02: 0.970; the encoder's own code: 0.968) and are a third larger, so a threshold found
    on them is high for long inversions. In features, 20 steps correlate with 40 at 0.92 (F4) and 0.76 (F8).
    """

    steps: int = 40  # of the inversion in each space, from the encoder's code; the original: 501
    learning_rate: float = 0.05  # at 0.1, forty steps end with larger errors in the finest space
    distance_weight: float = 0.2  # 1 for LPIPS
    occluded_share: float = 0.6  # of the pictures: those with objects
    objects: tuple[int, int] = (1, 2)  # in such a picture
    deformation: float = 0.02  # of the faces, see `encoder.deformed`
    held_out: float = 0.1  # of the bank's people, who appear in held-out pictures only
    held_out_every: int = 10  # every such chunk is held out
    chunk: int = 4  # pictures inverted at once and written to one file
    seed: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        shares = (self.occluded_share, self.held_out)
        counts = (self.steps, self.chunk, self.held_out_every - 1)
        if min(counts) < 1 or min(shares) < 0 or max(shares) > 1 or not 1 <= self.objects[0] <= self.objects[1]:
            raise InvalidInputError(
                f"Labels with {self}: expected positive numbers, shares in 0..1, and every second chunk held out at most."
            )

    @property
    def inversion(self) -> MultilayerConfig:
        """Settings of each inversion."""
        return MultilayerConfig(
            steps=self.steps, learning_rate=self.learning_rate, distance_weight=self.distance_weight
        )

    def is_held_out(self, chunk: int) -> bool:
        """Whether a chunk shows the people who are kept from training."""
        return chunk % self.held_out_every == self.held_out_every - 1


@dataclass(frozen=True)
class InvertibilityTraining:
    """Settings of the network's training; those not given a reason are the official ones."""

    steps: int = 3000
    batch: int = 8  # the original: 16
    learning_rate: float = 0.02  # from random weights; the original, whose backbone is pretrained: 1e-3
    backbone_factor: float = 1.0  # of the learning rate; the original: 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9  # of the learning rate's decay to 0
    blur: float = 1.0  # pixels: largest standard deviation
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 7

    def __post_init__(self) -> None:
        if min(self.steps, self.batch - 1) < 1 or min(self.learning_rate, self.backbone_factor, self.blur) < 0:
            raise InvalidInputError(
                f"Invertibility training with {self}: expected positive numbers, and two pictures at once or more."
            )


@dataclass(frozen=True)
class Labels:
    """Pictures and their measured errors."""

    images: Tensor  # [N, 3, R, R], uint8
    errors: Tensor  # [N, spaces, R, R], float16
    masks: Tensor  # [N, 1, R, R], uint8: coverage by drawn objects
    held_out: Tensor  # [N], bool
    spaces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, held_out: bool) -> Tensor:
        """Indices of the held-out pictures, or of the others; int64."""
        return (self.held_out == held_out).nonzero()[:, 0]

    def pictures(self, rows: Tensor) -> Tensor:
        """[B, 3, R, R] in [-1, 1]."""
        return self.images[rows].float() / 127.5 - 1

    def maps(self, rows: Tensor) -> dict[str, Tensor]:
        """Space -> measured error [B, 1, R, R]."""
        return {space: self.errors[rows, k : k + 1].float() for k, space in enumerate(self.spaces)}


def make_labels(
    morphs: MorphModel,
    generator: Generator,
    encoder: Encoder,
    out: Path,
    pictures: int,
    settings: LabelSettings = LabelSettings(),
    *,
    distance: Distance = multiscale_distance,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
) -> bool:
    """Measures the chunks that are not there yet, beside other processes that do the same in the same folder.

    Args:
        morphs: the bank of photographs.
        generator, encoder: frozen; the encoder's code is where inversions begin.
        out: folder of the chunks, of a CSV of the speed and of claims, which say that a process works on a chunk.
        pictures: wanted in all; whole chunks are made.
        settings: those of the chunks already there.
        distance: what the inversions minimise beside the squared error, and what is measured.
        accelerator: see `common.make_accelerator`; None is the CPU.
        time_budget: seconds after which no further chunk is begun.

    Returns:
        True once all chunks are there; False where time ran out.

    Raises:
        InvalidInputError: the folder holds labels of other settings or networks.
    """
    accelerator = accelerator or make_accelerator()
    device = accelerator.device
    log = RunLog(out, "labels", time_budget=time_budget)
    banks = [bank.to(device) for bank in split_people(morphs, settings)]
    generator = generator.to(device).eval().requires_grad_(False)
    encoder = encoder.to(device).eval().requires_grad_(False)
    facts = _facts(generator, encoder, settings, distance)
    missing = [k for k in range(_chunks(pictures, settings)) if not _chunk_path(out, k).is_file()]
    for index in range(_chunks(pictures, settings)):
        if index not in missing:
            _check_facts(_chunk_path(out, index), facts)
            break
    done, spent = 0, 0.0
    while missing and not log.out_of_time():
        worked = False
        for index in missing:
            claim = _Claim(out / f"chunk-{index:06d}.claim")
            if log.out_of_time() or _chunk_path(out, index).is_file() or not claim.take():
                continue
            begun, processor = time.monotonic(), time.process_time()
            try:
                images, masks = draw_pictures(banks[settings.is_held_out(index)], generator.resolution, index, settings)
                given = images.to(device).float() / 127.5 - 1
                with torch.no_grad():
                    start = cast(Tensor, encoder(given, generator)).float()
                errors = measure_errors(
                    given, generator, None, settings.inversion, start=start, distance=distance, progress=claim.keep
                )
                _write_chunk(_chunk_path(out, index), images, masks, errors, facts)
            finally:
                claim.release()
            worked = True
            seconds, processor = time.monotonic() - begun, time.process_time() - processor
            done, spent = done + len(images), spent + seconds
            log.write(
                chunk=index,
                pictures=len(images),
                images_per_hour=3600 * len(images) / seconds,
                cpu_seconds_per_image=processor / len(images),
            )
            logger.info(
                "chunk %d of %d: %.1f images/hour, %.1f CPU seconds each",
                index + 1,
                _chunks(pictures, settings),
                3600 * done / spent,
                processor / len(images),
            )
        missing = [k for k in missing if not _chunk_path(out, k).is_file()]
        if missing and not worked and not log.out_of_time():
            time.sleep(_POLL)
    return not _any_process(accelerator, bool(missing))


def draw_pictures(morphs: MorphModel, resolution: int, chunk: int, settings: LabelSettings) -> tuple[Tensor, Tensor]:
    """The pictures of a chunk [chunk, 3, R, R] and the masks of their objects [chunk, 1, R, R], uint8 on the CPU."""
    objects = step_generator(settings.seed, chunk, _OBJECTS)
    codes = morphs.draw_codes(settings.chunk, step_generator(settings.seed, chunk, _CODES))
    image = deformed(
        morphs.render(codes, resolution), settings.deformation, step_generator(settings.seed, chunk, _DEFORM)
    ).clamp(-1, 1)
    image, mask, _ = occlude_some(image, settings.occluded_share, objects, count=settings.objects)
    return ((image + 1) * 127.5).round().byte().cpu(), (mask * 255).round().byte().cpu()


def split_people(morphs: MorphModel, settings: LabelSettings) -> tuple[MorphModel, MorphModel]:
    """(bank of the people for training, bank of the held-out ones); mirror images go with their person.

    Raises InvalidInputError for a bank of one person.
    """
    people = sorted({person.removesuffix(MIRRORED) for person in morphs.people})
    if len(people) < 2:
        raise InvalidInputError(f"A bank of {len(people)} person(s): expected two or more, to hold some out.")
    order = torch.randperm(len(people), generator=step_generator(settings.seed, 0, _PEOPLE)).tolist()
    count = min(max(1, round(len(people) * settings.held_out)), len(people) - 1)
    chosen = {people[k] for k in order[:count]}
    parts = []
    for inside in (False, True):
        rows = [k for k, person in enumerate(morphs.people) if (person.removesuffix(MIRRORED) in chosen) == inside]
        parts.append(
            MorphModel(
                morphs.textures[rows],
                morphs.fields[rows],
                morphs.mean_points,
                morphs.point_offsets[rows],
                [morphs.people[k] for k in rows],
                [morphs.expressions[k] for k in rows],
            )
        )
    return parts[0], parts[1]


def load_labels(out: Path, pictures: int, settings: LabelSettings = LabelSettings()) -> Labels:
    """Reads the chunks that `make_labels` wrote for so many pictures.

    Raises InvalidInputError where one is not there, or chunks are of different settings.
    """
    from safetensors import safe_open

    parts: dict[str, list[Tensor]] = {"images": [], "errors": [], "masks": []}
    held_out: list[bool] = []
    facts: dict[str, str] = {}
    for index in range(_chunks(pictures, settings)):
        path = _chunk_path(out, index)
        if not path.is_file():
            raise InvalidInputError(f"{path}: no such file. Measure the labels first, or ask for fewer pictures.")
        if not index:
            facts = _read_facts(path)
        _check_facts(path, facts)
        with safe_open(str(path), "pt") as file:
            for name, found in parts.items():
                found.append(file.get_tensor(name))
        held_out += [settings.is_held_out(index)] * len(parts["images"][-1])
    joined = {name: torch.cat(found) for name, found in parts.items()}
    return Labels(**joined, held_out=torch.tensor(held_out), spaces=tuple(json.loads(facts["spaces"])))


def train(
    labels: Labels,
    out: Path,
    settings: InvertibilityTraining = InvertibilityTraining(),
    *,
    config: InvertibilityConfig | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> InvertibilityNet:
    """Runs or resumes the training of the network; returns it in eval mode, on the accelerator's device.

    Args:
        labels: see `load_labels`.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        config: sizes; None is the slim network for the labels' spaces.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: no pictures to train on, or the folder holds a run with other labels or sizes.
    """
    accelerator = accelerator or make_accelerator()
    if config is None:
        config = InvertibilityConfig.slim(labels.images.shape[-1], "portraits")
    if config.spaces != labels.spaces or not len(labels.rows(False)):
        raise InvalidInputError(
            f"{len(labels.rows(False))} pictures to train on, with errors in {', '.join(labels.spaces)}: expected some, "
            f"with errors in {', '.join(config.spaces)}."
        )
    run = _Run(labels, config, settings, accelerator)
    log, held_out = RunLog(out, "invertibility", time_budget=time_budget), RunLog(out, "held-out")
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        run.load(checkpoint)
    reported, begun = run.step, time.monotonic()
    while run.step < settings.steps:
        values = run.one_step()
        if run.step % _REPORT_EVERY == 0 and accelerator.is_main_process:
            speed = (run.step - reported) * settings.batch / (time.monotonic() - begun)
            reported, begun = run.step, time.monotonic()
            logger.info("step %d: loss %.4f, %.2f images/s", run.step, values["loss"], speed)
            log.write(step=run.step, **values, images_per_second=speed)
        stop = _any_process(accelerator, log.out_of_time() or (max_steps is not None and run.step >= max_steps))
        if accelerator.is_main_process and (stop or run.step == settings.steps or log.checkpoint_due()):
            save_checkpoint(out / "checkpoint.pt", run.state())
            if len(labels.rows(True)):
                network = run.finished()
                held_out.write(step=run.step, **correlations(network, labels))
                write_samples(network, labels, out / f"samples-{run.step:06d}.png")
        if stop:
            break
    return run.finished()


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True on every process as soon as it is on one."""
    if accelerator.num_processes == 1:
        return flag
    shared = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(shared, reduction="sum").item())


def blurred(images: Tensor, sigmas: Tensor) -> Tensor:
    """Each picture of [B, C, H, W] under a Gaussian of its own standard deviation in pixels, [B], 0 or more."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigmas.to(images).clamp(min=1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(images.shape[1], dim=0)[:, None]
    x = F.pad(images, (_RADIUS,) * 4, mode="reflect").flatten(0, 1)[None]
    groups = len(kernel)
    x = F.conv2d(F.conv2d(x, kernel[:, :, None], groups=groups), kernel[..., None], groups=groups)
    return x[0].view_as(images)


class _Run:
    """Network, optimiser and the step of one training."""

    def __init__(
        self, labels: Labels, config: InvertibilityConfig, settings: InvertibilityTraining, accelerator: Accelerator
    ) -> None:
        self.labels, self.settings, self.accelerator, self.step = labels, settings, accelerator, 0
        self.rows = labels.rows(held_out=False)
        spread = labels.errors[self.rows].float().transpose(0, 1).flatten(1).std(dim=1)
        self.spread = spread.clamp(min=1e-6).to(accelerator.device)
        mean = labels.errors[self.rows].float().mean(dim=(0, 2, 3)).to(accelerator.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = InvertibilityNet(config).to(accelerator.device)  # gives errors over spreads
        with torch.no_grad():
            for last, value in zip(_last_layers(self.network), mean / self.spread, strict=True):
                last.weight.div_(last.weight.norm())
                last.bias.fill_(float(value))
        backbone = list(self.network.base.backbone.parameters())
        known = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        sgd = torch.optim.SGD(
            [{"params": backbone}, {"params": rest}],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.optimiser: Any = accelerator.prepare_optimizer(sgd, device_placement=False)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": scaler_state(self.accelerator),
            "labels": len(self.labels),
            "settings": dataclasses.asdict(self.settings),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        if state["labels"] != len(self.labels):
            raise InvalidInputError(
                f"The run in this folder learns from {state['labels']} pictures, not {len(self.labels)}. Ask for as "
                "many, or remove its checkpoint.pt to begin anew."
            )
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise InvalidInputError(
                f"The run in this folder has another network: {error}. Remove its checkpoint.pt to begin anew."
            ) from error
        self.step = state["step"]
        self.optimiser.load_state_dict(state["optimiser"])
        load_scaler_state(self.accelerator, state["scaler"])

    def random(self, stream: int) -> torch.Generator:
        """Random numbers of this step and process."""
        return process_generator(self.accelerator, self.settings.seed, self.step, stream)

    def one_step(self) -> dict[str, float]:
        """One update; returns the losses by name."""
        settings = self.settings
        rate = settings.learning_rate * (1 - self.step / settings.steps) ** settings.power
        for group, factor in zip(self.optimiser.param_groups, (settings.backbone_factor, 1.0), strict=True):
            group["lr"] = rate * factor
        image, errors = self._batch()
        self.network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random(_DROPOUT).initial_seed())
            with self.accelerator.autocast():
                predicted = torch.cat(list(self.network(image).values()), dim=1)
        losses = (predicted.float() - errors / self.spread[:, None, None]).square().mean(dim=(0, 2, 3))
        parameters = list(self.network.parameters())
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(losses.mean())
        share_gradients(self.accelerator, parameters)
        self.accelerator.unscale_gradients(self.optimiser)
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        self.optimiser.step()
        self.step += 1
        by_space = dict(zip(self.labels.spaces, losses.tolist(), strict=True))
        return {"loss": losses.mean().item(), **by_space, "rate": rate}

    @torch.no_grad()
    def finished(self) -> InvertibilityNet:
        """A copy that gives errors: the spreads are part of its last layers."""
        network = copy.deepcopy(self.network).eval()
        for last, spread in zip(_last_layers(network), self.spread, strict=True):
            last.weight.mul_(spread)
            last.bias.mul_(spread)
        return network

    @torch.no_grad()
    def _batch(self) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, R, R] and errors [B, spaces, R, R], on the device."""
        settings, device, changes = self.settings, self.accelerator.device, self.random(_CHANGES)
        rows = self.rows[torch.randint(len(self.rows), (settings.batch,), generator=self.random(_ROWS))]
        mirrored = (torch.rand(settings.batch, generator=changes) < 0.5)[:, None, None, None].to(device)
        sigmas = torch.rand(settings.batch, generator=changes) * settings.blur
        image, errors = self.labels.pictures(rows).to(device), self.labels.errors[rows].to(device).float()
        image, errors = (torch.where(mirrored, x.flip(3), x) for x in (image, errors))
        return blurred(image, sigmas), errors


def _last_layers(network: InvertibilityNet) -> list[Any]:
    """The last convolution of each head, before a ReLU."""
    return [cast(Any, network.heads[space]).m[3] for space in network.spaces]


@torch.no_grad()
def predict(network: InvertibilityNet, labels: Labels, rows: Tensor) -> dict[str, Tensor]:
    """Space -> predicted errors [B, 1, R, R] of some of the labels' pictures, on the CPU; the network's mode stays."""
    device, training = next(network.parameters()).device, network.training
    network.eval()
    parts = [network(labels.pictures(some).to(device)) for some in rows.split(_PREDICTED_AT_ONCE)]
    network.train(training)
    return {space: torch.cat([part[space].float().cpu() for part in parts]) for space in labels.spaces}


def correlations(network: InvertibilityNet, labels: Labels) -> dict[str, float]:
    """On the held-out pictures, over all pixels: "correlation_<space>", Pearson's, of predicted and measured errors;
    "error", their mean squared difference."""
    rows = labels.rows(held_out=True)
    predicted, measured = predict(network, labels, rows), labels.maps(rows)
    found = {f"correlation_{space}": _correlation(predicted[space], measured[space]) for space in labels.spaces}
    found["error"] = sum(float(F.mse_loss(predicted[s], measured[s])) for s in labels.spaces) / len(labels.spaces)
    logger.info("held out: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def overlaps(network: InvertibilityNet, labels: Labels) -> dict[str, float]:
    """How well `out_of_domain` finds the drawn objects of the held-out pictures, in superpixels.

    "iou": intersection over union, over all pictures together, at "tau", the threshold that is best on training pictures;
    "iou_measured", "tau_measured": the same of the measured maps, which a perfect prediction would reach. Hair and
    clothes that W+ cannot draw are no objects here and count against both.
    """
    rows, tuning = labels.rows(held_out=True), labels.rows(held_out=False)[:_TUNING]
    segments = [superpixels(labels.pictures(chosen)) for chosen in (tuning, rows)]
    found = {}
    for name in ("", "_measured"):
        maps = [labels.maps(chosen) if name else predict(network, labels, chosen) for chosen in (tuning, rows)]
        on_tuning, on_held_out = (
            {space: mean_per_segment(error, marks) for space, error in some.items()}
            for some, marks in zip(maps, segments, strict=True)
        )
        taus, shares = thresholds(on_tuning, labels.masks[tuning])
        best = taus[int(shares.argmax())]
        found[f"tau{name}"] = float(best)
        found[f"iou{name}"] = float(thresholds(on_held_out, labels.masks[rows], best[None])[1])
    logger.info("held out: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def thresholds(errors: Mapping[str, Tensor], masks: Tensor, taus: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How well `out_of_domain` finds the objects of some pictures, by threshold.

    Args:
        errors: space -> [B, 1, H, W].
        masks: [B, 1, H, W], uint8; an object covers what is above 127.
        taus: thresholds [T]; None tries quantiles of the errors in W+.

    Returns:
        (taus [T], intersection over union over all pictures together [T]).
    """
    if taus is None:
        shares = np.linspace(0.3, 0.995, _THRESHOLDS)
        taus = torch.from_numpy(np.quantile(errors[W_PLUS].numpy(), shares)).float()
    objects, found = masks > 127, []
    for tau in taus.tolist():
        outside = out_of_domain(latent_map(errors, tau=tau)) > 0.5
        found.append((outside & objects).sum() / (outside | objects).sum().clamp(min=1))
    return taus, torch.stack(found)


def _correlation(a: Tensor, b: Tensor) -> float:
    both = torch.stack((a.flatten().double(), b.flatten().double()))
    return float(torch.corrcoef(both)[0, 1].nan_to_num())


def write_samples(network: InvertibilityNet, labels: Labels, path: Path) -> None:
    """Rows of held-out pictures, objects, measured and predicted errors in W+ and in the finest space, latent map."""
    rows = labels.rows(held_out=True)[:_SHOWN]
    image, predicted, measured = labels.pictures(rows), predict(network, labels, rows), labels.maps(rows)
    sheet = [image, (labels.masks[rows].float() / 127.5 - 1).expand_as(image)]
    for space in (labels.spaces[0], labels.spaces[-1]):
        brightest = measured[space].amax().clamp(min=1e-6)
        sheet += [(maps[space] / brightest * 2 - 1).clamp(-1, 1).expand_as(image) for maps in (measured, predicted)]
    sheet.append(colour_preview(latent_map(predicted, superpixels(image)), image))
    write_sheet(torch.cat(sheet), path, columns=len(rows))


class _Claim:
    """A file that says that a process works on a chunk. Without steps for `_STALE` seconds it no longer holds.

    Chunks are the same whoever makes them, so that two processes on one of them lose time, nothing else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self) -> bool:
        """False where another process holds it."""
        for _ in range(2):
            try:
                self.path.open("x").close()
                return True
            except FileExistsError:
                try:
                    if time.time() - self.path.stat().st_mtime < _STALE:
                        return False
                except FileNotFoundError:
                    continue
                self.path.unlink(missing_ok=True)
        return False

    def keep(self, *_: Any) -> None:
        """Called at each step."""
        try:
            os.utime(self.path)
        except FileNotFoundError:  # another process took this one for dead
            logger.warning("%s is gone: another process may be making the same chunk", self.path.name)
            self.path.touch()

    def release(self) -> None:
        """The chunk is there, or given up."""
        self.path.unlink(missing_ok=True)


def _chunks(pictures: int, settings: LabelSettings) -> int:
    if pictures < 1:
        raise InvalidInputError(f"Labels of {pictures} pictures: expected one or more.")
    return math.ceil(pictures / settings.chunk)


def _chunk_path(out: Path, index: int) -> Path:
    return out / f"chunk-{index:06d}.safetensors"


def _facts(generator: Generator, encoder: Encoder, settings: LabelSettings, distance: Distance) -> dict[str, str]:
    """What labels depend on; chunks in one folder agree in it."""
    return {
        "settings": json.dumps(dataclasses.asdict(settings)),
        "spaces": json.dumps(latent_spaces(generator.resolution)),
        "generator": fingerprint(generator),
        "encoder": fingerprint(encoder),
        "distance": distance.name if isinstance(distance, LayeredDistance) else "multiscale",
    }


def _write_chunk(
    path: Path, images: Tensor, masks: Tensor, errors: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    from safetensors.torch import save_file

    stacked = torch.cat(list(errors.values()), dim=1).clamp(max=torch.finfo(torch.float16).max).half().cpu()
    with replacing(path) as temporary:
        tensors = {"images": images.contiguous(), "masks": masks.contiguous(), "errors": stacked.contiguous()}
        save_file(tensors, str(temporary), metadata=dict(facts))


def _read_facts(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def _check_facts(path: Path, facts: Mapping[str, str]) -> None:
    found = _read_facts(path)
    different = [name for name, value in facts.items() if found.get(name) != value]
    if different:
        name = different[0]
        raise InvalidInputError(
            f"{path}: labels made with {name} {found.get(name)}, not {facts[name]}. Use another folder, or what they "
            "were made with."
        )


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train invertibility`: measures labels, then trains or resumes the predictor of a generator."""
    parser = argparse.ArgumentParser(prog="gan-inversion train invertibility", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    labelling, defaults = LabelSettings(), InvertibilityTraining()
    parser.add_argument("--generator", default="portraits", help="file or catalogue id")
    parser.add_argument("--encoder", default="portraits-e4e", help="file or catalogue id, of that generator")
    measuring = parser.add_mutually_exclusive_group()
    measuring.add_argument("--perceptual", default="portraits-perceptual", help="trunk, file or id")
    measuring.add_argument("--lpips", action="store_true", help="LPIPS on VGG16 in place of the perceptual trunk")
    parser.add_argument("--pictures", type=int, default=600, help="labels to measure, if not there, and to learn from")
    parser.add_argument("--labels-only", action="store_true", help="stop there: a further process for the first stage")
    parser.add_argument("--label-steps", type=int, default=labelling.steps, help="of the inversions")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of the network")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    options = parser.parse_args(argv)

    keep_freed_memory()
    settings = dataclasses.replace(
        defaults, steps=options.steps, learning_rate=options.learning_rate, batch=options.batch or defaults.batch
    )
    labelling = dataclasses.replace(
        labelling,
        steps=options.label_steps,
        distance_weight=1.0 if options.lpips else labelling.distance_weight,
    )
    accelerator = make_accelerator(options.device, options.mixed_precision)
    distance: Distance
    if options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
    else:
        from ..perceptual import trunk_distance

        distance = trunk_distance(cast(Any, registry.load_model(options.perceptual).module))
    folder, begun = options.runs / "invertibility", time.monotonic()
    complete = make_labels(
        load_morphs(options.portraits, options.runs),
        registry.load_model(options.generator).module,
        registry.load_model(options.encoder).module,
        folder / "labels",
        options.pictures,
        labelling,
        distance=distance,
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if options.labels_only or not complete:
        logger.info("Labels are %s", "complete" if complete else "not complete yet: run again to go on")
        return folder / "labels"
    labels = load_labels(folder / "labels", options.pictures, labelling)
    left = None if options.seconds is None else max(0.0, options.seconds - (time.monotonic() - begun))
    network = train(labels, folder, settings, accelerator=accelerator, time_budget=left)
    if not accelerator.is_main_process:
        return options.out
    facts = {"generator": str(options.generator), "encoder": str(options.encoder), "pictures": str(len(labels))}
    facts["labels"] = json.dumps(
        {**dataclasses.asdict(labelling), "distance": "lpips-vgg" if options.lpips else "trunk"}
    )
    if len(labels.rows(held_out=True)):
        figures = {**correlations(network, labels), **overlaps(network, labels)}
        facts |= {name: f"{value:.4g}" for name, value in figures.items()}
        network.config = dataclasses.replace(network.config, threshold=float(facts["tau"]) or None)
    return registry.save_model(
        network.cpu(), options.out, card("invertibility predictor", settings, **facts), torch.float16
    )
