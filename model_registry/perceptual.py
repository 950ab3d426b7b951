"""Image distances whose weights come from the catalogue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.errors import InvalidInputError, MissingPackageError, ModelNotFoundError, UnsupportedModelError
from ..core.perceptual import trunk_distance
from . import catalogue, hub
from .loading import load_model
from .reading import read_weights

if TYPE_CHECKING:
    from ..core.losses import LayeredDistance

logger = logging.getLogger(__name__)

# name -> (network of the lpips package, catalogue id of its backbone)
_BACKBONES = {"lpips-vgg": ("vgg", "vgg16"), "lpips-alex": ("alex", "alexnet")}
_TRUNKS = {"portraits-perceptual": Path(__file__).with_name("bundled") / "portraits-perceptual.safetensors"}
BUNDLED_DISTANCE = "portraits-perceptual"


def available_distance(
    wanted: Sequence[str] = ("lpips-alex", "lpips-vgg"), *, size: int | None = 256
) -> LayeredDistance:
    """The first of these distances that this machine can use without a download, or else the bundled one.

    The `name` of the distance says which it is. Errors as of `perceptual_distance`, but for weights and packages that
    are not there.
    """
    for name in wanted:
        if name not in _BACKBONES:
            return perceptual_distance(name, size=size)
        try:
            _, model_id = _BACKBONES[name]
            # With its hash: a damaged file would be downloaded anew.
            path, problem = catalogue.locate(catalogue.find(model_id))
            if path is not None and problem is None:
                return perceptual_distance(name, size=size)
        except (ModelNotFoundError, MissingPackageError) as error:
            logger.info("%s is not used: %s", name, error)
    return perceptual_distance(BUNDLED_DISTANCE, size=size)


def perceptual_distance(
    name: str = "lpips-vgg",
    *,
    size: int | None = 256,
    progress: Callable[[int, int | None], None] | None = None,
    check_interrupt: Callable[[], None] | None = None,
) -> LayeredDistance:
    """A learned image distance, for `core.projection.project` and for measuring.

    Args:
        name: "lpips-vgg": LPIPS v0.1 (Zhang et al. 2018) on VGG16, whose 553 MB are downloaded at first use. The
            linear heads come with the `lpips` package. "lpips-alex": the same on AlexNet, whose file has to be put into a
            model folder by hand. "portraits-perceptual": the bundled `core.perceptual.PerceptualTrunk`,
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
        distance = trunk_distance(trunk, size=size)
        distance.name = name
        return distance
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
