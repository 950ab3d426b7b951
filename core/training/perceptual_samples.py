"""Pairs of pictures for core/training/perceptual.py: which pairs are judged is most of what a perceptual network learns.

Pictures: morphs of `train` people, crops of free pictures in the scikit-image package, procedural textures; held out are
photographs of `test` people and other free pictures. Versions of them are distorted over a wide range of strengths.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..resampling import resample
from .common import step_generator
from .morphs import EXTRA_NAMES, MorphModel, ffhq_frame, smiling_landmarks

logger = logging.getLogger(__name__)

KINDS = ("blur", "soft", "noise", "blocks", "colour", "warp", "patch", "neighbour", "other", "mixed")
_ALTERED = KINDS[:7]  # made from the picture itself; the next two are other pictures
# Files inside the scikit-image package, all free of rights; its faces are research-only and not read.
PICTURES = ("astronaut.png", "rocket.jpg", "hubble_deep_field.jpg", "brick.png", "grass.png", "camera.png",
             "text.png", "coins.png", "moon.png")  # fmt: skip
HELD_OUT_PICTURES = ("coffee.png", "chelsea.png", "gravel.png", "page.png")
_MORPHS, _CONTENT, _HELD_OUT = 1, 2, 3  # streams of random numbers


def _between(low: float, high: float, strength: float) -> float:
    return low * (high / low) ** strength


def _number(random: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def _pick(random: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=random))


def distort(kind: str, image: Tensor, strength: float, other: Tensor, random: torch.Generator) -> Tensor:
    """One distorted version.

    Args:
        kind: one of the first seven of `KINDS`, or "mixed" for two of them.
        image: [3, H, W] in [-1, 1].
        strength: 0 (hardly visible) to 1 (gross).
        other: [3, H, W], where pasted patches come from.
        random: CPU generator.

    Returns:
        [3, H, W] in [-1, 1].
    """
    if kind == "mixed":
        for _ in range(2):
            image = distort(_ALTERED[_pick(random, len(_ALTERED))], image, 0.8 * strength, other, random)
        return image
    if kind == "patch":
        return _pasted(image, strength, other, random)
    make = {"blur": _blurred, "soft": _softened, "noise": _noisy, "blocks": _blocky, "colour": _coloured}
    changed = (_warped if kind == "warp" else make[kind])(image, strength, random)
    if kind != "warp" and _number(random) < 0.15:  # only in one place
        changed = image.lerp(changed, _blob(image.shape[1:], 0.5, random))
    return changed.clamp(-1, 1)


def _blurred(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    sigma = _between(0.35, 5.0, strength)
    reach = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    image = F.pad(image[None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(image, kernel, groups=3), kernel.transpose(2, 3), groups=3)[0]


def _softened(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Down and up again, as pictures of a smaller generator look."""
    size = list(image.shape[1:])
    small = [max(4, round(side / _between(1.1, 8.0, strength))) for side in size]
    mode = ("bicubic", "bilinear", "nearest-exact")[min(2, _pick(random, 5) // 2)]
    shrunk = F.interpolate(image[None], small, mode="bilinear", antialias=True)
    return F.interpolate(shrunk, size, mode=mode)[0]


def _noisy(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    grain, channels = (1, 1, 2, 4)[_pick(random, 4)], (1, 3)[_pick(random, 2)]
    size = list(image.shape[1:])
    noise = torch.randn(1, channels, *(side // grain for side in size), generator=random)
    noise = noise if grain == 1 else F.interpolate(noise, size, mode="bicubic")
    return image + _between(0.015, 0.6, strength) * noise[0]


_DCT = torch.tensor(
    [[math.cos(math.pi * (2 * x + 1) * u / 16) * (0.5 if u else 8**-0.5) for x in range(8)] for u in range(8)]
)
_LUMA = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])  # RGB -> Y, Cb, Cr


def _blocky(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Rounded coefficients of 8x8 cosine blocks, coarser for colour and high frequencies, as in JPEG."""
    height, width = image.shape[1:]
    padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = torch.einsum("kc,chw->khw", _LUMA, padded).unfold(1, 8, 8).unfold(2, 8, 8)  # [3, rows, columns, 8, 8]
    frequency = torch.arange(8.0)
    step = _between(0.03, 1.2, strength) * (1 + 0.5 * (frequency[:, None] + frequency))
    step = step * torch.tensor([1.0, 1.6, 1.6])[:, None, None, None, None]
    blocks = _DCT.T @ (torch.round(_DCT @ blocks @ _DCT.T / step) * step) @ _DCT
    rounded = blocks.permute(0, 1, 3, 2, 4).reshape(3, *padded.shape[1:])
    return torch.einsum("ck,khw->chw", torch.linalg.inv(_LUMA), rounded)[:, :height, :width]


def _coloured(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    return recoloured(image, colour_change(_between(0.02, 0.7, strength), random))


def colour_change(amount: float, random: torch.Generator) -> Tensor:
    """[7]: brightness, contrast, saturation, gamma, red, green, blue; some of them zero."""
    used = (torch.rand(5, generator=random) < 0.5)[[0, 1, 2, 3, 4, 4, 4]]
    used[_pick(random, 7)] = True
    return (torch.rand(7, generator=random) * 2 - 1) * amount * used


def recoloured(image: Tensor, change: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] with a `colour_change`."""
    brightness, contrast, saturation, gamma, *gains = change.tolist()
    image = ((image + 1) / 2).clamp(1e-4, 1).pow(2**gamma) * 2 - 1
    middle = image.mean(dim=(-3, -2, -1), keepdim=True)
    image = middle + (image - middle) * (1 + contrast) + 0.6 * brightness
    grey = image.mean(dim=-3, keepdim=True)
    image = grey + (image - grey) * (1 + 1.4 * saturation)
    return ((image + 1) * (1 + 0.5 * torch.tensor(gains)[:, None, None]) - 1).clamp(-1, 1)


def _warped(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """A shift, a turn and zoom, or smooth random bends, of `strength` pixels on average."""
    height, width = image.shape[1:]
    pixels, way = _between(0.2, 7.0, strength), _pick(random, 3)
    if way == 0:
        field = torch.randn(1, 2, 1, 1, generator=random).expand(1, 2, height, width)
    elif way == 1:
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        turn, zoom = torch.randn(2, generator=random).tolist()
        field = torch.stack((zoom * x - turn * y, turn * x + zoom * y))[None]
    else:
        knots = 3 + _pick(random, 5)
        bends = torch.randn(1, 2, knots, knots, generator=random)
        field = F.interpolate(bends, (height, width), mode="bicubic", align_corners=True)
    field = field * (pixels / field.square().mean().sqrt().clamp(min=1e-3))
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, height, width], align_corners=False)
    grid = grid + field.permute(0, 2, 3, 1) * 2 / torch.tensor([width, height])
    return F.grid_sample(image[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)[0]


def _blob(size: Sequence[int], share: float, random: torch.Generator) -> Tensor:
    """Soft mask [1, H, W] in 0..1 of a rectangle or a bent ellipse, about `share` of the picture's side across."""
    height, width = size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    turn, aspect = _number(random, 0, math.pi), _between(0.5, 2.0, _number(random))
    x, y = x - _number(random, -0.8, 0.8), y - _number(random, -0.8, 0.8)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    along, across = along.abs() / (share * aspect**0.5), across.abs() / (share / aspect**0.5)
    if _number(random) < 0.4:
        radius = torch.maximum(along, across)
    else:
        bends = F.interpolate(torch.randn(1, 1, 5, 5, generator=random), (height, width), mode="bicubic")[0, 0]
        radius = (along.square() + across.square()).sqrt() * (1 + 0.2 * bends)
    edge = _between(1.0, 6.0, _number(random))  # pixels from inside to outside
    return ((1 - radius) * share * width / (2 * edge) + 0.5).clamp(0, 1)[None]


def _pasted(image: Tensor, strength: float, other: Tensor, random: torch.Generator) -> Tensor:
    """Something in front: a piece of another picture, or a plain colour; now and then half transparent."""
    mask = _blob(image.shape[1:], _between(0.05, 0.9, strength), random)
    colour = (torch.rand(3, 1, 1, generator=random) * 2 - 1).expand_as(image)
    fill = colour if _number(random) < 0.3 else recoloured(other, colour_change(0.3, random))
    return image.lerp(fill, mask * (_number(random, 0.3, 1.0) if _number(random) < 0.3 else 1.0))


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures that show nearly the same thing."""

    images: Tensor  # uint8 [groups, members, 3, side, side]
    faces: int  # the first so many groups are faces


@dataclass(frozen=True)
class Comparisons:
    """Pictures and versions of each, on the CPU."""

    references: Tensor  # [R, 3, s, s] in [-1, 1]
    versions: Tensor  # [R, V, 3, s, s]
    kinds: Tensor  # [R, V], index into KINDS
    faces: Tensor  # [R], True where the reference is a face


def _bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def training_pictures(morphs: MorphModel, faces: int, content: int, members: int, side: int, seed: int) -> Pictures:
    """`faces` groups of morphs with slightly changed codes, `content` groups of crops of free pictures and textures."""
    groups = [_morph_group(morphs, members, side, step_generator(seed, index, _MORPHS)) for index in range(faces)]
    random = step_generator(seed, 0, _CONTENT)
    pictures = 5 * _free_pictures(PICTURES) + [_procedural(random) for _ in range(min(24, content))]
    groups += [_crops(pictures, members, side, random) for _ in range(content)]
    return Pictures(torch.stack(groups), faces)


def _morph_group(morphs: MorphModel, members: int, side: int, random: torch.Generator) -> Tensor:
    codes = morphs.draw_codes(1 + members, random)
    code, changed, entries = codes[0], [codes[0]], morphs.entries
    for other in codes[2:]:
        amount = torch.zeros(morphs.code_dim)
        parts = (slice(0, entries), slice(entries, 2 * entries), slice(2 * entries, 2 * entries + len(EXTRA_NAMES)))
        for part in parts if _number(random) < 0.5 else (parts[_pick(random, 3)],):
            amount[part] = _between(0.05, 0.8, _number(random))
        changed.append(code.lerp(other, amount))
    return _bytes(morphs.render(torch.stack(changed), side).cpu())


def _free_pictures(names: Sequence[str]) -> list[Tensor]:
    """Pictures that lie in the scikit-image package, [3, H, W] in [-1, 1]; nothing is downloaded."""
    from PIL import Image

    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package and package.origin else Path()
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) < len(names):
        logger.warning("scikit-image brings %d of the %d pictures looked for.", len(found), len(names))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in found]
    return [torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1 for array in arrays]


def _procedural(random: torch.Generator, side: int = 320) -> Tensor:
    """Stripes, checks, clouds or overlapping blobs of random colours, [3, side, side] in [-1, 1]."""
    colours = torch.rand(12, 3, 1, 1, generator=random) * 2 - 1
    way, image = _pick(random, 4), colours[0].expand(3, side, side)
    if way == 0:
        clouds = sum(
            F.interpolate(torch.randn(1, 3, n, n, generator=random), (side, side), mode="bicubic") / n**0.5
            for n in (3, 7, 17, 41, 97)
        )
        return torch.tanh(1.2 * clouds[0] + colours[0])  # type: ignore[index]
    if way == 1:
        for colour in colours[1:]:
            image = image.lerp(colour.expand_as(image), _blob((side, side), _number(random, 0.1, 0.6), random))
        return image
    line = torch.arange(side) / side
    turn, count = _number(random, 0, math.pi), _between(4.0, 40.0, _number(random))
    waves = [
        torch.sin(2 * math.pi * count * (line * math.cos(a) + line[:, None] * math.sin(a)))
        for a in (turn, turn + math.pi / 2)
    ]
    pattern = waves[0] if way == 2 else waves[0] * waves[1]
    return image.lerp(colours[1].expand_as(image), (_number(random, 0.5, 8.0) * pattern).clamp(-1, 1)[None] / 2 + 0.5)


def _crops(pictures: Sequence[Tensor], members: int, side: int, random: torch.Generator) -> Tensor:
    """One picture cut out `members` times, a little shifted and zoomed; uint8 [members, 3, side, side]."""
    picture = pictures[_pick(random, len(pictures))]
    if _number(random) < 0.5:
        picture = picture.flip(2)
    height, width = picture.shape[1:]
    largest = min(height, width)
    cut = _between(min(0.6 * side, 0.8 * largest), 0.95 * largest, _number(random))
    left, top = _number(random, 0, width - cut), _number(random, 0, height - cut)
    crops = []
    for member in range(members):
        moved = 0.0 if member == 0 else _between(0.01, 0.15, _number(random))
        w = round(cut * (1 - moved * _number(random)))
        x = round(min(max(left + cut * moved * _number(random, -1, 1), 0), width - w))
        y = round(min(max(top + cut * moved * _number(random, -1, 1), 0), height - w))
        window = picture[None, :, y : y + w, x : x + w]
        crops.append(F.interpolate(window, (side, side), mode="bicubic", antialias=True)[0])
    return _bytes(torch.stack(crops))


def held_out_pictures(portraits: str | Path, side: int = 256, content: int = 40, seed: int = 77) -> Pictures:
    """Photographs of `test` people (neutral and smiling, or in two croppings), and crops of pictures left out of training."""
    from PIL import Image

    portraits = Path(portraits)
    landmarks = json.loads((portraits / "landmarks.json").read_text(encoding="utf-8"))
    with (portraits / "info.csv").open(newline="", encoding="utf-8") as file:
        people = [row for row in csv.DictReader(file) if row["split"] == "test"]
    groups = []
    for row in people:
        folder = "neutral" if row["set"] == "london" else row["set"]
        points = np.array(landmarks[f"{folder}/{row['id']}"])
        image = np.asarray(Image.open(portraits / folder / f"{row['id']}.jpg").convert("RGB"))
        smiling = portraits / "smiling" / f"{row['id']}.jpg"
        if folder == "neutral" and smiling.is_file():
            second = np.asarray(Image.open(smiling).convert("RGB"))
            frames = ffhq_frame(points), ffhq_frame(smiling_landmarks(image, second, points))
        else:
            second, frame = image, ffhq_frame(points)
            frames = frame, frame @ np.array([[0.94, 0, 0.03], [0, 0.94, 0.02], [0, 0, 1]])
        crops = [_cropped(picture, frame, side) for picture, frame in zip((image, second), frames, strict=True)]
        groups.append(_bytes(torch.cat(crops)))
    random, pictures = step_generator(seed, 0, _HELD_OUT), _free_pictures(HELD_OUT_PICTURES)
    if pictures:
        groups += [_crops(pictures, 2, side, random) for _ in range(content)]
    return Pictures(torch.stack(groups), len(people))


def _cropped(image: np.ndarray, frame: np.ndarray, side: int) -> Tensor:
    """uint8 [H, W, 3] through a matrix from the unit square to pixels, [1, 3, side, side] in [-1, 1]."""
    matrix = frame @ np.array([[1 / side, 0, 0.5 / side], [0, 1 / side, 0.5 / side], [0, 0, 1]])
    return resample(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1, matrix, (side, side))


@dataclass(frozen=True)
class _Window:
    """The same cut, mirroring and tint for all pictures of a comparison."""

    cut: int
    top: int
    left: int
    size: int
    mirrored: bool
    tint: Tensor

    @staticmethod
    def draw(side: int, size: int, random: torch.Generator) -> _Window:
        cut = size + _pick(random, side - size + 1)
        top, left = _pick(random, side - cut + 1), _pick(random, side - cut + 1)
        return _Window(cut, top, left, size, _number(random) < 0.5, colour_change(0.15, random))

    def __call__(self, picture: Tensor) -> Tensor:
        image = picture[:, self.top : self.top + self.cut, self.left : self.left + self.cut].float() / 127.5 - 1
        image = image.flip(2) if self.mirrored else image
        if self.cut != self.size:
            image = F.interpolate(image[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return recoloured(image, self.tint)


def draw_comparisons(
    pictures: Pictures, references: int, versions: int, size: int, random: torch.Generator
) -> Comparisons:
    """Random pictures, windows of them, and versions; a third of the references have versions of one kind only."""
    groups, members, _, side, _ = pictures.images.shape
    first, second, third, faces = [], [], [], []
    for _ in range(references):
        is_face = _number(random) < 0.6 if 0 < pictures.faces < groups else pictures.faces > 0
        start, count = (0, pictures.faces) if is_face else (pictures.faces, groups - pictures.faces)
        group, member = start + _pick(random, count), _pick(random, members)
        seen = _Window.draw(side, size, random)
        reference = seen(pictures.images[group, member])
        shared = _pick(random, len(KINDS)) if _number(random) < 0.35 else None
        made, kinds = [], []
        for _ in range(versions):
            index = _pick(random, len(KINDS)) if shared is None else shared
            kind, strength = KINDS[index], _number(random)
            filling = seen(pictures.images[_pick(random, groups), 0])
            if kind == "neighbour":
                near = pictures.images[group, (member + 1 + _pick(random, members - 1)) % members]
                version = distort("warp", seen(near), 0.4 * strength, filling, random)
            elif kind == "other":
                stranger = seen(pictures.images[start + _pick(random, count), member])
                version = reference.lerp(stranger, strength if _number(random) < 0.3 else 1.0)
            else:
                version = distort(kind, reference, strength, filling, random)
            made.append(version)
            kinds.append(index)
        first.append(reference)
        second.append(torch.stack(made))
        third.append(kinds)
        faces.append(is_face)
    return Comparisons(torch.stack(first), torch.stack(second), torch.tensor(third), torch.tensor(faces))
