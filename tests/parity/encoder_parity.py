"""Runs the official encoder code beside ours on random weights, on the CPU, and compares w_plus.

    OFFICIAL_E4E_DIR=... OFFICIAL_RESTYLE_DIR=... python tests/parity/encoder_parity.py [--only TEXT] [--fixtures DIR]

The variables name checkouts of omertov/encoder4editing and yuval-alaluf/restyle-encoder. The official classes run in
their own process, because both repositories call their package `models`; their CUDA operations are replaced there by
plain functions. Weights are made from names and shapes alone, so nothing large is stored: the official process hands
over its key names and shapes, and ours must load exactly those. `--fixtures DIR` writes the committed numbers instead.
"""

from __future__ import annotations

import argparse
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

TOLERANCE = 1e-3
REPOSITORIES = {"e4e": "OFFICIAL_E4E_DIR", "restyle": "OFFICIAL_RESTYLE_DIR"}
ITERATIONS = 5
# Scale of the last linear layers: codes then spread like a trained StyleGAN's w, about 1. A ReStyle loop of random
# networks with larger ones is unstable (at 0.2, codes grow fourfold in each pass and 1e-6 on the input becomes 10 on
# the fifth code), so it would measure that growth and no difference of code.
HEAD_SCALE = {"e4e": 0.2, "restyle": 0.05}
CASES: dict[str, dict] = {
    "e4e-1024": {"repository": "e4e", "encoder_type": "Encoder4Editing", "resolution": 1024, "batch": 2},
    "e4e-cars-512": {"repository": "e4e", "encoder_type": "Encoder4Editing", "resolution": 512, "cars": True},
    "e4e-cars-18-rows": {"repository": "e4e", "encoder_type": "Encoder4Editing", "resolution": 1024, "cars": True},
    "psp-1024": {"repository": "e4e", "encoder_type": "GradualStyleEncoder", "resolution": 1024, "batch": 2},
    "psp-cars-512": {"repository": "e4e", "encoder_type": "GradualStyleEncoder", "resolution": 512, "cars": True},
    "single-code-1024": {"repository": "e4e", "encoder_type": "SingleStyleCodeEncoder", "resolution": 1024},
    "restyle-e4e-irse50-256": {"repository": "restyle", "encoder_type": "ProgressiveBackboneEncoder", "batch": 2},
    "restyle-psp-irse50-256": {"repository": "restyle", "encoder_type": "BackboneEncoder"},
    "restyle-e4e-resnet34-256": {"repository": "restyle", "encoder_type": "ResNetProgressiveBackboneEncoder"},
    "restyle-psp-resnet34-256": {"repository": "restyle", "encoder_type": "ResNetBackboneEncoder"},
    "restyle-psp-pyramid-irse50-64": {
        "repository": "restyle",
        "encoder_type": "GradualStyleEncoder",
        "resolution": 64,
    },
    "restyle-psp-pyramid-resnet34-64": {
        "repository": "restyle",
        "encoder_type": "ResNetGradualStyleEncoder",
        "resolution": 64,
    },
    "restyle-e4e-cars-512": {
        "repository": "restyle",
        "encoder_type": "ResNetProgressiveBackboneEncoder",
        "resolution": 512,
        "cars": True,
    },
    "restyle-psp-cars-512": {
        "repository": "restyle",
        "encoder_type": "ResNetBackboneEncoder",
        "resolution": 512,
        "cars": True,
    },
    "restyle-e4e-irse50-1024": {
        "repository": "restyle",
        "encoder_type": "ProgressiveBackboneEncoder",
        "resolution": 1024,
    },
}
FIXTURES: dict[str, dict] = {
    "e4e": {"repository": "e4e", "encoder_type": "Encoder4Editing", "resolution": 32},
    "psp_cars": {"repository": "e4e", "encoder_type": "GradualStyleEncoder", "resolution": 32, "cars": True},
    "restyle_e4e": {"repository": "restyle", "encoder_type": "ResNetProgressiveBackboneEncoder", "resolution": 32},
}
_NOISE = np.random.RandomState(7).standard_normal(1_000_003).astype(np.float32)


