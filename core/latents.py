"""Codes without a photograph, and grids of edits: sampling, style mixing, interpolation, sweeps.

Paper: Karras et al., "A Style-Based Generator Architecture" (CVPR 2019), section 3.1 (style mixing), appendix B
(truncation). Reference implementation: NVlabs/stylegan2-ada-pytorch `generate.py`, `style_mixing.py`.
Deviation: z comes from a torch generator per seed, so a seed number gives another picture than NVIDIA's numpy seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .editing import Direction, Edit, LayerRange
from .errors import InvalidInputError
from .generator import Generator, Noise
from .imaging import check_image, resize_antialiased, to_pil
from .inversion import Inversion, render

_RENDER_CHUNK = 8  # images per synthesis pass of a sweep
_CELL_MIN = 128  # pixels; smaller pictures are enlarged, or no label would fit
_GAP = 4
_INK, _PAPER = (24, 24, 24), (255, 255, 255)
_FONT_SHARE, _FONT_MIN = 9, 11  # text height is 1/9 of a cell, at least 11 pixels
_CAPTION_SHARE, _CAPTION_MIN = 16, 10  # of captions; long ones shrink to their minimum first


def sample_z(generator: Generator, seeds: int | Sequence[int]) -> Tensor:
    """Seeds -> z [B, z_dim], standard normal; each from a random generator of its own."""
    seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not seeds:
        raise InvalidInputError("No seed given: expected one for each picture.")
    if not all(0 <= seed < 2**64 for seed in seeds):
        raise InvalidInputError(f"Seeds {seeds}: expected whole numbers from 0 to 2**64 - 1.")
    rows = [torch.randn(generator.config.z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(generator.w_avg.device)


@torch.no_grad()
def sample(generator: Generator, seeds: int | Sequence[int], psi: float = 1.0, cutoff: int | None = None) -> Tensor:
    """Random codes, w_plus [B, num_ws, w_dim]; a seed gives the same code whatever else is in the batch.

    Args:
        generator: whose mapping network is used.
        seeds: one for each picture.
        psi: truncation; 1 is the full variety, 0 the average picture, 0.7 the usual compromise.
        cutoff: number of leading rows to truncate; None is all.
    """
    # One at a time: matrix products of different batch sizes differ in the last bits.
    w = torch.cat([generator.mapping(z) for z in sample_z(generator, seeds).split(1)])
    return generator.truncate(generator.broadcast(w), psi, cutoff).clone()


def mix_styles(
    w_a: Tensor, w_b: Tensor, *, layers: LayerRange | None = None, crossover: int | None = None, amount: float = 1.0
) -> Tensor:
    """Takes some rows of a code from another one: coarse rows are pose and shape, fine rows colours and texture.

    Args:
        w_a: [B, num_ws, w_dim], the code that is kept elsewhere.
        w_b: [B or 1, num_ws, w_dim] (or w_a may be the one of batch 1).
        layers: half-open range of rows to take from `w_b`.
        crossover: the same as layers=(crossover, num_ws); give one of the two.
        amount: 1 takes the rows whole, less blends them.

    Returns:
        [B, num_ws, w_dim].
    """
    if w_a.ndim != 3 or w_a.shape[1:] != w_b.shape[1:] or 1 not in (len(w_a), len(w_b)) and len(w_a) != len(w_b):
        raise InvalidInputError(
            f"Codes of shapes {list(w_a.shape)} and {list(w_b.shape)}: expected [B, num_ws, w_dim] of one generator, "
            "with equal batches or a batch of 1."
        )
    num_ws = w_a.shape[1]
    if (layers is None) == (crossover is None):
        raise InvalidInputError("Style mixing needs either a layer range or a crossover row, one of the two.")
    start, end = (crossover, num_ws) if crossover is not None else layers  # type: ignore[misc]
    if not 0 <= start <= end <= num_ws:
        raise InvalidInputError(f"Rows {start}..{end}: expected 0 <= first <= end <= {num_ws}.")
    rows = torch.zeros(num_ws, 1, dtype=w_a.dtype, device=w_a.device)
    rows[start:end] = amount
    return torch.where(rows == 1, w_b.to(w_a), torch.lerp(w_a, w_b.to(w_a), rows))


def interpolate(
    a: Tensor,
    b: Tensor,
    steps: int,
    mode: str = "linear",
    *,
    generator: Generator | None = None,
    psi: float = 1.0,
    cutoff: int | None = None,
) -> Tensor:
    """Codes on the way from one to another, both ends included.

    Args:
        a, b: mode "linear": codes [1, num_ws, w_dim]; mode "slerp-z": z [1, z_dim] (see `sample_z`), which move on the
            sphere that z lies on and then pass the mapping network.
        steps: number of codes, at least 2.
        mode: "linear" or "slerp-z".
        generator, psi, cutoff: for "slerp-z", as in `sample`.

    Returns:
        [steps, num_ws, w_dim].
    """
    wanted = {"linear": 3, "slerp-z": 2}
    if mode not in wanted:
        raise InvalidInputError(f"interpolation mode {mode!r}: expected 'linear' or 'slerp-z'.")
    if a.shape != b.shape or a.ndim != wanted[mode] or len(a) != 1:
        expected = "two codes [1, num_ws, w_dim]" if mode == "linear" else "two z [1, z_dim]"
        raise InvalidInputError(f"{mode} between shapes {list(a.shape)} and {list(b.shape)}: expected {expected}.")
    if steps < 2:
        raise InvalidInputError(f"{steps} interpolation step(s): expected at least 2, the two ends.")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)
    if mode == "linear":
        return torch.lerp(a, b, t.view(-1, 1, 1))
    if generator is None:
        raise InvalidInputError("slerp-z needs generator=..., whose mapping network turns z into codes.")
    with torch.no_grad():
        w = torch.cat([generator.mapping(z) for z in _slerp(a, b, t).split(1)])
        return generator.truncate(generator.broadcast(w), psi, cutoff).clone()


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Great circle from a to b [1, D] at t [T]; lengths, which the mapping network ignores, are those of `a`."""
    length = a.norm()
    a, b = a / length, b / b.norm()
    angle = torch.arccos((a * b).sum().clamp(-1, 1))
    if angle > torch.pi - 1e-3:
        raise InvalidInputError("slerp-z between opposite z has no shortest way. Choose another seed.")
    if angle < 1e-4:  # sin(angle) would lose all digits
        return length * torch.lerp(a, b, t[:, None])
    return length * (torch.sin((1 - t) * angle)[:, None] * a + torch.sin(t * angle)[:, None] * b) / torch.sin(angle)


