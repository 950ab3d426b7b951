"""Hands at the face, and what hands hold: microphone, phone, cup.

A hand is a skeleton in 3D (fingers up, back of the hand to the viewer, thumb at the left; lengths in eye distances of an
adult: breadth 1.3, length 2.9), bent, turned and seen in parallel projection. The skin's colour is the picture's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .canvas import Bars, Canvas, Point, Scene, arc_length, flat_surface, gaussian_blur, spline, squircle, turn_matrix
from .lettering import lettering, random_word
from .textures import (
    BLOBS,
    CLOUDS,
    GRAIN,
    MATERIALS,
    WOVEN,
    Colour,
    Draw,
    Surface,
    bell,
    cloth,
    folds,
    metal,
    mix,
    noise,
    norm,
    photograph,
    plastic,
    relief,
    rgb,
    smoothstep,
    step,
    wood,
)

_KNUCKLES = ((-0.44, -1.5, 0.0), (-0.15, -1.6, 0.05), (0.15, -1.53, 0.03), (0.42, -1.34, -0.04))
_PHALANGES = ((0.56, 0.34, 0.25), (0.62, 0.39, 0.27), (0.57, 0.36, 0.26), (0.44, 0.26, 0.22))
_FINGER_RADII = (
    (0.17, 0.15, 0.135, 0.105),
    (0.175, 0.155, 0.14, 0.11),
    (0.165, 0.145, 0.13, 0.1),
    (0.14, 0.125, 0.11, 0.085),
)
_JOINT_BEND = (1.25, 1.55, 0.9)  # radians of a fully curled finger


@dataclass(frozen=True)
class _Pose:
    """How a hand is held. Angles in radians."""

    wrist: Point  # face coordinates
    turn: tuple[float, float, float]  # about u (forward), v (sideways), the viewing axis (clockwise)
    curl: tuple[float, float, float, float]  # index to little finger: 0 straight, 1 folded to the palm
    thumb: tuple[float, float]  # away from the fingers, and bend
    spread: float = 0.06  # between neighbouring fingers
    size: float = 0.95
    side: float = 1.0  # -1 mirrors the hand


def hand_poses(draw: Draw, scene: Scene) -> list[_Pose]:
    """The hands of one picture; positions follow the face."""
    n, side = draw.number, draw.sign()
    chin, cheek = scene.frame.chin, scene.frame.cheek
    small = [n(0.0, 0.22) for _ in range(4)]
    relaxed = (small[0], small[1] + 0.05, small[2] + 0.1, small[3] + 0.12)
    kind = draw.pick(
        ("cheek", "cheek", "both cheeks", "chin", "mouth", "mouth", "wave", "eye", "hush", "victory", "temple")
    )
    if kind in ("cheek", "both cheeks"):
        lean = n(-0.15, 0.3)
        poses = [
            _Pose((s * (cheek + n(-0.4, -0.05)), chin + n(0.35, 1.0)), (n(-0.3, 0.1), s * n(0.1, 0.8), s * lean), relaxed,
                  (n(0.3, 0.7), n(0.0, 0.4)), n(0.0, 0.07), n(0.82, 0.98), side=s)
            for s in ((side,) if kind == "cheek" else (-1.0, 1.0))
        ]  # fmt: skip
        return poses
    if kind == "chin":
        curl = (n(0.75, 0.95), n(0.85, 1.0), n(0.85, 1.0), n(0.85, 1.0))
        if draw.chance(0.4):  # thinking: index finger up along the cheek
            curl = (n(0.0, 0.12), *curl[1:])
        return [_Pose((side * n(0.1, 0.5), chin + n(1.05, 1.35)), (n(-0.5, -0.2), side * n(-0.3, 0.3), side * n(-0.1, 0.35)), curl,
                      (n(0.1, 0.5), n(0.2, 0.8)), 0.02, n(0.85, 1.0), side=side)]  # fmt: skip
    if kind == "mouth":
        return [_Pose((side * n(1.35, 1.75), n(1.5, 2.1)), (n(-0.2, 0.2), n(-0.3, 0.3), side * -n(0.85, 1.35)), relaxed,
                      (n(0.2, 0.6), n(0.0, 0.4)), n(-0.01, 0.05), n(0.85, 1.05), side=side)]  # fmt: skip
    if kind == "wave":
        pose = _Pose((side * n(0.5, 1.4), n(1.6, 2.4)), (n(-0.2, 0.2), math.pi + n(-0.4, 0.4), side * n(-0.35, 0.25)),
                     (n(0, 0.12), n(0, 0.12), n(0, 0.15), n(0, 0.15)), (n(0.5, 1.0), n(0.0, 0.3)), n(0.05, 0.16),
                     n(0.95, 1.25), side=-side)  # fmt: skip
        return [pose]
    if kind == "eye":
        return [_Pose((side * n(1.6, 1.95), n(0.5, 1.1)), (n(-0.2, 0.2), n(-0.3, 0.3), side * -n(1.0, 1.4)), relaxed,
                      (n(0.2, 0.5), n(0.0, 0.4)), n(0.0, 0.1), n(0.85, 1.0), side=side)]  # fmt: skip
    if kind == "hush":
        return [_Pose((side * n(0.35, 0.6), chin + n(1.0, 1.2)), (n(-0.1, 0.1), side * n(-0.2, 0.4), side * n(-0.3, -0.05)),
                      (n(0, 0.08), n(0.85, 1), n(0.9, 1), n(0.9, 1)), (n(0.0, 0.3), n(0.6, 1.0)), 0.03, n(0.85, 1.0),
                      side=side)]  # fmt: skip
    if kind == "victory":
        return [_Pose((side * n(0.8, 1.4), n(1.9, 2.4)), (n(-0.1, 0.1), math.pi + n(-0.3, 0.3), side * n(-0.3, 0.2)),
                      (n(0, 0.08), n(0, 0.08), n(0.85, 1), n(0.85, 1)), (n(-0.3, 0.0), n(0.7, 1.0)), n(0.1, 0.16),
                      n(0.9, 1.15), side=-side)]  # fmt: skip
    return [_Pose((side * n(1.5, 1.9), n(0.9, 1.6)), (n(-0.2, 0.1), side * n(-0.2, 0.3), side * -n(0.45, 0.85)), relaxed,
                  (n(0.2, 0.5), n(0.0, 0.4)), n(0.02, 0.1), n(0.85, 1.0), side=side)]  # fmt: skip


def _rotation(turn: tuple[float, float, float]) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(turn), np.sin(turn)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _finger(
    base: np.ndarray, lean: float, lengths: Sequence[float], bends: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Joints [N + 1, 3] of a finger that bends away from the viewer, and the outward normals of its back [N, 3]."""
    joints, backs, bend = [base], [], 0.0
    for length, more in zip(lengths, bends, strict=True):
        bend += more
        sin, cos = math.sin(bend), math.cos(bend)
        joints.append(joints[-1] + length * np.array([math.sin(lean) * cos, -math.cos(lean) * cos, -sin]))
        backs.append(np.array([math.sin(lean) * sin, -math.cos(lean) * sin, cos]))
    return np.array(joints), np.array(backs)


