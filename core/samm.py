"""SAMM: aligns the generator's features with the photograph's and masks what the generator cannot draw.

Paper: Yang, Xu & Chen, "Out-of-domain GAN Inversion via Invertibility Decomposition for Photo-Realistic Human Face
Manipulation" (ICCV 2023). Reference implementation: AbnerVictor/OOD-GAN-inversion, `src/ops/SAMM/helpers.py` and
`src/archs/OOD_faceGAN_*_arch.py`: the same parameter names, flows, masks and features (docs/parity.md).

At four resolutions a small network compares the output of the up-convolution with features of a frozen encoder and
gives a flow and a mask, twice over (Algorithm 1); masks pass from coarse to fine. The merged mask (Algorithm 2) keeps
the photograph's pixels. All of it becomes modulations of an `Inversion`: one `FeatureWarp` per level, one `PixelBlend`.

Deviations: noise of these layers follows the render (theirs is always fresh); flows and masks stay those of the
unedited inversion unless `align` is given the edit (theirs are found anew under each edit); the encoder's picture is
resized with antialiasing, as e4e has it (theirs without); levels follow the encoder's and generator's own sizes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import RESNET34
from .blending import match_mask, merge_masks
from .editing import Edit
from .encoder_config import EncoderConfig
from .encoders import Encoder
from .errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from .generator import FeatureHook, Generator, Noise, SynthesisHooks
from .inversion import (
    FeatureWarp,
    Inversion,
    PixelBlend,
    RenderContext,
    combine_hooks,
    tuned_weights,
    warp_features,
)
from .ops import upfirdn2d
from .superpixels import check_labels, mean_per_segment

_LEVEL_KEY = re.compile(r"modulation\.(\d+)\.alignment\.body\.body\.0\.res_layer\.1\.weight")
_OFFICIAL_RESOLUTIONS = (32, 64, 128, 256)
_METHOD = "SAMM"
SEGMENTS = 150  # superpixels of a picture, where masks are decided by them
SEGMENT_THRESHOLD = 0.4  # mean of the mask from which a segment is kept; both by the IoU on occluded training people


@dataclass(frozen=True)
class SammConfig:
    """Sizes of a `Samm`, coarse level first; the defaults are the official ones for e4e and a 1024 px generator."""

    resolutions: tuple[int, ...] = _OFFICIAL_RESOLUTIONS  # of the generator's features that are aligned
    channels: tuple[int, ...] = (512, 512, 256, 128)  # of the generator there
    encoder_channels: tuple[int, ...] = (256, 128, 64, 64)  # of the encoder's maps
    warp_scale: float = 0.08  # largest shift, in units of half the picture's width
    conv_bias: bool = False  # True in the official FeatureStyle variant
    iterations: int = 2  # passes of Algorithm 1 the network was trained with
    domain: str | None = None

    def __post_init__(self) -> None:
        for name in ("resolutions", "channels", "encoder_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.resolutions) == len(self.channels) == len(self.encoder_channels) >= 1:
            raise InvalidInputError(
                f"SAMM configuration with {len(self.resolutions)} resolutions, {len(self.channels)} channels and "
                f"{len(self.encoder_channels)} encoder channels: expected one of each for each level."
            )
        if list(self.resolutions) != sorted(set(self.resolutions)) or self.resolutions[0] < 8:
            raise InvalidInputError(f"SAMM resolutions {self.resolutions}: expected growing numbers from 8 on.")
        if not 0 < self.warp_scale < 2 or self.iterations < 1:
            raise InvalidInputError(
                f"SAMM with warp_scale {self.warp_scale} and {self.iterations} iterations: expected 0..2 and 1 or more."
            )

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "samm"

    @staticmethod
    def for_networks(generator: Generator, encoder: Encoder, **changes: Any) -> SammConfig:
        """The configuration for a generator and an encoder.

        The levels are the sizes of the encoder's maps, as in the original: 32 to 256 for a 256 px IR-SE50, whatever the
        generator above draws; 16 to 128 for a 128 px one. Sizes that the generator does not have are left out.
        """
        widths = encoder.config.widths
        maps = dict(zip(_map_sizes(encoder.config), (encoder.config.stem, *widths[:-1]), strict=True))
        sizes = generator.config
        channels = dict(zip(sizes.resolutions, sizes.channels, strict=True))
        levels = sorted(resolution for resolution in maps if resolution in channels and resolution >= 8)
        return SammConfig(
            resolutions=tuple(levels),
            channels=tuple(channels[r] for r in levels),
            encoder_channels=tuple(maps[r] for r in levels),
            **{"domain": encoder.config.domain or None, **changes},
        )

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor], **known: Any) -> SammConfig:
        """Sizes from the shapes of `Samm`'s tensors.

        Args:
            tensors: official names, see `samm_keys`.
            known: fields that shapes do not show (resolutions, warp_scale, iterations, domain); None counts as absent.
                Without resolutions, four levels are taken for the official 32 to 256.

        Raises:
            UnsupportedModelError: no such network, or an incomplete one.
        """
        count = len({m[1] for name in tensors if (m := _LEVEL_KEY.fullmatch(name))})
        first = [f"modulation.{k}.alignment.body.body.0.res_layer.1.weight" for k in range(count)]
        needed = [*first, *(f"feats_conv.{k}.weight" for k in range(count))]
        absent = [name for name in needed if name not in tensors]
        if not count or absent:
            raise UnsupportedModelError(f"SAMM network without {(absent or ['modulation.0.alignment'])[0]}.")
        known = {name: value for name, value in known.items() if value is not None}
        resolutions = tuple(known.pop("resolutions", _OFFICIAL_RESOLUTIONS))
        if len(resolutions) != count:
            raise UnsupportedModelError(
                f"SAMM network of {count} levels, but resolutions {resolutions}: expected one for each level."
            )
        try:
            return SammConfig(
                resolutions=resolutions,
                channels=tuple(tensors[name].shape[0] // 2 for name in reversed(first)),
                encoder_channels=tuple(tensors[f"feats_conv.{k}.weight"].shape[1] for k in reversed(range(count))),
                conv_bias=first[0].removesuffix("weight") + "bias" in tensors,
                **known,
            )
        except InvalidInputError as error:
            raise UnsupportedModelError(f"Not a SAMM network: {error}") from error


def _map_sizes(config: EncoderConfig) -> list[int]:
    """Sides of `Encoder.features`; of the two equal ones of a ResNet34 the second counts."""
    stem = 1 if config.backbone == RESNET34 else 0
    return [config.input_size[1] >> max(halvings, stem) for halvings in range(len(config.widths))]


def samm_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors of an official checkpoint ("params" or "params_ema"), under their own names.

    Left out: the frozen generator's (`generator.*`), the filter (a constant here), and what the forward pass never
    reads (`modulation.K.weight`, `modulation.K.noiseInj.weight`, `delta_latent`).
    """
    pattern = re.compile(r"(?:module\.)?((?:modulation\.\d+\.alignment\.body|feats_conv\.\d+)\..+)")
    return {match[1]: value for name, value in tensors.items() if (match := pattern.fullmatch(name))}


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions between affine instance norms; the shortcut has a convolution where the channels change."""

    def __init__(self, in_channels: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=bias), nn.InstanceNorm2d(channels, affine=True)
            )
        self.res_layer = nn.Sequential(
            nn.InstanceNorm2d(in_channels, affine=True),
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, r, r] -> [B, channels, r, r]."""
        return self.res_layer(x) + self.shortcut_layer(x)


