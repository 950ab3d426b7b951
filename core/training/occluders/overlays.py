"""Laid over the picture: scribbles, stickers, text, bars, patches."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .canvas import Bars, Canvas, Scene, flat_surface, gaussian_blur, spline, squircle, turn_matrix
from .lettering import lettering, random_word, random_words, text_width
from .textures import (
    GRAIN,
    MATERIALS,
    ROUGH,
    WOVEN,
    Colour,
    Draw,
    Surface,
    folds,
    fraction,
    metal,
    mix,
    noise,
    norm,
    photograph,
    plastic,
    rgb,
    smoothstep,
    step,
    straw,
    wood,
)

_INKS: tuple[Colour, ...] = (
    (0.05, 0.05, 0.06), (0.85, 0.08, 0.1), (0.08, 0.25, 0.75), (0.1, 0.6, 0.25), (0.97, 0.85, 0.1), (0.95, 0.95, 0.95),
    (0.9, 0.2, 0.65), (0.98, 0.5, 0.08), (0.2, 0.8, 0.9),
)  # fmt: skip


def draw_scribble(scene: Scene, draw: Draw) -> None:
    """Strokes of marker, pen, chalk or spray: zigzags, loops, crosses, curves, moustaches."""
    canvas = scene.canvas()
    n = draw.number
    for _ in range(draw.whole(1, 3)):
        medium = draw.pick(("marker", "marker", "pen", "chalk", "spray", "brush"))
        width = {
            "marker": n(0.05, 0.11),
            "pen": n(0.018, 0.035),
            "chalk": n(0.06, 0.12),
            "spray": n(0.1, 0.2),
            "brush": n(0.1, 0.22),
        }[medium]
        centre, size = np.array([n(-1.0, 1.0), n(-0.8, 1.4)]), n(0.35, 1.1)
        shape = draw.pick(("zigzag", "zigzag", "loops", "curve", "curve", "cross", "spiral", "moustache"))
        angle = n(0, 2 * math.pi)
        jitter = draw.numbers(32, 2).numpy() * 2 - 1
        strokes: list[np.ndarray] = []
        if shape == "zigzag":
            turns = draw.whole(5, 12)
            line = np.stack((np.linspace(-1, 1, turns), np.where(np.arange(turns) % 2, 0.7, -0.7)), 1)
            strokes.append(spline((line + 0.22 * jitter[:turns]) * size, steps=4))
        elif shape == "loops":
            t = np.linspace(0, draw.whole(2, 4) * 2 * math.pi, 56)
            strokes.append(np.stack((np.cos(t) * 0.45 + np.linspace(-0.9, 0.9, 56), np.sin(t) * 0.7), 1) * size)
        elif shape == "spiral":
            t = np.linspace(0.5, draw.whole(2, 4) * 2 * math.pi, 60)
            strokes.append(np.stack((np.cos(t), np.sin(t)), 1) * (t / t[-1])[:, None] * size * 0.8)
        elif shape == "cross":
            for s in (-1, 1):
                strokes.append(spline(np.array([(-1, -s), (0, 0), (1, s)]) * size * 0.8 + 0.08 * jitter[:3], steps=5))
        elif shape == "moustache":
            centre, angle, size = np.array([0.0, 0.86]), n(-0.1, 0.1), n(0.5, 0.8)
            for s in (-1, 1):
                strokes.append(spline([(0, 0), (0.35 * s, -0.12), (0.75 * s, 0.05), (1.05 * s, -0.3)], steps=6) * size)
            width = n(0.09, 0.2)
        else:
            strokes.append(spline(jitter[: draw.whole(4, 8)] * size, steps=6))
        placed = [stroke @ turn_matrix(angle) + centre for stroke in strokes]
        part = canvas.around(np.concatenate(placed), width + 0.2)
        bars = Bars(part, solid=False)
        for stroke in placed:
            along = np.linspace(0, 1, len(stroke))
            pressure = 0.75 + 0.25 * np.sin(along * n(3, 9) + n(0, 6))
            if medium == "brush":
                pressure = pressure * (0.35 + 0.65 * np.sqrt(np.clip(4 * along * (1 - along), 0, 1)))
            bars.path(stroke, (width / 2 * pressure).tolist())
        ink = rgb(draw.pick(_INKS), part.u)
        if medium == "brush":
            ridges = noise(draw, GRAIN, part.u + part.v, part.u - part.v, 4.0)
            thick = 0.03 * smoothstep(0.0, -0.06, bars.distance)
            part.solid(bars.coverage(), Surface(ink * (1 + 0.08 * ridges), 0.01 * ridges, 0.25), thick)
            continue
        grain = noise(draw, GRAIN, part.u, part.v, 3.0)
        if medium == "spray":
            cover = 0.95 * smoothstep(0.14, -0.1, bars.distance + 0.035 * grain)
        elif medium == "chalk":
            cover = 0.95 * bars.coverage() * smoothstep(-1.7, -0.1, grain)
        else:
            cover = bars.coverage() * n(0.88, 1.0)
        part.paint(ink * (0.55 + 0.45 * scene.exposure), cover)
    scene.add(canvas)


def _star(points: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * points) * math.pi / points - math.pi / 2
    return np.stack((np.cos(angle), np.sin(angle)), 1) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _outline(draw: Draw) -> tuple[str, np.ndarray]:
    """Name and outline [N, 2] of a sticker within -1..1."""
    name = draw.pick(("emoji", "emoji", "star", "heart", "flower", "bolt", "bubble", "badge", "leaf", "arrow"))
    t = np.linspace(0, 2 * math.pi, 73)[:-1]
    circle = np.stack((np.cos(t), np.sin(t)), 1)
    if name == "star":
        return name, _star(5, draw.number(0.4, 0.6))
    if name == "heart":
        return name, np.stack(
            (np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16), 1
        )
    if name == "flower":
        return name, circle * (0.78 + 0.22 * np.cos(draw.whole(5, 8) * t))[:, None]
    if name == "bolt":
        return name, np.array(
            [(0.1, -1), (-0.55, 0.15), (-0.08, 0.15), (-0.2, 1), (0.55, -0.25), (0.08, -0.25), (0.45, -1)]
        )
    if name == "bubble":
        bubble = circle * (1.0, 0.7)
        return name, np.concatenate((bubble[:14], [(0.1, 1.05)], bubble[20:])) if draw.chance(0.5) else np.concatenate(
            (bubble[:20], [(-0.6, 1.05)], bubble[27:])
        )
    if name == "badge":
        return name, _star(draw.whole(12, 18), 0.86)
    if name == "leaf":
        return name, np.stack((np.cos(t), 0.55 * np.sin(t) * np.abs(np.sin(t / 2)) ** 0.7), 1)
    if name == "arrow":
        return name, np.array([(-1, -0.28), (0.1, -0.28), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.28), (-1, 0.28)])
    return name, circle


def draw_sticker(scene: Scene, draw: Draw) -> None:
    """Emoji, stars, hearts, badges, speech bubbles, with or without a white border and a peeling gloss."""
    canvas = scene.canvas()
    n = draw.number
    for _ in range(draw.whole(1, 4)):
        name, outline = _outline(draw)
        centre, size, angle = (n(-1.3, 1.3), n(-1.2, 1.7)), n(0.28, 0.75), n(-0.5, 0.5)
        turn, palette, border, flat = turn_matrix(angle), draw.palette(3), draw.chance(0.55), draw.chance(0.3)
        part = canvas.around(np.array([centre]), 1.1 * size + 0.3)
        a, b = part.local(centre, angle)
        a, b = a / size, b / size
        inside = part.polygon((outline * size) @ turn + np.array(centre))
        whole = part.polygon((outline * (size + 0.07)) @ turn + np.array(centre)) if border else inside
        if not flat:
            part.darken(0.25 * whole)
            part.cast(whole, (-0.05 * scene.light[0], 0.05), 0.04, 0.35, everywhere=True)
        if border:
            part.paint(rgb((0.95, 0.95, 0.94), a) * scene.exposure, whole)
        if name == "emoji":
            _emoji(part, draw, a, b, inside, part.pixel / size)
        else:
            surface = flat_surface(palette[0], part) if draw.chance(0.6) else draw.pick(WOVEN)(draw, a * size, b * size)
            part.paint(surface.colour * (1.08 - 0.25 * smoothstep(-1.0, 1.0, b)) * scene.exposure, inside)
            if name in ("bubble", "badge"):
                text = lettering(random_word(draw, draw.whole(3, 6)), a, b + 0.02, 0.55, part.pixel / size)
                part.paint(rgb(palette[1], a), text * inside)
            if name == "flower":
                part.paint(rgb(palette[1], a) * scene.exposure, part.inside(size * (norm(a, b) - 0.35)))
        if not flat:
            part.paint(rgb((1.0, 1.0, 1.0), a), 0.3 * whole * smoothstep(0.3, 0.0, (a + b + 0.8).abs()))
    scene.add(canvas)


def _emoji(canvas: Canvas, draw: Draw, a: Tensor, b: Tensor, inside: Tensor, pixel: float) -> None:
    """A round face within -1..1 of a and b; `pixel` is the distance of samples in these units."""
    base = draw.pick(((0.99, 0.82, 0.22), (0.99, 0.82, 0.22), (0.95, 0.35, 0.3), (0.55, 0.8, 0.35), (0.9, 0.9, 0.92)))
    canvas.paint(rgb(base, a) * (1.05 - 0.2 * smoothstep(-0.6, 1.0, b)) * canvas.scene.exposure, inside)

    def region(distance: Tensor) -> Tensor:
        return (0.5 - distance / pixel).clamp(0, 1) * inside

    dark = rgb((0.2, 0.1, 0.05), a)
    eyes, mouth = draw.whole(0, 3), draw.whole(0, 3)
    side = a.abs() - 0.36
    if eyes == 0:
        canvas.paint(dark, region(squircle(side, b + 0.22, 0.11, 0.17, 0.0)[0]))
    elif eyes == 1:  # happy arcs
        canvas.paint(dark, region((norm(side, b + 0.12) - 0.17).abs() - 0.05) * step(-0.12 - b))
    elif eyes == 2:  # dark glasses
        lens, _ = squircle(side, b + 0.18, 0.33, 0.2, 0.6)
        bridge = torch.maximum((b + 0.3).abs() - 0.05, a.abs() - 0.7)
        canvas.paint(rgb((0.06, 0.06, 0.08), a), region(torch.minimum(lens, bridge)))
    else:
        canvas.paint(rgb((1.0, 1.0, 1.0), a), region(norm(side, b + 0.2) - 0.22))
        canvas.paint(dark, region(norm(side - 0.05, b + 0.18) - 0.1))
    radius = norm(a, b - 0.12)
    if mouth == 0:
        canvas.paint(dark, region((radius - 0.48).abs() - 0.05) * step(b - 0.28))
    elif mouth == 1:  # open laugh
        canvas.paint(rgb((0.45, 0.08, 0.08), a), region(torch.maximum(radius - 0.52, 0.18 - b)))
        canvas.paint(rgb((1.0, 1.0, 1.0), a), region(torch.maximum(radius - 0.47, (b - 0.25).abs() - 0.06)))
    elif mouth == 2:
        canvas.paint(dark, region(squircle(a, b - 0.42, 0.16, 0.2, 0.0)[0]))
    else:
        canvas.paint(dark, region(torch.maximum((b - 0.42 + 0.1 * a).abs() - 0.05, a.abs() - 0.4)))


def draw_text(scene: Scene, draw: Draw) -> None:
    """Captions: a bar below, big outlined lines, a headline, a watermark pattern, a time stamp, a price tag."""
    canvas = scene.canvas()
    n = draw.number
    # Text belongs to the picture, not to the face: it is set level, in the picture's own units.
    frame = scene.frame
    turn = math.atan2(frame.axes[1, 0], frame.axes[0, 0])
    x, y = canvas.local((0.0, 0.0), -turn)
    centre = np.linalg.solve(frame.axes, np.array([0.5, 0.5]) - frame.origin)
    x, y = x - float(centre[0]), y - float(centre[1])
    edge = 0.5 / frame.unit  # half of the picture in eye distances
    style = draw.pick(("bar", "meme", "headline", "watermark", "stamp", "tag"))
    light, dark = rgb((0.97, 0.97, 0.96), x), rgb((0.04, 0.04, 0.05), x)
    if style == "bar":
        tall = n(0.32, 0.55)
        middle = draw.pick((1.0, 1.0, -1.0)) * (edge - tall * n(0.6, 1.3))
        ground = draw.palette(2)
        strip = canvas.inside((y - middle).abs() - tall / 2)
        canvas.paint(rgb(ground[0], x), strip * draw.pick((1.0, 0.95, n(0.6, 0.85))))
        text = random_words(draw, 3)
        size = min(tall * 0.62, 1.9 * edge / text_width(text))
        canvas.paint(rgb(ground[1], x), lettering(text, x, y - middle, size, canvas.pixel))
    elif style in ("meme", "headline"):
        tall = n(0.42, 0.7)
        colour = light if style == "meme" else rgb(draw.colour(), x)
        for middle in (-(edge - tall * 0.75), edge - tall * 0.75):
            if draw.chance(0.75) or middle > 0:
                text = random_words(draw, 2).upper()
                size = min(tall, 1.9 * edge / text_width(text))
                body = lettering(text, x, y - middle, size, canvas.pixel)
                if style == "meme":
                    around = lettering(text, x, y - middle, size, canvas.pixel, 0.11)
                    canvas.paint(dark, around)
                canvas.paint(colour, body)
    elif style == "watermark":
        lean, cell_x, cell_y = n(-0.6, -0.2), n(1.6, 2.6), n(0.7, 1.2)
        a, b = x * math.cos(lean) + y * math.sin(lean), y * math.cos(lean) - x * math.sin(lean)
        row = (b / cell_y).floor()
        text = random_word(draw, 6).upper()
        at_x, at_y = (fraction(a / cell_x + 0.37 * row) - 0.5) * cell_x, (fraction(b / cell_y) - 0.5) * cell_y
        mark = lettering(text, at_x, at_y, n(0.28, 0.42), canvas.pixel)
        canvas.paint(light if draw.chance(0.7) else dark, mark * n(0.35, 0.7))
    elif style == "stamp":
        day, month, year = draw.whole(1, 28), draw.whole(1, 12), draw.whole(1994, 2024)
        text = f"{day:02d}.{month:02d}.{year}  {draw.whole(0, 23):02d}:{draw.whole(0, 59):02d}"
        glow = draw.pick(((1.0, 0.55, 0.1), (0.98, 0.9, 0.3), (0.95, 0.95, 0.95)))
        at = (n(-0.3, 0.3), draw.sign() * (edge - 0.3))
        canvas.paint(dark, 0.6 * lettering(text, x - at[0] - 0.03, y - at[1] - 0.03, 0.32, canvas.pixel))
        canvas.paint(rgb(glow, x), lettering(text, x - at[0], y - at[1], 0.32, canvas.pixel))
    else:
        lean, at = n(-0.5, 0.5), (n(-0.8, 0.8), n(-0.8, 0.9))
        a, b = canvas.local((at[0] + float(centre[0]), at[1] + float(centre[1])), lean - turn)
        card, _ = squircle(a, b, n(0.8, 1.2), n(0.35, 0.5), 0.93)
        palette = draw.palette(2)
        canvas.cast(canvas.inside(card), (0.05, 0.07), 0.05, 0.4, everywhere=True)
        canvas.solid(canvas.inside(card), flat_surface(palette[0], canvas, 0.1), 0.02 * smoothstep(0, -0.05, card))
        price = f"{draw.whole(1, 99)},{draw.whole(0, 99):02d}"
        text = random_words(draw, 1).upper() if draw.chance(0.6) else price
        canvas.paint(rgb(palette[1], x), lettering(text, a, b, 0.5, canvas.pixel) * canvas.inside(card + 0.04))
    scene.add(canvas)


def draw_bars(scene: Scene, draw: Draw) -> None:
    """Between viewer and face: metal bars, planks, wire mesh, rope, barrier tape, flat stripes, a censor bar."""
    canvas = scene.canvas()
    n = draw.number
    style = draw.pick(("metal", "metal", "planks", "mesh", "rope", "tape", "tape", "stripes", "censor"))
    if style == "censor":
        middle, tall = draw.pick((0.0, 0.0, 1.0)), n(0.22, 0.42)
        a, b = canvas.local((0.0, middle), n(-0.12, 0.12))
        box = torch.maximum(a.abs() - n(0.95, 1.35), b.abs() - tall)
        canvas.paint(
            rgb(draw.pick(((0.02, 0.02, 0.02), (0.02, 0.02, 0.02), (0.97, 0.97, 0.97), draw.colour())), a),
            canvas.inside(box),
        )
        scene.add(canvas)
        return
    angle = draw.pick((0.0, math.pi / 2, n(-0.5, 0.5), n(0.3, 1.2)))
    if style == "tape":
        angle = n(-0.45, 0.45)
    a, b = canvas.local((0.0, 0.3), angle)
    if style == "mesh":
        cell, wire = n(0.4, 0.8), n(0.03, 0.07)
        lean = draw.pick((1.0, n(0.8, 1.3)))
        p, q = (a + lean * b) / cell, (a - lean * b) / cell
        scale = cell / math.sqrt(1 + lean * lean)
        near = torch.minimum((fraction(p) - 0.5).abs(), (fraction(q) - 0.5).abs()) * scale
        cover = canvas.line(near, wire)
        height = ((wire / 2) ** 2 - near.square()).clamp(min=0).sqrt()
        canvas.cast(cover, (-0.1 * scene.light[0], 0.08), 0.06, 0.25)
        canvas.solid(cover, metal(draw, a, b), height, 0.4)
        scene.add(canvas)
        return
    period = {
        "metal": n(0.7, 1.5),
        "planks": n(0.9, 1.8),
        "rope": n(1.2, 2.2),
        "tape": n(2.6, 4.0),
        "stripes": n(0.35, 0.9),
    }[style]
    part = {
        "metal": n(0.16, 0.32),
        "planks": n(0.35, 0.7),
        "rope": n(0.1, 0.18),
        "tape": n(0.16, 0.24),
        "stripes": n(0.3, 0.55),
    }[style]
    shift = n(0, 1)
    number = (b / period + shift).floor()
    inner = (fraction(b / period + shift) - 0.5) * period
    half = part * period / 2
    wobble = 0.02 * torch.sin(a * 0.9 + number * 2.1) if style in ("planks", "rope", "tape") else torch.zeros_like(a)
    inner = inner + wobble
    cover = canvas.inside(inner.abs() - half)
    if style == "stripes":
        canvas.paint(rgb(draw.colour(), a), cover * draw.pick((1.0, n(0.75, 0.95))))
        scene.add(canvas)
        return
    canvas.cast(cover, (-0.2 * scene.light[0], 0.12), 0.1, n(0.2, 0.45))
    round_height = (half * half - inner.square()).clamp(min=0).sqrt()
    if style == "metal":
        surface = draw.pick((metal, metal, plastic))(draw, a, inner)
        rust = smoothstep(0.5, 1.2, noise(draw, ROUGH, a, b, 4.0)) * (1.0 if draw.chance(0.3) else 0.0)
        surface = surface._replace(colour=mix(surface.colour, rgb((0.4, 0.2, 0.1), a), rust))
        canvas.solid(cover, surface, round_height, 0.35)
    elif style == "planks":
        surface = wood(draw, a + 3.1 * number, inner)
        bevel = 0.05 * smoothstep(0.0, 0.08, half - inner.abs())
        nail = norm(fraction(a / 2.2 + 0.3) * 2.2 - 1.1, inner)
        canvas.solid(cover, surface, bevel)
        canvas.darken(0.6 * canvas.inside(nail - 0.04))
    elif style == "rope":
        twist = torch.sin((a / half * 1.6 + inner / half * 1.3) * 2)
        fibre = straw(draw, a, inner)
        canvas.solid(
            cover, fibre._replace(colour=fibre.colour * (0.8 + 0.2 * twist)), round_height + 0.25 * half * twist
        )
    else:
        inks = draw.pick(
            (((0.95, 0.8, 0.05), (0.05, 0.05, 0.05)), ((0.9, 0.1, 0.1), (0.95, 0.95, 0.95)), tuple(draw.palette(2)))
        )
        ground, ink = rgb(inks[0], a), rgb(inks[1], a)
        if draw.chance(0.5):
            colour = mix(ground, ink, step(fraction((a + inner) / (half * 2.6)) - 0.5))
        else:
            text = random_words(draw, 1).upper()
            spacing = 0.5 * len(text) * half + half * 2
            colour = mix(
                ground, ink, lettering(text, (fraction(a / spacing) - 0.5) * spacing, inner, half * 1.3, canvas.pixel)
            )
        wrinkle = folds(draw, a, inner, 0.5, 0.02)
        canvas.solid(cover, Surface(colour, wrinkle, 0.25, 3), 0.0)
    scene.add(canvas)


def draw_patch(scene: Scene, draw: Draw) -> None:
    """A free-form piece of any material or photograph: blob, torn paper, framed print, bubble out of focus."""
    canvas = scene.canvas()
    n = draw.number
    for _ in range(draw.whole(1, 2)):
        centre, size, angle = (n(-1.4, 1.4), n(-1.3, 1.7)), n(0.45, 1.1), n(-0.7, 0.7)
        part = canvas.around(np.array([centre]), 1.45 * size + 0.3)
        a, b = part.local(centre, angle)
        style = draw.pick(("blob", "blob", "torn", "print", "soft"))
        if draw.chance(0.6):
            surface = draw.pick(MATERIALS)(draw, a, b)
        else:
            surface = Surface(photograph(draw, a, b, 2 * size), torch.zeros_like(a))
        if style in ("blob", "soft"):
            radii = 0.65 + 0.45 * draw.numbers(draw.whole(5, 9)).numpy()
            t = np.arange(len(radii)) / len(radii) * 2 * math.pi
            rim = np.stack((np.cos(t), np.sin(t)), 1) * radii[:, None] * size
            cover = part.polygon(spline(rim, closed=True) + centre)
            if style == "soft":
                part.paint(surface.colour * scene.exposure, gaussian_blur(cover, n(0.03, 0.1) / part.pixel))
                continue
            depth = gaussian_blur(cover, 0.12 / part.pixel)
        else:
            ragged = 0.03 * noise(draw, ROUGH, a, b, 5.0) if style == "torn" else torch.zeros_like(a)
            box = torch.maximum(a.abs() - size, b.abs() - size * n(0.6, 1.0)) + ragged
            cover, depth = part.inside(box), smoothstep(0.0, -0.04, box)
            if style == "print" or draw.chance(0.5):
                paper = (
                    smoothstep(-0.07, -0.06, box) if style == "print" else smoothstep(-0.05, -0.03, box + 0.6 * ragged)
                )
                surface = surface._replace(colour=mix(surface.colour, rgb((0.94, 0.94, 0.92), a), paper))
        part.cast(cover, (-0.12 * scene.light[0], 0.1), 0.08, n(0.2, 0.5), everywhere=True)
        part.darken(0.3 * gaussian_blur(cover, 0.06 / part.pixel))
        part.solid(cover, surface, (0.25 if style == "blob" and draw.chance(0.5) else 0.02) * depth)
    scene.add(canvas)