def seeded_state(shapes: Mapping[str, tuple[int, ...]], head_scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Random tensors that depend on their names and shapes only: the same on every machine and version.

    One bank of normals is repeated from a place that the name gives, which is fast enough for 270 million numbers.
    Normalisation statistics, PReLU slopes and biases are random too.
    """
    return {name: _seeded(name, tuple(shape), head_scale) for name, shape in shapes.items()}


def _seeded(name: str, shape: tuple[int, ...], head_scale: float) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    start = zlib.crc32(name.encode()) % len(_NOISE)
    count = int(np.prod(shape))
    noise = torch.from_numpy(np.resize(np.concatenate((_NOISE[start:], _NOISE[:start])), count)).reshape(shape)
    if name.startswith(("synthesis.", "mapping.")):
        return _generator_values(name, noise)
    if name.endswith("running_var"):
        return 0.6 + 0.4 * noise.abs()
    if name.endswith("weight") and len(shape) == 1:
        slope = name.endswith(("input_layer.2.weight", "relu.weight", "res_layer.2.weight"))
        residual = name.endswith(("res_layer.4.weight", "bn2.weight"))  # small, or the sum over the units explodes
        return 0.25 + 0.1 * noise if slope else (0.3 if residual else 1.0) + 0.1 * noise
    if name.endswith("weight"):
        return noise * (2.0 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else head_scale * noise
    return 0.2 * noise  # biases, running means, latent_avg


def _generator_values(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("affine.bias"):
        return 1.0 + 0.3 * noise
    if name.endswith((".bias", "noise_strength")):
        return 0.2 * noise
    return 0.3 * noise if "torgb.weight" in name else noise


def seeded_image(batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Smooth shapes with some noise, [batch, 3, *size] in [-1, 1], the same everywhere."""
    random = np.random.RandomState(11)
    coarse = torch.from_numpy(random.uniform(-1.0, 1.0, (batch, 3, 8, 8)))
    fine = torch.from_numpy(random.uniform(-0.2, 0.2, (batch, 3, *size)))
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (smooth + fine).clamp(-1.0, 1.0).float()


def case_image(case: dict) -> torch.Tensor:
    """The input of a case, at the size the official encoder takes."""
    return seeded_image(case.get("batch", 1), (192, 256) if case.get("cars") else (256, 256))


def dataset_type(case: dict) -> str:
    """The official option of a case."""
    return "cars_encode" if case.get("cars") else "ffhq_encode"


def rosinality_key(name: str) -> str | None:
    """Our generator's key -> the official decoder's; None for what the decoder keeps elsewhere."""
    if name == "mapping.w_avg":
        return None
    part, rest = name.split(".", 1)
    if part == "mapping":
        layer, kind = rest.split(".")
        return f"style.{int(layer.removeprefix('fc')) + 1}.{kind}"
    block, rest = rest.split(".", 1)
    level = int(block.removeprefix("b")).bit_length() - 3  # 0 for 4x4
    if rest == "const":
        return "input.input"
    layer, kind = rest.split(".", 1)
    if kind == "noise_const":
        return f"noises.noise_{max(2 * level - 1 + (layer == 'conv1'), 0)}"
    if layer == "torgb":
        place = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
    else:
        place = "conv1" if level == 0 else f"convs.{2 * level - 2 + (layer == 'conv1')}"
    names = {
        "weight": "conv.weight",
        "affine.weight": "conv.modulation.weight",
        "affine.bias": "conv.modulation.bias",
        "noise_strength": "noise.weight",
        "bias": "bias" if layer == "torgb" else "activate.bias",
    }
    return f"{place}.{names[kind]}"


def our_generator(resolution: int) -> torch.nn.Module:
    """The generator of the ReStyle cases."""
    from gan_inversion.core.generator import Generator, GeneratorConfig

    with torch.device("meta"):
        generator = Generator(GeneratorConfig.official(resolution))
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    generator.load_state_dict(seeded_state(shapes), assign=True)
    return generator.eval().requires_grad_(False)


# --- the official side -----------------------------------------------------------------------------------------------


def _plain_operations() -> types.ModuleType:
    """Replaces `models.stylegan2.op`, which compiles CUDA code at import."""

    def fused_leaky_relu(x, bias, negative_slope=0.2, scale=2**0.5):
        return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), negative_slope) * scale

    class FusedLeakyReLU(torch.nn.Module):
        def __init__(self, channel, negative_slope=0.2, scale=2**0.5):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(channel))
            self.negative_slope, self.scale = negative_slope, scale

        def forward(self, x):
            return fused_leaky_relu(x, self.bias, self.negative_slope, self.scale)

    def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
        batch, channels, height, width = x.shape
        spread = x.new_zeros(batch * channels, 1, height * up, width * up)
        spread[:, :, ::up, ::up] = x.reshape(batch * channels, 1, height, width)
        spread = F.pad(spread, (pad[0], pad[1], pad[0], pad[1]))
        out = F.conv2d(spread, kernel.flip(0, 1)[None, None])[:, :, ::down, ::down]
        return out.reshape(batch, channels, *out.shape[2:])

    module = types.ModuleType("models.stylegan2.op")
    module.FusedLeakyReLU = FusedLeakyReLU
    module.fused_leaky_relu = fused_leaky_relu
    module.upfirdn2d = upfirdn2d
    return module