class AlignNet(nn.Module):
    """Generated and encoded features of one level -> flow and mask."""

    def __init__(self, channels: int, warp_scale: float, bias: bool = False) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.body = nn.Sequential(ResidualUnit(2 * channels, 2 * channels, bias), ResidualUnit(2 * channels, 3, bias))
        self.warp_scale = warp_scale
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, generated: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Two [B, C, r, r] -> flow [B, 2, r, r] in +-warp_scale (x, y) and mask [B, 1, r, r] in 0..1, both smoothed.

        The filter pads with zeros: values fade at the rim, and everything moves by half a pixel (as in the original).
        """
        generated, encoded = self.norm(generated), self.norm(encoded)
        x = self.body(torch.cat((generated - encoded, encoded), dim=1))  # [B, 3, r, r]
        x = torch.cat((torch.tanh(x[:, :2]) * self.warp_scale, torch.sigmoid(x[:, 2:])), dim=1)
        x = upfirdn2d(x, pad=(2, 1)).float()  # autocast must not halve flows and masks, which add up
        return x[:, :2], x[:, 2:]


class Alignment(nn.Module):
    """Algorithm 1 at one level."""

    def __init__(self, channels: int, warp_scale: float, bias: bool = False) -> None:
        super().__init__()
        self.body = AlignNet(channels, warp_scale, bias)

    def forward(
        self, generated: Tensor, encoded: Tensor, below: Tensor | None = None, iterations: int = 2
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Aligns the generated features with the encoded ones.

        Args:
            generated: [B, C, r, r], the up-convolution's output before noise, bias and activation.
            encoded: [B, C, r, r].
            below: mask of the next coarser level, [B, 1, r', r'].
            iterations: estimates, each made on what the one before it aligned.

        Returns:
            Aligned features [B, C, r, r], flow [B, 2, r, r], mask [B, 1, r, r].
        """
        scale = self.body.warp_scale
        flow, mask = self.body(generated, encoded)
        for _ in range(iterations - 1):
            more, gate = self.body(moved(generated, flow, mask), encoded)
            flow, mask = (flow + more).clamp(-scale, scale), gated(mask, gate)
        if below is not None:
            mask = gated(enlarged(below, mask), mask)
        return moved(generated, flow, mask), flow, mask


