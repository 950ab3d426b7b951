"""Choice of objects for each seed, their order back to front, and the composite with masks and shadows.

The mask is the objects' coverage only. Shadows (contact shadows of the objects, and the kind "cast_shadow") are not in
it: `Occluded.shadows` has them apart, and `Occluded.changed` joins both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidInputError
from .canvas import Drawing, Scene
from .hands import draw_cup, draw_hand, draw_microphone, draw_phone
from .headwear import draw_cap, draw_hat, draw_head_scarf, draw_headband
from .overlays import draw_bars, draw_patch, draw_scribble, draw_sticker, draw_text
from .scene import draw_background, draw_cast_shadow, draw_hair
from .textures import Draw
from .wear import draw_earrings, draw_face_mask, draw_face_paint, draw_glasses, draw_neck_scarf, draw_sunglasses

SHADOW_THRESHOLD = 0.06  # a pixel that loses more of its light than this counts as changed

_DRAWINGS: dict[str, Drawing] = {
    "background": draw_background,
    "cast_shadow": draw_cast_shadow,
    "face_paint": draw_face_paint,
    "earrings": draw_earrings,
    "head_scarf": draw_head_scarf,
    "neck_scarf": draw_neck_scarf,
    "face_mask": draw_face_mask,
    "glasses": draw_glasses,
    "sunglasses": draw_sunglasses,
    "hair": draw_hair,
    "headband": draw_headband,
    "hat": draw_hat,
    "cap": draw_cap,
    "cup": draw_cup,
    "microphone": draw_microphone,
    "phone": draw_phone,
    "hand": draw_hand,
    "bars": draw_bars,
    "patch": draw_patch,
    "sticker": draw_sticker,
    "scribble": draw_scribble,
    "text": draw_text,
}
OCCLUDER_KINDS: tuple[str, ...] = tuple(_DRAWINGS)
"""What can be drawn, back to front."""

_PLACES = {name: name for name in OCCLUDER_KINDS} | dict.fromkeys(("head_scarf", "headband", "hat", "cap"), "head")
_PLACES |= dict.fromkeys(("glasses", "sunglasses"), "eyes") | dict.fromkeys(
    ("cup", "microphone", "phone", "hand"), "hands"
)


@dataclass(frozen=True)
class Occluded:
    """Pictures with objects drawn over them, and where.

    Each picture is `masks * object + (1 - masks) * darkened`, where `darkened` is the given picture with its light
    (0..1) multiplied by `1 - shadows`. Pixels with mask 0 and shadow 0 are the given ones bit for bit.
    """

    images: Tensor
    """[B, 3, H, W] in [-1, 1]."""
    masks: Tensor
    """[B, 1, H, W] in 0..1: coverage by objects; 1 shows nothing of the given picture."""
    shadows: Tensor
    """[B, 1, H, W] in 0..1: part of the light taken away; 0 under full coverage and where nothing is darkened."""
    kinds: list[tuple[str, ...]]
    """What was drawn, back to front."""

    def changed(self, threshold: float = SHADOW_THRESHOLD) -> Tensor:
        """[B, 1, H, W] in 0..1: the masks, and 1 where a shadow takes more than `threshold` of the light."""
        return torch.maximum(self.masks, (self.shadows > threshold).to(self.masks))


@torch.no_grad()
def occlude_some(
    images: Tensor, share: float, random: torch.Generator, *, count: tuple[int, int] = (1, 2)
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws objects onto a random part of the pictures, as trainers want them.

    Args:
        images: [B, 3, S, S] in [-1, 1], FFHQ crops.
        share: probability, for each picture, that it gets objects.
        random: on the CPU; decides which pictures and gives the seeds.
        count: least and greatest number of objects in such a picture.

    Returns:
        Pictures [B, 3, S, S]; the coverage by objects [B, 1, S, S], 0 in pictures without; rows of those with, int64.
    """
    masks = torch.zeros_like(images[:, :1])
    rows = (torch.rand(len(images), generator=random) < share).nonzero()[:, 0].to(images.device)
    seeds = torch.randint(2**31 - 1, (len(images),), generator=random)[: len(rows)].tolist()
    if not seeds:
        return images, masks, rows
    drawn = occlude(images[rows], seeds, count=count)
    return images.index_copy(0, rows, drawn.images), masks.index_copy(0, rows, drawn.masks), rows


