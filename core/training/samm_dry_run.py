"""Steps of SAMM's training at full size on random weights: does it fit, does it step, and how long would it take.

Nothing is learned and nothing is loaded: random generator, encoder, SAMM, discriminator, VGG19 and ArcFace network of
the official sizes, random pictures, the paper's settings with all four levels open. Reading pictures is not measured.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones import DEFAULT_UNITS, IR_SE50
from ..encoders import Encoder, EncoderConfig
from ..errors import InvalidInputError, NotFiniteError
from ..generator import Generator, GeneratorConfig
from .arcface import ArcFace
from .common import make_accelerator
from .samm_settings import OFFICIAL_STEPS, SammTraining, paper_settings
from .vgg19 import LAYERS, VGG19

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_HOURS_OF = (200_000, OFFICIAL_STEPS)  # steps: nearly all of the learning rates' sum, and the original's number


@dataclass(frozen=True)
class DryRunSizes:
    """Sizes of the networks; the defaults are those of FFHQ at 1024 px."""

    generator: GeneratorConfig = GeneratorConfig.official(1024)
    encoder: EncoderConfig = EncoderConfig()
    identity_stem: int = 64
    identity_widths: tuple[int, ...] = (64, 128, 256, 512)
    identity_units: tuple[int, ...] = DEFAULT_UNITS[IR_SE50]


class _Noise:
    """Uniform noise for pictures (see `images.RealImages`)."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 3, r, r] in [-1, 1]."""
        return torch.rand(count, 3, self.resolution, self.resolution, generator=generator) * 2 - 1


def dry_run(
    steps: int = 2,
    *,
    batch: int | None = None,
    sizes: DryRunSizes = DryRunSizes(),
    settings: SammTraining | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Takes training steps with every loss and returns figures that JSON can hold.

    Args:
        steps: 1 or more. The first one is not counted in the mean time where there are others.
        batch: pictures of a step; None: that of the settings.
        sizes: of the networks.
        settings: None: the paper's, with all levels open from the start.
        accelerator: see `common.make_accelerator`; None measures on the CPU.

    Raises:
        InvalidInputError: no steps.
        NotFiniteError: a loss came out infinite or not a number, or the weights did not move.
    """
    from . import samm as trainer  # which imports this module for its command

    if steps < 1:
        raise InvalidInputError(f"A dry run of {steps} steps: expected 1 or more.")
    accelerator = accelerator or make_accelerator()
    settings = settings or paper_settings(level_starts=(), level_every=0)
    if batch is not None:
        settings = dataclasses.replace(settings, batch=batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        generator, encoder = Generator(sizes.generator), Encoder(sizes.encoder)
        identity = ArcFace(sizes.identity_stem, sizes.identity_widths, sizes.identity_units)
    device = accelerator.device
    vgg = VGG19.random(settings.seed).to(device)
    judges = trainer.Judges(
        features=vgg,
        feature_weights=tuple(LAYERS.values()),
        identity=identity.to(device),
        discriminator=trainer.new_discriminator(generator, settings.seed),
    )
    run = trainer._Run(_Noise(generator.resolution), generator, encoder, settings, judges, accelerator)
    before = _weight_sum(run.samm), _weight_sum(run.discriminator)
    run.step = settings.mask_steps + settings.adversarial_start  # losses of the image stage, the discriminator's too
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    operations = 0
    values: dict[str, float] = {}
    for step in range(steps):
        begun, cpu_begun = _now(device), time.process_time()
        if step == 0:
            operations, values = _counted(run)
        else:
            values = run.one_step()
        seconds.append(_now(device) - begun)
        cpu_seconds.append(time.process_time() - cpu_begun)
        logger.info("dry run, step %d: %.2f s, %.2f s of CPU", step + 1, seconds[-1], cpu_seconds[-1])
    moved = all(a != b for a, b in zip(before, (_weight_sum(run.samm), _weight_sum(run.discriminator)), strict=True))
    if not moved or not all(math.isfinite(value) for value in values.values()):
        raise NotFiniteError(f"The dry run's steps failed: losses {values}, weights moved: {moved}.")
    mean = sum(seconds[1:]) / (steps - 1) if steps > 1 else seconds[0]
    memory, kind = _peak_memory(device)
    networks = {
        "generator": generator,
        "encoder": encoder,
        "samm": run.samm,
        "discriminator": run.discriminator,
        "vgg19": vgg,
        "identity": identity,
    }
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mixed_precision": accelerator.mixed_precision,
        "resolution": generator.resolution,
        "batch": settings.batch,
        "iterations": list(settings.iterations),
        "parameters": {name: _parameters(network) for name, network in networks.items()},
        "step_seconds": [round(value, 4) for value in seconds],
        "step_cpu_seconds": [round(value, 4) for value in cpu_seconds],  # of this process, where others share the CPU
        "seconds_per_step": round(mean, 4),
        "peak_memory_gb": memory,
        "peak_memory_is": kind,
        "tera_operations_per_step": round(operations / 1e12, 4),  # multiplications and additions, counted
        "hours": {f"{count} steps": round(mean * count / 3600, 2) for count in _HOURS_OF},
        "losses": {name: float(f"{value:.6g}") for name, value in values.items()},
    }


def _counted(run: Any) -> tuple[int, dict[str, float]]:
    """One step and the operations of its convolutions and matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        values = run.one_step()
    return counter.get_total_flops(), values


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _parameters(network: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0


@torch.no_grad()
def _weight_sum(network: nn.Module | None) -> float:
    return float(sum(p.double().abs().sum() for p in network.parameters())) if network is not None else 0.0


def _peak_memory(device: torch.device) -> tuple[float | None, str]:
    """10^9 bytes, and of what."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3), "tensors on the card"
    try:
        import resource
    except ImportError:  # Windows
        return None, "not known on this platform"
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3), "resident memory of the process"
