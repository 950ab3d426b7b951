"""Image distances used by projection and training.

`multiscale_distance` needs no weights. `lpips_distance` wraps the `lpips` package (Zhang et al. 2018, v0.1) around
backbone weights found by the caller, so that nothing is downloaded behind the user's back.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InvalidInputError, MissingPackageError

_LPIPS_NETS = ("vgg", "alex")
_LPIPS_EPSILON = 1e-10  # of the package's unit length
_TINY = 1e-20  # keeps the gradient finite where no channel is active
Distance = Callable[[Tensor, Tensor], Tensor]  # two [B, 3, H, W] in [-1, 1] -> [B]


def multiscale_distance(image: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """Mean over a box-filter pyramid of L1 on colours and on horizontal and vertical differences, [B].

    Differences make edges count: plain L1 is content with a blur. Both inputs [B, 3, H, W] in [-1, 1].
    """
    total = image.new_zeros(len(image))
    used = 0
    for level in range(levels):
        total = total + (image - target).abs().mean(dim=(1, 2, 3))
        for axis in (2, 3):
            total = total + (image.diff(dim=axis) - target.diff(dim=axis)).abs().mean(dim=(1, 2, 3))
        used += 1
        if min(image.shape[2:]) < 16 or level == levels - 1:
            break
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return total / used


class LayeredDistance:
    """A `Distance` of network features, whose terms can be looked at layer by layer and position by position.

    Subclasses give `features` and `maps`. Where one image stays the same, compute its features once.
    """

    name = "perceptual"
    network: nn.Module | None = None  # follows the images to their device, where it stays
    target_gradient = False  # whether calls also differentiate in the second image
    size: int | None = None  # larger images are area-downsampled to this side first, in pixels

    def at_size(self, size: int | None) -> LayeredDistance:
        """The same distance, with the same network, at another size; None compares at full size."""
        other = copy.copy(self)
        other.size = size
        return other

    def features(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> one [B, C, h, w] for each layer."""
        raise NotImplementedError

    def maps(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """Weighted squared differences of two lists of features, one [B, 1, h, w] for each layer."""
        raise NotImplementedError

    def between(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The distance [B] of two lists of features: the means of the maps, summed over layers."""
        return torch.stack([layer.mean(dim=(1, 2, 3)) for layer in self.maps(found, wanted)]).sum(dim=0)

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance [B] of two [B, 3, H, W] in [-1, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.target_gradient):
            wanted = self.features(target)
        return self.between(self.features(image), wanted)


class LpipsDistance(LayeredDistance):
    """LPIPS v0.1; see `lpips_distance`."""

    target_gradient = True

    def __init__(self, model: nn.Module, name: str, size: int | None) -> None:
        self.network = self.model = model
        self.name, self.size = name, size

    def features(self, image: Tensor) -> list[Tensor]:
        """Taps of the backbone, of unit length over channels."""
        model: Any = self.model.to(image.device)
        if self.size is not None and image.shape[-1] > self.size:
            image = F.interpolate(image, size=(self.size, self.size), mode="area")
        taps = model.net(model.scaling_layer(image))
        return [tap / ((tap.square().sum(dim=1, keepdim=True) + _TINY).sqrt() + _LPIPS_EPSILON) for tap in taps]

    def maps(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """Five maps, finest first, weighted by the linear heads."""
        lins: Any = self.model.lins
        return [lin((a - b).square()) for lin, a, b in zip(lins, found, wanted, strict=True)]


def lpips_distance(net: str, backbone: Mapping[str, Tensor], size: int | None = None) -> LpipsDistance:
    """LPIPS v0.1 with the given backbone weights.

    Args:
        net: "vgg" or "alex"; the linear heads come with the `lpips` package.
        backbone: torchvision's `features.N.weight/bias` of VGG16 or AlexNet.
        size: area-downsample both images to this size first (256 in most papers); None compares at full size.

    Returns:
        Function of two [B, 3, H, W] in [-1, 1] giving [B], with its layers.

    Raises:
        InvalidInputError: `backbone` is not that network.
        MissingPackageError: `lpips`, or the `torchvision` it needs, is not installed or does not work.
    """
    if net not in _LPIPS_NETS:
        raise InvalidInputError(f"LPIPS network {net!r}: expected one of {', '.join(_LPIPS_NETS)}.")
    # It makes its backbone with random values, all of which are replaced: the caller's own random numbers stay.
    lpips = import_lpips()
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it names torchvision's networks in the old way
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
    slices = dict(_backbone_names(model.net))
    missing = [key for key in slices.values() if key not in backbone]
    if missing:
        raise InvalidInputError(
            f"LPIPS backbone for {net!r} lacks {missing[0]} and {len(missing) - 1} more: expected torchvision's weights."
        )
    try:
        model.net.load_state_dict({name: backbone[key] for name, key in slices.items()})
    except RuntimeError as error:  # other shapes
        raise InvalidInputError(f"LPIPS backbone for {net!r}: {error}. Expected torchvision's weights.") from error
    return LpipsDistance(model, f"lpips-{net}", size)


def import_lpips() -> ModuleType:
    """The `lpips` package. Raises MissingPackageError saying what to install where it cannot be imported."""
    try:
        import lpips
    except Exception as error:  # a torchvision built for another torch fails in ways of its own while it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        found = f"{missing} is not installed" if missing else f"importing lpips fails ({type(error).__name__}: {error})"
        raise MissingPackageError(
            f"LPIPS cannot be used: {found}. It needs the packages lpips and torchvision, the latter in the version "
            f"made for torch {torch.__version__}. Install both (pip install lpips torchvision), or use "
            "multiscale_distance, which needs neither."
        ) from error
    return lpips


def _backbone_names(net: torch.nn.Module) -> list[tuple[str, str]]:
    """lpips names its layers slice<k>.<n>; n is torchvision's index in `features`."""
    return [(name, "features." + name.split(".", 1)[1]) for name in net.state_dict()]


def noise_regularization(noises: list[Tensor]) -> Tensor:
    """Penalty on noise maps that correlate with their neighbours, down to 8x8 (Karras et al. 2020, appendix D)."""
    loss = noises[0].new_zeros([])
    for noise in noises:
        while True:
            loss = (
                loss + (noise * noise.roll(1, dims=3)).mean().square() + (noise * noise.roll(1, dims=2)).mean().square()
            )
            if noise.shape[-1] <= 8:
                break
            noise = F.avg_pool2d(noise, 2) * 2  # the mean of four independent values has half their deviation
    return loss


def squared_norms(deltas: Tensor) -> Tensor:
    """Sum of squares over all but the first axis, [B]."""
    return deltas.flatten(1).square().sum(dim=1)


def require_finite(value: Tensor, what: str) -> None:
    """Raises NotFiniteError naming the images whose `value` [B, ...] is NaN or infinite."""
    from .errors import NotFiniteError

    bad = (~torch.isfinite(value.detach()).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError(f"{what} is not finite for image(s) {bad} of the batch. Check those inputs for NaN.")
