"""Runs SAM's official optimisation script beside ours on random weights, on the CPU, and compares step by step.

    OFFICIAL_SAM_DIR=... OFFICIAL_STYLEGAN3_DIR=... python -m tests.parity.multilayer_parity [--only TEXT]

The variables name checkouts of adobe-research/sam_inversion and NVlabs/stylegan3. The official
`sam_inv_optimization.py` runs as it is, as a script, in its own process; only its network loaders (generator, encoder,
segmenter, invertibility predictor, LPIPS backbone) give seeded stand-ins and its tensors stay on the CPU. Compared are
the prior, the loss of every step, the codes and offsets after the last one, and edited images.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import types
import zlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .generator_parity import _stand_in_for_unneeded_imports
from .invertibility_parity import SPACES, seeded_image, seeded_segments

TOLERANCE = 1e-4  # of losses, relative
REPOSITORIES = ("OFFICIAL_SAM_DIR", "OFFICIAL_STYLEGAN3_DIR")
RESOLUTION = 256  # the script's tensors have the widths of config-f
STEPS = 5
TAU = 0.225
CASES: dict[str, dict] = {
    "square-random-noise": {"size": (256, 256), "noise": True, "edit": False},
    "cars-frame-edits": {"size": (192, 256), "noise": False, "edit": True},
}


def values(name: str, shape: tuple[int, ...], noise: bool) -> torch.Tensor:
    """Generator weights from names alone: w spreads by about 1, images stay near [-1, 1]."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    normal = torch.from_numpy(random.standard_normal(int(np.prod(shape))).astype(np.float32)).reshape(shape)
    if name.endswith("noise_strength"):
        return 0.1 * normal if noise else torch.zeros(shape)
    if name.startswith("mapping.fc"):
        return normal * (100.0 if name.endswith("weight") else 30.0)
    if name.endswith("affine.bias"):
        return 1.0 + 0.3 * normal
    if "torgb" in name and name.endswith("torgb.weight"):
        return 0.04 * normal
    if name.endswith("bias"):
        return 0.05 * normal
    return 0.1 * normal if name.endswith("w_avg") else normal


