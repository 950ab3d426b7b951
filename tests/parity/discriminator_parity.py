"""Runs the official StyleGAN2 discriminators beside ours on random weights, on the CPU, and compares.

    OFFICIAL_ROSINALITY_DIR=... OFFICIAL_STYLEGAN3_DIR=... OFFICIAL_ADA_DIR=... \
        python -m tests.parity.discriminator_parity [CASE ...]

The variables are those of `generator_parity.py`; a repository that is not given is skipped. Compared are the logits of
each batch size, the gradient of the logits on the images, and the gradient of the R1 penalty (mean over images of the
squared norm of that gradient) on all parameters; gradients relative to their largest value.

Of the float32 gradients the worst hundredth is left out: among millions of leaky ReLUs some inputs are so near to zero
that a rounding decides the slope, and each such unit changes the gradient of the pixels it sees. (Found at 256 px: 171
of 393,216 values, up to 1.4e-2 of the largest, the other image of that batch 9e-7; at 1024 px: 0.7 % of the values, a
deeper unit, median 8e-8.) The R1 gradients of biases come through the minibatch statistics alone, are a thousand times
smaller than those of weights and have three digits in float32, in the official code too. Two cases therefore compare
everything in float64, where neither happens. (NVIDIA's code casts to float32.)
The official code writes the weight file and the numbers in its own process. `--fixtures DIR` rewrites the committed
numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from .generator_parity import REPOSITORIES, borrowed_class, official_network, randomise

TOLERANCE = 1e-4
SMALL = {"channel_base": 512, "channel_max": 32}
BATCHES = (1, 3, 4, 8)
# A batch of 5 does not divide into groups of 4: every official network stops in a reshape, ours says so.
INDIVISIBLE = 5
CASES: dict[str, dict] = {
    "rosinality-16-float64": {"repository": "rosinality", "resolution": 16, "r1_batch": 4, "double": True},
    "rosinality-1024-half-float64": {
        "repository": "rosinality",
        "resolution": 1024,
        "multiplier": 1,
        "batches": (1,),
        "double": True,
    },
    "rosinality-64": {"repository": "rosinality", "resolution": 64, "batches": (1, 4, 8), "r1_batch": 2},
    "rosinality-256": {"repository": "rosinality", "resolution": 256, "batches": (1, 4), "r1_batch": 1},
    "rosinality-1024": {"repository": "rosinality", "resolution": 1024, "batches": (1, 2), "r1_batch": 1},
    "stylegan3-64": {"repository": "stylegan3", "resolution": 64, **SMALL},
    "stylegan3-256": {"repository": "stylegan3", "resolution": 256, "channel_base": 16384, "r1_batch": 2},
    "stylegan3-1024": {"repository": "stylegan3", "resolution": 1024, "batches": (1, 2), "r1_batch": 1},
    "stylegan3-64-clamp-in-use": {"repository": "stylegan3", "resolution": 64, "clamp": 0.7, **SMALL},
    "ada-64-groups-of-8": {"repository": "ada", "resolution": 64, "group": 8, "batches": (1, 4, 8, 16), **SMALL},
    "ada-64-two-statistics": {"repository": "ada", "resolution": 64, "statistics": 2, "clamp": 256, **SMALL},
    "tensorflow-32": {"repository": "stylegan3", "resolution": 32, "tensorflow": {}, **SMALL},
    "tensorflow-32-groups-of-4": {
        "repository": "stylegan3",
        "resolution": 32,
        "tensorflow": {"mbstd_group_size": 4, "conv_clamp": 1.5},
        **SMALL,
    },
}
FIXTURES: dict[str, dict] = {
    "rosinality_8": {"repository": "rosinality", "resolution": 8, "batches": (8,)},
    "nvidia_32": {"repository": "stylegan3", "resolution": 32, "clamp": 1.5, "batches": (8,), **SMALL},
    "tensorflow_16": {
        "repository": "stylegan3",
        "resolution": 16,
        "tensorflow": {"mbstd_group_size": 2},
        "batches": (8,),
        **SMALL,
    },
}


def seeded_images(resolution: int, batch: int) -> torch.Tensor:
    """Seeded images [batch, 3, resolution, resolution] in [-1, 1]: blobs under noise, which alone would be filtered out."""
    random = np.random.RandomState(7)
    blobs = torch.from_numpy(random.uniform(-1.5, 1.5, (batch, 3, 4, 4)).astype(np.float32))
    noise = torch.from_numpy(random.uniform(-0.3, 0.3, (batch, 3, resolution, resolution)).astype(np.float32))
    return (torch.nn.functional.interpolate(blobs, resolution, mode="bilinear") + noise).clamp(-1, 1)


def r1_gradients(
    discriminate: torch.nn.Module, images: torch.Tensor, *conditions: None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(gradient of the logits on the images, gradient of the R1 penalty on each parameter that it depends on)."""
    images = images.clone().requires_grad_(True)
    names, parameters = zip(*discriminate.named_parameters(), strict=True)
    logits = discriminate(images, *conditions)
    (on_images,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    penalty = on_images.square().sum(dim=(1, 2, 3)).mean()
    found = torch.autograd.grad(penalty, parameters, allow_unused=True)
    return on_images.detach(), {n: g for n, g in zip(names, found, strict=True) if g is not None}


def tensorflow_pickle(case: dict, path: Path, function: str = "D_main") -> None:
    """A legacy (G, D, Gs) pickle with a seeded D; names and axis orders are those of the TensorFlow networks."""
    resolution, base, most = case["resolution"], case["channel_base"], case["channel_max"]
    width = {r: min(base // r, most) for r in (4, 8, 16, 32, 64, 128) if r <= resolution}
    shapes: dict[str, list[int]] = {}

    def layer(scope: str, side: int, inputs: int, outputs: int, bias: bool = True) -> None:
        shapes[f"{scope}/weight"] = [side, side, inputs, outputs] if side else [inputs, outputs]
        if bias:
            shapes[f"{scope}/bias"] = [outputs]

    for r in [r for r in width if r > 4]:
        if r == resolution:
            layer(f"{r}x{r}/FromRGB", 1, 3, width[r])
        layer(f"{r}x{r}/Conv0", 3, width[r], width[r])
        layer(f"{r}x{r}/Conv1_down", 3, width[r], width[r // 2])
        layer(f"{r}x{r}/Skip", 1, width[r], width[r // 2], bias=False)
    layer("4x4/Conv", 3, width[4] + 1, width[4])
    layer("4x4/Dense0", 0, width[4] * 16, width[4])
    layer("Output", 0, width[4], 1)
    random = np.random.RandomState(3)
    values = {name: random.standard_normal(shapes[name]).astype(np.float32) for name in sorted(shapes)}
    kwargs = {"resolution": resolution, "num_channels": 3, "label_size": 0, "fmap_base": base // 2, "fmap_max": most}
    kwargs |= case["tensorflow"]
    with borrowed_class("dnnlib.tflib.network.Network") as network_class:

        def network(name: str, variables: dict[str, np.ndarray]) -> object:
            made = network_class()
            made.__dict__.update(version=4, name=name, static_kwargs=kwargs, variables=list(variables.items()))
            made.__dict__.update(components={}, build_module_src="raise RuntimeError('source was executed')")
            made.__dict__.update(build_func_name=function if name == "D" else "G_main")
            return made

        path.write_bytes(pickle.dumps((network("G", {}), network("D", values), network("Gs", {}))))


def official_discriminator(case: dict, weights: Path) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """(official network with seeded weights, shapes that were filled); writes the weight file."""
    repository, resolution = case["repository"], case["resolution"]
    official_network({"repository": repository, "resolution": 8})  # puts the repository on the path
    if "tensorflow" in case:
        import legacy

        tensorflow_pickle(case, weights)
        with weights.open("rb") as file:
            return legacy.convert_tf_discriminator(legacy._LegacyUnpickler(file).load()[1]).requires_grad_(True), {}
    if repository == "rosinality":
        from model import Discriminator

        network = Discriminator(resolution, case.get("multiplier", 2))
        shapes = randomise(network)
        torch.save({"g_ema": {}, "d": network.state_dict(), "latent_avg": torch.zeros(512)}, weights)
        return network, shapes
    if repository == "stylegan3":
        from training.networks_stylegan2 import Discriminator
    else:
        from training.networks import Discriminator
    epilogue = {"mbstd_group_size": case.get("group", 4), "mbstd_num_channels": case.get("statistics", 1)}
    widths = {key: case[key] for key in ("channel_base", "channel_max") if key in case}
    network = Discriminator(
        c_dim=0,
        img_resolution=resolution,
        img_channels=3,
        conv_clamp=case.get("clamp"),
        num_fp16_res=0,
        epilogue_kwargs=epilogue,
        **widths,
    )
    shapes = randomise(network)
    network.requires_grad_(False)
    weights.write_bytes(pickle.dumps({"G": None, "D": network, "G_ema": None, "augment_pipe": None}))
    return network.requires_grad_(True), shapes


def official(case: dict, weights: Path, reference: Path) -> None:
    """Child process: writes the official weight file and the official numbers."""
    network, shapes = official_discriminator(case, weights)
    conditions = () if case["repository"] == "rosinality" else (None,)
    started = time.perf_counter()
    numbers: dict = {"shapes": shapes, "logits": {}, "r1": {}}
    batches = case.get("batches", BATCHES)
    with torch.no_grad():
        for batch in batches:
            numbers["logits"][batch] = network(seeded_images(case["resolution"], batch), *conditions)
        if batches == BATCHES and "tensorflow" not in case:
            try:
                network(seeded_images(case["resolution"], INDIVISIBLE), *conditions)
            except RuntimeError as error:
                print(f"  official, batch of {INDIVISIBLE}: {str(error).splitlines()[0]}")
    print(f"  official: logits in {time.perf_counter() - started:.1f} s", end="", flush=True)
    started = time.perf_counter()
    images = seeded_images(case["resolution"], case.get("r1_batch", batches[-1]))
    on_images, r1 = r1_gradients(network, images, *conditions)
    print(f", R1 gradients in {time.perf_counter() - started:.1f} s")
    if case.get("double"):
        numbers["double"] = r1_gradients(network.double(), images.double())
    torch.save({**numbers, "on_images": on_images, "r1": r1}, reference)


def relative(found: torch.Tensor, expected: torch.Tensor, share: float = 1.0) -> float:
    """Largest absolute difference over the largest absolute value, in the given share of all values."""
    differences = (found - expected).abs().flatten()
    return (differences.kthvalue(math.ceil(share * len(differences))).values / expected.abs().max()).item()


def ours(case: dict, weights: Path, reference: Path) -> dict[str, float]:
    """Largest absolute differences of the logits, largest relative ones of the gradients."""
    from gan_inversion.core.errors import InvalidInputError
    from gan_inversion.model_registry import load_model
    from gan_inversion.model_registry.layouts import rosinality_discriminator

    expected = torch.load(reference)
    network = load_model(weights, part="discriminator").module
    started = time.perf_counter()
    differences = {}
    with torch.no_grad():
        for batch, logits in expected["logits"].items():
            found = network(seeded_images(case["resolution"], batch))
            differences[f"batch {batch}"] = (found - logits).abs().max().item()
    if network.config.mbstd_group_size == 4:
        try:
            network(torch.zeros(INDIVISIBLE, 3, *[case["resolution"]] * 2))
        except InvalidInputError as error:
            assert f"batch of {INDIVISIBLE}" in str(error)
        else:
            raise AssertionError(f"A batch of {INDIVISIBLE} was not refused.")
    print(f"  ours: logits in {time.perf_counter() - started:.1f} s", end="", flush=True)
    started = time.perf_counter()
    network.requires_grad_(True)
    images = seeded_images(case["resolution"], len(expected["on_images"]))
    on_images, r1 = r1_gradients(network, images)
    print(f", R1 gradients in {time.perf_counter() - started:.1f} s")
    differences["image gradient"] = relative(on_images, expected["on_images"], 0.99)
    wanted = rosinality_discriminator(expected["r1"]) if case["repository"] == "rosinality" else expected["r1"]
    wanted = {name: gradient for name, gradient in wanted.items() if gradient.any()}
    assert wanted.keys() == {name for name, gradient in r1.items() if gradient.any()}
    found_values, wanted_values = (torch.cat([part[n].flatten() for n in wanted]) for part in (r1, wanted))
    differences["R1 gradient"] = relative(found_values, wanted_values, 0.99)
    if "double" in expected:
        on_images, found = r1_gradients(network.double(), images.double())
        wanted = rosinality_discriminator(expected["double"][1])
        differences["image gradient, float64"] = relative(on_images, expected["double"][0])
        differences["R1 gradient of each tensor, float64"] = max(
            relative(found[name], gradient) for name, gradient in wanted.items() if gradient.any()
        )
    sizes = [f"{name} up to {value:.1e}" for name, value in (
        ("logits", max(v.abs().max().item() for v in expected["logits"].values())),
        ("image gradients", expected["on_images"].abs().max().item()),
        ("R1 gradients", wanted_values.abs().max().item()),
    )]  # fmt: skip
    print("  " + ", ".join(sizes))
    return differences


def write_fixture(case: dict, path: Path) -> None:
    """Child process: logits, two image gradients and the norms of the R1 gradients of the official code."""
    with tempfile.TemporaryDirectory() as folder:
        official(case, Path(folder, "weights"), Path(folder, "reference"))
        numbers = torch.load(Path(folder, "reference"))
    (logits,) = numbers["logits"].values()
    norms = {name: gradient.norm().item() for name, gradient in numbers["r1"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        shapes=np.array(json.dumps(numbers["shapes"])),
        r1=np.array(json.dumps(norms)),
        logits=logits.numpy(),
        on_images=numbers["on_images"][:2].numpy(),
    )


def _child(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", __spec__.name, *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases; all by default")
    parser.add_argument("--fixtures", type=Path)
    parser.add_argument("--official", nargs=3, metavar=("CASE", "WEIGHTS", "REFERENCE"), help=argparse.SUPPRESS)
    parser.add_argument("--fixture", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.official:
        name, weights, reference = options.official
        return official(CASES[name], Path(weights), Path(reference))
    if options.fixture:
        return write_fixture(FIXTURES[options.fixture[0]], Path(options.fixture[1]))
    if options.fixtures:
        for name in FIXTURES:
            _child("--fixture", name, str(options.fixtures / f"{name}.npz"))
        return None
    worst = 0.0
    for name in options.cases or CASES:
        case = CASES[name]
        if REPOSITORIES[case["repository"]] not in os.environ:
            print(f"{name}: skipped, {REPOSITORIES[case['repository']]} is not set")
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "weights.pt" if case["repository"] == "rosinality" else "weights.pkl")
            reference = Path(folder, "reference.pt")
            print(name)
            _child("--official", name, str(weights), str(reference))
            differences = ours(case, weights, reference)
            print("  differences: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()), flush=True)
            worst = max(worst, *differences.values())
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}: {'ok' if worst <= TOLERANCE else 'FAILED'}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
