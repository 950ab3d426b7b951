"""Surfaces of occluders: seeded numbers, noise, cloth and hard materials by formula, photographs, shading.

Everything is a function of continuous coordinates in eye distances (about 0.236 crop widths), so that a drawing is the
same at every resolution. Noise is one periodic tile made by spectral synthesis (Saupe, in Peitgen & Saupe, "The Science
of Fractal Images", 1988) and looked up at random places. Photographs are the CC0 and public-domain pictures that come
inside the scikit-image package.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[float, float, float]  # red, green, blue in 0..1
Item = TypeVar("Item")

CLOUDS, ROUGH, BLOBS, GRAIN = range(4)  # channels of the noise tile
_TILE = 512
_TILE_SEED = 20211
_BAND_STEPS = 96  # samples of a run of bands
_WEAVE = 0.0007  # height of threads, eye distances
_PHOTOGRAPH_SIDE = 320  # pixels of the shorter side
PHOTOGRAPHS = ("coffee", "rocket", "chelsea", "hubble_deep_field", "retina", "coins", "brick", "grass", "gravel")
_EARTHS: tuple[Colour, ...] = (
    (0.10, 0.13, 0.25), (0.33, 0.22, 0.14), (0.75, 0.66, 0.52), (0.30, 0.32, 0.18), (0.42, 0.10, 0.13),
    (0.62, 0.45, 0.27), (0.15, 0.27, 0.24), (0.55, 0.57, 0.60),
)  # fmt: skip


class Draw:
    """Random numbers of one object. They depend on the seed only: not on the picture, its size or its device."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in low..high."""
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def whole(self, low: int, high: int) -> int:
        """Uniform whole number, both ends included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def seed(self) -> int:
        """Seed for a stream of its own."""
        return int(torch.randint(2**62, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.number() < probability

    def sign(self) -> float:
        """Minus or plus one."""
        return 1.0 if self.chance(0.5) else -1.0

    def pick(self, options: Sequence[Item]) -> Item:
        """One of the options."""
        return options[self.whole(0, len(options) - 1)]

    def numbers(self, *shape: int) -> Tensor:
        """Uniform tensor in 0..1 on the CPU."""
        return torch.rand(*shape, generator=self.generator)

    def colour(self) -> Colour:
        """A colour as clothes and things have it: black, white, grey, earthen, or a hue."""
        kind = self.number()
        if kind < 0.14:
            return _tinted(self, self.number(0.03, 0.13))
        if kind < 0.24:
            return _tinted(self, self.number(0.8, 0.95))
        if kind < 0.32:
            return _tinted(self, self.number(0.3, 0.65))
        if kind < 0.48:
            red, green, blue = (channel * self.number(0.8, 1.2) for channel in self.pick(_EARTHS))
            return min(red, 1.0), min(green, 1.0), min(blue, 1.0)
        return colorsys.hsv_to_rgb(self.number(), self.number(0.35, 0.95), self.number(0.3, 0.92))

    def palette(self, count: int) -> list[Colour]:
        """Colours that differ visibly from the first one."""
        colours = [self.colour()]
        while len(colours) < count:
            new = self.colour()
            if sum(abs(a - b) for a, b in zip(new, colours[0], strict=True)) > 0.45:
                colours.append(new)
        return colours


def _tinted(draw: Draw, grey: float) -> Colour:
    red, green, blue = (min(1.0, max(0.0, grey + draw.number(-0.03, 0.03))) for _ in range(3))
    return red, green, blue


class Surface(NamedTuple):
    """What a material gives to shading."""

    colour: Tensor  # [3, h, w] or [3, 1, 1] in 0..1
    bump: Tensor  # [h, w] or [1, 1] height in eye distances
    shine: float = 0.0  # strength of the highlight
    polish: int = 3  # highlight exponent 2 ** polish


def rgb(colour: Colour, like: Tensor) -> Tensor:
    """The colour as [3, 1, 1] on the device of `like`."""
    return torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).to(like.device)


def mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """From first (weight 0) to second (weight 1)."""
    return first + (second - first) * weight


def smoothstep(low: float, high: float, value: Tensor) -> Tensor:
    """0 below low, 1 above high, a smooth step between; low may be the larger one."""
    part = ((value - low) / (high - low)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def bell(value: Tensor) -> Tensor:
    """exp(-value**2); the exponent is limited, as numbers near the smallest float are slow on a CPU."""
    return torch.exp(-value.square().clamp(max=40))


def fraction(value: Tensor) -> Tensor:
    """The part behind the point, 0..1 for negative numbers as well."""
    return value - value.floor()


def step(value: Tensor) -> Tensor:
    """0 for negative, 1 for positive values; faster than a comparison, and on the way between within 1e-6."""
    return (value * 1e6).clamp(0, 1)


def norm(x: Tensor, y: Tensor) -> Tensor:
    """Distance from the origin."""
    return (x * x + y * y).sqrt()


def lookup(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Values [C, h, w] of a periodic table [C, R, K] at whole-numbered rows and columns [h, w]."""
    rows, columns = table.shape[1:]
    x, y = fraction((column + 0.5) / columns), fraction((row + 0.5) / rows)
    grid = torch.stack((x, y), dim=-1).mul_(2).sub_(1)[None]
    return F.grid_sample(table[None].to(grid.device), grid, mode="nearest", align_corners=False)[0]


