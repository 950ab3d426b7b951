"""SAMM Align: an inversion -> one whose features fit the photograph, with the photograph kept where that fails."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.blending import MERGE_MODES
from ..core.errors import InvalidInputError
from ..core.imaging import from_pil, resize_antialiased
from ..core.inversion import Inversion
from ..core.latents import draw_grid
from ..core.refinement import Progress as StepProgress
from ..core.refinement import Refined, Refinement, refine_each
from ..core.samm import SEGMENTS, Aligned, align, without_alignment
from ..core.samm_image import ImageAlignmentConfig, align_image
from ..core.superpixels import superpixels
from . import _models
from ._alignment import AUTOMATIC, PER_IMAGE, Trained, methods, no_network, trained_for
from ._comfy import EXPERT, Progress, check_interrupt, intermediate_device, io, progress, schema
from ._drawing import draw, tinted
from ._flow_drawing import draw_flow, longest_shift
from ._refinement import (
    DISTANCES,
    distance_input,
    distance_named,
    distance_words,
    refine_wire,
    seconds_input,
    seed_input,
)
from ._types import (
    EncoderSocket,
    EncoderWire,
    InversionSocket,
    InversionWire,
    check_choice,
    check_finite,
    item,
    mask_in,
    mask_out,
    painted,
    to_comfy,
)

_PREFERRED = ("lpips-vgg", "lpips-alex")  # the original compares features of a VGG
_CELL = 512  # pixels: smallest side of a picture in the preview
_MOST_ITERATIONS = 3
_EDGES = _SOFT, _SUPERPIXELS = "soft", "superpixels"


class GANInversionSAMMAlign(io.ComfyNode):
    """Aligns inversions with their photographs by SAMM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionSAMMAlign",
            display_name="SAMM Align",
            category="GAN Inversion/refine",
            description=(
                "Keeps what the generator cannot draw (hats, hands, glasses, scribbles) as pixels of the photograph, and "
                "moves the generator's features so that both fit together. One pass of a trained network finds masks and "
                "flows; for generators without one they are optimised for each photograph: seconds on a GPU, about half "
                "a minute on a CPU with the bundled model. Edits made afterwards do not run it again."
            ),
            search_aliases=["samm", "ood", "out of domain", "invertibility decomposition", "mask", "keep hat", "warp"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Encode, Project or a refining node."),
                EncoderSocket.Input(
                    "encoder",
                    optional=True,
                    tooltip="The encoder that the network was trained with. Leave it empty: the network knows its own. "
                    "Needed for networks whose file does not name it. Not used without a network.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to keep the photograph, 1 is there: painted, or of any other node, in the frame of the "
                    "aligned photograph. An empty mask counts as none.",
                ),
                io.Combo.Input(
                    "merge",
                    options=list(MERGE_MODES),
                    default="union",
                    optional=True,
                    tooltip="What your mask does to the one found: union adds, intersect keeps the overlap, replace takes "
                    "its place, subtract removes.",
                ),
                io.Combo.Input(
                    "method",
                    options=methods(),
                    default=AUTOMATIC,
                    optional=True,
                    tooltip="automatic: the network trained for this generator if there is one on this machine, else per "
                    "image; the report says which. per image: optimises masks and flows, for any generator. Or a "
                    "network by its name.",
                ),
                io.Boolean.Input(
                    "warp",
                    default=True,
                    optional=True,
                    tooltip="Move features by the flows. Off keeps the generator's picture where it is and only blends.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    tooltip="Fainter parts of the mask found are left out; your own mask stays as it is. Raise it (0.3) "
                    "where an edited picture shows ghosts of the photograph.",
                ),
                io.Combo.Input(
                    "edges",
                    options=list(_EDGES),
                    default=_SOFT,
                    optional=True,
                    tooltip="soft: the mask as it was found. superpixels: each small patch of like colour is kept as a whole "
                    "or not at all, which closes holes and follows outlines.",
                ),
                io.Boolean.Input(
                    "follow_edit",
                    default=False,
                    optional=True,
                    tooltip="Find masks and flows on the picture with the edit that came with the inversion (Apply "
                    "Direction before this node), for renders with this very edit. Off: those of the unedited picture "
                    "serve every edit, and sliders run nothing again. Needs a network.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=_MOST_ITERATIONS,
                    optional=True,
                    **EXPERT,
                    tooltip="How often the network looks at its own result: 1 to 3, 0 is as it was trained (usually 2). "
                    "Not used per image.",
                ),
                io.Int.Input(
                    "steps",
                    default=ImageAlignmentConfig.steps,
                    min=1,
                    max=2000,
                    optional=True,
                    **EXPERT,
                    tooltip="Per image: optimisation steps. Time grows in proportion.",
                ),
                io.Boolean.Input(
                    "refine_w",
                    default=False,
                    optional=True,
                    **EXPERT,
                    tooltip="Per image: also move the code, which comes closer and edits a little less well.",
                ),
                seconds_input("Per image: time for each, after which the best so far is kept. 0 is no limit."),
                seed_input("Per image: of the flows' start."),
                distance_input(),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The aligned inversion, with its edit if any."
                ),
                io.Image.Output(display_name="reconstruction", tooltip="The aligned inversion drawn unedited."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the photograph is kept, 1 is there, with your mask and the threshold: to look at, for "
                    "Blend, or to paint on and give back as mask.",
                ),
                io.Mask.Output(
                    display_name="level_masks",
                    tooltip="The masks of every level, at the generator's size: first all of image 1 from coarse to fine, "
                    "then those of image 2, and so on; the report names the levels. The mask comes of them.",
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="Beside each other: the photograph with the mask tinted red, and how the finest level moves "
                    "features where its mask lets it (colour is direction, arrows end where features land).",
                ),
                io.String.Output(
                    display_name="report", tooltip="Which network, encoder and levels, and which images failed and why."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str = AUTOMATIC) -> bool | str:
        """Whether the network's name is known."""
        return method in (AUTOMATIC, PER_IMAGE) or _models.check(method, "samm")

    @classmethod
    def fingerprint_inputs(
        cls,
        inversion: InversionWire | None = None,
        encoder: EncoderWire | None = None,
        mask: Tensor | None = None,
        merge: str = "union",
        method: str = AUTOMATIC,
        warp: bool = True,
        mask_threshold: float = 0.0,
        edges: str = _SOFT,
        follow_edit: bool = False,
        iterations: int = 0,
        steps: int = ImageAlignmentConfig.steps,
        refine_w: bool = False,
        seconds: float = 0.0,
        seed: int = 0,
        distance: str = DISTANCES[0],
    ) -> str:
        """Changes with the network's file; with "automatic", with those that may be chosen."""
        if method == AUTOMATIC:
            return _models.all_fingerprints("samm")
        return method if method == PER_IMAGE else _models.fingerprint(method, "samm")

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        encoder: EncoderWire | None = None,
        mask: Tensor | None = None,
        merge: str = "union",
        method: str = AUTOMATIC,
        warp: bool = True,
        mask_threshold: float = 0.0,
        edges: str = _SOFT,
        follow_edit: bool = False,
        iterations: int = 0,
        steps: int = ImageAlignmentConfig.steps,
        refine_w: bool = False,
        seconds: float = 0.0,
        seed: int = 0,
        distance: str = DISTANCES[0],
    ) -> io.NodeOutput:
        """Aligns one image after another."""
        check_choice("merge", merge, MERGE_MODES)
        if not 0 <= iterations <= _MOST_ITERATIONS:
            raise InvalidInputError(
                f"Input 'iterations' is {iterations}: expected 1 to {_MOST_ITERATIONS}, or 0 for the network's own."
            )
        check_choice("distance", distance, DISTANCES)
        check_choice("edges", edges, _EDGES)
        check_finite(mask_threshold=mask_threshold, seconds=seconds)
        count = len(inversion.inversion)
        chosen = mask_in(painted(mask), inversion.inversion)
        config = ImageAlignmentConfig(steps=steps, refine_w=refine_w, seconds=seconds or None, seed=seed)
        trained = trained_for(method, inversion.generator, encoder)
        compared = None if trained is not None else distance_named(distance, _PREFERRED)
        edit = inversion.edit if follow_edit and inversion.edit.terms else None
        results: dict[int, Aligned] = {}

        def one(begun: Inversion, index: int, report: StepProgress | None) -> Refined:
            check_interrupt()
            own = None if chosen is None else item(chosen, index).to(begun.image)
            segments = superpixels(begun.image.clamp(-1, 1), SEGMENTS) if edges == _SUPERPIXELS else None
            made = [0]

            def done(step: int, total: int, preview: Tensor | None) -> None:
                made[0] = step
                if report is not None:
                    report(step, total, preview)

            if trained is not None:
                found = align(
                    begun, trained.encoder, trained.samm, edit=edit and edit.of_image(index, count), warp=warp, mask=own,
                    mask_mode=merge, mask_threshold=mask_threshold, segments=segments, iterations=iterations or None,
                )  # fmt: skip
                done(1, 1, tinted(begun.image, found.mask))
            else:
                assert compared is not None
                found = align_image(
                    begun, config, distance=compared, warp=warp, mask=own, mask_mode=merge,
                    mask_threshold=mask_threshold, segments=segments, progress=done,
                )  # fmt: skip
            results[index] = found
            return Refined(found.inversion, made[0], found.mask)

        def run(begun: Inversion, report: Progress) -> Refinement:
            # An earlier alignment is taken off first: what is added after that is this one's.
            return refine_each(without_alignment(begun), one, each, report)

        each = steps if trained is None else 1
        wired = trained is not None and encoder is not None
        helpers = [compared] if trained is None else [trained.samm] if wired else [trained.samm, trained.encoder]
        wire, found = refine_wire(
            inversion, run, each, helpers, [encoder.network] if wired and encoder is not None else ()
        )
        drawn = draw(wire.inversion, wire.generator, None, progress())
        assert found.out_of_domain is not None
        where = found.out_of_domain.to(intermediate_device())
        first = next(iter(results.values()))
        words = [_done(found, first, trained, iterations)]
        if trained is None:
            assert compared is not None
            words += [no_network(inversion.generator)] if method == AUTOMATIC else []
            words += [distance_words(compared, distance)]
        else:
            words.append(trained.note)
        words += [_kept(where, found), _about_edit(follow_edit, inversion, trained), found.problems()]
        return io.NodeOutput(
            wire,
            to_comfy(drawn),
            mask_out(where),
            mask_out(_level_masks(results, count, wire.generator.generator.resolution)),
            to_comfy(_preview(wire.inversion, where, results, warp)),
            " ".join(part for part in words if part),
        )


