"""Writes weight files the way other people's code does, from a generator or discriminator of ours."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gan_inversion.core.discriminator import Discriminator, DiscriminatorConfig
from gan_inversion.core.generator import Generator, GeneratorConfig

from ..parity.generator_parity import borrowed_class

CONFIG = GeneratorConfig(resolution=16, channels=(16, 12, 8), z_dim=12, w_dim=10, mapping_layers=2)
DISCRIMINATOR = DiscriminatorConfig(resolution=16, channels=(16, 12, 8))


def random_generator(config: GeneratorConfig = CONFIG, seed: int = 0) -> Generator:
    """Every number random, noise strengths and averages too."""
    module = Generator(config).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(module.state_dict().items()):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
        if "mapping.fc" in name:
            tensor.mul_(100.0 if name.endswith("weight") else 30.0)
    return module


def rosinality_tensors(generator: Generator) -> dict[str, torch.Tensor]:
    """State dict with the keys and shapes of rosinality's Generator, without noise maps."""
    kernel = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 16
    state = {"input.input": generator.synthesis.b4.const[None]}
    for index in range(generator.config.mapping_layers):
        layer = getattr(generator.mapping, f"fc{index}")
        state |= {f"style.{index + 1}.weight": layer.weight, f"style.{index + 1}.bias": layer.bias}
    convs = torgbs = 0
    for block in generator.synthesis.blocks():
        for name, layer in block.layers():
            if name == "torgb":
                place = "to_rgb1" if block.resolution == 4 else f"to_rgbs.{torgbs - 1}"
                state |= {f"{place}.bias": layer.bias.view(1, 3, 1, 1)}
                if torgbs:
                    state[f"{place}.upsample.kernel"] = kernel
                torgbs += 1
            else:
                place = "conv1" if block.resolution == 4 else f"convs.{convs - 1}"
                state |= {f"{place}.noise.weight": layer.noise_strength.view(1), f"{place}.activate.bias": layer.bias}
                if name == "conv0":
                    state[f"{place}.conv.blur.kernel"] = kernel
                convs += 1
            state[f"{place}.conv.weight"] = layer.weight[None]
            state[f"{place}.conv.modulation.weight"] = layer.affine.weight
            state[f"{place}.conv.modulation.bias"] = layer.affine.bias
    return state


def noise_tensors(generator: Generator) -> dict[str, torch.Tensor]:
    """The noise maps under rosinality's names."""
    return {f"noises.noise_{index}": noise for index, noise in enumerate(generator.synthesis.stored_noise())}


def random_discriminator(config: DiscriminatorConfig = DISCRIMINATOR, seed: int = 0) -> Discriminator:
    """Every number random, biases too."""
    module = Discriminator(config).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(module.state_dict().items()):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    return module


def rosinality_discriminator_tensors(discriminator: Discriminator) -> dict[str, torch.Tensor]:
    """State dict with the keys of rosinality's Discriminator."""
    kernel = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    first, last = discriminator.blocks()[0].fromrgb, discriminator.b4
    state = {"convs.0.0.weight": first.weight, "convs.0.1.bias": first.bias}
    for index, block in enumerate(discriminator.blocks(), start=1):
        place = f"convs.{index}"
        state |= {f"{place}.conv1.0.weight": block.conv0.weight, f"{place}.conv1.1.bias": block.conv0.bias}
        state |= {f"{place}.conv2.0.kernel": kernel, f"{place}.skip.0.kernel": kernel}
        state |= {f"{place}.conv2.1.weight": block.conv1.weight, f"{place}.conv2.2.bias": block.conv1.bias}
        state[f"{place}.skip.1.weight"] = block.skip.weight
    state |= {"final_conv.0.weight": last.conv.weight, "final_conv.1.bias": last.conv.bias}
    state |= {"final_linear.0.weight": last.fc.weight, "final_linear.0.bias": last.fc.bias}
    return state | {"final_linear.1.weight": last.out.weight, "final_linear.1.bias": last.out.bias}


def nvidia_pickle(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    attributes: Mapping[str, Any] | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    class_name: str = "Generator",
    module_src: str = "raise RuntimeError('source was executed')",
    discriminator: tuple[Mapping[str, torch.Tensor], Mapping[str, Any]] | None = None,
) -> Path:
    """The container of StyleGAN2-ADA-PyTorch and StyleGAN3: nested module dictionaries behind a reconstruct call.

    attributes: dotted name -> plain attribute, such as "synthesis.b4.conv1.conv_clamp".
    discriminator: (tensors, attributes) of "D"; without it, "D" is there but has no discriminator's tensors.
    """
    with (
        borrowed_class("torch_utils.persistence._reconstruct_persistent_obj") as reconstruct,
        borrowed_class("dnnlib.util.EasyDict") as easy_dict_base,
    ):
        easy_dict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
        import sys

        sys.modules["dnnlib.util"].EasyDict = easy_dict
        assert easy_dict_base is not easy_dict

        class Module:
            def __init__(self, name: str, state: dict) -> None:
                self.meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": module_src,
                    "class_name": name,
                    "state": state,
                }

            def __reduce__(self) -> tuple[Callable, tuple]:
                return reconstruct, (self.meta,)

        def build(
            prefix: str, name: str, tensors: Mapping = tensors, attributes: Mapping | None = attributes
        ) -> Module:
            state: dict[str, Any] = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict()}
            state["_modules"] = OrderedDict()
            names = [*tensors, *(attributes or {})]
            children = {
                n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix) and "." in n[len(prefix) :]
            }
            for child in sorted(children):
                state["_modules"][child] = build(f"{prefix}{child}.", "Layer", tensors, attributes)
            for key, tensor in tensors.items():
                if key.startswith(prefix) and "." not in key[len(prefix) :]:
                    buffer = key.endswith(("noise_const", "w_avg", "resample_filter"))
                    state["_buffers" if buffer else "_parameters"][key[len(prefix) :]] = (
                        tensor if buffer else torch.nn.Parameter(tensor)
                    )
            for key, value in (attributes or {}).items():
                if key.startswith(prefix) and "." not in key[len(prefix) :]:
                    state[key[len(prefix) :]] = value
            if not prefix:
                state["_init_kwargs"] = easy_dict(init_kwargs or {})
            return Module(name, state)

        network = build("", class_name)
        judge = build("", "Discriminator", *discriminator) if discriminator else build("mapping.", "Discriminator")
        data = {"G": network, "D": judge, "G_ema": network, "augment_pipe": None}
        path.write_bytes(pickle.dumps({**data, "training_set_kwargs": easy_dict(max_size=torch.tensor(3).numpy()[()])}))
    return path
