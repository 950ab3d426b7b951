"""Load StyleGAN: a catalogue id or a file -> generator."""

from __future__ import annotations

import torch

from ..core.errors import UnsupportedModelError
from ..core.generator import Generator
from ..model_registry import load_model
from . import _models
from ._comfy import Network, check_interrupt, io, progress, schema
from ._types import GeneratorSocket, GeneratorWire, check_choice

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class GANInversionLoadStyleGAN(io.ComfyNode):
    """Loads a StyleGAN2 generator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionLoadStyleGAN",
            display_name="Load StyleGAN",
            category="GAN Inversion/models",
            description=(
                "Loads a StyleGAN2 generator. Catalogue models are downloaded when the node first runs; files are read "
                "from the models/stylegan folder (rosinality .pt, NVIDIA .pkl, .safetensors). No file can run code."
            ),
            search_aliases=["stylegan2", "gan", "ffhq", "generator", "load generator"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=_models.choices("generator"),
                    tooltip="Bundled models first, then catalogue models (downloaded once into models/stylegan, up to "
                    "400 MB), then your own files there. Downloads of every kind go to that one folder.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(_DTYPES),
                    default="auto",
                    optional=True,
                    tooltip="Number format of the convolutions on a GPU. auto is fp32, the exact one; fp16 and bf16 "
                    "take half the memory and are faster, with small differences in the picture. A CPU always uses "
                    "fp32.",
                ),
            ],
            outputs=[GeneratorSocket.Output(display_name="generator", tooltip="For every node that draws pictures.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        """Whether the name is known; replaces the check against the list, which may have changed since."""
        return _models.check(model, "generator")

    @classmethod
    def fingerprint_inputs(cls, model: str, dtype: str = "auto") -> str:
        """Changes with the file."""
        return _models.fingerprint(model, "generator")

    @classmethod
    def execute(cls, model: str, dtype: str = "auto") -> io.NodeOutput:
        """Downloads if needed, then loads."""
        check_choice("dtype", dtype, _DTYPES)
        found = _models.resolve(model, "generator")
        loaded = load_model(found, progress=progress(), check_interrupt=check_interrupt)
        if not isinstance(loaded.module, Generator):
            raise UnsupportedModelError(
                f"{model} holds a network of kind {loaded.architecture}, expected a StyleGAN2 generator: choose an "
                "encoder in Load Encoder."
            )
        name = loaded.catalogue_id or loaded.path.name
        network = Network.of(loaded.module)
        domain = _models.domain_of(loaded)
        return io.NodeOutput(
            GeneratorWire(loaded.module, loaded.identity, name, network, _DTYPES[dtype], domain, loaded.path)
        )
