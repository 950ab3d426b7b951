"""Runs the official DHR beside ours on random weights, on the CPU, and compares step by step.

    OFFICIAL_GANINVERTER_DIR=... python -m tests.parity.dhr_parity [--only TEXT] [--fixtures DIR]

The variable names a checkout of caopulan/GANInverter. Its `DHRInference.inverse` and `OptimizerInference.inverse` run as
they are, in their own process; CUDA operations are replaced by plain functions, loaders of pretrained networks and of
the face parser by seeded stand-ins. The mask comes in through the file that the official code looks for. `refine-*`
compares the losses of every step, the tuned weights and the features; `coarse-*` the coarse inversion on the same
random numbers; `score-*` the score of every superpixel and the mask made of it. Narrow generators: the official class,
whose layers get a fraction of their channels. `float64` cases leave roundings out.
"""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import functools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from .encoder_parity import _plain_operations
from .invertibility_parity import seeded_image
from .multilayer_parity import backbone

TOLERANCE = 1e-4  # of losses, relative
VARIABLE = "OFFICIAL_GANINVERTER_DIR"
COARSE_STEPS = 40
REFINE: dict[str, Any] = {"what": "refine", "steps": 5, "weight_steps": 5}
CASES: dict[str, dict] = {
    "refine-64": {**REFINE, "resolution": 64, "block": 32, "divide": 16},
    "refine-128-weights-stop-after-3": {**REFINE, "resolution": 128, "block": 64, "divide": 8, "weight_steps": 3},
    "refine-256": {**REFINE, "resolution": 256, "block": 128, "divide": 4},
    "refine-128-float64": {**REFINE, "resolution": 128, "block": 64, "divide": 8, "weight_steps": 3, "double": True},
    "coarse-64": {"what": "coarse", "resolution": 64, "divide": 16, "steps": COARSE_STEPS},
    "coarse-128": {"what": "coarse", "resolution": 128, "divide": 8, "steps": 5},
    "score-256": {"what": "score", "resolution": 256, "divide": 16},
    "score-512": {"what": "score", "resolution": 512, "divide": 16},
}
FIXTURE: dict[str, Any] = {**REFINE, "resolution": 64, "block": 32, "divide": 16, "weight_steps": 3}
KEPT = ("b4.const", "b32.torgb.weight", "b32.conv0.bias", "b64.conv1.affine.bias", "b8.conv0.noise_strength")


# --- numbers that both sides make from names -------------------------------------------------------------------------