def _prepare_official_imports(repository: str) -> None:
    sys.path.insert(0, os.environ[REPOSITORIES[repository]])
    sys.modules["models.stylegan2.op"] = _plain_operations()
    for name in ("dlib", "matplotlib", "matplotlib.pyplot"):  # imported there, not needed here
        sys.modules[name] = MagicMock(name=name)
    register_fake = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function  # a torchvision without its own operators
    import torchvision

    torch.library.register_fake = register_fake

    def resnet34(*_, **__):
        return torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [3, 4, 6, 3])

    torchvision.models.resnet34 = torchvision.models.resnet.resnet34 = resnet34  # no download
    to = torch.Tensor.to

    def to_without_cuda(self, *args, **kwargs):
        return to(self, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)

    torch.Tensor.to = to_without_cuda


def official(case: dict, output: Path) -> None:
    """Child process: writes the official codes, and the encoder's key names and shapes."""
    repository, resolution = case["repository"], case.get("resolution", 256)
    _prepare_official_imports(repository)
    options = argparse.Namespace(
        encoder_type=case["encoder_type"],
        stylegan_size=resolution,
        output_size=resolution,
        input_nc=6,
        dataset_type=dataset_type(case),
        start_from_latent_avg=True,
        n_iters_per_batch=ITERATIONS,
        resize_outputs=False,
        checkpoint_path=None,
        device="cpu",
    )
    if repository == "e4e":
        from models import psp

        framework = psp.pSp
    else:
        from models import e4e, psp

        framework = e4e.e4e if "Progressive" in case["encoder_type"] else psp.pSp
    framework.load_weights = lambda self: None
    net = framework(options).eval().requires_grad_(False)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.encoder.state_dict().items()}
    net.encoder.load_state_dict(seeded_state(shapes, HEAD_SCALE[repository]))
    rows = 2 * resolution.bit_length() - 4
    net.latent_avg = seeded_state({"latent_avg": (rows, 512)})["latent_avg"]
    x = case_image(case)
    started = time.perf_counter()
    if repository == "e4e":
        from scripts.inference import get_latents

        codes = get_latents(net, x, is_cars=bool(case.get("cars")))[None]
    else:
        from utils.inference_utils import get_average_image, run_on_batch

        ours = our_generator(resolution).state_dict()
        decoder = net.decoder.state_dict()
        named = {rosinality_key(name): tensor for name, tensor in ours.items()}
        fixed = {name for name in decoder if name.endswith("kernel")}
        assert named.keys() - {None} == decoder.keys() - fixed, "the decoder has other keys"
        net.decoder.load_state_dict({k: named[k].reshape(v.shape) if k in named else v for k, v in decoder.items()})
        started = time.perf_counter()
        _, latents = run_on_batch(x, net, options, get_average_image(net, options))
        codes = torch.stack([torch.from_numpy(np.stack(latents[index])) for index in range(len(x))], dim=1)
    seconds = time.perf_counter() - started
    np.savez(output, codes=codes.numpy(), shapes=json.dumps(shapes), seconds=seconds)


