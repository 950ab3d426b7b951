"""Head wear: beanie, bucket hat, brimmed hats, helmet, turban, cap, headband, head scarf.

A hat takes its width from the head and hair found in the picture (`Scene.head`), so that hair does not stick out of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .canvas import Bars, Canvas, Scene, arc_length, flat_surface, spline, squircle
from .lettering import lettering, random_word
from .textures import (
    BLOBS,
    CLOUDS,
    GRAIN,
    KNITTED,
    WOVEN,
    Colour,
    Draw,
    Surface,
    bell,
    camouflage,
    cloth,
    denim,
    floral,
    folds,
    fraction,
    heather,
    leather,
    metal,
    mix,
    noise,
    norm,
    plaid,
    plain,
    plastic,
    rgb,
    smoothstep,
    step,
    straw,
)


def draw_hat(scene: Scene, draw: Draw) -> None:
    """Beanie, bucket hat, brimmed hat, helmet or turban."""
    draw.pick((_beanie, _beanie, _bucket, _brimmed, _brimmed, _helmet, _turban))(scene, draw)


def _beanie(scene: Scene, draw: Draw) -> None:
    canvas = scene.canvas((-2.2, -2.4, 2.2, 0.5))
    hem, square = draw.number(-0.12, 0.2), draw.number(0.1, 0.45)
    sag, rise = draw.number(0.1, 0.4), 1.15 + draw.number(0.15, 0.55)
    middle, width = scene.head(hem - 0.8 + sag, rise + hem + sag, square)
    width += draw.number(0.03, 0.1)
    u, v = canvas.local((middle, -0.8), draw.number(-0.09, 0.09))
    edge = hem + sag * (u / width).square()
    base = hem + sag
    outline, bulge = squircle(u, v - base, width, base + rise, square)
    crown = canvas.inside(torch.maximum(outline, v - edge))
    s = arc_length(u, width)
    surface = draw.pick(KNITTED)(draw, s, v)
    canvas.cast(crown, (0.0, 0.12), 0.12, draw.number(0.3, 0.5))
    slack = folds(draw, v + 0.3 * u, u, 0.5, 0.05) * smoothstep(0.0, -0.8, v - edge)
    lip = 0.12 * smoothstep(-0.14, 0.0, v - edge)  # the seam curls inwards
    canvas.solid(crown, surface, 0.9 * bulge + slack - lip)
    if draw.chance(0.7):
        depth = draw.number(0.32, 0.55)
        wide, _ = squircle(u, v - base, width + 0.05, base + rise, 0.4)
        place = (v - edge) / depth  # -1 at the upper rim of the cuff, 0 at the hem
        cuff = canvas.inside(torch.maximum(wide, torch.maximum(v - edge, edge - depth - v)))
        roll = (1 - (2 * place + 1).square()).clamp(min=0).sqrt()
        other = draw.pick(KNITTED)(draw, s, v) if draw.chance(0.4) else surface
        canvas.darken(0.4 * smoothstep(-1.25, -1.0, place))
        canvas.solid(cuff, other, 0.9 * bulge + 0.09 * roll)
        if draw.chance(0.35):
            label, dome = squircle(u - draw.pick((-0.6, 0.0, 0.5)), v - edge + depth * 0.5, 0.2, depth * 0.28, 0.9)
            canvas.solid(canvas.inside(label), leather(draw, u, v), 0.9 * bulge + 0.03 * dome)
    if draw.chance(0.35):
        distance, ball = squircle(u, v + rise + 0.02, 0.36, 0.36, 0.0)
        wool = 0.06 * noise(draw, BLOBS, u, v, 1.3)
        fluff = Surface(rgb(draw.colour(), u) * (0.85 + 0.15 * noise(draw, GRAIN, u, v, 2.0)), wool)
        canvas.solid(canvas.inside(distance + wool), fluff, 0.35 * ball)
    scene.add(canvas)


def _crown_shape(
    u: Tensor, v: Tensor, width: float, rise: float, taper: float, square: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, dome and narrowed u of a hat's crown that stands on v = 0 and ends at -rise."""
    narrow = u / (1 - taper * (-v / rise).clamp(0, 1.2))
    distance, dome = squircle(narrow, v, width, rise, square)
    return distance, dome, narrow