@dataclass(frozen=True)
class SweepGrid:
    """Pictures of a sweep with their labels."""

    images: Tensor  # [rows * columns, 3, H, W] in [-1, 1], row by row, on the CPU
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]

    def cell(self, row: int, column: int) -> Tensor:
        """One picture, [1, 3, H, W]."""
        index = range(len(self.row_labels))[row] * len(self.column_labels) + range(len(self.column_labels))[column]
        return self.images[index : index + 1]

    def draw(self, cell: int | None = None, captions: Sequence[str] = ()) -> Image.Image:
        """The labelled grid (see `draw_grid`)."""
        return draw_grid(self.images, self.row_labels, self.column_labels, cell=cell, captions=captions)


@torch.no_grad()
def sweep(
    inversion: Inversion,
    direction: Direction | Sequence[Direction],
    strengths: Sequence[float],
    *,
    second_direction: Direction | None = None,
    second_strengths: Sequence[float] = (),
    layers: LayerRange | None = None,
    edit: Edit | None = None,
    chunk: int = _RENDER_CHUNK,
    noise: Noise = "const",
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] | None = None,
) -> SweepGrid:
    """Draws an inversion at many strengths. Nothing is encoded or optimised.

    Columns are the strengths. Rows are the images of the batch, times the directions if several are given, times the
    strengths of the second direction if there is one.

    Args:
        inversion: one or more photographs.
        direction: one, or several to compare.
        strengths: of `direction`, one column each.
        second_direction, second_strengths: applied together with the first, one row each.
        layers: half-open row range for `direction`; None is its own.
        edit: applied to every cell in addition, such as the other sliders.
        chunk: images per synthesis pass; less needs less memory.
        noise, dtype: as in `render`; noise maps given as tensors serve every cell, [1, 1, r, r].
        on_progress: called with (images drawn, images in all); may raise to stop.
    """
    directions = [direction] if isinstance(direction, Direction) else list(direction)
    if not directions or not strengths:
        raise InvalidInputError(f"A sweep of {len(directions)} direction(s), {len(strengths)} strength(s): give both.")
    if (second_direction is None) != (not second_strengths):
        raise InvalidInputError("A second direction and its strengths go together: give both or neither.")
    if not len(inversion):
        raise InvalidInputError("A sweep of an inversion without images: expected at least one.")
    if chunk < 1:
        raise InvalidInputError(f"chunk={chunk}: expected 1 or more images per pass.")
    seconds: Sequence[float | None] = list(second_strengths) or [None]
    total = len(inversion) * len(directions) * len(seconds) * len(strengths)
    images: list[Tensor] = []
    labels: list[str] = []
    for index in range(len(inversion)):
        one = inversion[index].to(inversion.generator.w_avg.device)
        others = (edit or Edit()).of_image(index, len(inversion))
        for first in directions:
            for second in seconds:
                base = others
                parts = [f"#{index + 1}"] if len(inversion) > 1 else []
                if len(directions) > 1 or second is None:
                    parts.append(first.name)
                if second_direction is not None and second is not None:
                    base = base + Edit.of(second_direction, second)
                    parts.append(f"{second_direction.name} {_signed(second)}")
                labels.append(" ".join(parts))
                for part in torch.tensor(strengths, dtype=torch.float32).split(chunk):
                    moved = base + Edit.of(first, part.to(one.w_plus.device), layers)
                    images.append(render(_repeated(one, len(part)), moved, noise=noise, dtype=dtype).cpu())
                    if on_progress is not None:
                        on_progress(sum(map(len, images)), total)
    named = len(directions) == 1 and second_direction is not None
    columns = tuple(f"{directions[0].name} {_signed(s)}" if named else _signed(s) for s in strengths)
    return SweepGrid(torch.cat(images), tuple(labels), columns)


