"""The one place that imports ComfyUI: where it is not running, the stand-in of the same shape takes its place.

Everything nodes need of their host goes through here: schema classes, folders, devices, memory, progress, interrupt.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.imaging import to_pil
from ._paths import inside

logger = logging.getLogger(__name__)

# ComfyUI imports these before any node pack; finding them merely on the path would not mean that it runs.
RUNNING = {"folder_paths", "comfy.model_management", "comfy.utils"} <= sys.modules.keys()

if TYPE_CHECKING or not RUNNING:
    from .headless import stand_in as io
    from .headless import stand_in as ui
    from .headless.stand_in import ComfyExtension, ProgressBar
else:
    from comfy.utils import ProgressBar

    try:
        from comfy_api.v0_0_2 import ComfyExtension, io, ui
    except ImportError as error:
        raise ImportError("GAN Inversion needs ComfyUI 0.3.64 or newer: update ComfyUI.") from error

_host: Any = importlib.import_module("comfy.model_management") if RUNNING else io
_folders: Any = importlib.import_module("folder_paths") if RUNNING else io

__all__ = ["RUNNING", "ComfyExtension", "io", "ui"]

_Result = TypeVar("_Result")

MODEL_FOLDER = "stylegan"
MODEL_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".npy", ".npz", ".onnx"})
IMAGE_UPLOAD = io.UploadType.image

_PREVIEW_SIDE = 512  # pixels
_EVERYTHING = 1e30  # bytes: what the host asks for to unload all
_has_advanced = "advanced" in inspect.signature(io.Int.Input.__init__).parameters
# Keyword arguments of an expert's widget: newer editors fold these away.
EXPERT: dict[str, Any] = {"advanced": True} if _has_advanced else {}


def schema(*, search_aliases: Sequence[str] = (), **fields: Any) -> io.Schema:
    """A node's schema; synonyms for the search box are left out where the host does not know them."""
    if "search_aliases" in inspect.signature(io.Schema).parameters:
        fields["search_aliases"] = list(search_aliases)
    return io.Schema(**fields)


def input_directory() -> Path:
    """Where the user's pictures lie."""
    return Path(_folders.get_input_directory())


def output_directory() -> Path:
    """Where results go."""
    return Path(_folders.get_output_directory())


def temp_directory() -> Path:
    """Where previews go."""
    return Path(_folders.get_temp_directory())


def save_path(prefix: str, suffix: str, width: int = 0, height: int = 0) -> Path:
    """A new numbered file in the output folder.

    The prefix may name a subfolder and hold the fields %year%, %month%, %day%, %hour%, %minute%, %second%, %width% and
    %height%; width and height are pixels. Raises InvalidInputError for a prefix that leads out of the output folder.
    """
    root = output_directory().resolve()
    inside(root, prefix, "output folder")
    folder, name, number, _, _ = _folders.get_save_image_path(prefix, str(root), width, height)
    return Path(folder) / f"{name}_{number:05}_{suffix}"


def register_model_folder() -> None:
    """Makes ComfyUI's model folder "stylegan" ours too, keeping what the user or other packs put there.

    Its first place is where downloads of every kind go: generators, encoders, directions, detectors and perceptual
    networks alike, so that one folder holds all that this pack ever fetches.
    """
    from ..model_registry import catalogue

    if RUNNING:
        default = os.path.join(_folders.models_dir, MODEL_FOLDER)
        _folders.add_model_folder_path(MODEL_FOLDER, default)
        places, suffixes = _folders.folder_names_and_paths[MODEL_FOLDER]
        # A copy: packs often hand over a set that belongs to core.
        _folders.folder_names_and_paths[MODEL_FOLDER] = (places, set(suffixes) | MODEL_SUFFIXES)
        catalogue.register_model_dir(None, _model_folders)


def register_help_pages() -> None:
    """Has the help pages served where the editor looks for them too.

    It cuts the name of a pack's folder at the first dot or @: those of "gan-inversion-0.1.0" it expects at "gan-inversion-0".
    """
    if RUNNING:
        pack = Path(__file__).parents[1]
        served = getattr(sys.modules.get("nodes"), "EXTENSION_WEB_DIRS", {})
        served.setdefault(re.split("[.@]", pack.name)[0], str(pack / "web"))


def _model_folders() -> list[str]:
    return list(_folders.get_folder_paths(MODEL_FOLDER))


def device() -> torch.device:
    """Where networks run."""
    return _host.get_torch_device()


def intermediate_device() -> torch.device:
    """Where values between nodes lie."""
    return _host.intermediate_device()


def check_interrupt() -> None:
    """Raises the host's own exception when the user asked to stop."""
    _host.throw_exception_if_processing_interrupted()