def _bucket(scene: Scene, draw: Draw) -> None:
    canvas = scene.canvas((-2.2, -2.4, 2.2, 0.5))
    middle, width = scene.head(-1.0, 1.2, 0.75)
    u, v = canvas.local((middle, -0.85), draw.number(-0.08, 0.08))
    flare, depth = draw.number(0.2, 0.5), draw.number(0.42, 0.62)
    top, sag = -0.2 + draw.number(-0.05, 0.1), draw.number(-0.12, 0.18)
    upper = top + 0.1 * (1 - (u / width).square())
    lower = top + depth + sag * (u / width).square()
    part = ((v - upper) / (lower - upper)).clamp(0, 1)
    half = width + 0.02 + flare * part
    brim = canvas.inside(torch.maximum(torch.maximum(v - lower, upper - 0.05 - v), u.abs() - half))
    distance, dome, _ = _crown_shape(u, v - top - 0.12, width, 1.3 + draw.number(0.0, 0.25), 0.12, 0.75)
    crown = canvas.inside(torch.maximum(distance, v - upper))
    material = draw.pick((*WOVEN, denim, camouflage, leather, heather))
    seed = draw.seed()
    canvas.cast(brim, (0.02 * draw.sign(), 0.3), 0.16, draw.number(0.3, 0.55))
    canvas.solid(crown, material(Draw(seed), arc_length(u, width), v), 0.8 * dome)
    canvas.darken(0.35 * smoothstep(-0.14, 0.0, v - upper))
    stitch = torch.sin(part * (2 * math.pi * draw.whole(3, 6)))
    skirt = material(Draw(seed), arc_length(u, width + flare + 0.05), v)
    bend = 0.6 * (1 - (u / (width + flare + 0.1)).square()).clamp(min=0).sqrt() + 0.12 * part
    wave = 0.04 * torch.sin(3 * u + draw.number(0, 6)) * part
    canvas.solid(brim, skirt._replace(colour=skirt.colour * (1 - 0.06 * stitch)), bend + wave + 0.004 * stitch)
    scene.add(canvas)


def _brimmed(scene: Scene, draw: Draw) -> None:
    """Fedora, cowboy hat, sun hat, straw hat, bowler."""
    canvas = scene.canvas((-2.2, -2.4, 2.2, 0.7))
    middle, width = scene.head(-0.9, 1.2, 0.5)
    u, v = canvas.local((middle, -0.85), draw.number(-0.14, 0.14))
    reach, half = width + draw.number(0.3, 0.95), draw.number(0.2, 0.4)
    curl = draw.number(-0.45, 0.3)
    level = v - 0.05 - curl * (u / reach).square() - 0.03 * torch.sin(2.2 * u + draw.number(0, 6))
    edge, plate = squircle(u, level, reach, half, 0.0)
    brim = canvas.inside(edge)
    material = draw.pick((straw, straw, plain, heather, leather, denim, plaid))
    seed = draw.seed()
    canvas.cast(brim, (0.0, 0.34), 0.17, draw.number(0.35, 0.6))
    rim = material(Draw(seed), u, level * 2.5)
    lightness = 0.78 + 0.3 * smoothstep(-half, half, level) - 0.12 * smoothstep(-0.08, 0.0, edge)
    canvas.solid(brim, rim._replace(colour=rim.colour * lightness), 0.05 * plate - 0.2 * level)
    rise = 1.15 + draw.number(0.1, 0.5)
    foot = 0.1 * (1 - (u / width).square())
    distance, dome, narrow = _crown_shape(u, v - foot, width, rise, draw.number(0.08, 0.28), draw.number(0.3, 0.85))
    pinch = bell(u / 0.22) * smoothstep(-0.4, -rise, v) if draw.chance(0.5) else torch.zeros_like(u)
    crown = canvas.inside(torch.maximum(distance, v - foot))
    canvas.darken(0.45 * smoothstep(0.16, 0.0, distance))
    canvas.solid(crown, material(Draw(seed), arc_length(narrow, width * 1.02), v), 0.75 * dome - 0.22 * pinch)
    if draw.chance(0.8):
        ribbon = draw.number(0.16, 0.36)
        band = canvas.inside(torch.maximum(distance, torch.maximum(v - foot, foot - ribbon - v)))
        canvas.solid(band, draw.pick((plain, leather, cloth))(draw, narrow, v), 0.8 * dome)
    scene.add(canvas)


