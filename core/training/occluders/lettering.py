"""Seeded words, and their letters as coverage, in the typeface that comes with Pillow."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .textures import Draw

_WORDS = (
    "LIVE", "news", "SALE", "hello", "Monday", "open", "READY", "press", "vogue", "NOW", "music", "night", "paper",
    "wow", "team", "garden", "Nord", "radio", "world", "summer", "final", "KEEP", "studio", "one", "extra", "sample",
    "draft", "proof", "club", "coffee", "sport", "blue", "cinema", "free", "today", "again", "never", "why me", "zero",
)  # fmt: skip


def random_word(draw: Draw, letters: int) -> str:
    """About so many letters: a word, or characters put together."""
    fitting = [word for word in _WORDS if len(word) == letters]
    if letters > 2 and fitting and draw.chance(0.7):
        return draw.pick(fitting)
    alphabet = "ABCDEFGHIKLMNOPRSTUVXYZ0123456789"
    return "".join(draw.pick(alphabet) for _ in range(letters))


def random_words(draw: Draw, count: int) -> str:
    """So many words, with spaces."""
    return " ".join(draw.pick(_WORDS) for _ in range(count))


_GLYPH_PIXELS = 64


@lru_cache(maxsize=512)
def _glyphs(text: str, stroke: int) -> Tensor:
    """Coverage [h, w] of a line of text in Pillow's built-in typeface, with a margin."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_GLYPH_PIXELS)
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    margin = 16
    canvas = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin))
    ImageDraw.Draw(canvas).text((margin - left, margin - top), text, 255, font=font, stroke_width=stroke)
    return torch.from_numpy(np.array(canvas)).float() / 255


def text_width(text: str) -> float:
    """In units of the type size."""
    return _glyphs(text, 0).shape[1] / _GLYPH_PIXELS


def lettering(text: str, a: Tensor, b: Tensor, height: float, pixel: float, grow: float = 0.0) -> Tensor:
    """Coverage [h, w] of text centred on a = b = 0.

    `height` is the type size and `pixel` the distance of samples, in units of a and b; `grow` thickens the letters by
    this part of the type size.
    """
    glyphs = _glyphs(text, round(grow * _GLYPH_PIXELS)).to(a.device)[None, None]
    scale = _GLYPH_PIXELS / height
    factor = max(1, min(6, round(pixel * scale)))
    rows, columns = glyphs.shape[-2:]
    if factor > 1:
        glyphs = F.avg_pool2d(glyphs, factor, ceil_mode=True)
    grid = torch.stack((a * (2 * scale / columns), b * (2 * scale / rows)), dim=-1)[None]
    return F.grid_sample(glyphs, grid, align_corners=False)[0, 0].clamp(0, 1)
