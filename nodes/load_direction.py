"""Load Direction: a catalogue id or a file -> one direction."""

from __future__ import annotations

from ..core.directions import list_directions, load_direction
from ..core.editing import Direction
from ..core.errors import GANInversionError
from ..model_registry import hub
from . import _models
from ._comfy import EXPERT, check_interrupt, io, progress, schema
from ._types import DirectionSocket

_SHOWN = 12  # names listed in the report


class GANInversionLoadDirection(io.ComfyNode):
    """Loads a direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionLoadDirection",
            display_name="Load Direction",
            category="GAN Inversion/edit",
            description=(
                "Loads a direction to edit along, such as smile, age or head turn. Reads the published files "
                "(InterFaceGAN, GANSpace, SeFa, W+ offsets) and our own safetensors; catalogue files are downloaded "
                "when the node first runs."
            ),
            search_aliases=["interfacegan", "ganspace", "sefa", "smile", "age", "latent direction", "face edit"],
            inputs=[
                io.Combo.Input(
                    "direction",
                    options=_models.choices("direction"),
                    tooltip="Bundled directions first, then catalogue ones (a few kB to 6 MB, downloaded once into "
                    "models/stylegan), then your own files there. A direction only fits the generator it was made for.",
                ),
                io.String.Input(
                    "component",
                    default="",
                    optional=True,
                    tooltip="Which direction of a file that holds several: a number from 0 (principal components) or a "
                    "name such as smile, pose or age. Empty is the only or the first one.",
                ),
                io.Boolean.Input(
                    "absolute",
                    default=False,
                    optional=True,
                    **EXPERT,
                    tooltip="Principal components only: strength is the place to reach, in standard deviations, and "
                    "not a step from where the photograph is. e4e applies its GANSpace edits so.",
                ),
            ],
            outputs=[
                DirectionSocket.Output(display_name="direction", tooltip="For Apply Direction and Direction Sweep."),
                io.String.Output(
                    display_name="info", tooltip="Name, natural range and layers, and what else the file holds."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, direction: str) -> bool | str:
        """Whether the name is known; replaces the check against the list, which may have changed since."""
        return _models.check(direction, "direction")

    @classmethod
    def fingerprint_inputs(cls, direction: str, component: str = "", absolute: bool = False) -> str:
        """Changes with the file."""
        return _models.fingerprint(direction, "direction")

    @classmethod
    def execute(cls, direction: str, component: str = "", absolute: bool = False) -> io.NodeOutput:
        """Downloads if needed, then reads."""
        found = _models.resolve(direction, "direction")
        path = found
        if isinstance(found, str):
            path = hub.fetch(found, progress=progress(), check_interrupt=check_interrupt)
        wanted: int | str = component.strip()
        if str(wanted).isdecimal() or not wanted:
            wanted = int(wanted or 0)
        try:
            chosen = load_direction(path, component=wanted, absolute=absolute)
        except GANInversionError as error:
            raise type(error)(f"{direction}, component {component!r}: {error}") from error
        names = [one.name for one in list_directions(path, absolute=absolute)]
        others = ""
        if len(names) > 1:
            more = ", ..." if len(names) > _SHOWN else ""
            others = f"\nThe file holds {len(names)} directions: {', '.join(names[:_SHOWN])}{more}."
        return io.NodeOutput(chosen, in_words(chosen) + others)


def in_words(direction: Direction) -> str:
    """Name, natural range and layers of a direction."""
    low, high = direction.limits
    layers = "all layers" if direction.layers is None else f"layers {direction.layers[0]} to {direction.layers[1] - 1}"
    return f"{direction.name}: natural from {low:g} to {high:g}, {layers}. {direction.description}".rstrip()
