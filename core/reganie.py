"""ReGANIE: a network that gives inversions, edited or not, back what the generator could not draw.

Paper: Li et al., "ReGANIE: Rectifying GAN Inversion Errors for Accurate Real Image Editing" (AAAI 2023). Reference
implementation: none is public, neither code nor weights. Building blocks are those of the paper's own reference, the
Swapping Autoencoder (Park et al. 2020; taesungp/swapping-autoencoder-pytorch `models/networks/`).

From the paper: one encoder takes the primary picture (the plain inversion, or the edited one) to a feature map f_x, a
second one takes the difference (photograph minus its own plain inversion) to a spatial code and a global code; a
generator draws the rectified picture from f_x. Its convolutions are modulated by the two codes in turn (SG modulation):
f' = (f . sp) * w + b, then f'' = (f' . gl) * w + b.

Left open by the paper, chosen here and named in `ReganieConfig`: blocks, widths and heads as in the Swapping
Autoencoder, with its input scaling and demodulation of the weights alone, its two residual blocks on f_x before the
upsampling and its last layer (a 1x1 convolution modulated by the global code); in every block the first convolution
takes the spatial code; 64 spatial channels (the Swapping Autoencoder's 8 are a bottleneck that it needs and this
network does not); the difference, in -2..2, goes in as it is; the two encoders share no weights; no noise.
Ours, off by default and on in `ReganieConfig.slim`: `residual` (what is drawn is added to the primary picture) and
another `code_scale`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blending import match_mask
from .discriminator import RESIDUAL_GAIN
from .errors import InvalidInputError, UnsupportedModelError
from .inversion import Inversion, Modulation, RenderContext
from .ops import LRELU_GAIN, LRELU_SLOPE, EqualLinear, upfirdn2d
from .skeleton import skeleton

_EPSILON = 1e-8
_HALF_LIMIT = 60_000.0  # float16 ends at 65,504


@dataclass(frozen=True)
class ReganieConfig:
    """Sizes of a `Reganie`. The defaults are the paper's for 512 px faces, and where it is silent (*) those of the
    Swapping Autoencoder at that size."""

    resolution: int = 512  # side of all pictures
    # Channels at full size and after each downsampling, of both encoders (*); the last is f_x. 4 downsamplings: 32x32.
    encoder_widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    spatial_channels: int = 64  # of the spatial code (*: 8)
    global_widths: tuple[int, ...] = (1024, 2048)  # convolutions that halve the map on the way to the global code (*)
    global_channels: int = 2048  # of the global code
    base_blocks: int = 2  # residual blocks on f_x before the first upsampling (*)
    generator_widths: tuple[int, ...] = (512, 512, 256, 128)  # after each upsampling (*)
    # Length of a code before it modulates: "unit" (*); "rms" for a root mean square of 1, with which the modulation
    # begins as strong as StyleGAN's, sqrt(channels) times as strong as with "unit"; "free" leaves the codes as they are,
    # so that a small difference modulates little.
    code_scale: str = "unit"
    residual: bool = False  # the generator's picture is added to the primary one in place of standing for itself
    global_first: bool = False  # in each block the first convolution takes the global code, the second the spatial one
    domain: str | None = None

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "global_widths", "generator_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        count = len(self.encoder_widths) - 1
        if count < 1 or len(self.generator_widths) != count:
            raise InvalidInputError(
                f"ReGANIE with encoder widths {self.encoder_widths} and generator widths {self.generator_widths}: "
                "expected one more of the encoder than of the generator, and at least two."
            )
        numbers = (*self.encoder_widths, *self.global_widths, *self.generator_widths)
        if min(*numbers, self.spatial_channels, self.global_channels) < 1 or self.base_blocks < 0:
            raise InvalidInputError("ReGANIE with a width below 1 or fewer than no base blocks: expected 1 or more.")
        if self.resolution % (1 << count) or self.code_side < (2 << len(self.global_widths)) - 1:
            raise InvalidInputError(
                f"ReGANIE of {self.resolution} px with {count} downsamplings and {len(self.global_widths)} global "
                f"convolutions: expected a multiple of {1 << count}, and spatial codes of "
                f"{(2 << len(self.global_widths)) - 1} px at least."
            )
        if self.code_scale not in ("unit", "rms", "free"):
            raise InvalidInputError(f"ReGANIE with code_scale {self.code_scale!r}: expected 'unit', 'rms' or 'free'.")

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "reganie"

    @property
    def code_side(self) -> int:
        """Height and width of f_x and of the spatial code."""
        return self.resolution >> (len(self.encoder_widths) - 1)

    @staticmethod
    def slim(resolution: int = 128, **changes: Any) -> ReganieConfig:
        """A small network for 64, 128 or 256 px, with the paper's 32x32 codes (2 downsamplings at 128 px).

        The paper's number of downsamplings would leave 8x8 codes of a 128 px picture, in which an eye is one position. It
        is residual: an encoder of a small domain already draws the generator's own pictures closer (31 dB, portraits)
        than a small autoencoder learns to within hours. Its codes are scaled to "rms", with which it learns soonest.
        """
        count = max(1, int(math.log2(resolution)) - 5)
        finest = {1: 64, 2: 32}.get(count, 16)
        widths = tuple(min(finest << level, 128) for level in range(count + 1))
        sizes: dict[str, Any] = {
            "resolution": resolution,
            "encoder_widths": widths,
            "spatial_channels": 32,
            "global_widths": (128, 128),
            "global_channels": 128,
            "code_scale": "rms",
            "residual": True,
            "generator_widths": (*widths[1:-1][::-1], 32),
        }
        return ReganieConfig(**{**sizes, **changes})

    @staticmethod
    def from_state_dict(tensors: Mapping[str, Tensor], **known: Any) -> ReganieConfig:
        """Sizes from the shapes of `Reganie`'s tensors.

        Args:
            tensors: by the names of `Reganie.state_dict`.
            known: fields that shapes do not show (resolution, code_scale, residual, global_first, domain); None counts as
                absent. Without a resolution, codes are taken for 32x32.

        Raises:
            UnsupportedModelError: no such network, or an incomplete one.
        """

        def widths(pattern: str) -> tuple[int, ...]:
            found = {int(m[1]): t.shape[0] for name, t in tensors.items() if (m := re.fullmatch(pattern, name))}
            return tuple(found[index] for index in sorted(found))

        needed = ("primary.fromrgb.weight", "spatial_head.1.weight", "global_linear.weight")
        absent = [name for name in needed if name not in tensors]
        if absent:
            raise UnsupportedModelError(f"ReGANIE network without {absent[0]}: the file is incomplete.")
        downs = widths(r"primary\.blocks\.(\d+)\.conv1\.weight")
        known = {name: value for name, value in known.items() if value is not None}
        try:
            return ReganieConfig(
                resolution=known.pop("resolution", 32 << len(downs)),
                encoder_widths=(tensors["primary.fromrgb.weight"].shape[0], *downs),
                spatial_channels=tensors["spatial_head.1.weight"].shape[0],
                global_widths=widths(r"global_convs\.(\d+)\.weight"),
                global_channels=tensors["global_linear.weight"].shape[0],
                base_blocks=len(widths(r"base\.(\d+)\.conv0\.weight")),
                generator_widths=widths(r"ups\.(\d+)\.conv1\.weight"),
                **known,
            )
        except InvalidInputError as error:
            raise UnsupportedModelError(f"Not a ReGANIE network: {error}") from error


def blur(x: Tensor, stride: int = 1) -> Tensor:
    """[1, 2, 1] / 4 along both axes of [B, C, H, W], without padding: H - 2 and W - 2 pixels, of which every `stride`-th."""
    taps = torch.tensor((0.25, 0.5, 0.25), device=x.device, dtype=x.dtype)
    return F.conv2d(x, torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3), stride=stride, groups=x.shape[1])


class EncoderConv(nn.Module):
    """Convolution with equalised learning rate, reflected borders, leaky ReLU of gain sqrt(2); can blur and halve.

    As in the Swapping Autoencoder, pixel i of a halved map lies at pixel 2 i of the map before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        down: bool = False,
        padded: bool = True,
        activated: bool = True,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.down, self.padded, self.activated = down, padded, activated
        self.gain = gain * (LRELU_GAIN if activated else 1.0)  # a leaky ReLU lets it pass
        self.weight_gain = self.gain / math.sqrt(in_channels * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H, W]; halved with `down`; without borders where not `padded`."""
        kernel, stride = self.weight.shape[2], 2 if self.down else 1
        if self.down and self.padded:
            reach = kernel // 2
            x = F.pad(x, (1 + reach, reach, 1 + reach, reach), mode="reflect")
            if kernel == 1:  # decimated first: the convolution sees a quarter of the pixels
                x, stride = blur(x, 2), 1
            else:
                x = blur(x)
        elif self.padded and kernel > 1:
            x = F.pad(x, (kernel // 2,) * 4, mode="reflect")
        bias = None if self.bias is None else self.bias * self.gain
        x = F.conv2d(x, self.weight * self.weight_gain, bias, stride=stride)
        return F.leaky_relu(x, LRELU_SLOPE, inplace=True) if self.activated else x

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        o, i, k, _ = self.weight.shape
        return f"{i} -> {o}, {k}x{k}, down={self.down}"


class EncoderBlock(nn.Module):
    """Two convolutions beside a 1x1 skip; halves the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EncoderConv(in_channels, in_channels, 3)
        self.conv1 = EncoderConv(in_channels, out_channels, 3, down=True, gain=RESIDUAL_GAIN)
        self.skip = EncoderConv(
            in_channels, out_channels, 1, down=True, activated=False, bias=False, gain=RESIDUAL_GAIN
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, r, r] -> [B, O, r / 2, r / 2]."""
        return self.skip(x).add_(self.conv1(self.conv0(x)))


class PictureEncoder(nn.Module):
    """Picture or difference -> feature map."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.fromrgb = EncoderConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(EncoderBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, R, R] -> [B, widths[-1], r, r]."""
        return self.blocks(self.fromrgb(x))


