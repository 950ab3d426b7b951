"""Runs the official StyleGAN2 code beside ours on random weights, on the CPU, and compares.

    OFFICIAL_ROSINALITY_DIR=... OFFICIAL_STYLEGAN3_DIR=... OFFICIAL_ADA_DIR=... python tests/parity/generator_parity.py

Each variable names a checkout of rosinality/stylegan2-pytorch, NVlabs/stylegan3 and NVlabs/stylegan2-ada-pytorch; a
repository that is not given is skipped. The official code writes the weight file and the reference image in its own
process, because the repositories use the same module names. `--fixtures DIR` rewrites the committed numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

TOLERANCE = 1e-4
REPOSITORIES = {
    "rosinality": "OFFICIAL_ROSINALITY_DIR",
    "stylegan3": "OFFICIAL_STYLEGAN3_DIR",
    "ada": "OFFICIAL_ADA_DIR",
}
SMALL = {"channel_base": 512, "channel_max": 32, "z_dim": 48, "w_dim": 40}
CASES: dict[str, dict] = {
    "rosinality-64": {"repository": "rosinality", "resolution": 64},
    "rosinality-256": {"repository": "rosinality", "resolution": 256},
    "rosinality-1024": {"repository": "rosinality", "resolution": 1024},
    "stylegan3-64": {"repository": "stylegan3", "resolution": 64, **SMALL},
    "stylegan3-64-config-f": {"repository": "stylegan3", "resolution": 64},
    "stylegan3-64-clamp256-map2": {"repository": "stylegan3", "resolution": 64, "clamp": 256, "mapping": 2, **SMALL},
    "stylegan3-32-clamp-in-use": {"repository": "stylegan3", "resolution": 32, "clamp": 0.7, **SMALL},
    "ada-64": {"repository": "ada", "resolution": 64, **SMALL},
    "ada-64-clamp256-map2": {"repository": "ada", "resolution": 64, "clamp": 256, "mapping": 2, **SMALL},
    "ada-256-auto": {"repository": "ada", "resolution": 256, "clamp": 256, "mapping": 2, "channel_base": 16384},
    "ada-32-clamp-in-use": {"repository": "ada", "resolution": 32, "clamp": 0.7, **SMALL},
    "tensorflow-32": {
        "repository": "stylegan3",
        "resolution": 32,
        "clamp": None,
        "mapping": 3,
        "tensorflow": True,
        **SMALL,
    },
}
FIXTURES: dict[str, dict] = {
    "rosinality_16": {"repository": "rosinality", "resolution": 16, "z_dim": 64, "w_dim": 64},
    "nvidia_32": {"repository": "stylegan3", "resolution": 32, "clamp": 1.5, "mapping": 2, **SMALL},
    "tensorflow_16": {"repository": "stylegan3", "resolution": 16, "mapping": 2, "tensorflow": True, **SMALL},
}


def seeded_state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Values by sorted name from numpy's frozen legacy generator: the same on every machine and version."""
    random = np.random.RandomState(seed)
    state = {}
    for name in sorted(shapes):
        values = torch.from_numpy(random.standard_normal(shapes[name]).astype(np.float32))
        if name.endswith(("modulation.bias", "affine.bias")):
            values = 1.0 + 0.3 * values
        elif name.startswith(("style.", "mapping.fc")):
            values = values * (100.0 if name.endswith("weight") else 30.0)  # divided by a learning rate of 0.01
        elif name.endswith("bias") or name.endswith(("noise.weight", "noise_strength")):
            values = 0.2 * values
        state[name] = values
    return state


