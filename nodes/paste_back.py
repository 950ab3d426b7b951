"""Paste Back: the edited crop into the photograph it was cut from, at full size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.alignment import CropTransform, face_oval, footprint_mask, paste_back
from ..core.blending import blend, match_mask
from ..core.imaging import resize_antialiased
from ._comfy import io, progress, schema
from ._types import (
    CropSocket,
    CropsWire,
    channels_first,
    channels_last,
    check_choice,
    check_finite,
    common_batch,
    item,
    mask_out,
    painted,
)

_MASKED = _CROP, _PHOTO = "crop", "photo"
_REGIONS = _WHOLE, _FACE = "whole crop", "face"


class GANInversionPasteBack(io.ComfyNode):
    """Puts crops back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionPasteBack",
            display_name="Paste Back",
            category="GAN Inversion/photo",
            description=(
                "Puts an edited crop back into its photograph, turned and scaled as it was cut, with a soft edge. "
                "Pixels outside stay exactly as they are. With 'unedited' connected only the change is added, so the "
                "photograph keeps its own detail. Photographs in which Align Face found no face are passed through."
            ),
            search_aliases=["uncrop", "stitch", "inverse align", "composite face"],
            inputs=[
                io.Image.Input(
                    "photo", tooltip="The photographs that went into Align Face; an alpha channel is left out."
                ),
                io.Image.Input("edited", tooltip="Edited crops, such as Render's first output; any size."),
                CropSocket.Input("crop", tooltip="From the Align Face that cut them."),
                io.Image.Input(
                    "unedited",
                    optional=True,
                    tooltip="The crops before the edit as the generator draws them (Render's second output): only the "
                    "difference is added. Leave it out to paste the generator's pixels themselves.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the edit may show, 1 is there. Any size; one mask serves a whole batch. An entirely "
                    "empty mask, which Load Image gives for a picture without transparency, counts as no mask: the "
                    "edit shows everywhere.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.08,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    tooltip="Width of the soft edge as a part of the crop's side. 0 is a hard square, 0.05 to 0.15 is "
                    "useful.",
                ),
                io.Combo.Input(
                    "mask_on",
                    options=list(_MASKED),
                    default=_CROP,
                    optional=True,
                    tooltip="Which picture the mask was painted on: the aligned crop or the whole photograph.",
                ),
                io.Combo.Input(
                    "region",
                    options=list(_REGIONS),
                    default=_WHOLE,
                    optional=True,
                    tooltip="How much of the crop may change: all of it, or an oval from brows to chin, which leaves hair "
                    "and background alone (for smiles and other edits of the face itself). With a mask too, only what "
                    "lies in both changes.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The photographs with the edit in them, in their own size."
                ),
                io.Mask.Output(display_name="mask", tooltip="Where the photographs may have changed, and how much."),
            ],
        )

    @classmethod
    def execute(
        cls,
        photo: Tensor,
        edited: Tensor,
        crop: CropsWire,
        unedited: Tensor | None = None,
        mask: Tensor | None = None,
        feather: float = 0.08,
        mask_on: str = _CROP,
        region: str = _WHOLE,
    ) -> io.NodeOutput:
        """Pastes in ComfyUI's own range, so that untouched pixels keep their bits."""
        check_choice("mask_on", mask_on, _MASKED)
        check_choice("region", region, _REGIONS)
        check_finite(feather=feather)
        photos, crops = channels_first(photo, "photo"), channels_first(edited, "edited")
        before = None if unedited is None else channels_first(unedited, "unedited")
        selection = painted(mask)
        selection = None if selection is None else selection.reshape(-1, *selection.shape[-2:])
        sizes = {"photo": len(photos), "edited": len(crops), "crop": len(crop.crops)}
        if before is not None:
            sizes["unedited"] = len(before)
            if before.shape[-2:] != crops.shape[-2:]:
                before = resize_antialiased(before, (crops.shape[2], crops.shape[3]))
        if selection is not None:
            sizes["mask"] = len(selection)
        batch = common_batch(**sizes)
        report = progress(batch)
        pictures: list[Tensor] = []
        masks: list[Tensor] = []
        for index in range(batch):
            picture = item(photos, index)
            transform = crop.crops[index if len(crop.crops) > 1 else 0]
            if transform is None:
                pictures.append(picture)
                masks.append(torch.zeros_like(picture[:, :1]))
            else:
                selected = None if selection is None else item(selection, index)
                original = None if before is None else item(before, index)
                content, face = item(crops, index), region == _FACE
                pasted, weight = _pasted(picture, content, transform, selected, mask_on, face, feather, original)
                pictures.append(pasted)
                masks.append(weight)
            report(index + 1)
        return io.NodeOutput(channels_last(torch.cat(pictures)), mask_out(torch.cat(masks)))


def _pasted(
    photo: Tensor,
    crop: Tensor,
    transform: CropTransform,
    mask: Tensor | None,
    mask_on: str,
    face: bool,
    feather: float,
    original: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(photograph with the crop in it, mask of where) of one image, in 0..1."""
    in_crop = in_photo = None
    if mask is not None and mask_on == _CROP:
        in_crop = match_mask(mask, (crop.shape[2], crop.shape[3]))
    elif mask is not None:
        in_photo = match_mask(mask, (photo.shape[2], photo.shape[3])).to(photo)
    if face:
        oval = face_oval(crop.shape[2], device=crop.device)
        in_crop = oval if in_crop is None else in_crop * oval
    pasted = paste_back(
        photo, crop, transform, in_crop, feather=feather, original_crop=original, value_range=(0.0, 1.0)
    )
    weight = footprint_mask(transform, in_crop, feather=feather, device=photo.device)
    if in_photo is not None:
        # Outside the crop nothing is mixed: even equal pixels would lose their last bits.
        pasted = blend(photo, pasted, in_photo * (weight > 0))
        weight = weight * in_photo
    return pasted, weight
