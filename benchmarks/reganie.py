"""ReGANIE beyond `gan-inversion evaluate`: what the paper leaves open, and an edit of the pose large enough to see ghosts.

    python benchmarks/reganie.py --portraits PORTRAITS --runs RUNS --out FOLDER [--only ablation pose] [--steps 400]

ablation: the same short training for each choice; PSNR of held-out pictures. RUNS keeps the checkpoints.
pose: test people, plain and behind objects, at yaw -2, 0 and 2; photograph, plain edit and ReGANIE's, enlarged 4x.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gan_inversion.core.editing import Edit
from gan_inversion.core.inversion import Inversion, render
from gan_inversion.core.perceptual import trunk_distance
from gan_inversion.core.reganie import ReganieConfig, rectify
from gan_inversion.core.training.common import keep_freed_memory, load_morphs, write_sheet
from gan_inversion.core.training.occluders import occlude
from gan_inversion.core.training.portraits import load_people
from gan_inversion.core.training.reganie import BUNDLED_DIRECTIONS, ReganieTraining, families_of, train
from gan_inversion.model_registry import load_direction, load_model

HELD_OUT = ("portraits-smile", "portraits-short-hair")
_SMALL = {"encoder_widths": (32, 64, 160), "spatial_channels": 48, "base_blocks": 1, "generator_widths": (96, 32)}
_COARSE = {"encoder_widths": (16, 32, 64, 160), "generator_widths": (96, 48, 32), "spatial_channels": 48}
# What differs from `_SMALL`, and from `ReganieConfig.slim`.
SMALL: dict[str, dict[str, Any]] = {
    "16x16 codes at 64 px": {},
    "code scale unit": {"code_scale": "unit"},
    "code scale free": {"code_scale": "free"},
    "not residual": {"residual": False},
    "8 spatial channels": {"spatial_channels": 8},
    "96 spatial channels": {"spatial_channels": 96},
    "no base block": {"base_blocks": 0},
    "two base blocks": {"base_blocks": 2},
    "32 global channels": {"global_channels": 32},
    "global code first": {"global_first": True},
}
LARGE: dict[str, dict[str, Any]] = {
    "32x32 codes at 128 px": {"base_blocks": 1},
    "16x16 codes at 128 px": {**_COARSE, "base_blocks": 1},
}
CONFIGS = {name: ReganieConfig.slim(64, **{**_SMALL, **changes}) for name, changes in SMALL.items()} | {
    name: ReganieConfig.slim(128, **changes) for name, changes in LARGE.items()
}
YAWS = (-2.0, 0.0, 2.0)
ENLARGED = 4


def ablation(portraits: Path, runs: Path, steps: int, only: list[str]) -> dict[str, dict[str, float]]:
    """PSNR by choice, of the averaged network after `steps`, and seconds of training."""
    generator, encoder = load_model("portraits").module, load_model("portraits-e4e").module
    taught = [load_direction(name) for name in BUNDLED_DIRECTIONS if name not in HELD_OUT]
    settings = ReganieTraining(
        steps=steps, batch=4, final_learning_rate=0.05, adversarial=0.0, uses=8, ema_decay=0.98,
        portrait_edits=1.0,
    )  # fmt: skip
    trunk = load_model("portraits-perceptual").module.eval().requires_grad_(False)
    morphs, found = load_morphs(portraits, runs), {}
    for name, config in CONFIGS.items():
        if only and name not in only:
            continue
        out, begun = runs / f"ablation-{name.replace(' ', '-')}", time.process_time()
        train(
            generator, encoder, families_of(generator, taught), out, settings, config, morphs=morphs,
            held_out=[load_direction(name) for name in HELD_OUT], distance=trunk_distance(trunk),
        )  # fmt: skip
        with (out / "held-out.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        found[name] = {key: float(value) for key, value in last.items()} | {"cpu_seconds": time.process_time() - begun}
        print(name, json.dumps(found[name]), flush=True)
    return found


@torch.no_grad()
def pose(portraits: Path, model: str, path: Path, count: int) -> None:
    """Writes the sheet: for each person the photograph, then plain edit and ReGANIE's for each yaw."""
    generator, encoder = load_model("portraits").module, load_model("portraits-e4e").module
    network, yaw = load_model(model).module, load_direction("portraits-yaw")
    _, images = load_people(portraits, "test", generator.resolution)
    chosen = images[:: max(1, len(images) // count)][:count]
    hidden = occlude(chosen, list(range(100, 100 + count))).images
    people = torch.stack((chosen, hidden), dim=1).flatten(0, 1)
    plain = Inversion(people, encoder(people, generator=generator), generator)
    rectified, columns = rectify(plain, network), [people]
    for strength in YAWS:
        edit = Edit.of(yaw, strength)
        columns += [render(plain, edit), render(rectified, edit)]
    sheet = torch.stack(columns, dim=1).flatten(0, 1)
    write_sheet(F.interpolate(sheet, scale_factor=ENLARGED, mode="bicubic"), path, columns=len(columns))


def main() -> None:
    """Writes results.json and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", required=True, type=Path)
    parser.add_argument("--runs", required=True, type=Path, help="keeps morphs.safetensors and the ablation's runs")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", nargs="*", default=["ablation", "pose"])
    parser.add_argument("--choices", nargs="*", default=[], help="of the ablation; default: all")
    parser.add_argument("--model", default="portraits-reganie")
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    if "ablation" in options.only:
        found = ablation(options.portraits, options.runs, options.steps, options.choices)
        (options.out / "results.json").write_text(json.dumps(found, indent=1))
    if "pose" in options.only:
        pose(options.portraits, options.model, options.out / "pose.png", options.people)


if __name__ == "__main__":
    main()
