"""Face parsing: which part of a face each pixel belongs to, by BiSeNet and by class names.

Paper: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (ECCV 2018). Reference
implementation: zllrunning/face-parsing.PyTorch (`model.py`, `resnet.py`, `test.py`), whose parameter names are kept, so
that its published 79999_iter.pth fits. As there, the features of ResNet18's second stage stand for the spatial path.
Deviations: the picture is resized without rounding to 8 bits; logits go back to the picture's own size; widths are free.

Checkpoints number their classes differently, so everything here goes by name. The same part has the same name in
`CLASSES`, `CELEBM_CLASSES` and `LAPA_CLASSES`, and a `Parsing` carries the order that it was made with.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InvalidInputError, UnsupportedModelError
from .imaging import check_image, resize_antialiased

# Order of 79999_iter.pth. "mouth" is the inside between the lips. A side is the person's own, as in the official demo
# picture, but that network was trained on mirrored pictures whose labels kept their side: ask for both sides together.
CLASSES = (
    "background", "skin", "left-brow", "right-brow", "left-eye", "right-eye", "glasses", "left-ear", "right-ear",
    "earring", "nose", "mouth", "upper-lip", "lower-lip", "neck", "necklace", "cloth", "hair", "hat",
)  # fmt: skip
# Orders of the FaRL parsers in FacePerceiver/facer. Their "face" is called "skin" here: eyes, nose and lips are not in it.
CELEBM_CLASSES = (
    "background", "neck", "skin", "cloth", "right-ear", "left-ear", "right-brow", "left-brow", "right-eye", "left-eye",
    "nose", "mouth", "lower-lip", "upper-lip", "hair", "glasses", "hat", "earring", "necklace",
)  # fmt: skip
LAPA_CLASSES = (
    "background", "skin", "right-brow", "left-brow", "right-eye", "left-eye", "nose", "upper-lip", "mouth", "lower-lip",
    "hair",
)  # fmt: skip

# What SAM's code treats as one segment of a face (adobe-research/sam_inversion); hair, clothes and things worn stay apart.
FACE_SEGMENT = (
    "skin", "left-brow", "right-brow", "left-eye", "right-eye", "left-ear", "right-ear", "nose", "mouth", "upper-lip",
    "lower-lip", "neck",
)  # fmt: skip

_PALETTE = {
    "background": (0, 0, 0),
    "skin": (240, 200, 160),
    "left-brow": (110, 70, 20),
    "right-brow": (190, 130, 30),
    "left-eye": (40, 110, 255),
    "right-eye": (0, 220, 255),
    "glasses": (255, 255, 255),
    "left-ear": (255, 110, 0),
    "right-ear": (255, 180, 0),
    "earring": (255, 255, 0),
    "nose": (200, 60, 60),
    "mouth": (110, 0, 0),
    "upper-lip": (255, 0, 80),
    "lower-lip": (255, 110, 180),
    "neck": (170, 150, 190),
    "necklace": (160, 255, 80),
    "cloth": (0, 140, 70),
    "hair": (110, 60, 200),
    "hat": (0, 90, 130),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for colours in 0..1
_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def _check_classes(classes: Sequence[str]) -> None:
    named = isinstance(classes, tuple) and all(isinstance(name, str) and name for name in classes)
    if not named or not classes or len(set(classes)) != len(classes):
        raise InvalidInputError(f"Classes {classes!r}: expected a tuple of different names.")


@dataclass(frozen=True)
class FaceParserConfig:
    """Sizes of a `FaceParser`; the defaults are those of 79999_iter.pth."""

    stages: tuple[int, int, int, int] = (64, 128, 256, 512)  # channels at strides 4, 8, 16 and 32
    context: int = 128  # channels of the context path
    fusion: int = 256  # channels of the fused features, a multiple of 4
    head: int = 256  # channels inside the main head
    auxiliary_head: int = 64  # channels inside the two heads that only training uses
    classes: tuple[str, ...] = CLASSES
    size: int = 512  # pixels: side to which pictures are resized, whatever their proportions

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        sizes = (*self.stages, self.context, self.fusion, self.head, self.auxiliary_head, self.size)
        if len(self.stages) != len(_LAYERS) or min(sizes) < 1 or self.fusion % 4:
            raise InvalidInputError(
                f"Face parser with {self}: expected four stages, sizes of 1 or more, and a fusion that 4 divides."
            )

    @property
    def architecture(self) -> str:
        """Name of the network in files."""
        return "bisenet"

    @staticmethod
    def from_state_dict(
        tensors: Mapping[str, Tensor], classes: Sequence[str] | None = None, size: int | None = None
    ) -> FaceParserConfig:
        """Widths from shapes.

        Args:
            tensors: under the official names.
            classes: names in the network's order; None for `CLASSES`.
            size: see `FaceParserConfig`; None for 512.

        Raises:
            UnsupportedModelError: tensors are absent, or there are not as many classes as names.
        """
        stages = [f"cp.resnet.{layer}.0.conv1.weight" for layer in _LAYERS]
        others = [
            "cp.conv_avg.conv.weight",
            "ffm.convblk.conv.weight",
            "conv_out.conv.conv.weight",
            "conv_out16.conv.conv.weight",
            "conv_out.conv_out.weight",
        ]
        for name in (*stages, *others):
            if name not in tensors or tensors[name].ndim != 4:
                raise UnsupportedModelError(f"Face parser without a convolution {name}: the file is incomplete.")
        names = CLASSES if classes is None else tuple(classes)
        context, fusion, head, auxiliary, found = (tensors[name].shape[0] for name in others)
        if found != len(names):
            raise UnsupportedModelError(
                f"Face parser with {found} classes, and {len(names)} names for them: expected as many. "
                f"Known without a header are the {len(CLASSES)} classes of 79999_iter.pth."
            )
        first, second, third, fourth = (tensors[name].shape[0] for name in stages)
        widths = (first, second, third, fourth)
        return FaceParserConfig(
            widths, context, fusion, head, auxiliary, names, FaceParserConfig.size if size is None else size
        )


class _ConvNormReLU(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return F.relu(self.bn(self.conv(x)))


class _ResidualUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_ResidualUnit(inputs, outputs, stride), _ResidualUnit(outputs, outputs, 1))


class _ResNet18(nn.Module):
    def __init__(self, stages: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stages[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.layer1 = _stage(stages[0], stages[0], stride=1)  # the pooling has already halved the picture
        self.layer2 = _stage(stages[0], stages[1], stride=2)
        self.layer3 = _stage(stages[1], stages[2], stride=2)
        self.layer4 = _stage(stages[2], stages[3], stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] -> features at strides 8, 16 and 32, sides rounded up."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        stride_8 = self.layer2(self.layer1(x))
        stride_16 = self.layer3(stride_8)
        return stride_8, stride_16, self.layer4(stride_16)


class _AttentionRefinement(nn.Module):
    """A convolution whose channels are scaled by a gate made of their means."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _ConvNormReLU(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean(dim=(2, 3), keepdim=True))))


