"""One explicit key-mapping function per foreign layout, from what a file holds to this package's canonical names.

Canonical names are NVIDIA's: those of a generator (`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, ...) are in
`core/generator.py`, those of a discriminator (`b8.conv0.weight`, ...) in `core/discriminator.py`. Sources of the foreign
names: rosinality/stylegan2-pytorch `model.py` and `convert_weight.py`, NVlabs/stylegan2-ada-pytorch
`training/networks.py`, NVlabs/stylegan3 `legacy.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UnsupportedModelError
from ..core.generator import MAPPING_LR_MUL
from ..core.ops import FIR
from ..core.samm import samm_keys
from .reading import PickledNetwork, RawFile

FORMAT = "gan-inversion"  # value of "format" in the metadata of our own safetensors files
SAMM_KEY = "modulation.0.alignment.body.body.0.res_layer.1.weight"


@dataclass(frozen=True)
class CanonicalState:
    """Tensors under canonical names, with what shapes cannot say."""

    tensors: dict[str, Tensor]
    layout: str  # "gan-inversion", "nvidia-torch", "nvidia-tensorflow", "rosinality", "encoder", "bisenet" or "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)  # conv_clamp, or an encoder checkpoint's options


def canonicalise(raw: RawFile, part: str | None = None) -> CanonicalState:
    """Strips wrappers and prefixes and renames; keys that fit no known layout are handed on as they are.

    Args:
        raw: what `read_weights` returned.
        part: "decoder" for the generator inside an encoder checkpoint, "discriminator" for the discriminator beside a
            generator; None for the file's main network.

    Raises:
        UnsupportedModelError: a variant of StyleGAN2 that is not built here, or a part the file does not have.
    """
    content = raw.content
    if raw.metadata.get("format") == FORMAT:
        state = CanonicalState(
            dict(content), FORMAT, {**_config(raw), "architecture": raw.metadata.get("architecture")}
        )
    elif part == "discriminator":
        state = _foreign_discriminator(content)
    elif isinstance(content, PickledNetwork):
        state = _from_network(content)
    elif not isinstance(content, Mapping):
        raise UnsupportedModelError(f"{raw.path} holds a {type(content).__name__}: expected a dictionary of tensors.")
    elif isinstance(content.get("G_ema"), PickledNetwork):
        state = _from_network(content["G_ema"])
    elif isinstance(content.get("g_ema"), Mapping):
        state = _from_flat(content["g_ema"], content.get("latent_avg"))
    elif isinstance(content.get("sd_base"), Mapping):
        state = sam_invertibility(content)
    elif isinstance(content.get("state_dict"), Mapping):
        state = _from_flat(content["state_dict"], content.get("latent_avg"), _plain_options(content.get("opts")))
    elif (samm := _samm(content)) is not None:
        state = samm
    else:
        state = _from_flat(content, content.get("latent_avg"))
    if part is None:
        return state
    if part == "discriminator" and is_discriminator(state.tensors):
        return state
    if part == "discriminator":
        raise UnsupportedModelError(
            "It holds no discriminator: expected 'D' in an NVIDIA .pkl, 'd' in a rosinality checkpoint (written by its "
            "train.py, or by convert_weight.py with --disc), or a discriminator converted by this package. Files made "
            "for inference often hold the generator only."
        )
    if part == "decoder" and state.layout == "encoder":
        return decoder_state(state)
    if part == "decoder":
        raise UnsupportedModelError(f"{raw.path} holds no decoder: expected an encoder checkpoint (e4e, pSp, ReStyle).")
    raise UnsupportedModelError(f"Unknown part {part!r}: expected 'decoder', 'discriminator' or None.")


def rosinality_generator(tensors: Mapping[str, Tensor], latent_avg: Tensor | None = None) -> dict[str, Tensor]:
    """rosinality/stylegan2-pytorch (and the decoders of e4e, pSp and ReStyle) -> canonical names and shapes.

    Args:
        tensors: the dictionary under "g_ema", or the "decoder." part with its prefix removed.
        latent_avg: [w_dim] or [rows, w_dim] with equal rows.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(".kernel"):
            _check_filter(key, tensor)
            continue
        name, shape = _rosinality_name(key, tensor)
        found[name] = tensor.reshape(shape)
    if latent_avg is not None:
        found["mapping.w_avg"] = latent_avg.reshape(-1, latent_avg.shape[-1])[0]
    return found