Rod = tuple[np.ndarray, np.ndarray, float, float, float]  # both ends (u, v, height), both radii, blend


class Hand:
    """Skeleton of one hand in a pose: rods, and joints of the digits with what is needed for wrinkles and nails."""

    def __init__(self, pose: _Pose) -> None:
        self.pose, self.size = pose, pose.size
        self.matrix = _rotation(pose.turn) @ np.diag([pose.side, 1.0, 1.0]) * pose.size
        self.rods: list[Rod] = []
        self.digits: list[tuple[np.ndarray, np.ndarray, Sequence[float]]] = []  # joints, backs, radii
        self._add_palm()
        self._add_thumb()
        for number in range(4):
            bends = [pose.curl[number] * limit for limit in _JOINT_BEND]
            joints, backs = _finger(
                np.array(_KNUCKLES[number]), (number - 1.4) * pose.spread, _PHALANGES[number], bends
            )
            self._add_digit(self.place(joints), backs, _FINGER_RADII[number], (0.05, 0.015, 0.015))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Hand coordinates [..., 3] to (u, v, height)."""
        return points @ self.matrix.T + np.array([*self.pose.wrist, 0.0])

    def _add_palm(self) -> None:
        size, wrist = self.size, self.place(np.array([[-0.2, -0.12, 0.0], [0.2, -0.12, 0.0]]))
        for number, knuckle in enumerate(self.place(np.array(_KNUCKLES))):
            start = wrist[0] + (wrist[1] - wrist[0]) * number / 3
            self.rods.append((start, knuckle, 0.25 * size, 0.19 * size, 0.14))
        arm = self.place(np.array([[0.0, -0.15, 0.0], [0.03, 0.9, 0.0], [0.08, 3.6, 0.0]]))
        self.rods.append((arm[0], arm[1], 0.36 * size, 0.38 * size, 0.1))
        self.rods.append((arm[1], arm[2], 0.38 * size, 0.52 * size, 0.1))

    def _add_thumb(self) -> None:
        away, bend = self.pose.thumb
        ball, _ = _finger(np.array([-0.3, -0.4, -0.08]), -away - 0.25, (0.62,), (0.35,))
        joints, backs = _finger(ball[-1], -away + 0.1, (0.45, 0.34), (0.2 + 0.5 * bend, 0.9 * bend))
        start, end = self.place(ball)
        self.rods.append((start, end, 0.28 * self.size, 0.19 * self.size, 0.14))
        self._add_digit(self.place(joints), backs, (0.19, 0.165, 0.125), (0.04, 0.02))

    def _add_digit(
        self, joints: np.ndarray, backs: np.ndarray, radii: Sequence[float], blends: Sequence[float]
    ) -> None:
        for part, blend in enumerate(blends):
            self.rods.append(
                (joints[part], joints[part + 1], radii[part] * self.size, radii[part + 1] * self.size, blend)
            )
        self.digits.append((joints, backs, radii))

    def box(self, margin: float) -> tuple[float, float, float, float]:
        """Left, top, right, bottom with a margin."""
        ends = np.array([end[:2] for rod in self.rods for end in rod[:2]])
        (left, top), (right, bottom) = ends.min(0) - margin, ends.max(0) + margin
        return float(left), float(top), float(right), float(bottom)

    def shape(self, canvas: Canvas) -> Bars:
        """The union of the rods."""
        bars = Bars(canvas)
        for a, b, radius_a, radius_b, blend in self.rods:
            bars.bar(a, b, radius_a, radius_b, blend)
        return bars

    def paint(self, canvas: Canvas, draw: Draw, bars: Bars, skin: Colour) -> None:
        """Skin with wrinkles at the joints and redder tips, then the nails that face the viewer."""
        blush, crease = torch.zeros_like(canvas.u), torch.zeros_like(canvas.u)
        for joints, _, _ in self.digits:
            for joint, beyond in zip(joints[1:-1], joints[2:], strict=True):
                self._wrinkle(canvas, joint, beyond, blush, crease)
            part = canvas.part(joints[-1:, :2], 0.3 * self.size)
            if part is not None:
                away = norm(canvas.u[part] - joints[-1, 0], canvas.v[part] - joints[-1, 1]) / (0.2 * self.size)
                blush[part] = torch.maximum(blush[part], bell(away))
        _paint_skin(canvas, draw, bars, skin, blush, crease)
        polish = draw.colour() if draw.chance(0.2) else None
        for joints, backs, radii in self.digits:
            facing = float((self.matrix @ backs[-1])[2] / self.size)
            if facing > 0.2:
                _paint_nail(canvas, joints[-1], joints[-2], facing, radii[-1] * self.size, skin, polish)

    def _wrinkle(self, canvas: Canvas, joint: np.ndarray, beyond: np.ndarray, blush: Tensor, crease: Tensor) -> None:
        du, dv = (beyond - joint)[:2].tolist()
        span, part = math.hypot(du, dv), canvas.part(joint[None, :2], 0.2 * self.size)
        if part is None or span < 0.05:
            return
        u, v = canvas.u[part] - joint[0], canvas.v[part] - joint[1]
        along, across = (u * du + v * dv) / span, (v * du - u * dv) / span
        near = bell(across / (0.12 * self.size))
        lines = bell(along / 0.022) + 0.7 * bell((along.abs() - 0.055) / 0.02)
        crease[part] = torch.maximum(crease[part], near * lines)
        blush[part] = torch.maximum(blush[part], near * bell(along / 0.12))


def _paint_skin(
    canvas: Canvas, draw: Draw, bars: Bars, skin: Colour, blush: Tensor | None = None, crease: Tensor | None = None
) -> None:
    """Fills bars with skin; `blush` and `crease` [h, w] are redder and darker places."""
    device, fine = canvas.u.device, noise(draw, GRAIN, canvas.u, canvas.v, 2.5)
    height = bars.surface_height()
    hollow = (gaussian_blur(height, 0.07 / canvas.pixel) - height).clamp(0, 0.12) / 0.12
    colour = rgb(skin, canvas.u) * (1 + 0.03 * noise(draw, CLOUDS, canvas.u, canvas.v, 3.0) + 0.015 * fine)
    if blush is not None and crease is not None:
        red = torch.tensor([0.015, -0.03, -0.04], device=device)[:, None, None]
        colour = colour * (1 + red * blush) * (1 - 0.16 * crease)
    shade, gloss = relief(height + 0.0012 * fine, canvas.pixel, canvas.scene.light, 0.55, 3)
    shade = (0.08 + shade) * (1 - 0.35 * hollow)
    # Light scattered in skin keeps shaded places red.
    warm = torch.tensor([0.14, 0.05, 0.03], device=device)[:, None, None]
    colour = colour * (shade + warm * (1 - shade).clamp(min=0)) + 0.07 * canvas.scene.exposure * gloss
    canvas.paint(colour, bars.coverage())


def _paint_nail(
    canvas: Canvas,
    tip: np.ndarray,
    before: np.ndarray,
    facing: float,
    radius: float,
    skin: Colour,
    polish: Colour | None,
) -> None:
    """A nail on the fingertip of this radius; `facing` 1 looks straight at the viewer."""
    du, dv = (tip - before)[:2].tolist()
    span = math.hypot(du, dv)
    if span < 0.04:
        return
    part = canvas.around(tip[None, :2], 2 * radius)
    u, v = part.u - tip[0], part.v - tip[1]
    along, across = (u * du + v * dv) / span - 0.25 * radius, (v * du - u * dv) / span
    shape, dome = squircle(across, along, 0.66 * radius, 0.8 * radius * max(0.4, facing), 0.45)
    on_finger = smoothstep(0.4, 0.6, part.alpha)
    part.darken(0.25 * part.inside(shape.abs() - 0.012) * on_finger)
    tone = rgb(skin, u) * 0.75 + rgb((0.24, 0.184, 0.176), u) if polish is None else rgb(polish, u)
    gleam = 0.18 * bell((across + 0.2 * radius) / (0.16 * radius)) * dome
    cover = part.inside(shape) * on_finger * (0.75 if polish is None else 1.0)
    part.paint(tone * (0.8 + 0.28 * dome) * canvas.scene.exposure + gleam, cover)


def _sleeve(canvas: Canvas, draw: Draw, hand: Hand) -> None:
    """A cuff and sleeve over the forearm."""
    ends = hand.place(np.array([[0.02, draw.number(0.35, 0.9), 0.0], [0.08, 3.6, 0.0]]))
    part = canvas.around(ends[:, :2], 0.7 * hand.size)
    sleeve = Bars(part)
    sleeve.bar(ends[0], ends[1], 0.46 * hand.size, 0.62 * hand.size)
    du, dv = (ends[1] - ends[0])[:2] / np.hypot(*(ends[1] - ends[0])[:2])
    u, v = part.u - float(ends[0, 0]), part.v - float(ends[0, 1])
    along, across = u * float(du) + v * float(dv), v * float(du) - u * float(dv)
    cover = part.inside(torch.maximum(sleeve.distance, 0.06 * (across / 0.5).square() - 0.06 - along))
    part.darken(0.35 * smoothstep(-0.35, -0.05, along) * smoothstep(0.7, 0.4, across.abs()))
    height = sleeve.surface_height() + 0.03 * smoothstep(0.3, 0.26, along) + folds(draw, along, across, 0.35, 0.04)
    part.solid(cover, cloth(draw, across, along), height)


def draw_hand(scene: Scene, draw: Draw) -> None:
    """One or two hands at the face."""
    bright, warm = draw.number(0.95, 1.06), draw.number(0.97, 1.03)
    skin = (scene.skin[0] * bright, scene.skin[1] * bright * warm, scene.skin[2] * bright * warm)
    for pose in hand_poses(draw, scene):
        # Palms are lighter, most visibly on dark skin.
        lighter = 0.25 if math.cos(pose.turn[1]) < 0 else 0.0
        red, green, blue = (
            c + lighter * (p - c) * max(0.0, 1 - c / p) for c, p in zip(skin, (0.85, 0.62, 0.55), strict=True)
        )
        hand = Hand(pose)
        canvas = scene.canvas(hand.box(0.55))
        bars = hand.shape(canvas)
        canvas.cast(bars.coverage(), (-0.22 * scene.light[0], 0.1), 0.1, draw.number(0.35, 0.6))
        hand.paint(canvas, draw, bars, (red, green, blue))
        if draw.chance(0.65):
            _sleeve(canvas, draw, hand)
        scene.add(canvas)


def _grip(canvas: Canvas, draw: Draw, at: Point, axis: Point, width: float, side: float, skin: Colour) -> None:
    """A hand around a bar of this half width; `axis` points from the little finger to the index."""
    across = (-axis[1] * side, axis[0] * side)
    size = draw.number(0.85, 1.0)

    def place(outwards: float, along: float) -> Point:
        return at[0] + across[0] * outwards + axis[0] * along, at[1] + across[1] * outwards + axis[1] * along

    corners = np.array([place(width + 1.2, -3.0), place(-width - 1.0, 1.2)])
    part = canvas.around(corners, 0.3)
    bars = Bars(part)
    palm, wrist = place(width + 0.16, 0.1), place(width + 0.3, -0.75)
    bars.bar((*palm, -0.12), (*wrist, -0.3), 0.36 * size, 0.33 * size, 0.1)
    bars.bar((*wrist, -0.3), (*place(width + draw.number(0.5, 1.0), -3.0), -0.3), 0.33 * size, 0.42 * size, 0.05)
    for number in range(4):
        along = (number - 1.5) * 0.3 * size + draw.number(-0.02, 0.02)
        tilt = draw.number(-0.06, 0.06) + 0.05 * (number - 1.5)
        reach = (0.82, 1.0, 1.05, 0.95)[number] * draw.number(0.9, 1.1)
        start = (*place(width + 0.12, along + 0.04), 0.02)
        bend = (*place(width * 0.1, along), 0.2)
        tip = (*place(-(width * 0.45 + 0.2) * reach, along + tilt), 0.13)
        thick = (0.13, 0.15, 0.155, 0.145)[number] * size
        bars.bar(start, bend, thick, thick, 0.02)
        bars.bar(bend, tip, thick, 0.78 * thick, 0.02)
    part.darken(0.3 * smoothstep(0.12, 0.0, bars.distance))
    _paint_skin(part, draw, bars, skin)


def draw_microphone(scene: Scene, draw: Draw) -> None:
    """Hand microphone, reporter's foam, podium swan neck, headset boom, studio capsule."""
    style = draw.pick(("hand", "hand", "foam", "swan neck", "headset", "studio"))
    canvas = scene.canvas((-2.2, -0.4, 2.2, 2.4))
    side = draw.sign()
    u, v = canvas.local((0.0, 0.0))
    if style == "headset":
        ear = (scene.frame.middle + side * (scene.frame.cheek + 0.03), 0.35)
        end = (side * draw.number(0.3, 0.55), draw.number(1.2, 1.4))
        boom = Bars(canvas)
        boom.path(spline([ear, (ear[0] - side * 0.06, 0.85), (side * 0.8, 1.25), end]), 0.035)
        canvas.cast(boom.coverage(), (0.0, 0.06), 0.05, 0.35)
        canvas.solid(boom.coverage(), flat_surface((0.08, 0.08, 0.09), canvas, 0.4), boom.surface_height())
        pad, dome = squircle(u - ear[0], v - 0.2, 0.16, 0.3, 0.5)
        canvas.solid(canvas.inside(pad), flat_surface((0.09, 0.09, 0.1), canvas, 0.3), 0.2 * dome)
        head, width, tall = end, 0.12, 0.16
    else:
        width = {"hand": 0.36, "foam": 0.46, "swan neck": 0.26, "studio": 0.5}[style] * draw.number(0.85, 1.2)
        tall = width * (draw.number(1.4, 1.8) if style == "studio" else draw.number(1.0, 1.25))
        head = (side * draw.number(0.0, 0.75), draw.number(1.1, 1.75))
    lean = side * draw.number(-0.1, 0.65) if style != "studio" else draw.number(-0.1, 0.1)
    axis = (math.sin(lean), math.cos(lean))  # from the head down the handle
    a, b = canvas.local(head, -lean)
    ball, dome = squircle(a, b, width, tall, 0.0 if style != "studio" else 0.5)
    canvas.cast(canvas.inside(ball), (-0.15 * scene.light[0], 0.14), 0.12, 0.45)
    if style != "headset":
        stick = Bars(canvas)
        thick = {"hand": 0.17, "foam": 0.16, "swan neck": 0.06, "studio": 0.12}[style]
        far = (head[0] + axis[0] * 3, head[1] + axis[1] * 3)
        base = (head[0] + axis[0] * tall * 0.8, head[1] + axis[1] * tall * 0.8)
        if style == "swan neck":
            bend = [(base[0] + 0.1 * side, base[1] + 0.6), (base[0] + 0.5 * side, base[1] + 2.0)]
            stick.path(spline([base, *bend]), thick)
        else:
            stick.bar(base, far, thick * (1.35 if style == "hand" else 1.0), thick)
        lacquer = draw.pick(((0.06, 0.06, 0.07), (0.06, 0.06, 0.07), (0.55, 0.55, 0.57), draw.colour()))
        canvas.solid(stick.coverage(), flat_surface(lacquer, canvas, 0.5), stick.surface_height(), 0.35)
        if style == "foam" and draw.chance(0.7):
            cube, _ = squircle(a, b - tall - 0.25, 0.3, 0.22, 0.95)
            canvas.solid(canvas.inside(cube), flat_surface(draw.colour(), canvas, 0.2), 0.0)
            text = lettering(random_word(draw, 4), a, b - tall - 0.25, 0.24, canvas.pixel)
            canvas.paint(rgb((0.95, 0.95, 0.95), u), text * canvas.inside(cube))
    foam = style in ("foam", "headset") or draw.chance(0.25)
    if foam:
        pores = noise(draw, BLOBS, a, b, 0.9)
        tone = (0.05, 0.05, 0.055) if draw.chance(0.6) else draw.colour()
        surface = Surface(rgb(tone, u) * (1 + 0.2 * pores), 0.012 * pores)
    else:
        grid = 0.085
        round_a, round_b = arc_length(a, width * 1.02) / grid, arc_length(b, tall * 1.02) / grid
        up, down = torch.cos(math.pi * (round_a + round_b)), torch.cos(math.pi * (round_a - round_b))
        wire = torch.maximum(up.abs(), down.abs())
        tone = draw.pick(((0.62, 0.63, 0.65), (0.3, 0.3, 0.32), (0.75, 0.62, 0.35)))
        surface = Surface(rgb(tone, u) * (0.35 + 0.75 * smoothstep(0.55, 0.95, wire)), 0.02 * wire, 0.55, 3)
    canvas.solid(canvas.inside(ball), surface, width * dome, 0.35)
    if style == "hand":
        ring, _ = squircle(a, b - tall * 0.62, width * 0.86, 0.07, 0.85)
        canvas.solid(canvas.inside(ring), metal(draw, a, b), 0.3 * (1 - (a / width).square()).clamp(min=0).sqrt(), 0.3)
        if draw.chance(0.7):
            low = tall + draw.number(0.5, 0.75)
            at = (head[0] + axis[0] * low, head[1] + axis[1] * low)
            _grip(canvas, draw, at, (-axis[0], -axis[1]), 0.17, side, scene.skin)
    scene.add(canvas)


