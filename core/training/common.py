"""What every trainer shares: seeded steps that resume exactly, checkpoints that never half-exist, logs, sample sheets."""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError, MissingPackageError
from ..files import replacing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..losses import Distance
    from .morphs import MorphModel

logger = logging.getLogger(__name__)

PORTRAITS_CREDIT = (
    "Morphs of DeBruine, L. & Jones, B. (2017), Face Research Lab London Set, figshare, doi 10.6084/m9.figshare.5047666, "
    "and DeBruine, L. & Jones, B. (2017), Young Adult White Faces with Manipulated Versions, figshare, "
    "doi 10.6084/m9.figshare.4220517. CC BY 4.0; changes: resized, warped, averaged."
)
HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # of accelerate's mixed precision
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """CPU random generator that depends on nothing but (seed, step, stream): a resumed run draws the same numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) * 10_000_019 + step)


def make_accelerator(device: str = "cpu", mixed_precision: str = "no") -> Accelerator:
    """The `accelerate` context of a run: this process's device, its rank, autocast and the gradient scaler.

    One process by default; under `accelerate launch` one for each device. Networks are not wrapped: each process runs
    plain modules, and `share_gradients` averages what they found (as NVIDIA's trainers do), so that methods other than
    `forward` train too and a checkpoint has the module's own keys.

    Args:
        device: "cpu", or "cuda" for the process's own card.
        mixed_precision: "no", "fp16" or "bf16", for what runs under `accelerator.autocast()`.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingPackageError("Training needs the package accelerate: pip install accelerate.") from error
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
    if accelerator.device.type != torch.device(device).type:
        raise InvalidInputError(f"--device {device}: this process has {accelerator.device.type} only.")
    return accelerator


def share_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes, all in one message; nothing to do for one process."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agreed(accelerator: Accelerator, stop: bool) -> bool:
    """True on every process as soon as one of them stops."""
    if accelerator.num_processes == 1:
        return stop
    flag = torch.tensor(float(stop), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum").item())


def process_generator(accelerator: Accelerator, seed: int, step: int, stream: int = 0) -> torch.Generator:
    """`step_generator` with numbers of its own for each process; process 0 draws what a single process would."""
    return step_generator(seed, step, stream + 1000 * accelerator.process_index)


def scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    """State of the fp16 gradient scaler, for the checkpoint; empty in other precisions."""
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}


def load_scaler_state(accelerator: Accelerator, state: dict[str, Any]) -> None:
    """Puts back what `scaler_state` gave."""
    if accelerator.scaler is not None and state:
        accelerator.scaler.load_state_dict(state)


def cosine(step: int, total: int, warmup: int, low: float) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine from 1 down to `low`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """Moves `ema` towards `module`; buffers that are not averages of weights are copied."""
    for target, source in zip(ema.parameters(), module.parameters(), strict=True):
        target.lerp_(source, 1 - decay)
    for kept, current in zip(ema.buffers(), module.buffers(), strict=True):
        kept.copy_(current)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes beside the target and renames, so that an interrupt leaves the previous checkpoint whole."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """State of a checkpoint written by `save_checkpoint`, or None where there is none. Reads tensors and plain data only."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def keep_freed_memory() -> None:
    """Asks glibc to reuse freed memory in place of returning it: training on a CPU is several times faster for it.

    Every activation is a new block of megabytes; by default each is mapped, zeroed page by page and unmapped again.
    Does nothing on other platforms.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20)):
            mallopt(option, value)


class Registry(Protocol):
    """What a trainer's command needs of `model_registry`, which core does not know and is handed by the command line."""

    def save_model(
        self, module: nn.Module, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
    ) -> Path:
        """Writes a network as safetensors; returns the path written."""

    def load_model(self, source: str | Path) -> Any:
        """Reads a file or catalogue id; the network is the result's `module`, on the CPU."""

    def perceptual_distance(self, name: str) -> Distance:
        """A learned image distance by name."""


def add_common_arguments(parser: argparse.ArgumentParser, *, portraits_required: bool = True) -> None:
    """--portraits, --runs, --out, --device, --mixed-precision, --batch, --seconds."""
    parser.add_argument(
        "--portraits",
        type=Path,
        required=portraits_required,
        help="folder with info.csv, landmarks.json and photographs",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for checkpoints, logs and sheets")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long; run again to resume")


def load_morphs(portraits: Path, runs: Path) -> MorphModel:
    """The bank of photographs, built at the first call and kept in `runs`."""
    from .morphs import MorphModel

    bank = runs / "morphs.safetensors"
    if not bank.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        MorphModel.build(portraits).save(bank)
    return MorphModel.load(bank)


def card(part: str, settings: Any, **facts: str) -> dict[str, str]:
    """Metadata of a bundled model: what it is, what it was trained on, with which settings, under which licence."""
    return {
        "title": f"portraits {part}",
        "domain": "portraits",
        "data": PORTRAITS_CREDIT,
        "licence": "CC-BY-4.0",
        "settings": json.dumps(dataclasses.asdict(settings)),
        **facts,
    }


class RunLog:
    """Appends one CSV row per report and knows when the next checkpoint is due."""

    def __init__(
        self, folder: Path, name: str, checkpoint_seconds: float = 180.0, time_budget: float | None = None
    ) -> None:
        self.path = folder / f"{name}.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.started = self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds, self.time_budget = checkpoint_seconds, time_budget

    def write(self, **values: float) -> None:
        """Adds a row; the header is written with the first one."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(values))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in values.items()})

    def checkpoint_due(self) -> bool:
        """True once every `checkpoint_seconds`."""
        if time.monotonic() - self.last_checkpoint < self.checkpoint_seconds:
            return False
        self.last_checkpoint = time.monotonic()
        return True

    def seconds(self) -> float:
        """Since the run (re)started."""
        return time.monotonic() - self.started

    def out_of_time(self) -> bool:
        """True when the run's time budget is spent."""
        return self.time_budget is not None and self.seconds() > self.time_budget


class Trainable(Protocol):
    """What `run_training` drives: networks, optimisers and the step of one training."""

    step: int  # done so far

    def one_step(self) -> dict[str, float]:
        """One update; returns the losses by name, "loss" and "rate" among them."""
        ...

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        ...

    def samples(self, path: Path) -> dict[str, float]:
        """Writes a sheet of held-out pictures; returns figures of the averaged network."""
        ...


def run_training(
    run: Trainable,
    out: Path,
    name: str,
    total: int,
    images_per_step: int,
    columns: Sequence[str],
    accelerator: Accelerator,
    *,
    time_budget: float | None = None,
    max_steps: int | None = None,
    report_every: int = 20,
    checkpoint_seconds: float = 180.0,
) -> None:
    """Runs or resumes a training until `total`, with a checkpoint, CSV files and sheets of pictures in `out`.

    Args:
        run: at step 0; the checkpoint is put into it.
        out: folder.
        name: of the CSV file with the losses.
        total: steps in all.
        images_per_step: of one process, for the speed in the log.
        columns: of that file: names of losses, NaN in steps that do not have one.
        accelerator: processes agree through it when to stop.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.
        report_every: steps between rows of the log.
        checkpoint_seconds: between checkpoints.
    """
    log, held_out = RunLog(out, name, checkpoint_seconds, time_budget), RunLog(out, "held-out")
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        run.load(checkpoint)
    reported, begun = run.step, time.monotonic()
    while run.step < total:
        values = run.one_step()
        if run.step % report_every == 0 and accelerator.is_main_process:
            speed = (run.step - reported) * images_per_step / (time.monotonic() - begun)
            reported, begun = run.step, time.monotonic()
            logger.info("step %d: loss %.4f, %.2f images/s", run.step, values["loss"], speed)
            losses = {column: values.get(column, math.nan) for column in columns}
            log.write(step=run.step, **losses, rate=values["rate"], images_per_second=speed)
        stop = agreed(accelerator, log.out_of_time() or (max_steps is not None and run.step >= max_steps))
        if accelerator.is_main_process and (stop or run.step == total or log.checkpoint_due()):
            save_checkpoint(out / "checkpoint.pt", run.state())
            held_out.write(step=run.step, **run.samples(out / f"samples-{run.step:06d}.png"))
        if stop:
            break


def pyramid(images: Tensor, levels: int) -> Iterator[Tensor]:
    """The images at full, half, quarter ... size (box filter)."""
    for level in range(levels):
        yield images
        if level + 1 < levels:
            images = torch.nn.functional.avg_pool2d(images, 2)


def write_sheet(images: Tensor, path: Path, columns: int = 8) -> None:
    """Writes [N, 3, H, W] in [-1, 1] as one PNG, `columns` pictures to a row."""
    from PIL import Image

    array = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    height, width = array.shape[1:3]
    rows = (len(array) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(array):
        sheet.paste(Image.fromarray(picture), ((index % columns) * width, (index // columns) * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