def _helmet(scene: Scene, draw: Draw) -> None:
    """Bicycle helmet, hard hat or skate helmet."""
    canvas = scene.canvas()
    hem, sag, rise = draw.number(-0.25, 0.05), draw.number(-0.1, 0.3), 1.3 + draw.number(0.0, 0.3)
    square = draw.number(0.1, 0.4)
    middle, width = scene.head(hem - 0.75, rise, square)
    width += draw.number(0.06, 0.14)
    palette, style = draw.palette(2), draw.pick(("ridges", "vents", "peak"))
    if draw.chance(0.6):
        straps = Bars(canvas)
        cheek, chin, centre = scene.frame.cheek, scene.frame.chin, scene.frame.middle
        for side in (-1.0, 1.0):
            path = [(middle + side * (cheek - 0.04), -0.8), (centre + side * (cheek - 0.08), 0.5),
                    (centre + side * 0.78, chin - 0.35), (centre, chin + 0.0)]  # fmt: skip
            straps.path(spline(path, steps=4), 0.03)
        canvas.cast(straps.coverage(), (0.02, 0.05), 0.05, 0.35)
        canvas.solid(straps.coverage(), flat_surface(palette[1], canvas), straps.surface_height())
    canvas_top = canvas.crop(-2.2, -2.4, 2.2, 0.5)
    u, v = canvas_top.local((middle, -0.75), draw.number(-0.08, 0.08))
    edge = hem + sag * (u / width).square()
    distance, dome = squircle(u, v - 0.25, width, rise + 0.25, square)
    shell = canvas_top.inside(torch.maximum(distance, v - edge))
    canvas_top.cast(shell, (0.0, 0.14), 0.13, 0.45)
    shape = 0.95 * dome
    if style == "ridges":
        shape = shape + 0.05 * smoothstep(0.5, 0.9, torch.cos(u / (0.3 + 0.25 * dome) * 2.0))
    canvas_top.solid(shell, flat_surface(palette[0], canvas, draw.number(0.35, 0.8), 5), shape)
    if style == "vents":
        tall = draw.number(0.28, 0.45)
        for at in (-0.7, -0.25, 0.25, 0.7):
            vent, depth = squircle(u - at * width + at * 0.35 * (v + 0.9), v + 0.75, 0.11, tall, 0.2)
            hole = canvas_top.inside(torch.maximum(vent, v - edge + 0.15))
            canvas_top.paint(rgb((0.05, 0.05, 0.055), u) * (1.6 - depth), hole)
    rim = canvas_top.inside(torch.maximum(distance, (v - edge + 0.04).abs() - 0.05))
    canvas_top.solid(rim, flat_surface(palette[1], canvas, 0.3), 0.95 * dome)
    if style == "peak":
        peak, plate = squircle(u, v - edge - 0.02 + 0.12 * (u / width).square(), width * 0.8, 0.16, 0.0)
        canvas_top.solid(canvas_top.inside(peak), flat_surface(palette[0], canvas, 0.4, 5), 0.25 * plate - 0.3 * v)
    if draw.chance(0.4):
        _emblem(canvas_top, draw, (u, v + 0.35 * rise - hem), draw.number(0.2, 0.34), palette[1])
    scene.add(canvas)


