"""Image distances whose weights come from the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.errors import InvalidInputError, UnsupportedModelError
from ..core.perceptual import trunk_distance
from . import hub
from .loading import load_model
from .reading import read_weights

if TYPE_CHECKING:
    from ..core.losses import Distance

_BACKBONES = {"lpips-vgg": ("vgg", "vgg16")}  # name -> (network of the lpips package, catalogue id of its backbone)
_TRUNKS = {"portraits-perceptual": Path(__file__).with_name("bundled") / "portraits-perceptual.safetensors"}


def perceptual_distance(
    name: str = "lpips-vgg",
    *,
    size: int | None = 256,
    progress: Callable[[int, int | None], None] | None = None,
    check_interrupt: Callable[[], None] | None = None,
) -> Distance:
    """A learned image distance, for `core.projection.project` and for measuring.

    Args:
        name: "lpips-vgg": LPIPS v0.1 (Zhang et al. 2018) on VGG16, whose 553 MB are downloaded at first use. The
            linear heads come with the `lpips` package. "portraits-perceptual": the bundled `core.perceptual.PerceptualTrunk`,
            a stand-in that needs no download and no package; its values are no LPIPS scores.
        size: larger images are area-downsampled to this side first, in pixels; None compares at full size.
        progress: called with (bytes done, bytes in all or None) during a download.
        check_interrupt: called during a download; may raise to stop.

    Returns:
        Function of two [B, 3, H, W] in [-1, 1] giving [B].

    Raises:
        InvalidInputError: no distance of that name.
        MissingPackageError: `lpips` or `torchvision` is not installed or does not work; nothing was downloaded.
        ModelNotFoundError: the bundled file is missing.
        UnsupportedModelError: the backbone's file is another network.
        DownloadError, CorruptFileError.
    """
    from ..core.losses import import_lpips, lpips_distance

    if name in _TRUNKS:
        trunk = load_model(_TRUNKS[name], architecture="perceptual", check_interrupt=check_interrupt).module
        return trunk_distance(trunk, size=size)
    if name not in _BACKBONES:
        raise InvalidInputError(
            f"No perceptual distance {name!r}: expected one of {', '.join((*_BACKBONES, *_TRUNKS))}."
        )
    net, model_id = _BACKBONES[name]
    import_lpips()
    path = hub.fetch(model_id, progress=progress, check_interrupt=check_interrupt)
    with torch.inference_mode(False):  # ComfyUI runs nodes in it, and such weights could not be differentiated through
        content = read_weights(path).content
        features = {key: value for key, value in content.items() if str(key).startswith("features.")}
        try:
            return lpips_distance(net, features, size)
        except InvalidInputError as error:
            raise UnsupportedModelError(f"{path}: {error}") from error