def moved(generated: Tensor, flow: Tensor, mask: Tensor) -> Tensor:
    """The features, warped by the flow where the mask says so.

    Algorithm 1 always warps the features as they were generated: the flows of its iterations add up, not the warps.
    """
    return torch.lerp(generated, warp_features(generated, flow), mask)


def gated(mask: Tensor, gate: Tensor) -> Tensor:
    """The paper's gate mask * (1 - mask + gate), clamped to 0..1: certain parts follow the gate, unsure ones fade."""
    return (mask * (1 - mask + gate)).clamp(0, 1)


def enlarged(mask: Tensor, like: Tensor) -> Tensor:
    """A coarser level's mask at the size of a finer one."""
    if mask.shape[2:] == like.shape[2:]:
        return mask
    return F.interpolate(mask, size=like.shape[2:], mode="bicubic", align_corners=True)


def merge_levels(masks: Mapping[int, Tensor], size: int) -> Tensor:
    """Algorithm 2: masks by resolution, [B, 1, r, r] each -> one mask [B, 1, size, size], 1 = keep the photograph."""
    merged = None
    for resolution in sorted(masks):
        level = F.interpolate(masks[resolution], size=(size, size), mode="bilinear", align_corners=False)
        merged = level if merged is None else merged * (1 - merged + level)
    if merged is None:
        raise InvalidInputError("No masks to merge: expected one for each level.")
    return merged.clamp(0, 1)


