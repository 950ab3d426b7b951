"""SAM's encoder variant: the feature offsets of a multilayer inversion in one forward pass for each latent space.

Paper: Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (SAM, CVPR 2022), "encoder-
based inversion": one encoder for each latent space, which sees the photograph and the region that its space has to draw.
No code, weights or sizes of it were published; the idea is theirs, everything else here is ours:

- W+ is the code of any encoder (e4e); the networks here give the offsets to the features (F4, F6, ...) alone.
- Each also sees the picture that this code draws and the features to be changed, so that it learns the difference.
- Residual units without normalisation, whose means would hide uniform differences; the last convolution starts at zero,
  so that an untrained network leaves the inversion as it is.
- Regions are inputs, not learned: any latent map serves (predicted, measured or painted), and regions of different
  spaces do not overlap, so the networks are independent of one another and one pass of all gives the inversion.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from .generator import FeatureHook, Generator, SynthesisHooks
from .imaging import resize_antialiased
from .inversion import FeatureOffset, Inversion
from .invertibility import W_PLUS, LatentMap, feature_side, in_order, latent_spaces
from .samm import draw

_INPUTS = 7  # photograph, drawn picture, region
_LARGEST = 256  # px: photographs of larger generators are brought to this side first
_SLOPE = 0.2


@dataclass(frozen=True)
class MultilayerEncoderConfig:
    """Everything that fixes a `MultilayerEncoder`'s shape."""

    spaces: tuple[str, ...]  # feature spaces, most editable first
    channels: tuple[int, ...]  # of the generator's features there
    resolution: int = _LARGEST  # side at which photographs are seen
    width: int = 24  # channels at that side; doubled with each halving
    widest: int = 128
    units: int = 2  # residual units at the features' own side
    domain: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", tuple(self.spaces))
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.spaces or len(self.spaces) != len(self.channels) or self.spaces != in_order(self.spaces):
            raise InvalidInputError(
                f"Multilayer encoder for spaces {self.spaces} of {self.channels} channels: expected feature spaces from "
                "coarse to fine, and the channels of each."
            )
        if feature_side(self.spaces[-1]) > self.resolution or min(self.width, self.widest, self.units) < 1:
            raise InvalidInputError(
                f"Multilayer encoder with {self}: expected positive sizes, and features no larger than the picture."
            )

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "sam-encoder"

    @staticmethod
    def for_generator(generator: Generator, **changes: Any) -> MultilayerEncoderConfig:
        """The configuration that fits a generator; `changes` are further fields."""
        widths = dict(zip(generator.config.resolutions, generator.config.channels, strict=True))
        spaces = tuple(space for space in latent_spaces(generator.resolution) if space != W_PLUS)
        channels = tuple(widths[feature_side(space)] for space in spaces)
        return MultilayerEncoderConfig(
            spaces, channels, **{"resolution": min(generator.resolution, _LARGEST), **changes}
        )

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor], domain: str | None = None) -> MultilayerEncoderConfig:
        """Sizes from the shapes of a `MultilayerEncoder`'s tensors.

        Raises:
            UnsupportedModelError: an expected key is not there, or the names are no feature spaces.
        """
        names = {m[1] for key in tensors if (m := re.fullmatch(r"networks\.([^.]+)\.last\.weight", key))}
        if not names:
            raise UnsupportedModelError("Multilayer encoder without networks.F4.last.weight or another space's.")
        try:
            spaces = in_order(tuple(names))
            first = f"networks.{spaces[0]}."
            downs = {int(m[1]) for key in tensors if (m := re.match(rf"{re.escape(first)}down\.(\d+)\.", key))}
            units = {int(m[1]) for key in tensors if (m := re.match(rf"{re.escape(first)}units\.(\d+)\.", key))}
            return MultilayerEncoderConfig(
                spaces,
                tuple(tensors[f"networks.{space}.last.weight"].shape[0] for space in spaces),
                resolution=feature_side(spaces[0]) << len(downs),
                width=tensors[first + "stem.weight"].shape[0],
                widest=tensors[first + "last.weight"].shape[1],
                units=len(units),
                domain=domain,
            )
        except (InvalidInputError, KeyError) as error:
            raise UnsupportedModelError(f"Not a multilayer encoder: {error}") from error


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions beside a shortcut; with `down` the output has half the side."""

    def __init__(self, inputs: int, channels: int, down: bool = False) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.skip: nn.Module = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1, bias=False)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, r, r] -> [B, channels, r, r], or half the side."""
        y = F.leaky_relu(self.conv0(F.leaky_relu(x, _SLOPE)), _SLOPE)
        if self.down:  # averaged before the wide convolution: a quarter of the work, and no aliasing
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return self.skip(x) + self.conv1(y)


