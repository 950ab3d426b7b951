"""What several nodes do with a generator: draw an inversion, and fit a photograph to the generator's frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.editing import Edit
from ..core.encoders import Encoder
from ..core.errors import InvalidInputError
from ..core.generator import Generator
from ..core.imaging import resize_antialiased
from ..core.inversion import Inversion, render
from ._comfy import Progress, intermediate_device, load_models
from ._types import GeneratorWire

_ASPECT_TOLERANCE = 0.02


def draw(
    inversion: Inversion,
    generator: GeneratorWire,
    edit: Edit | None,
    report: Progress,
    noise: str = "const",
    done: int = 0,
) -> Tensor:
    """Renders image by image, so that memory does not grow with the batch: [B, 3, R, R] in [-1, 1]."""
    device = load_models([generator.network], generator.activation_bytes)
    dtype = generator.dtype_on(device)
    images: list[Tensor] = []
    for index in range(len(inversion)):
        report(done + index)
        image = render(inversion[index].to(device), edit, noise=noise, dtype=dtype)
        images.append(image.clamp(-1.0, 1.0).to(intermediate_device()))
    report(done + len(inversion))
    return torch.cat(images)


def fit_to_generator(image: Tensor, generator: Generator, encoder: Encoder | None = None) -> Tensor:
    """An aligned photograph [B, 3, H, W] at the generator's size.

    A photograph of a wide (cars) encoder's aspect gets the black bars above and below that such generators draw.
    Raises InvalidInputError for other pictures that are not square.
    """
    height, width = image.shape[-2:]
    if height != width:
        rows, columns = encoder.config.input_size if encoder is not None else (1, 1)
        if rows == columns or abs(height / width - rows / columns) > _ASPECT_TOLERANCE:
            raise InvalidInputError(
                f"Input 'image' is {width}x{height}: expected an aligned, square picture. Put Align Face before this "
                "node."
            )
        above = (width - height) // 2
        image = F.pad(image, (0, 0, above, width - height - above), value=-1.0)
    return resize_antialiased(image, generator.resolution).clamp(-1.0, 1.0)


def tinted(image: Tensor, mask: Tensor, strength: float = 0.55) -> Tensor:
    """The pictures [B, 3, H, W] in [-1, 1] with a mask [B, 1, H, W] laid over them in red."""
    red = image.new_tensor([1.0, -0.8, -0.8])[:, None, None].expand_as(image)
    return torch.lerp(image, red, strength * mask.to(image))
