"""Load Inversion: a file of Save Inversion -> the inversion, to render or edit again."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InvalidInputError, ModelNotFoundError
from ..core.inversion import Inversion
from ._comfy import input_directory, intermediate_device, io, output_directory, schema
from ._models import file_fingerprint, files_below
from ._paths import inside, is_file
from ._types import CropSocket, CropsWire, GeneratorSocket, GeneratorWire, InversionSocket, InversionWire, to_comfy

_SUFFIX = ".safetensors"
_INPUT = " [input]"  # ComfyUI marks a file of another folder than the usual one so
_NONE = "none saved yet"


class GANInversionLoadInversion(io.ComfyNode):
    """Reads inversions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionLoadInversion",
            display_name="Load Inversion",
            category="GAN Inversion/invert",
            description=(
                "Loads an inversion written by Save Inversion, from the output or the input folder. Needs the "
                "generator it was made with, and refuses another one."
            ),
            search_aliases=["load latent", "load code", "import inversion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_choices(),
                    tooltip="Files of the output folder; those of the input folder are marked [input].",
                ),
                GeneratorSocket.Input("generator", tooltip="The generator the inversion was made with."),
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="For Apply Direction, Render and the others."),
                CropSocket.Output(
                    display_name="crop", tooltip="Where the picture was cut from its photograph, for Paste Back."
                ),
                io.Image.Output(display_name="aligned", tooltip="The aligned photograph that was inverted."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Whether the file is there and inside our folders; replaces the check against the list."""
        try:
            _path(file)
        except (InvalidInputError, ModelNotFoundError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, generator: GeneratorWire | None = None) -> str:
        """Changes with the file."""
        try:
            return file_fingerprint(_path(file))
        except (InvalidInputError, ModelNotFoundError):
            return file

    @classmethod
    def execute(cls, file: str, generator: GeneratorWire) -> io.NodeOutput:
        """Reads the file and checks that the generator fits."""
        inversion = Inversion.load(_path(file), generator.generator).to(intermediate_device())
        crops = inversion.crops or (None,) * len(inversion)
        return io.NodeOutput(InversionWire(inversion, generator), CropsWire(crops), to_comfy(inversion.image))


def _choices() -> list[str]:
    own = list(files_below(output_directory(), {_SUFFIX}))
    return [*own, *(name + _INPUT for name in files_below(input_directory(), {_SUFFIX}))] or [_NONE]


def _path(file: str) -> Path:
    if not isinstance(file, str):
        raise InvalidInputError(f"{file!r} is no file name: expected the name of a file of Save Inversion.")
    folder = input_directory() if file.endswith(_INPUT) else output_directory()
    path = inside(folder, file.removesuffix(_INPUT), "folder", follow_links=False)
    if not is_file(path):
        raise ModelNotFoundError(
            f"{path}: no such inversion file. Save one with Save Inversion, or choose one from the list."
        )
    return path
