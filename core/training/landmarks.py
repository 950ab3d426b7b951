"""Trains the landmark net of core/landmarks.py on samples whose points are known (core/training/landmark_samples.py).

Data: Face Research Lab London Set and Young Adult White Faces (DeBruine & Jones, CC BY 4.0), training people only.
Loss: distance of all 68 points and of the five alignment points, in eye distances, and a face score.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..errors import InvalidInputError
from ..files import replacing
from ..landmarks import LandmarkNet
from .common import (
    Registry,
    RunLog,
    add_common_arguments,
    card,
    cosine,
    keep_freed_memory,
    load_checkpoint,
    load_scaler_state,
    make_accelerator,
    process_generator,
    save_checkpoint,
    scaler_state,
    share_gradients,
    update_ema,
)
from .landmark_samples import FIVE_GROUPS, LandmarkTrainingConfig, build_pool, sample_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def train(
    portraits: Path,
    out: Path,
    config: LandmarkTrainingConfig = LandmarkTrainingConfig(),
    *,
    teacher: Path | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> LandmarkNet:
    """Runs or resumes the training; returns the averaged network, frozen, in eval mode.

    Args:
        portraits: folder with info.csv, landmarks.json and photographs.
        out: folder for checkpoint and log.
        config: that of the run being resumed; the batch is that of each process.
        teacher: a YuNet file whose five points label the smiling photographs.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.

    Raises:
        InvalidInputError: the folder lacks the portraits.
    """
    accelerator = accelerator or make_accelerator()
    if not (portraits / "landmarks.json").is_file():
        raise InvalidInputError(f"{portraits} has no landmarks.json; give the folder that holds it and info.csv.")
    pool = build_pool(portraits, config, teacher)
    logger.info("pool: %d pictures, %d with all points", len(pool.pictures), int(pool.complete.sum()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = LandmarkNet().to(accelerator.device).train()
    average = copy.deepcopy(net).eval().requires_grad_(False)
    adam = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    optimiser = accelerator.prepare_optimizer(adam, device_placement=False)
    log = RunLog(out, "landmarks", time_budget=time_budget)
    checkpoint, step = load_checkpoint(out / "checkpoint.pt"), 0
    if checkpoint:
        step = checkpoint["step"]
        for name, part in (("net", net), ("average", average), ("optimiser", optimiser)):
            part.load_state_dict(checkpoint[name])
        load_scaler_state(accelerator, checkpoint["scaler"])
    while step < config.steps:
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * cosine(step, config.steps, warmup=config.steps // 12 + 1, low=0.005)
        batch = sample_batch(pool, config, process_generator(accelerator, config.seed, step))
        crops, points, known, is_face = (value.to(accelerator.device) for value in batch)
        with accelerator.autocast():
            found, logits = net(crops)
        loss, error = _loss(found.float(), logits.float(), points, known, is_face, config)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        share_gradients(accelerator, net.parameters())
        accelerator.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        # The average forgets its random start quickly, then spans the last few hundred steps.
        update_ema(average, net, min(0.995, (1 + step) / (10 + step)))
        step += 1
        if step % 20 == 0 and accelerator.is_main_process:
            log.write(step=step, loss=loss.item(), error=error)
        stop = log.out_of_time() or (max_steps is not None and step >= max_steps)
        if accelerator.is_main_process and (stop or step == config.steps or log.checkpoint_due()):
            state = {"net": net.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(out / "checkpoint.pt", {**state, "step": step, "scaler": scaler_state(accelerator)})
        if stop:
            break
    return average


def _loss(
    found: torch.Tensor,
    logits: torch.Tensor,
    points: torch.Tensor,
    known: torch.Tensor,
    is_face: torch.Tensor,
    config: LandmarkTrainingConfig,
) -> tuple[torch.Tensor, float]:
    """Distance in eye distances over known points, the same over the five group means, and the face score's loss."""
    span = (points[:, 42:48].mean(dim=1) - points[:, 36:42].mean(dim=1)).norm(dim=1).clamp(min=4.0)[:, None]

    def distance(left: torch.Tensor, right: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # The constant rounds the tip of the cone, so that the gradient does not jump at an exact hit.
        lengths = ((left - right).square().sum(dim=-1) + 0.05).sqrt() / span
        return (lengths * weight).sum() / weight.sum().clamp(min=1.0)

    groups = [list(group) for group in FIVE_GROUPS]
    found_five = torch.stack([found[:, group].mean(dim=1) for group in groups], dim=1)
    true_five = torch.stack([points[:, group].mean(dim=1) for group in groups], dim=1)
    known_five = torch.stack([known[:, group].amin(dim=1) for group in groups], dim=1)
    # A smile's eye points are all set to the eye's centre: only their mean is a label.
    spread = (points[:, 36] - points[:, 39]).norm(dim=1) > 1e-3
    five = distance(found_five, true_five, known_five)
    every = distance(found, points, known * spread[:, None])
    score = F.binary_cross_entropy_with_logits(logits, is_face)
    return every + config.five_weight * five + 0.1 * score, float(five.detach())


def save_landmark_net(net: LandmarkNet, path: Path, metadata: Mapping[str, str]) -> Path:
    """Writes float16 safetensors that `core.landmarks.load_landmark_net` reads."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    with replacing(path) as temporary:
        save_file(
            {name: value.contiguous().cpu() for name, value in tensors.items()}, temporary, metadata=dict(metadata)
        )
    return path


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train landmarks`: trains or resumes the landmark net."""
    parser = argparse.ArgumentParser(prog="gan-inversion train landmarks", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = LandmarkTrainingConfig()
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--teacher", type=Path, default=None, help="YuNet file: labels the smiling photographs")
    options = parser.parse_args(argv)
    keep_freed_memory()
    config = dataclasses.replace(defaults, steps=options.steps, batch=options.batch or defaults.batch)
    net = train(
        options.portraits,
        options.runs / "landmarks",
        config,
        teacher=options.teacher,
        accelerator=make_accelerator(options.device, options.mixed_precision),
        time_budget=options.seconds,
    )
    metadata = card("landmarks", config, teacher=options.teacher.name if options.teacher else "none")
    return save_landmark_net(net, options.out, {"architecture": "landmarks", **metadata})
