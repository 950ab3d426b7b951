"""What several nodes do with a generator: draw an inversion, and fit a photograph to the generator's frame."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.editing import Edit
from ..core.encoders import Encoder
from ..core.errors import InvalidInputError
from ..core.generator import Generator
from ..core.imaging import from_pil, resize_antialiased, to_pil
from ..core.inversion import Inversion, render
from ..core.invertibility import LatentMap, colour_preview, legend
from ._comfy import Progress, intermediate_device, load_models, with_room
from ._types import GeneratorWire

_ASPECT_TOLERANCE = 0.02
_LEGEND_WIDTH, _LEGEND_SHARE = 512, 32  # pixels at least; of them, one line of text
_TINT = 0.45  # strength of a map's colours over the photograph


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

    def drawn(one: Inversion) -> Tensor:
        image = render(one.to(device), edit, noise=noise, dtype=dtype)
        return image.clamp(-1.0, 1.0).to(intermediate_device())

    for index in range(len(inversion)):
        report(done + index)
        images.append(with_room(partial(drawn, inversion[index]), [generator.network]))
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


def latent_map_picture(latent_map: LatentMap, image: Tensor, shares: Mapping[str, Tensor]) -> Tensor:
    """The map [B, h, h] in colours over the photographs [B, 3, R, R], a legend with the shares [B] of its spaces below."""
    side = max(image.shape[-1], _LEGEND_WIDTH)
    photo = resize_antialiased(image.nan_to_num(0.0).clamp(-1, 1).float(), side)
    pictures = to_pil(colour_preview(latent_map, photo, _TINT))
    size = side // _LEGEND_SHARE
    font, colours = ImageFont.load_default(size), legend(latent_map)
    sheets = []
    for index, picture in enumerate(pictures):
        sheet = Image.new("RGB", (side, side + 2 * size), "white")
        sheet.paste(picture, (0, 0))
        pen = ImageDraw.Draw(sheet)
        for place, (space, colour) in enumerate(colours.items()):
            left, top = place * side // len(colours) + size // 2, side + size // 2
            pen.rectangle((left, top, left + size - 1, top + size - 1), fill=colour, outline="black")
            text = f"{space} {float(shares[space][index]):.0%}"
            pen.text((left + size + size // 3, side + size), text, fill="black", font=font, anchor="lm")
        sheets.append(from_pil(sheet))
    return torch.cat(sheets)


def tinted(image: Tensor, mask: Tensor, strength: float = 0.55) -> Tensor:
    """The pictures [B, 3, H, W] in [-1, 1] with a mask [B, 1, H, W] laid over them in red."""
    red = image.new_tensor([1.0, -0.8, -0.8])[:, None, None].expand_as(image)
    return torch.lerp(image, red, strength * mask.to(image))
