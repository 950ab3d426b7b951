"""Load Encoder: a catalogue id or a file -> e4e, pSp or ReStyle encoder."""

from __future__ import annotations

from ..core.encoders import Encoder
from ..core.errors import UnsupportedModelError
from ..model_registry import load_model
from . import _models
from ._comfy import Network, check_interrupt, io, progress, schema
from ._types import EncoderSocket, EncoderWire


class GANInversionLoadEncoder(io.ComfyNode):
    """Loads an encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionLoadEncoder",
            display_name="Load Encoder",
            category="GAN Inversion/models",
            description=(
                "Loads an encoder that turns aligned photographs into codes: e4e, pSp, or ReStyle over either. It must "
                "have been trained for the generator it is used with. Catalogue models are downloaded when the node "
                "first runs."
            ),
            search_aliases=["e4e", "psp", "restyle", "inversion", "encoder"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=_models.choices("encoder"),
                    tooltip="Bundled models first, then catalogue models (downloaded once into models/stylegan, "
                    "about 1.2 GB each), then your own files there. e4e codes are the easiest to edit, ReStyle is closer to the "
                    "photograph.",
                )
            ],
            outputs=[EncoderSocket.Output(display_name="encoder", tooltip="For Encode.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        """Whether the name is known; replaces the check against the list, which may have changed since."""
        return _models.check(model, "encoder")

    @classmethod
    def fingerprint_inputs(cls, model: str) -> str:
        """Changes with the file."""
        return _models.fingerprint(model, "encoder")

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        """Downloads if needed, then loads."""
        found = _models.resolve(model, "encoder")
        loaded = load_model(found, progress=progress(), check_interrupt=check_interrupt)
        if not isinstance(loaded.module, Encoder):
            raise UnsupportedModelError(
                f"{model} holds a network of kind {loaded.architecture}, expected an encoder (e4e, pSp, ReStyle): "
                "choose a generator in Load StyleGAN."
            )
        name = loaded.catalogue_id or loaded.path.name
        return io.NodeOutput(EncoderWire(loaded.module, name, Network.of(loaded.module), _models.domain_of(loaded)))