def _done(found: Refinement, first: Aligned, trained: Trained | None, iterations: int) -> str:
    """The first sentence of a report."""
    count, bad = len(found.inversion), len(found.failures)
    levels = f"levels of {', '.join(map(str, sorted(first.masks)))} px"
    if trained is not None:
        passes = iterations or trained.samm.config.iterations
        how = (
            f"by the SAMM network {trained.name} with features of {trained.encoder_name}, {passes} "
            f"iteration{'s' if passes > 1 else ''}"
        )
    else:
        made = [steps for index, steps in enumerate(found.steps) if index not in found.failures]
        steps = f"{min(made)}" if min(made) == max(made) else f"{min(made)} to {max(made)}"
        how = f"each on its own in {steps} steps, without a network"
    return f"Aligned {count - bad} of {count} image(s) {how}, {levels}."


def _kept(mask: Tensor, found: Refinement) -> str:
    shares = [f"{100 * float(m.mean()):.0f} %" for i, m in enumerate(mask) if i not in found.failures]
    return f"The photograph stays in {', '.join(shares)} of the picture."


def _about_edit(follow: bool, wire: InversionWire, trained: Trained | None) -> str:
    if not follow:
        return ""
    if trained is None:
        return "follow_edit needs a network: masks and flows are those of the unedited picture."
    if not wire.edit.terms:
        return "follow_edit found no edit: connect Apply Direction before this node."
    return "Masks and flows belong to this edit: another strength needs another run."


