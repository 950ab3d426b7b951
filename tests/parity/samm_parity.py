"""Runs the official SAMM code beside ours on random weights, on the CPU, and compares flows, masks, features, pictures.

    OFFICIAL_SAMM_DIR=... python -m tests.parity.samm_parity [--only TEXT]

The variable names a checkout of AbnerVictor/OOD-GAN-inversion. Its CUDA operations are replaced by plain functions, its
training framework by empty modules. `alignment-*` compares the aligning module of one level; `pass-*` the whole
network: a checkpoint as the official trainer saves it goes through our loader, and the official picture, flows and
masks stand against those of `align` and `render`. Noise is switched off in these: the official four layers always draw
fresh noise, here zeros. The official code is taken over (`lats`) for e4e, whose copy in that repository resizes the
feature pyramid otherwise than e4e itself; for ReStyle it is compared too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

from gan_inversion import load_model
from gan_inversion.core.inversion import Inversion, render
from gan_inversion.core.samm import Alignment, align

from . import encoder_parity as shared

TOLERANCE = 1e-4
RESOLUTION = 256
CASES: dict[str, dict[str, Any]] = {
    **{
        f"alignment-{n}{'-bias' if bias else ''}{'-coarse' if below else ''}": {"n": n, "bias": bias, "below": below}
        for n, bias, below in ((1, False, False), (2, False, True), (3, False, True), (2, True, False), (3, True, True))
    },
    "pass-e4e-1": {"encoder": "e4e", "n": 1},
    "pass-e4e-2": {"encoder": "e4e", "n": 2, "batch": 2},
    "pass-e4e-3": {"encoder": "e4e", "n": 3},
    "pass-e4e-2-skip-spatial-alignment": {"encoder": "e4e", "n": 2, "skip": True},
    "pass-restyle-e4e-2": {"encoder": "restyle", "n": 2},
}
RESTYLE_PASSES = 3


class _Options(dict):
    """Stands for the package easydict."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def _prepare_official_imports() -> None:
    sys.path.insert(0, os.environ["OFFICIAL_SAMM_DIR"])
    operations = shared._plain_operations()
    operations.__name__ = "src.ops.op"
    easydict, registry = types.ModuleType("easydict"), types.ModuleType("basicsr.utils.registry")
    easydict.EasyDict = _Options
    registry.ARCH_REGISTRY = types.SimpleNamespace(register=lambda: lambda cls: cls)
    sys.modules |= {"src.ops.op": operations, "easydict": easydict, "basicsr.utils.registry": registry}
    for name in ("basicsr", "basicsr.utils", "basicsr.archs", "basicsr.archs.arch_util"):
        sys.modules[name] = MagicMock(name=name)
    for name in ("torchvision", *(f"torchvision.{part}" for part in ("ops", "transforms", "models", "models.resnet"))):
        sys.modules.setdefault(name, MagicMock(name=name))


def _weights(net: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """Random values for the official module's own names; filters stay."""
    state = net.state_dict()
    made = shared.seeded_state({prefix + name: tuple(tensor.shape) for name, tensor in state.items()})
    values = {}
    for name, tensor in state.items():
        value = made[prefix + name]
        if name.endswith("kernel"):
            value = tensor
        elif ".res_layer.4.weight" in name:
            value = 1 + value  # flows and masks of every size
        values[name] = value
    return values


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max())


