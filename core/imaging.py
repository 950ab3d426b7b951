"""Images in and out: files, PIL, uint8 arrays, and the one tensor layout of the library, [B, 3, H, W] in [-1, 1].

PIL measures (width, height); everything here that returns or takes a size uses (height, width).
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InvalidInputError, NotFiniteError
from .files import check_destination, replacing

_WHITE = 1.0
_WHITE_16_BIT = 65535.0
_LANCZOS_LOBES = 3


def check_image(image: torch.Tensor, name: str = "image", *, channels: int | None = 3) -> torch.Tensor:
    """Return the image unchanged if it is a finite float batch [B, C, H, W] with at least one pixel.

    channels=None accepts any number of channels. Raises InvalidInputError for a wrong type or shape and
    NotFiniteError, naming the first batch index, for NaN or infinity.
    """
    if not isinstance(image, torch.Tensor):
        raise InvalidInputError(f"{name} is a {type(image).__name__}; expected a torch tensor [B, {channels}, H, W].")
    wanted = f"[B, {'C' if channels is None else channels}, H, W]"
    if image.ndim != 4 or (channels is not None and image.shape[1] != channels):
        raise InvalidInputError(
            f"{name} has shape {tuple(image.shape)}; expected {wanted}. Put the batch axis first and the channels "
            "before height and width."
        )
    if 0 in image.shape:
        raise InvalidInputError(f"{name} has shape {tuple(image.shape)} and holds no pixels; expected {wanted}.")
    if not image.is_floating_point():
        raise InvalidInputError(
            f"{name} holds {image.dtype}; expected floats in [-1, 1]. Convert uint8 with imaging.from_uint8."
        )
    # One NaN or infinity makes the sum so, and summing a large photograph is several times faster than looking at it.
    if bool(torch.isfinite(image.detach().sum())):
        return image
    finite = torch.isfinite(image).flatten(1).all(dim=1)
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise NotFiniteError(
            f"{name} contains NaN or infinity in batch item {index}; expected finite values in [-1, 1]. "
            "Check the step that produced it."
        )
    return image


def from_uint8(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert uint8 pixels [H, W, 3] or [B, H, W, 3] (or grey [H, W]) to a float32 batch [B, 3, H, W] in [-1, 1].

    The inverse of `to_uint8`: the round trip gives the same bytes. Raises InvalidInputError for other layouts.
    """
    tensor = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if tensor.dtype != torch.uint8:
        raise InvalidInputError(f"Pixels are {tensor.dtype}; expected uint8 in 0..255.")
    if tensor.ndim == 2:
        tensor = tensor[..., None].expand(-1, -1, 3)
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[-1] != 3:
        raise InvalidInputError(f"Pixels have shape {tuple(tensor.shape)}; expected [H, W], [H, W, 3] or [B, H, W, 3].")
    return tensor.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


def to_uint8(image: torch.Tensor, *, truncate: bool = False) -> torch.Tensor:
    """Convert [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3] in 0..255, values outside the range clamped.

    Rounds to the nearest level. truncate=True cuts the fraction off instead, as `tensor2im` of the pixel2style2pixel
    family and NVIDIA's generate scripts do, for comparisons with their written files.
    """
    check_image(image)
    scaled = image.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5)
    levels = scaled if truncate else scaled.round()
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_pil(picture: Image.Image) -> torch.Tensor:
    """Convert a PIL image of any mode to [1, 3, H, W] in [-1, 1]; transparency is composited on white.

    White is 65535 in the modes "I;16...". The modes "I" and "F" do not say what white is: where PIL has just opened a
    file it is 65535 (only files deeper than 8 bits open as "I") and 1.0 (the use of floating-point pictures), in a
    picture made in memory it is 255, as in PIL's own conversions. Raises NotFiniteError for NaN or infinity.
    """
    return _split_alpha(picture, from_file=picture.format is not None)[0]


def to_pil(image: torch.Tensor, *, truncate: bool = False) -> list[Image.Image]:
    """Convert [B, 3, H, W] in [-1, 1] to a list of B RGB PIL images (see `to_uint8`)."""
    return [Image.fromarray(pixels) for pixels in to_uint8(image, truncate=truncate).cpu().numpy()]


def load_image(path: str | Path) -> torch.Tensor:
    """Read a picture file as [1, 3, H, W] in [-1, 1], upright by its EXIF orientation, transparency over white.

    Grey pictures deeper than 8 bits are read as in `from_pil`. Raises InvalidInputError when the file is missing or is
    not a readable picture.
    """
    return load_image_with_alpha(path)[0]


def load_image_with_alpha(path: str | Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read a picture file as (image [1, 3, H, W] in [-1, 1], alpha [1, 1, H, W] in 0..1 or None when it has none).

    The colours are composited on white, so the image alone is presentable. Raises InvalidInputError like `load_image`.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"There is no picture at {path}. Give the path of an existing PNG, JPEG or WebP file.")
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(
            f"{path.name} is not a picture that can be read ({error}). Give a complete PNG, JPEG or WebP file."
        ) from error
    return _split_alpha(upright, from_file=True)


