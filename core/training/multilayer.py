"""Trains the encoder variant of SAM: feature offsets of a multilayer inversion in one forward pass.

Paper: Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (SAM, CVPR 2022); nothing of
its encoder's training was published. The losses are those of its optimisation (core/multilayer.py): squared error,
perceptual distance, mean square of each offset; averaged over pictures in place of optimised for one.

Pictures are morphs with drawn objects (core/training/occluders). Generator and encoder are frozen. Regions are drawn at
random for each picture, so that one network serves every predictor, threshold and painted region: superpixels are sorted
by the error of the encoder's inversion, and random shares of them, the worst ones last, go to the spaces in order of
faithfulness; in some pictures the order of the spaces is random.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder
from ..errors import InvalidInputError
from ..generator import FeatureHook, Generator, SynthesisHooks
from ..invertibility import W_PLUS, LatentMap, feature_side
from ..losses import Distance, multiscale_distance
from ..metrics import psnr
from ..multilayer_encoder import MultilayerEncoder, MultilayerEncoderConfig
from ..superpixels import mean_per_segment, superpixels
from .common import (
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

_HELD_OUT = 8
_COLUMNS = ("loss", "l2", "perceptual", "features")
_CODES, _DEFORM, _OBJECTS, _REGIONS = range(4)  # streams of random numbers
_SHARE_OF_W_PLUS, _SHARE_OF_FEATURES = 2.0, 0.6  # relative mean sizes of the regions


@dataclass(frozen=True)
class MultilayerTraining:
    """Settings of a run."""

    steps: int = 1500
    batch: int = 4
    occluded_share: float = 0.6  # of the pictures: those with objects
    objects: tuple[int, int] = (1, 2)  # in such a picture
    deformation: float = 0.02  # of the faces, see `encoder.deformed`
    shuffled_share: float = 0.2  # of the pictures: those whose spaces are in random order
    segments: int = 120  # superpixels in a picture
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.05  # fraction of the learning rate at the end
    warmup: int = 50
    clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.99
    l2: float = 1.0
    perceptual: float = 0.2  # 1 for LPIPS
    features: float = 1.0  # on the mean square of each offset inside its region; the paper: 5, with LPIPS
    seed: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        shares = (self.occluded_share, self.shuffled_share)
        if min(self.steps, self.batch, self.segments) < 1 or min(shares) < 0 or max(shares) > 1:
            raise InvalidInputError(f"Multilayer training with {self}: expected positive numbers, and shares in 0..1.")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise InvalidInputError(
                f"Multilayer training with objects {self.objects}: expected 1 <= least <= greatest."
            )


def train(
    morphs: MorphModel,
    generator: Generator,
    encoder: Encoder,
    out: Path,
    settings: MultilayerTraining = MultilayerTraining(),
    *,
    distance: Distance = multiscale_distance,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> MultilayerEncoder:
    """Runs or resumes a training; returns the network with averaged weights, on the accelerator's device.

    Args:
        morphs: the bank of photographs.
        generator, encoder: frozen; the encoder gives the codes.
        out: folder for checkpoint, logs and sheets.
        settings: those of the run being resumed.
        distance: perceptual distance between two batches, [B].
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder holds a run with other sizes.
    """
    accelerator = accelerator or make_accelerator()
    run = _Run(morphs, generator, encoder, settings, distance, accelerator)
    limits = {"time_budget": time_budget, "max_steps": max_steps}
    run_training(run, out, "multilayer", settings.steps, settings.batch, _COLUMNS, accelerator, **cast(Any, limits))
    return cast(MultilayerEncoder, cast(Any, copy.deepcopy(run.average)).to(memory_format=torch.contiguous_format))


def random_map(
    error: Tensor, segments: Tensor, spaces: Sequence[str], random: torch.Generator, shuffled_share: float = 0.2
) -> LatentMap:
    """Random regions that look like those of a predictor: where the error is large, the more faithful spaces.

    Args:
        error: [B, 1, R, R], of the plain inversion.
        segments: labels [B, R, R], see `superpixels`.
        spaces: W+ and the feature spaces, most editable first.
        random: on the CPU.
        shuffled_share: of the pictures, whose spaces follow no order.
    """
    weights = torch.tensor([_SHARE_OF_W_PLUS, *[_SHARE_OF_FEATURES] * (len(spaces) - 1)])
    index = []
    for row in range(len(error)):
        shares = weights * torch.empty(len(spaces)).exponential_(generator=random)
        borders = (shares / shares.sum()).cumsum(0)[:-1]
        mean = mean_per_segment(error[row : row + 1], segments[row : row + 1])[0, 0].cpu()
        order = mean.flatten().argsort().argsort().view_as(mean) / mean.numel()  # 0 the least error, 1 the largest
        order = mean_per_segment(order[None, None].float(), segments[row : row + 1].cpu())[0, 0]
        position = torch.bucketize(order, borders)
        if float(torch.rand((), generator=random)) < shuffled_share:
            position = torch.randperm(len(spaces), generator=random)[position]
        index.append(position)
    return LatentMap(tuple(spaces), torch.stack(index).to(error.device))


@dataclass(frozen=True)
class _Batch:
    image: Tensor  # [B, 3, R, R] with objects
    w_plus: Tensor
    drawn: Tensor  # [B, 3, R, R], the plain inversion
    features: dict[str, Tensor]  # space -> [B, C, r, r]
    regions: dict[str, Tensor]  # space -> [B, 1, r, r]


class _Run:
    """Networks, optimiser and the step of one training."""

    step = 0

    def __init__(
        self,
        morphs: MorphModel,
        generator: Generator,
        encoder: Encoder,
        settings: MultilayerTraining,
        distance: Distance,
        accelerator: Accelerator,
    ) -> None:
        self.settings, self.distance, self.accelerator = settings, distance, accelerator
        device = accelerator.device
        self.morphs = morphs.to(device)
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        config = MultilayerEncoderConfig.for_generator(generator, domain=encoder.config.domain)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = MultilayerEncoder(config)
        self.network = cast(Any, network.to(device).train()).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        adam = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        self.optimiser = accelerator.prepare_optimizer(adam, device_placement=False)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": scaler_state(self.accelerator),
            "settings": dataclasses.asdict(self.settings),
        }

    def load(self, state: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise InvalidInputError(
                f"The run in this folder has other sizes than the generator given: {error}. Use another folder, or the "
                "generator it was begun with."
            ) from error
        self.step = state["step"]
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        load_scaler_state(self.accelerator, state["scaler"])

    def one_step(self) -> dict[str, float]:
        settings = self.settings
        rate = settings.learning_rate * cosine(self.step, settings.steps, settings.warmup, settings.final_learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        seed, step = settings.seed, self.step
        batch = self._batch(lambda stream: process_generator(self.accelerator, seed, step, stream), settings.batch)
        with self.accelerator.autocast():
            picture, offsets = self._inverted(self.network, batch)
        losses = {
            "l2": (picture.float() - batch.image).square().mean(),
            "perceptual": self.distance(picture.float().clamp(-1, 1), batch.image).mean(),
            "features": torch.stack([(o.float() * batch.regions[s]).square().mean() for s, o in offsets.items()]).sum(),
        }
        loss = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        parameters = list(self.network.parameters())
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        share_gradients(self.accelerator, parameters)
        self.accelerator.unscale_gradients(self.optimiser)
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        self.optimiser.step()
        self.step += 1
        update_ema(self.average, self.network, min(settings.ema_decay, self.step / (9 + self.step)))
        return {**{name: value.item() for name, value in {"loss": loss, **losses}.items()}, "rate": rate}

    @torch.no_grad()
    def _batch(self, random: Any, size: int) -> _Batch:
        settings, spaces = self.settings, self.network.spaces
        codes = self.morphs.draw_codes(size, random(_CODES)).to(self.accelerator.device)
        image = self.morphs.render(codes, self.generator.resolution)
        image = deformed(image, settings.deformation, random(_DEFORM)).clamp(-1, 1)
        image, _, _ = occlude_some(image, settings.occluded_share, random(_OBJECTS), count=settings.objects)
        taps: dict[str, Tensor] = {}
        with self.accelerator.autocast():
            w_plus = cast(Tensor, self.encoder(image, self.generator))
            drawn = self.generator.synthesis(w_plus.float(), taps=taps)
        error = (drawn.float() - image).abs().mean(dim=1, keepdim=True)
        segments = superpixels(image, settings.segments)
        chosen = random_map(error, segments, (W_PLUS, *spaces), random(_REGIONS), settings.shuffled_share)
        features = {space: taps[f"block{feature_side(space)}"].float() for space in spaces}
        return _Batch(image, w_plus.float(), drawn.float(), features, chosen.feature_masks())

    def _inverted(self, network: nn.Module, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The picture with the offsets [B, 3, R, R], and the offsets."""
        offsets = network(batch.image, batch.drawn, batch.features, batch.regions)
        hooks = {feature_side(space): _adds(offset, batch.regions[space]) for space, offset in offsets.items()}
        return self.generator.synthesis(batch.w_plus, hooks=SynthesisHooks(after_block=hooks)), offsets

    @torch.no_grad()
    def samples(self, path: Path) -> dict[str, float]:
        batch = self._batch(lambda stream: step_generator(12345, 0, stream), _HELD_OUT)
        picture, offsets = self._inverted(self.average, batch)
        region = torch.stack([F.interpolate(r, size=picture.shape[2:]) for r in batch.regions.values()]).sum(dim=0)
        inside = (region > 0.5).float()
        found = {"psnr": psnr(picture.clamp(-1, 1), batch.image).mean().item()}
        found["psnr_plain"] = psnr(batch.drawn.clamp(-1, 1), batch.image).mean().item()
        for name, drawn in (("psnr_features", picture), ("psnr_plain_features", batch.drawn)):
            found[name] = psnr(drawn.clamp(-1, 1), batch.image, inside).nanmean().item()
        found["offsets"] = torch.stack([o.square().mean() for o in offsets.values()]).mean().sqrt().item()
        logger.info("%s: %s", path.name, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        shades = sum((k + 1) * F.interpolate(r, size=picture.shape[2:]) for k, r in enumerate(batch.regions.values()))
        grey = (cast(Tensor, shades) / len(batch.regions) * 2 - 1).expand(-1, 3, -1, -1)
        write_sheet(torch.cat((batch.image, batch.drawn, picture, grey)), path, columns=_HELD_OUT)
        return found


def _adds(offset: Tensor, region: Tensor) -> FeatureHook:
    return lambda x: x + offset * region


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train multilayer`: trains or resumes the one-pass multilayer encoder of a generator."""
    parser = argparse.ArgumentParser(prog="gan-inversion train multilayer", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = MultilayerTraining()
    parser.add_argument("--generator", default="portraits", help="file or catalogue id")
    parser.add_argument("--encoder", default="portraits-e4e", help="file or catalogue id, of that generator")
    parser.add_argument("--perceptual", default="portraits-perceptual", help="trunk, file or catalogue id")
    parser.add_argument(
        "--lpips", action="store_true", help="LPIPS on VGG16 in place of the trunk, with the paper's weights"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    options = parser.parse_args(argv)

    keep_freed_memory()
    settings = dataclasses.replace(
        defaults, steps=options.steps, learning_rate=options.learning_rate, batch=options.batch or defaults.batch
    )
    accelerator = make_accelerator(options.device, options.mixed_precision)
    distance: Distance
    if options.lpips:
        distance = registry.perceptual_distance("lpips-vgg")
        settings = dataclasses.replace(settings, perceptual=1.0, features=5.0)
    else:
        from ..perceptual import trunk_distance

        trunk = registry.load_model(options.perceptual).module.to(accelerator.device)
        distance = trunk_distance(trunk.eval().requires_grad_(False))
    network = train(
        load_morphs(options.portraits, options.runs),
        registry.load_model(options.generator).module,
        registry.load_model(options.encoder).module,
        options.runs / "multilayer",
        settings,
        distance=distance,
        accelerator=accelerator,
        time_budget=options.seconds,
    )
    if not accelerator.is_main_process:
        return options.out
    facts = {"generator": str(options.generator), "encoder": str(options.encoder)}
    return registry.save_model(network.cpu(), options.out, card("multilayer encoder", settings, **facts), torch.float16)
