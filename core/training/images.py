"""Where real pictures come from in a training: morphs of a licensed bank, or a folder of the user's own."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..files import replacing
from .morphs import MorphModel

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MIN_IMAGES = 8


class RealImages(Protocol):
    """Draws real pictures from a random generator."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 3, r, r] in [-1, 1]; the same generator state gives the same pictures."""


class MorphImages:
    """Endless new faces of a `MorphModel`, drawn on its device."""

    def __init__(self, morphs: MorphModel, resolution: int) -> None:
        self.morphs, self.resolution = morphs, resolution

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """See `RealImages`."""
        return self.morphs.render(self.morphs.draw_codes(count, generator), self.resolution)


class FolderImages:
    """The pictures below a folder, cut to their middle square and resized once into one memory-mapped array."""

    def __init__(self, array: np.ndarray, *, mirror: bool = True, device: torch.device | str = "cpu") -> None:
        """Use `open`. Args: array: uint8 [N, 3, r, r]; mirror: half of the pictures are mirrored."""
        self.array, self.mirror, self.device = array, mirror, torch.device(device)

    @staticmethod
    def open(
        folder: Path, cache: Path, resolution: int, *, mirror: bool = True, device: torch.device | str = "cpu"
    ) -> FolderImages:
        """Reads the folder at the first call and whenever its files changed; later calls map the array in `cache`.

        Pictures that cannot be read are named in the log and left out.

        Raises:
            InvalidInputError: no such folder, or fewer than `MIN_IMAGES` readable pictures in it.
        """
        files = _pictures_in(folder)
        key = hashlib.sha256(
            "".join(f"{p.relative_to(folder)}{p.stat().st_size}{p.stat().st_mtime_ns};" for p in files).encode()
        ).hexdigest()
        data, index = cache / f"images-{resolution}.npy", cache / f"images-{resolution}.json"
        known = json.loads(index.read_text()) if index.is_file() and data.is_file() else {}
        if known.get("key") != key:
            cache.mkdir(parents=True, exist_ok=True)
            count = _write_array(files, data, resolution)
            if count < MIN_IMAGES:
                raise _too_few(folder, count)
            with replacing(index) as temporary:
                temporary.write_text(json.dumps({"key": key, "count": count}))
            known = {"count": count}
        return FolderImages(np.load(data, mmap_mode="r")[: known["count"]], mirror=mirror, device=device)

    def __len__(self) -> int:
        return len(self.array)

    def split(self, count: int) -> tuple[FolderImages, FolderImages]:
        """All pictures but the last `count`, and those, never mirrored."""
        rest = FolderImages(self.array[:-count], mirror=self.mirror, device=self.device)
        return rest, FolderImages(self.array[-count:], mirror=False, device=self.device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """See `RealImages`; pictures are drawn with replacement."""
        picked = torch.randint(len(self.array), (count,), generator=generator)
        images = torch.from_numpy(self.array[picked.numpy()]).to(self.device).float() / 127.5 - 1
        return _half_mirrored(images, generator) if self.mirror else images


class FolderFiles:
    """`FolderImages` without the array, which takes 3 bytes per pixel on disk: a picture is read when it is drawn."""

    def __init__(
        self, files: list[Path], resolution: int, *, mirror: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        """Use `open`."""
        self.files, self.resolution, self.mirror, self.device = files, resolution, mirror, torch.device(device)

    @staticmethod
    def open(folder: Path, resolution: int, *, mirror: bool = True, device: torch.device | str = "cpu") -> FolderFiles:
        """Lists the folder. Raises InvalidInputError: no such folder, or fewer than `MIN_IMAGES` pictures in it."""
        files = _pictures_in(folder)
        if len(files) < MIN_IMAGES:
            raise _too_few(folder, len(files))
        return FolderFiles(files, resolution, mirror=mirror, device=device)

    def __len__(self) -> int:
        return len(self.files)

    def split(self, count: int) -> tuple[FolderFiles, FolderFiles]:
        """All pictures but the last `count`, and those, never mirrored."""
        rest = FolderFiles(self.files[:-count], self.resolution, mirror=self.mirror, device=self.device)
        return rest, FolderFiles(self.files[-count:], self.resolution, mirror=False, device=self.device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """See `RealImages`; pictures are drawn with replacement. One that cannot be read gives way to the next.

        Raises InvalidInputError where none can be read.
        """
        picked = torch.randint(len(self.files), (count,), generator=generator).tolist()
        arrays = np.stack([self._readable(index) for index in picked])
        images = torch.from_numpy(arrays).to(self.device).float() / 127.5 - 1
        return _half_mirrored(images, generator) if self.mirror else images

    def _readable(self, index: int) -> np.ndarray:
        for offset in range(len(self.files)):
            square = _square(self.files[(index + offset) % len(self.files)], self.resolution)
            if square is not None:
                return square
        raise InvalidInputError(f"{self.files[index].parent}: none of the {len(self.files)} pictures can be read.")


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidInputError(f"{folder}: no such folder. --images takes a folder of pictures.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _too_few(folder: Path, count: int) -> InvalidInputError:
    return InvalidInputError(
        f"{folder}: {count} readable pictures in it. A training needs {MIN_IMAGES} at the very least, thousands to be "
        "good."
    )


def _half_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _square(file: Path, resolution: int) -> np.ndarray | None:
    """The picture's middle square, uint8 [3, r, r]; None, with a line in the log, where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (resolution, resolution), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        logger.warning("%s is left out: %s", file, error)
        return None
    return np.asarray(square).transpose(2, 0, 1)


def _write_array(files: list[Path], path: Path, resolution: int) -> int:
    """Writes uint8 [N, 3, r, r]; returns how many rows of it are filled."""
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (max(1, len(files)), 3, resolution, resolution))
        count = 0
        for file in files:
            square = _square(file, resolution)
            if square is not None:
                array[count] = square
                count += 1
        array.flush()
        del array
    logger.info("%d of %d pictures read at %d px", count, len(files), resolution)
    return count
