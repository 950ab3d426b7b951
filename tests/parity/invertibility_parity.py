"""Runs SAM's official invertibility network and latent map beside ours on random weights, on the CPU, and compares.

    OFFICIAL_SAM_DIR=... OFFICIAL_DEEPLAB_DIR=... python -m tests.parity.invertibility_parity

The variables name checkouts of adobe-research/sam_inversion and jfzhang95/pytorch-deeplab-xception. The official code
writes a checkpoint in the published layout, its error maps, its latent map and its resized masks in its own process;
ours loads that checkpoint with `load_model`. Weights come from key names alone. `--fixtures DIR` writes the committed
numbers: the official classes with a sixteenth of the channels and fewer units.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F

TOLERANCE = 1e-4
REPOSITORIES = ("OFFICIAL_SAM_DIR", "OFFICIAL_DEEPLAB_DIR")
SPACES = ("W+", "F4", "F6", "F8", "F10")
SIDES = {"F4": 16, "F6": 32, "F8": 64, "F10": 128}
FULL = {"units": (3, 4, 23, 3), "divide": 1}
NARROW = {"units": (1, 1, 2, 3), "divide": 16}
CASES: dict[str, dict] = {
    "faces-256": {**FULL, "size": (256, 256), "batch": 2},
    "cars-192x256": {**FULL, "size": (192, 256), "batch": 1},
    "odd-size-201x333": {**FULL, "size": (201, 333), "batch": 1},
}
FIXTURE = {**NARROW, "size": (48, 64), "batch": 1}


def seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random values that depend on name and shape alone, from numpy's frozen legacy generator."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    noise = torch.from_numpy(random.standard_normal(int(np.prod(shape))).astype(np.float32)).reshape(shape)
    if name.endswith("running_var"):
        return 0.6 + 0.4 * noise.abs()
    if name.endswith("weight") and len(shape) == 1:
        return (0.3 if "bn3" in name else 1.0) + 0.1 * noise  # small after a residual, or the sum explodes
    if name.endswith("m.3.weight"):
        return 0.01 * noise
    if name.endswith("m.3.bias"):
        return 0.3 + 0.02 * noise  # above zero: a final ReLU that cuts everything would compare nothing
    if name.endswith("weight"):
        return noise * float(2.0 / np.prod(shape[1:])) ** 0.5
    return 0.1 * noise


def seeded_image(batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Smooth shapes with some noise, [batch, 3, *size] in [-1, 1]."""
    random = np.random.RandomState(11)
    coarse = torch.from_numpy(random.uniform(-1.0, 1.0, (batch, 3, 8, 8)))
    fine = torch.from_numpy(random.uniform(-0.2, 0.2, (batch, 3, *size)))
    return (F.interpolate(coarse, size=size, mode="bilinear") + fine).clamp(-1.0, 1.0).float()


def seeded_segments(size: tuple[int, int]) -> np.ndarray:
    """About 25 irregular segments [H, W]."""
    random = np.random.RandomState(5)
    centres = random.uniform(0, 1, (25, 2)) * size
    y, x = np.mgrid[: size[0], : size[1]]
    distance = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    return distance.argmin(axis=2) + 3


def official_tau(maps: Mapping[str, torch.Tensor]) -> float:
    """A threshold in the middle of the values, so that every space is chosen somewhere."""
    return float(np.quantile(torch.cat([error.flatten() for error in maps.values()]).numpy(), 0.3))


# --- the official side -----------------------------------------------------------------------------------------------


def import_official() -> types.SimpleNamespace:
    """The official modules, without what they would download or compile."""
    deeplab, sam = (Path(os.environ[name]) for name in reversed(REPOSITORIES))
    for name in ("model_utils", "mask_utils"):
        if not (sam / "src" / f"{name}.py").is_file():
            raise SystemExit(f"{sam} is no checkout of adobe-research/sam_inversion")
    sys.path[:0] = [str(deeplab), str(sam / "src")]
    for name in ("torchvision", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "wget"):
        sys.modules.setdefault(name, MagicMock(name=name))
    names = {"net": "modeling.deeplab", "resnet": "modeling.backbone.resnet", "aspp": "modeling.aspp"}
    names |= {"decoder": "modeling.decoder", "models": "model_utils", "masks": "mask_utils"}
    found = types.SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})
    found.resnet.model_zoo.load_url = lambda *_: {}  # no download
    return found


