"""Worn around the neck, at the ears and on the face: scarf, ear-rings, glasses, sunglasses, face mask, face paint.

Head wear has a module of its own, `headwear`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Bars, Canvas, Scene, arc_length, flat_surface, spline, squircle
from .textures import (
    CLOUDS,
    GRAIN,
    KNITTED,
    ROUGH,
    WOVEN,
    Draw,
    Surface,
    bell,
    cloth,
    folds,
    fraction,
    metal,
    mix,
    noise,
    norm,
    photograph,
    rgb,
    smoothstep,
    step,
)

# Around the neck and at the ears


def draw_neck_scarf(scene: Scene, draw: Draw) -> None:
    """Folded cloth around the neck, up to the chin or over it."""
    canvas = scene.canvas((-2.4, 0.4, 2.4, 2.4))
    u, v = canvas.local((scene.frame.middle, 0.0), draw.number(-0.07, 0.07))
    top = scene.frame.chin - draw.number(-0.05, 0.75)
    bow = draw.number(0.05, 0.3)
    spread = draw.number(1.15, 1.45)
    edge = (
        top
        - bow * (1 - (u / spread).square()).clamp(min=-1) * draw.pick((-1.0, 0.3))
        + 0.05 * torch.sin(3 * u + draw.number(0, 6))
    )
    side = u.abs() - spread - 0.45 * (v - top).clamp(min=0)
    corner = smoothstep(spread - 0.35, spread + 0.1, u.abs()) * 0.3
    distance = torch.maximum(edge + corner - v, side)
    cover = canvas.inside(distance)
    material = draw.pick((*WOVEN, *KNITTED, *KNITTED))
    canvas.cast(cover, (0.0, -0.08), 0.1, 0.35)
    level = v - edge - corner
    tilt = draw.sign() * draw.number(0.05, 0.25)
    rows = (level + tilt * u) / draw.number(0.3, 0.5) + 0.15 * noise(draw, CLOUDS, u, v, 5.0)
    roll = (1 - (2 * fraction(rows) - 1).square()).clamp(min=0).sqrt()
    surface = material(draw, arc_length(u, spread + 0.3), level + 0.1 * roll)
    surface = surface._replace(colour=surface.colour * (0.62 + 0.4 * roll))
    barrel = 0.8 * (1 - (u / (spread + 0.5)).square()).clamp(min=0).sqrt()
    rim = 0.12 * smoothstep(0.0, 0.2, level)
    wrinkles = folds(draw, level + tilt * u, u, 0.16, 0.035)
    canvas.solid(cover, surface, barrel + rim + 0.1 * roll + wrinkles)
    scene.add(canvas)


def draw_earrings(scene: Scene, draw: Draw) -> None:
    """Studs, hoops, drops with a stone, tassels, crosses; on both ears or one."""
    style, seed = draw.whole(0, 5), draw.seed()
    sides = (-1.0, 1.0) if draw.chance(0.85) else (draw.sign(),)
    for side in sides:
        same = Draw(seed)
        lobe_u = scene.frame.middle + side * (scene.frame.cheek + 0.1)
        lobe_v = 0.66 + same.number(-0.05, 0.05)
        canvas = scene.canvas((lobe_u - 0.6, lobe_v - 0.25, lobe_u + 0.6, lobe_v + 1.5))
        u, v = canvas.local((lobe_u, lobe_v))
        material = metal(same, u, v)
        gem = Surface(rgb(same.colour(), u), torch.zeros(1, 1, device=u.device), 0.9, 5)
        parts: list[tuple[Tensor, Surface, Tensor]] = []
        if style <= 1:
            radius, thick = same.number(0.2, 0.5), same.number(0.035, 0.08)
            squash = same.number(0.35, 0.95)
            ring, _ = squircle(u, v - radius, radius * squash, radius, 0.0)
            tube = ((thick / 2) ** 2 - ring.square()).clamp(min=0).sqrt()
            parts.append((canvas.line(ring, thick), material, tube))
        elif style == 2:
            ball, dome = squircle(u, v, same.number(0.07, 0.12), same.number(0.07, 0.13), same.number(0, 0.7))
            parts.append((canvas.inside(ball), gem if same.chance(0.6) else material, 0.1 * dome))
        else:
            drop = same.number(0.25, 0.7)
            chain = Bars(canvas)
            chain.bar((lobe_u, lobe_v), (lobe_u, lobe_v + drop), 0.02, 0.02)
            parts.append((chain.coverage(), material, chain.surface_height()))
            stud, dome = squircle(u, v, 0.05, 0.05, 0.0)
            parts.append((canvas.inside(stud), material, 0.05 * dome))
            if style == 3:
                long, wide = same.number(0.13, 0.25), same.number(0.09, 0.15)
                pointed = u * (1 + 0.9 * (-(v - drop - long) / long).clamp(0, 1))
                stone, dome = squircle(pointed, v - drop - long, wide, long, 0.0)
                parts.append((canvas.inside(stone - 0.025), material, 0.1 * dome))
                parts.append((canvas.inside(stone), gem, 0.2 * dome))
            elif style == 4:
                low = drop + same.number(0.3, 0.6)
                fan = torch.maximum(u.abs() - 0.05 - 0.1 * (v - drop) / 0.4, torch.maximum(drop - v, v - low))
                threads = 0.03 * torch.sin(u / (0.05 + 0.1 * (v - drop).clamp(min=0)) * 9)
                parts.append((canvas.inside(fan), gem._replace(shine=0.2, polish=3), threads))
            else:
                arm = same.number(0.1, 0.17)
                beam = torch.minimum(
                    torch.maximum(u.abs() - 0.035, (v - drop - 1.5 * arm).abs() - 1.5 * arm),
                    torch.maximum(u.abs() - arm, (v - drop - arm).abs() - 0.035),
                )
                parts.append((canvas.inside(beam), material, 0.1 * smoothstep(0.0, -0.03, beam)))
        for alpha, surface, height in parts:
            canvas.cast(alpha, (-0.06 * scene.light[0], 0.04), 0.04, 0.3, everywhere=True)
            canvas.solid(alpha, surface, height, ambient=0.3)
        if draw.chance(0.7):
            glint = bell(norm(u + 0.03, v - 0.05) / 0.03)
            canvas.paint(rgb((1.0, 1.0, 1.0), u), 0.8 * glint * canvas.alpha)
        scene.add(canvas)


# On the face


def _lenses(canvas: Canvas, draw: Draw, big: bool) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Distance to a pair of lenses, lens coordinates (a: outwards from the middle of a lens, b: down), centre, half width."""
    eye = canvas.scene.frame.eye
    half = draw.number(0.45, 0.58) if big else draw.number(0.38, 0.49)
    tall = half * (draw.number(0.66, 0.98) if big else draw.number(0.52, 0.95))
    centre = max(eye + draw.number(0.0, 0.05), half + draw.number(0.07, 0.12))
    u, v = canvas.local((0.0, draw.number(0.0, 0.08)), draw.number(-0.05, 0.05))
    a, b = u.abs() - centre, v
    slant, taper = draw.number(-0.05, 0.3) if draw.chance(0.4) else 0.0, draw.number(0.0, 0.35)
    b_bent = b + slant * a.clamp(min=-0.1)
    a_bent = a + taper * 0.3 * b_bent * smoothstep(0.1, -0.4, a)
    distance, _ = squircle(a_bent, b_bent, half, tall, draw.pick((0.0, 0.25, 0.5, 0.7, 0.9)))
    return distance, a, b, centre, half