def save_image(image: torch.Tensor, path: str | Path) -> None:
    """Write [1, 3, H, W] in [-1, 1] to a picture file whose format follows the suffix.

    The file appears only when complete. Raises InvalidInputError for a batch of more than one image, a suffix that is
    no picture format, and a path that cannot be a file.
    """
    if check_image(image).shape[0] != 1:
        raise InvalidInputError(f"Got {image.shape[0]} images for the one file {path}; save them one by one.")
    path = check_destination(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InvalidInputError(f"{path.name} has no suffix of a picture format. Use .png, .jpg or .webp.")
    with replacing(path) as temporary:
        try:
            to_pil(image)[0].save(temporary, format=kind)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's error, not the format's
                raise
            raise InvalidInputError(
                f"{path.name}: {kind} cannot hold this picture ({error}). Use .png, .jpg or .webp."
            ) from error


def resize_antialiased(image: torch.Tensor, size: int | tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Resize [B, C, H, W] to `size` (side, or (height, width)) with the kernel widened when shrinking, as PIL does.

    mode: "bilinear", "bicubic" or "lanczos". "bilinear" equals torchvision's Resize on a PIL image up to PIL's own
    rounding to 8 bits, which is what the e4e family feeds its encoders. Differentiable. The same size comes back
    untouched. Raises InvalidInputError for an unknown mode or an empty size.
    """
    check_image(image, channels=None)
    height, width = _pair(size)
    if mode not in ("bilinear", "bicubic", "lanczos"):
        raise InvalidInputError(f"Unknown resize mode {mode!r}; expected 'bilinear', 'bicubic' or 'lanczos'.")
    if (height, width) == tuple(image.shape[-2:]):
        return image
    if mode == "lanczos":
        return _lanczos_axis(_lanczos_axis(image, width, -1), height, -2)
    return F.interpolate(image, size=(height, width), mode=mode, align_corners=False, antialias=True)


def area_pool(image: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Shrink [B, C, H, W] to `size` by the mean over each target pixel's area (the face pool of ReStyle and pSp)."""
    check_image(image, channels=None)
    return F.adaptive_avg_pool2d(image, _pair(size))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InvalidInputError(f"Size ({height}, {width}) is empty; expected at least one pixel in height and width.")
    return int(height), int(width)


def _split_alpha(picture: Image.Image, from_file: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    white = _white_level(picture.mode, from_file)
    if white is not None:
        # PIL clips deep grey to 8 bits when it converts, which would turn most photographs white or black.
        grey = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise NotFiniteError("The picture contains NaN or infinity; expected finite grey levels.")
        picture = Image.fromarray(np.clip(np.rint(grey * (255.0 / white)), 0, 255).astype(np.uint8))
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    if not has_alpha:
        return from_uint8(np.array(picture.convert("RGB"))), None
    pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1)[None].float()
    alpha = pixels[:, 3:] / 255.0
    colours = pixels[:, :3] / 127.5 - 1.0
    # torch.where keeps fully opaque pixels exactly as they are in the file.
    return torch.where(alpha == 1.0, colours, alpha * colours + (1.0 - alpha) * _WHITE), alpha


def _white_level(mode: str, from_file: bool) -> float | None:
    """The value that means white in a PIL mode deeper than 8 bits, by the rule of `from_pil`; None for other modes."""
    if mode.startswith("I;16"):
        return _WHITE_16_BIT
    if mode not in ("I", "F"):
        return None
    if not from_file:
        return 255.0
    return _WHITE_16_BIT if mode == "I" else 1.0


def _lanczos_axis(image: torch.Tensor, length: int, axis: int) -> torch.Tensor:
    """Resample one axis with a Lanczos kernel of three lobes, edges renormalised instead of padded."""
    source_length = image.shape[axis]
    if source_length == length:
        return image
    scale = source_length / length
    stretch = max(scale, 1.0)
    reach = _LANCZOS_LOBES * stretch
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * scale
    first = torch.floor(centres - reach + 0.5).long()
    taps = first[:, None] + torch.arange(2 * math.ceil(reach) + 1)
    offset = (taps.double() + 0.5 - centres[:, None]) / stretch
    weights = torch.sinc(offset) * torch.sinc(offset / _LANCZOS_LOBES) * (offset.abs() < _LANCZOS_LOBES)
    weights = weights * ((taps >= 0) & (taps < source_length))
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(image.dtype).to(image.device)
    taps = taps.clamp(0, source_length - 1).to(image.device)
    shape = [1] * image.ndim
    shape[axis] = length
    # One tap at a time keeps the memory at one output image, whatever the scale.
    result = torch.zeros_like(image.index_select(axis, taps[:, 0]))
    for column in range(taps.shape[1]):
        result = result + image.index_select(axis, taps[:, column]) * weights[:, column].view(shape)
    return result