class Progress:
    """A progress bar that stops at an interrupt; called with (done, total or None, preview [1, 3, H, W] or None)."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._bar = ProgressBar(total or 1)
        self._percent = -1

    def __call__(self, value: int, total: int | None = None, preview: Tensor | None = None) -> None:
        check_interrupt()
        total = total or self.total
        if total is None:
            return
        # Older hosts send every update to the browser: one for each percent is enough.
        percent = 100 * value // total
        if percent == self._percent and preview is None:
            return
        self._percent = percent
        picture = None if preview is None else ("JPEG", to_pil(preview[:1])[0], _PREVIEW_SIDE)
        self._bar.update_absolute(value, total, picture)


def progress(total: int | None = None) -> Progress:
    """A progress bar on the running node; None where each call tells the total, as downloads do."""
    return Progress(total)


@dataclass(frozen=True)
class Network:
    """A module that the host may move between devices; ComfyUI frees its memory when others need it."""

    module: nn.Module
    patcher: Any = field(default=None, repr=False)

    @staticmethod
    def of(module: nn.Module) -> Network:
        """Registers a module with the host.

        Not by its CoreModelPatcher, which may stream weights: that one expects casting layers, and never takes parameters
        of modules with children (all of StyleGAN2's convolutions) off the device again.
        """
        if not RUNNING:
            return Network(module)
        make = importlib.import_module("comfy.model_patcher").ModelPatcher
        return Network(module, make(module, load_device=device(), offload_device=_host.unet_offload_device()))

    def release(self) -> None:
        """Takes the module off the device and out of the host's list: for one that serves a single run."""
        with torch.inference_mode(False):
            if self.patcher is None:
                self.module.to("cpu")
                return
            loaded = _host.current_loaded_models
            for place in reversed(range(len(loaded))):
                if loaded[place].model is self.patcher:
                    loaded.pop(place).model_unload()
            self.module.to(self.patcher.offload_device)  # where loading ended half way


def load_models(networks: Iterable[Network], memory: int = 0) -> torch.device:
    """Brings networks to the device they run on and returns it; `memory` is what their activations need, in bytes."""
    networks = list(networks)
    # Weights moved in inference mode could never take part in an optimisation.
    with torch.inference_mode(False):
        if RUNNING:
            # Plain modules have no casting layers, so they cannot be loaded in part.
            _host.load_models_gpu([n.patcher for n in networks], memory_required=memory, force_full_load=True)
        for network in networks:
            # Under --novram the host leaves that to layers which plain modules do not have.
            network.module.to(device())
    return device()


@contextmanager
def on_device(
    networks: Iterable[Network], helpers: Iterable[nn.Module] = (), memory: int = 0
) -> Iterator[tuple[torch.device, list[Network]]]:
    """Networks on the device they run on, together with modules that serve this run alone.

    Args:
        networks: stay there afterwards, until the host needs their place.
        helpers: leave the device at the end, also after an error or an interrupt.
        memory: what their activations need, in bytes.

    Yields:
        (the device, the networks of all of them).
    """
    lent = [Network.of(module) for module in helpers]
    together = [*networks, *lent]
    try:
        yield load_models(together, memory), together
    finally:
        for network in lent:
            network.release()


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory is full."""
    if isinstance(error, torch.cuda.OutOfMemoryError):  # the one of every device that has its own
        return True
    known = getattr(_host, "is_oom", None)  # newer hosts; it also settles the device afterwards
    if known is not None and known(error):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()  # as MPS says it


def with_room(function: Callable[[], _Result], networks: Sequence[Network]) -> _Result:
    """function(); where memory runs out, once more after all models but these networks were pushed off the device."""
    try:
        return function()
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Only here, behind the handler, are the tensors of the first attempt gone.
    logger.warning("Memory ran out: other models leave the device for one more attempt.")
    if RUNNING:
        patchers = [network.patcher for network in networks]
        kept = [loaded for loaded in _host.current_loaded_models if any(loaded.model is p for p in patchers)]
        _host.free_memory(_EVERYTHING, device(), kept)
        _host.soft_empty_cache()
    return function()


@contextmanager
def optimising() -> Iterator[None]:
    """Leaves the inference mode that the host runs nodes in, so that gradients flow."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def in_chunks(
    function: Callable[[Tensor], Tensor],
    batch: Tensor,
    size: int,
    networks: Sequence[Network],
    report: Progress,
    done: int = 0,
) -> Tensor:
    """function(batch) in chunks of `size` rows, smaller ones when memory runs out, on the intermediate device.

    Single rows go through `with_room`, which keeps these networks on the device.
    """
    results: list[Tensor] = []

    def result(part: Tensor) -> Tensor:
        return function(part).to(intermediate_device())

    start = 0
    while start < len(batch):
        part = batch[start : start + size]
        if len(part) == 1:
            results.append(with_room(partial(result, part), networks))
        else:
            try:
                results.append(result(part))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                size = len(part) // 2
                continue
        start += len(part)
        report(done + start)
    return torch.cat(results)
