"""Blend: two pictures mixed by a mask, softened, grown and merged with a painted one as the user wants."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.blending import MERGE_MODES, blend, feather, match_mask, merge_masks
from ..core.imaging import resize_antialiased
from ._comfy import intermediate_device, io, schema
from ._types import channels_first, channels_last, check_choice, check_finite, common_batch, item, mask_out, painted

_MODES = _TAKE, _KEEP = "image inside mask", "source inside mask"


class GANInversionBlend(io.ComfyNode):
    """Mixes two pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionBlend",
            display_name="Blend",
            category="GAN Inversion/photo",
            description=(
                "Mixes two pictures of one size by a mask with a soft edge. A painted mask can extend or replace a "
                "predicted one. Pixels of the source that the mask does not touch stay exactly as they are."
            ),
            search_aliases=["composite", "mask blend", "feather", "out of domain blend"],
            inputs=[
                io.Image.Input("source", tooltip="The picture to keep where the mask does not say otherwise."),
                io.Image.Input("image", tooltip="The picture to bring in; resized to the source where sizes differ."),
                io.Mask.Input("mask", tooltip="Any size; 1 is selected. One mask serves a whole batch."),
                io.Float.Input(
                    "feather",
                    default=8.0,
                    min=0.0,
                    max=256.0,
                    step=1.0,
                    optional=True,
                    tooltip="Width of the soft edge in pixels of the source. 0 is a hard edge; 5 to 30 is useful.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(_MODES),
                    default=_TAKE,
                    optional=True,
                    tooltip="What the mask selects: the part that comes from the image, or the part of the source to "
                    "protect (a hat, a hand).",
                ),
                io.Boolean.Input(
                    "grow",
                    default=False,
                    optional=True,
                    tooltip="Widen the mask by the feather first, so that all of what was selected stays fully "
                    "selected.",
                ),
                io.Mask.Input(
                    "painted_mask",
                    optional=True,
                    tooltip="A second mask, such as one painted by hand, merged in. An entirely empty mask, which Load "
                    "Image gives for a picture without transparency, counts as no mask: the first one stays as it is, "
                    "whatever merge says.",
                ),
                io.Combo.Input(
                    "merge",
                    options=list(MERGE_MODES),
                    default="union",
                    optional=True,
                    tooltip="How the painted mask changes the first: union adds, intersect keeps the overlap, replace "
                    "takes its place, subtract removes.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The blended pictures, in the source's size."),
                io.Mask.Output(display_name="mask", tooltip="The mask that was used, after merging and softening."),
            ],
        )

    @classmethod
    def execute(
        cls,
        source: Tensor,
        image: Tensor,
        mask: Tensor,
        feather: float = 8.0,
        mode: str = _TAKE,
        grow: bool = False,
        painted_mask: Tensor | None = None,
        merge: str = "union",
    ) -> io.NodeOutput:
        """Blends in ComfyUI's own range, so that untouched pixels keep their bits."""
        check_choice("mode", mode, _MODES)
        check_choice("merge", merge, MERGE_MODES)
        check_finite(feather=feather)
        base, new = channels_first(source, "source"), channels_first(image, "image")
        size = (base.shape[2], base.shape[3])
        chosen = _merged(mask, painted(painted_mask), merge, size)
        batch = common_batch(source=len(base), image=len(new), mask=len(chosen))
        chosen = _softened(chosen, feather, grow)
        if tuple(new.shape[-2:]) != size:
            new = resize_antialiased(new, size).clamp(0.0, 1.0)
        weight = chosen if mode == _TAKE else 1.0 - chosen
        blended = [blend(item(base, i), item(new, i), item(weight, i)) for i in range(batch)]
        return io.NodeOutput(channels_last(torch.cat(blended)), mask_out(chosen.expand(batch, -1, -1, -1)))


def _merged(mask: Tensor, second: Tensor | None, merge: str, size: tuple[int, int]) -> Tensor:
    first = match_mask(mask.to(intermediate_device()), size, len(mask) if mask.ndim > 2 else 1)
    if second is None:
        return first
    return merge_masks(first, match_mask(second, size, len(second) if second.ndim > 2 else 1), merge)


def _softened(mask: Tensor, radius: float, grow: bool) -> Tensor:
    return feather(mask, radius, grow=grow)
