"""Seconds and peak memory of DHR's refinement and of PTI on random weights, on one thread of the CPU.

    [OFFICIAL_GANINVERTER_DIR=... OFFICIAL_PTI_DIR=... OFFICIAL_ADA_DIR=...] python benchmarks/refinement.py \\
        [--resolutions 256 512 1024] [--steps 3] [--growth 1 5] [--methods dhr pti]

Config-f generators, LPIPS on AlexNet at full size, half of the picture out of domain, weights tuned in every step. Each
row is a process of its own: processor seconds of a step (median, without the first one; other programs hardly change
them) and its largest resident memory. Where the variables name checkouts of caopulan/GANInverter, danielroich/PTI and
NVlabs/stylegan2-ada-pytorch, the official loops are timed beside ours; on the CPU they run on plain PyTorch functions, as
ours does. `--growth` adds runs of that many steps at the smallest size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gan_inversion.core.dhr import DhrConfig, refine
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.inversion import Inversion
from gan_inversion.core.losses import lpips_distance
from gan_inversion.core.tuning import PtiConfig, tune

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = {"dhr": ("OFFICIAL_GANINVERTER_DIR",), "pti": ("OFFICIAL_PTI_DIR", "OFFICIAL_ADA_DIR")}


def main() -> None:
    """Prints one row per run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--methods", nargs="+", choices=["dhr", "pti"], default=["dhr", "pti"])
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "RESOLUTION", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        method, resolution, steps = options.measure
        print(json.dumps(measure(method, int(resolution), int(steps))))
        return
    runs = [(resolution, options.steps) for resolution in options.resolutions]
    runs += [(min(options.resolutions), steps) for steps in options.growth if steps != options.steps]
    for method in options.methods:
        for resolution, steps in runs:
            row(f"{method}, {resolution} px, {steps} steps, ours", *ours(method, resolution, steps))
            if all(name in os.environ for name in OFFICIAL[method]):
                row(f"{method}, {resolution} px, {steps} steps, official", *official(method, resolution, steps))


def row(name: str, seconds: list[float], peak: float) -> None:
    """One line: seconds of each step after the first, peak memory."""
    later = f"{statistics.median(seconds):7.2f} s a step" if seconds else " " * 16
    print(f"{name:36} {later}  peak memory {peak:6.0f} MiB", flush=True)


def ours(method: str, resolution: int, steps: int) -> tuple[list[float], float]:
    """Runs `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", method, str(resolution), str(steps)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found["seconds"], found["peak"]


def measure(method: str, resolution: int, steps: int) -> dict:
    """Child process: refines one picture; processor seconds of every step but the first, and peak memory in MiB."""
    import torchvision

    torch.manual_seed(0)
    generator = Generator(GeneratorConfig.official(resolution)).eval().requires_grad_(False)
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    distance = lpips_distance("alex", {f"features.{name}": value for name, value in features.items()})
    image = torch.rand(1, 3, resolution, resolution) * 2 - 1
    inversion = Inversion(image, torch.randn(1, generator.num_ws, 512), generator)
    ends: list[float] = []

    def progress(step: int, count: int, preview: torch.Tensor | None) -> None:
        ends.append(time.process_time())

    if method == "dhr":
        outside = torch.zeros(1, 1, resolution, resolution)
        outside[..., : resolution // 2] = 1
        config = DhrConfig(steps=steps, weight_steps=steps)
        refine(inversion, distance, config, out_of_domain=outside, progress=progress)
    else:
        tune(inversion, distance, PtiConfig(steps=steps, stop_at=None), progress=progress)
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def official(method: str, resolution: int, steps: int) -> tuple[list[float], float]:
    """The same for the official code, which tests/parity runs in a process of its own."""
    sys.path.insert(0, str(ROOT))
    from tests.parity import dhr_parity, pti_parity

    case: dict = {"resolution": resolution, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        if method == "dhr":
            block = max(resolution // 8, 64)
            case |= {"what": "refine", "weight_steps": steps, "block": block, "divide": 1}
            found = dhr_parity.run_official(case, Path(folder))
        else:
            case |= {"channel_base": 32768, "channel_max": 512}
            found = pti_parity.run_official(case, Path(folder))
    ends = found["times"][1:, 1]  # the start of a step is the end of the one before
    return [float(b - a) for a, b in zip(ends, ends[1:], strict=False)], float(found["peak"]) / 1024


if __name__ == "__main__":
    main()
