"""What can be loaded: each architecture says which keys identify it and builds itself from shapes alone.

To add one: write `matches` (looks at canonical names only), `build` (reads sizes from shapes, raises
UnsupportedModelError with what is wrong), and put an `Architecture` into `ARCHITECTURES`, special cases first.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.discriminator import Discriminator, DiscriminatorConfig
from ..core.encoders import ARCHITECTURES as ENCODER_ARCHITECTURES
from ..core.encoders import Encoder, EncoderConfig, build_encoder, detect_architecture
from ..core.errors import InvalidInputError, UnsupportedModelError
from ..core.generator import Generator, GeneratorConfig
from ..core.identity import IdentityConfig, IdentityNet
from ..core.invertibility import InvertibilityConfig, InvertibilityNet
from ..core.multilayer_encoder import MultilayerEncoder, MultilayerEncoderConfig
from ..core.parsing import FaceParser, FaceParserConfig
from ..core.perceptual import PerceptualTrunk, PerceptualTrunkConfig
from ..core.reganie import Reganie, ReganieConfig
from ..core.samm import Samm, SammConfig
from ..core.skeleton import skeleton
from .layouts import FORMAT, SAMM_KEY, CanonicalState, decoder_state, is_discriminator

logger = logging.getLogger(__name__)

_NOISE_SEED = 0  # for files that carry no noise maps: any fixed maps will do, but always the same ones
_SHOWN_KEYS = 6


@dataclass(frozen=True)
class Architecture:
    """One kind of network."""

    name: str  # the value of `LoadedModel.architecture`
    description: str  # for the message that lists what is known
    matches: Callable[[CanonicalState], bool]
    build: Callable[[CanonicalState], nn.Module]


def detect(state: CanonicalState) -> Architecture:
    """The first architecture whose keys are there.

    Raises:
        UnsupportedModelError: none fits; the message lists keys that were found and what is known.
    """
    for architecture in ARCHITECTURES:
        if architecture.matches(state):
            return architecture
    names = list(state.tensors)
    shown = ", ".join(f"{name} {tuple(state.tensors[name].shape)}" for name in names[:_SHOWN_KEYS]) or "(none)"
    known = ", ".join(a.description for a in ARCHITECTURES if a.build is not _refuse_stylegan3)
    raise UnsupportedModelError(f"No known architecture has these {len(names)} keys: {shown}, ... Known: {known}.")


def generator_config(tensors: Mapping[str, Tensor], conv_clamp: float | None = None) -> GeneratorConfig:
    """Sizes of a StyleGAN2 generator from the shapes of its canonical tensors.

    Raises:
        UnsupportedModelError: keys or shapes that no "skip" StyleGAN2 generator has.
    """
    resolutions = sorted({int(m[1]) for name in tensors if (m := re.match(r"synthesis\.b(\d+)\.", name))})
    layers = sorted({int(m[1]) for name in tensors if (m := re.match(r"mapping\.fc(\d+)\.", name))})
    needed = ["mapping.fc0.weight", "synthesis.b4.conv1.affine.weight"]
    needed += [f"synthesis.b{r}.conv1.weight" for r in resolutions]
    absent = [name for name in needed if name not in tensors]
    if absent:
        raise UnsupportedModelError(f"StyleGAN2 generator without {_some(absent)}: the file is incomplete.")
    if any(name.startswith("mapping.embed.") for name in tensors):
        raise UnsupportedModelError("Class-conditional StyleGAN2: only unconditional generators are supported.")
    colours = tensors.get("synthesis.b4.torgb.weight")
    if colours is not None and colours.shape[0] != 3:
        raise UnsupportedModelError(f"StyleGAN2 generator with {colours.shape[0]} image channels: expected 3 (RGB).")
    try:
        return GeneratorConfig(
            resolution=resolutions[-1],
            channels=tuple(tensors[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions),
            z_dim=tensors["mapping.fc0.weight"].shape[1],
            w_dim=tensors["synthesis.b4.conv1.affine.weight"].shape[1],
            mapping_layers=len(layers),
            conv_clamp=None if conv_clamp is None else float(conv_clamp),
        )
    except InvalidInputError as error:
        raise UnsupportedModelError(f"Not a StyleGAN2 generator: {error}") from error


def build_generator(state: CanonicalState) -> Generator:
    """A generator that uses the given tensors themselves: no second copy of the weights is made."""
    config = generator_config(state.tensors, state.options.get("conv_clamp"))
    with skeleton():
        module = Generator(config)
    tensors = dict(state.tensors)
    noises = [name for name in module.state_dict() if name.endswith(".noise_const") and name not in tensors]
    if noises:
        logger.warning("The file has no noise maps for %d layers: seeded ones are used.", len(noises))
        seeded = torch.Generator().manual_seed(_NOISE_SEED)
        for name in noises:
            side = int(name.split(".")[1][1:])
            tensors[name] = torch.randn(side, side, generator=seeded)
    average_missing = "mapping.w_avg" not in tensors
    if average_missing:
        tensors["mapping.w_avg"] = torch.zeros(config.w_dim)
    assign(module, tensors)
    if average_missing:
        logger.warning("The file has no average latent: it is computed from seeded samples of the mapping network.")
        module.mapping.w_avg.copy_(module.estimate_w_avg())
    return module


def build_discriminator(state: CanonicalState) -> Discriminator:
    """A discriminator that uses the given tensors themselves.

    Raises:
        UnsupportedModelError: keys or shapes that no "resnet" StyleGAN2 discriminator has.
    """
    tensors, clamp = state.tensors, state.options.get("conv_clamp")
    if any(name.startswith("mapping.") for name in tensors):
        raise UnsupportedModelError("Class-conditional StyleGAN2: only unconditional discriminators are supported.")
    resolutions = sorted({int(m[1]) for name in tensors if (m := re.match(r"b(\d+)\.conv0\.", name))})
    top = f"b{resolutions[-1] if resolutions else 8}"
    needed = [
        "b4.conv.weight",
        f"{top}.fromrgb.weight",
        *(f"b{r}.{n}.weight" for r in resolutions for n in ("conv0", "skip")),
    ]
    absent = [name for name in needed if name not in tensors]
    if absent:
        raise UnsupportedModelError(
            f"StyleGAN2 discriminator without {_some(absent)}: the file is incomplete, or no 'resnet' network."
        )
    colours = tensors[f"{top}.fromrgb.weight"].shape[1]
    if colours != 3:
        raise UnsupportedModelError(f"StyleGAN2 discriminator of {colours}-channel images: expected 3 (RGB).")
    narrowest = tensors["b4.fc.weight"].shape[0]
    try:
        config = DiscriminatorConfig(
            resolution=resolutions[-1],
            channels=(narrowest, *(tensors[f"b{r}.conv0.weight"].shape[0] for r in resolutions)),
            mbstd_group_size=state.options.get("mbstd_group_size", 4),
            mbstd_channels=tensors["b4.conv.weight"].shape[1] - narrowest,
            conv_clamp=None if clamp is None else float(clamp),
        )
    except InvalidInputError as error:
        raise UnsupportedModelError(f"Not a StyleGAN2 discriminator: {error}") from error
    with skeleton():
        module = Discriminator(config)
    assign(module, tensors)
    return module


@torch.no_grad()
def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives `module` (built on the meta device) the tensors, as float32, and demands that every key and shape fits.

    Raises:
        UnsupportedModelError: missing or surplus keys, or other shapes.
    """
    expected = module.state_dict()
    absent = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    for what, names in (("lacks", absent), ("has unknown", surplus), ("has shapes that do not fit:", wrong)):
        if names:
            raise UnsupportedModelError(f"{type(module).__name__}: the file {what} {_some(names)}.")
    module.load_state_dict({name: _float32(tensors[name]) for name in expected}, assign=True)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous() if tensor.is_floating_point() else tensor


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN_KEYS
    return ", ".join(names[:_SHOWN_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _refuse_stylegan3(state: CanonicalState) -> nn.Module:
    raise UnsupportedModelError(
        "This is a StyleGAN3 (alias-free) generator. Only StyleGAN2 generators are supported; "
        "the StyleGAN3 repository publishes StyleGAN2 versions of the same data sets."
    )


def encoder_name(state: CanonicalState) -> str | None:
    """ "e4e", "psp", "restyle-e4e", "restyle-psp", or None for no encoder.

    e4e and pSp have the same keys. The file's own `encoder_type` decides, then the caller's or header's "architecture".
    """
    if not any(name.endswith(("input_layer.0.weight", "body.0.conv2.weight")) for name in state.tensors):
        return None
    named = state.options.get("encoder_type")
    found = detect_architecture(state.tensors, named) or detect_architecture(state.tensors)
    hint = str(state.options.get("architecture"))
    if found is None or named is not None or hint not in ENCODER_ARCHITECTURES:
        return found
    return hint if hint.startswith("restyle") == found.startswith("restyle") else found


def build_inversion_encoder(state: CanonicalState) -> Encoder:
    """An encoder with its average code; the tensors are shared where they are float32."""
    options = state.options
    own = state.layout == FORMAT
    num_ws, size = options.get("num_ws") if own else None, options.get("stylegan_size") or options.get("output_size")
    if num_ws is None and size and not any(".styles." in f".{name}" for name in state.tensors):
        num_ws = 2 * int(math.log2(int(size))) - 2  # the official option; where there are styles they are counted
    from_average = options.get("start_from_latent_avg")
    config = EncoderConfig.from_state_dict(
        state.tensors,
        architecture=encoder_name(state),
        encoder_type=options.get("encoder_type"),
        dataset_type=options.get("domain") if own else options.get("dataset_type"),
        num_ws=num_ws,
        input_size=tuple(options["input_size"]) if own and options.get("input_size") else None,
        start_from_latent_avg=True if from_average is None else bool(from_average),
    )
    latent_avg = state.tensors.get("latent_avg")
    if latent_avg is None and any(name.startswith("decoder.") for name in state.tensors):
        latent_avg = build_generator(decoder_state(state)).w_avg
    return build_encoder(config, state.tensors, latent_avg)


def build_identity(state: CanonicalState) -> IdentityNet:
    """An identity embedding that uses the given tensors themselves."""
    config = IdentityConfig.from_state_dict(state.tensors, state.options.get("domain"))
    with skeleton():
        module = IdentityNet(config)
    assign(module, state.tensors)
    return module


def build_perceptual(state: CanonicalState) -> PerceptualTrunk:
    """A perceptual trunk that uses the given tensors themselves."""
    config = PerceptualTrunkConfig.from_state_dict(state.tensors, state.options.get("domain"))
    with skeleton():
        module = PerceptualTrunk(config)
    assign(module, state.tensors)
    return module


def build_face_parser(state: CanonicalState) -> FaceParser:
    """A face parser that uses the given tensors themselves."""
    tensors = dict(state.tensors)
    config = FaceParserConfig.from_state_dict(tensors, state.options.get("classes"), state.options.get("size"))
    with skeleton():
        module = FaceParser(config)
    for name in module.state_dict():
        if name.endswith(".num_batches_tracked"):  # no number of the network: torch before 0.4.1 did not write it
            tensors.setdefault(name, torch.zeros((), dtype=torch.long))
    assign(module, tensors)
    return module


def build_invertibility(state: CanonicalState) -> InvertibilityNet:
    """An invertibility predictor that uses the given tensors themselves."""
    known = {name: state.options.get(name) for name in ("domain", "threshold")}
    config = InvertibilityConfig.from_state_dict(state.tensors, **known)
    with skeleton():
        module = InvertibilityNet(config)
    assign(module, state.tensors)
    return module


def build_samm(state: CanonicalState) -> Samm:
    """A SAMM network that uses the given tensors themselves; an official file has the official scale and levels."""
    known = ("resolutions", "warp_scale", "iterations", "domain")
    config = SammConfig.from_state_dict(state.tensors, **{name: state.options.get(name) for name in known})
    with skeleton():
        module = Samm(config)
    assign(module, state.tensors)
    return module


def build_multilayer_encoder(state: CanonicalState) -> MultilayerEncoder:
    """A multilayer encoder that uses the given tensors themselves."""
    config = MultilayerEncoderConfig.from_state_dict(state.tensors, state.options.get("domain"))
    with skeleton():
        module = MultilayerEncoder(config)
    assign(module, state.tensors)
    return module


def build_reganie(state: CanonicalState) -> Reganie:
    """A rectifying network that uses the given tensors themselves."""
    known = ("resolution", "code_scale", "residual", "global_first", "domain")
    config = ReganieConfig.from_state_dict(state.tensors, **{name: state.options.get(name) for name in known})
    with skeleton():
        module = Reganie(config)
    assign(module, state.tensors)
    return module


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "stylegan3",
        "StyleGAN3",
        lambda state: any(name.startswith("synthesis.input.") for name in state.tensors),
        _refuse_stylegan3,
    ),
    Architecture(
        "stylegan2",
        "StyleGAN2 generators (rosinality .pt, NVIDIA .pkl, safetensors)",
        lambda state: "synthesis.b4.const" in state.tensors,
        build_generator,
    ),
    Architecture(
        "stylegan2-discriminator",
        "StyleGAN2 discriminators (rosinality .pt, NVIDIA .pkl, safetensors)",
        lambda state: is_discriminator(state.tensors),
        build_discriminator,
    ),
    Architecture(
        "identity",
        "identity embeddings",
        lambda state: {"stem.0.weight", "positions.weight", "head.weight"} <= state.tensors.keys(),
        build_identity,
    ),
    Architecture(
        "perceptual",
        "perceptual trunks",
        lambda state: {"convs.0.weight", "scales.0"} <= state.tensors.keys(),
        build_perceptual,
    ),
    Architecture(
        "bisenet",
        "BiSeNet face parsers",
        lambda state: {"cp.resnet.conv1.weight", "ffm.convblk.conv.weight"} <= state.tensors.keys(),
        build_face_parser,
    ),
    Architecture(
        "sam-invertibility",
        "SAM invertibility predictors",
        lambda state: "base.aspp.aspp1.atrous_conv.weight" in state.tensors,
        build_invertibility,
    ),
    Architecture(
        "sam-encoder",
        "SAM multilayer encoders",
        lambda state: any(re.fullmatch(r"networks\.F\d+\.last\.weight", name) for name in state.tensors),
        build_multilayer_encoder,
    ),
    Architecture(
        "samm",
        "SAMM networks (official .pth, safetensors)",
        lambda state: {"feats_conv.0.weight", SAMM_KEY} <= state.tensors.keys(),
        build_samm,
    ),
    Architecture(
        "reganie",
        "ReGANIE rectifying networks",
        lambda state: {"primary.fromrgb.weight", "torgb_affine.weight"} <= state.tensors.keys(),
        build_reganie,
    ),
    *(
        Architecture(
            name,
            f"{name} encoders",
            lambda state, name=name: encoder_name(state) == name,  # type: ignore[misc]
            build_inversion_encoder,
        )
        for name in ENCODER_ARCHITECTURES
    ),
)
