"""What can be loaded and how: the catalogue, downloads, safe reading, architecture detection."""

from .catalogue import CatalogueEntry, load_catalogue
from .hub import fetch
from .loading import LoadedModel, convert, load_direction, load_model, save_model
from .perceptual import perceptual_distance
from .reading import PickledNetwork, RawFile, read_weights

__all__ = [
    "CatalogueEntry", "LoadedModel", "PickledNetwork", "RawFile", "convert", "fetch", "load_catalogue", "load_direction",
    "load_model", "perceptual_distance", "read_weights", "save_model",
]  # fmt: skip
