"""What can be loaded and how: the catalogue, downloads, safe reading, architecture detection."""

from .loading import LoadedModel, convert, load_model, save_model
from .reading import PickledNetwork, RawFile, read_weights

__all__ = ["LoadedModel", "PickledNetwork", "RawFile", "convert", "load_model", "read_weights", "save_model"]