class _ContextPath(nn.Module):
    def __init__(self, config: FaceParserConfig) -> None:
        super().__init__()
        width = config.context
        self.resnet = _ResNet18(config.stages)
        self.arm16 = _AttentionRefinement(config.stages[2], width)
        self.arm32 = _AttentionRefinement(config.stages[3], width)
        self.conv_head32 = _ConvNormReLU(width, width)
        self.conv_head16 = _ConvNormReLU(width, width)
        self.conv_avg = _ConvNormReLU(config.stages[3], width, kernel=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] -> (stage features at stride 8, context at stride 8, context at stride 16)."""
        stride_8, stride_16, stride_32 = self.resnet(x)
        whole = self.conv_avg(stride_32.mean(dim=(2, 3), keepdim=True))  # [B, context, 1, 1]
        context_16 = self.conv_head32(_enlarged(self.arm32(stride_32) + whole, stride_16))
        context_8 = self.conv_head16(_enlarged(self.arm16(stride_16) + context_16, stride_8))
        return stride_8, context_8, context_16


class _FeatureFusion(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convblk = _ConvNormReLU(inputs, outputs, kernel=1)
        self.conv1 = nn.Conv2d(outputs, outputs // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs // 4, outputs, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two maps of one size -> [B, outputs, H, W]."""
        x = self.convblk(torch.cat([spatial, context], dim=1))
        gate = torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(dim=(2, 3), keepdim=True)))))
        return x * gate + x


