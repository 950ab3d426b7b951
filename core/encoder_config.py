"""What an inversion encoder's class name, keys and shapes say: configuration and detection.

Official class (`opts["encoder_type"]`)   architecture   trunk      rows of w_plus
Encoder4Editing                           e4e            IR-SE50    row 0 plus deltas, from a three-level pyramid
GradualStyleEncoder                       psp *          IR-SE50    independent, from a three-level pyramid
ResNetGradualStyleEncoder                 psp *          ResNet34   independent, from a three-level pyramid
BackboneEncoderUsingLastLayerIntoW        psp            IR-SE50    one code for all rows
ProgressiveBackboneEncoder                restyle-e4e    IR-SE50    row 0 plus deltas, from the last map
BackboneEncoder                           restyle-psp    IR-SE50    independent, from the last map
ResNetProgressiveBackboneEncoder          restyle-e4e    ResNet34   row 0 plus deltas, from the last map
ResNetBackboneEncoder                     restyle-psp    ResNet34   independent, from the last map
* restyle-psp with 6 input channels.

The e4e and pSp classes of one trunk have the same keys and the same shapes. Only `opts["encoder_type"]` tells them
apart: give it as `encoder_type=` (or give `architecture=`). For a file with neither, the row-0-plus-deltas class
(e4e, restyle-e4e) is assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .backbones import DEFAULT_UNITS, IR_SE50, RESNET34
from .errors import InvalidInputError, UnsupportedModelError

ARCHITECTURES = ("e4e", "psp", "restyle-e4e", "restyle-psp")

_STYLE_KEY = re.compile(r"styles\.(\d+)\.convs\.(\d+)\.weight")
_LISTED_KEYS = 6  # keys named in one error message


@dataclass(frozen=True)
class EncoderKind:
    """What an official class name stands for."""

    backbone: str
    head: str  # "pyramid": three feature levels; "last": the smallest map only; "single": one code for all rows
    progressive: bool  # row 0 plus deltas (e4e) rather than independent rows (pSp)
    input_channels: tuple[int, ...]  # 3: image; 6: image and the current reconstruction (ReStyle); the first is default


ENCODER_TYPES: dict[str, EncoderKind] = {
    "Encoder4Editing": EncoderKind(IR_SE50, "pyramid", True, (3,)),
    "GradualStyleEncoder": EncoderKind(IR_SE50, "pyramid", False, (3, 6)),
    "ResNetGradualStyleEncoder": EncoderKind(RESNET34, "pyramid", False, (6, 3)),
    "BackboneEncoderUsingLastLayerIntoW": EncoderKind(IR_SE50, "single", False, (3,)),
    "ProgressiveBackboneEncoder": EncoderKind(IR_SE50, "last", True, (6,)),
    "BackboneEncoder": EncoderKind(IR_SE50, "last", False, (6,)),
    "ResNetProgressiveBackboneEncoder": EncoderKind(RESNET34, "last", True, (6,)),
    "ResNetBackboneEncoder": EncoderKind(RESNET34, "last", False, (6,)),
}
_ALIASES = {"SingleStyleCodeEncoder": "BackboneEncoderUsingLastLayerIntoW"}  # the option's name in encoder4editing


def _architecture(kind: EncoderKind, input_channels: int) -> str:
    name = "e4e" if kind.progressive else "psp"
    return f"restyle-{name}" if input_channels == 6 else name


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes an encoder's shape; the defaults are the official e4e for a 1024 px generator.

    Zero and () stand for the usual value of the encoder type and are replaced by it, so equal encoders compare equal.
    """

    encoder_type: str = "Encoder4Editing"  # a key of ENCODER_TYPES
    num_ws: int = 18  # rows of w_plus that are returned: 2 log2(generator resolution) - 2
    w_dim: int = 512
    style_count: int = 0  # map-to-style blocks in the file; more than num_ws in cars encoders made for 18 rows
    input_size: tuple[int, int] = (256, 256)  # (height, width) the trunk sees; (192, 256) for cars
    input_channels: int = 0
    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)  # per stage, strictly growing: shapes alone must tell stages apart
    units: tuple[int, ...] = ()  # residual units per stage
    style_channels: int = 0  # of the convolutions in the map-to-style blocks; 0: the last width
    se_reduction: int = 16
    coarse_ind: int = 3  # pyramid: rows below this read the smallest map
    middle_ind: int = 7  # pyramid: rows from here on read the largest map
    domain: str = ""  # what the encoder was trained on: "ffhq", "cars", ...
    start_from_latent_avg: bool = True  # the average code is added to the output (ReStyle: always)

    def __post_init__(self) -> None:
        def settle(**values: Any) -> None:
            for name, value in values.items():
                object.__setattr__(self, name, value)

        settle(encoder_type=_ALIASES.get(self.encoder_type, self.encoder_type))
        if self.encoder_type not in ENCODER_TYPES:
            raise UnsupportedModelError(
                f"Encoder type {self.encoder_type!r} is not known: expected one of {', '.join(ENCODER_TYPES)}."
            )
        settle(
            style_count=self.style_count or self.num_ws,
            input_size=tuple(self.input_size),
            input_channels=self.input_channels or self.kind.input_channels[0],
            widths=tuple(self.widths),
            units=tuple(self.units) or DEFAULT_UNITS[self.backbone],
            style_channels=self.style_channels or self.widths[-1],
        )
        pyramid = self.kind.head == "pyramid"
        middle = min(self.middle_ind, self.style_count) if pyramid else self.style_count
        settle(middle_ind=middle, coarse_ind=min(self.coarse_ind, middle) if pyramid else self.style_count)
        if self.kind.head == "single":
            settle(style_channels=self.widths[-1])
        if self.backbone != IR_SE50:
            settle(se_reduction=16)
        self._check()

    def _check(self) -> None:
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise InvalidInputError(f"Encoder configuration: {message}")

        require(
            self.input_channels in self.kind.input_channels,
            f"{self.encoder_type} takes {self.kind.input_channels} input channels, got {self.input_channels}.",
        )
        require(1 <= self.num_ws <= self.style_count, f"num_ws {self.num_ws} of {self.style_count} styles.")
        require(
            len(self.widths) == len(self.units) >= 3, f"widths {self.widths} and units {self.units}: 3 stages or more."
        )
        require(min(self.units) >= 1, f"units {self.units}: expected one or more in each stage.")
        growing = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        require(growing, f"widths {self.widths}: expected strictly growing numbers.")
        if self.backbone == IR_SE50:
            even = all(width % self.se_reduction == 0 for width in self.widths)
            require(even, f"widths {self.widths}: expected multiples of se_reduction {self.se_reduction}.")
        require(self.coarse_ind >= 1, f"coarse_ind {self.coarse_ind}: row 0 reads the smallest map.")
        height, width = self.input_size
        require(
            16 <= height <= width, f"input_size {self.input_size}: expected (height, width) with 16 <= height <= width."
        )
        require(
            self.last_convs >= 1 and width == 1 << (self.last_convs + len(self.widths)),
            f"input_size {self.input_size}: expected a width that is a power of two, {2 << len(self.widths)} or more.",
        )

    @property
    def kind(self) -> EncoderKind:
        """What the encoder type stands for."""
        return ENCODER_TYPES[self.encoder_type]

    @property
    def backbone(self) -> str:
        """Trunk: "ir-se50" or "resnet34"."""
        return self.kind.backbone

    @property
    def architecture(self) -> str:
        """One of ARCHITECTURES."""
        return _architecture(self.kind, self.input_channels)

    @property
    def is_restyle(self) -> bool:
        """Whether the encoder sees its own reconstruction and needs a generator."""
        return self.input_channels == 6

    @property
    def last_convs(self) -> int:
        """Stride-2 convolutions of a map-to-style block on the smallest feature map, which bring it to 1x1."""
        return int(math.log2(self.input_size[1])) - len(self.widths)

    @staticmethod
    def from_state_dict(
        state: Mapping[str, Any],
        *,
        architecture: str | None = None,
        encoder_type: str | None = None,
        dataset_type: str | None = None,
        num_ws: int | None = None,
        input_size: tuple[int, int] | None = None,
        start_from_latent_avg: bool = True,
    ) -> EncoderConfig:
        """Reads every number of an encoder from the shapes of its tensors.

        Args:
            state: key -> tensor (or anything with `.shape`, or the shape itself). Keys with or without the prefix
                "encoder."; "decoder.*" and "latent_avg" are passed over.
            architecture: one of ARCHITECTURES, where the caller knows it.
            encoder_type: `opts["encoder_type"]` of the file. It alone tells e4e from pSp (see the module's header);
                with neither hint, e4e or restyle-e4e is assumed.
            dataset_type: `opts["dataset_type"]`, like "ffhq_encode". A name with "cars" gives the 4:3 input and, of 18
                rows, keeps the first 16.
            num_ws: rows to return, where it is not the number of styles. Needed for a single-code encoder.
            input_size: (height, width), where it is neither the square that the shapes imply nor the cars size.
            start_from_latent_avg: `opts["start_from_latent_avg"]`.

        Raises:
            UnsupportedModelError: the keys are not those of an encoder, or contradict a hint.
        """
        shapes = {key: tuple(getattr(value, "shape", value)) for key, value in encoder_keys(state).items()}
        backbone, head = _trunk_and_head(shapes)
        try:
            fields = _trunk_fields(shapes, backbone)
            fields |= _head_fields(shapes, head, num_ws)
            name = _encoder_type(backbone, head, fields["input_channels"], architecture, encoder_type)
            side = 1 << (fields.pop("side_convs") + len(fields["widths"]))
            cars = "cars" in (dataset_type or "")
            if num_ws is None and cars and fields["num_ws"] == 18:
                fields["num_ws"] = 16  # made for 18 rows, used with the 512 px generator
            return EncoderConfig(
                encoder_type=name,
                input_size=input_size or ((side * 3 // 4, side) if cars else (side, side)),
                domain=(dataset_type or "").removesuffix("_encode"),
                start_from_latent_avg=start_from_latent_avg,
                **fields,
            )
        except (KeyError, IndexError, ZeroDivisionError, InvalidInputError) as error:
            raise UnsupportedModelError(
                f"The file has the keys of an inversion encoder ({backbone}), but no encoder has its shapes: {error}. "
                "It is incomplete, or of a variant that is not built here."
            ) from error


def encoder_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's entries of a checkpoint's state dict, without the prefix "encoder."."""
    if any(key.startswith("encoder.") for key in state):
        return {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    return {key: value for key, value in state.items() if not key.startswith("decoder.") and key != "latent_avg"}


def detect_architecture(state: Mapping[str, Any] | Iterable[str], encoder_type: str | None = None) -> str | None:
    """Names the architecture a state dict belongs to, or None if it is no encoder of this file.

    Args:
        state: state dict (or key -> shape), or its keys alone. Keys alone do not show the input channels, so that
            a six-channel pyramid encoder then counts as "psp".
        encoder_type: `opts["encoder_type"]` where the file has it; without it e4e is assumed rather than pSp.

    Returns:
        "e4e", "psp", "restyle-e4e", "restyle-psp" or None.
    """
    entries = encoder_keys(state if isinstance(state, Mapping) else dict.fromkeys(state))
    try:
        backbone, head = _trunk_and_head(entries)
        first = entries["input_layer.0.weight" if backbone == IR_SE50 else "conv1.weight"]
        shape = getattr(first, "shape", first)
        channels = (6 if head == "last" else 3) if shape is None else tuple(shape)[1]
        return _architecture(ENCODER_TYPES[_encoder_type(backbone, head, channels, None, encoder_type)], channels)
    except UnsupportedModelError:
        return None


def _trunk_and_head(keys: Mapping[str, Any]) -> tuple[str, str]:
    if {"input_layer.0.weight", "input_layer.2.weight", "body.0.res_layer.5.fc1.weight"} <= keys.keys():
        backbone = IR_SE50
    elif {"conv1.weight", "relu.weight", "body.0.conv2.weight"} <= keys.keys():
        backbone = RESNET34
    else:
        raise UnsupportedModelError(
            f"These keys are not those of an e4e, pSp or ReStyle encoder: {listed(keys)}. "
            "Expected input_layer.* and body.* (IR-SE50), or conv1, relu and body.* (ResNet34)."
        )
    if {"styles.0.convs.0.weight", "styles.0.linear.weight"} <= keys.keys():
        pyramid = {"latlayer1.weight", "latlayer2.weight"} <= keys.keys()
        return backbone, "pyramid" if pyramid else "last"
    if "linear.weight" in keys and not any(key.startswith("styles.") for key in keys):
        return backbone, "single"
    raise UnsupportedModelError(
        "The file has an encoder's trunk but no map-to-style blocks: expected styles.0.convs.0.weight and "
        "styles.0.linear.weight. A face recognition network alone cannot invert an image."
    )


def _encoder_type(
    backbone: str, head: str, input_channels: int, architecture: str | None, encoder_type: str | None
) -> str:
    fitting = [
        name
        for name, kind in ENCODER_TYPES.items()
        if (kind.backbone, kind.head) == (backbone, head) and input_channels in kind.input_channels
    ]
    found = f"{backbone} with {input_channels} input channels, map-to-style head {head!r}"
    if not fitting:
        raise UnsupportedModelError(f"No encoder of this package has a trunk {found}: expected 3 or 6 input channels.")
    if encoder_type is not None:
        encoder_type = _ALIASES.get(encoder_type, encoder_type)
        if encoder_type not in fitting:
            raise UnsupportedModelError(
                f"The file names encoder type {encoder_type!r}, but its tensors ({found}) "
                f"are those of {' or '.join(fitting)}."
            )
        fitting = [encoder_type]
    if architecture is not None:
        known = fitting
        fitting = [name for name in fitting if _architecture(ENCODER_TYPES[name], input_channels) == architecture]
        if not fitting:
            raise UnsupportedModelError(
                f"Architecture {architecture!r} was asked for, but the tensors ({found}) "
                f"are those of {' or '.join(known)}."
            )
    return fitting[0]  # ENCODER_TYPES lists the row-0-plus-deltas class first


def _trunk_fields(shapes: Mapping[str, tuple[int, ...]], backbone: str) -> dict[str, Any]:
    first = shapes["input_layer.0.weight" if backbone == IR_SE50 else "conv1.weight"]
    name = "res_layer.3" if backbone == IR_SE50 else "conv2"
    depths: list[int] = []
    while f"body.{len(depths)}.{name}.weight" in shapes:
        depths.append(shapes[f"body.{len(depths)}.{name}.weight"][0])
    widths = tuple(dict.fromkeys(depths))
    fields: dict[str, Any] = {"stem": first[0], "input_channels": first[1], "widths": widths}
    fields["units"] = tuple(depths.count(width) for width in widths)
    if backbone == IR_SE50:
        fields["se_reduction"] = widths[-1] // shapes[f"body.{len(depths) - 1}.res_layer.5.fc1.weight"][0]
    return fields


def _head_fields(shapes: Mapping[str, tuple[int, ...]], head: str, num_ws: int | None) -> dict[str, Any]:
    if head == "single":
        if num_ws is None:
            raise UnsupportedModelError(
                "This encoder gives one code for all rows, so its file does not say how many rows there are: "
                "pass num_ws (18 for a 1024 px generator)."
            )
        # No convolution tells the input size either: the official 16 pixels of the last map are assumed.
        return {"num_ws": num_ws, "w_dim": shapes["linear.weight"][0], "side_convs": 4}
    found = [(int(match[1]), int(match[2])) for key in shapes if (match := _STYLE_KEY.fullmatch(key))]
    count = max(style for style, _ in found) + 1
    convs = [sum(style == index for style, _ in found) for index in range(count)]
    fields: dict[str, Any] = {"num_ws": num_ws or count, "style_count": count, "side_convs": convs[0]}
    fields["style_channels"] = shapes["styles.0.convs.0.weight"][0]
    fields["w_dim"] = shapes["styles.0.linear.weight"][0]
    if head == "pyramid":
        fields["coarse_ind"] = sum(n == convs[0] for n in convs)
        fields["middle_ind"] = sum(n <= convs[0] + 1 for n in convs)
    return fields


def listed(keys: Iterable[str]) -> str:
    """The first few of the keys, for an error message."""
    names = sorted(keys)
    rest = len(names) - _LISTED_KEYS
    return ", ".join(names[:_LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
