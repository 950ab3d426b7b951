"""Inversion encoders: e4e, pSp and the two ReStyle variants, with the official parameter names.

Papers: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (e4e, SIGGRAPH 2021); Richardson et al.,
"Encoding in Style" (pSp, CVPR 2021); Alaluf et al., "ReStyle" (ICCV 2021). Reference implementations:
omertov/encoder4editing and yuval-alaluf/restyle-encoder; both agree with this file to 1e-3 on w_plus.

One network class serves all the official ones, since they differ only in trunk, feature levels and the rule that
joins the rows: `encoder_config.py` has the table, and says how files are told apart.

Deviations: widths and depths are free, so that slim encoders use the same classes; a missing or unexpected key is an
error, where the official ReStyle loader passes over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Trunk
from .encoder_config import (
    ARCHITECTURES,
    ENCODER_TYPES,
    EncoderConfig,
    EncoderKind,
    detect_architecture,
    encoder_keys,
    listed,
)
from .errors import GeneratorMismatchError, InvalidInputError, UnsupportedModelError
from .generator import Generator
from .ops import EqualLinear
from .skeleton import skeleton

__all__ = [
    "ARCHITECTURES",
    "ENCODER_TYPES",
    "Encoder",
    "EncoderConfig",
    "EncoderKind",
    "StyleEncoder",
    "build_encoder",
    "detect_architecture",
    "encoder_keys",
]

_HEAD_INIT = 0.1  # scale of the last linear layer at the start of a training: the first codes lie near the average


class MapToStyle(nn.Module):
    """Stride-2 convolutions down to 1x1 and a linear layer: feature map -> one row of w_plus."""

    def __init__(self, in_channels: int, channels: int, w_dim: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(convs):
            conv = nn.Conv2d(in_channels if index == 0 else channels, channels, 3, 2, 1)
            nn.init.kaiming_normal_(conv.weight, a=0.01)
            layers += [conv, nn.LeakyReLU(0.01)]
        self.convs = nn.Sequential(*layers)
        self.linear = _head_linear(channels, w_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] with H, W <= 2^convs -> [B, w_dim]."""
        return self.linear(self.convs(x).flatten(1))


def _head_linear(in_features: int, w_dim: int) -> EqualLinear:
    linear = EqualLinear(in_features, w_dim)
    with torch.no_grad():
        linear.weight.mul_(_HEAD_INIT)
    return linear


class StyleEncoder(Trunk):
    """The network itself: trunk, map-to-style blocks, and the rule that joins their rows. Official parameter names."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(
            config.backbone, config.input_channels, config.stem, config.widths, config.units, config.se_reduction
        )
        self.config = config
        self.progressive_stage: int | None = None  # training of e4e: only the first so many deltas; None: all of them
        last = config.widths[-1]
        if config.kind.head == "single":
            self.linear = _head_linear(last, config.w_dim)
            return
        self.styles = nn.ModuleList()
        for row in range(config.style_count):
            level = (row >= config.coarse_ind) + (row >= config.middle_ind)
            self.styles.append(MapToStyle(last, config.style_channels, config.w_dim, config.last_convs + level))
        if config.kind.head == "pyramid":
            self.latlayer1 = nn.Conv2d(config.widths[-2], last, 1)
            self.latlayer2 = nn.Conv2d(config.widths[-3], last, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, input_channels, H, W] at the input size -> codes [B, num_ws, w_dim], relative to the average code."""
        config = self.config
        stages = self.stages(x)
        if config.kind.head == "single":
            code = self.linear(stages[-1].mean(dim=(2, 3)))
            return code[:, None].repeat(1, config.num_ws, 1)
        levels = self._levels(stages)
        rows = [self.styles[0](levels[0])]
        for row in range(1, config.num_ws):
            level = levels[(row >= config.coarse_ind) + (row >= config.middle_ind)]
            if not config.kind.progressive:
                rows.append(self.styles[row](level))
            elif self.progressive_stage is None or row <= self.progressive_stage:
                rows.append(rows[0] + self.styles[row](level))
            else:
                rows.append(rows[0])
        return torch.stack(rows, dim=1)

    def _levels(self, stages: list[Tensor]) -> list[Tensor]:
        """Feature maps for coarse, middle and fine rows, all with the last stage's width."""
        coarse = stages[-1]
        if self.config.kind.head != "pyramid":
            return [coarse]
        middle = _upsampled(coarse, self.latlayer1(stages[-2]))
        return [coarse, middle, _upsampled(middle, self.latlayer2(stages[-3]))]


def _upsampled(x: Tensor, onto: Tensor) -> Tensor:
    # align_corners=True is what the official pyramid was trained with.
    return F.interpolate(x, size=onto.shape[2:], mode="bilinear", align_corners=True) + onto