def alignment_penalties(masks: Sequence[Tensor], allowed: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
    """The paper's two losses on masks [B, 1, r, r], each summed over the masks: (area [B], binary [B]).

    area: what the mean of a mask exceeds its allowance (a number, or [B]) by; binary: mean distance from the nearer one of 0 and 1.
    """
    area = torch.stack([(m.mean(dim=(1, 2, 3)) - phi).clamp(min=0) for m, phi in zip(masks, allowed, strict=True)])
    binary = torch.stack([torch.minimum(m, 1 - m).mean(dim=(1, 2, 3)) for m in masks])
    return area.sum(dim=0), binary.sum(dim=0)


class _Level(nn.Module):
    """Exists for the official parameter names `modulation.K.alignment.*`."""

    def __init__(self, alignment: Alignment) -> None:
        super().__init__()
        self.alignment = alignment


class Samm(nn.Module):
    """The aligning networks of all levels and the 1x1 convolutions that bring encoder maps to the generator's widths.

    `feats_conv.K` and `modulation.K` count from the finest level, as the official names do.
    """

    def __init__(self, config: SammConfig = SammConfig()) -> None:
        super().__init__()
        self.config = config
        fine_first = list(zip(config.channels, config.encoder_channels, strict=True))[::-1]
        self.feats_conv = nn.ModuleList(nn.Conv2d(inputs, channels, 1) for channels, inputs in fine_first)
        self.modulation = nn.ModuleList(
            _Level(Alignment(channels, config.warp_scale, config.conv_bias)) for channels, _ in fine_first
        )

    def level(self, resolution: int) -> Alignment:
        """The aligning network of one resolution."""
        return cast(_Level, self.modulation[self._index(resolution)]).alignment

    def _index(self, resolution: int) -> int:
        return len(self.config.resolutions) - 1 - self.config.resolutions.index(resolution)

    def encoded(self, features: Sequence[Tensor], levels: int | None = None) -> dict[int, Tensor]:
        """Encoder maps (`Encoder.features`, finest first) -> [B, C, r, r] by resolution, for the coarsest `levels`.

        Raises:
            InvalidInputError: the encoder has other maps than this network was made for.
        """
        found: dict[int, Tensor] = {}
        by_size = {feature.shape[3]: feature for feature in features}
        for resolution, channels in list(zip(self.config.resolutions, self.config.encoder_channels, strict=True))[
            :levels
        ]:
            feature = by_size.get(resolution)
            if feature is None or feature.shape[1] != channels or feature.shape[2] != resolution:
                shapes = ", ".join(str(tuple(f.shape[1:])) for f in features)
                raise InvalidInputError(
                    f"SAMM compares encoder features [{channels}, {resolution}, {resolution}], the encoder gives "
                    f"{shapes}: use the encoder it was trained with."
                )
            found[resolution] = self.feats_conv[self._index(resolution)](feature)
        return found

    def hooks(
        self, encoded: Mapping[int, Tensor], iterations: int | None = None, *, detach: bool = False
    ) -> tuple[SynthesisHooks, Found]:
        """Hooks that align each level while the generator draws, and the place where they leave flows and masks.

        Args:
            encoded: what `encoded` gave; a level that is absent is neither aligned nor masked.
            iterations: of Algorithm 1; None is the configuration's number.
            detach: no gradient passes the generator, in training that looks at masks alone.
        """
        found, steps = Found(), iterations or self.config.iterations
        resolutions = sorted(encoded)

        def place(resolution: int, coarser: int | None) -> FeatureHook:
            def change(x: Tensor) -> Tensor:
                below = None if coarser is None else found.masks[coarser]
                target = encoded[resolution]
                if x.shape[1] != target.shape[1]:
                    raise GeneratorMismatchError(
                        f"SAMM aligns {target.shape[1]} channels at {resolution} px, this generator has {x.shape[1]}: "
                        "load the SAMM network that was trained for it."
                    )
                generated = x.detach() if detach else x
                aligned, flow, mask = self.level(resolution)(generated, target.to(x), below, steps)
                found.flows[resolution], found.masks[resolution] = flow, mask
                return aligned.detach() if detach else aligned

            return change

        levels = zip(resolutions, [None, *resolutions[:-1]], strict=True)
        return SynthesisHooks(after_upconv={r: place(r, coarser) for r, coarser in levels}), found

    def check_fit(self, generator: Generator, encoder: Encoder | None = None) -> None:
        """Checks sizes before anything is drawn.

        Raises:
            GeneratorMismatchError: this generator's features have other sizes.
            InvalidInputError: the encoder's maps have.
        """
        config, sizes = self.config, generator.config
        channels = dict(zip(sizes.resolutions, sizes.channels, strict=True))
        for resolution, wanted in zip(config.resolutions, config.channels, strict=True):
            if channels.get(resolution) != wanted:
                found = f"{channels[resolution]} there" if resolution in channels else f"only {sizes.resolutions} px"
                raise GeneratorMismatchError(
                    f"SAMM aligns {wanted} channels at {resolution} px, this generator has {found}: "
                    "load the SAMM network that was trained for it."
                )
        if encoder is None:
            return
        maps = SammConfig.for_networks(generator, encoder)
        widths = dict(zip(maps.resolutions, maps.encoder_channels, strict=True))
        needed = dict(zip(config.resolutions, config.encoder_channels, strict=True))
        if any(widths.get(resolution) != wanted for resolution, wanted in needed.items()):
            raise InvalidInputError(
                f"SAMM compares encoder maps of {_sizes(needed)}, this encoder gives {_sizes(widths)}: "
                "use the encoder it was trained with."
            )

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"{self.config.resolutions}, channels {self.config.channels}, warp_scale {self.config.warp_scale}"


def _sizes(channels: Mapping[int, int]) -> str:
    return ", ".join(f"{count} channels at {resolution} px" for resolution, count in channels.items())


@dataclass
class Found:
    """Filled while the generator draws: flows [B, 2, r, r] and masks [B, 1, r, r] by resolution."""

    flows: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Aligned:
    """What `align` found."""

    inversion: Inversion  # with the warps and the blend
    flows: dict[int, Tensor]  # by resolution: [B, 2, r, r], (x, y) in units of half the picture
    masks: dict[int, Tensor]  # by resolution: [B, 1, r, r]
    predicted: Tensor  # [B, 1, H, W]: Algorithm 2
    mask: Tensor  # [B, 1, H, W]: the one in the blend, with the user's mask and the threshold


def align(
    inversion: Inversion,
    encoder: Encoder,
    samm: Samm,
    *,
    edit: Edit | None = None,
    warp: bool = True,
    mask: Tensor | None = None,
    mask_mode: str = "union",
    mask_threshold: float = 0.0,
    segments: Tensor | None = None,
    iterations: int | None = None,
    encoder_iterations: int = 5,
    noise: str = "const",
) -> Aligned:
    """Aligns an inversion's features with its photograph and keeps the photograph where that fails.

    Args:
        inversion: any, also one with modulations; those of an earlier alignment are replaced.
        encoder: the frozen encoder that `samm` was trained with; it need not be the one that made the code.
        samm: the trained network.
        edit: finds flows and masks on the edited features, for renders with this very edit (the original's behaviour:
            masks follow the edit, but may also call it out of domain). None: the unedited inversion's serve all edits.
        warp: False leaves the flows out and only blends (the paper's ablation "skip spatial alignment").
        mask: the user's, [H, W], [B, H, W] or [B, 1, H, W] of any size in 0..1, 1 = keep the photograph.
        mask_mode: how it joins the predicted one, see `blending.merge_masks`.
        mask_threshold: predicted values below it become 0; faint masks leave ghosts in an edited picture.
        segments: integer labels [B or 1, R, R], see `superpixels`: each segment is kept as a whole, or not at all, by its
            mean. Not in the paper; it closes holes and sharpens edges.
        iterations: of Algorithm 1; None takes the network's own.
        encoder_iterations: passes of a ReStyle encoder.
        noise: "const" or "none", as the renders will have it.

    Raises:
        InvalidInputError: an encoder or a mask that does not fit, or another noise.
        GeneratorMismatchError: networks of another generator.
    """
    if noise not in ("const", "none"):
        raise InvalidInputError(f"align with noise {noise!r}: expected 'const' or 'none', which every render repeats.")
    # Outside inference mode, so that the modulations may take part in a later optimisation.
    with torch.inference_mode(False), torch.no_grad():
        plain = without_alignment(inversion)
        features = encoder.features(plain.image, plain.generator, encoder_iterations)
        found = _estimated(plain, edit, samm, samm.encoded(features), iterations, noise)
        return compose(plain, found.flows, found.masks, warp, mask, mask_mode, mask_threshold, segments)


def _estimated(
    inversion: Inversion, edit: Edit | None, samm: Samm, encoded: dict[int, Tensor], iterations: int | None, noise: str
) -> Found:
    size = len(inversion)
    if size > 1 and any(len(t) > 1 for m in inversion.modulations for t in m.weight_offsets().values()):
        parts = [
            _estimated(
                inversion[i],
                edit and edit.of_image(i, size),
                samm,
                {resolution: tensor[i : i + 1] for resolution, tensor in encoded.items()},
                iterations,
                noise,
            )
            for i in range(size)
        ]
        flows = {r: torch.cat([part.flows[r] for part in parts]) for r in parts[0].flows}
        return Found(flows, {r: torch.cat([part.masks[r] for part in parts]) for r in parts[0].masks})
    hooks, found = samm.hooks(encoded, iterations)
    draw(inversion, hooks, edit, noise)
    return found


def draw(inversion: Inversion, hooks: SynthesisHooks, edit: Edit | None = None, noise: Noise = "const") -> Tensor:
    """The synthesis of an inversion with its own modulations of weights and features, then `hooks`; nothing blended.

    Weight offsets are those of the first image.
    """
    context = RenderContext(inversion, edit, noise, torch.float32)
    all_hooks = [modulation.hooks(context) for modulation in inversion.modulations]
    w_plus = inversion.w_plus
    if edit is not None:
        w_plus = edit.apply(w_plus)
        styles = {name: _adds(offset.to(w_plus)) for name, offset in edit.style_offsets().items()}
        all_hooks.append(SynthesisHooks(style=styles))
    options = {"noise": noise, "hooks": combine_hooks([*all_hooks, hooks])}
    synthesis, weights = inversion.generator.synthesis, tuned_weights(inversion)
    return torch.func.functional_call(synthesis, weights, (w_plus,), options, strict=False)


def _adds(offset: Tensor) -> FeatureHook:
    return lambda style: style + offset


def compose(
    inversion: Inversion,
    flows: Mapping[int, Tensor],
    masks: Mapping[int, Tensor],
    warp: bool = True,
    mask: Tensor | None = None,
    mask_mode: str = "union",
    mask_threshold: float = 0.0,
    segments: Tensor | None = None,
) -> Aligned:
    """Adds flows and masks to an inversion; arguments as in `align` and `Aligned`."""
    size = inversion.generator.resolution
    predicted = merge_levels(masks, size)
    used = torch.where(predicted < mask_threshold, 0.0, predicted)
    if segments is not None:
        check_labels(segments, used)
        used = (mean_per_segment(used, segments.to(used.device)) >= SEGMENT_THRESHOLD).to(used)
    if mask is not None:
        mask = match_mask(mask.to(used), (size, size), len(inversion))
        used = merge_masks(used, mask, mask_mode)
    warps = [FeatureWarp(resolution, flows[resolution], masks[resolution]) for resolution in sorted(flows)]
    modulations = (*inversion.modulations, *(warps if warp else []), PixelBlend(used, _METHOD))
    return Aligned(
        dataclasses.replace(inversion, modulations=modulations, info={**inversion.info, "alignment": _METHOD}),
        dict(flows),
        dict(masks),
        predicted,
        used,
    )


def without_alignment(inversion: Inversion) -> Inversion:
    """The inversion without the warps and the blend of an earlier alignment."""
    kept = [
        modulation
        for modulation in inversion.modulations
        if not isinstance(modulation, FeatureWarp)
        and not (isinstance(modulation, PixelBlend) and modulation.made_by == _METHOD)
    ]
    return dataclasses.replace(inversion, modulations=tuple(kept))