def _rosinality_name(key: str, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    shape = tuple(tensor.shape)
    if match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", key):  # style.0 is the normalisation of z
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}", shape
    if key == "input.input":
        return "synthesis.b4.const", shape[1:]
    if match := re.fullmatch(r"noises\.noise_(\d+)", key):
        index = int(match[1])
        layer = "b4.conv1" if index == 0 else f"b{2 ** ((index + 5) // 2)}.conv{(index + 1) % 2}"
        return f"synthesis.{layer}.noise_const", shape[2:]
    if match := re.fullmatch(r"(conv1|convs\.(\d+)|to_rgb1|to_rgbs\.(\d+))\.(.+)", key):
        place, conv, rgb, rest = match.groups()
        if place in ("conv1", "to_rgb1"):
            layer = "b4.conv1" if place == "conv1" else "b4.torgb"
        elif conv is not None:
            layer = f"b{2 ** (int(conv) // 2 + 3)}.conv{int(conv) % 2}"
        else:
            layer = f"b{2 ** (int(rgb) + 3)}.torgb"
        target = {
            "conv.weight": ("weight", shape[1:]),
            "conv.modulation.weight": ("affine.weight", shape),
            "conv.modulation.bias": ("affine.bias", shape),
            "noise.weight": ("noise_strength", ()),
            "activate.bias": ("bias", shape),
            "bias": ("bias", (tensor.numel(),)),
        }.get(rest)
        if target is not None:
            return f"synthesis.{layer}.{target[0]}", target[1]
    return key, shape


def nvidia_torch_generator(network: PickledNetwork) -> CanonicalState:
    """StyleGAN2-ADA-PyTorch and the StyleGAN2 of the StyleGAN3 repository.

    Both name their tensors canonically. What a layer ran with is read from the layer itself, because the two
    repositories nest the constructor arguments differently and have different defaults; the arguments are the fallback.

    Raises:
        UnsupportedModelError: class-conditional, "orig" or "resnet" ablations, other activations or filters.
    """
    attributes, kwargs = network.attributes, network.init_kwargs
    tensors = dict(network.tensors)
    if _is_stylegan3(tensors):
        return CanonicalState(tensors, "nvidia-torch", {"class_name": network.class_name})
    synthesis = {**kwargs, **kwargs.get("synthesis_kwargs", {})}  # nested by ADA, flat in the StyleGAN3 repository
    _refuse_conditional(attributes.get("c_dim", kwargs.get("c_dim", 0)))
    architecture = attributes.get("synthesis.b4.architecture", synthesis.get("architecture"))
    _refuse_variant("architecture", architecture, "skip")
    _refuse_variant("activation", attributes.get("synthesis.b4.conv1.activation", synthesis.get("activation")), "lrelu")
    _refuse_variant("mapping activation", attributes.get("mapping.fc0.activation"), "lrelu")
    for name in [name for name in tensors if name.endswith("resample_filter")]:
        _check_filter(name, tensors.pop(name))
    mapping_kwargs = kwargs.get("mapping_kwargs", {})
    lr_mul = attributes.get("mapping.fc0.bias_gain", mapping_kwargs.get("lr_multiplier", MAPPING_LR_MUL))
    _fold_learning_rate(tensors, float(lr_mul))
    _silence_missing_noise(tensors)
    clamp = attributes.get("synthesis.b4.conv1.conv_clamp", synthesis.get("conv_clamp"))
    return CanonicalState(tensors, "nvidia-torch", {"conv_clamp": clamp})


def nvidia_tensorflow_generator(network: PickledNetwork) -> CanonicalState:
    """TensorFlow StyleGAN2 and StyleGAN2-ADA: names, axis orders, the flip of up-convolutions and the style's "+1".

    Dense weights are stored [in, out], convolutions [height, width, in, out]; an up-convolution is stored as the
    filter of the gradient, i.e. turned by 180 degrees; style biases leave out the 1 that the network adds.

    Raises:
        UnsupportedModelError: StyleGAN1, class-conditional networks, "orig" or "resnet" ablations.
    """
    _refuse_old_tensorflow(network)
    kwargs, variables = network.init_kwargs, network.tensors
    _refuse_conditional(kwargs.get("label_size", 0))
    _refuse_variant("architecture", kwargs.get("architecture", "skip"), "skip")
    if any("ToRGB_lod" in name for name in variables):
        _refuse_variant("architecture", "orig", "skip")
    for option in ("nonlinearity", "mapping_nonlinearity"):
        _refuse_variant(option, kwargs.get(option, "lrelu"), "lrelu")
    _check_filter("resample_kernel", torch.tensor(kwargs.get("resample_kernel") or FIR))
    found: dict[str, Tensor] = {}
    for key, value in variables.items():
        if target := _tensorflow_name(key):
            found[target] = _from_tensorflow(key, value)
    _fold_learning_rate(found, float(kwargs.get("mapping_lrmul", MAPPING_LR_MUL)))
    _silence_missing_noise(found)
    return CanonicalState(found, "nvidia-tensorflow", {"conv_clamp": kwargs.get("conv_clamp")})


