"""Save Inversion: one file with everything it takes to render the same picture again."""

from __future__ import annotations

from ._comfy import io, output_directory, save_path, schema, ui
from ._types import InversionSocket, InversionWire


class GANInversionSaveInversion(io.ComfyNode):
    """Writes inversions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionSaveInversion",
            display_name="Save Inversion",
            category="GAN Inversion/invert",
            description=(
                "Saves an inversion (photograph, codes, refinements, crop) as one safetensors file in the output "
                "folder, numbered like saved images. Load Inversion renders the same picture from it. The edit is not "
                "saved: apply it again."
            ),
            search_aliases=["save latent", "save code", "export inversion"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Encode, Project or a refining node."),
                io.String.Input(
                    "filename_prefix",
                    default="inversions/inversion",
                    optional=True,
                    tooltip="Start of the file name; may name a subfolder of the output folder and hold %year%, %month%, "
                    "%day%, %hour%, %minute%, %second%, %width% and %height%. A 1024 px portrait takes 13 MB.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name within the output folder.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion: InversionWire, filename_prefix: str = "inversions/inversion") -> io.NodeOutput:
        """Writes the file and shows its name."""
        height, width = inversion.inversion.image.shape[-2:]
        path = inversion.inversion.save(save_path(filename_prefix, ".safetensors", width, height))
        name = path.resolve().relative_to(output_directory().resolve()).as_posix()
        return io.NodeOutput(name, ui=ui.PreviewText(f"Saved {name}"))
