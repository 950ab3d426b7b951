"""Behind the person, and before: a background, the shadow of something outside the picture, strands of hair.

The background keeps the person given or found (`canvas.Scene.person`). A cast shadow is no object: it takes light away
and leaves the mask empty.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from .canvas import SHIFT, SMALL, Point, Scene, gaussian_blur, pooled, spline, squircle
from .hands import Hand, hand_poses
from .textures import (
    BLOBS,
    CLOUDS,
    GRAIN,
    WOVEN,
    Draw,
    bell,
    fraction,
    lookup,
    mix,
    noise,
    photograph,
    rgb,
    smoothstep,
    step,
    wood,
)


def draw_background(scene: Scene, draw: Draw) -> None:
    """A busy scene behind the person: shelves, lights, a wall, leaves, windows at night, a pattern, a photograph."""
    canvas = scene.canvas()
    n = draw.number
    turn = math.atan2(scene.frame.axes[1, 0], scene.frame.axes[0, 0])
    u, v = canvas.local((0.0, 0.0), -turn)
    style = draw.pick(
        ("shelves", "lights", "photograph", "photograph", "leaves", "windows", "pattern", "wall", "blinds")
    )
    ground = rgb(draw.colour(), u)
    if style == "shelves":
        tall = n(0.7, 1.1)
        row = (v / tall + n(0, 1)).floor()
        y = fraction(v / tall + n(0, 0.001)) * tall
        width = n(0.13, 0.22)
        own = lookup(draw.numbers(5, 1, 64), torch.zeros_like(u), (u / width).floor() + 17 * row)
        book = own[:3] * (0.25 + 0.6 * own[3])
        x = fraction(u / width)
        spine = 0.55 + 0.45 * (1 - (2 * x - 1).square()) - 0.35 * step(0.04 - (y / tall - 0.3).abs()) * own[4]
        gap = smoothstep(0.0, 0.04, y - tall * (0.12 + 0.3 * own[4]))
        plank = smoothstep(tall * 0.93, tall * 0.94, y)
        colour = mix(mix(0.12 * ground, book * spine, gap), wood(draw, u, v).colour, plank)
    elif style == "lights":
        colour = ground * n(0.2, 0.7) * (1 + 0.3 * noise(draw, CLOUDS, u, v, 6.0)).clamp(0.3, 2)
        for _ in range(draw.whole(10, 22)):
            radius = n(0.08, 0.34)
            disc, _ = squircle(u - n(-2.2, 2.2), v - n(-2.2, 2.2), radius, radius, 0.0)
            glow = rgb(
                draw.pick(((1.0, 0.75, 0.35), (0.6, 0.8, 1.0), (1.0, 0.4, 0.4), (0.9, 0.95, 1.0), draw.colour())), u
            )
            strength = (smoothstep(0.02, -0.02, disc) * (0.6 + 0.4 * smoothstep(-radius, 0.0, disc))) * n(0.25, 0.8)
            colour = colour + glow * strength
    elif style == "leaves":
        colour = rgb((0.10, 0.16, 0.07), u)
        for layer in range(4):
            blot = noise(draw, BLOBS, u + 0.4 * v, v - 0.3 * u, n(4.0, 9.0))
            tone = rgb((0.16 + 0.1 * layer, 0.3 + 0.12 * layer, 0.08 + 0.05 * layer), u)
            leaf = smoothstep(0.5, 0.8, blot)
            colour = mix(colour, tone * (0.7 + 0.3 * blot.clamp(0, 2)), leaf)
        sky = smoothstep(1.1, 1.5, noise(draw, CLOUDS, u, v, 6.0) - 0.3 * v)
        colour = mix(colour, rgb((0.9, 0.95, 1.0), u), sky)
    elif style == "windows":
        cell_x, cell_y = n(0.16, 0.34), n(0.2, 0.45)
        column, row = (u / cell_x).floor(), (v / cell_y).floor()
        block = (u / n(0.9, 1.6) + 40).floor()
        table, none = draw.numbers(2, 1, 256), torch.zeros_like(u)
        lamp, bright_by = lookup(table, none, column * 7 + row * 31)
        tall, tone = lookup(table, none, block * 13)
        skyline = -1.6 + 1.9 * tall
        pane = smoothstep(
            0.5, 0.42, torch.maximum((fraction(u / cell_x) - 0.5).abs() * 1.3, (fraction(v / cell_y) - 0.5).abs() * 1.2)
        )
        night = draw.chance(0.6)
        wall = rgb((0.07, 0.08, 0.12) if night else (0.55, 0.53, 0.5), u) * (0.7 + 0.6 * tone)
        bright = rgb((1.0, 0.85, 0.5) if night else (0.25, 0.32, 0.4), u) * (0.6 + 0.5 * bright_by)
        colour = mix(wall, bright, pane * (step(lamp - 0.45) if night else 1.0))
        sky = (
            mix(rgb((0.03, 0.05, 0.14), u), rgb((0.35, 0.25, 0.35), u), smoothstep(-2, 1, v))
            if night
            else mix(rgb((0.4, 0.6, 0.85), u), rgb((0.85, 0.9, 0.95), u), smoothstep(-2, 1, v))
        )
        colour = mix(sky, colour, smoothstep(-0.01, 0.01, v - skyline))
    elif style == "wall":
        stone = photograph(draw, u, v, n(2.5, 5.0), ("brick", "gravel", "grass"))
        colour = stone * (0.75 + 0.35 * smoothstep(-2.2, 2.2, u * draw.sign()))
    elif style == "blinds":
        slat = fraction(v / n(0.18, 0.35))
        colour = mix(ground * 0.5, rgb((0.95, 0.95, 0.9), u), smoothstep(0.1, 0.9, slat)) * (0.8 + 0.2 * torch.sin(u))
        frame = step(0.07 - (u - n(-1.8, 1.8)).abs())
        colour = mix(colour, ground * 0.35, frame)
    elif style == "pattern":
        colour = draw.pick((*WOVEN[3:], wood))(draw, u * 0.8, v * 0.8).colour
    else:
        colour = photograph(
            draw, u, v, n(2.8, 5.5), ("coffee", "rocket", "chelsea", "hubble_deep_field", "coins", "grass")
        )
    colour = colour.expand(3, *canvas.shape).clamp(0, 1)
    defocus = draw.pick((0.0, 0.0, n(0.03, 0.12)))
    if defocus:
        colour = torch.stack([gaussian_blur(channel, defocus / canvas.pixel) for channel in colour])
    keep = F.interpolate(scene.person()[None, None], size=canvas.shape, mode="bilinear", align_corners=False)[0, 0]
    # What the border still shows of the old ground is exchanged for the scene.
    window = F.interpolate(((scene.image + 1) / 2)[None], size=canvas.shape, mode="bilinear", align_corners=False)[0]
    empty = F.interpolate((1 - keep).square()[None, None], size=(SMALL, SMALL), mode="area")[0, 0]
    sigma = 0.05 * SMALL
    weight = gaussian_blur(empty, sigma) + 1e-3
    old = torch.stack([gaussian_blur(channel * empty, sigma) / weight for channel in scene.small])
    old = F.interpolate(old[None], size=canvas.shape, mode="bilinear", align_corners=False)[0]
    border = smoothstep(0.02, 0.3, keep)
    canvas.paint(colour * scene.exposure + (window - old) * border, 1 - smoothstep(0.08, 0.97, keep))
    scene.add(canvas)


def draw_cast_shadow(scene: Scene, draw: Draw) -> None:
    """Shadow of something outside the picture: blinds, leaves, a window frame, a hard edge, a hand, a hat."""
    canvas = scene.canvas()
    n = draw.number
    style = draw.pick(("blinds", "leaves", "leaves", "window", "edge", "edge", "hand", "hand", "net"))
    u, v = canvas.local((0.0, 0.3), n(-0.6, 0.6))
    soft = n(0.02, 0.2)
    if style == "blinds":
        period = n(0.35, 0.9)
        dark = smoothstep(-soft / period, soft / period, (fraction(v / period + n(0, 1)) - 0.5).abs() - n(0.18, 0.3))
    elif style == "leaves":
        near, far = noise(draw, BLOBS, u, 0.7 * v + 0.4 * u, n(5.0, 12.0)), noise(draw, BLOBS, u, v, n(3.0, 6.0))
        clump = noise(draw, CLOUDS, u, v, 7.0)
        dark = 0.65 * smoothstep(-0.1 - 4 * soft, 0.2 + 4 * soft, near + 0.9 * clump + n(-0.4, 0.4))
        dark = dark + 0.35 * smoothstep(-0.5 - 3 * soft, 0.5 + 3 * soft, far + clump)
    elif style == "window":
        pane = torch.maximum((fraction(u / n(0.9, 1.4)) - 0.5).abs(), (fraction(v / n(1.0, 1.6)) - 0.5).abs())
        dark = smoothstep(0.43 - soft * 0.5, 0.43 + soft * 0.5, pane)
    elif style == "edge":
        bent = u * draw.sign() + n(-0.5, 0.5) + 0.15 * torch.sin(1.7 * v + n(0, 6)) + 0.25 * draw.sign() * v
        dark = smoothstep(-soft, soft, bent)
    elif style == "net":
        p, q = u + v, u - v
        cell = n(0.35, 0.7)
        near = torch.minimum((fraction(p / cell) - 0.5).abs(), (fraction(q / cell) - 0.5).abs()) * cell
        dark = smoothstep(0.08 + soft * 0.5, 0.02, near)
    else:
        dark = smoothstep(soft, -soft, Hand(hand_poses(draw, scene)[0]).shape(canvas).distance)
    strength = n(0.28, 0.65)
    canvas.lit.mul_(1 - strength * pooled(dark[None], scene.samples)[0])
    scene.add(canvas)


def _locks(draw: Draw) -> list[tuple[np.ndarray, float, int]]:
    """Locks of one hair style: spine [N, 2] from the root, half width at the root, number of hairs."""
    n, side = draw.number, draw.sign()
    style = draw.pick(("fringe", "fringe", "wisps", "lock", "lock", "curtain"))
    locks: list[tuple[list[Point], float, int]] = []
    if style == "fringe":
        for at in np.linspace(-0.95, 0.95, draw.whole(5, 9)).tolist():
            tip = (at + side * n(0.0, 0.5) + n(-0.1, 0.1), n(-0.55, 0.15))
            locks.append(([(at * 0.8, -1.75), (at, -1.1), tip], n(0.15, 0.27), 44))
    elif style == "wisps":
        for _ in range(draw.whole(4, 9)):
            at, end = n(-1.1, 1.1), n(-1.1, 1.1)
            low = [(end, n(0.0, 0.8)), (end + n(-0.4, 0.4), n(0.8, 2.0))]
            locks.append(([(at, -1.6), (at + n(-0.4, 0.4), -0.6), *low], n(0.03, 0.1), 9))
    elif style == "lock":
        for _ in range(draw.whole(1, 3)):
            end = side * n(-0.3, 0.7)
            root = [(side * n(0.4, 1.0), -1.6), (side * n(0.5, 1.0), -0.7)]
            locks.append(([*root, (end + side * 0.3, 0.2), (end, n(0.5, 1.4))], n(0.1, 0.26), 50))
    else:
        for s in (-1.0, 1.0):
            for _ in range(draw.whole(2, 3)):
                root = [(s * n(0.05, 0.3), -1.7), (s * n(0.6, 0.9), -0.9), (s * n(0.55, 0.95), 0.3)]
                locks.append(([*root, (s * n(0.8, 1.2), 1.6), (s * n(0.8, 1.3), 2.4)], n(0.16, 0.3), 56))
    return [(np.array(spine), width, hairs) for spine, width, hairs in locks]


def draw_hair(scene: Scene, draw: Draw) -> None:
    """Locks and single hairs across the face: a fringe, wisps, a side lock blown over; own or dyed colour."""
    import cv2

    canvas = scene.canvas((-2.0, -2.1, 2.0, 2.3))
    places = [scene.sample(at, -1.6) for at in (-0.6, 0.0, 0.6)] + [scene.sample(at, -1.35) for at in (-1.0, 1.0)]
    own = np.median(places, axis=0)
    dyes = (
        (0.12, 0.08, 0.06),
        (0.3, 0.18, 0.1),
        (0.55, 0.38, 0.2),
        (0.78, 0.64, 0.42),
        (0.42, 0.16, 0.08),
        (0.7, 0.68, 0.66),
    )
    dye = draw.pick((*dyes, draw.colour()))
    plausible = own.mean() < 0.55 and np.abs(own - scene.skin).sum() > 0.2
    base = own if draw.chance(0.6) and plausible else np.array(dye)
    alpha, tone = np.zeros(canvas.shape, np.uint8), np.full(canvas.shape, 110, np.uint8)
    for spine, width, hairs in _locks(draw):
        curve = spline(spine, steps=7)
        along = np.linspace(0, 1, len(curve))
        normal = np.gradient(curve, axis=0)[:, ::-1] * (1, -1)
        normal /= np.hypot(*normal.T)[:, None] + 1e-9
        wave = draw.number(0.0, 0.06) * np.sin(along * 9 + draw.number(0, 6))
        stray = torch.randn(hairs, 2, generator=draw.generator).numpy()
        own_draws = draw.numbers(hairs, 5).numpy()
        for index in np.argsort(own_draws[:, 0]):
            offset = (index + 0.5) / hairs * 2 - 1
            spread = width * (1 - 0.85 * along**2) + 0.04 * stray[index, 0] * along
            bend = wave + 0.06 * stray[index, 1] * along**2
            hair = curve + normal * (offset * spread + bend)[:, None]
            points = [canvas.samples_of(hair[: max(5, int(len(hair) * (0.6 + 0.4 * own_draws[index, 1])))])]
            thick = max(1, round((0.01 + 0.012 * own_draws[index, 2]) / canvas.pixel))
            sheen = 40 * math.sqrt(1 - offset**2) * (0.2 + 1.1 * own_draws[index, 3])
            bright = int(np.clip(100 + sheen - 45 * own_draws[index, 4], 20, 250))
            cv2.polylines(alpha, points, False, 255, thick, cv2.LINE_AA, SHIFT)
            cv2.polylines(tone, points, False, bright, thick, cv2.LINE_AA, SHIFT)
    cover = torch.from_numpy(alpha).to(canvas.u.device).float() / 255
    # Roots are thin, so that the locks grow out of the hair.
    cover = cover * smoothstep(-1.75, -1.25, canvas.v + 0.1 * noise(draw, GRAIN, canvas.u, 0.1 * canvas.v, 3.0))
    light = torch.from_numpy(tone).to(canvas.u.device).float() / 110
    band = 0.22 * bell((canvas.v + draw.number(0.4, 1.0) + 0.15 * canvas.u.square()) / 0.25)
    hue = rgb((float(base[0]), float(base[1]), float(base[2])), canvas.u)
    colour = hue * (0.35 + 0.65 * light) + band * (light - 0.9).clamp(min=0) * scene.exposure
    canvas.cast(cover, (-0.12 * scene.light[0], 0.09), 0.07, 0.4)
    canvas.paint(colour, cover)
    scene.add(canvas)
