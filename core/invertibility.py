"""Where can a photograph be inverted? SAM's invertibility predictor, and the latent map made from its predictions.

Paper: Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (SAM, CVPR 2022).
Reference implementation: adobe-research/sam_inversion `model_utils.py`, `mask_utils.py`; network and masks agree to 1e-4.

A latent space is "W+", or "F<k>": an offset to the features that leave the block of side r, with k = 2 log2(r) - 4, the
index of that block's first style row. SAM uses F4, F6, F8 and F10 (sides 16, 32, 64, 128) for generators of 256 px and
more. A block's own RGB never sees its offset, so the finest usable side is half the output: below 256 px the same four
octaves move down, and a 128 px generator has F2, F4, F6 and F8 (sides 8, 16, 32, 64); see `latent_spaces`.

The predictor gives one error map for each space, what an inversion in that space alone would leave: LPIPS-VGG per pixel
in the published files, so small means invertible. The slim variant for small domains is the same network with three
stages in place of four (see `deeplab.py`) and a fraction of the widths: `InvertibilityConfig.slim`.

Deviations: all heads live in one module; the bias of each head starts at a typical error, since a final ReLU that starts
negative never learns; a latent map holds a batch, and segments may be superpixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deeplab import DeepLab, DeepLabConfig
from .errors import InvalidInputError, UnsupportedModelError
from .imaging import resize_antialiased
from .superpixels import check_labels, mean_per_segment

W_PLUS = "W+"
TAU = 0.225  # SAM's threshold for cars and faces; its sweeps go from 0.1 to 0.4 (cats 0.2 to 0.45)
OCTAVES = 4
FINEST = 128  # side of the finest features that SAM changes
RESAMPLING = ("lanczos", "bilinear")
_HEAD_BIAS = 0.2
_SLOPE = 0.2
# Okabe and Ito's colours, which stay apart for colour-blind eyes: from editable (blue) to faithful (red).
_COLOURS = ((0, 114, 178), (0, 158, 115), (240, 228, 66), (230, 159, 0), (213, 94, 0), (204, 121, 167), (86, 180, 233))


def space_name(side: int) -> str:
    """Feature side -> name of the space, 16 -> "F4". Raises InvalidInputError where it is no power of two from 4 up."""
    if side < 4 or side & (side - 1):
        raise InvalidInputError(f"Feature side {side}: expected a power of two from 4 up.")
    return f"F{2 * (side.bit_length() - 1) - 4}"


def feature_side(space: str) -> int:
    """Name of a feature space -> side of its features, "F4" -> 16. Raises InvalidInputError for W+ and other names."""
    match = re.fullmatch(r"F(\d{1,2})", space)
    if match is None or int(match[1]) % 2:
        raise InvalidInputError(f"Latent space {space!r}: expected F with an even number (F4, F6, F8, F10).")
    return 4 << (int(match[1]) // 2)


def latent_spaces(resolution: int) -> tuple[str, ...]:
    """The spaces of a generator of that output size, most editable first: W+, then four octaves of features."""
    finest = min(FINEST, resolution // 2)
    sides = [finest >> octave for octave in reversed(range(OCTAVES))]
    return (W_PLUS, *(space_name(side) for side in sides if side >= 4))


@dataclass(frozen=True)
class InvertibilityConfig:
    """Everything that fixes an `InvertibilityNet`'s shape; the defaults are the published networks."""

    spaces: tuple[str, ...] = (W_PLUS, "F4", "F6", "F8", "F10")
    base: DeepLabConfig = field(default_factory=DeepLabConfig)
    hidden: int = 4  # channels inside a head
    domain: str | None = None
    threshold: float | None = None  # tau for `latent_map` that belongs to these predictions; None is SAM's `TAU`

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", tuple(self.spaces))
        if not self.spaces or self.hidden < 1:
            raise InvalidInputError(f"Invertibility network for spaces {self.spaces}: expected at least one.")
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold > 0):
            raise InvalidInputError(f"Invertibility threshold {self.threshold}: expected a number above 0.")
        for space in self.spaces:
            if space != W_PLUS:
                feature_side(space)

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "sam-invertibility"

    @property
    def tau(self) -> float:
        """The threshold to read predictions with."""
        return TAU if self.threshold is None else self.threshold

    @staticmethod
    def slim(resolution: int = 128, domain: str | None = None) -> InvertibilityConfig:
        """The small network for a domain of 128 px images: 3 stages, 0.6 million parameters."""
        base = DeepLabConfig(
            stem=24, widths=(16, 32, 48), units=(2, 3, 3), pyramid=64, low_level=24, decoder=64, outputs=8
        )
        return InvertibilityConfig(latent_spaces(resolution), base, domain=domain)

    @staticmethod
    def from_state_dict(
        tensors: Mapping[str, Any], domain: str | None = None, threshold: float | None = None
    ) -> InvertibilityConfig:
        """Sizes from the shapes of an `InvertibilityNet`'s tensors; what shapes do not show is given.

        Raises:
            UnsupportedModelError: an expected key is not there, or the names of the heads are no latent spaces.
        """
        base = DeepLabConfig.from_state_dict(tensors, "base.")
        first = re.compile(r"heads\.([^.]+)\.m\.0\.weight")
        heads = {match[1]: name for name in tensors if (match := first.fullmatch(name))}
        if not heads:
            raise UnsupportedModelError("Invertibility network without heads: expected heads.W+.m.0.weight and others.")
        hidden = int(tensors[next(iter(heads.values()))].shape[1])
        try:
            return InvertibilityConfig(in_order(heads), base, hidden, domain, threshold)
        except InvalidInputError as error:
            raise UnsupportedModelError(f"Not an invertibility network: {error}") from error