def _repeated(inversion: Inversion, count: int) -> Inversion:
    """One photograph `count` times; weight offsets stay single, which lets one pass draw all copies."""

    def copies(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:])

    return dataclasses.replace(
        inversion,
        image=copies(inversion.image),
        w_plus=copies(inversion.w_plus),
        crops=inversion.crops * count,
        modulations=tuple(m if m.weight_offsets() else m.map_tensors(copies) for m in inversion.modulations),
    )


def _signed(strength: float) -> str:
    return f"{strength:+.3g}" if strength else "0"


def draw_grid(
    images: Tensor,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    columns: int | None = None,
    cell: int | None = None,
    captions: Sequence[str] = (),
) -> Image.Image:
    """One picture of many, with labels to the left and above and captions below each; no text covers a picture.

    Args:
        images: [N, 3, H, W] in [-1, 1], row by row.
        row_labels, column_labels: empty for none; long ones get a smaller font, then an ellipsis.
        columns: pictures per row; None is the number of column labels, or else of pictures.
        cell: width of one picture in pixels; None is its own, at least 128.
        captions: one for each picture, "\\n" between lines, or empty for none. All pictures get the room of the longest.

    Returns:
        An RGB picture: dark text on white.

    Raises:
        InvalidInputError: labels that do not fit the number of pictures.
    """
    check_image(images, "images")
    columns = columns or len(column_labels) or (len(images) // len(row_labels) if row_labels else len(images))
    rows = -(-len(images) // max(columns, 1))
    if columns < 1 or len(column_labels) not in (0, columns) or len(row_labels) not in (0, rows):
        raise InvalidInputError(
            f"{len(images)} pictures in {columns} column(s) with {len(row_labels)} row labels and {len(column_labels)} "
            f"column labels: expected {columns} column labels and {rows} row labels, or none."
        )
    if len(captions) not in (0, len(images)):
        raise InvalidInputError(f"{len(captions)} captions for {len(images)} pictures: expected as many, or none.")
    width = cell or max(images.shape[3], _CELL_MIN)
    height = max(1, round(width * images.shape[2] / images.shape[3]))
    if (height, width) != tuple(images.shape[2:]):
        images = resize_antialiased(images.float(), (height, width))
    size = max(_FONT_MIN, min(height, width) // _FONT_SHARE)
    left = 0
    if row_labels:
        left = min(round(max(_font(size).getlength(label) for label in row_labels)) + 3 * _GAP, 3 * width)
    top = size + 3 * _GAP if column_labels else 0
    small = max(_CAPTION_MIN, min(height, width) // _CAPTION_SHARE)
    line_height = small + _GAP
    foot = line_height * max((len(caption.splitlines()) for caption in captions), default=0)
    pitch = height + foot + _GAP
    sheet = Image.new("RGB", (left + columns * (width + _GAP) + _GAP, top + rows * pitch + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(to_pil(images)):
        row, column = divmod(index, columns)
        corner = left + _GAP + column * (width + _GAP), top + _GAP + row * pitch
        sheet.paste(picture, corner)
        for line, caption in enumerate(captions[index].splitlines() if captions else ()):
            text, font = _fitted(caption, small, width, _CAPTION_MIN)
            at = corner[0] + width // 2, corner[1] + height + line * line_height + line_height // 2
            pen.text(at, text, fill=_INK, font=font, anchor="mm")
    for row, label in enumerate(row_labels):
        middle = top + _GAP + row * pitch + height // 2
        text, font = _fitted(label, size, left - 2 * _GAP)
        pen.text((left - _GAP, middle), text, fill=_INK, font=font, anchor="rm")
    for column, label in enumerate(column_labels):
        middle = left + _GAP + column * (width + _GAP) + width // 2
        text, font = _fitted(label, size, width)
        pen.text((middle, (top + _GAP) // 2), text, fill=_INK, font=font, anchor="mm")
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _fitted(text: str, size: int, width: int, least: int = _FONT_MIN) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, and the largest font up to `size` in which it fits; cut off where even the smallest is too wide."""
    while size > least and _font(size).getlength(text) > width:
        size -= 1
    font = _font(size)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "...", font