def modulate(x: Tensor, style: Tensor) -> Tensor:
    """Scales features [B, C, H, W] by styles [B, C] or [B, C, h, w] of a root mean square of 1 over the channels.

    A map of styles is first resized to the features (bilinear, align_corners False).
    """
    if style.ndim == 2:
        style = style[:, :, None, None]
    elif style.shape[2:] != x.shape[2:]:
        style = F.interpolate(style, size=(x.shape[2], x.shape[3]), mode="bilinear", align_corners=False)
    norm = torch.linalg.vector_norm(style.float(), dim=1, keepdim=True)
    return x * style.to(x.dtype) * torch.rsqrt(norm.square() / x.shape[1] + _EPSILON).to(x.dtype)


class SGConv(nn.Module):
    """Convolution modulated by the spatial or by the global code; bias, leaky ReLU; can double the size.

    The input is scaled by the code's style, the filters are brought to unit length without it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, code_channels: int, up: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(code_channels, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.up, self.gain = up, gain * LRELU_GAIN  # a leaky ReLU lets it pass

    def style(self, code: Tensor) -> Tensor:
        """Code [B, c] or [B, c, h, w] -> style [B, I] or [B, I, h, w]."""
        if code.ndim == 2:
            return self.affine(code)
        # Before the resizing, with which a 1x1 convolution may change places: fewer pixels.
        weight = (self.affine.weight * self.affine.weight_gain)[:, :, None, None]
        return F.conv2d(code, weight, self.affine.bias).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """[B, I, r, r] and a code -> [B, O, r, r], or [B, O, 2 r, 2 r] with `up`."""
        x = modulate(x, self.style(code))
        lengths = torch.rsqrt(self.weight.square().sum(dim=(1, 2, 3), keepdim=True) + _EPSILON)
        weight, bias = self.weight * (lengths * self.gain), self.bias * self.gain
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = upfirdn2d(x, pad=(1, 1), gain=4.0)
            x = x.add_(bias[:, None, None].to(x.dtype))
        else:
            x = F.conv2d(x, weight, bias, padding=1)
        return F.leaky_relu(x, LRELU_SLOPE, inplace=True)

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, up={self.up}"


class SGBlock(nn.Module):
    """A convolution modulated by the spatial code, one by the global code (or in the other order), and a skip beside them."""

    def __init__(self, in_channels: int, out_channels: int, config: ReganieConfig, up: bool) -> None:
        super().__init__()
        self.global_first = config.global_first
        first, second = (config.spatial_channels, config.global_channels)[:: -1 if self.global_first else 1]
        self.conv0 = SGConv(in_channels, out_channels, first, up)
        self.conv1 = SGConv(out_channels, out_channels, second, gain=RESIDUAL_GAIN)
        wider = in_channels != out_channels
        self.skip = EncoderConv(in_channels, out_channels, 1, gain=RESIDUAL_GAIN) if wider else None
        self.up = up

    def forward(self, x: Tensor, spatial: Tensor, global_: Tensor) -> Tensor:
        """[B, I, r, r], spatial code [B, c, h, h], global code [B, g] -> [B, O, r, r], or twice that size."""
        skip = x * RESIDUAL_GAIN if self.skip is None else self.skip(x)
        if self.up:
            skip = F.interpolate(skip, scale_factor=2, mode="bilinear", align_corners=False)
        first, second = (global_, spatial) if self.global_first else (spatial, global_)
        return self.conv1(self.conv0(x, first), second) + skip


class Reganie(nn.Module):
    """The rectifying network.

    On a CPU, `network.to(memory_format=torch.channels_last)` makes training faster.
    """

    def __init__(self, config: ReganieConfig = ReganieConfig()) -> None:
        super().__init__()
        self.config = config
        wide, globals_ = config.encoder_widths[-1], (config.encoder_widths[-1], *config.global_widths)
        self.primary = PictureEncoder(config.encoder_widths)
        self.difference = PictureEncoder(config.encoder_widths)
        self.spatial_head = nn.Sequential(
            EncoderConv(wide, wide, 1), EncoderConv(wide, config.spatial_channels, 1, activated=False)
        )
        self.global_convs = nn.Sequential(
            *(EncoderConv(a, b, 3, down=True, padded=False) for a, b in zip(globals_[:-1], globals_[1:], strict=True))
        )
        self.global_linear = EqualLinear(globals_[-1], config.global_channels)
        self.base = nn.ModuleList(SGBlock(wide, wide, config, up=False) for _ in range(config.base_blocks))
        widths = (wide, *config.generator_widths)
        self.ups = nn.ModuleList(SGBlock(a, b, config, up=True) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.torgb_affine = EqualLinear(config.global_channels, widths[-1], bias_init=1.0)
        # A residual begins with nothing, so that training starts from the plain picture.
        self.torgb = EncoderConv(widths[-1], 3, 1, activated=False)
        if config.residual:
            nn.init.zeros_(self.torgb.weight)

    def codes(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Difference [B, 3, R, R] -> spatial code [B, c, r, r] and global code [B, g]."""
        found = self.difference(difference)
        spatial = self.spatial_head(found).float()
        global_ = self.global_linear(self.global_convs(found).float().mean(dim=(2, 3))).float()
        return self._scaled(spatial), self._scaled(global_)

    def _scaled(self, code: Tensor) -> Tensor:
        if self.config.code_scale == "free":
            return code
        square = code.square()
        total = square.sum(dim=1, keepdim=True) if self.config.code_scale == "unit" else square.mean(1, keepdim=True)
        return code * torch.rsqrt(total + _EPSILON)

    def forward(self, primary: Tensor, difference: Tensor) -> Tensor:
        """Rectifies pictures.

        Args:
            primary: [B, 3, R, R] in [-1, 1], plain inversions or edits of them.
            difference: [B, 3, R, R] in [-2, 2], photographs minus their own plain inversions, unedited.

        Returns:
            [B, 3, R, R], nominal range [-1, 1], not clamped.

        Raises:
            InvalidInputError: pictures of another size than the network's, or of different shapes.
        """
        side = self.config.resolution
        for name, x in (("primary", primary), ("difference", difference)):
            if x.ndim != 4 or tuple(x.shape[1:]) != (3, side, side) or len(x) != len(primary):
                raise InvalidInputError(
                    f"ReGANIE got a {name} picture of shape {tuple(x.shape)}: expected [{len(primary)}, 3, {side}, {side}]."
                )
        spatial, global_ = self.codes(difference)
        x = self.primary(primary)
        for block in (*self.base, *self.ups):
            x = block(x, spatial, global_)
        rgb = self.torgb(x * self.torgb_affine(global_)[:, :, None, None].to(x.dtype)).float()
        return primary + rgb if self.config.residual else rgb

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        c = self.config
        return f"{c.resolution} px, codes {c.spatial_channels}x{c.code_side}x{c.code_side} and {c.global_channels}"


