"""Render: an inversion, with and without its edit -> pictures."""

from __future__ import annotations

from ._comfy import EXPERT, io, progress, schema
from ._drawing import draw
from ._types import InversionSocket, InversionWire, check_choice, to_comfy

_NOISES = ("const", "none")


class GANInversionRender(io.ComfyNode):
    """Draws inversions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionRender",
            display_name="Render",
            category="GAN Inversion/edit",
            description=(
                "Draws an inversion, with everything that refining nodes added to it, and with and without its edit. "
                "Takes milliseconds on a GPU and up to some seconds at 1024 px on a CPU."
            ),
            search_aliases=["draw", "decode", "generate", "synthesis", "stylegan"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Apply Direction, Encode, Project or Sample."),
                io.Combo.Input(
                    "noise",
                    options=list(_NOISES),
                    default="const",
                    optional=True,
                    **EXPERT,
                    tooltip="Fine texture such as pores and single hairs: const is the generator's stored noise, none "
                    "leaves it out and looks smoother.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="edited", tooltip="With all directions applied."),
                io.Image.Output(
                    display_name="unedited",
                    tooltip="Without any direction: for comparison, and for Paste Back's 'unedited'.",
                ),
            ],
        )

    @classmethod
    def execute(cls, inversion: InversionWire, noise: str = "const") -> io.NodeOutput:
        """One pass for each image, two where there is an edit."""
        check_choice("noise", noise, _NOISES)
        count = len(inversion.inversion)
        edited = bool(inversion.edit.terms)
        report = progress(count * (1 + edited))
        plain = to_comfy(draw(inversion.inversion, inversion.generator, None, report, noise))
        if not edited:
            return io.NodeOutput(plain, plain.clone())
        drawn = draw(inversion.inversion, inversion.generator, inversion.edit, report, noise, done=count)
        return io.NodeOutput(to_comfy(drawn), plain)