@torch.no_grad()
def occlude(
    images: Tensor,
    seeds: Sequence[int],
    *,
    kinds: Sequence[str] | None = None,
    landmarks: Tensor | None = None,
    person: Tensor | None = None,
    count: tuple[int, int] = (1, 2),
) -> Occluded:
    """Draws objects onto FFHQ-cropped portraits.

    The same seed, kinds, count and picture give the same result, up to rounding, on every machine; the design does
    not depend on the resolution. Kinds that would claim one place (two hats, glasses and sunglasses) exclude each other.

    Args:
        images: [B, 3, S, S] in [-1, 1].
        seeds: one number per picture, 0 or more.
        kinds: names out of OCCLUDER_KINDS to draw from; all of them by default.
        landmarks: [B, 68, 2] iBUG points (x, y) in pixels, pixel centres at whole numbers. Without them the objects
            sit where an FFHQ crop has eyes and mouth.
        person: [B, 1, S, S] in 0..1, 1 on the person; the kind "background" keeps it, hats take their width from it.
            Without it, it is estimated from the picture's colours.
        count: least and greatest number of objects in a picture.

    Raises:
        InvalidInputError: for wrong shapes, unknown kinds, or another number of seeds than of pictures.
    """
    chosen = _check(images, seeds, kinds, landmarks, person, count)
    results, names = [], []
    for row, seed in enumerate(seeds):
        draw = Draw(int(seed))
        drawn = _choose(draw, chosen, count)
        scene = Scene(
            images[row].float(),
            None if landmarks is None else landmarks[row].detach().cpu().double().numpy(),
            None if person is None else person[row, 0].to(images.device).float(),
            Draw(draw.seed()),
        )
        for name in drawn:
            _DRAWINGS[name](scene, Draw(draw.seed()))
        results.append(scene.result())
        names.append(drawn)
    pictures, masks, shadows = (torch.stack(part).to(images) for part in zip(*results, strict=True))
    same = (masks == 0) & (shadows == 0)
    return Occluded(torch.where(same, images, pictures), masks, shadows, names)


def _check(
    images: Tensor,
    seeds: Sequence[int],
    kinds: Sequence[str] | None,
    landmarks: Tensor | None,
    person: Tensor | None,
    count: tuple[int, int],
) -> tuple[str, ...]:
    """The kinds to draw from, in drawing order."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
        raise InvalidInputError(f"images have shape {tuple(images.shape)}; expected square crops [B, 3, S, S].")
    if not images.is_floating_point():
        raise InvalidInputError(f"images have type {images.dtype}; expected floating point in [-1, 1].")
    if len(seeds) != len(images):
        raise InvalidInputError(f"{len(seeds)} seeds for {len(images)} pictures; give one seed for each picture.")
    if any(int(seed) < 0 for seed in seeds):
        raise InvalidInputError(f"A seed is {min(int(seed) for seed in seeds)}; seeds are whole numbers from 0 on.")
    names = OCCLUDER_KINDS if kinds is None else tuple(kinds)
    unknown = sorted(set(names) - set(OCCLUDER_KINDS))
    if unknown or not names:
        found = f"Unknown kinds {', '.join(unknown)}" if unknown else "No kinds given"
        raise InvalidInputError(f"{found}; choose from {', '.join(OCCLUDER_KINDS)}.")
    if landmarks is not None and landmarks.shape != (len(images), 68, 2):
        raise InvalidInputError(f"landmarks have shape {tuple(landmarks.shape)}; expected {(len(images), 68, 2)}.")
    if person is not None and person.shape != (len(images), 1, *images.shape[2:]):
        raise InvalidInputError(
            f"person has shape {tuple(person.shape)}; expected {(len(images), 1, *images.shape[2:])}."
        )
    low, high = count
    if not 1 <= low <= high:
        raise InvalidInputError(f"count is {count}; expected two numbers, 1 <= least <= greatest.")
    return tuple(name for name in OCCLUDER_KINDS if name in names)


def _choose(draw: Draw, kinds: tuple[str, ...], count: tuple[int, int]) -> tuple[str, ...]:
    wanted = draw.whole(*count)
    left, chosen = list(kinds), set[str]()
    while left and len(chosen) < wanted:
        name = draw.pick(left)
        chosen.add(name)
        left = [other for other in left if other != name and _PLACES[other] != _PLACES[name]]
    return tuple(name for name in kinds if name in chosen)