@dataclass(frozen=True)
class Rectification(Modulation):
    """Redraws the finished picture by a rectifying network, driven by what the unedited inversion misses (ReGANIE).

    Holds the network itself, so that a saved inversion needs no other file. Networks of another size than the
    generator see area-averaged (or bicubically enlarged) pictures; what they change is brought to full size
    (bicubic) and added: detail finer than the network's pixels stays the primary picture's own.
    """

    kind: ClassVar[str] = "rectification"
    weights: dict[str, Tensor]  # name -> [1 or B, ...]: one network for all images, or one for each; float16
    mask: Tensor  # [B, 1, H, W], 1 where the rectified picture is taken
    config: str  # `ReganieConfig` as JSON
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise InvalidInputError(f"Rectification of strength {self.strength}: expected a finite number.")
        if self.mask.ndim != 4 or self.mask.shape[1] != 1:
            raise InvalidInputError(
                f"Rectification with a mask of shape {tuple(self.mask.shape)}: expected [B, 1, H, W]."
            )
        expected = {name: tuple(tensor.shape) for name, tensor in self._skeleton().state_dict().items()}
        found = {name: tuple(tensor.shape[1:]) for name, tensor in self.weights.items()}
        if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
            name = wrong[0]
            raise InvalidInputError(
                f"Rectification whose network has {name} of shape {found.get(name)}: expected {expected.get(name)}, by its "
                "configuration."
            )

    def _skeleton(self) -> Reganie:
        with skeleton():
            return Reganie(_parsed(self.config))

    def finish(self, image: Tensor, context: RenderContext, position: int) -> Tensor:
        """The network's picture of `image`, as far as strength and mask say."""
        if not self.strength:
            return image
        difference = context.inversion.image.to(image) - context.unedited_image(position)
        rectified = self._rectified(image, difference)
        mask = self.mask.to(image)
        # Selected where nothing is rectified: exact, also beside a photograph that holds NaN.
        return torch.where(mask <= 0, image, torch.lerp(image, rectified, self.strength * mask))

    def _rectified(self, image: Tensor, difference: Tensor) -> Tensor:
        module, side = self._skeleton().eval(), _parsed(self.config).resolution
        own = max(len(tensor) for tensor in self.weights.values())
        size = (image.shape[2], image.shape[3])
        primary, seen = resized(image, (side, side)), resized(difference, (side, side))
        parts = []
        for row in range(own):
            weights = {name: t[row if len(t) > 1 else 0].to(image) for name, t in self.weights.items()}
            rows = slice(row, row + 1) if own > 1 else slice(None)
            parts.append(torch.func.functional_call(module, weights, (primary[rows], seen[rows]), strict=True))
        rectified = torch.cat(parts)
        return rectified if size == (side, side) else image + resized(rectified - primary, size)

    def without_effect(self) -> Modulation:
        """With an empty mask, so that it can share the network of others in a batch."""
        return dataclasses.replace(self, mask=torch.zeros_like(self.mask))

    @classmethod
    def batch(cls, modulations: Sequence[Modulation]) -> Modulation:
        """One network serves all where it is the same one; otherwise each image keeps its own, of the same sizes."""
        several = cast(Sequence[Rectification], modulations)
        first = several[0]
        strengths = {m.strength for m in several}
        strength = first.strength if len(strengths) == 1 else 1.0
        masks = [m.mask if len(strengths) == 1 else m.mask * m.strength for m in several]
        if len({m.config for m in several}) > 1:
            raise InvalidInputError("Rectifications by networks of different sizes: expected one kind for a batch.")
        weights = first.weights
        if not all(_shared(weights, m.weights) for m in several):
            rows = {
                name: [m.weights[name].expand(len(m.mask), *m.weights[name].shape[1:]) for m in several]
                for name in weights
            }
            weights = {name: torch.cat(tensors) for name, tensors in rows.items()}
        return cls(weights, torch.cat(masks), first.config, strength)