def _level_masks(results: dict[int, Aligned], count: int, side: int) -> Tensor:
    """[count * levels, 1, side, side], image by image; empty ones for images that failed."""
    first = next(iter(results.values()))
    masks = []
    for index in range(count):
        for resolution, like in sorted(first.masks.items()):
            mask = results[index].masks[resolution] if index in results else torch.zeros_like(like)
            masks.append(F.interpolate(mask.float(), size=(side, side), mode="bilinear", align_corners=False))
    return torch.cat(masks).clamp(0, 1).to(intermediate_device())


def _preview(inversion: Inversion, masks: Tensor, results: dict[int, Aligned], warp: bool) -> Tensor:
    """[B, 3, H, W] in [-1, 1]: photograph with mask, flow of the finest level."""
    sheets: list[Tensor] = []
    side = max(_CELL, inversion.generator.resolution)
    for index in range(len(inversion)):
        image, mask = inversion.image[index : index + 1].nan_to_num(), masks[index : index + 1]
        kept = f"kept: {100 * float(mask.mean()):.0f} % of the photograph"
        if index in results:
            found = results[index]
            finest = max(found.flows)
            flow, gate = found.flows[finest].to(image), found.masks[finest].to(image) * float(warp)
            picture, gain = draw_flow(image, flow, gate, side)
            far = longest_shift(flow, gate) * inversion.generator.resolution / 2
            drawn = f", arrows {gain}x" if gain > 1 else ""
            label = f"features moved up to {far:.1f} px{drawn}" if warp else "flow: left out"
        else:
            picture, label = resize_antialiased(image.clamp(-1, 1), side), "failed: as it was"
        grid = draw_grid(
            torch.cat((resize_antialiased(tinted(image, mask), side), picture)), column_labels=(kept, label), cell=side
        )
        sheets.append(from_pil(grid))
    return torch.cat(sheets)