def backbone(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """VGG16 weights that keep the size of what passes through."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    normal = torch.from_numpy(random.standard_normal(int(np.prod(shape))).astype(np.float32)).reshape(shape)
    return 0.05 * normal if len(shape) == 1 else normal * float(2.0 / np.prod(shape[1:])) ** 0.5


def start_z() -> torch.Tensor:
    """[14, 512]; the stand-in for the encoder returns their codes as rows."""
    return torch.from_numpy(np.random.RandomState(3).standard_normal((14, 512)).astype(np.float32))


def error_maps(size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What the stand-in for the predictor returns: about half of the segments pass in each space."""
    found = {}
    for space in SPACES:
        random = np.random.RandomState(zlib.crc32(space.encode()))
        coarse = torch.from_numpy(random.uniform(0.1, 0.45, (1, 1, 8, 8)))
        found[space] = F.interpolate(coarse, size=size, mode="bilinear").float()
    return found


def picture(size: tuple[int, int]) -> np.ndarray:
    """The photograph, uint8 [H, W, 3]."""
    return ((seeded_image(1, size)[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def edit_code() -> np.ndarray:
    """An edit's offset [1, 14, 512] that touches some rows."""
    code = np.random.RandomState(4).standard_normal((1, 14, 512)).astype(np.float32) * 0.3
    code[:, 9:] = 0
    return code


# --- the official side -----------------------------------------------------------------------------------------------


def _official_generator(noise: bool) -> torch.nn.Module:
    from training.networks_stylegan2 import Generator

    generator = Generator(
        512, 0, 512, RESOLUTION, 3, mapping_kwargs={"num_layers": 8}, num_fp16_res=0, channel_base=32768
    )
    shapes = {k: tuple(v.shape) for k, v in generator.state_dict().items() if not k.endswith("resample_filter")}
    generator.load_state_dict({k: values(k, shape, noise) for k, shape in shapes.items()}, strict=False)
    return generator.eval().requires_grad_(False)


def official(case: dict, folder: Path) -> None:
    """Child process: runs the script and writes what it computed."""
    sam, stylegan = (os.environ[name] for name in REPOSITORIES)
    sys.path[:0] = [stylegan, f"{sam}/src"]
    _stand_in_for_unneeded_imports()
    for name in ("matplotlib", "matplotlib.pyplot", "wget"):
        sys.modules.setdefault(name, MagicMock(name=name))
    register_fake = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function  # a torchvision without its own operators
    import lpips
    import torchvision.transforms  # noqa: F401

    torch.library.register_fake = register_fake
    torch.Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign]
    models, latents = importlib.import_module("model_utils"), importlib.import_module("latent_utils")
    with torch.random.fork_rng(devices=[]):
        generator = _official_generator(case["noise"])
        distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False)
        distance.net.load_state_dict({k: backbone(k, tuple(v.shape)) for k, v in distance.net.state_dict().items()})
    size = tuple(case["size"])
    segmenter = types.SimpleNamespace(segment_pil=lambda _: seeded_segments(size))
    models.load_generator = lambda *_: generator
    models.load_segmenter = lambda *_: segmenter
    start = generator.mapping(start_z(), None)[:, 0][None]
    models.load_encoder = lambda *_: lambda image, return_latents: (None, start)
    models.load_invertibility = lambda *_: lambda image: error_maps(size)
    lpips.LPIPS = lambda **_: distance
    latents.init_latent.__defaults__ = tuple(
        torch.device("cpu") if isinstance(v, torch.device) else v for v in latents.init_latent.__defaults__
    )
    recorded: dict[str, list] = {"losses": [], "edits": [], "prior": []}
    statistics, forward, edit = latents.get_mvg_stats, models.custom_forward, models.edit_image

    def get_mvg_stats(network: torch.nn.Module) -> dict:
        found = statistics(network, torch.device("cpu"))
        recorded["prior"] = [found["mean_v"].numpy(), found["inv_cov_v"].numpy()]
        return found

    def custom_forward(**options: object) -> torch.Tensor:
        if not recorded["losses"]:
            torch.manual_seed(0)  # the noise of the first step; the next steps go on from there
        return forward(**options)

    def edit_image(*options: object) -> torch.Tensor:
        recorded["edits"].append(edit(*options).detach().numpy())
        return torch.from_numpy(recorded["edits"][-1])

    latents.get_mvg_stats, models.custom_forward, models.edit_image = get_mvg_stats, custom_forward, edit_image
    backward = torch.Tensor.backward

    def recording(self: torch.Tensor, *options: object, **named: object) -> None:
        recorded["losses"].append(self.item())
        backward(self, *options, **named)  # type: ignore[arg-type]

    torch.Tensor.backward = recording  # type: ignore[method-assign, assignment]
    Image.fromarray(picture(size)).save(folder / "photo.png")
    (folder / "edits").mkdir()
    np.save(folder / "edits" / "one.npy", edit_code())
    os.chdir(folder)
    height, width = size
    sys.argv = ["sam_inv_optimization.py", "--image_category", "cats", "--image_path", "photo.png"]
    sys.argv += ["--target_H", str(height), "--target_W", str(width), "--num_opt_steps", str(STEPS)]
    sys.argv += ["--gan_weights", "-", "--e4e_path", "-", "--inv_model_path", "-", "--output_path", "output"]
    started = time.perf_counter()
    if case["edit"]:
        script = Path(sam, "src", "sam_inv_optimization.py").read_text()
        folders = 'args.edits_folder = "edits/cats"'
        assert script.count(folders) == 1
        Path("script.py").write_text(script.replace(folders, 'args.edits_folder = "edits"'))
        sys.argv.append("--generate_edits")
        runpy.run_path("script.py", run_name="__main__")
    else:
        runpy.run_path(f"{sam}/src/sam_inv_optimization.py", run_name="__main__")
    found = torch.load(f"output/photo/final/inverted_latents_T{TAU:.3f}.pt", weights_only=True)
    mean, precision = recorded["prior"]
    np.savez(
        folder / "official.npz",
        losses=recorded["losses"],
        edits=np.concatenate(recorded["edits"]) if recorded["edits"] else np.zeros(0),
        start=start.numpy(),
        mean=mean,
        precision=precision,
        seconds=time.perf_counter() - started,
        **{f"latent {name}": value.numpy() for name, value in found.items()},
    )


# --- our side --------------------------------------------------------------------------------------------------------


def compare(name: str, case: dict) -> float:
    """Runs both sides, prints rows, and returns the largest relative difference of losses and edits."""
    from gan_inversion.core import multilayer
    from gan_inversion.core.editing import Edit
    from gan_inversion.core.generator import Generator, GeneratorConfig
    from gan_inversion.core.imaging import from_uint8
    from gan_inversion.core.inversion import render
    from gan_inversion.core.invertibility import latent_map
    from gan_inversion.core.losses import lpips_distance

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.parity.multilayer_parity"]
        command += ["--official", json.dumps(case), "--output", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        with np.load(Path(folder) / "official.npz") as arrays:
            theirs = dict(arrays)
    generator = Generator(GeneratorConfig.official(RESOLUTION))
    generator.load_state_dict({k: values(k, tuple(v.shape), case["noise"]) for k, v in generator.state_dict().items()})
    generator = generator.eval().requires_grad_(False)
    shapes = _vgg_shapes()
    losses: list[float] = []
    require_finite = multilayer.require_finite

    def recording(value: torch.Tensor, what: str) -> None:
        if what.startswith("The loss"):
            losses.append(float(value.detach().sum()))
        require_finite(value, what)

    multilayer.require_finite = recording
    start = generator.mapping(start_z())[None]
    worst = float(np.abs(start.numpy() - theirs["start"]).max())
    print(f"{name}: start code {worst:.1e}")
    prior = multilayer.code_prior(generator)
    mean = F.leaky_relu(prior.mean_w, 5.0).numpy()
    relative = np.abs(prior.precision.numpy() - theirs["precision"]).max() / np.abs(theirs["precision"]).max()
    print(f"  prior: mean {np.abs(mean - theirs['mean']).max():.1e}, precision {relative:.1e} of its largest entry")
    # The inverse of a random mapping network's covariance amplifies the last digits of w: go on with the official one.
    mean_v = torch.from_numpy(theirs["mean"])
    official_prior = multilayer.GaussianPrior(
        torch.where(mean_v < 0, mean_v / 5, mean_v), torch.from_numpy(theirs["precision"])
    )
    multilayer.code_prior = lambda *_: official_prior
    photo = from_uint8(picture(tuple(case["size"])))
    margin = (RESOLUTION - photo.shape[2]) // 2
    chosen = latent_map(error_maps(tuple(case["size"])), torch.from_numpy(seeded_segments(case["size"]))[None], TAU)
    config = multilayer.MultilayerConfig(steps=STEPS, noise="random", keep_best=False)
    distance = lpips_distance("vgg", {key: backbone(key_of, shape) for key, (key_of, shape) in shapes.items()})
    started = time.perf_counter()
    found = multilayer.invert_multilayer(
        F.pad(photo, (0, 0, margin, margin)), generator, chosen, config, start=start, distance=distance
    )
    seconds = time.perf_counter() - started
    ours, official_losses = np.array(losses), theirs["losses"]
    worst = max(worst, float(np.abs(ours / official_losses - 1).max()))
    print(f"  losses {', '.join(f'{v:.5f}' for v in official_losses)}; ours {', '.join(f'{v:.5f}' for v in ours)}")
    offsets = {f"F{2 * m.resolution.bit_length() - 6}": m.offset for m in found.modulations}
    for space, value in {"W+": found.w_plus, **offsets}.items():
        other = theirs[f"latent {space}"]
        away = np.abs(value.numpy() - other)
        moved = np.abs(other - (theirs["start"] if space == "W+" else 0))
        print(
            f"  {space}: moved by up to {moved.max():.3f}, root mean square {np.sqrt((moved**2).mean()):.3f}; "
            f"difference max {away.max():.1e}, 99.9 % {np.quantile(away, 0.999):.1e}"
        )
    shares = ", ".join(f"{space} {float(share):.2f}" for space, share in chosen.shares().items())
    print(f"  shares {shares}; official {float(theirs['seconds']):.0f} s, ours {seconds:.0f} s", flush=True)
    if case["edit"]:
        offset = torch.from_numpy(edit_code())
        kept = [
            dataclasses.replace(m, offset=torch.from_numpy(theirs[f"latent {space}"]))
            for space, m in zip(offsets, found.modulations, strict=True)
        ]
        found = dataclasses.replace(found, w_plus=torch.from_numpy(theirs["latent W+"]), modulations=tuple(kept))
        for strength, other in enumerate(theirs["edits"]):
            image = render(found, Edit.of(_direction(offset), float(strength)))
            away = float((image[0] - torch.from_numpy(other)).abs().max())
            print(f"  edit times {strength}: difference {away:.1e} of {np.abs(other).max():.1f}")
            worst = max(worst, away / float(np.abs(other).max()))
    return worst


def _vgg_shapes() -> dict[str, tuple[str, tuple[int, ...]]]:
    """torchvision's key -> (lpips' key, shape)."""
    from gan_inversion.core.losses import import_lpips

    net = import_lpips().LPIPS(net="vgg", pnet_rand=True, verbose=False).net
    return {"features." + k.split(".", 1)[1]: (k, tuple(v.shape)) for k, v in net.state_dict().items()}


def _direction(offset: torch.Tensor):
    from gan_inversion.core.directions import Direction

    return Direction("edit", offset[0])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    parser.add_argument("--official", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missing = [name for name in REPOSITORIES if name not in os.environ]
    if missing:
        parser.error(f"set {' and '.join(missing)} to a checkout of the official repository")
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    worst = max(compare(name, case) for name, case in CASES.items() if arguments.only in name)
    print(f"largest relative difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