def _frame_material(canvas: Canvas, draw: Draw, u: Tensor, v: Tensor) -> Surface:
    style = draw.number()
    if style < 0.35:
        return metal(draw, u, v)._replace(shine=0.9)
    if style < 0.55:
        return flat_surface((0.05, 0.05, 0.055), canvas, 0.5, 4)
    if style < 0.75:
        blot = smoothstep(-0.3, 0.7, noise(draw, CLOUDS, u, v, 1.5))
        return Surface(mix(rgb((0.55, 0.31, 0.12), u), rgb((0.13, 0.07, 0.05), u), blot), torch.zeros_like(u), 0.5, 4)
    return flat_surface(draw.colour(), canvas, 0.5, 4)


def draw_glasses(scene: Scene, draw: Draw) -> None:
    """Frames, thin or heavy, with clear or lightly tinted lenses."""
    canvas = scene.canvas((-1.75, -0.85, 1.75, 1.0))
    lens, a, b, centre, half = _lenses(canvas, draw, draw.chance(0.3))
    thin = draw.chance(0.5)
    thick = draw.number(0.022, 0.035) if thin else draw.number(0.05, 0.11)
    heavier = 0.0 if thin else draw.number(0.0, 0.8)
    material = _frame_material(canvas, draw, canvas.u, canvas.v)
    width = thick * (1 + heavier * smoothstep(0.0, -0.3, b))
    rim = canvas.line(lens / (width / thick), thick)
    if draw.chance(0.12):  # half rim
        rim = rim * smoothstep(0.02, -0.04, b)
    arms = Bars(canvas)
    for side in (-1.0, 1.0):
        ear = scene.frame.middle + side * (scene.frame.cheek + 0.08)
        arms.bar((side * (centre + half), -0.1), (ear, draw.number(-0.16, -0.02)), thick * 0.6, thick * 0.45)
    high = draw.number(-0.16, 0.02)
    inner = centre - half + 0.02
    arms.path(spline([(-inner, high + 0.07), (0, high), (inner, high + 0.07)]), thick * 0.5)
    frame = torch.maximum(rim, arms.coverage() * step(lens))
    tube = ((thick / 2) ** 2 - lens.square()).clamp(min=0).sqrt()
    canvas.cast(frame, (-0.05 * scene.light[0], 0.07), 0.05, 0.3)
    inside = canvas.inside(lens)
    tint = draw.chance(0.35)
    glass = draw.number(0.12, 0.4) if tint else draw.number(0.02, 0.08)
    colour = draw.colour() if tint else (0.9, 0.95, 1.0)
    canvas.paint(rgb(colour, canvas.u), inside * glass)
    if draw.chance(0.6):
        canvas.paint(rgb(draw.pick(((1.0, 1.0, 1.0), (0.8, 0.9, 1.0), (0.6, 0.9, 0.7))), canvas.u),
                     inside * _glare(draw, a, b, canvas.u) * draw.number(0.25, 0.65))  # fmt: skip
    canvas.solid(frame, material, torch.maximum(tube, 0.5 * arms.surface_height()), ambient=0.35)
    scene.add(canvas)