@lru_cache(maxsize=4)
def _noise_tile(device: str) -> Tensor:
    """[1, 4, T + 2, T + 2]: periodic noise of mean 0 and deviation 1, with a border of one pixel that wraps around."""
    frequency = torch.fft.fftfreq(_TILE, d=1 / _TILE)
    cycles = (frequency[:, None].square() + frequency[None].square()).sqrt()
    steady = cycles.clamp(min=1)

    def band(centre: float) -> Tensor:
        return torch.exp(-((steady / centre).log() / 0.45).square())

    spectra = torch.stack((steady**-1.9 * (cycles >= 2), steady**-1.25 * (cycles >= 3), band(14.0), band(90.0)))
    white = torch.randn(4, _TILE, _TILE, generator=torch.Generator().manual_seed(_TILE_SEED))
    tile = torch.fft.ifft2(torch.fft.fft2(white) * spectra * (cycles > 0)).real
    tile = tile / tile.std(dim=(1, 2), keepdim=True)
    return F.pad(tile[None], (1, 1, 1, 1), mode="circular").to(device)


def noise(draw: Draw, channel: int, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Noise [h, w] of mean 0 and deviation 1 from a random place of the tile; `scale` is the tile's side.

    CLOUDS and ROUGH are fractal, BLOBS has 14 and GRAIN 90 cycles over the tile.
    """
    tile = _noise_tile(str(x.device))[:, channel : channel + 1]
    span = _TILE / (_TILE + 2)
    at = torch.stack((fraction(x / scale + draw.number()), fraction(y / scale + draw.number())), dim=-1)
    return F.grid_sample(tile, at.sub_(0.5).mul_(2 * span)[None], align_corners=False)[0, 0]


@lru_cache(maxsize=32)
def _photograph(name: str, device: str) -> Tensor:
    """[3, h, w] in 0..1."""
    from skimage import data

    pixels = torch.from_numpy(getattr(data, name)().copy())
    pixels = pixels[..., None].expand(-1, -1, 3) if pixels.ndim == 2 else pixels[..., :3]
    picture = pixels.permute(2, 0, 1)[None].float() / 255
    factor = _PHOTOGRAPH_SIDE / min(picture.shape[-2:])
    size = tuple(round(side * factor) for side in picture.shape[-2:])
    return F.interpolate(picture, size=size, mode="bilinear", antialias=True)[0].to(device)


def photograph(draw: Draw, s: Tensor, t: Tensor, size: float, names: Sequence[str] = PHOTOGRAPHS) -> Tensor:
    """A random part of a photograph, [3, h, w] in 0..1, `size` across; mirrored tiles beyond its sides.

    Grey pictures (brick, grass, gravel) get a colour; the others are turned a little in hue.
    """
    name = draw.pick(names)
    picture = _photograph(name, str(s.device))
    height, width = picture.shape[-2:]
    zoom = draw.number(0.45, 0.95) * min(height, width) / size
    x = draw.number(0, width) + s * zoom * draw.sign()
    y = draw.number(0, height) + t * zoom
    grid = torch.stack((x / width * 2 - 1, y / height * 2 - 1), dim=-1)[None]
    found = F.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]
    tint = rgb(draw.colour(), s)
    if name in ("brick", "grass", "gravel", "coins"):
        return (found * (0.35 + tint) * 1.2).clamp(0, 1)
    return (found * (0.8 + 0.35 * tint)).clamp(0, 1)


def plain(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """One colour with the faint unevenness of woven cloth."""
    fine = noise(draw, GRAIN, s, t, 5.0)
    return Surface(rgb(draw.colour(), s) * (1 + 0.05 * fine), _WEAVE * fine)


def heather(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Mottled yarn: two near colours in grains."""
    first, second = rgb(draw.colour(), s), rgb(draw.colour(), s)
    fine = noise(draw, GRAIN, s, t, 4.0)
    return Surface(mix(first, 0.6 * first + 0.4 * second, (0.5 + 0.5 * fine).clamp(0, 1)), 2 * _WEAVE * fine)


def stripes(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Even or mixed stripes at any angle."""
    angle = draw.pick((0.0, 0.0, math.pi / 2, math.pi / 4))
    along = s * math.sin(angle) + t * math.cos(angle)
    return Surface(_banded(draw, along, draw.number(0.3, 0.9), 3), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def plaid(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Tartan: the same bands across and down, woven together by a twill."""
    period, seed = draw.number(0.5, 1.1), draw.seed()
    warp, weft = _banded(Draw(seed), s, period, 4), _banded(Draw(seed), t, period, 4)
    twill = 0.5 + 0.18 * torch.sign(torch.sin((s + t) * (2 * math.pi / 0.075)))
    return Surface(mix(warp, weft, twill), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def _banded(draw: Draw, along: Tensor, period: float, colours: int) -> Tensor:
    """[3, h, w]: a periodic run of bands of uneven widths."""
    palette = torch.tensor(draw.palette(colours))
    bands = draw.whole(2, 7)
    choice = torch.randint(colours, (bands,), generator=draw.generator)
    choice[0], choice[-1] = 0, 1
    widths = draw.numbers(bands) + 0.15
    edges = (widths.cumsum(0) / widths.sum())[:-1].contiguous()
    steps = (torch.arange(_BAND_STEPS) + 0.5) / _BAND_STEPS
    table = palette[choice][torch.bucketize(steps, edges)].t()[:, None]
    return lookup(table, torch.zeros_like(along), (along * (_BAND_STEPS / period)).floor())


def dots(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Polka dots, alternate rows shifted by half."""
    cell = draw.number(0.2, 0.42)
    row = (t / cell).floor()
    x = fraction(s / cell + fraction(row / 2)) - 0.5
    y = fraction(t / cell) - 0.5
    ground, spot = (rgb(c, s) for c in draw.palette(2))
    radius = draw.number(0.2, 0.36)
    inside = smoothstep(radius + 0.05, radius - 0.05, norm(x, y))
    return Surface(mix(ground, spot, inside), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def checks(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Gingham or a chess board."""
    cell = draw.number(0.12, 0.3)
    across, down = step(fraction(s / (2 * cell)) - 0.5), step(fraction(t / (2 * cell)) - 0.5)
    ground, other = (rgb(c, s) for c in draw.palette(2))
    weight = 0.5 * (across + down) if draw.chance(0.6) else (across - down).abs()
    return Surface(mix(ground, other, weight), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def camouflage(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Three layers of blots over a ground."""
    greens = [(0.36, 0.37, 0.22), (0.22, 0.27, 0.15), (0.45, 0.38, 0.26), (0.10, 0.11, 0.09)]
    urban = [(0.62, 0.63, 0.65), (0.40, 0.42, 0.44), (0.82, 0.82, 0.82), (0.12, 0.13, 0.15)]
    colours = draw.pick((greens, urban, draw.palette(4)))
    scale = draw.number(3.0, 6.0)
    colour = rgb(colours[0], s).expand(3, *s.shape)
    for layer, level in zip(colours[1:], (0.25, 0.55, 0.95), strict=True):
        blot = noise(draw, CLOUDS, s, t, scale)
        colour = mix(colour, rgb(layer, s), smoothstep(level - 0.04, level + 0.04, blot))
    return Surface(colour, _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def denim(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Blue or black twill with worn, lighter places and a stitched seam."""
    base = rgb(draw.pick(((0.20, 0.28, 0.42), (0.30, 0.40, 0.55), (0.13, 0.15, 0.19), (0.55, 0.63, 0.72))), s)
    worn = (0.5 + 0.25 * noise(draw, CLOUDS, s, t, 4.0)).clamp(0, 1)
    twill = torch.sin((s * 0.8 + t) * (2 * math.pi / 0.08))
    fine = noise(draw, GRAIN, s, t, 3.5)
    colour = base * (0.75 + 0.55 * worn) * (1 + 0.05 * twill + 0.07 * fine)
    seam = (t - draw.number(-1, 1)).abs() + 0.03 * step(fraction(s / 0.1) - 0.65)
    return Surface(mix(colour, rgb((0.72, 0.5, 0.25), s), 0.8 * smoothstep(0.02, 0.01, seam)), 0.002 * twill)


def leather(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Dark skin with grain and creases, a little shiny."""
    colours = ((0.07, 0.06, 0.06), (0.22, 0.12, 0.07), (0.42, 0.25, 0.13), (0.35, 0.06, 0.06), draw.colour())
    cells, creases = noise(draw, BLOBS, s, t, 1.6), noise(draw, ROUGH, s, t, 3.0)
    bump = 0.006 * cells.abs().clamp(max=1.5) + 0.01 * creases.abs().clamp(max=1.5)
    return Surface(rgb(draw.pick(colours), s) * (1 + 0.08 * creases), bump, draw.number(0.2, 0.4), 4)


def leopard(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Dark broken rings on a sandy ground, or zebra bands."""
    if draw.chance(0.35):
        bands = torch.sin(t * draw.number(8, 14) + 2.2 * noise(draw, CLOUDS, s, t, 5.0))
        return Surface(mix(rgb((0.9, 0.88, 0.84), s), rgb((0.07, 0.06, 0.06), s), smoothstep(-0.15, 0.15, bands)),
                       _WEAVE * noise(draw, GRAIN, s, t, 4.0))  # fmt: skip
    blot = noise(draw, BLOBS, s, t, draw.number(2.5, 4.5))
    ring = smoothstep(0.45, 0.6, blot) * smoothstep(1.5, 1.2, blot)
    ground = rgb(draw.pick(((0.78, 0.60, 0.36), (0.85, 0.72, 0.5), (0.8, 0.45, 0.5))), s)
    colour = mix(ground, ground * 0.75, smoothstep(1.2, 1.5, blot))
    return Surface(mix(colour, rgb((0.1, 0.07, 0.05), s), ring), _WEAVE * noise(draw, GRAIN, s, t, 4.0))


def floral(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Scattered five-petal flowers and leaves on a ground."""
    cell, palette = draw.number(0.4, 0.75), draw.palette(4)
    column, row = (s / cell).floor(), (t / cell).floor()
    jitter_x, jitter_y, large, other = lookup(draw.numbers(4, 8, 8), row, column)
    x = s / cell - column - 0.5 - 0.3 * (jitter_x - 0.5)
    y = t / cell - row - 0.5 - 0.3 * (jitter_y - 0.5)
    radius, angle = norm(x, y), torch.atan2(y, x)
    size = 0.2 + 0.14 * large
    petals = size * (0.72 + 0.28 * torch.cos(5 * angle + 6 * jitter_x))
    leaves = 1.35 * size * torch.cos(2 * angle + 6 * jitter_y).clamp(min=0.25)
    colour = mix(rgb(palette[0], s), rgb((0.2, 0.36, 0.18), s), smoothstep(0.03, -0.03, radius - leaves))
    petal = mix(rgb(palette[1], s), rgb(palette[2], s), step(other - 0.5))
    colour = mix(colour, petal * (0.75 + 0.5 * (radius / size).clamp(max=1)), smoothstep(0.03, -0.03, radius - petals))
    colour = mix(colour, rgb((0.95, 0.8, 0.25), s), smoothstep(0.09, 0.05, radius))
    return Surface(colour.clamp(0, 1), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def tie_dye(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Fractal clouds of colour that run into each other."""
    first, second, third = (rgb(c, s) for c in draw.palette(3))
    one, two = noise(draw, CLOUDS, s, t, draw.number(2, 5)), noise(draw, ROUGH, s, t, draw.number(3, 6))
    colour = mix(mix(first, second, smoothstep(-0.6, 0.6, one)), third, smoothstep(0.1, 1.2, two + 0.4 * one))
    return Surface(colour, _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def printed(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """A photograph printed on cloth."""
    return Surface(photograph(draw, s, t, draw.number(1.5, 3.5)), _WEAVE * noise(draw, GRAIN, s, t, 5.0))


def knit(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """V-shaped stitches in plain rows, rings of colour, or a small motif."""
    size = draw.number(0.11, 0.18)
    column_at = s / size
    column = column_at.floor()
    across = column_at - column - 0.5
    row_at = t / (0.8 * size) + 1.1 * across.abs()
    row = row_at.floor()
    down = row_at - row - 0.5
    leg = (1 - (4 * (across.abs() - 0.25)).square()).clamp(min=0) * (1 - (2 * down).square())
    palette = draw.palette(3)
    colour = rgb(palette[0], s).expand(3, *s.shape)
    style = draw.whole(0, 3)
    if style == 1:
        rings = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).view(1, -1, 1)
        colour = mix(colour, rgb(palette[1], s), lookup(rings, row, column))
    elif style == 2:
        half = draw.numbers(8, 5) < 0.42
        motif = torch.cat((half, half.flip(1)[:, 1:]), dim=1).float()
        motif = torch.cat((motif, motif.flip(0), torch.zeros(4, 9)))
        colour = mix(colour, rgb(palette[1], s), lookup(motif[None], row, column))
    fine = noise(draw, GRAIN, s, t, 2.5)
    return Surface(colour * (0.62 + 0.42 * leg + 0.06 * fine), 0.22 * size * leg)


def rib(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Rib knit: soft cords along t."""
    size = draw.number(0.09, 0.2)
    cord = torch.cos(s * (math.pi / size)).abs()
    purl = torch.cos(t * (2 * math.pi / (0.7 * size)) + 2 * torch.sin(s * (2 * math.pi / size)))
    fine = noise(draw, GRAIN, s, t, 2.5)
    colour = rgb(draw.colour(), s) * (0.62 + 0.4 * cord + 0.06 * purl * cord + 0.05 * fine)
    return Surface(colour, 0.25 * size * cord)


def fleece(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Fur, wool or fleece: deep soft grain."""
    curls, fine = noise(draw, BLOBS, s, t, draw.number(1.2, 2.5)), noise(draw, GRAIN, s, t, 3.0)
    depth = curls.abs().clamp(max=1.6)
    return Surface(rgb(draw.colour(), s) * (0.72 + 0.22 * depth + 0.08 * fine), 0.035 * depth + 0.006 * fine)


def straw(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Woven straw or rope."""
    size = draw.number(0.07, 0.12)
    over = torch.sin(s * (math.pi / size)) * torch.sin(t * (math.pi / size))
    base = rgb(draw.pick(((0.82, 0.68, 0.45), (0.72, 0.55, 0.33), (0.9, 0.82, 0.66), (0.35, 0.24, 0.16))), s)
    colour = base * (0.85 + 0.2 * over + 0.07 * noise(draw, GRAIN, s, t, 4.0))
    return Surface(colour, 0.12 * size * over)


def wood(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Grain along s, with rings bent by noise."""
    bent = t + 0.09 * noise(draw, CLOUDS, s * 0.25, t, 4.0)
    rings = torch.sin(bent * draw.number(18, 40)) * 0.5 + 0.5
    pores = noise(draw, GRAIN, s * 0.12, t, 3.0)
    light, dark = draw.pick((((0.72, 0.53, 0.33), (0.55, 0.36, 0.2)), ((0.45, 0.28, 0.16), (0.28, 0.16, 0.09)),
                             ((0.85, 0.74, 0.56), (0.72, 0.56, 0.37)), ((0.5, 0.5, 0.48), (0.34, 0.34, 0.33))))  # fmt: skip
    return Surface(mix(rgb(dark, s), rgb(light, s), rings) * (1 + 0.07 * pores), 0.003 * rings, 0.12, 3)


def metal(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Brushed steel, gold, copper or gunmetal."""
    base = draw.pick(((0.72, 0.73, 0.75), (0.83, 0.66, 0.32), (0.72, 0.45, 0.33), (0.25, 0.26, 0.28)))
    streaks = noise(draw, GRAIN, s * 0.06, t, 3.0)
    return Surface(rgb(base, s) * (1 + 0.06 * streaks), 0.001 * streaks, 0.8, 4)


def plastic(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """One smooth colour with a sharp highlight."""
    return Surface(rgb(draw.colour(), s), torch.zeros(1, 1, device=s.device), draw.number(0.3, 0.8), draw.whole(4, 6))


Material = Callable[[Draw, Tensor, Tensor], Surface]
WOVEN: tuple[Material, ...] = (
    plain, plain, heather, stripes, plaid, dots, checks, camouflage, denim, leopard, floral, tie_dye, printed,
)  # fmt: skip
KNITTED: tuple[Material, ...] = (knit, knit, rib, rib, heather, fleece)
HARD: tuple[Material, ...] = (wood, metal, plastic, plastic)
MATERIALS: tuple[Material, ...] = (*WOVEN, *KNITTED, leather, straw, *HARD)


def cloth(draw: Draw, s: Tensor, t: Tensor) -> Surface:
    """Woven, knitted or leather."""
    return draw.pick((*WOVEN, *KNITTED, leather))(draw, s, t)


def folds(draw: Draw, across: Tensor, along: Tensor, width: float, depth: float) -> Tensor:
    """Height [h, w] of folds that run along `along`: uneven ridges `width` apart, `depth` high."""
    bent = across / width + 0.35 * noise(draw, CLOUDS, across * 0.5, along * 0.5, 4.0 * width / 0.3)
    wave = torch.sin(bent * math.pi)
    second = torch.sin(bent * (0.53 * math.pi) + draw.number(0, 6))
    swell = 0.7 + 0.3 * noise(draw, CLOUDS, across, along * 0.3, 6.0)
    return depth * swell * (0.65 * wave.abs() + 0.35 * second)


def relief(
    height: Tensor, pixel: float, light: tuple[float, float, float], ambient: float = 0.45, polish: int = 4
) -> tuple[Tensor, Tensor]:
    """Shading of a height field [h, w] seen from the front.

    Args:
        height: in the unit of `pixel`, towards the viewer.
        pixel: distance of neighbouring samples.
        light: unit vector to the lamp: right, down, towards the viewer.
        ambient: part of the light that comes from everywhere.
        polish: exponent 2 ** polish of the highlight.

    Returns:
        Diffuse factor [h, w] (1 for a face turned to the viewer) and highlight [h, w] in 0..1.
    """
    padded = F.pad(height[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    right = (padded[1:-1, 2:] - padded[1:-1, :-2]) / (2 * pixel)
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / (2 * pixel)
    scale = (1 + right * right + down * down).rsqrt()
    lx, ly, lz = light
    lit = ((lz - lx * right - ly * down) * scale).clamp(min=0)
    length = math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
    gloss = ((lz + 1 - lx * right - ly * down) * (scale / length)).clamp(0, 1)
    for _ in range(polish):
        gloss = gloss * gloss
    return ambient + (1 - ambient) / lz * lit, gloss
