"""Runs the official PTI beside ours on random weights, on the CPU, and compares step by step.

    OFFICIAL_PTI_DIR=... OFFICIAL_ADA_DIR=... OFFICIAL_GANINVERTER_DIR=... python -m tests.parity.pti_parity [--only TEXT]

The variables name checkouts of danielroich/PTI, NVlabs/stylegan2-ada-pytorch and caopulan/GANInverter. `SingleIDCoach.train`
runs as it is, in its own process, on a pickle that NVIDIA's code wrote; the pivot is given, LPIPS has a seeded backbone,
nothing is logged. `port-*` is the port in GANInverter. Compared are the losses of every step, the locality
regulariser's among them, the steps made, and the tuned weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from . import dhr_parity as shared
from .generator_parity import _stand_in_for_unneeded_imports, official_network
from .invertibility_parity import seeded_image
from .multilayer_parity import values

TOLERANCE = 1e-4  # of losses, relative
VARIABLES = ("OFFICIAL_PTI_DIR", "OFFICIAL_ADA_DIR")
NARROW = {"channel_base": 1024, "channel_max": 32}
CASES: dict[str, dict] = {
    "pti-64": {"resolution": 64, "steps": 5, **NARROW},
    "pti-64-locality": {"resolution": 64, "steps": 5, "locality": 1, **NARROW},
    "pti-64-locality-every-second-step": {"resolution": 64, "steps": 5, "locality": 2, **NARROW},
    "pti-64-stops": {"resolution": 64, "steps": 40, "stop": 0.1, **NARROW},
    "pti-256": {"resolution": 256, "steps": 5, "locality": 1, "channel_base": 8192, "channel_max": 128},
    "port-64": {"resolution": 64, "steps": 5, "what": "pti", "divide": 16},
}
FIXTURE: dict[str, Any] = {"resolution": 64, "steps": 4, "locality": 1, **NARROW}
KEPT = ("b4.const", "b64.torgb.weight", "b32.conv0.bias", "b64.conv1.affine.bias", "b8.conv0.noise_strength")


def official_z(steps: int) -> list[torch.Tensor]:
    """What `np.random.randn` gives the regulariser, [1, 512] each."""
    random = np.random.RandomState(5)
    return [torch.from_numpy(random.randn(1, 512)).float() for _ in range(steps)]


def write_pickle(case: dict, folder: Path) -> None:
    """Child process: a pickle as NVIDIA's code writes it."""
    network = official_network({"repository": "ada", **case, "w_dim": 512})
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("resample_filter")}
    network.load_state_dict({k: values(k, shape, True) for k, shape in shapes.items()}, strict=False)
    (folder / "weights.pkl").write_bytes(pickle.dumps({"G_ema": network.eval().requires_grad_(False)}))


def official(case: dict, folder: Path) -> None:
    """Child process: tunes the pickle's generator with the official coach."""
    sys.path.insert(0, os.environ["OFFICIAL_PTI_DIR"])
    _stand_in_for_unneeded_imports()
    import lpips
    import torchvision.transforms  # noqa: F401

    for name in ("wandb", "matplotlib", "matplotlib.pyplot", "models.e4e", "models.e4e.psp"):
        sys.modules[name] = mock.MagicMock(name=name)
    global_config, hyperparameters, paths = (
        importlib.import_module(f"configs.{name}") for name in ("global_config", "hyperparameters", "paths_config")
    )
    global_config.device = "cpu"
    paths.stylegan2_ada_ffhq = str(folder / "weights.pkl")
    paths.checkpoints_dir = paths.embedding_base_dir = str(folder / "out")
    hyperparameters.max_pti_steps = case["steps"]
    hyperparameters.LPIPS_value_threshold = case.get("stop", -1.0)
    hyperparameters.use_locality_regularization = "locality" in case
    hyperparameters.locality_regularization_interval = case.get("locality", 1)
    base = importlib.import_module("training.coaches.base_coach")
    coaches = importlib.import_module("training.coaches.single_id_coach")

    distance = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = shared.backbone_of("alex")
    distance.net.load_state_dict({k: weights["features." + k.split(".", 1)[1]] for k in distance.net.state_dict()})
    base.LPIPS = lambda **_: distance
    tuned: dict[str, np.ndarray] = {}

    def keeping(what: Any, path: str) -> None:
        if isinstance(what, torch.nn.Module):
            times.append((time.perf_counter(), time.process_time()))
            tuned.update({f"tuned {k}": v.numpy() for k, v in what.synthesis.state_dict().items()})

    losses: list[list[float]] = []
    image = seeded_image(1, (case["resolution"],) * 2)
    coach = coaches.SingleIDCoach([(("photo",), image)], use_wandb=False)
    calculate = coach.calc_loss

    regulariser: list[float] = []

    def recording(*args: Any) -> Any:
        found = calculate(*args)
        losses.append([float(value.detach()) for value in found])
        return found

    def keeping_apart(*args: Any, **kwargs: Any) -> Any:
        found = regularise(*args, **kwargs)
        regulariser.append(float(found.detach()))
        return found

    space = base.Space_Regulizer
    regularise = space.space_regulizer_loss
    space.space_regulizer_loss = keeping_apart
    coach.calc_loss = recording
    coach.calc_inversions = lambda *_: shared.code(case["resolution"])
    np.random.seed(5)
    torch.save = keeping  # type: ignore[assignment]
    with shared.recorded_starts(coach, "forward") as times:
        coach.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(
        folder / "official.npz",
        losses=np.array(losses),
        regulariser=regulariser,
        times=np.array(times),
        peak=peak,
        **tuned,
    )


