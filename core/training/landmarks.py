"""Trains the landmark net of core/landmarks.py on samples whose points are known (core/training/landmark_samples.py).

Data: Face Research Lab London Set and Young Adult White Faces (DeBruine & Jones, CC BY 4.0), training people only.
Loss: distance of all 68 points and of the five alignment points, in eye distances, and a face score.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..errors import InvalidInputError
from ..files import replacing
from ..landmarks import LandmarkNet
from .common import PORTRAITS_CREDIT, Registry, keep_freed_memory, load_checkpoint, save_checkpoint
from .landmark_samples import FIVE_GROUPS, LandmarkTrainingConfig, build_pool, sample_batch

logger = logging.getLogger(__name__)


def train(
    portraits: str | Path,
    out: str | Path,
    config: LandmarkTrainingConfig | None = None,
    *,
    teacher: str | Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train the landmark net and write float16 safetensors to `out`; returns its path.

    A checkpoint beside `out` (suffix .checkpoint.pt) lets an interrupted run go on; it is removed at the end.
    teacher: a YuNet file whose five points label the smiling photographs. Raises InvalidInputError when the folder
    lacks the portraits.
    """
    config = config or LandmarkTrainingConfig()
    portraits, out = Path(portraits), Path(out)
    if not (portraits / "landmarks.json").is_file():
        raise InvalidInputError(f"{portraits} has no landmarks.json; give the folder that holds it and info.csv.")
    pool = build_pool(portraits, config, None if teacher is None else Path(teacher))
    logger.info("pool: %d pictures, %d with all points", len(pool.pictures), int(pool.complete.sum()))
    torch.manual_seed(config.seed)
    net = LandmarkNet().to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=0.08, final_div_factor=200
    )
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    checkpoint, first_step = out.with_suffix(".checkpoint.pt"), 0
    state = load_checkpoint(checkpoint)
    if state is not None:
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        average = {name: value.to(device) for name, value in state["average"].items()}
        first_step = int(state["step"])
    generator = torch.Generator().manual_seed(config.seed + first_step)
    started = time.monotonic()
    for step in range(first_step, config.steps):
        crops, points, known, is_face = sample_batch(pool, config, generator)
        found, logits = net(crops.to(device))
        loss, error = _loss(found, logits, points.to(device), known.to(device), is_face.to(device), config)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        for name, value in net.state_dict().items():
            # The average forgets its random start quickly, then spans the last few hundred steps.
            decay = min(0.995, (1 + step) / (10 + step)) if value.is_floating_point() else 0.0
            average[name].mul_(decay).add_(value.detach(), alpha=1 - decay) if decay else average[name].copy_(value)
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            logger.info("step %d  loss %.4f  error %.4f eye distances  %.0f s", step + 1, float(loss), error, seconds)
        if (step + 1) % config.save_every == 0:
            state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
            save_checkpoint(checkpoint, {**state, "average": average, "step": step + 1})
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in average.items()}
    metadata = {"architecture": "landmarks", "credit": PORTRAITS_CREDIT, "config": json.dumps(asdict(config)),
                "licence": "MIT", "teacher": "none" if teacher is None else Path(teacher).name}  # fmt: skip
    with replacing(out) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, temporary, metadata=metadata)
    checkpoint.unlink(missing_ok=True)
    return out


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


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train landmarks`; run again to resume."""
    parser = argparse.ArgumentParser(prog="gan-inversion train landmarks", description=__doc__.split("\n")[0])
    defaults = LandmarkTrainingConfig()
    parser.add_argument(
        "--portraits", type=Path, required=True, help="folder with info.csv, landmarks.json and photographs"
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--teacher", type=Path, default=None, help="YuNet file: labels the smiling photographs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    keep_freed_memory()
    config = replace(defaults, steps=options.steps)
    return train(options.portraits, options.out, config, teacher=options.teacher, device=options.device)