def _tensorflow_name(key: str) -> str | None:
    """Canonical name, or None for training variables ("lod" and the like)."""
    if key == "dlatent_avg":
        return "mapping.w_avg"
    if match := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", key):
        return f"mapping.fc{match[1]}.{match[2]}"
    if key == "synthesis/4x4/Const/const":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"synthesis/noise(\d+)", key):
        index = int(match[1])
        layer = "b4.conv1" if index == 0 else f"b{2 ** ((index + 5) // 2)}.conv{(index + 1) % 2}"
        return f"synthesis.{layer}.noise_const"
    if match := re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/(\w+)", key):
        layer = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}[match[2]]
        parts = {"mod_weight": "affine.weight", "mod_bias": "affine.bias"}
        return f"synthesis.b{match[1]}.{layer}.{parts.get(match[3], match[3])}"
    return None


def _from_tensorflow(key: str, value: Tensor) -> Tensor:
    if key.startswith("synthesis/noise"):
        return value[0, 0]
    if key.endswith("/const"):
        return value[0]
    if key.endswith("mod_bias"):
        return value + 1.0
    if key.endswith("weight") and value.ndim == 2:
        return value.t()
    if key.endswith("weight") and value.ndim == 4:
        return (value.flip(0, 1) if "_up/" in key else value).permute(3, 2, 0, 1)
    return value