def _turban(scene: Scene, draw: Draw) -> None:
    canvas = scene.canvas((-2.2, -2.4, 2.2, 0.5))
    square, tall = draw.number(0.0, 0.25), 1.75 + draw.number(-0.1, 0.25)
    middle, width = scene.head(-0.8, tall, square)
    width += draw.number(0.04, 0.14)
    u, v = canvas.local((middle, -0.75), draw.number(-0.08, 0.08))
    peak, slope = draw.number(-0.3, 0.3), draw.number(0.15, 0.6)
    lean = (u - peak).abs()
    edge = -0.15 + draw.number(-0.15, 0.1) + 0.25 * (u / width).square() - 0.12 * bell(lean / 0.5)
    distance, dome = squircle(u, v - 0.3, width, tall, square)
    cover = canvas.inside(torch.maximum(distance + 0.02 * noise(draw, CLOUDS, u, v, 3.0), v - edge))
    seed = draw.seed()
    order = 1 - 2 * step(u - peak) * (1.0 if draw.chance(0.6) else 0.0)
    rows = (v + slope * order * (u - peak) * (1 + 0.1 * u)) / draw.number(0.3, 0.55)
    rows = rows + 0.18 * noise(draw, CLOUDS, u, v, 5.0)
    layer = fraction(rows)
    roll = (1 - (2 * layer - 1).square()).clamp(min=0).sqrt()
    creases = folds(draw, rows * 0.3, u, 0.07, 0.012)
    surface = draw.pick((plain, plain, heather, cloth))(Draw(seed), arc_length(u, width), v + slope * u)
    surface = surface._replace(colour=surface.colour * (0.68 + 0.34 * roll))
    canvas.cast(cover, (0.0, 0.12), 0.12, 0.45)
    canvas.solid(cover, surface, 0.9 * dome + 0.16 * roll + creases)
    if draw.chance(0.25):
        jewel, ball = squircle(u - peak, v + 0.45, 0.11, 0.15, 0.0)
        canvas.solid(canvas.inside(jewel - 0.04), metal(draw, u, v), 0.1 * ball)
        canvas.solid(canvas.inside(jewel), plastic(draw, u, v), 0.2 * ball)
    scene.add(canvas)


def draw_cap(scene: Scene, draw: Draw) -> None:
    """Baseball cap from the front; the peak points aside or down a little and shades the eyes."""
    canvas = scene.canvas((-2.2, -2.4, 2.2, 1.0))
    hem, rise = draw.number(-0.12, 0.08), 1.2 + draw.number(0.1, 0.4)
    sag, square = draw.number(0.1, 0.4), draw.number(0.1, 0.4)
    middle, width = scene.head(hem - 0.8 + sag / 2, rise + hem + sag, square)
    angle = draw.number(-0.12, 0.12)
    u, v = canvas.local((middle, -0.8), angle)
    edge = hem + sag * (u / width).square()
    distance, dome = squircle(u, v - hem - sag, width, rise + hem + sag, square)
    crown = canvas.inside(torch.maximum(distance, v - edge))
    material = draw.pick((plain, plain, plain, denim, camouflage, plaid, leather, cloth))
    seed, palette = draw.seed(), draw.palette(3)
    canvas.cast(crown, (0.0, 0.06), 0.06, 0.3)
    surface = material(Draw(seed), arc_length(u, width), v)
    arc = (1 - (v / (rise + 0.05)).square()).clamp(min=0.02).sqrt()
    seams = torch.zeros_like(u)
    for panel in (-0.62, 0.0, 0.62):
        seams = torch.maximum(seams, bell((u - panel * width * arc) / 0.02))
    colour = surface.colour * (1 - 0.22 * seams)
    if draw.chance(0.3):  # a front of another colour
        front_part = smoothstep(0.6, 0.58, u.abs() / (width * arc))
        colour = mix(colour, rgb(palette[0], u) * (1 - 0.2 * seams), front_part)
    canvas.solid(crown, surface._replace(colour=colour), 0.95 * dome - 0.015 * seams)
    if draw.chance(0.7):
        _emblem(canvas, draw, (u, v - hem + rise * 0.48), draw.number(0.26, 0.4), palette[1])
    front = canvas.crop(-2.2, -1.6, 2.2, 1.0)
    u, v = front.local((middle, -0.8), angle)
    edge = hem + sag * (u / width).square()
    aside, reach, deep = draw.number(-0.2, 0.2), width * draw.number(0.78, 0.96), draw.number(0.15, 0.3)
    across, level = (u - aside) / reach, v - edge - 0.35 * deep
    rim, _ = squircle(u - aside, level, reach, deep, 0.2)
    peak = front.inside(torch.maximum(rim, edge - 0.05 - v))
    front.cast(peak, (-0.25 * scene.light[0], draw.number(0.2, 0.4)), 0.14, draw.number(0.4, 0.65))
    front.darken(0.45 * smoothstep(0.12, -0.04, rim))
    skin = material(Draw(seed), u, v * 1.5)
    top = rgb(palette[2], u) if draw.chance(0.35) else skin.colour
    stitches = torch.sin(rim / deep * 24) * smoothstep(-0.5 * deep, 0.0, level)
    shade = 0.66 + 0.38 * smoothstep(-0.4 * deep, 0.7 * deep, level) - 0.04 * stitches
    lining = smoothstep(0.35 * deep, deep, level) if draw.chance(0.3) else torch.zeros_like(u)
    top = mix(top * shade, 0.4 * rgb(palette[1], u), lining)
    front.solid(
        peak, Surface(top, skin.bump, skin.shine), 0.3 * (1 - across.square()).clamp(min=0).sqrt() - 0.15 * level
    )
    front.darken(0.3 * front.line(rim + 0.02, 0.03) * smoothstep(-0.1 * deep, 0.4 * deep, level))
    scene.add(canvas)