class _Head(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = _ConvNormReLU(inputs, width)
        self.conv_out = nn.Conv2d(width, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> logits [B, classes, H, W]."""
        return self.conv_out(self.conv(x))


class FaceParser(nn.Module):
    """BiSeNet: pictures of one face -> class logits; `parse` makes a `Parsing` of them."""

    def __init__(self, config: FaceParserConfig = FaceParserConfig()) -> None:
        super().__init__()
        self.config = config
        count = len(config.classes)
        self.cp = _ContextPath(config)
        self.ffm = _FeatureFusion(config.stages[1] + config.context, config.fusion)
        self.conv_out = _Head(config.fusion, config.head, count)
        self.conv_out16 = _Head(config.context, config.auxiliary_head, count)
        self.conv_out32 = _Head(config.context, config.auxiliary_head, count)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.config.classes

    def forward(self, image: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
        """Logits of the main head.

        Args:
            image: [B, 3, H, W] in [-1, 1], of any size. The network expects one face that fills the picture about as
                an FFHQ or CelebA-HQ crop does.
            size: side, or (height, width), at which the network works; None for the configured one.

        Returns:
            [B, classes, H, W] float32, at the image's own size. Differentiable in the image.

        Raises:
            InvalidInputError: no such image, or an empty size. NotFiniteError.
        """
        pixels = self._pixels(image, size)
        stride_8, context_8, _ = self.cp(pixels)
        return _at_size(self.conv_out(self.ffm(stride_8, context_8)), pixels, image)

    def all_logits(self, image: Tensor, size: int | tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the main and the two auxiliary heads (strides 8 and 16), for training; see `forward`."""
        pixels = self._pixels(image, size)
        stride_8, context_8, context_16 = self.cp(pixels)
        main = self.conv_out(self.ffm(stride_8, context_8))
        others = self.conv_out16(context_8), self.conv_out32(context_16)
        return _at_size(main, pixels, image), _at_size(others[0], pixels, image), _at_size(others[1], pixels, image)

    def _pixels(self, image: Tensor, size: int | tuple[int, int] | None) -> Tensor:
        """What the first convolution sees: resized as PIL's bilinear filter does, normalised by ImageNet's statistics."""
        check_image(image)
        small = resize_antialiased(image, self.config.size if size is None else size)
        mean = torch.tensor(_MEAN, device=image.device, dtype=image.dtype)[:, None, None]
        std = torch.tensor(_STD, device=image.device, dtype=image.dtype)[:, None, None]
        return (((small + 1) / 2 - mean) / std).to(self.conv_out.conv_out.weight.dtype)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


def _at_size(logits: Tensor, pixels: Tensor, image: Tensor) -> Tensor:
    """Logits at a stride -> logits at the size of `image`.

    First to the network's working size, corners on corners as the network was trained; then the inverse of the resize.
    """
    logits = F.interpolate(logits.float(), size=pixels.shape[2:], mode="bilinear", align_corners=True)
    if pixels.shape[2:] != image.shape[2:]:
        logits = F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)
    return logits


class Parser(Protocol):
    """What `parse` needs: a network of any architecture that knows the names of its classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""

    def __call__(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> logits [B, classes, H, W]."""


@dataclass(frozen=True, eq=False)
class Parsing:
    """Class probabilities of every pixel, with the names of the classes."""

    probabilities: Tensor  # [B, classes, H, W] in 0..1
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        _check_probabilities(self.probabilities, self.classes)

    def of(self, *names: str, ignore_absent: bool = False) -> Tensor:
        """Probability that a pixel belongs to one of the named classes, [B, 1, H, W]; see `class_probability`."""
        return class_probability(self.probabilities, names, self.classes, ignore_absent=ignore_absent)

    def dominant(self) -> Tensor:
        """Index of each pixel's most probable class, [B, H, W] long. `name_of` tells its name."""
        return self.probabilities.argmax(dim=1)

    def name_of(self, index: int) -> str:
        """Name of the class with this index. Raises InvalidInputError where there is none."""
        if not 0 <= index < len(self.classes):
            raise InvalidInputError(f"Class {index}: this parsing has the classes 0 to {len(self.classes) - 1}.")
        return self.classes[int(index)]


@torch.no_grad()
def parse(parser: Parser, image: Tensor) -> Parsing:
    """Parses pictures of one face each.

    Args:
        parser: a `FaceParser` or another network with `classes`.
        image: [B, 3, H, W]; values outside [-1, 1] are clipped, as a saved picture's would be.

    Raises:
        InvalidInputError: no image batch, or the parser's logits do not fit it and its names. NotFiniteError.
    """
    logits = parser(check_image(image).clamp(-1, 1))
    if logits.shape[:1] + logits.shape[2:] != image.shape[:1] + image.shape[2:]:
        raise InvalidInputError(
            f"{type(parser).__name__} made logits {tuple(logits.shape)} of images {tuple(image.shape)}: expected "
            "[B, classes, H, W] of the same B, H and W."
        )
    return Parsing(logits.float().softmax(dim=1), tuple(parser.classes))


def face_segments(parsing: Parsing) -> Tensor:
    """Segments for methods that decide per segment: each pixel's most probable class, the face being one of them.

    Returns:
        Labels [B, H, W], int64: indices of `parsing.classes`; all of `FACE_SEGMENT` have the index of the first of them.
    """
    merged = [index for index, name in enumerate(parsing.classes) if name in FACE_SEGMENT]
    label = torch.arange(len(parsing.classes), device=parsing.probabilities.device)
    if merged:
        label[merged] = merged[0]
    return label[parsing.dominant()]


def class_probability(
    probabilities: Tensor, names: Iterable[str], classes: Sequence[str] = CLASSES, *, ignore_absent: bool = False
) -> Tensor:
    """Probability that a pixel belongs to any of the named classes.

    Args:
        probabilities: [B, classes, H, W].
        names: one or more; a name given twice counts once.
        classes: what the channels are.
        ignore_absent: names that this parser does not know (a LaPa parser has no "hat") count as 0 everywhere.

    Returns:
        [B, 1, H, W] in 0..1.

    Raises:
        InvalidInputError: no name, a name that is not among `classes`, one that no parser here has even where absent
            ones are ignored, or channels that are not as many as `classes`.
    """
    _check_probabilities(probabilities, classes)
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    known = {*classes, *CLASSES} if ignore_absent else classes
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        found = f"the class {unknown[0]!r}" if unknown else "no class at all"
        raise InvalidInputError(f"Asked for {found}: expected some of {', '.join(classes)}.")
    indices = [index for index, name in enumerate(classes) if name in wanted]
    return probabilities[:, indices].sum(dim=1, keepdim=True).clamp(max=1)  # rounding can exceed 1


def colour_map(parsing: Parsing) -> Tensor:
    """Each pixel in the colour of its most probable class, [B, 3, H, W] in [-1, 1]. One name has one colour always."""
    colours = torch.tensor([_colour(name) for name in parsing.classes], device=parsing.probabilities.device)
    return (colours[parsing.dominant()] / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def _colour(name: str) -> tuple[int, int, int]:
    """RGB in 0..255; a name that is not in the palette gets a hue of its own."""
    if name in _PALETTE:
        return _PALETTE[name]
    red, green, blue = colorsys.hsv_to_rgb(zlib.crc32(name.encode()) / 2**32, 0.6, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def _check_probabilities(probabilities: Tensor, classes: Sequence[str]) -> None:
    if probabilities.ndim != 4 or probabilities.shape[1] != len(classes):
        raise InvalidInputError(
            f"Class probabilities have shape {tuple(probabilities.shape)}: expected [B, {len(classes)}, H, W], "
            f"one channel for each of {', '.join(classes)}."
        )
