"""Socket types, what travels on their wires, and the step between ComfyUI's images and the library's.

ComfyUI: IMAGE [B, H, W, C] in 0..1, MASK [B, H, W] in 0..1. Library: [B, 3, H, W] in [-1, 1], masks [B, 1, H, W].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.alignment import CropTransform
from ..core.blending import match_mask
from ..core.editing import Edit, LayerRange
from ..core.encoders import Encoder
from ..core.errors import GeneratorMismatchError, InvalidInputError
from ..core.generator import Generator
from ..core.inversion import Inversion
from ..core.invertibility import LatentMap
from ._comfy import Network, intermediate_device, io

PREFIX = "GANINVERSION"
GeneratorSocket = io.Custom(f"{PREFIX}_GENERATOR")
EncoderSocket = io.Custom(f"{PREFIX}_ENCODER")
InversionSocket = io.Custom(f"{PREFIX}_INVERSION")
DirectionSocket = io.Custom(f"{PREFIX}_DIRECTION")  # a core.editing.Direction
CropSocket = io.Custom(f"{PREFIX}_CROP")
LatentMapSocket = io.Custom(f"{PREFIX}_LATENT_MAP")
# Types of ComfyUI itself; old versions have only the names.
FaceLandmarksSocket = io.Custom("FACE_LANDMARKS")
BoundingBoxSocket = io.Custom("BOUNDING_BOX")

_ACTIVATION_COPIES = 8  # tensors of the largest block's size alive at once in a forward pass, roughly


@dataclass(frozen=True, eq=False)
class GeneratorWire:
    """A loaded generator."""

    generator: Generator
    identity: str  # see core.fingerprint
    name: str  # catalogue id or file name
    network: Network
    dtype: torch.dtype = torch.float32  # of the convolutions on a GPU
    domain: str | None = None
    source: str | Path | None = None  # catalogue id or file it was loaded from

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The chosen dtype; CPUs always draw in float32, where the short types are slower and worse."""
        return torch.float32 if device.type == "cpu" else self.dtype

    @property
    def activation_bytes(self) -> int:
        """Rough memory of one forward pass of one image."""
        config = self.generator.config
        largest = max(c * r * r for c, r in zip(config.channels, config.resolutions, strict=True))
        return largest * 4 * _ACTIVATION_COPIES


@dataclass(frozen=True, eq=False)
class EncoderWire:
    """A loaded encoder."""

    encoder: Encoder
    name: str
    network: Network
    domain: str | None = None


@dataclass(frozen=True, eq=False)
class InversionWire:
    """Inverted images with the edit that was built up on the way; tensors lie on the intermediate device."""

    inversion: Inversion
    generator: GeneratorWire
    edit: Edit = Edit()

    def with_edit(self, more: Edit) -> InversionWire:
        """The same inversion with further directions."""
        return dataclasses.replace(self, edit=self.edit + more)


@dataclass(frozen=True, eq=False)
class LatentMapWire:
    """Which latent space each region is inverted in, and the errors that say so; on the intermediate device.

    Maps are of the photograph at 256 px or the generator's smaller size; where the generator's pictures have black bars,
    of what lies between them, so that they may be wider than high.
    """

    latent_map: LatentMap
    generator: GeneratorWire
    errors: Mapping[str, Tensor]  # space -> [B, 1, h, w]
    tau: float  # threshold of these errors


@dataclass(frozen=True, eq=False)
class CropsWire:
    """Where each image of a batch was cut from its photograph; None where no face was found."""

    crops: tuple[CropTransform | None, ...]