def official_network(case: dict) -> torch.nn.Module:
    repository, resolution = case["repository"], case["resolution"]
    sys.path.insert(0, os.environ[REPOSITORIES[repository]])
    _stand_in_for_unneeded_imports()
    clamp, mapping_layers = case.get("clamp"), case.get("mapping", 8)
    if repository == "rosinality":
        import torch.utils.cpp_extension

        torch.utils.cpp_extension.load = lambda *_, **__: None  # compiled for CUDA only; the CPU path is plain torch
        from model import Generator

        return Generator(resolution, case.get("w_dim", 512), mapping_layers)
    widths = {key: case[key] for key in ("channel_base", "channel_max") if key in case}
    sizes = {"z_dim": case.get("z_dim", 512), "c_dim": 0, "w_dim": case.get("w_dim", 512)}
    common = {
        **sizes,
        "img_resolution": resolution,
        "img_channels": 3,
        "mapping_kwargs": {"num_layers": mapping_layers},
    }
    if repository == "stylegan3":
        from training.networks_stylegan2 import Generator

        return Generator(**common, conv_clamp=clamp, **widths)
    from training.networks import Generator

    return Generator(**common, synthesis_kwargs={"conv_clamp": clamp, "num_fp16_res": 4 if clamp else 0, **widths})


