"""DHR Refine: an inversion -> one that keeps what the generator cannot draw, by segmentation and hybrid refinement."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.blending import MERGE_MODES
from ..core.dhr import DhrConfig, refine
from ..core.inversion import Inversion
from ..core.refinement import Refinement
from ._comfy import Progress, intermediate_device, io, progress, schema
from ._drawing import draw, tinted
from ._refinement import (
    DISTANCES,
    PARSERS,
    distance_input,
    distance_named,
    distance_words,
    find_face_parser,
    refine_wire,
    report_words,
    seconds_input,
    seed_input,
)
from ._types import InversionSocket, InversionWire, check_choice, check_finite, mask_in, mask_out, painted, to_comfy

if TYPE_CHECKING:
    from ..core.losses import LayeredDistance
    from ..core.parsing import FaceParser

_SEGMENTING, _REFINING = ("lpips-vgg",), ("lpips-alex", "lpips-vgg")  # upstream's choice first


class GANInversionDHRRefine(io.ComfyNode):
    """Refines inversions by DHR."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionDHRRefine",
            display_name="DHR Refine",
            category="GAN Inversion/refine",
            description=(
                "Brings back what the generator cannot draw: hats, hands, jewellery, backgrounds. Finds these parts of the "
                "photograph by itself (the mask), keeps them as features, and tunes the rest into the generator's weights, "
                "so that edits still work. Seconds on a GPU, about a quarter of a minute on a CPU with the bundled "
                "model. Edits made afterwards do not run it again."
            ),
            search_aliases=["dhr", "hybrid refinement", "out of domain", "segment", "keep hat", "refine inversion"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Encode, Project or another refining node."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the generator cannot draw, 1 is there: painted, or of any other node, in the frame of "
                    "the aligned photograph. An empty mask counts as none.",
                ),
                io.Combo.Input(
                    "merge",
                    options=list(MERGE_MODES),
                    default="union",
                    optional=True,
                    tooltip="What your mask does to the one found: union adds, intersect keeps the overlap, replace takes "
                    "its place (and saves the search), subtract removes.",
                ),
                io.Boolean.Input(
                    "keep_pixels",
                    default=True,
                    optional=True,
                    tooltip="Also paste the photograph's own pixels inside the mask, so that they stay exact under every "
                    "edit. Off is the published method: nearly the same pixels, and no edge where an edit moves things "
                    "near the mask.",
                ),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=2000,
                    optional=True,
                    tooltip="Refinement steps; the first half also tunes the weights. Time grows in proportion.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.1,
                    max=5.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    tooltip="Factor on the published thresholds: below 1 more of the photograph counts as undrawable, "
                    "above 1 less.",
                ),
                io.Combo.Input(
                    "face_parser",
                    options=list(PARSERS),
                    default=PARSERS[0],
                    optional=True,
                    tooltip="Takes background, clothes, hats and jewellery out and knows which parts are the face's. "
                    "automatic: BiSeNet for faces if its file is on this machine, else superpixels alone; the report says "
                    "which. bisenet-face-parsing downloads 53 MB once (non-commercial).",
                ),
                seconds_input(
                    "Time for the refinement of each image, after which the best so far is kept. 0 is no limit."
                ),
                seed_input("Of the coarse inversion that the segmentation compares with."),
                distance_input(),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The refined inversion, with its edit if any."
                ),
                io.Image.Output(display_name="reconstruction", tooltip="The refined inversion drawn unedited."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the generator cannot draw, 1 is there: for Blend, or to paint on.",
                ),
                io.Image.Output(display_name="segmentation", tooltip="The photograph with the mask tinted red."),
                io.String.Output(display_name="report", tooltip="What was used, and which images failed and why."),
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        mask: Tensor | None = None,
        merge: str = "union",
        keep_pixels: bool = True,
        steps: int = 100,
        threshold: float = 1.0,
        face_parser: str = PARSERS[0],
        seconds: float = 0.0,
        seed: int = 0,
        distance: str = DISTANCES[0],
    ) -> io.NodeOutput:
        """Segments and refines one image after another."""
        check_choice("merge", merge, MERGE_MODES)
        check_choice("face_parser", face_parser, PARSERS)
        check_choice("distance", distance, DISTANCES)
        chosen = mask_in(painted(mask), inversion.inversion)
        config = _config(keep_pixels, steps, threshold, seconds, seed)
        refining = distance_named(distance, _REFINING)
        replaces = chosen is not None and merge == "replace"  # nothing is segmented then
        segmenting = None if replaces else distance_named(distance, _SEGMENTING)
        parser = None if replaces else find_face_parser(face_parser, inversion.generator)
        each = steps + (0 if replaces else config.coarse_steps)

        def run(begun: Inversion, report: Progress) -> Refinement:
            return refine(
                begun,
                refining,
                config,
                out_of_domain=chosen,
                merge=merge,
                segment_distance=segmenting,
                parser=parser,
                progress=report,
            )

        wire, found = refine_wire(inversion, run, each, [refining, segmenting, parser])
        drawn = draw(wire.inversion, wire.generator, None, progress())
        assert found.out_of_domain is not None
        where = found.out_of_domain.to(intermediate_device())
        return io.NodeOutput(
            wire,
            to_comfy(drawn),
            mask_out(where),
            to_comfy(tinted(wire.inversion.image, where)),
            report_words(found, distance_words(refining, distance), _parts(segmenting, parser)),
        )


def _config(keep_pixels: bool, steps: int, threshold: float, seconds: float, seed: int) -> DhrConfig:
    check_finite(threshold=threshold, seconds=seconds)
    usual = DhrConfig()
    return dataclasses.replace(
        usual,
        steps=steps,
        weight_steps=max(1, round(steps * usual.weight_steps / usual.steps)),
        threshold=threshold * usual.threshold,
        part_thresholds={name: threshold * value for name, value in usual.part_thresholds.items()},
        keep_pixels=keep_pixels,
        seconds=seconds or None,
        seed=seed,
    )


def _parts(distance: LayeredDistance | None, parser: FaceParser | None) -> str:
    """What a report says of the segmentation."""
    if distance is None:
        return "The mask is the one given; nothing was segmented."
    if parser is not None:
        return f"Segmented with {distance.name} by face parsing and superpixels."
    return (
        f"Segmented with {distance.name} by superpixels alone: no face parser was used (bisenet-face-parsing is one)."
    )