def to_core(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE -> [B, 3, H, W] in [-1, 1], float32, a copy. Grey is repeated, an alpha channel is left out.

    Raises InvalidInputError naming the input for any other shape.
    """
    return channels_first(image, name) * 2.0 - 1.0


def channels_first(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE -> [B, 3, H, W], float32, values unchanged, on the intermediate device; channels and errors as in `to_core`."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise InvalidInputError(f"Input {name!r} is {found}: expected an IMAGE [batch, height, width, 1, 3 or 4].")
    image = image[..., :3].expand(-1, -1, -1, 3).to(intermediate_device())
    return image.movedim(-1, 1).contiguous().float()


def to_comfy(image: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> IMAGE, clamped, float32, contiguous, on the intermediate device."""
    return channels_last(((image.detach().float() + 1.0) / 2.0).clamp(0.0, 1.0))


def channels_last(image: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, H, W, 3] on the intermediate device, values unchanged."""
    return image.detach().movedim(1, -1).contiguous().to(intermediate_device())


def mask_out(mask: Tensor) -> Tensor:
    """[B, 1, H, W] -> MASK on the intermediate device."""
    return mask.detach()[:, 0].contiguous().float().to(intermediate_device())


def mask_in(mask: Tensor | None, inversion: Inversion) -> Tensor | None:
    """MASK -> [B, 1, R, R] in 0..1 at the generator's size for each image of an inversion; None stays None."""
    side = inversion.generator.resolution
    return None if mask is None else match_mask(mask.to(intermediate_device()).float(), (side, side), len(inversion))


def painted(mask: Tensor | None) -> Tensor | None:
    """The mask on the intermediate device, or None where nothing at all is selected.

    LoadImage gives such a mask for a picture on which nobody painted: 64x64 without an alpha channel, else of its size.
    """
    return None if mask is None or not mask.any() else mask.to(intermediate_device())


def check_finite(**numbers: float) -> None:
    """Raises InvalidInputError naming the first input that is NaN or infinite; widgets refuse them, links do not."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise InvalidInputError(f"Input {name!r} is {number}: expected a finite number.")


def check_choice(name: str, value: object, options: Iterable[str]) -> None:
    """Raises InvalidInputError unless the input is one of its options; old versions of ComfyUI do not look at them."""
    known = list(options)
    if value not in known:
        raise InvalidInputError(f"Input {name!r} is {value!r}: expected one of {', '.join(map(repr, known))}.")


def item(batch: Tensor, index: int) -> Tensor:
    """Row `index` of a batch as a batch of 1; a batch of 1 serves every index."""
    return batch[index : index + 1] if len(batch) > 1 else batch


def common_batch(**sizes: int) -> int:
    """The batch size of inputs that must be equal or 1. Raises InvalidInputError naming them."""
    largest = max(sizes.values())
    if any(size not in (1, largest) for size in sizes.values()):
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InvalidInputError(f"Batches do not fit together: {found}. Expected equal numbers, or 1.")
    return largest


def layer_range(first: int, last: int, num_ws: int) -> LayerRange | None:
    """Widgets first_layer and last_layer (both included, -1 is the end) -> half-open range; None for untouched widgets.

    Raises InvalidInputError for a range outside the generator.
    """
    if first == 0 and last == -1:
        return None
    end = num_ws - 1 if last == -1 else last
    if not 0 <= first <= end < num_ws:
        raise InvalidInputError(
            f"first_layer {first}, last_layer {last}: expected 0 <= first_layer <= last_layer <= {num_ws - 1}, "
            "or -1 for the last one."
        )
    return first, end + 1


def crops_for(crop: CropsWire | None, count: int) -> Sequence[CropTransform | None]:
    """The crops to store with `count` images; empty when none are connected."""
    if crop is None:
        return ()
    if len(crop.crops) != count:
        raise InvalidInputError(
            f"Input 'crop' belongs to {len(crop.crops)} image(s), input 'image' holds {count}: "
            "connect both from the same Align Face."
        )
    return crop.crops


def check_same_generator(first: GeneratorWire, second: GeneratorWire, names: str) -> None:
    """Raises GeneratorMismatchError unless both are one generator."""
    if first.identity != second.identity:
        raise GeneratorMismatchError(
            f"{names} belong to different generators ({first.name}, {first.identity}; {second.name}, "
            f"{second.identity}): use one generator for both."
        )
