"""StyleGAN2 generator ("skip" architecture), sizes 32 to 1024, in plain PyTorch.

Paper: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020).
Reference implementations: NVlabs/stylegan3 `training/networks_stylegan2.py` (whose parameter names are used here) and
rosinality/stylegan2-pytorch `model.py`. Both load and agree to 1e-4.
Deviations: style demodulation scales inputs and outputs instead of building one weight per sample (same numbers);
class-conditional networks and the "orig" and "resnet" ablations are not built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InvalidInputError
from .ops import EqualLinear, leaky_relu_gained, modulated_conv2d, upfirdn2d

Noise = str | Sequence[Tensor]
FeatureHook = Callable[[Tensor], Tensor]

MAPPING_LR_MUL = 0.01


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that fixes a generator's shape."""

    resolution: int  # output height and width, a power of two
    channels: tuple[int, ...]  # features per block, from 4x4 up to `resolution`
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None  # NVIDIA nets trained in mixed precision clamp every layer to +-256

    def __post_init__(self) -> None:
        log2 = math.log2(self.resolution) if self.resolution > 0 else 0.0
        if log2 != int(log2) or not 3 <= log2 <= 10:
            raise InvalidInputError(f"Generator resolution {self.resolution}: expected a power of two from 8 to 1024.")
        if len(self.channels) != int(log2) - 1:
            raise InvalidInputError(
                f"{len(self.channels)} channel counts {self.channels} for resolution {self.resolution}: "
                f"expected {int(log2) - 1}, one for each block from 4x4 up."
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """(4, 8, ..., resolution)."""
        return tuple(4 << k for k in range(len(self.channels)))

    @property
    def num_ws(self) -> int:
        """Rows of a w_plus code: 2 log2(resolution) - 2."""
        return 2 * len(self.channels)

    @staticmethod
    def official(resolution: int, channel_base: int = 32768, channel_max: int = 512, **kwargs: Any) -> GeneratorConfig:
        """config-f widths (channel_base 32768), config-e with 16384: C(r) = min(channel_base / r, channel_max)."""
        count = int(math.log2(resolution)) - 1
        channels = tuple(min(channel_base // (4 << k), channel_max) for k in range(count))
        return GeneratorConfig(resolution=resolution, channels=channels, **kwargs)


@dataclass(frozen=True)
class SynthesisHooks:
    """Where modulations enter the synthesis network (design: an inversion is w_plus plus modulations).

    after_upconv: resolution -> function on the up-convolution's output, before noise, bias and activation.
    after_block: resolution -> function on the features that leave a block; that block's RGB never sees the change.
    style: layer name (see `SynthesisNetwork.style_names`) -> function on that layer's style [B, C].
    """

    after_upconv: Mapping[int, FeatureHook] = field(default_factory=dict)
    after_block: Mapping[int, FeatureHook] = field(default_factory=dict)
    style: Mapping[str, FeatureHook] = field(default_factory=dict)


_NO_HOOKS = SynthesisHooks()


class MappingNetwork(nn.Module):
    """Mapping network z -> w. Keeps the running mean of w as `w_avg`."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.num_layers = config.mapping_layers
        self.z_dim = config.z_dim
        width = config.z_dim
        for index in range(config.mapping_layers):
            self.add_module(f"fc{index}", EqualLinear(width, config.w_dim, lr_mul=MAPPING_LR_MUL))
            width = config.w_dim
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """[B, z_dim] -> w [B, w_dim]; no truncation (see `Generator.truncate`)."""
        expected = self.z_dim
        if z.ndim != 2 or z.shape[1] != expected:
            raise InvalidInputError(f"mapping got z of shape {tuple(z.shape)}: expected [batch, {expected}].")
        x = z.float()
        x = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)
        for index in range(self.num_layers):
            x = leaky_relu_gained(getattr(self, f"fc{index}")(x))
        return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; optionally doubles the size first."""

    noise_const: Tensor

    def __init__(self, in_channels: int, out_channels: int, config: GeneratorConfig, resolution: int, up: bool) -> None:
        super().__init__()
        self.affine = EqualLinear(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.resolution = resolution
        self.up = up
        self.conv_clamp = config.conv_clamp

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None, hook: FeatureHook | None) -> Tensor:
        """[B, I, H, W], style [B, I], noise [B or 1, 1, r, r] -> [B, O, r, r]."""
        x = modulated_conv2d(x, self.weight, style, up=self.up)
        if hook is not None:
            x = hook(x.float()).to(x.dtype)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        x = leaky_relu_gained(x + self.bias.to(x.dtype)[:, None, None])
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, {self.resolution}x{self.resolution}, up={self.up}"


class ToRGB(nn.Module):
    """1x1 modulated convolution to RGB, without demodulation."""

    def __init__(self, in_channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.affine = EqualLinear(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.conv_clamp = config.conv_clamp

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """[B, I, r, r], style [B, I] -> RGB [B, 3, r, r], always float32: small errors add up over the skips."""
        rgb = modulated_conv2d(x, self.weight, style, demodulate=False).float() + self.bias[:, None, None]
        return rgb if self.conv_clamp is None else rgb.clamp(-self.conv_clamp, self.conv_clamp)


class SynthesisBlock(nn.Module):
    """All layers of one resolution: (up-convolution and) convolution, and the RGB skip."""

    def __init__(self, in_channels: int, out_channels: int, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(out_channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, config, resolution, up=True)
        self.conv1 = SynthesisLayer(out_channels, out_channels, config, resolution, up=False)
        self.torgb = ToRGB(out_channels, config)

    def layers(self) -> list[tuple[str, SynthesisLayer | ToRGB]]:
        """(name, module) in the order in which they consume styles."""
        convs = [] if self.resolution == 4 else [("conv0", self.conv0)]
        return [*convs, ("conv1", self.conv1), ("torgb", self.torgb)]


class SynthesisNetwork(nn.Module):
    """Synthesis network w_plus -> image."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        in_channels = 0
        for resolution, channels in zip(config.resolutions, config.channels, strict=True):
            self.add_module(f"b{resolution}", SynthesisBlock(in_channels, channels, config, resolution))
            in_channels = channels

    def blocks(self) -> list[SynthesisBlock]:
        """From 4x4 up."""
        return [getattr(self, f"b{resolution}") for resolution in self.config.resolutions]

    @property
    def style_names(self) -> tuple[str, ...]:
        """Layer names in StyleSpace order: b4.conv1, b4.torgb, b8.conv0, b8.conv1, b8.torgb, ..."""
        return tuple(f"b{block.resolution}.{name}" for block in self.blocks() for name, _ in block.layers())

    @property
    def style_rows(self) -> tuple[int, ...]:
        """The w_plus row that feeds each style of `style_names`; a block's torgb shares the next block's first row."""
        rows, row = [], 0
        for block in self.blocks():
            rows += [row + offset for offset in range(len(block.layers()))]
            row += len(block.layers()) - 1
        return tuple(rows)

    def styles(self, w_plus: Tensor) -> list[Tensor]:
        """W+ [B, num_ws, w_dim] -> style-space codes, one [B, C] per name of `style_names` (raw affine outputs)."""
        self._check_w_plus(w_plus)
        layers = [layer for block in self.blocks() for _, layer in block.layers()]
        w_plus = w_plus.float()
        return [layer.affine(w_plus[:, row]) for layer, row in zip(layers, self.style_rows, strict=True)]

    def noise_sizes(self) -> tuple[int, ...]:
        """Side of each noise map, in layer order: 4, 8, 8, 16, 16, ..."""
        return tuple(layer.resolution for layer in self._noisy_layers())

    def stored_noise(self) -> list[Tensor]:
        """The constant noise maps, [1, 1, r, r] each, in the order of `noise_sizes`."""
        return [layer.noise_const[None, None] for layer in self._noisy_layers()]

    def random_noise(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Fresh noise maps [batch, 1, r, r], drawn on the CPU so that a seed gives the same ones on every device."""
        device = next(self.parameters()).device
        return [torch.randn((batch, 1, r, r), generator=generator).to(device) for r in self.noise_sizes()]

    def _noisy_layers(self) -> list[SynthesisLayer]:
        return [layer for block in self.blocks() for _, layer in block.layers() if isinstance(layer, SynthesisLayer)]

    def forward(
        self,
        w_plus: Tensor,
        noise: Noise = "const",
        *,
        generator: torch.Generator | None = None,
        hooks: SynthesisHooks | None = None,
        styles: Sequence[Tensor] | None = None,
        taps: dict[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draws the image of a w_plus code.

        Args:
            w_plus: [B, num_ws, w_dim]; ignored where `styles` is given.
            noise: "const" (stored maps), "none", "random" (fresh, from `generator`), or one [B or 1, 1, r, r] tensor
                for each entry of `noise_sizes`.
            generator: CPU random generator for noise "random"; the same seed gives the same image on every device.
            hooks: changes to features and styles.
            styles: style-space codes in `style_names` order, to use in place of `w_plus`.
            taps: a dict that receives "upconv<r>" (before hook and noise) and "block<r>" (after the hook) features.
            dtype: of the convolutions; styles, demodulation, RGB and what hooks see stay float32.

        Returns:
            [B, 3, resolution, resolution], float32, nominal range [-1, 1], not clamped.

        Raises:
            InvalidInputError: wrong shape, an unknown noise mode, or an unknown hook position.
        """
        hooks = hooks or _NO_HOOKS
        self._check_hooks(hooks)
        if styles is None:
            styles = self.styles(w_plus)
        elif len(styles) != len(self.style_names):
            raise InvalidInputError(f"{len(styles)} style vectors given: this generator takes {len(self.style_names)}.")
        noises = iter(self._noises(noise, styles[0].shape[0], generator))
        remaining = iter(zip(self.style_names, styles, strict=True))

        def next_style() -> Tensor:
            name, style = next(remaining)
            return hooks.style[name](style) if name in hooks.style else style

        x, rgb = None, None
        for block in self.blocks():
            r = block.resolution
            if x is None:
                x = block.const.to(dtype).expand(styles[0].shape[0], -1, -1, -1)
            else:
                x = block.conv0(x, next_style(), next(noises), _tapped(hooks.after_upconv.get(r), taps, f"upconv{r}"))
            x = block.conv1(x, next_style(), next(noises), None)
            skip = 0.0 if rgb is None else upfirdn2d(rgb, up=2, pad=(2, 1), gain=4.0)
            rgb = skip + block.torgb(x, next_style())
            if r in hooks.after_block:
                x = hooks.after_block[r](x.float()).to(dtype)
            if taps is not None:
                taps[f"block{r}"] = x.float()
        assert rgb is not None
        return rgb

    def _noises(self, noise: Noise, batch: int, generator: torch.Generator | None) -> list[Tensor | None]:
        layers = self._noisy_layers()
        if isinstance(noise, str):
            if noise == "const":
                return list(self.stored_noise())
            if noise == "none":
                return [None for _ in layers]
            if noise == "random":
                return list(self.random_noise(batch, generator))
            raise InvalidInputError(f"noise {noise!r}: expected 'const', 'none', 'random' or a list of tensors.")
        if noise is None:
            raise InvalidInputError("noise None: expected 'const', 'none', 'random' or a list of tensors.")
        if len(noise) != len(layers):
            raise InvalidInputError(f"{len(noise)} noise maps given: this generator takes {len(layers)}.")
        for layer, n in zip(layers, noise, strict=True):
            if (
                n.ndim != 4
                or n.shape[0] not in (1, batch)
                or tuple(n.shape[1:]) != (1, layer.resolution, layer.resolution)
            ):
                raise InvalidInputError(
                    f"noise map of shape {tuple(n.shape)}: expected [1 or {batch}, 1, {layer.resolution}, {layer.resolution}]."
                )
        return list(noise)

    def _check_w_plus(self, w_plus: Tensor) -> None:
        expected = (self.config.num_ws, self.config.w_dim)
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != expected:
            raise InvalidInputError(
                f"synthesis got w_plus of shape {tuple(w_plus.shape)}: expected [batch, {expected[0]}, {expected[1]}]. "
                "Repeat a w code over the rows with Generator.broadcast."
            )

    def _check_hooks(self, hooks: SynthesisHooks) -> None:
        known = set(self.config.resolutions)
        for kind, places in (("after_block", hooks.after_block), ("after_upconv", hooks.after_upconv)):
            allowed = known - {4} if kind == "after_upconv" else known
            unknown = set(places) - allowed
            if unknown:
                raise InvalidInputError(
                    f"{kind} hook at resolution {sorted(unknown)}: this generator has {sorted(allowed)}."
                )
        unknown_styles = set(hooks.style) - set(self.style_names)
        if unknown_styles:
            raise InvalidInputError(
                f"style hook at {sorted(unknown_styles)}: known layers are {list(self.style_names)}."
            )


def _tapped(hook: FeatureHook | None, taps: dict[str, Tensor] | None, name: str) -> FeatureHook | None:
    if taps is None:
        return hook

    def record(x: Tensor) -> Tensor:
        taps[name] = x
        return x if hook is None else hook(x)

    return record


class Generator(nn.Module):
    """StyleGAN2: `mapping` (z -> w) and `synthesis` (w_plus -> image)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @property
    def num_ws(self) -> int:
        """Rows of a w_plus code."""
        return self.config.num_ws

    @property
    def resolution(self) -> int:
        """Height and width of the image."""
        return self.config.resolution

    @property
    def w_avg(self) -> Tensor:
        """Mean of w over z, [w_dim]: the truncation centre."""
        return self.mapping.w_avg

    def broadcast(self, w: Tensor) -> Tensor:
        """w [B, w_dim] -> w_plus [B, num_ws, w_dim]; a w_plus code is returned as it is."""
        return w[:, None].expand(-1, self.num_ws, -1) if w.ndim == 2 else w

    def truncate(self, w_plus: Tensor, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Pulls rows below `cutoff` (all of them by default) towards `w_avg`: w_avg + psi (w - w_avg).

        Args:
            w_plus: [B, num_ws, w_dim].
            psi: 1 changes nothing, 0 gives the average image.
            cutoff: number of leading rows to truncate.
        """
        if not math.isfinite(psi):
            raise InvalidInputError(f"Truncation psi {psi}: expected a finite number, usually 0 to 1.")
        if psi == 1.0:
            return w_plus
        pulled = self.w_avg.lerp(w_plus, psi)
        if cutoff is None:
            return pulled
        return torch.cat((pulled[:, :cutoff], w_plus[:, cutoff:]), dim=1)

    def forward(
        self, z: Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None, **synthesis: Any
    ) -> Tensor:
        """z [B, z_dim] -> image [B, 3, H, W]; keyword arguments go to `SynthesisNetwork.forward`."""
        w_plus = self.truncate(self.broadcast(self.mapping(z)), truncation_psi, truncation_cutoff)
        return self.synthesis(w_plus, **synthesis)

    @torch.no_grad()
    def sample_w(self, samples: int, seed: int = 0) -> Tensor:
        """w of seeded normal z, [samples, w_dim]; a seed gives the same codes on every device."""
        z = torch.randn(samples, self.config.z_dim, generator=torch.Generator().manual_seed(seed))
        return torch.cat([self.mapping(part.to(self.w_avg.device)) for part in z.split(1000)])

    def estimate_w_avg(self, samples: int = 10_000, seed: int = 0) -> Tensor:
        """Mean of w over seeded normal z, [w_dim]: for files that carry no average."""
        return self.sample_w(samples, seed).mean(dim=0)