def _emblem(canvas: Canvas, draw: Draw, at: tuple[Tensor, Tensor], size: float, colour: Colour) -> None:
    """A letter or a simple badge on cloth."""
    u, v = at
    style = draw.whole(0, 3)
    if style == 0:
        mark, _ = squircle(u, v, size * 1.2, size * 0.7, draw.number(0, 1))
        canvas.solid(canvas.inside(mark), flat_surface(colour, canvas), 0.0)
        text = lettering(random_word(draw, 3), u, v, size * 0.8, canvas.pixel)
        canvas.paint(1 - rgb(colour, u), text * canvas.alpha)
    elif style == 1:
        canvas.paint(rgb(colour, u), canvas.line(norm(u, v) - size * 0.8, size * 0.3) * canvas.alpha)
    else:
        text = lettering(
            random_word(draw, 1 if style == 2 else 4), u, v, size * (1.7 if style == 2 else 0.8), canvas.pixel
        )
        canvas.paint(rgb(colour, u) * canvas.scene.exposure, text * canvas.alpha)


def draw_headband(scene: Scene, draw: Draw) -> None:
    """Sweat band, knotted band, or a bandana tied over the hair."""
    canvas = scene.canvas((-2.2, -2.4, 2.2, 0.6))
    hem, sag, above = draw.number(-0.15, 0.25), draw.number(0.05, 0.3), 1.2 + draw.number(0.02, 0.12)
    full = draw.chance(0.4)
    tall = 3.0 if full else draw.number(0.26, 0.62)
    middle, width = scene.head(hem + sag / 2 - 0.85, above + hem + sag, 0.3)
    u, v = canvas.local((middle, -0.85), draw.number(-0.12, 0.12))
    edge = hem + sag * (u / width).square() + 0.02 * torch.sin(2.5 * u + draw.number(0, 6))
    distance, dome = squircle(u, v - hem - sag, width, above + hem + sag, 0.3)
    band = canvas.inside(torch.maximum(distance, torch.maximum(v - edge, edge - tall - v)))
    material = draw.pick((cloth, floral, plain, plaid, *KNITTED[:2]))
    surface = material(draw, arc_length(u, width + 0.03), v)
    rows = folds(draw, v - edge + 0.05 * u * draw.sign(), u, 0.2 if not full else 0.45, 0.05)
    rounded = torch.zeros_like(v)
    if not full:
        rounded = 0.1 * (1 - (2 * (edge - v) / tall - 1).square()).clamp(min=0).sqrt()
    canvas.cast(band, (0.0, 0.07), 0.08, 0.35)
    canvas.solid(band, surface, 0.9 * dome + rows + rounded)
    if draw.chance(0.45):
        at = draw.sign() * draw.number(0.4, 1.0) * width
        knot_v = hem + sag * (at / width) ** 2 - min(tall, 0.5) / 2
        ears = Bars(canvas)
        for lean in (-1.0, 1.0):
            tip = (middle + at + lean * draw.number(0.25, 0.45), -0.85 + knot_v - draw.number(0.05, 0.4))
            ears.bar((middle + at, -0.85 + knot_v), tip, 0.1, 0.2, 0.05)
        canvas.solid(ears.coverage(), surface, ears.surface_height() + rows)
        knot, ball = squircle(u - at, v - knot_v, 0.16, 0.19, 0.3)
        canvas.darken(0.4 * smoothstep(0.1, 0.0, knot))
        canvas.solid(canvas.inside(knot), surface, 0.2 * ball + rows)
    scene.add(canvas)