class SpaceEncoder(nn.Module):
    """The network of one space: pictures and region -> offset to the features."""

    def __init__(self, side: int, channels: int, config: MultilayerEncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Conv2d(_INPUTS, width, 3, padding=1)
        downs: list[nn.Module] = []
        while config.resolution >> len(downs) > side:
            wider = min(2 * width, config.widest)
            downs.append(ResidualUnit(width, wider, down=True))
            width = wider
        self.down = nn.Sequential(*downs)
        self.features = nn.Conv2d(channels, width, 1)
        self.units = nn.Sequential(*(ResidualUnit(width, width) for _ in range(config.units)))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, pictures: Tensor, features: Tensor) -> Tensor:
        """[B, 7, R, R] and [B, channels, r, r] -> offset [B, channels, r, r]."""
        x = self.down(self.stem(pictures)) + self.features(features)
        return self.last(F.leaky_relu(self.units(x), _SLOPE))


class MultilayerEncoder(nn.Module):
    """The networks of all feature spaces, by name."""

    def __init__(self, config: MultilayerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = zip(config.spaces, config.channels, strict=True)
        self.networks = nn.ModuleDict({s: SpaceEncoder(feature_side(s), c, config) for s, c in channels})

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the feature spaces, most editable first."""
        return self.config.spaces

    def forward(
        self, image: Tensor, drawn: Tensor, features: Mapping[str, Tensor], regions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Offsets for the spaces in `regions`.

        Args:
            image: [B, 3, H, H] in [-1, 1], the photograph.
            drawn: [B, 3, H, H], what the code draws of it.
            features: space -> [B, C, r, r], that leave the generator's block of that side.
            regions: space -> [B, 1, h, h] in 0..1, where the space is in use, at any size.

        Returns:
            Space -> [B, C, r, r], not yet multiplied by the region.
        """
        side = self.config.resolution
        pair = [resize_antialiased(x, side) for x in (image, drawn.clamp(-1, 1))]
        found = {}
        for space, region in regions.items():
            region = F.interpolate(region, size=(side, side), mode="bilinear", align_corners=False)
            found[space] = self.networks[space](torch.cat((*pair, region), dim=1), features[space])
        return found


def encode_multilayer(inversion: Inversion, latent_map: LatentMap, encoder: MultilayerEncoder) -> Inversion:
    """A multilayer inversion without optimisation.

    Args:
        inversion: of any encoder; its code and modulations stay, feature offsets are replaced.
        latent_map: which space each region is inverted in; one map serves a whole batch.
        encoder: trained for the generator.

    Returns:
        The inversion with a `FeatureOffset` for each feature space in use.

    Raises:
        InvalidInputError: a map of another batch.
        GeneratorMismatchError: the map has a space, or the generator has features, that the encoder does not know.
    """
    if len(latent_map) not in (1, len(inversion)):
        raise InvalidInputError(
            f"{len(latent_map)} latent map(s) for {len(inversion)} image(s): expected one, or one for each."
        )
    modulations = tuple(m for m in inversion.modulations if not isinstance(m, FeatureOffset))
    plain = dataclasses.replace(inversion, modulations=modulations)
    regions = {}
    for space in latent_map.spaces:
        if space == W_PLUS or not bool(latent_map.mask(space).any()):
            continue
        if space not in encoder.spaces:
            raise GeneratorMismatchError(
                f"The latent map has regions in {space}, this multilayer encoder knows {', '.join(encoder.spaces)}: use "
                "the encoder and the predictor that were trained for this generator."
            )
        region = latent_map.masks_at(feature_side(space))[space]
        regions[space] = region.to(inversion.image).expand(len(inversion), -1, -1, -1).contiguous()
    with torch.inference_mode(False), torch.no_grad():
        drawn, features = features_of(plain, encoder.config)
        offsets = encoder(inversion.image, drawn, features, regions)
    added = tuple(FeatureOffset(feature_side(space), offset, regions[space]) for space, offset in offsets.items())
    info = {**inversion.info, "multilayer": "encoder", "spaces": ", ".join((W_PLUS, *offsets))}
    return dataclasses.replace(plain, modulations=(*modulations, *added), info=info)


def features_of(inversion: Inversion, config: MultilayerEncoderConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """What an inversion draws [B, 3, R, R] with its weights and features, and the features of each space.

    Raises GeneratorMismatchError where the generator has other features than the encoder was made for.
    """
    widths = dict(zip(inversion.generator.config.resolutions, inversion.generator.config.channels, strict=True))
    for space, channels in zip(config.spaces, config.channels, strict=True):
        if widths.get(feature_side(space)) != channels:
            raise GeneratorMismatchError(
                f"The multilayer encoder changes {channels} channels in {space}, this generator has "
                f"{widths.get(feature_side(space), 'none')}: use the encoder that was trained for it."
            )
    if len(inversion) > 1 and any(len(t) > 1 for m in inversion.modulations for t in m.weight_offsets().values()):
        parts = [features_of(inversion[k], config) for k in range(len(inversion))]  # weights of its own for each
        return torch.cat([d for d, _ in parts]), {s: torch.cat([f[s] for _, f in parts]) for s in config.spaces}
    found: dict[str, Tensor] = {}

    def record(space: str) -> FeatureHook:
        def keep(x: Tensor) -> Tensor:
            found[space] = x
            return x

        return keep

    drawn = draw(inversion, SynthesisHooks(after_block={feature_side(space): record(space) for space in config.spaces}))
    return drawn, found
