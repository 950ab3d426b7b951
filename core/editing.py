"""Directions and edits: what a slider changes.

A `Direction` is an offset in W, W+ or style space with a natural unit. An `Edit` is a list of directions with strengths
and layer ranges. Neither touches a generator: an edit turns codes into other codes, the renderer draws them.
Sources of the conventions: InterFaceGAN (Shen et al. 2020), GANSpace (Harkonen et al. 2020) as used by
omertov/encoder4editing `editings/`, StyleCLIP global directions (Patashnik et al. 2021) for style space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import GeneratorMismatchError, InvalidInputError

LayerRange = tuple[int, int]  # half-open range of w_plus rows


@dataclass(frozen=True)
class Coordinate:
    """Makes a direction absolute: strength is the coordinate to reach along it, not a step (GANSpace in e4e)."""

    mean: Tensor  # [w_dim]
    std: float  # a coordinate of 1 is one standard deviation


@dataclass(frozen=True)
class Direction:
    """One semantic direction."""

    name: str
    offset: Tensor | None = None  # [1 or num_ws, w_dim]; one row serves all rows
    style: Mapping[str, Tensor] = field(default_factory=dict)  # layer name -> [C], added to that layer's style
    unit: float = 1.0  # strength 1 adds unit * offset
    limits: tuple[float, float] = (-3.0, 3.0)  # strengths between which the picture stays natural
    layers: LayerRange | None = None  # rows the direction was made for; None is all
    coordinate: Coordinate | None = None
    generator_id: str | None = None  # fingerprint of the generator it was made for, where known
    description: str = ""

    def __post_init__(self) -> None:
        if self.offset is None and not self.style:
            raise InvalidInputError(f"Direction {self.name!r} has neither a w_plus offset nor style offsets.")
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise InvalidInputError(
                f"Direction {self.name!r} has the layer range {self.layers}: expected 0 <= first < end."
            )
        if self.offset is not None and self.offset.ndim != 2:
            raise InvalidInputError(
                f"Direction {self.name!r} has an offset of shape {tuple(self.offset.shape)}: expected [1 or num_ws, w_dim]."
            )

    def delta(self, w_plus: Tensor, strength: float | Tensor, layers: LayerRange | None = None) -> Tensor:
        """The change of a code.

        Args:
            w_plus: [B, num_ws, w_dim], the code before any edit.
            strength: in the direction's units; a tensor [B] gives each image its own.
            layers: half-open row range; None is the direction's own.

        Returns:
            [B, num_ws, w_dim], zero outside the layer range.

        Raises:
            GeneratorMismatchError: the direction's shape fits another generator.
        """
        delta = torch.zeros_like(w_plus)
        if self.offset is None:
            return delta
        rows, width = self.offset.shape
        if width != w_plus.shape[2] or rows not in (1, w_plus.shape[1]):
            raise GeneratorMismatchError(
                f"Direction {self.name!r} has shape [{rows}, {width}], the code is [{w_plus.shape[1]}, {w_plus.shape[2]}]: "
                "it was made for another generator. Choose a direction of this generator, or discover one."
            )
        start, stop = self._range(w_plus.shape[1], layers)
        offset = self.offset.to(w_plus)
        amount = _strengths(strength, len(w_plus)).to(w_plus)[:, None, None] * self.unit
        if self.coordinate is not None:
            along = offset[:1] / offset[:1].norm()
            here = ((w_plus[:, :1] - self.coordinate.mean.to(w_plus)) * along).sum(
                -1, keepdim=True
            ) / self.coordinate.std
            amount = amount - here
        delta[:, start:stop] = (amount * offset).expand(len(w_plus), w_plus.shape[1], width)[:, start:stop]
        return delta

    def _range(self, num_ws: int, layers: LayerRange | None) -> LayerRange:
        start, stop = layers or self.layers or (0, num_ws)
        if not 0 <= start < min(stop, num_ws):
            raise InvalidInputError(
                f"Layer range {start}..{stop} of direction {self.name!r} touches no row: this generator has rows 0..{num_ws - 1}."
            )
        return start, min(stop, num_ws)


@dataclass(frozen=True)
class EditTerm:
    """One direction at one strength."""

    direction: Direction
    strength: float | Tensor = 1.0
    layers: LayerRange | None = None


@dataclass(frozen=True)
class Edit:
    """Several directions at once. Every term is measured from the unedited code, so the order does not matter."""

    terms: tuple[EditTerm, ...] = ()

    @staticmethod
    def of(direction: Direction, strength: float | Tensor = 1.0, layers: LayerRange | None = None) -> Edit:
        """An edit of one direction."""
        return Edit((EditTerm(direction, strength, layers),))

    def __add__(self, other: Edit) -> Edit:
        return Edit(self.terms + other.terms)

    def scaled(self, factor: float) -> Edit:
        """The same edit at another strength."""
        return Edit(tuple(dataclasses.replace(term, strength=term.strength * factor) for term in self.terms))

    def of_image(self, index: int, batch: int) -> Edit:
        """The part of an edit with one strength for each of `batch` images that belongs to one of them."""

        def own(strength: float | Tensor) -> float | Tensor:
            return strength.flatten()[index] if isinstance(strength, Tensor) and strength.numel() == batch else strength

        return Edit(tuple(dataclasses.replace(term, strength=own(term.strength)) for term in self.terms))

    def apply(self, w_plus: Tensor) -> Tensor:
        """w_plus [B, num_ws, w_dim] -> the edited code of the same shape."""
        edited = w_plus
        for term in self.terms:
            edited = edited + term.direction.delta(w_plus, term.strength, term.layers)
        return edited

    def style_offsets(self) -> dict[str, Tensor]:
        """Layer name -> [1 or B, C], summed over the terms; layers no term touches are absent."""
        total: dict[str, Tensor] = {}
        for term in self.terms:
            strength = _strengths(term.strength)[:, None] * term.direction.unit
            for name, offset in term.direction.style.items():
                step = strength.to(offset.device) * offset
                total[name] = total[name] + step if name in total else step
        return total


def _strengths(strength: float | Tensor, batch: int | None = None) -> Tensor:
    """One strength, or one for each image, as [1 or B] float32."""
    amounts = torch.as_tensor(strength, dtype=torch.float32).reshape(-1)
    if batch is not None and len(amounts) not in (1, batch):
        raise InvalidInputError(f"{len(amounts)} strengths for {batch} image(s): expected one, or one for each.")
    if not torch.isfinite(amounts).all():
        raise InvalidInputError(f"Strength {amounts.tolist()}: expected finite numbers.")
    return amounts