class Encoder(nn.Module):
    """Image -> w_plus. `Encoder(config)` starts untrained; `build_encoder` makes one from a file's tensors.

    `state_dict()` holds "encoder.*" with the official names and "latent_avg" [num_ws, w_dim].
    """

    latent_avg: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = StyleEncoder(config)
        self.register_buffer("latent_avg", torch.zeros(config.num_ws, config.w_dim))

    @property
    def num_ws(self) -> int:
        """Rows of w_plus."""
        return self.config.num_ws

    @property
    def w_dim(self) -> int:
        """Length of a row of w_plus."""
        return self.config.w_dim

    def forward(
        self,
        image: Tensor,
        generator: Generator | None = None,
        iterations: int = 5,
        return_all: bool = False,
    ) -> Tensor | list[Tensor]:
        """Encodes aligned images.

        Args:
            image: [B, 3, H, W] in [-1, 1], any size; see `resize`.
            generator: the StyleGAN2 the encoder was trained for. ReStyle needs it to draw its own reconstructions;
                for the others it is only checked.
            iterations: ReStyle passes (the official scripts use 5); the others make one pass.
            return_all: give the codes of every pass, in order, as a list.

        Returns:
            w_plus [B, num_ws, w_dim] with the average code already added, or a list of them.

        Raises:
            InvalidInputError: wrong image shape, or a ReStyle encoder without its generator.
            GeneratorMismatchError: the generator takes other codes than the encoder gives.
        """
        x = self.resize(image)
        if generator is not None:
            self._check_generator(generator)
        if not self.config.is_restyle:
            codes = self.encoder(x)
            if self.config.start_from_latent_avg:
                codes = codes + self.latent_avg
            return [codes] if return_all else codes
        generator = self._required(generator)
        if iterations < 1:
            raise InvalidInputError(f"iterations={iterations}: expected 1 or more.")
        codes = self.latent_avg.expand(x.shape[0], -1, -1)
        drawn = self.draw(codes[:1], generator).expand(x.shape[0], -1, -1, -1)
        passes = []
        for index in range(iterations):
            if index > 0:
                drawn = self.draw(codes, generator)
            codes = self.step(x, drawn, codes)
            passes.append(codes)
        return passes if return_all else codes

    def features(self, image: Tensor, generator: Generator | None = None, iterations: int = 5) -> list[Tensor]:
        """The trunk's maps of aligned images (SAMM compares them with the generator's); ReStyle's are of its last pass.

        Args: as in `forward`, whose result they do not change.

        Returns:
            The stem's output and those of all stages but the last: an IR-SE50 of S pixels gives [B, stem, S, S],
            [B, widths[0], S/2, S/2], [B, widths[1], S/4, S/4], ...; the stem of a ResNet34 has S/2 too.

        Raises:
            InvalidInputError, GeneratorMismatchError: as in `forward`.
        """
        x = self.resize(image)
        if self.config.is_restyle:
            codes = self.latent_avg.expand(x.shape[0], -1, -1)
            if iterations != 1:
                codes = cast(Tensor, self.forward(image, generator, iterations - 1))
            x = torch.cat((x, self.draw(codes, self._required(generator))), dim=1)
        return self.encoder.maps(x)[:-1]

    def resize(self, image: Tensor) -> Tensor:
        """Brings images to the trunk's input size, as PIL's antialiased bilinear filter would.

        The whole image is used, whatever its aspect. One exception: a square image for a 4:3 (cars) encoder is taken
        for a generator frame, whose useful part is the middle three quarters of the rows (64..448 of 512).

        Args:
            image: [B, 3, H, W] in [-1, 1].

        Returns:
            [B, 3, *input_size], float32.

        Raises:
            InvalidInputError: not a floating-point batch of RGB images.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape or not image.is_floating_point():
            raise InvalidInputError(
                f"The encoder got a {image.dtype} tensor of shape {tuple(image.shape)}: "
                "expected float [batch, 3, height, width] in [-1, 1]."
            )
        image = image.float()
        if image.shape[2] == image.shape[3]:
            image = image[:, :, self._useful_rows(image.shape[2])]
        if tuple(image.shape[2:]) == self.config.input_size:
            return image
        return F.interpolate(image, size=self.config.input_size, mode="bilinear", align_corners=False, antialias=True)

    def draw(self, w_plus: Tensor, generator: Generator) -> Tensor:
        """The reconstruction as ReStyle sees it: stored noise, useful rows, mean-pooled to the input size, no clamp."""
        image = generator.synthesis(w_plus, noise="const")
        return F.adaptive_avg_pool2d(image[:, :, self._useful_rows(image.shape[2])], self.config.input_size)

    def step(self, x: Tensor, drawn: Tensor, codes: Tensor) -> Tensor:
        """One ReStyle pass: image and reconstruction [B, 3, *input_size], codes of the last pass -> corrected codes."""
        return codes + self.encoder(torch.cat((x, drawn), dim=1))

    def _useful_rows(self, side: int) -> slice:
        height, width = self.config.input_size
        margin = side * (width - height) // (2 * width)
        return slice(margin, side - margin)

    def _required(self, generator: Generator | None) -> Generator:
        if generator is None:
            raise InvalidInputError(
                f"This {self.config.architecture} encoder corrects its own reconstruction and needs the generator it "
                "was trained for: call encoder(image, generator=G, iterations=5)."
            )
        return generator

    def _check_generator(self, generator: Generator) -> None:
        found = (generator.num_ws, generator.config.w_dim)
        if found != (self.num_ws, self.w_dim):
            raise GeneratorMismatchError(
                f"The encoder gives codes [{self.num_ws}, {self.w_dim}], the {generator.resolution} px generator takes "
                f"[{found[0]}, {found[1]}]: load the generator this encoder was trained for."
            )

    def set_latent_avg(self, latent_avg: Tensor) -> None:
        """Sets the average code: [w_dim], or [rows, w_dim] with one row or at least num_ws (the first ones are kept).

        Raises:
            InvalidInputError: another shape.
        """
        rows = latent_avg[None] if latent_avg.ndim == 1 else latent_avg
        fits = rows.ndim == 2 and rows.shape[1] == self.w_dim and (rows.shape[0] == 1 or rows.shape[0] >= self.num_ws)
        if not fits:
            raise InvalidInputError(
                f"latent_avg of shape {tuple(latent_avg.shape)}: "
                f"expected [{self.w_dim}] or [{self.num_ws}, {self.w_dim}]."
            )
        device = next(self.encoder.parameters()).device
        self.latent_avg = rows[: self.num_ws].detach().float().expand(self.num_ws, -1).to(device, copy=True)

    def load_encoder_state(
        self, state: Mapping[str, Tensor], latent_avg: Tensor | None = None, *, assign: bool = False
    ) -> None:
        """Loads an official or own state dict; every key must fit (only BatchNorm's counters may be missing).

        Args:
            state: keys with or without the prefix "encoder."; "decoder.*" is passed over, "latent_avg" is read.
            latent_avg: [w_dim] or [rows, w_dim], before the one in `state`.
            assign: share float32 tensors with `state` in place of copying them.

        Raises:
            UnsupportedModelError: missing, unexpected or misshapen keys, or no average code where one is added.
        """
        weights = encoder_keys(state)
        own = self.encoder.state_dict()
        for key in own.keys() - weights.keys():
            if key.endswith(".num_batches_tracked"):
                weights[key] = torch.zeros((), dtype=torch.long)  # dropped by some converters, unused at inference
        shared = own.keys() & weights.keys()
        problems = {
            "missing": own.keys() - weights.keys(),
            "unexpected": weights.keys() - own.keys(),
            "misshapen": {key for key in shared if own[key].shape != weights[key].shape},
        }
        report = [f"{len(keys)} {what} ({listed(keys)})" for what, keys in problems.items() if keys]
        if report:
            raise UnsupportedModelError(
                f"The tensors do not fit a {self.config.encoder_type} with {self.config.style_count} styles: "
                f"{'; '.join(report)}. "
                "The file is incomplete or holds another encoder."
            )
        latent_avg = state.get("latent_avg") if latent_avg is None else latent_avg
        if latent_avg is None and (self.config.start_from_latent_avg or self.config.is_restyle):
            raise UnsupportedModelError(
                "The file has no latent_avg, which is added to every code: pass latent_avg=generator.w_avg of the "
                "generator this encoder was trained for."
            )
        weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        self.encoder.load_state_dict(weights, assign=assign)
        self.set_latent_avg(torch.zeros(self.w_dim) if latent_avg is None else latent_avg)

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        config = self.config
        return (
            f"{config.architecture}, {config.encoder_type}, input {config.input_channels}x{config.input_size[0]}x"
            f"{config.input_size[1]} -> [{config.num_ws}, {config.w_dim}]"
        )


def build_encoder(config: EncoderConfig, state: Mapping[str, Tensor], latent_avg: Tensor | None = None) -> Encoder:
    """Makes an encoder in evaluation mode from a file's tensors, without initialising weights that are then replaced.

    Args: as in `Encoder.load_encoder_state`; float32 tensors are shared with `state`, others converted.

    Raises:
        UnsupportedModelError: missing, unexpected or misshapen keys, or no average code where one is added.
    """
    with skeleton():
        encoder = Encoder(config)
    encoder.load_encoder_state(state, latent_avg, assign=True)
    return encoder.eval()