def normal(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal values that depend on name and shape alone, from numpy's frozen legacy generator."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(random.standard_normal(int(np.prod(shape))).astype(np.float32)).reshape(tuple(shape))


def generator_values(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Values of a rosinality generator: w spreads by about 1, pictures stay near [-1, 1]."""
    values = normal(name, shape)
    if name.startswith("style."):
        return values * (100.0 if name.endswith("weight") else 30.0)  # divided by a learning rate of 0.01
    if name.endswith("modulation.bias"):
        return 1.0 + 0.3 * values
    if name.startswith("to_rgb") and name.endswith("conv.weight"):
        return 0.2 * values
    if name.endswith("noise.weight"):
        return 0.1 * values
    return 0.05 * values if name.endswith("bias") else values


def backbone_of(net: str) -> dict[str, torch.Tensor]:
    """Weights of torchvision's VGG16 or AlexNet, `features.N.weight/bias`."""
    import torchvision

    network = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}[net]
    with torch.device("meta"):
        state = network(weights=None).features.state_dict()
    return {f"features.{k}": backbone(f"{net}.{k}", tuple(v.shape)) for k, v in state.items()}


def rows(resolution: int) -> int:
    """Rows of a w_plus code."""
    return 2 * resolution.bit_length() - 4


def code(resolution: int) -> torch.Tensor:
    """w_plus [1, rows, 512] of the size that the seeded mapping networks give."""
    return 0.7 * normal("code", (1, 1, 512)) + 0.3 * normal("rows", (1, rows(resolution), 512))


def in_domain_mask(resolution: int) -> torch.Tensor:
    """[1, 1, R, R] of 0 and 1, two thirds of it 1."""
    coarse = torch.from_numpy(np.random.RandomState(9).uniform(0, 1, (1, 1, 5, 5))).float()
    return (F.interpolate(coarse, size=(resolution, resolution), mode="bicubic") > 0.4).float()


def official_probabilities(resolution: int) -> torch.Tensor:
    """Class probabilities [19, R, R] in the order of FaRL: what the stand-in for the face parser gives."""
    coarse = torch.from_numpy(np.random.RandomState(10).standard_normal((1, 19, 6, 6))).float() * 3
    coarse[:, 2] += 2
    return F.interpolate(coarse, size=(resolution, resolution), mode="bilinear").softmax(dim=1)[0]


def noise_maps(resolution: int) -> list[torch.Tensor]:
    """Noise maps of the coarse inversion's start."""
    sides = [4, *(side for k in range(3, resolution.bit_length()) for side in (2**k, 2**k))]
    return [normal(f"noise {i}", (1, 1, side, side)) for i, side in enumerate(sides)]


# --- the official side -----------------------------------------------------------------------------------------------


def import_official(divide: int) -> types.SimpleNamespace:
    """The official modules, whose generator gets 1/`divide` of its channels."""
    sys.path.insert(0, os.environ[VARIABLE])
    sys.modules["models.stylegan2.op"] = _plain_operations()
    torch.Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign]
    import lpips
    import torchvision

    for name in ("loguru", "utils.facer", "utils.facer.facer", "inference.two_stage_inference"):
        sys.modules[name] = mock.MagicMock(name=name)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1"
    torch.hub.load_state_dict_from_url = lambda url, map_location, **_: torch.load(
        heads / url.rsplit("/", 1)[1], map_location=map_location, weights_only=True
    )
    for name in ("vgg16", "alexnet"):
        made = getattr(torchvision.models, name)
        setattr(torchvision.models, name, functools.partial(lambda made, *_, **__: made(weights=None), made))
    from criteria.lpips import lpips as distance
    from inference import dhr_infer, optim_infer, pti_infer
    from models.stylegan2 import model

    if divide > 1:
        conv, rgb, const = model.StyledConv, model.ToRGB, model.ConstantInput
        model.StyledConv = lambda i, o, *args, **kwargs: conv(i // divide, o // divide, *args, **kwargs)
        model.ToRGB = lambda i, *args, **kwargs: rgb(i // divide, *args, **kwargs)
        model.ConstantInput = lambda i: const(i // divide)
    return types.SimpleNamespace(
        distance=distance, dhr=dhr_infer, optim=optim_infer, pti=pti_infer, Generator=model.Generator
    )


def official_lpips(found: types.SimpleNamespace, net: str) -> torch.nn.Module:
    """Their LPIPS with the seeded backbone."""
    distance = found.distance.LPIPS(net_type=net).eval()
    weights = {k.split(".", 1)[1]: v for k, v in backbone_of(net).items()}
    distance.net.layers.load_state_dict(weights)
    return distance.requires_grad_(False)


def official_options(case: dict, folder: Path) -> argparse.Namespace:
    """Settings as in configs/dhr/dhr.yaml and options/test_options.py."""
    return argparse.Namespace(
        resolution=case["resolution"], stylegan_weights=str(folder / "weights.pt"), output_dir=str(folder),
        w_plus=False, lr=0.1, optim_step=case.get("steps"), noise=0.05, noise_ramp=0.75, noise_regularize=1e5,
        optim_l2_lambda=0.0, optim_lpips_lambda=1.0, dhr_weight_lr=1.5e-3, dhr_feature_lr=9e-2,
        dhr_feature_idx=2 * (case.get("block", 32).bit_length() - 1) - 3, dhr_feature_step=case.get("steps"),
        dhr_weight_step=case.get("weight_steps"), dhr_l2_lambda=1.0, dhr_lpips_lambda=1.0, dhr_theta1=0.7,
        dhr_theta2=0.8, pti_lr=3e-4, pti_step=case.get("steps"), pti_l2_lambda=1.0, pti_lpips_lambda=1.0,
    )  # fmt: skip


@contextmanager
def recorded_losses() -> Iterator[list[float]]:
    """The values on which `backward` is called."""
    losses: list[float] = []
    backward = torch.Tensor.backward

    def recording(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(self.item())
        backward(self, *args, **kwargs)

    with mock.patch.object(torch.Tensor, "backward", recording):
        yield losses


@contextmanager
def recorded_starts(network: Any, method: str) -> Iterator[list[tuple[float, float]]]:
    """(wall, CPU) seconds at every call of a network's method."""
    times: list[tuple[float, float]] = []
    forward = getattr(network, method)

    def recording(*args: Any, **kwargs: Any) -> Any:
        times.append((time.perf_counter(), time.process_time()))
        return forward(*args, **kwargs)

    with mock.patch.object(network, method, recording):
        yield times


def official(case: dict, folder: Path) -> None:
    """Child process: writes the weight file and what the official code computed."""
    found = import_official(case["divide"])
    network = found.Generator(case["resolution"], 512, 8)
    state = {k: v if k.endswith("kernel") else generator_values(k, v.shape) for k, v in network.state_dict().items()}
    torch.save({"g_ema": state, "latent_avg": 0.1 * normal("latent_avg", (512,))}, folder / "weights.pt")
    shapes = {k: list(v.shape) for k, v in state.items()}
    del network, state
    options = official_options(case, folder)
    image = seeded_image(1, (case["resolution"],) * 2)
    run = {"refine": official_refine, "pti": official_pti, "coarse": official_coarse, "score": official_score}
    numbers = run[case["what"]](found, case, options, image, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(folder / "official.npz", shapes=np.array(json.dumps(shapes)), peak=peak, **numbers)


def _inference(cls: type, options: argparse.Namespace, lpips: torch.nn.Module | None, device: Any = "cpu") -> Any:
    """An inference object without its constructor, which loads pretrained networks."""
    made = object.__new__(cls)
    made.opts, made.device, made.checkpoint, made.lpips_loss = options, device, None, lpips
    made.opts.device = device
    return made


def official_refine(
    found: types.SimpleNamespace, case: dict, options: argparse.Namespace, image: torch.Tensor, folder: Path
) -> dict[str, Any]:
    """`DHRInference.inverse` with a given mask."""
    dtype = torch.float64 if case.get("double") else torch.float32
    distance = official_lpips(found, "alex").to(dtype)
    inference = _inference(found.dhr.DHRInference, options, distance, dtype)  # every use of it is a `.to(device)`
    (folder / "mask_refine_pt").mkdir()
    torch.save(in_domain_mask(case["resolution"]).to(dtype), folder / "mask_refine_pt" / "photo.pt")
    with recorded_losses() as losses, recorded_starts(found.Generator, "forward") as times:
        picture, _, [info] = inference.inverse(
            image.to(dtype), None, ["photo.png"], code(case["resolution"]).to(dtype), None, None
        )
    torch.save({"g_ema": info["weight"]}, folder / "tuned.pt")
    return {
        "losses": losses,
        "features": info["feature"].detach().numpy(),
        "mask": info["mask"].numpy(),
        "picture": picture.detach().numpy(),
        "times": np.array(times[1:]),  # without the pass that draws the first features
    }


def official_pti(
    found: types.SimpleNamespace, case: dict, options: argparse.Namespace, image: torch.Tensor, folder: Path
) -> dict[str, Any]:
    """`PTIInference.inverse` of the same repository."""
    inference = _inference(found.pti.PTIInference, options, official_lpips(found, "alex"))
    with recorded_losses() as losses, recorded_starts(found.Generator, "forward") as times:
        picture, _, [info] = inference.inverse(image, None, None, code(case["resolution"]), None, None)
    torch.save({"g_ema": info["generator"]}, folder / "tuned.pt")
    return {"losses": losses, "picture": picture.numpy(), "times": np.array(times)}


def official_coarse(
    found: types.SimpleNamespace, case: dict, options: argparse.Namespace, image: torch.Tensor, folder: Path
) -> dict[str, Any]:
    """`OptimizerInference.inverse` with the same random numbers as ours."""
    inference = _inference(found.optim.OptimizerInference, options, official_lpips(found, "vgg"))
    inference.decoder = found.Generator(case["resolution"], 512, 8).eval()
    content = torch.load(folder / "weights.pt", weights_only=True)
    inference.decoder.load_state_dict(content["g_ema"])
    inference.latent_avg = content["latent_avg"]
    inference.latent_std = torch.tensor(WIDTH * math.sqrt(512))
    maps = iter(noise_maps(case["resolution"]))
    steps = iter(range(case["steps"]))
    perceptual: list[float] = []
    forward = found.distance.LPIPS.forward

    def recording(self: Any, x: torch.Tensor, y: torch.Tensor, keep_res: bool = False) -> Any:
        value = forward(self, x, y, keep_res)
        if not keep_res:
            perceptual.append(value.item())
        return value

    with (
        recorded_losses() as losses,
        mock.patch.object(torch.Tensor, "normal_", lambda self: self.copy_(next(maps))),
        mock.patch.object(torch, "randn_like", lambda latent: normal(f"explore {next(steps)}", (1, 512))),
        mock.patch.object(found.distance.LPIPS, "forward", recording),
    ):
        picture, _, delta = inference.inverse(image, image, None, return_lpips=True)
    return {
        "losses": losses,
        "perceptual": perceptual,
        "picture": picture.detach().numpy(),
        **{f"delta {k}": layer.detach().numpy() for k, layer in enumerate(delta)},
    }


def official_score(
    found: types.SimpleNamespace, case: dict, options: argparse.Namespace, image: torch.Tensor, folder: Path
) -> dict[str, Any]:
    """The segmentation of `DHRInference.inverse`; the coarse picture is given."""
    import cv2

    pixels = photo_pixels(case["resolution"])
    path = str(folder / "photo.png")
    cv2.imwrite(path, pixels[..., ::-1])
    distance = official_lpips(found, "vgg")
    with torch.no_grad():
        for head in distance.lin.parameters():
            head *= SCORE_SCALE
        delta = distance(coarse_picture(case["resolution"]), as_image(pixels), keep_res=True)
    inference = _inference(found.dhr.DHRInference, options, None)
    inference.coarse_inv = types.SimpleNamespace(inverse=lambda *_, **__: (None, None, delta))
    inference.parsing = lambda _: official_probabilities(case["resolution"])
    scores: list[float] = []

    def summing(values: Any) -> Any:
        scores.append(float(builtins.sum(values)))
        return builtins.sum(values)

    saved: list[torch.Tensor] = []

    class Done(Exception):
        pass

    def stop(size: Any) -> None:
        raise Done

    clone = torch.Tensor.clone

    def keeping(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        saved.append(self)
        return clone(self, *args, **kwargs)

    found.dhr.sum = summing
    with (
        mock.patch.object(torch.nn, "AdaptiveAvgPool2d", stop),
        mock.patch.object(torch.Tensor, "clone", keeping),
        mock.patch.object(found.dhr, "Generator", mock.MagicMock()),
        suppress(Done),
    ):
        inference.inverse(as_image(pixels), None, [path], None, None, None)
    superpixels = found.dhr.slic(cv2.imread(path), n_segments=200, compactness=30, sigma=1)
    return {"scores": scores, "in_domain": saved[0].numpy(), "superpixels": superpixels}


def photo_pixels(resolution: int) -> np.ndarray:
    """Photograph [R, R, 3], uint8, RGB."""
    return ((seeded_image(1, (resolution,) * 2)[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def as_image(pixels: np.ndarray) -> torch.Tensor:
    """[1, 3, R, R] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def coarse_picture(resolution: int) -> torch.Tensor:
    """The photograph with some of it lost."""
    image = as_image(photo_pixels(resolution))
    soft = F.interpolate(F.avg_pool2d(image, 16), size=image.shape[2:], mode="bilinear")
    return torch.lerp(image, soft, F.interpolate(normal("lost", (1, 1, 4, 4)).sigmoid(), size=image.shape[2:]))


WIDTH = 0.9  # of w, per coordinate
SCORE_SCALE = 25  # brings the distances of a random backbone to the thresholds


# --- our side --------------------------------------------------------------------------------------------------------


def run_official(case: dict, folder: Path) -> dict[str, np.ndarray]:
    """The official numbers; `folder` receives weights.pt and tuned.pt."""
    command = [sys.executable, "-m", "tests.parity.dhr_parity", "--official", json.dumps(case), "--output", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "TQDM_DISABLE": "1"})
    with np.load(folder / "official.npz") as arrays:
        return dict(arrays)


def our_inversion(folder: Path, resolution: int) -> Any:
    """The seeded photograph and code with the generator of a weight file."""
    from gan_inversion import load_model
    from gan_inversion.core.inversion import Inversion

    generator = load_model(folder / "weights.pt").module
    return Inversion(seeded_image(1, (resolution,) * 2), code(resolution), generator)


def our_lpips(net: str) -> Any:
    """Our distance with the seeded backbone."""
    from gan_inversion.core.losses import lpips_distance

    return lpips_distance(net, backbone_of(net))


@contextmanager
def in_double(modules: Sequence[Any]) -> Iterator[None]:
    """Our code in float64: what asks for float32 gets more."""
    from gan_inversion.core import inversion

    def render(*args: Any, **kwargs: Any) -> torch.Tensor:
        return inversion.render(*args, **{**kwargs, "dtype": torch.float64})

    def context(one: Any, edit: Any, noise: Any, _: torch.dtype) -> inversion.RenderContext:
        return inversion.RenderContext(one, edit, noise, torch.float64)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        for module in modules:
            stack.enter_context(mock.patch.object(module, "render", render))
            if hasattr(module, "RenderContext"):
                stack.enter_context(mock.patch.object(module, "RenderContext", context))
        yield


def our_refine(inversion: Any, distance: Any, case: dict) -> tuple[list[list[float]], dict[str, torch.Tensor], Any]:
    """Losses [features, weights] of every step, the offsets and features after the last one, and the refinement."""
    from gan_inversion.core import dhr

    losses: list[float] = []
    kept: list[dhr.Best] = []
    region_loss, best = dhr._region_loss, dhr.Best

    def recording(*args: Any) -> torch.Tensor:
        value = region_loss(*args)
        losses.append(value.item())
        return value

    def keeping(tensors: Any) -> Any:
        kept.append(best(tensors))
        return kept[-1]

    config = dataclasses.replace(
        dhr.DhrConfig.official(),
        steps=case["steps"],
        weight_steps=case["weight_steps"],
        feature_resolution=case["block"],
    )
    outside = 1 - in_domain_mask(case["resolution"])
    with mock.patch.object(dhr, "_region_loss", recording), mock.patch.object(dhr, "Best", keeping):
        refined = dhr.refine(inversion, distance, config, out_of_domain=outside)
    pairs = [[features, weights] for weights, features in zip(losses[::2], losses[1::2], strict=True)]
    return pairs, {name: tensor.detach() for name, tensor in kept[0].live.items()}, refined


def official_pairs(theirs: dict, case: dict) -> list[list[float]]:
    """The official losses as [features, weights] of every step, [features] where the weights rest."""
    values, pairs = iter(theirs["losses"].tolist()), []
    for step in range(case["steps"]):
        pairs.append([next(values), next(values)] if step < case["weight_steps"] else [next(values)])
    return pairs


def worst_ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Largest relative difference of losses."""
    return max(
        abs(a / b - 1) for mine, other in zip(ours, theirs, strict=False) for a, b in zip(mine, other, strict=False)
    )


def moves(ours: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> str:
    """How far the weights went, and how far apart they are then."""
    away, moved = [], []
    for name, offset in ours.items():
        official_offset = tuned[name].double() - base[name].double()
        moved.append(official_offset.flatten())
        away.append((offset[0].double() - official_offset).flatten())
    differences, distances = torch.cat(away).abs(), torch.cat(moved)
    share = float((differences > 0.01 * distances.abs().max()).double().mean())
    return (
        f"moved by up to {distances.abs().max():.2e}, root mean square {distances.square().mean().sqrt():.2e}; difference "
        f"max {differences.max():.1e}, root mean square {differences.square().mean().sqrt():.1e}, "
        f"more than 1 % of the largest move: {share:.1e} of {len(distances)}"
    )


def tuned_parameters(path: Path) -> dict[str, torch.Tensor]:
    """Synthesis parameters of a tuned official state, under our names."""
    from gan_inversion.model_registry.layouts import rosinality_generator

    state = rosinality_generator(torch.load(path, weights_only=True)["g_ema"])
    return {k.removeprefix("synthesis."): v for k, v in state.items() if k.startswith("synthesis.")}


def compare_refine(case: dict, folder: Path) -> float:
    """Losses, weights, features and the picture."""
    from gan_inversion.core import dhr
    from gan_inversion.core.inversion import FeatureOverride, WeightOffset, render

    theirs = run_official(case, folder)
    inversion, distance = our_inversion(folder, case["resolution"]), our_lpips("alex")
    base = {k: v.detach().clone() for k, v in inversion.generator.synthesis.named_parameters()}
    with ExitStack() as stack:
        if case.get("double"):
            stack.enter_context(in_double([dhr]))
            inversion.generator.double()
            distance.model.double()
            inversion = type(inversion)(inversion.image.double(), inversion.w_plus.double(), inversion.generator)
        ours, live, _ = our_refine(inversion, distance, case)
    features = live.pop("features")
    official_features = torch.from_numpy(theirs["features"])
    away = (features - official_features).abs()
    worst = worst_ratio(ours, official_pairs(theirs, case))
    print(f"  losses {', '.join(' '.join(f'{v:.5f}' for v in pair) for pair in official_pairs(theirs, case))}")
    print(f"  ours   {', '.join(' '.join(f'{v:.5f}' for v in pair) for pair in ours)}")
    print(f"  losses differ by {worst:.1e} at most")
    print("  weights", moves(live, tuned_parameters(folder / "tuned.pt"), base))
    print(f"  features differ by {away.max():.1e} at most, 99.9 % {away.flatten().double().quantile(0.999):.1e}")
    mask = torch.from_numpy(theirs["mask"])
    wanted = torch.from_numpy(theirs["picture"])
    for name, weights, own, tolerated in (
        ("float32", live, features, torch.float32), ("float16", live, features, torch.float16),
    ):  # fmt: skip
        kept = WeightOffset({k: v.to(tolerated) for k, v in weights.items()})
        override = FeatureOverride(case["block"], own.to(tolerated), mask.float())
        drawn = render(our_inversion(folder, case["resolution"]).with_modulation(kept).with_modulation(override))
        difference = float((drawn - wanted).abs().max() / wanted.abs().max())
        print(f"  picture from offsets in {name}: {difference:.1e} of its largest value {wanted.abs().max():.2f}")
    return worst


def official_ramp(done: float, _: Any) -> float:
    """The schedule there: without the small start of ours."""
    down = min(1.0, (1 - done) / 0.25)
    return (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, done / 0.05)


def official_regularization(noises: list[torch.Tensor]) -> torch.Tensor:
    """The penalty there: pyramid levels are plain means, so that their deviation halves."""
    loss = noises[0].new_zeros([])
    for noise in noises:
        while True:
            loss = loss + sum((noise * noise.roll(1, dims=axis)).mean().square() for axis in (2, 3))
            if noise.shape[-1] <= 8:
                break
            noise = F.avg_pool2d(noise, 2)
    return loss


def clamped(distance: Any) -> Any:
    """Our LPIPS of a picture that is clamped first, as there, where it is compared at 256 px."""
    small = type(distance)(distance.model, distance.name, 256)
    features = small.features
    small.features = lambda image: features(image.clamp(-1, 1))
    distance.at_size = lambda size: small if size == 256 else distance
    return distance


def our_coarse(
    inversion: Any, distance: Any, steps: int, same: Sequence[str], stop_after: int
) -> tuple[list[float], list[float], Any]:
    """Losses, perceptual ones, and the coarse picture; `same` names the habits taken from the official code."""
    from gan_inversion.core import dhr, projection
    from gan_inversion.core.refinement import StopOptimisation

    image, generator = inversion.image, inversion.generator
    maps, explore = iter(noise_maps(generator.resolution)), iter(range(steps))
    perceptual: list[float] = []
    if "clamp" in same:
        distance = clamped(distance)
    between = distance.at_size(256).between

    def recording(*args: Any) -> torch.Tensor:
        value = between(*args)
        perceptual.append(value.item())
        return value

    def drawing(shape: Any, generator: Any = None) -> torch.Tensor:
        shape = tuple(shape)
        return normal(f"explore {next(explore)}", shape) if len(shape) == 3 else next(maps)

    def statistics(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return generator.w_avg, torch.tensor(WIDTH)

    losses: list[float] = []
    gradients = torch.autograd.grad

    def differentiating(total: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        losses.append(total.item())
        return gradients(total, *args, **kwargs)

    def stop(step: int, *_: Any) -> None:
        if step == stop_after:
            raise StopOptimisation

    config = dataclasses.replace(dhr.DhrConfig.official(), coarse_steps=steps)
    with ExitStack() as stack:
        patch: Callable[..., Any] = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        patch(torch.autograd, "grad", differentiating)
        patch(dhr, "w_statistics", statistics)
        patch(projection, "w_statistics", statistics)
        patch(torch, "randn", drawing)
        patch(type(distance), "between", lambda self, *args: recording(*args))
        if "ramp" in same:
            patch(projection, "_ramp", official_ramp)
        if "noise" in same:
            patch(projection, "noise_regularization", official_regularization)
        coarse = dhr._coarse_inversion(image, generator, distance, config, dhr.OFFICIAL, stop)
    return losses, perceptual, coarse


def compare_coarse(case: dict, folder: Path) -> float:
    """Losses and the picture, with and without what ours does otherwise."""
    theirs = run_official(case, folder)
    worst = math.nan
    for name, same in {
        "as it is": (), "with the official ramp": ("ramp",), "with the official noise penalty": ("noise",),
        "with the official clamp": ("clamp",), "with all three": ("ramp", "noise", "clamp"),
    }.items():  # fmt: skip
        inversion, distance = our_inversion(folder, case["resolution"]), our_lpips("vgg")
        whole = len(same) in (0, 3)
        losses, perceptual, coarse = our_coarse(inversion, distance, case["steps"], same, case["steps"] if whole else 5)
        first = slice(0, 5)
        worst = worst_ratio([losses[first]], [theirs["losses"][first].tolist()])
        seen = worst_ratio([perceptual[first]], [theirs["perceptual"][first].tolist()])
        print(f"  {name}: first five losses differ by {worst:.1e}, their perceptual part by {seen:.1e}", end="")
        if whole:
            with torch.no_grad():
                layers = distance.maps(distance.features(coarse), distance.features(inversion.image))
            scores = [float(layer.mean()) / float(theirs[f"delta {k}"].mean()) - 1 for k, layer in enumerate(layers)]
            last = perceptual[case["steps"] - 1] / float(theirs["perceptual"][-1]) - 1
            print(f", the last one's by {last:+.1e}; layer means of the coarse picture by", end=" ")
            print(", ".join(f"{score:+.1e}" for score in scores), end="")
        print(flush=True)
    print(f"  official losses {theirs['losses'][:5].round(5).tolist()}, perceptual {theirs['perceptual'][:5].round(5)}")
    return worst


def compare_score(case: dict, folder: Path) -> float:
    """The score of every superpixel, and the masks; the difference of scores is one of method."""
    from gan_inversion.core import dhr
    from gan_inversion.core.parsing import CELEBM_CLASSES, Parsing

    theirs = run_official(case, folder)
    resolution = case["resolution"]
    image, distance = as_image(photo_pixels(resolution)), our_lpips("vgg")
    with torch.no_grad():
        for head in distance.model.lins.parameters():
            head *= SCORE_SCALE
    generator = our_inversion(folder, resolution).generator
    parsing = Parsing(official_probabilities(resolution)[None], CELEBM_CLASSES)
    with (
        mock.patch.object(dhr, "_coarse_inversion", lambda *_: coarse_picture(resolution)),
        mock.patch.object(dhr, "_parse", lambda *_: parsing),
    ):
        found = dhr.segment(image, generator, distance, dhr.DhrConfig.official(), parser=mock.MagicMock())
    labels = torch.from_numpy(theirs["superpixels"])
    joined = torch.stack((labels.flatten(), found.superpixels.flatten())).unique(dim=1)
    assert joined.shape[1] == labels.max() == found.superpixels.max() + 1, "not the same superpixels"
    ours = [float(found.score[0, 0][labels == label][0]) for label in range(1, int(labels.max()) + 1)]
    scores = theirs["scores"].tolist()
    empty = sum(math.isnan(score) for score in scores)
    away = np.array([abs(a / b - 1) for a, b in zip(ours, scores, strict=True) if not math.isnan(b)])
    differing = float((found.out_of_domain == torch.from_numpy(theirs["in_domain"])).float().mean())
    print(
        f"  {len(scores)} superpixels, scores {np.nanmin(scores):.3f} to {np.nanmax(scores):.3f}, {empty} of them empty "
        f"there; ours differ by {np.median(away):.1e} (median), {away.max():.1e} at most; masks differ on {differing:.2%}"
    )
    # The official formula on our maps: masks shrunk to each map.
    with torch.no_grad():
        maps = distance.maps(distance.features(coarse_picture(resolution)), distance.features(image))
    again = []
    for label in range(1, int(labels.max()) + 1):
        mask = (labels == label).float()[None, None]
        shrunk = [F.interpolate(mask, layer.shape[2:]) for layer in maps]
        again.append(sum(float((d * m).sum() / m.sum()) for d, m in zip(maps, shrunk, strict=True)))
    worst = float(np.nanmax(np.abs(np.array(again) / np.array(scores) - 1)))
    print(f"  with masks shrunk to the maps, as there: {worst:.1e}")
    return worst


COMPARE = {"refine": compare_refine, "coarse": compare_coarse, "score": compare_score}


def write_fixture(folder: Path) -> None:
    """Losses and a few tuned weights of the official code."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        theirs = run_official(FIXTURE, Path(temporary))
        tuned = tuned_parameters(Path(temporary) / "tuned.pt")
    np.savez_compressed(
        folder / "dhr.npz",
        shapes=theirs["shapes"],
        losses=theirs["losses"],
        features=theirs["features"][:, ::8],
        **{f"tuned {name}": tuned[name].numpy() for name in KEPT},
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    parser.add_argument("--fixtures", type=Path, help="write the committed numbers to this folder and stop")
    parser.add_argument("--official", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if VARIABLE not in os.environ:
        parser.error(f"set {VARIABLE} to a checkout of the official repository")
    if arguments.official:
        official(arguments.official, arguments.output)
        return 0
    if arguments.fixtures:
        write_fixture(arguments.fixtures)
        return 0
    worst = 0.0
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            worst = max(worst, COMPARE[case["what"]](case, Path(folder)))
    print(f"largest relative difference of losses {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