def compare_alignment(case: dict) -> dict[str, float]:
    """One level on random features."""
    from src.ops.SAMM.helpers import SPM_Warp

    channels, size = 16, 32
    official = SPM_Warp(channels, scale=0.08, cycle_align=case["n"], bias=case["bias"]).eval()
    values = _weights(official)
    official.load_state_dict(values)
    ours = Alignment(channels, 0.08, case["bias"]).eval()
    ours.load_state_dict({name: value for name, value in values.items() if not name.endswith("kernel")})
    random = torch.Generator().manual_seed(3)
    generated, encoded = torch.randn(2, 2, channels, size, size, generator=random)
    below = torch.rand(2, 3, size // 2, size // 2, generator=random) if case["below"] else None
    wanted, found = official(encoded, generated, None, below)
    features, flow, mask = ours(generated, encoded, None if below is None else below[:, 2:], case["n"])
    return {
        "features": _difference(features, wanted),
        "flow": _difference(flow, found[:, :2]),
        "mask": _difference(mask, found[:, 2:]),
    }


def _official_network(case: dict) -> torch.nn.Module:
    rows = 2 * RESOLUTION.bit_length() - 4
    options = {
        "out_size": RESOLUTION,
        "warp_scale": 0.08,
        "cycle_align": case["n"],
        "ModSize": 256,
        "skip_SA": case.get("skip", False),
        "mod_btn": None,
    }
    if case["encoder"] == "e4e":
        from src.archs.OOD_faceGAN_e4e_arch import ood_faceGAN_e4e

        net = ood_faceGAN_e4e(**options)
    else:
        from src.archs.OOD_faceGAN_restyle_arch import ood_faceGAN_restyle

        latent_avg = shared.seeded_state({"latent_avg": (rows, 512)})["latent_avg"]
        opts = {"encoder_type": "ProgressiveBackboneEncoder", "input_nc": 6, "n_styles": rows}
        load, torch.load = torch.load, lambda *_, **__: {"latent_avg": latent_avg, "opts": opts, "state_dict": {}}
        from src.ops.restyle.restyle_e4e_encoder import ProgressiveBackboneEncoder

        strict = ProgressiveBackboneEncoder.load_state_dict
        ProgressiveBackboneEncoder.load_state_dict = lambda *_, **__: None
        net = ood_faceGAN_restyle(**options, encoder="ReStyle", ReStyle_pth="-", enc_cycle=RESTYLE_PASSES)
        torch.load, ProgressiveBackboneEncoder.load_state_dict = load, strict
    net = net.eval().requires_grad_(False)
    net.delta_latent = torch.nn.Parameter(torch.zeros(1, rows, 512), requires_grad=False)  # there: 18 rows, always
    scale = shared.HEAD_SCALE[case["encoder"]]
    shapes = {name: tuple(tensor.shape) for name, tensor in net.encoder.state_dict().items()}
    net.encoder.load_state_dict(shared.seeded_state(shapes, scale))
    net.modulation.load_state_dict(_weights(net.modulation, "modulation."))
    net.feats_conv.load_state_dict(_weights(net.feats_conv, "feats_conv."))
    ours = shared.our_generator(RESOLUTION).state_dict()
    named = {shared.rosinality_key(name): tensor for name, tensor in ours.items()}
    decoder = net.generator.state_dict()
    net.generator.load_state_dict({k: named[k].reshape(v.shape) if k in named else v for k, v in decoder.items()})
    for name, parameter in net.generator.named_parameters():
        if name.endswith("noise.weight"):
            parameter.fill_(1.0)  # the official code divides by it
    return net


def compare_pass(case: dict) -> dict[str, float]:
    """The whole network."""
    net = _official_network(case)
    image = shared.seeded_image(case.get("batch", 1), (RESOLUTION, RESOLUTION))
    normal = torch.Tensor.normal_
    torch.Tensor.normal_ = lambda tensor, *_, **__: tensor.zero_()
    try:
        wanted, lats = net(image)
    finally:
        torch.Tensor.normal_ = normal
    # What the official trainer saves.
    saved = {k: v for k, v in net.state_dict().items() if "modulation" in k or "feats_conv" in k}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net_g_latest.pth"
        torch.save({"params": {k: torch.zeros_like(v) for k, v in saved.items()}, "params_ema": saved}, path)
        loaded = load_model(path)
    assert loaded.architecture == "samm", loaded.architecture
    shapes = {name: tuple(tensor.shape) for name, tensor in net.encoder.state_dict().items()}
    kind = "Encoder4Editing" if case["encoder"] == "e4e" else "ProgressiveBackboneEncoder"
    encoder = shared.our_encoder({"encoder_type": kind, "repository": case["encoder"]}, shapes, lats.shape[1])
    generator = shared.our_generator(RESOLUTION)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(1.0)
    differences = {}
    if case["encoder"] == "restyle":
        # The official loop draws with fresh noise too: zeros here.
        encoder.draw = lambda w_plus, g: torch.nn.functional.adaptive_avg_pool2d(g.synthesis(w_plus, noise="none"), 256)
        differences["w_plus"] = _difference(encoder(image, generator, RESTYLE_PASSES), lats)
    aligned = align(
        Inversion(image, lats, generator),
        encoder,
        loaded.module,
        iterations=case["n"],
        encoder_iterations=RESTYLE_PASSES,
        warp=not case.get("skip", False),
        noise="none",
    )
    levels = {32: 1, 64: 2, 128: 3, 256: 4}
    differences["flows"] = max(_difference(aligned.flows[r], net.aligns[k][:, :2]) for r, k in levels.items())
    differences["masks"] = max(_difference(aligned.masks[r], net.aligns[k][:, 2:]) for r, k in levels.items())
    differences["merged mask"] = _difference(aligned.mask, net.aligns[1024][:, :1])
    size = float(wanted.abs().max())  # random generators draw values far beyond 1
    differences["picture, of its largest value"] = _difference(render(aligned.inversion, noise="none"), wanted) / size
    spread = ", ".join(f"{r}: {float(m.mean()):.2f}+-{float(m.std()):.2f}" for r, m in aligned.masks.items())
    print(f"  masks (mean+-std) {spread}; merged {float(aligned.mask.mean()):.3f}; picture up to {size:.0f}")
    return differences


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    arguments = parser.parse_args()
    if "OFFICIAL_SAMM_DIR" not in os.environ:
        parser.error("set OFFICIAL_SAMM_DIR to a checkout of the official repository")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _prepare_official_imports()
    largest = 0.0
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        found = compare_alignment(case) if name.startswith("alignment") else compare_pass(case)
        largest = max(largest, *found.values())
        verdict = "ok" if max(found.values()) <= TOLERANCE else "DIFFERENT"
        print(f"{name:36} " + ", ".join(f"{what} {value:.1e}" for what, value in found.items()) + f"  {verdict}")
    print(f"largest difference {largest:.1e}, allowed {TOLERANCE:.0e}")
    return int(largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