@contextlib.contextmanager
def borrowed_class(dotted: str) -> Iterator[type]:
    """An empty class that pickles under another package's name, as long as the block lasts."""
    *packages, name = dotted.split(".")
    stand_ins = {".".join(packages[: i + 1]): types.ModuleType(packages[i]) for i in range(len(packages))}
    created = type(name, (), {"__module__": ".".join(packages)})
    setattr(stand_ins[".".join(packages)], name, created)
    before = {module: sys.modules.get(module) for module in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield created
    finally:
        for module, original in before.items():
            if original is None:
                del sys.modules[module]
            else:
                sys.modules[module] = original


def tensorflow_pickle(case: dict, path: Path) -> None:
    """A legacy (G, D, Gs) pickle with seeded variables; names and axis orders are those of the TensorFlow networks."""
    resolution, base, most = case["resolution"], case["channel_base"], case["channel_max"]
    z_dim, w_dim = case["z_dim"], case["w_dim"]
    width = {r: min(base // r, most) for r in (4, 8, 16, 32, 64, 128) if r <= resolution}
    mapping: dict[str, list[int]] = {}
    for index in range(case["mapping"]):
        mapping |= {f"Dense{index}/weight": [w_dim if index else z_dim, w_dim], f"Dense{index}/bias": [w_dim]}
    synthesis: dict[str, list[int]] = {"4x4/Const/const": [1, width[4], 4, 4]}
    for r in width:
        before = width[r] if r == 4 else width[r // 2]
        convs = [("Conv", before)] if r == 4 else [("Conv0_up", before), ("Conv1", width[r])]
        for layer, inputs, outputs, side in [*((n, i, width[r], 3) for n, i in convs), ("ToRGB", width[r], 3, 1)]:
            scope = f"{r}x{r}/{layer}"
            synthesis |= {f"{scope}/weight": [side, side, inputs, outputs], f"{scope}/bias": [outputs]}
            synthesis |= {f"{scope}/mod_weight": [w_dim, inputs], f"{scope}/mod_bias": [inputs]}
            if layer != "ToRGB":
                synthesis[f"{scope}/noise_strength"] = []
    for index in range(2 * len(width) - 1):
        synthesis[f"noise{index}"] = [1, 1, *[2 ** ((index + 5) // 2) if index else 4] * 2]
    kwargs = {"resolution": resolution, "num_channels": 3, "label_size": 0, "fmap_base": base // 2, "fmap_max": most}
    kwargs |= {"latent_size": z_dim, "dlatent_size": w_dim, "mapping_layers": case["mapping"], "mapping_fmaps": w_dim}
    kwargs |= case.get("static", {})

    with borrowed_class("dnnlib.tflib.network.Network") as network_class:

        def network(name: str, shapes: dict[str, list[int]], seed: int, components: dict) -> object:
            made = network_class()
            variables = [(key, np.asarray(value)) for key, value in _tensorflow_values(shapes, seed).items()]
            made.__dict__.update(version=4, name=name, static_kwargs=kwargs, variables=variables, components=components)
            made.__dict__.update(build_func_name=name, build_module_src="raise RuntimeError('source was executed')")
            return made

        def generator(seed: int) -> object:
            parts = {
                "mapping": network("mapping", mapping, seed, {}),
                "synthesis": network("synthesis", synthesis, seed, {}),
            }
            return network("G_main", {"dlatent_avg": [w_dim], "lod": []}, seed, parts)

        path.write_bytes(pickle.dumps((generator(1), network("D", {"4x4/Conv/bias": [4]}, 0, {}), generator(2))))


def _tensorflow_values(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    values = {name: random.standard_normal(shapes[name]).astype(np.float32) for name in sorted(shapes)}
    scales = {"Dense": 100.0, "bias": 0.3, "noise_strength": 0.3}
    return {n: v * np.float32(next((s for part, s in scales.items() if part in n), 1.0)) for n, v in values.items()}


def _stand_in_for_unneeded_imports() -> None:
    """The official code imports a download client and an old setuptools module, neither of which it needs here."""
    from packaging.version import parse

    versions = types.ModuleType("pkg_resources")
    versions.parse_version = parse
    sys.modules.setdefault("pkg_resources", versions)
    sys.modules.setdefault("requests", types.ModuleType("requests"))


def randomise(network: torch.nn.Module) -> dict[str, list[int]]:
    """Every number random except the fixed filters; returns the shapes that were filled."""
    state = network.state_dict()
    shapes = {k: list(v.shape) for k, v in state.items() if not k.endswith(("kernel", "resample_filter"))}
    network.load_state_dict(seeded_state(shapes), strict=False)
    return shapes


def official(case: dict, weights: Path | None, reference: Path) -> None:
    """Child process: writes the official weight file and the official image."""
    if case.get("tensorflow"):
        network, shapes = _official_from_tensorflow(case, weights), {}
    else:
        network = official_network(case).eval().requires_grad_(False)
        shapes = randomise(network)
    random = np.random.RandomState(1)
    z = torch.from_numpy(random.standard_normal((2, case.get("z_dim", 512))).astype(np.float32))
    if case["resolution"] > 256:
        z = z[:1]
    started = time.perf_counter()
    if case["repository"] == "rosinality":
        w = network.style(z)
        rows = w[:, None] + 0.1 * torch.from_numpy(
            random.standard_normal((len(z), network.n_latent, w.shape[1])).astype(np.float32)
        )
        image, _ = network([rows], input_is_latent=True, randomize_noise=False)
        average = torch.from_numpy(random.standard_normal(w.shape[1]).astype(np.float32))
        truncated, _ = network([z], randomize_noise=False, truncation=0.6, truncation_latent=average)
        if weights is not None:
            torch.save({"g_ema": network.state_dict(), "latent_avg": average}, weights)
    else:
        w = network.mapping(z, None)[:, 0]
        rows = w[:, None] + 0.1 * torch.from_numpy(
            random.standard_normal((len(z), network.num_ws, w.shape[1])).astype(np.float32)
        )
        image = network.synthesis(rows, noise_mode="const", force_fp32=True)
        truncated = network(z, None, truncation_psi=0.6, noise_mode="const", force_fp32=True)
        average = network.mapping.w_avg
        if weights is not None and not case.get("tensorflow"):
            import dnnlib

            kwargs = dnnlib.EasyDict(path="none", use_labels=False, max_size=np.int64(7))
            data = {"G": network, "D": _discriminator(case), "G_ema": network, "training_set_kwargs": kwargs}
            weights.write_bytes(pickle.dumps({**data, "augment_pipe": None}))
    print(f"  official: {time.perf_counter() - started:.1f} s for two images and the file")
    arrays = {"z": z, "w": w, "w_plus": rows, "image": image, "truncated": truncated, "average": average}
    np.savez_compressed(
        reference,
        shapes=np.array(json.dumps(shapes)),
        **{name: value.detach().numpy() for name, value in arrays.items()},
    )


def _official_from_tensorflow(case: dict, weights: Path | None) -> torch.nn.Module:
    official_network(case)  # puts the repository on the path
    import legacy

    with tempfile.TemporaryDirectory() as folder:
        weights = weights or Path(folder, "weights.pkl")
        tensorflow_pickle(case, weights)
        with weights.open("rb") as file:
            return legacy.convert_tf_generator(legacy._LegacyUnpickler(file).load()[2])


def _discriminator(case: dict) -> torch.nn.Module:
    if case["repository"] == "stylegan3":
        from training.networks_stylegan2 import Discriminator
    else:
        from training.networks import Discriminator
    return Discriminator(c_dim=0, img_resolution=case["resolution"], img_channels=3, channel_base=512, channel_max=32)


@torch.inference_mode()
def ours(weights: Path, reference: Path) -> dict[str, float]:
    """Largest absolute differences of w, image and truncated image."""
    from gan_inversion.model_registry import load_model

    expected = {name: torch.from_numpy(value) for name, value in np.load(reference).items() if name != "shapes"}
    generator = load_model(weights).module
    images = {
        "w": generator.mapping(expected["z"]),
        "image": generator.synthesis(expected["w_plus"]),
        "truncated": generator(expected["z"], truncation_psi=0.6),
        "average": generator.w_avg,
    }
    print(f"  image values from {expected['image'].min():.1f} to {expected['image'].max():.1f}")
    return {name: (value - expected[name]).abs().max().item() for name, value in images.items()}


def measure(which: str, weights: Path) -> None:
    """Child process: load a 1024 file, draw one image, state seconds and peak memory."""
    import resource

    started = time.perf_counter()
    if which == "official":
        network = official_network({"repository": "rosinality", "resolution": 1024}).eval()
        network.load_state_dict(torch.load(weights, map_location="cpu")["g_ema"])
    else:
        from gan_inversion.model_registry import load_model

        network = load_model(weights).module
    loaded = time.perf_counter()
    with torch.inference_mode():
        w_plus = torch.zeros(1, 18, 512)
        if which == "official":
            network([w_plus], input_is_latent=True, randomize_noise=False)
        else:
            network.synthesis(w_plus)
    drawn = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{which:>9}: load {loaded - started:.2f} s, one image {drawn - loaded:.2f} s, peak memory {peak:.0f} MiB")


def _child(*arguments: str) -> None:
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases; all by default")
    parser.add_argument("--fixtures", type=Path)
    parser.add_argument("--official", nargs=3, metavar=("CASE", "WEIGHTS", "REFERENCE"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "WEIGHTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.official:
        name, weights, reference = options.official
        case = CASES.get(name) or FIXTURES[name]
        return official(case, Path(weights) if weights != "-" else None, Path(reference))
    if options.measure:
        return measure(options.measure[0], Path(options.measure[1]))
    if options.fixtures:
        for name in FIXTURES:
            _child("--official", name, "-", str(options.fixtures / f"{name}.npz"))
        return None
    worst = 0.0
    for name in options.cases or CASES:
        if REPOSITORIES[CASES[name]["repository"]] not in os.environ:
            print(f"{name}: skipped, {REPOSITORIES[CASES[name]['repository']]} is not set")
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "weights.pt" if CASES[name]["repository"] == "rosinality" else "weights.pkl")
            reference = Path(folder, "reference.npz")
            _child("--official", name, str(weights), str(reference))
            differences = ours(weights, reference)
            print(f"{name}: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()))
            worst = max(worst, *differences.values())
            if name == "rosinality-1024":
                _child("--measure", "official", str(weights))
                _child("--measure", "ours", str(weights))
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}: {'ok' if worst <= TOLERANCE else 'FAILED'}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