def _glare(draw: Draw, a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Reflections on lenses, 0..1: slanted bands, or a bright window."""
    side = torch.sign(u)
    place = a * side + 0.55 * b + draw.number(-0.25, 0.25)
    if draw.chance(0.65):
        band = smoothstep(0.02, 0.05, place) * smoothstep(0.05 + draw.number(0.08, 0.25), 0.06, place)
        second = smoothstep(-0.16, -0.14, place) * smoothstep(-0.09, -0.11, place)
        return torch.maximum(band, 0.6 * second) * smoothstep(0.45, -0.2, b)
    window, _ = squircle(a * side - draw.number(-0.2, 0.1), b + 0.1, draw.number(0.1, 0.18), draw.number(0.1, 0.2), 0.9)
    bars = smoothstep(0.0, 0.015, (a * side).abs()) * smoothstep(0.0, 0.015, (b + 0.1).abs())
    return smoothstep(0.02, -0.02, window) * bars


def draw_sunglasses(scene: Scene, draw: Draw) -> None:
    """Dark, mirrored or graded lenses, or one shield across both eyes."""
    canvas = scene.canvas((-1.75, -0.85, 1.75, 1.0))
    lens, a, b, centre, half = _lenses(canvas, draw, True)
    if draw.chance(0.15):  # one shield across both eyes
        notch = 0.28 * bell(canvas.u / 0.22) * smoothstep(0.0, 0.3, b)
        lens, _ = squircle(canvas.u, b + notch, centre + half * 0.9, half * draw.number(0.62, 0.8), 0.5)
    material = _frame_material(canvas, draw, canvas.u, canvas.v)
    thick = draw.number(0.03, 0.13)
    arms = Bars(canvas)
    for side in (-1.0, 1.0):
        ear = scene.frame.middle + side * (scene.frame.cheek + 0.08)
        arms.bar((side * (centre + half), -0.12), (ear, draw.number(-0.16, -0.02)), thick * 0.8, thick * 0.5)
    high, inner = draw.number(-0.25, 0.0), centre - half + 0.02
    arms.path(spline([(-inner, high + 0.06), (0, high), (inner, high + 0.06)]), max(0.03, thick * 0.5))
    frame = torch.maximum(canvas.line(lens, thick), arms.coverage() * step(lens))
    inside = canvas.inside(lens)
    canvas.cast(torch.maximum(frame, inside), (-0.06 * scene.light[0], 0.1), 0.07, 0.4)
    down = smoothstep(-0.4, 0.45, b)
    dark = rgb(draw.pick(((0.03, 0.03, 0.035), (0.12, 0.07, 0.04), (0.05, 0.08, 0.06), (0.05, 0.06, 0.12))), canvas.u)
    style = draw.whole(0, 3)
    if style <= 1:
        colour = dark * (0.6 + draw.number(0.3, 1.6) * down)
    elif style == 2:  # mirror
        view = photograph(
            draw, a * torch.sign(canvas.u) * (1 + 0.3 * a * a), b, draw.number(1.6, 3.0), ("coffee", "rocket")
        )
        colour = 0.45 * rgb(draw.colour(), canvas.u) + 0.55 * view
    else:
        first, second = draw.palette(2)
        colour = mix(rgb(first, canvas.u), rgb(second, canvas.u), down)
    sky = rgb((0.75, 0.85, 1.0), canvas.u)
    horizon = smoothstep(0.06, -0.1, b + 0.12 * torch.sin(5 * a + draw.number(0, 6)) + draw.number(-0.1, 0.2))
    colour = mix(colour, sky, draw.number(0.0, 0.35) * horizon * smoothstep(0.5, -0.3, b))
    canvas.paint(colour * scene.exposure, inside * draw.number(0.86, 1.0))
    if draw.chance(0.7):
        canvas.paint(rgb((1.0, 1.0, 1.0), canvas.u), inside * _glare(draw, a, b, canvas.u) * draw.number(0.2, 0.6))
    tube = ((thick / 2) ** 2 - lens.square()).clamp(min=0).sqrt()
    canvas.solid(frame, material, torch.maximum(tube, 0.5 * arms.surface_height()), ambient=0.35)
    scene.add(canvas)


def draw_face_mask(scene: Scene, draw: Draw) -> None:
    """Surgical, cloth or cup mask with ear loops; or a cloth drawn up over the nose."""
    canvas = scene.canvas((-1.8, -0.3, 1.8, 2.4))
    frame = scene.frame
    cheek, chin = frame.cheek, frame.chin
    u, v = canvas.local((frame.middle, 0.0), draw.number(-0.03, 0.03))
    style = draw.pick(("surgical", "surgical", "cloth", "cup", "drawn up"))
    nose = draw.number(0.22, 0.42) + (0.42 if draw.chance(0.12) else 0.0)  # now and then worn below the nose
    if style == "drawn up":
        outline = [(0.0, nose), (0.4, nose + 0.08), (cheek + 0.02, nose + 0.02), (cheek + 0.04, nose + 0.35),
                   (0.85 * cheek, 1.5), (0.45, 2.1), (0.0, 2.5)]  # fmt: skip
    else:
        low = chin + draw.number(0.0, 0.08)
        wing = cheek * draw.number(0.86, 0.98)
        outline = [(0.0, nose), (0.28, nose + 0.07), (0.62, nose + 0.26), (wing, nose + 0.36), (wing, nose + 0.62),
                   (wing * 0.93, 1.25), (0.62 * wing, low - 0.13), (0.3, low), (0.0, low + 0.03)]  # fmt: skip
    right = np.array(outline)
    points = np.concatenate((right, right[-2:0:-1] * (-1, 1))) + (frame.middle, 0.0)
    cover = canvas.polygon(spline(points, closed=True, steps=6))
    middle_v = (nose + chin) / 2
    dome = (1.15 - (u / (cheek + 0.15)).square() - ((v - middle_v) / (chin - nose)).square()).clamp(min=0).sqrt()
    ridge = bell(u / 0.26) * smoothstep(middle_v + 0.3, nose, v)
    height = 0.75 * dome + 0.2 * ridge
    loops = Bars(canvas)
    if style != "drawn up":
        for side in (-1.0, 1.0):
            ear = frame.middle + side * (cheek + draw.number(0.06, 0.12))
            wing_u = frame.middle + side * cheek * 0.9
            if style == "cup":
                loops.path(np.array([(wing_u, nose + 0.5), (frame.middle + side * (cheek + 0.03), -0.1)]), 0.025)
                loops.path(np.array([(wing_u, 1.1), (frame.middle + side * (cheek - 0.03), 0.92)]), 0.025)
            else:
                upper = [(wing_u, nose + 0.42), (frame.middle + side * cheek, 0.3), (ear, -0.02)]
                lower = [(frame.middle + side * cheek * 0.86, 1.15), (frame.middle + side * cheek, 0.85), (ear, 0.55)]
                loops.path(spline(upper, steps=4), 0.018)
                loops.path(spline(lower, steps=4), 0.018)
        canvas.cast(loops.coverage(), (0.0, 0.04), 0.03, 0.3)
        canvas.solid(loops.coverage(), flat_surface(draw.pick(((0.92, 0.92, 0.92), (0.08, 0.08, 0.08))), canvas),
                     loops.surface_height())  # fmt: skip
    canvas.cast(cover, (0.0, 0.05), 0.07, 0.4)
    if style == "surgical":
        tone = draw.pick(
            ((0.55, 0.74, 0.84), (0.62, 0.8, 0.82), (0.93, 0.94, 0.95), (0.1, 0.1, 0.11), (0.85, 0.65, 0.7))
        )
        pleats = draw.whole(3, 4)
        level = (v - nose - 0.3 + 0.1 * u.square()) / (chin - nose - 0.3) * pleats
        fold_at = fraction(level)
        active = smoothstep(0.05, 0.2, level / pleats) * smoothstep(1.0, 0.85, level / pleats)
        height = height + active * 0.07 * fold_at
        shade = 1 - 0.22 * active * smoothstep(0.8, 1.0, fold_at) - 0.03 * noise(draw, ROUGH, u, v, 4.0).abs()
        colour = rgb(tone, u) * shade
        hem = (v - nose - 0.1 - 0.33 * u.square()).abs() - 0.05
        colour = mix(colour, rgb((0.93, 0.94, 0.95), u), 0.6 * smoothstep(0.03, 0.0, hem))
        surface = Surface(colour, 0.008 * noise(draw, CLOUDS, u, v, 2.0))
    elif style == "cup":
        surface = flat_surface(draw.pick(((0.9, 0.9, 0.89), (0.85, 0.87, 0.9), (0.12, 0.12, 0.13))), canvas)
        seam = (v - middle_v + 0.1 - 0.12 * u.square()).abs()
        height = height - 0.25 * seam
        surface = surface._replace(bump=0.004 * noise(draw, GRAIN, u, v, 4.0) - 0.02 * bell(seam / 0.03))
    else:
        surface = cloth(draw, arc_length(u, cheek + 0.3), v)
        crease = folds(draw, v * 0.6 + u.abs() * 0.5, u, 0.3, 0.05 if style == "drawn up" else 0.02)
        height = height + crease - (0.03 * bell(u / 0.03) if style == "cloth" else 0.0)
    canvas.solid(cover, surface, height)
    scene.add(canvas)


def draw_face_paint(scene: Scene, draw: Draw) -> None:
    """Paint or tattoo that follows the light on the skin: bars on the cheeks, a flag, stripes, patches, blush of mud."""
    canvas = scene.canvas((-1.6, -1.4, 1.6, 2.2))
    u, v = canvas.u - scene.frame.middle, canvas.v
    ragged = 0.025 * noise(draw, ROUGH, u, v, 6.0)
    face = torch.maximum(
        squircle(u, v - 0.4, scene.frame.cheek * 0.97, scene.frame.chin - 0.45, 0.15)[0] + ragged, -1.1 - v
    )
    style = draw.whole(0, 5)
    palette = draw.palette(3)
    colour = rgb(palette[0], u).expand(3, *canvas.shape)
    if style == 0:  # bars on the cheeks
        bars = torch.full_like(u, 9.0)
        for number in range(draw.whole(2, 3)):
            lean = draw.number(-0.1, 0.3)
            at = 0.55 + 0.17 * number
            box = torch.maximum(
                (u.abs() - 0.72).abs() - draw.number(0.22, 0.3), (v - at + lean * (u.abs() - 0.7)).abs() - 0.05
            )
            bars = torch.minimum(bars, box)
            colour = mix(colour, rgb(palette[number], u), step(0.03 - box))
        shape = bars + 0.6 * ragged
    elif style == 1:  # flag in three bands
        across, band = (u, draw.number(0.3, 0.42)) if draw.chance(0.6) else (v - 0.4, draw.number(0.4, 0.6))
        colour = mix(colour, rgb(palette[1], u), smoothstep(-0.02, 0.02, across + ragged - band))
        colour = mix(colour, rgb(palette[2], u), smoothstep(0.02, -0.02, across + ragged + band))
        shape = face
    elif style == 2:  # animal stripes from the sides
        stripes = torch.sin(v * draw.number(7, 11) + 1.2 * noise(draw, CLOUDS, u, v, 4.0) + 2.5 * u.abs())
        shape = torch.maximum(face, torch.maximum(0.12 * (0.25 - stripes), 0.35 - u.abs()))
    elif style == 3:  # around the eyes
        masked, _ = squircle(u, v - 0.02, draw.number(0.95, 1.15), draw.number(0.28, 0.45), draw.number(0.0, 0.6))
        shape = masked + ragged
    elif style == 4:  # smears
        blot = noise(draw, CLOUDS, u, v, draw.number(2.5, 5.0))
        shape = torch.maximum(face, 0.15 * (draw.number(0.1, 0.6) - blot))
        colour = rgb(draw.pick(((0.28, 0.2, 0.14), (0.45, 0.03, 0.04), palette[0])), u).expand(3, *canvas.shape)
    else:  # half of the face
        shape = torch.maximum(face, (u * draw.sign()) + ragged)
    grey = (scene.image.mean(0) + 1) / 2
    (left, top), (height, width) = canvas.corner, canvas.lit.shape
    window = grey[top : top + height, left : left + width][None, None]
    window = F.interpolate(window, size=canvas.shape, mode="bilinear", align_corners=False)[0, 0]
    light = (window / max(0.05, sum(scene.skin) / 3)).clamp(0.35, 1.5)
    thin = (0.92 + 0.08 * noise(draw, CLOUDS, u, v, 3.0)).clamp(0.5, 1)
    canvas.paint(colour * light * scene.exposure, smoothstep(0.02, -0.04, shape) * thin * draw.number(0.75, 1.0))
    scene.add(canvas)