def official_networks(case: dict) -> tuple[torch.nn.Module, dict[str, torch.nn.Module]]:
    """The base and the heads in eval mode, with seeded weights."""
    code = import_official()
    divide, narrow = case["divide"], torch.nn.Conv2d

    def convolution(inputs: int, outputs: int, *args: object, **kwargs: object) -> torch.nn.Module:
        inputs, outputs = (n if n in (3, 8) else n // divide for n in (inputs, outputs))
        return narrow(inputs, outputs, *args, **kwargs)

    def normalisation(channels: int) -> torch.nn.Module:
        return torch.nn.BatchNorm2d(channels // divide)

    for module in (code.resnet.nn, code.aspp.nn, code.decoder.nn):
        assert module is torch.nn
    initialise = [code.resnet.ResNet, code.aspp.ASPP, code.aspp._ASPPModule, code.decoder.Decoder]
    for kind in initialise:
        kind._init_weight = lambda self: None  # it asks isinstance of the function above
    torch.nn.Conv2d = convolution  # type: ignore[assignment, misc]
    try:
        base = torch.nn.Module.__new__(code.net.DeepLab)
        torch.nn.Module.__init__(base)
        base.backbone = code.resnet.ResNet(code.resnet.Bottleneck, case["units"], 16, normalisation, pretrained=False)
        base.aspp = code.aspp.build_aspp("resnet", 16, normalisation)
        base.decoder = code.decoder.build_decoder(8, "resnet", normalisation)
    finally:
        torch.nn.Conv2d = narrow  # type: ignore[misc]
    heads = {space: code.models.layer_head() for space in SPACES}
    for prefix, network in (("base.", base), *((f"heads.{s}.", h) for s, h in heads.items())):
        state = {name: seeded(prefix + name, tuple(value.shape)) for name, value in network.state_dict().items()}
        network.load_state_dict(state)
        network.eval().requires_grad_(False)
    return base, heads


def official(case: dict, folder: Path) -> None:
    """Child process: the checkpoint in the published layout, and the official results."""
    base, heads = official_networks(case)
    image = seeded_image(case["batch"], tuple(case["size"]))
    started = time.perf_counter()
    features = base(image)
    maps = {space: head(features) for space, head in heads.items()}
    seconds = time.perf_counter() - started
    masks = importlib.import_module("mask_utils")
    tensor_cuda, torch.Tensor.cuda = torch.Tensor.cuda, lambda self: self  # type: ignore[method-assign]
    refined = masks.refine({s: m[:1] for s, m in maps.items()}, seeded_segments(case["size"]), official_tau(maps))
    height, width = case["size"]
    margin = (width - height) // 2
    if margin > 0:  # as the main script does for cars
        zeros = torch.zeros((1, 1, margin, width))
        refined = {s: torch.cat([zeros, m, zeros], dim=2) for s, m in refined.items()}
    resized = masks.resize_binary_masks(refined)
    torch.Tensor.cuda = tensor_cuda  # type: ignore[method-assign]
    torch.save({"sd_base": base.state_dict(), **{s: h.state_dict() for s, h in heads.items()}}, folder / "net.pt")
    arrays = {f"error {space}": value.numpy() for space, value in maps.items()}
    arrays |= {f"mask {space}": value.numpy() for space, value in resized.items()}
    np.savez(folder / "official.npz", seconds=seconds, tau=official_tau(maps), **arrays)


def run_official(case: dict, folder: Path) -> dict[str, np.ndarray]:
    """The official side of a case in its own process."""
    command = [sys.executable, "-m", "tests.parity.invertibility_parity"]
    command += ["--official", json.dumps(case), "--output", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    with np.load(folder / "official.npz") as arrays:
        return dict(arrays)


# --- our side --------------------------------------------------------------------------------------------------------


def compare(name: str, case: dict) -> float:
    """Runs both sides, prints one row, and returns the largest difference."""
    from gan_inversion.core.invertibility import latent_map
    from gan_inversion.model_registry import load_model

    with tempfile.TemporaryDirectory() as folder:
        theirs = run_official(case, Path(folder))
        net = load_model(Path(folder) / "net.pt", architecture="sam-invertibility").module
        started = time.perf_counter()
        maps = net(seeded_image(case["batch"], tuple(case["size"])))
        seconds = time.perf_counter() - started
    assert net.spaces == SPACES
    difference = max(float(np.abs(maps[space].numpy() - theirs[f"error {space}"]).max()) for space in SPACES)
    segments = torch.from_numpy(seeded_segments(tuple(case["size"])))[None]
    chosen = latent_map({s: m[:1] for s, m in maps.items()}, segments, float(theirs["tau"]))
    masks = chosen.feature_masks()
    row = f"{name:20} errors {np.mean([theirs[f'error {s}'].mean() for s in SPACES]):.2f}  maps {difference:.1e}"
    if case["size"][0] <= case["size"][1] and (case["size"][1] - case["size"][0]) % 2 == 0:
        mask = max(float(np.abs(masks[space].numpy() - theirs[f"mask {space}"]).max()) for space in SIDES)
        shares = ", ".join(f"{space} {float(share):.2f}" for space, share in chosen.shares().items())
        row += f"  masks {mask:.1e} (shares {shares})"
        difference = max(difference, mask)
    print(f"{row}  official {float(theirs['seconds']):.1f} s, ours {seconds:.1f} s", flush=True)
    return difference


def write_fixture(folder: Path) -> None:
    """The official error maps and masks of the narrow network."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        arrays = run_official(FIXTURE, Path(temporary))
        state = torch.load(Path(temporary) / "net.pt", weights_only=True)
    shapes = {part: {key: list(value.shape) for key, value in tensors.items()} for part, tensors in state.items()}
    kept = {name: value for name, value in arrays.items() if name.startswith("error ") or name in ("mask F4", "tau")}
    np.savez_compressed(folder / "sam_narrow.npz", shapes=json.dumps(shapes), **kept)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    parser.add_argument("--fixtures", type=Path, help="write the committed numbers to this folder and stop")
    parser.add_argument("--official", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    missing = [name for name in REPOSITORIES if name not in os.environ]
    if missing:
        parser.error(f"set {' and '.join(missing)} to a checkout of the official repository")
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    if arguments.fixtures:
        write_fixture(arguments.fixtures)
        return 0
    differences = [compare(name, case) for name, case in CASES.items() if arguments.only in name]
    print(f"largest difference {max(differences):.1e}, allowed {TOLERANCE:.0e}")
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