def draw_head_scarf(scene: Scene, draw: Draw) -> None:
    """Cloth around hair, ears and neck, an oval left open for the face; or a winter hood with a fur rim."""
    canvas = scene.canvas()
    middle, width = scene.head(0.6, 2.6, 0.15)
    u, v = canvas.local((middle, 0.0))
    chin = scene.frame.chin
    open_width = scene.frame.cheek * draw.number(0.86, 0.98)
    top, bottom = -draw.number(0.75, 1.15), chin - draw.number(-0.02, 0.16)
    centre, half = (top + bottom) / 2, (bottom - top) / 2
    face_u = u - scene.frame.middle + middle
    opening, _ = squircle(face_u * (1 + 0.05 * (v - centre)), v - centre, open_width, half, 0.12)
    outer_width = max(width, open_width + 0.25) + 0.03
    outer, dome = squircle(u, v - 0.45, outer_width, 2.5 + draw.number(-0.05, 0.15), 0.15)
    slope = draw.number(0.9, 1.6)
    shoulder = u.abs() - (outer_width * 0.92 + slope * (v - 1.1).clamp(min=0).square())
    outer = torch.minimum(outer, torch.maximum(shoulder, 0.8 - v))
    cover = canvas.inside(torch.maximum(outer, -opening))
    canvas.cast(cover, (0.05 * draw.sign(), 0.05), 0.12, draw.number(0.3, 0.5))
    fur = draw.chance(0.2)
    material = heather if fur else draw.pick((plain, plain, heather, floral, cloth))
    surface = material(draw, arc_length(u, outer_width + 0.1), v)
    swirl = opening + 0.12 * torch.sin(1.3 * torch.atan2(v - centre, u) + draw.number(0, 6))
    height = 0.85 * dome + folds(draw, swirl, u + v, draw.number(0.16, 0.3), draw.number(0.04, 0.08))
    lean = draw.number(0.4, 1.0) * draw.pick((u.abs(), u, -u))
    drape = folds(draw, v * 1.2 - 0.5 * lean, u, 0.28, 0.1) * smoothstep(1.2, 1.8, v)
    depth = 0.72 + 0.28 * smoothstep(0.0, 0.4, opening)
    canvas.solid(cover, surface._replace(colour=surface.colour * depth), height + drape)
    if fur:
        hairs = noise(draw, CLOUDS, u, v, 1.2)
        tufts = noise(draw, BLOBS, u, v, 2.0)
        place = (opening - 0.12 + 0.03 * tufts) / 0.24
        pelt = Surface(rgb(draw.colour(), u) * (0.85 + 0.12 * hairs + 0.1 * tufts), 0.02 * hairs + 0.012 * tufts)
        ring = canvas.inside(torch.maximum(outer - 0.06, (place.abs() - 1) * 0.24))
        canvas.darken(0.4 * smoothstep(1.5, 1.0, place))
        canvas.solid(ring, pelt, 0.3 * (1 - place.square()).clamp(min=0).sqrt())
    else:
        canvas.darken(0.18 * canvas.inside(torch.maximum(outer, (opening - 0.05).abs() - 0.05)))
    scene.add(canvas)
