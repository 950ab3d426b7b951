"""Compare / Measure: two pictures side by side, how far they differ, and what changed in the face."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import metrics
from ..core.attributes import ATTRIBUTES, BUNDLED_LIMITS
from ..core.blending import match_mask
from ..core.errors import InvalidInputError, MissingPackageError
from ..core.imaging import check_image, from_pil, resize_antialiased
from ..core.latents import draw_grid
from ..core.losses import LayeredDistance
from ..model_registry.perceptual import BUNDLED_DISTANCE, available_distance
from ._comfy import io, optimising, progress, schema, ui
from ._measuring import IDENTITY_WORDS, FaceMeter, changes, is_face
from ._types import check_choice, check_finite, common_batch, item, painted, to_comfy, to_core

if TYPE_CHECKING:
    from PIL import Image

_LAYOUTS = _SIDES, _SPLIT, _DIFFERENCE = "side by side", "split", "difference"
_REGIONS = _WHOLE, _INSIDE, _OUTSIDE = "whole picture", "inside mask", "outside mask"
_LPIPS_SIZE = 256  # pixels: larger pictures are shrunk first, as in published tables
_SMALLEST = 32  # pixels: the networks behind LPIPS see nothing in less
_DRAWN_LEAST, _DRAWN_WIDTH = 128, 1024  # pixels: how wide a picture of a comparison may be
_DIVIDER_SHARE = 200  # widths of the divider in the picture's
_NUMBERS = (("psnr", "PSNR", "{:.2f} dB"), ("ssim", "SSIM", "{:.4f}"), ("lpips", "LPIPS", "{:.4f}"),
            ("identity", "identity", "{:.3f}"))  # fmt: skip


@dataclass
class _Measured:
    """Numbers of a pair; what could not be measured is absent."""

    numbers: dict[str, float] = field(default_factory=dict)  # of the whole picture
    regions: dict[str, dict[str, float]] = field(default_factory=dict)  # inside and outside the mask
    before: dict[str, float] = field(default_factory=dict)  # attributes
    after: dict[str, float] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, float]:
        """Of the attributes."""
        return changes(self.before, self.after)


class GANInversionCompare(io.ComfyNode):
    """Measures what changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionCompare",
            display_name="Compare / Measure",
            category="GAN Inversion/photo",
            description=(
                "Shows two pictures against each other and measures how far they differ: PSNR, SSIM, LPIPS and, for "
                "aligned faces, identity and what changed in smile, mouth, head turn and light. With a mask, inside and "
                "outside of it too. Good for photograph against inversion, and for unedited against edited."
            ),
            search_aliases=["compare", "metrics", "psnr", "ssim", "lpips", "identity", "difference", "before after"],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="The photograph or the unedited picture. One serves a whole batch."),
                io.Image.Input(
                    "after",
                    tooltip="The inversion or the edited picture; resized to 'before' where sizes differ, which the report "
                    "says.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Also measure inside (1) and outside (0) of it, each pixel weighted by the mask. Any size; an "
                    "entirely empty mask counts as none.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(_LAYOUTS),
                    default=_SIDES,
                    optional=True,
                    tooltip="side by side, split (one picture, the left part before, the right part after), or difference "
                    "(both and what lies between them, brightened).",
                ),
                io.Float.Input(
                    "split",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip="Where the divider of the split layout stands: 0 shows only after, 1 only before.",
                ),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=64.0,
                    step=1.0,
                    round=0.1,
                    optional=True,
                    tooltip="How much the difference layout is brightened. 2 to 8 is useful.",
                ),
                io.Combo.Input(
                    "region",
                    options=list(_REGIONS),
                    default=_WHOLE,
                    optional=True,
                    tooltip="What the outputs psnr and ssim are measured on; the mask is needed for the latter two. LPIPS "
                    "and identity are always those of the whole picture.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison", tooltip="One labelled picture for each pair, at most 1024 px a picture."
                ),
                io.Float.Output(
                    display_name="psnr",
                    tooltip="Peak signal-to-noise ratio in dB, mean over the batch; infinite where all pairs are equal.",
                ),
                io.Float.Output(
                    display_name="ssim", tooltip="Structural similarity, at most 1, mean; NaN where not measured."
                ),
                io.Float.Output(
                    display_name="lpips",
                    tooltip="Perceptual distance, 0 is equal, mean; the report says by which network.",
                ),
                io.Float.Output(
                    display_name="identity",
                    tooltip="Cosine of the bundled identity network's embeddings, 1 is the same face, mean; NaN where no "
                    "aligned face was found.",
                ),
                io.String.Output(
                    display_name="report", tooltip="All numbers of each pair, their means and their names."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        before: Tensor,
        after: Tensor,
        mask: Tensor | None = None,
        layout: str = _SIDES,
        split: float = 0.5,
        gain: float = 4.0,
        region: str = _WHOLE,
    ) -> io.NodeOutput:
        """Measures and draws one pair after another."""
        check_choice("layout", layout, _LAYOUTS)
        check_choice("region", region, _REGIONS)
        check_finite(split=split, gain=gain)
        if not 0 <= split <= 1 or gain <= 0:
            raise InvalidInputError(f"split {split:g}, gain {gain:g}: expected a split from 0 to 1 and a gain above 0.")
        chosen = painted(mask)
        if region != _WHOLE and chosen is None:
            raise InvalidInputError(
                f"Input 'region' is {region!r}, but no mask is connected, or it is empty: connect one, or measure the "
                f"{_WHOLE}."
            )
        first, second = check_image(to_core(before, "before"), "before"), check_image(to_core(after, "after"), "after")
        size = (first.shape[2], first.shape[3])
        if min(size) < _SMALLEST:
            raise InvalidInputError(f"Input 'before' is {_size(first)}: expected {_SMALLEST} pixels or more a side.")
        weights = None if chosen is None else match_mask(chosen.float(), size, len(chosen) if chosen.ndim > 2 else 1)
        counts = {"before": len(first), "after": len(second)}
        batch = common_batch(**counts, **({} if weights is None else {"mask": len(weights)}))
        with optimising():
            distance = available_distance(size=_LPIPS_SIZE)
        meter = FaceMeter.load()
        report = progress(batch)
        found: list[_Measured] = []
        drawn: list[Tensor] = []
        for index in range(batch):
            a, b = item(first, index), item(second, index)
            if b.shape[2:] != a.shape[2:]:
                b = resize_antialiased(b, size).clamp(-1.0, 1.0)
            one = _measure(a, b, None if weights is None else item(weights, index), distance, meter)
            found.append(one)
            drawn.append(from_pil(_comparison(a, b, layout, split, gain, one)))
            report(index + 1)
        comparison = to_comfy(torch.cat(drawn))
        text = _report(found, first, second, distance)
        # PSNR and SSIM are those of the region, the others of the whole picture.
        picked = [one.numbers if region == _WHOLE else {**one.numbers, **one.regions[region]} for one in found]
        means = _means(picked)
        shown = {**ui.PreviewImage(comparison, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(comparison, *(means.get(key, math.nan) for key, _, _ in _NUMBERS), text, ui=shown)


def _measure(
    before: Tensor, after: Tensor, weights: Tensor | None, distance: LayeredDistance, meter: FaceMeter
) -> _Measured:
    """Of one pair [1, 3, H, W] in [-1, 1]; weights [1, 1, H, W]."""
    found = _Measured(_fidelity(before, after, None))
    with torch.no_grad():
        found.numbers["lpips"] = float(distance(after, before))
    if weights is not None:
        for name, part in ((_INSIDE, weights), (_OUTSIDE, 1 - weights)):
            found.regions[name] = _fidelity(before, after, part)
    found.before, found.after = meter.attributes(before), meter.attributes(after)
    if is_face(found.before) and is_face(found.after):
        found.numbers["identity"] = meter.similarity(before, after)
    return found


def _fidelity(before: Tensor, after: Tensor, weights: Tensor | None) -> dict[str, float]:
    """PSNR and SSIM, NaN where the weights leave no pixels; no SSIM without its package."""
    numbers = {"psnr": float(metrics.psnr(after, before, weights))}
    with contextlib.suppress(MissingPackageError):
        numbers["ssim"] = float(metrics.ssim(after, before, weights))
    return numbers


# --- the picture -----------------------------------------------------------------------------------------------------


def _comparison(before: Tensor, after: Tensor, layout: str, split: float, gain: float, found: _Measured) -> Image.Image:
    """The labelled picture of one pair; the numbers stand below the picture they belong to."""
    pictures, labels = [before, after], ["before", "after"]
    if layout == _SPLIT:
        pictures, labels = [_divided(before, after, split)], ["before / after"]
    elif layout == _DIFFERENCE:
        # Of values in 0..1, black is equal.
        pictures.append(((after - before).abs() / 2 * gain).clamp(0.0, 1.0) * 2 - 1)
        labels.append(f"difference x{gain:g}")
    captions = ["" for _ in pictures]
    captions[-1] = _caption(found.numbers)
    width = min(max(before.shape[3], _DRAWN_LEAST), _DRAWN_WIDTH)
    return draw_grid(torch.cat(pictures), column_labels=labels, cell=width, captions=captions)


def _divided(before: Tensor, after: Tensor, split: float) -> Tensor:
    """The left part of one and the right part of the other, with a white line where both are seen."""
    width = before.shape[3]
    at = round(split * width)
    picture = torch.cat((before[..., :at], after[..., at:]), dim=3)
    if 0 < at < width:
        thick = max(1, width // _DIVIDER_SHARE)
        picture[..., max(at - thick // 2, 0) : at + (thick + 1) // 2] = 1.0
    return picture


def _caption(numbers: Mapping[str, float]) -> str:
    """Two short lines, for a picture of 128 pixels."""
    first = [f"{numbers['psnr']:.1f} dB"] + ([f"SSIM {numbers['ssim']:.2f}"] if "ssim" in numbers else [])
    second = [f"LPIPS {numbers['lpips']:.3f}"] + ([f"id {numbers['identity']:.2f}"] if "identity" in numbers else [])
    return f"{'  '.join(first)}\n{'  '.join(second)}"


# --- the report --------------------------------------------------------------------------------------------------------


def _report(found: Sequence[_Measured], first: Tensor, second: Tensor, distance: LayeredDistance) -> str:
    lines = [f"{len(found)} pair(s) of {_size(first)} px."]
    if first.shape[2:] != second.shape[2:]:
        shape = first.shape[2] * second.shape[3] == first.shape[3] * second.shape[2]
        lines[0] += f" 'after' was resized from {_size(second)}{'' if shape else ', which stretched it'}."
    for index, one in enumerate(found):
        lines.append(f"Pair {index + 1}: {_numbers(one.numbers)}")
        lines += [f"  {name}: {_numbers(numbers)}" for name, numbers in one.regions.items()]
        if not (is_face(one.before) and is_face(one.after)):
            where = [name for name, values in (("before", one.before), ("after", one.after)) if not is_face(values)]
            lines.append(f"  no aligned face in {' and '.join(where)}: identity, smile, mouth and yaw are not measured")
        lines.append("  " + ", ".join(_told(name, one) for name in one.changes))
    if len(found) > 1:
        lines.append(f"Mean: {_numbers(_means([one.numbers for one in found]))}")
        lines += [f"  {name}: {_numbers(_means([one.regions[name] for one in found]))}" for name in found[0].regions]
        change = _means([one.changes for one in found])
        words = (f"{ATTRIBUTES[name].label} {ATTRIBUTES[name].change_words(change[name])}" for name in change)
        lines.append("  changes: " + ", ".join(words))
    return "\n".join([*lines, *_notes(found, distance)])


def _notes(found: Sequence[_Measured], distance: LayeredDistance) -> list[str]:
    """What stands behind the numbers."""
    notes = [f"LPIPS: {distance.name}, pictures above {_LPIPS_SIZE} px shrunk to that first."]
    if distance.name == BUNDLED_DISTANCE:
        notes = [f"LPIPS: by {distance.name}, the bundled stand-in (the weights or packages of LPIPS are not on this "
                 "machine): compare its values only with each other."]  # fmt: skip
    if any("ssim" not in one.numbers for one in found):
        notes.append("SSIM: not measured, the package torchmetrics is not installed.")
    if any("identity" in one.numbers for one in found):
        notes += [IDENTITY_WORDS, f"Yaw is positive to the right of the picture. {BUNDLED_LIMITS}"]
    return notes


def _numbers(numbers: Mapping[str, float]) -> str:
    told = [f"{label} {form.format(numbers[key])}" for key, label, form in _NUMBERS if _known(numbers.get(key))]
    return ", ".join(told) or "no pixels"


def _told(name: str, found: _Measured) -> str:
    about = ATTRIBUTES[name]
    before, after = (about.value_words(values[name]) for values in (found.before, found.after))
    return f"{about.label} {before} -> {after} ({about.change_words(found.changes[name])})"


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the finite values; infinity, the PSNR of equal pictures, only where nothing else is there."""
    means = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        known = [row[key] for row in rows if _known(row.get(key))]
        finite = [value for value in known if math.isfinite(value)] or known
        if finite:
            means[key] = sum(finite) / len(finite)
    return means


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _size(image: Tensor) -> str:
    return f"{image.shape[3]}x{image.shape[2]}"
