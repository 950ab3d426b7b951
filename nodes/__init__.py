"""The nodes: what a stage of the graph takes and gives, and one call into the library. No maths.

One module for each node; `_comfy` is the only one that imports ComfyUI.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULES = (
    "load_stylegan", "load_encoder", "align_face", "encode", "project", "predict_invertibility", "samm_align",
    "multilayer_invert", "dhr_refine", "tune_generator", "reganie_rectify", "load_direction", "discover_directions",
    "apply_direction", "render", "blend", "paste_back", "compare", "direction_sweep", "sample", "mix_styles",
    "save_inversion", "load_inversion",
)  # fmt: skip
_PREFIX = "GANInversion"


def all_nodes() -> dict[str, type[Any]]:
    """Node id -> class, in the order of a workflow."""
    nodes: dict[str, type[Any]] = {}
    for name in MODULES:
        module = importlib.import_module(f".{name}", __name__)
        # A node's id is the name of its class; base classes and errors are imported from elsewhere.
        nodes.update(
            {k: v for k, v in vars(module).items() if k.startswith(_PREFIX) and v.__module__ == module.__name__}
        )
    return nodes


def extension() -> Any:
    """The pack as ComfyUI takes it; also makes the model folder and the help pages known."""
    from ._comfy import ComfyExtension, register_help_pages, register_model_folder

    class GANInversionExtension(ComfyExtension):
        """All nodes of the pack."""

        async def get_node_list(self) -> list[type[Any]]:
            """The node classes."""
            return list(all_nodes().values())

    register_model_folder()
    register_help_pages()
    return GANInversionExtension()