def _shared(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two modulations hold one and the same network for all of their images."""
    return all(len(t) == 1 and (t is other[name] or torch.equal(t, other[name])) for name, t in first.items())


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] at another size: the mean over areas when shrinking, bicubic when enlarging."""
    if tuple(image.shape[2:]) == size:
        return image
    if image.shape[2] >= size[0]:
        return F.adaptive_avg_pool2d(image, size)
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False)


def _parsed(config: str) -> ReganieConfig:
    try:
        return ReganieConfig(**json.loads(config))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Rectification with a damaged configuration: {error}.") from error


@torch.no_grad()
def rectify(inversion: Inversion, network: Reganie, *, strength: float = 1.0, mask: Tensor | None = None) -> Inversion:
    """Adds a rectification by `network` to an inversion; under an edit it gives the edited picture back what is missing.

    Args:
        inversion: any, also one with modulations: those before it are part of the plain inversion it starts from, those
            after it (a blend) work on the rectified picture.
        network: trained for the inversion's generator and encoder. Its weights are copied, as float16.
        strength: 0 is the plain picture, 1 the rectified one.
        mask: [H, W], [B, H, W] or [B, 1, H, W] of any size in 0..1, 1 = rectify there; None is everywhere.

    Raises:
        InvalidInputError: a mask that does not fit, or a strength that is no number.
    """
    # Outside inference mode, so that the modulation may take part in a later optimisation.
    with torch.inference_mode(False):
        side, like = inversion.generator.resolution, inversion.image
        if mask is None:
            fitted = torch.ones(len(inversion), 1, side, side, device=like.device)
        else:
            fitted = match_mask(mask.to(like), (side, side), len(inversion)).clone()
        fitted = fitted.expand(len(inversion), -1, -1, -1).contiguous()
        weights = {
            name: _half(t.detach())[None].to(like.device).contiguous() for name, t in network.state_dict().items()
        }
        config = json.dumps(dataclasses.asdict(network.config))
        added = Rectification(weights, fitted, config, float(strength))
        info = {**inversion.info, "rectification": "ReGANIE"}
        return dataclasses.replace(inversion, modulations=(*inversion.modulations, added), info=info)


def _half(tensor: Tensor) -> Tensor:
    """As in saved models: vectors, and what float16 cannot hold, stay as they are."""
    return tensor.clone() if tensor.ndim < 2 or bool((tensor.abs() > _HALF_LIMIT).any()) else tensor.to(torch.float16)