def draw_phone(scene: Scene, draw: Draw) -> None:
    """A phone's back before part of the face (mirror picture), or at the ear, held by fingers."""
    side = draw.sign()
    at_ear = draw.chance(0.35)
    angle = side * (draw.number(0.1, 0.45) if at_ear else draw.number(-0.25, 0.35))
    half, tall = (0.36, 1.12) if at_ear else (draw.number(0.52, 0.62), draw.number(1.08, 1.25))
    if at_ear:
        centre = (scene.frame.middle + side * (scene.frame.cheek + 0.05), draw.number(0.55, 0.8))
    else:
        centre = (side * draw.number(0.1, 0.95), draw.number(0.2, 1.3))
    canvas = scene.canvas((centre[0] - 1.4, centre[1] - 1.6, centre[0] + 1.4, 2.5))
    a, b = canvas.local(centre, angle)
    turned = turn_matrix(angle)

    def at(x: float, y: float) -> tuple[float, float]:
        u, v = np.array([x, y]) @ turned + np.array(centre)
        return float(u), float(v)

    rounding = draw.number(0.08, 0.16)
    beyond_a, beyond_b = a.abs() - half + rounding, b.abs() - tall + rounding
    body = (
        norm(beyond_a.clamp(min=0), beyond_b.clamp(min=0)) + torch.maximum(beyond_a, beyond_b).clamp(max=0) - rounding
    )
    skin, grip_side = scene.skin, draw.sign()
    behind = Bars(canvas)
    low = at(grip_side * half * 0.3, tall * 0.45)
    behind.bar((*low, -0.5), (low[0] + grip_side * 0.5, low[1] + 3.0, -0.5), 0.6, 0.45)
    behind.bar((*low, -0.5), (*at(grip_side * half, -tall * 0.1), -0.5), 0.5, 0.2, 0.1)
    canvas.cast(canvas.inside(torch.minimum(body, behind.distance)), (-0.2 * scene.light[0], 0.14), 0.13, 0.5)
    _paint_skin(canvas, draw, behind, skin)
    canvas.darken(0.4 * smoothstep(0.15, 0.0, body))
    case = draw.chance(0.45)
    if case:
        surface = draw.pick(MATERIALS)(draw, a, b)
    else:
        surface = plastic(draw, a, b)._replace(shine=0.35, polish=3)
    bevel = 0.06 * smoothstep(0.0, -0.07, body)
    sheen = smoothstep(-0.9, 0.9, 0.7 * a - 0.4 * b + draw.number(-0.3, 0.3))
    canvas.solid(canvas.inside(body), surface._replace(colour=surface.colour * (0.8 + 0.35 * sheen)), bevel, 0.5)
    island_w, island_h = (0.17, draw.number(0.28, 0.34)) if draw.chance(0.6) else (0.24, 0.25)
    corner_a, corner_b = -half + island_w + 0.07, -tall + island_h + 0.08
    island, _ = squircle(a - corner_a, b - corner_b, island_w, island_h, 0.8)
    canvas.darken(0.3 * smoothstep(0.05, 0.0, island))
    canvas.solid(
        canvas.inside(island), flat_surface(draw.pick(((0.05, 0.05, 0.06), (0.3, 0.3, 0.32))), canvas, 0.3), 0.0
    )
    places = [(0.0, -0.14), (0.0, 0.14)] if island_w < 0.2 else [(-0.1, -0.1), (-0.1, 0.11), (0.11, 0.0)]
    for du, dv in places:
        ring = norm(a - corner_a - du, b - corner_b - dv)
        canvas.paint(rgb((0.32, 0.32, 0.35), a), canvas.inside(ring - 0.1))
        canvas.paint(rgb((0.02, 0.02, 0.03), a), canvas.inside(ring - 0.08))
        canvas.paint(rgb((0.25, 0.3, 0.5), a), 0.8 * canvas.inside(ring - 0.04))
        spot = norm(a - corner_a - du + 0.03, b - corner_b - dv + 0.03)
        canvas.paint(rgb((0.95, 0.95, 1.0), a), canvas.inside(spot - 0.015))
    fingers = Bars(canvas)
    start = draw.number(-0.1, 0.35) * tall
    fingers.bar(
        (*at(grip_side * (half + 0.14), start - 0.5), -0.1),
        (*at(grip_side * (half + 0.16), start + 0.7), -0.1),
        0.15,
        0.24,
    )
    fingers.bar(
        (*at(-grip_side * (half + 0.12), tall * 0.5), -0.1),
        (*at(-grip_side * (half - 0.02), tall * 0.95), -0.2),
        0.17,
        0.25,
    )
    for number in range(4):
        y = start + (number - 1.5) * 0.3 + draw.number(-0.02, 0.02)
        reach = (0.12, 0.24, 0.26, 0.18)[number] + draw.number(-0.05, 0.06)
        outer, inner = at(grip_side * (half + 0.12), y + 0.06), at(grip_side * (half - reach), y)
        fingers.bar((*outer, 0.0), (*inner, 0.12), 0.15, (0.1, 0.115, 0.12, 0.11)[number], 0.03)
    outer, inner = at(-grip_side * (half + 0.14), tall * 0.55), at(-grip_side * (half - 0.08), tall * 0.1)
    fingers.bar((*outer, 0.0), (*inner, 0.12), 0.17, 0.13)
    canvas.darken(0.3 * smoothstep(0.1, 0.0, fingers.distance))
    _paint_skin(canvas, draw, fingers, skin)
    scene.add(canvas)


