"""What the measuring nodes share: the bundled networks that look at faces, and how their numbers are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.attributes import ATTRIBUTES, attributes_of
from ..core.evaluation import aligned_landmarks
from ..core.identity import identity_similarity
from ..core.landmarks import LandmarkNet, load_landmark_net
from ..model_registry import load_model
from ._comfy import optimising

IDENTITY = "portraits-identity"
IDENTITY_WORDS = (
    f"Identity: cosine of embeddings by {IDENTITY}, a small network of this package's own for aligned faces, not ArcFace; "
    "1 is the same picture."
)
_LEAST_SCORE = 0.5  # of the landmark net, below which there is no face; core.faces asks for the same
_SMALLEST = 32  # pixels; the networks see nothing in less


@dataclass(frozen=True)
class FaceMeter:
    """The networks that measure aligned faces."""

    identity: torch.nn.Module
    landmarks: LandmarkNet

    @staticmethod
    def load() -> FaceMeter:
        """The bundled ones, on the CPU: they are small."""
        with optimising():
            return FaceMeter(load_model(IDENTITY, architecture="identity").module, load_landmark_net())

    def attributes(self, image: Tensor) -> dict[str, float]:
        """Attributes of a picture [1, 3, H, W] in [-1, 1]; only those of any picture where it is no aligned face."""
        square = image.shape[2] == image.shape[3] >= _SMALLEST
        values = attributes_of(image.cpu(), self._points if square else None)
        return {name: float(value) for name, value in values.items() if math.isfinite(float(value))}

    def similarity(self, a: Tensor, b: Tensor) -> float:
        """Identity similarity of two aligned faces [1, 3, S, S] in [-1, 1]."""
        return float(identity_similarity(self.identity, a.cpu(), b.cpu()))

    def _points(self, images: Tensor) -> np.ndarray:
        return aligned_landmarks(self.landmarks, images, least_score=_LEAST_SCORE)


def is_face(attributes: Mapping[str, float]) -> bool:
    """Whether landmarks were found."""
    return "yaw" in attributes


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Changes of the attributes that both pictures have, in their `change_unit`, where finite."""
    found = {
        name: float(ATTRIBUTES[name].change(torch.tensor(before[name]), torch.tensor(after[name])))
        for name in ATTRIBUTES
        if name in before and name in after
    }
    return {name: change for name, change in found.items() if math.isfinite(change)}


def cell_captions(
    meter: FaceMeter,
    images: Tensor,
    unedited: Callable[[int], Tensor],
    attribute: str | None,
    report: Callable[[], None],
) -> list[str]:
    """What a grid's cells say: identity to the unedited picture, and the change of one attribute against it.

    Args:
        meter: with what.
        images: [N, 3, R, R] in [-1, 1], the cells.
        unedited: cell -> its unedited picture [1, 3, R, R].
        attribute: key of `ATTRIBUTES`, or None for the identity alone.
        report: called after each cell.

    Returns:
        One for each cell; "no face" where none was found.
    """
    captions = []
    known: tuple[Tensor, dict[str, float]] | None = None
    for index, image in enumerate(images.clamp(-1, 1).split(1)):
        plain = unedited(index)
        if known is None or known[0] is not plain:
            known = plain, meter.attributes(plain)
        captions.append(_caption(meter, image, plain, known[1], attribute))
        report()
    return captions


def _caption(meter: FaceMeter, image: Tensor, plain: Tensor, before: Mapping[str, float], attribute: str | None) -> str:
    after = meter.attributes(image)
    if not (is_face(before) and is_face(after)):
        return "no face"
    lines = [f"id {meter.similarity(plain, image):.2f}"]
    if attribute is not None and attribute in (found := changes(before, after)):
        about = ATTRIBUTES[attribute]
        lines.append(f"{about.short} {about.change_words(found[attribute])}")
    return "\n".join(lines)