def run_official(case: dict, folder: Path) -> dict[str, np.ndarray]:
    """The official numbers; `folder` receives weights.pkl."""
    for part in ("pickle", "official"):
        command = [
            sys.executable,
            "-m",
            "tests.parity.pti_parity",
            f"--{part}",
            json.dumps(case),
            "--output",
            str(folder),
        ]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "TQDM_DISABLE": "1"})
    with np.load(folder / "official.npz") as arrays:
        return dict(arrays)


def our_tuning(
    inversion: Any, distance: Any, case: dict
) -> tuple[list[list[float]], list[float], dict[str, torch.Tensor], Any]:
    """Losses [without, with regulariser] of every step, the latter's own, last offsets, and the refinement."""
    from gan_inversion.core import tuning

    without: list[float] = []
    summed: list[float] = []
    kept: list[tuning.Best] = []
    add_gradients, best = tuning.add_gradients, tuning.Best

    class Keeping(best):  # type: ignore[valid-type, misc]
        def __init__(self, tensors: Any) -> None:
            super().__init__(tensors)
            kept.append(self)

        def offer(self, loss: torch.Tensor) -> None:
            without.append(loss.item())
            super().offer(loss)

    def recording(loss: torch.Tensor, variables: Any) -> None:
        summed.append(loss.item())
        add_gradients(loss, variables)

    config = tuning.PtiConfig(
        scale_rate=False,
        steps=case["steps"],
        stop_at=case.get("stop"),
        locality="locality" in case,
        locality_every=case.get("locality", 1),
    )
    drawn = iter(official_z(case["steps"]))
    terms: list[float] = []
    locality = tuning._Locality.__call__

    def keeping_apart(*args: Any) -> torch.Tensor:
        value = locality(*args)
        terms.append(value.item())
        return value

    with (
        mock.patch.object(tuning, "add_gradients", recording),
        mock.patch.object(tuning, "Best", Keeping),
        mock.patch.object(tuning._Locality, "__call__", keeping_apart),
        mock.patch.object(torch, "randn", lambda *_, **__: next(drawn)),
    ):
        refined = tuning.tune(inversion, distance, config)
    pairs = [[a, b] for a, b in zip(without, summed, strict=False)]
    return pairs, terms, {name: tensor.detach() for name, tensor in kept[0].live.items()}, refined


def our_inversion(path: Path, resolution: int) -> Any:
    """The seeded photograph and code with the generator of a weight file."""
    from gan_inversion import load_model
    from gan_inversion.core.inversion import Inversion

    return Inversion(seeded_image(1, (resolution,) * 2), shared.code(resolution), load_model(path).module)


def compare(case: dict, folder: Path) -> float:
    """Losses, steps and weights."""
    if case.get("what") == "pti":
        theirs = shared.run_official(case, folder)
        wanted = [[loss, loss] for loss in theirs["losses"].tolist()]
        tuned = shared.tuned_parameters(folder / "tuned.pt")
        inversion = our_inversion(folder / "weights.pt", case["resolution"])
    else:
        theirs = run_official(case, folder)
        # total, squared error, LPIPS; the regulariser is in the total alone
        wanted = [[square + distance, total] for total, square, distance in theirs["losses"].tolist()]
        tuned = {k.removeprefix("tuned "): torch.from_numpy(v) for k, v in theirs.items() if k.startswith("tuned ")}
        inversion = our_inversion(folder / "weights.pkl", case["resolution"])
    base = {k: v.detach().clone() for k, v in inversion.generator.synthesis.named_parameters()}
    ours, terms, live, refined = our_tuning(inversion, shared.our_lpips("alex"), case)
    made = len(wanted)
    if "stop" in case:  # a step that only tests whether to stop has no update
        print(f"  steps begun: official {made}, ours {refined.steps[0]}; stopped at {theirs['losses'][-1][2]:.5f}")
        assert refined.steps[0] == made < case["steps"]
        wanted = wanted[:-1]
    worst = shared.worst_ratio(ours, wanted)
    show = slice(0, 5)
    print(f"  losses {', '.join(' '.join(f'{v:.5f}' for v in pair) for pair in wanted[show])}")
    print(f"  ours   {', '.join(' '.join(f'{v:.5f}' for v in pair) for pair in ours[show])}")
    print(f"  losses differ by {worst:.1e} at most")
    if "locality" in case:
        # The first value is 0 up to roundings: the generators are the same then.
        pairs = list(zip(terms, theirs["regulariser"].tolist(), strict=True))
        relative = max(abs(a / b - 1) for a, b in pairs[1:])
        print(f"  regulariser {', '.join(f'{b:.3e}' for _, b in pairs)}; ours differs by {relative:.1e} at most")
        assert pairs[0][0] < 1e-9
        worst = max(worst, relative)
    print("  weights", shared.moves(live, tuned, base))
    return worst


def write_fixture(folder: Path) -> None:
    """Losses and a few tuned weights of the official coach."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        theirs = run_official(FIXTURE, Path(temporary))
    kept = {name: theirs[name] for name in ("losses", "regulariser", *(f"tuned {name}" for name in KEPT))}
    np.savez_compressed(folder / "pti.npz", **kept)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    parser.add_argument("--fixtures", type=Path, help="write the committed numbers to this folder and stop")
    parser.add_argument("--official", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--pickle", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.pickle:
        write_pickle(arguments.pickle, arguments.output)
        return 0
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        parser.error(f"set {' and '.join(missing)} to a checkout of the official repository")
    if arguments.fixtures:
        write_fixture(arguments.fixtures)
        return 0
    worst = 0.0
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        if case.get("what") == "pti" and shared.VARIABLE not in os.environ:
            print(f"{name}: skipped, {shared.VARIABLE} is not set")
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            worst = max(worst, compare(case, Path(folder)))
    print(f"largest relative difference of losses {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