def run_official(case: dict) -> dict[str, np.ndarray]:
    """The official side of a case: codes [passes, batch, rows, 512], shapes, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "official.npz"
        command = [sys.executable, __file__, "--official", json.dumps(case), "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(output) as arrays:
            return dict(arrays)


# --- our side --------------------------------------------------------------------------------------------------------


def our_encoder(case: dict, shapes: Mapping[str, tuple[int, ...]], latent_avg_rows: int) -> torch.nn.Module:
    """Our encoder with the case's weights, its configuration read from the official names and shapes."""
    from gan_inversion.core.encoders import EncoderConfig, build_encoder

    config = EncoderConfig.from_state_dict(
        shapes,
        encoder_type=case["encoder_type"],
        dataset_type=dataset_type(case),
        num_ws=latent_avg_rows if case["encoder_type"] == "SingleStyleCodeEncoder" else None,
    )
    latent_avg = seeded_state({"latent_avg": (latent_avg_rows, 512)})["latent_avg"]
    state = seeded_state(shapes, HEAD_SCALE[case["repository"]])
    return build_encoder(config, state, latent_avg).requires_grad_(False)


def our_codes(case: dict, encoder: torch.nn.Module) -> torch.Tensor:
    """Codes of every pass, [passes, batch, rows, 512]."""
    generator = our_generator(case.get("resolution", 256)) if encoder.config.is_restyle else None
    return torch.stack(encoder(case_image(case), generator=generator, iterations=ITERATIONS, return_all=True))


def compare(name: str, case: dict) -> float:
    """Runs both sides, prints one row, and returns the largest difference over all passes."""
    theirs = run_official(case)
    shapes = {key: tuple(shape) for key, shape in json.loads(str(theirs["shapes"])).items()}
    encoder = our_encoder(case, shapes, 2 * case.get("resolution", 256).bit_length() - 4)
    started = time.perf_counter()
    ours = our_codes(case, encoder).numpy()
    seconds = time.perf_counter() - started
    assert ours.shape == theirs["codes"].shape, (ours.shape, theirs["codes"].shape)
    difference = float(np.abs(ours - theirs["codes"]).max())
    verdict = "ok" if difference <= TOLERANCE else "DIFFERENT"
    print(
        f"{name:32} {encoder.config.architecture:12} {list(ours.shape)!s:18} std {ours[-1].std():6.3f}  "
        f"max |difference| {difference:.1e} {verdict}  "
        f"official {float(theirs['seconds']):5.1f} s, ours {seconds:5.1f} s",
        flush=True,
    )
    return difference


def write_fixtures(folder: Path) -> None:
    """The official codes of FIXTURES: first and last pass, first image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in FIXTURES.items():
        codes = run_official(case)["codes"]
        np.savez_compressed(folder / f"{name}.npz", first=codes[0], last=codes[-1])


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
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    missing = [variable for variable in REPOSITORIES.values() if variable not in os.environ]
    if missing:
        parser.error(f"set {' and '.join(missing)} to a checkout of the official repository")
    if arguments.fixtures:
        write_fixtures(arguments.fixtures)
        return 0
    differences = [compare(name, case) for name, case in CASES.items() if arguments.only in name]
    print(f"largest difference {max(differences):.1e}, allowed {TOLERANCE:.0e}")
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