def is_discriminator(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the canonical names of a discriminator."""
    return "b4.fc.weight" in tensors and "b4.out.weight" in tensors


def rosinality_discriminator(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """rosinality/stylegan2-pytorch, the dictionary under "d" -> canonical names; shapes are the same."""
    blocks = [int(match[1]) for key in tensors if (match := re.match(r"convs\.(\d{1,2})\.skip\.", key))]
    last = max(blocks, default=0)  # convs.<last> is the 8x8 block, convs.0 the RGB layer of the first one
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(".kernel"):
            _check_filter(key, tensor)
        else:
            found[_rosinality_discriminator_name(key, last)] = tensor
    return found


def _rosinality_discriminator_name(key: str, last: int) -> str:
    if match := re.fullmatch(r"convs\.0\.(?:0\.(weight)|1\.(bias))", key):
        return f"b{4 << last}.fromrgb.{match[1] or match[2]}"
    if match := re.fullmatch(r"convs\.(\d{1,2})\.(conv1\.0|conv1\.1|conv2\.1|conv2\.2|skip\.1)\.(weight|bias)", key):
        layer = {"conv1": "conv0", "conv2": "conv1", "skip": "skip"}[match[2].split(".")[0]]
        return f"b{4 << (last - int(match[1]) + 1)}.{layer}.{match[3]}"
    if match := re.fullmatch(r"final_conv\.(?:0\.(weight)|1\.(bias))", key):
        return f"b4.conv.{match[1] or match[2]}"
    if match := re.fullmatch(r"final_linear\.([01])\.(weight|bias)", key):
        return f"b4.{('fc', 'out')[int(match[1])]}.{match[2]}"
    return key


def nvidia_torch_discriminator(network: PickledNetwork) -> CanonicalState:
    """StyleGAN2-ADA-PyTorch and the StyleGAN3 repository, whose tensors have canonical names.

    Raises:
        UnsupportedModelError: class-conditional, "orig" or "skip" ablations, other activations or filters.
    """
    attributes, kwargs, tensors = network.attributes, network.init_kwargs, dict(network.tensors)
    _refuse_conditional(attributes.get("c_dim", kwargs.get("c_dim", 0)))
    _refuse_variant(
        "discriminator architecture", attributes.get("b4.architecture", kwargs.get("architecture")), "resnet"
    )
    _refuse_variant("activation", attributes.get("b4.conv.activation"), "lrelu")
    for name in [name for name in tensors if name.endswith("resample_filter")]:
        _check_filter(name, tensors.pop(name))
    epilogue = kwargs.get("epilogue_kwargs", {})
    group = attributes.get("b4.mbstd.group_size", epilogue.get("mbstd_group_size", 4))
    clamp = attributes.get("b4.conv.conv_clamp", kwargs.get("conv_clamp"))
    return CanonicalState(tensors, "nvidia-torch", {"conv_clamp": clamp, "mbstd_group_size": group})


def nvidia_tensorflow_discriminator(network: PickledNetwork) -> CanonicalState:
    """TensorFlow StyleGAN2 and StyleGAN2-ADA: names and axis orders; nothing is turned.

    The size of the minibatch groups is written only where it is not the default of the function that built the network:
    4 in StyleGAN2 (`D_stylegan2`), the whole batch in StyleGAN2-ADA. (NVIDIA's converter takes the whole batch for both.)

    Raises:
        UnsupportedModelError: StyleGAN1, class-conditional networks, "orig" or "skip" ablations.
    """
    _refuse_old_tensorflow(network)
    kwargs = network.init_kwargs
    _refuse_conditional(kwargs.get("label_size", 0))
    _refuse_variant("discriminator architecture", kwargs.get("architecture", "resnet"), "resnet")
    if any("FromRGB_lod" in name for name in network.tensors):
        _refuse_variant("discriminator architecture", "orig", "resnet")
    _refuse_variant("nonlinearity", kwargs.get("nonlinearity", "lrelu"), "lrelu")
    _check_filter("resample_kernel", torch.tensor(kwargs.get("resample_kernel") or FIR))
    found: dict[str, Tensor] = {}
    for key, value in network.tensors.items():
        if target := _tensorflow_discriminator_name(key):
            found[target] = _from_tensorflow(key, value)
    group = kwargs.get("mbstd_group_size", 4 if network.class_name == "D_stylegan2" else None)
    return CanonicalState(
        found, "nvidia-tensorflow", {"conv_clamp": kwargs.get("conv_clamp"), "mbstd_group_size": group or None}
    )


def _tensorflow_discriminator_name(key: str) -> str | None:
    """Canonical name, or None for training variables."""
    if match := re.fullmatch(r"Output/(weight|bias)", key):
        return f"b4.out.{match[1]}"
    if match := re.fullmatch(r"(\d+)x\1/(FromRGB|Conv0|Conv1_down|Skip|Conv|Dense0)/(weight|bias)", key):
        layers = {"FromRGB": "fromrgb", "Conv1_down": "conv1", "Dense0": "fc"}
        return f"b{match[1]}.{layers.get(match[2], match[2].lower())}.{match[3]}"
    return None


def sam_invertibility(content: Mapping[str, Any]) -> CanonicalState:
    """adobe-research/sam_inversion: "sd_base" and one dictionary per latent space -> "base.*" and "heads.<space>.*"."""
    parts = {"base" if name == "sd_base" else f"heads.{name}": part for name, part in content.items()}
    tensors = {
        f"{prefix}.{str(key).removeprefix('module.')}": value
        for prefix, part in parts.items()
        if isinstance(part, Mapping)
        for key, value in part.items()
        if isinstance(value, Tensor)
    }
    return CanonicalState(tensors, "sam-invertibility")


def _from_network(network: PickledNetwork) -> CanonicalState:
    if network.is_tensorflow:
        judges = "Output/weight" in network.tensors
        return nvidia_tensorflow_discriminator(network) if judges else nvidia_tensorflow_generator(network)
    if is_discriminator(network.tensors):
        return nvidia_torch_discriminator(network)
    return nvidia_torch_generator(network)


def _from_flat(
    content: Mapping[str, Any], latent_avg: Tensor | None = None, options: Mapping[str, Any] | None = None
) -> CanonicalState:
    """A plain state dict: canonical, rosinality or encoder names, with or without a wrapper's prefix."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor) and key != "latent_avg"}
    if any(key.startswith("encoder.") for key in tensors):
        if latent_avg is not None:
            tensors["latent_avg"] = latent_avg
        return CanonicalState(tensors, "encoder", options or {})
    for prefix in ("", "module.", "decoder.", "generator.", "g_ema.", "G_ema."):
        inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if "synthesis.b4.const" in inner or _is_stylegan3(inner):
            for name in [name for name in inner if name.endswith("resample_filter")]:
                _check_filter(name, inner.pop(name))
            return CanonicalState(inner, "nvidia-torch", {"class_name": "Generator"})
        if "input.input" in inner and "conv1.conv.modulation.weight" in inner:
            return CanonicalState(rosinality_generator(inner, latent_avg), "rosinality")
        if "cp.resnet.conv1.weight" in inner:
            return CanonicalState(inner, "bisenet")
    if (discriminator := _discriminator_from_flat(tensors)) is not None:
        return discriminator
    if latent_avg is not None:
        tensors["latent_avg"] = latent_avg
    return CanonicalState(tensors, "unknown", options or {})


def _foreign_discriminator(content: Any) -> CanonicalState:
    """ "D" of an NVIDIA pickle, "d" of a rosinality checkpoint, or what the whole file holds; empty where there is none."""
    nothing = CanonicalState({}, "unknown")
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("D", "d", "state_dict") if key in content), content)
    if isinstance(content, PickledNetwork):
        return _from_network(content)
    if not isinstance(content, Mapping):
        return nothing
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return _discriminator_from_flat(tensors) or nothing