def in_order(spaces: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Names sorted from the most editable space to the most faithful one: W+, F4, F6, ...

    Raises InvalidInputError for a name that is no latent space.
    """
    return tuple(sorted(spaces, key=lambda space: 0 if space == W_PLUS else feature_side(space)))


class InvertibilityNet(nn.Module):
    """Image -> predicted inversion error of each pixel in each latent space.

    Keys: "base.backbone.*", "base.aspp.*", "base.decoder.*", "heads.<space>.m.*"; the parts of a published file.
    """

    def __init__(self, config: InvertibilityConfig = InvertibilityConfig()) -> None:
        super().__init__()
        self.config = config
        self.base = DeepLab(config.base)
        self.heads = nn.ModuleDict({space: _Head(config.base.outputs, config.hidden) for space in config.spaces})

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the latent spaces, most editable first."""
        return self.config.spaces

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> space -> predicted error [B, 1, H, W], 0 or more.

        The published networks were trained on 256 px images and see photographs at their own size.
        Raises InvalidInputError for another shape.
        """
        features = self.base(image)
        return {space: head(features) for space, head in self.heads.items()}


class _Head(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        last = nn.ConvTranspose2d(hidden, 1, 1)
        assert last.bias is not None
        nn.init.constant_(last.bias, _HEAD_BIAS)
        self.m = nn.Sequential(
            nn.ConvTranspose2d(inputs, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(_SLOPE),
            last,
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 1, H, W]."""
        return self.m(x)


@dataclass(frozen=True)
class LatentMap:
    """Which latent space each region of a photograph is inverted in."""

    spaces: tuple[str, ...]  # most editable first
    index: Tensor  # [B, H, W], int64 into `spaces`

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", tuple(self.spaces))
        if self.index.ndim != 3 or self.index.dtype != torch.int64 or 0 in self.index.shape:
            raise InvalidInputError(
                f"Latent map of {self.index.dtype} and shape {tuple(self.index.shape)}: "
                "expected int64 [batch, height, width]."
            )
        in_order(self.spaces)
        if int(self.index.min()) < 0 or int(self.index.max()) >= len(self.spaces):
            raise InvalidInputError(
                f"Latent map with entries {int(self.index.min())} to {int(self.index.max())} for {len(self.spaces)} "
                "spaces: expected 0 up to one less than their number."
            )

    def __len__(self) -> int:
        return len(self.index)

    def mask(self, space: str) -> Tensor:
        """Region of a space, [B, 1, H, W], 1.0 inside and 0.0 outside. Raises InvalidInputError for an unknown name."""
        if space not in self.spaces:
            raise InvalidInputError(f"Latent space {space!r}: this map has {', '.join(self.spaces)}.")
        return (self.index == self.spaces.index(space))[:, None].float()

    def shares(self) -> dict[str, Tensor]:
        """Space -> share of the picture's pixels, [B], 0 to 1."""
        return {space: self.mask(space).mean(dim=(1, 2, 3)) for space in self.spaces}

    def masks_at(self, resolution: int, resample: str = "lanczos") -> dict[str, Tensor]:
        """Regions at a feature size: space -> [B, 1, resolution, resolution] in 0..1, soft at their borders.

        Pictures that are not square get zero margins in all masks, as the car pictures do in SAM's code.

        Args:
            resolution: side of the result.
            resample: "lanczos" as in SAM's code, or "bilinear" as in its paper; both widen when shrinking.

        Raises:
            InvalidInputError: another filter, or a side below 1.
        """
        if resample not in RESAMPLING:
            raise InvalidInputError(f"Mask filter {resample!r}: expected one of {', '.join(RESAMPLING)}.")
        found = {}
        for space in self.spaces:
            mask = self.mask(space)
            height, width = mask.shape[2:]
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            mask = F.pad(mask, (left, side - width - left, top, side - height - top))
            found[space] = resize_antialiased(mask, resolution, resample).clamp(0, 1)
        return found

    def feature_masks(self, resample: str = "lanczos") -> dict[str, Tensor]:
        """Feature space -> its region at the side of its own features, [B, 1, r, r]."""
        sides = {space: feature_side(space) for space in self.spaces if space != W_PLUS}
        return {space: self.masks_at(side, resample)[space] for space, side in sides.items()}


def latent_map(
    errors: Mapping[str, Tensor],
    segments: Tensor | None = None,
    tau: float = TAU,
    order: Sequence[str] | None = None,
) -> LatentMap:
    """Chooses for each segment the most editable space in which it can be inverted.

    That is the first space of `order` whose mean error in the segment is `tau` or less, and the last one where none is.

    Args:
        errors: space -> error map [B, 1, H, W], predicted or measured.
        segments: integer labels [B or 1, H, W], of a semantic segmenter or of `superpixels`; None decides each pixel
            alone.
        tau: threshold in the unit of the errors; larger gives more of the picture to W+.
        order: names of `errors`, most editable first; None is W+, F4, F6, ...

    Raises:
        InvalidInputError: maps or segments that do not fit one another, or names without a map.
    """
    order = in_order(errors) if order is None else tuple(order)
    absent = [space for space in order if space not in errors]
    if not order or absent:
        raise InvalidInputError(f"Error maps of {', '.join(errors) or 'no space'}: expected those of {order or 'W+'}.")
    if math.isnan(tau):
        raise InvalidInputError("Threshold tau is NaN: expected a number, usually 0.1 to 0.4.")
    shape = tuple(errors[order[0]].shape)
    index = errors[order[0]].new_full(shape, len(order) - 1, dtype=torch.long)
    for position in reversed(range(len(order))):
        error = errors[order[position]].detach().float()
        if tuple(error.shape) != shape or error.ndim != 4 or error.shape[1] != 1:
            raise InvalidInputError(
                f"Error map of {order[position]} has shape {tuple(error.shape)}: expected [batch, 1, height, width], "
                f"the same for every space (that of {order[0]} is {shape})."
            )
        if segments is not None:
            check_labels(segments, error)
            error = mean_per_segment(error, segments.to(error.device))
        index = torch.where(error <= tau, position, index)
    return LatentMap(order, index[:, 0])


def with_region(latent_map: LatentMap, region: Tensor, space: str) -> LatentMap:
    """The same map with a region put into a space by hand.

    Args:
        latent_map: stays as it is.
        region: [B or 1, 1, h, w] in 0..1, of any size; half and more is inside.
        space: one of the map's.

    Raises:
        InvalidInputError: a region of another batch or shape, or a space that the map does not have.
    """
    if space not in latent_map.spaces:
        raise InvalidInputError(f"Latent space {space!r}: this map has {', '.join(latent_map.spaces)}.")
    if region.ndim != 4 or region.shape[1] != 1 or len(region) not in (1, len(latent_map)):
        raise InvalidInputError(
            f"Region of shape {tuple(region.shape)} for {len(latent_map)} latent map(s): expected "
            f"[1 or {len(latent_map)}, 1, height, width]."
        )
    index = latent_map.index
    inside = resize_antialiased(region.float(), (index.shape[1], index.shape[2]))[:, 0] >= 0.5
    return LatentMap(latent_map.spaces, torch.where(inside.to(index.device), latent_map.spaces.index(space), index))


def out_of_domain(latent_map: LatentMap) -> Tensor:
    """Mask [B, 1, H, W], 1.0 where W+ does not suffice."""
    if W_PLUS not in latent_map.spaces:
        return torch.ones_like(latent_map.index[:, None], dtype=torch.float32)
    return 1 - latent_map.mask(W_PLUS)


def legend(latent_map: LatentMap) -> dict[str, tuple[int, int, int]]:
    """Space -> its colour in `colour_preview`, RGB in 0..255; most editable first."""
    return {space: _COLOURS[i % len(_COLOURS)] for i, space in enumerate(latent_map.spaces)}


def colour_preview(latent_map: LatentMap, image: Tensor | None = None, strength: float = 0.6) -> Tensor:
    """Picture of a latent map, each space in its colour (see `legend`).

    Args:
        latent_map: [B, H, W].
        image: [B, 3, h, w] in [-1, 1] to lay the colours over; its brightness shows through. The result has its size.
        strength: 0..1, of the colours over `image`.

    Returns:
        [B, 3, H, W] in [-1, 1].

    Raises:
        InvalidInputError: an image of another batch size or shape.
    """
    palette = torch.tensor(list(legend(latent_map).values()), dtype=torch.float32, device=latent_map.index.device)
    colours = (palette / 127.5 - 1)[latent_map.index].permute(0, 3, 1, 2)
    if image is None:
        return colours.contiguous()
    if image.ndim != 4 or image.shape[1] != 3 or len(image) != len(colours):
        raise InvalidInputError(
            f"Preview of {len(colours)} latent map(s) over an image of shape {tuple(image.shape)}: expected "
            f"[{len(colours)}, 3, height, width]."
        )
    colours = F.interpolate(colours, size=image.shape[2:], mode="nearest").to(image)
    grey = image.clamp(-1, 1).mean(dim=1, keepdim=True).expand_as(image)
    return torch.lerp(grey, colours, strength)