def draw_cup(scene: Scene, draw: Draw) -> None:
    """Mug, paper cup or can before mouth and chin, with or without a hand around it."""
    canvas = scene.canvas((-2.2, 0.3, 2.2, 2.4))
    side = draw.sign()
    top, half = draw.number(0.75, 1.3), draw.number(0.5, 0.72)
    centre = draw.number(-0.35, 0.35)
    u, v = canvas.local((centre, top), draw.number(-0.12, 0.12))
    style = draw.pick(("mug", "mug", "paper", "paper", "can"))
    taper = {"mug": 0.0, "paper": 0.13, "can": 0.0}[style]
    half = half * (0.72 if style == "can" else 1.0)
    wide = half * (1 - taper * v / 1.5)
    rim = -0.1 * (1 - (u / half).square()).clamp(min=0).sqrt()
    body = torch.maximum(u.abs() - wide, torch.maximum(rim - v, v - 2.6))
    cover = canvas.inside(body)
    canvas.cast(cover, (-0.2 * scene.light[0], -0.04), 0.12, 0.45)
    handle_side = draw.sign()
    if style == "mug" and draw.chance(0.8):
        ring, _ = squircle(u - handle_side * (half + 0.02), v - 0.7, 0.36, 0.45, 0.4)
        tube = ((0.085) ** 2 - ring.square()).clamp(min=0).sqrt()
        handle = canvas.line(ring, 0.17)
    else:
        handle, tube = torch.zeros_like(u), torch.zeros_like(u)
    s = arc_length(u, half * 1.05)
    base = plastic(draw, s, v)
    look = draw.number()
    if look < 0.3:
        base = draw.pick((*WOVEN[3:], wood))(draw, s, v)
    elif look < 0.45:
        base = Surface(photograph(draw, s, v, draw.number(1.0, 2.0)), torch.zeros_like(u))
    base = base._replace(shine=0.3 if style != "can" else 0.6, polish=4)
    barrel = 0.9 * half * (1 - (u / (half * 1.03)).square()).clamp(min=0).sqrt()
    canvas.solid(handle, base, tube)
    colour = base.colour
    if style == "paper" and draw.chance(0.6):
        sleeve = smoothstep(0.45, 0.47, v) * smoothstep(1.35, 1.33, v)
        colour = mix(colour, rgb(draw.pick(((0.6, 0.44, 0.3), (0.25, 0.2, 0.17), draw.colour())), u), sleeve)
    canvas.solid(cover, base._replace(colour=colour), barrel, 0.35)
    if draw.chance(0.5):
        mark = lettering(random_word(draw, 5), s, v - draw.number(0.45, 0.8), draw.number(0.22, 0.4), canvas.pixel)
        canvas.paint(rgb(draw.palette(2)[1], u) * scene.exposure, mark * cover)
    if style == "paper":
        bulge = 0.06 * (1 - (u / half).square()).clamp(min=0)
        lid = torch.maximum(u.abs() - half * 1.05, (v + 0.02 - bulge).abs() - 0.12)
        tone = draw.pick(((0.93, 0.93, 0.92), (0.08, 0.07, 0.07)))
        canvas.solid(canvas.inside(lid), flat_surface(tone, canvas, 0.4), barrel, 0.4)
    else:
        mouth, _ = squircle(u, v, half, 0.1, 0.0)
        canvas.darken(0.55 * canvas.inside(mouth + 0.03))
        canvas.paint(rgb((0.9, 0.9, 0.9), u) * scene.exposure, 0.6 * canvas.line(mouth, 0.035) * step(v) * canvas.alpha)
    if draw.chance(0.7):
        at = (centre, top + draw.number(0.7, 0.95))
        _grip(canvas, draw, at, (0.0, -1.0), half * 0.9, side, scene.skin)
    scene.add(canvas)