def _discriminator_from_flat(tensors: Mapping[str, Tensor]) -> CanonicalState | None:
    for prefix in ("", "module.", "discriminator.", "d.", "D."):
        inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if is_discriminator(inner):
            for name in [name for name in inner if name.endswith("resample_filter")]:
                _check_filter(name, inner.pop(name))
            return CanonicalState(inner, "nvidia-torch")
        if "final_conv.0.weight" in inner and "final_linear.1.weight" in inner:
            return CanonicalState(rosinality_discriminator(inner), "rosinality")
    return None


def _samm(content: Mapping[str, Any]) -> CanonicalState | None:
    """AbnerVictor/OOD-GAN-inversion: averaged weights before the last ones; filters are checked, other parts left out.

    The file also holds the frozen generator's style layers (its names contain "modulation" too), so that this layout is
    looked for before a generator's.
    """
    inner = next((content[key] for key in ("params_ema", "params") if isinstance(content.get(key), Mapping)), content)
    tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    found = samm_keys(tensors)
    if SAMM_KEY not in found:
        return None
    for name, tensor in tensors.items():
        if name.endswith("alignment.blur.kernel"):
            _check_filter(name, tensor)
    return CanonicalState(found, "ood-gan-inversion")


def decoder_state(checkpoint: CanonicalState) -> CanonicalState:
    """The generator stored inside an encoder checkpoint."""
    inner = {k.removeprefix("decoder."): v for k, v in checkpoint.tensors.items() if k.startswith("decoder.")}
    if not inner:
        raise UnsupportedModelError("This encoder checkpoint holds no decoder: load its generator from its own file.")
    return CanonicalState(rosinality_generator(inner, checkpoint.tensors.get("latent_avg")), "rosinality")


def _is_stylegan3(tensors: Mapping[str, Any]) -> bool:
    return any(name.startswith("synthesis.input.") for name in tensors)


def _refuse_old_tensorflow(network: PickledNetwork) -> None:
    if network.version < 4:
        raise UnsupportedModelError(
            f"TensorFlow network of container version {network.version}, a StyleGAN1 or older: "
            "expected StyleGAN2 (version 4)."
        )


def _refuse_conditional(classes: Any) -> None:
    if classes:
        raise UnsupportedModelError(
            f"Class-conditional StyleGAN2 with {classes} labels: only unconditional networks are supported."
        )


def _refuse_variant(option: str, value: Any, expected: str) -> None:
    if value not in (expected, None):
        raise UnsupportedModelError(f"StyleGAN2 with {option} {value!r}: only {expected!r} networks are supported.")


def _check_filter(name: str, stored: Tensor) -> None:
    """Filters are constants here; a network trained with another one would give wrong images."""
    taps = torch.tensor(FIR)
    expected = taps if stored.ndim == 1 else torch.outer(taps, taps)
    stored, expected = stored.float() / stored.float().sum(), expected / expected.sum()
    if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-4):
        raise UnsupportedModelError(f"{name} is not the [1, 3, 3, 1] filter: only that filter is supported.")


def _fold_learning_rate(tensors: dict[str, Tensor], lr_mul: float) -> None:
    """Our mapping network always multiplies by 0.01, so another multiplier moves into the weights."""
    if math.isclose(lr_mul, MAPPING_LR_MUL, rel_tol=1e-6):
        return
    for name in [name for name in tensors if re.fullmatch(r"mapping\.fc\d+\.(weight|bias)", name)]:
        tensors[name] = tensors[name] * (lr_mul / MAPPING_LR_MUL)


def _silence_missing_noise(tensors: dict[str, Tensor]) -> None:
    """Networks built without noise inputs are networks whose noise has strength zero."""
    for name in [name for name in tensors if re.fullmatch(r"synthesis\.b\d+\.conv\d\.weight", name)]:
        layer = name.removesuffix("weight")
        if layer + "noise_strength" not in tensors:
            side = int(name.split(".")[1][1:])
            tensors[layer + "noise_strength"] = torch.zeros([])
            tensors[layer + "noise_const"] = torch.zeros(side, side)


def _config(raw: RawFile) -> dict[str, Any]:
    config = json.loads(raw.metadata.get("config", "{}"))
    return config if isinstance(config, dict) else {}


def _plain_options(options: Any) -> dict[str, Any]:
    return dict(options) if isinstance(options, Mapping) else {}
