"""GAN Inversion: registers the pack with ComfyUI, and names what the library offers, each imported at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.alignment import CropTransform, align, paste_back
    from .core.blending import blend
    from .core.directions import list_directions, save_direction
    from .core.discovery import direction_from_images, direction_from_pairs, direction_from_sets, pca_of_w, sefa
    from .core.editing import Direction, Edit
    from .core.errors import GANInversionError
    from .core.faces import detect_faces, select_face
    from .core.imaging import load_image, save_image
    from .core.inversion import Inversion, render
    from .core.latents import interpolate, mix_styles, sample, sweep
    from .core.projection import ProjectionConfig, project
    from .model_registry import LoadedModel, convert, fetch, load_catalogue, load_direction, load_model, save_model

_PLACES = {
    "core.alignment": ("CropTransform", "align", "paste_back"),
    "core.blending": ("blend",),
    "core.directions": ("list_directions", "save_direction"),
    "core.discovery": ("direction_from_images", "direction_from_pairs", "direction_from_sets", "pca_of_w", "sefa"),
    "core.editing": ("Direction", "Edit"),
    "core.errors": ("GANInversionError",),
    "core.faces": ("detect_faces", "select_face"),
    "core.imaging": ("load_image", "save_image"),
    "core.inversion": ("Inversion", "render"),
    "core.latents": ("interpolate", "mix_styles", "sample", "sweep"),
    "core.projection": ("ProjectionConfig", "project"),
    "model_registry": (
        "LoadedModel", "convert", "fetch", "load_catalogue", "load_direction", "load_model", "save_model",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "CropTransform", "Direction", "Edit", "GANInversionError", "Inversion", "LoadedModel", "ProjectionConfig", "align",
    "blend", "convert", "detect_faces", "direction_from_images", "direction_from_pairs", "direction_from_sets",
    "fetch", "interpolate", "list_directions", "load_catalogue", "load_direction", "load_image", "load_model",
    "mix_styles", "paste_back", "pca_of_w", "project", "render", "sample", "save_direction", "save_image", "save_model",
    "sefa", "select_face", "sweep",
]  # fmt: skip

WEB_DIRECTORY = "./web"  # ComfyUI serves it as /extensions/FOLDER: help pages, no scripts


async def comfy_entrypoint() -> Any:
    """Called by ComfyUI."""
    from .nodes import extension

    return extension()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
