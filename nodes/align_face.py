"""Align Face: photographs -> the square crops StyleGAN was trained on, and how to get back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.alignment import CropTransform, align, footprint_mask
from ..core.errors import InvalidInputError
from ..core.faces import DETECTORS, Face, detect_faces, face_from_bounding_box, face_from_landmarks, select_face
from ..model_registry import catalogue, hub
from ._comfy import EXPERT, check_interrupt, io, progress, schema
from ._types import (
    BoundingBoxSocket,
    CropSocket,
    CropsWire,
    FaceLandmarksSocket,
    GeneratorSocket,
    GeneratorWire,
    check_choice,
    mask_out,
    to_comfy,
    to_core,
)

_YUNET = "yunet"
_CHOICES = ["largest", "left", "right", "centre", "index"]
_POINTS = "landmarks_xy"
_LARGEST_SIDE = 8  # of a face, in longer sides of its picture
_SOCKET_ONLY = {"forceInput": True}  # newer editors would draw a widget for these types


class GANInversionAlignFace(io.ComfyNode):
    """Cuts aligned faces out of photographs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionAlignFace",
            display_name="Align Face",
            category="GAN Inversion/photo",
            description=(
                "Finds a face in each photograph and cuts out the upright square that StyleGAN was trained on (the "
                "FFHQ crop). Paste Back puts the edited crop into the photograph again. A photograph without a face "
                "gives its centre square, is named in the report, and is left as it is by Paste Back."
            ),
            search_aliases=["face align", "ffhq crop", "face crop", "face detection"],
            inputs=[
                io.Image.Input("image", tooltip="Photographs of any size; an alpha channel is left out."),
                io.Combo.Input(
                    "choose",
                    options=_CHOICES,
                    default="largest",
                    optional=True,
                    tooltip="Which face to take where there are several: the largest, the one nearest the left or "
                    "right edge or the middle of all faces, or by number from left to right.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=99,
                    optional=True,
                    tooltip="Number of the face in the chosen order, 0 is the first. For example choose 'left' and 1: "
                    "the second face from the left.",
                ),
                io.Combo.Input(
                    "detector",
                    options=list(DETECTORS),
                    default="auto",
                    optional=True,
                    tooltip="yunet is the better detector (0.2 MB, downloaded into models/stylegan at first "
                    "use, needs OpenCV); cascade "
                    "works without any download; auto takes yunet where its file is present. Ignored when landmarks or "
                    "boxes are connected.",
                ),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=32,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Side of the aligned picture in pixels. A connected generator's own size is used instead.",
                ),
                GeneratorSocket.Input(
                    "generator",
                    optional=True,
                    tooltip="The aligned picture gets this generator's size. Saves resampling twice.",
                ),
                FaceLandmarksSocket.Input(
                    "face_landmarks",
                    optional=True,
                    extra_dict=_SOCKET_ONLY,
                    tooltip="Landmarks found by another node (ComfyUI's MediaPipe landmarker), used in place of a "
                    "detector.",
                ),
                BoundingBoxSocket.Input(
                    "bounding_box",
                    optional=True,
                    extra_dict=_SOCKET_ONLY,
                    tooltip="Face boxes found by another node, used in place of a detector; our landmark net finds the "
                    "eyes and the mouth inside.",
                ),
                io.Float.Input(
                    "mask_feather",
                    default=0.08,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    **EXPERT,
                    tooltip="Soft edge of the mask output, as a part of the crop's side. 0 is a hard square.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="aligned", tooltip="Aligned squares, one for each photograph."),
                CropSocket.Output(display_name="crop", tooltip="Where each square was cut, for Encode and Paste Back."),
                io.Mask.Output(
                    display_name="footprint",
                    tooltip="The squares in the photographs, soft-edged; empty without a face.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found in each photograph, and by which detector.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        choose: str = "largest",
        index: int = 0,
        detector: str = "auto",
        size: int = 1024,
        generator: GeneratorWire | None = None,
        face_landmarks: Any = None,
        bounding_box: Any = None,
        mask_feather: float = 0.08,
    ) -> io.NodeOutput:
        """One aligned square for each photograph."""
        check_choice("choose", choose, _CHOICES)
        check_choice("detector", detector, DETECTORS)
        photos = to_core(image)
        frame = (photos.shape[2], photos.shape[3])
        side = size if generator is None else generator.generator.resolution
        find = _finder(len(photos), detector, face_landmarks, bounding_box)
        report = progress(len(photos))
        aligned: list[Tensor] = []
        masks: list[Tensor] = []
        crops: list[CropTransform | None] = []
        lines: list[str] = []
        for number, photo in enumerate(photos.split(1)):
            faces, problems = find(number, photo)
            face = select_face(faces, choose, index)
            try:
                crop, square = (None, None) if face is None else _cut(photo, face, side)
            except InvalidInputError as error:  # the points of another node lie outside the picture
                face, crop, square, faces, problems = None, None, None, [], [*problems, str(error)]
            aligned.append(align(photo, CropTransform.whole_square(frame, side)) if square is None else square)
            masks.append(torch.zeros(1, 1, *frame) if crop is None else footprint_mask(crop, feather=mask_feather))
            crops.append(crop)
            told = "".join(f" [{problem}]" for problem in problems)
            lines.append(f"Image {number + 1} of {len(photos)}: {_words(faces, face, crop, index)}{told}")
            report(number + 1)
        if passed := crops.count(None) if len(crops) > 1 else 0:
            lines.append(
                f"{len(crops) - passed} of {len(crops)} images have a face; {passed} passed through as they were."
            )
        if detector == "auto" and face_landmarks is None and bounding_box is None and _yunet_file() is None:
            lines.append("The detector yunet finds more faces: choose it once to download its file (0.2 MB).")
        return io.NodeOutput(
            to_comfy(torch.cat(aligned)), CropsWire(tuple(crops)), mask_out(torch.cat(masks)), "\n".join(lines)
        )


def _cut(photo: Tensor, face: Face, side: int) -> tuple[CropTransform, Tensor]:
    crop = face.crop_transform((photo.shape[2], photo.shape[3]), side)
    _check_size(crop.side, crop.side, photo)
    return crop, align(photo, crop)


def _check_size(width: float, height: float, photo: Tensor) -> None:
    rows, columns = photo.shape[-2:]
    # Written so that NaN is refused too.
    if not max(width, height) <= _LARGEST_SIDE * max(rows, columns):
        raise InvalidInputError(f"A face of {width:g}x{height:g} px does not fit a picture of {columns}x{rows}.")


_Found = tuple[list[Face], list[str]]  # faces of one photograph, and why others were left out


def _finder(count: int, detector: str, face_landmarks: Any, bounding_box: Any) -> Callable[[int, Tensor], _Found]:
    """A function of (index of the photograph, photograph [1, 3, H, W])."""
    if face_landmarks is not None:
        given = face_landmarks
        if isinstance(given, dict) and _POINTS not in given:
            given = given.get("frames")
        frames = _per_image(given, count, "face_landmarks")
        return lambda number, _: _usable(frames[number], "landmarks", lambda face: face_from_landmarks(face[_POINTS]))
    if bounding_box is not None:
        boxes = _per_image(bounding_box, count, "bounding_box")
        return lambda number, photo: _usable(boxes[number], "box", lambda box: _in_box(photo, box))
    if detector == "yunet":
        yunet = hub.fetch(_YUNET, progress=progress(), check_interrupt=check_interrupt)
    else:
        yunet = _yunet_file()
    return lambda _, photo: (detect_faces(photo, detector, yunet_path=yunet, check_interrupt=check_interrupt)[0], [])


def _usable(given: Sequence[Any], what: str, make: Callable[[Any], Face | None]) -> _Found:
    """The faces that can be made; one that another node got wrong must not end a batch."""
    faces: list[Face] = []
    problems: list[str] = []
    for number, one in enumerate(given):
        try:
            face = make(one)
        except (InvalidInputError, LookupError, TypeError, ValueError, OverflowError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else f"cannot be used: {error}"
            problems.append(f"{what} {number + 1} {reason}")
        else:
            if face is None:
                problems.append(f"{what} {number + 1} holds no face")
            else:
                faces.append(face)
    return faces, problems


def _in_box(photo: Tensor, box: Mapping[str, float]) -> Face | None:
    x, y, width, height = (float(box[name]) for name in ("x", "y", "width", "height"))
    _check_size(width, height, photo)
    return face_from_bounding_box(photo, (x, y, width, height))


def _per_image(given: Any, count: int, name: str) -> list[list[Any]]:
    """ComfyUI's boxes and landmarks come as one, as a list for one image, or as a list of lists: one list per image.

    An empty list says that no face was found in any image. Faces themselves are not looked at here.
    """
    if isinstance(given, dict):
        given = [[given]]
    elif isinstance(given, (list, tuple)):
        if not given:
            given = [[]]
        elif count == 1 and all(isinstance(one, dict) for one in given):
            given = [given]
        elif any(one is None or isinstance(one, (dict, list, tuple)) for one in given):
            given = [[] if one is None else one if isinstance(one, (list, tuple)) else [one] for one in given]
    lists = isinstance(given, list) and all(isinstance(one, (list, tuple)) for one in given)
    if lists and len(given) in (1, count):
        return [list(one) for one in (given if len(given) == count else given * count)]
    found = f"a list of {len(given)}" if isinstance(given, (list, tuple)) else type(given).__name__
    raise InvalidInputError(
        f"Input {name!r} is {found}: expected faces for {count} image(s), found on the same pictures."
    )


def _yunet_file() -> Path | None:
    path, problem = catalogue.locate(catalogue.find(_YUNET))
    return path if problem is None else None


def _words(faces: Sequence[Face], face: Face | None, crop: CropTransform | None, index: int) -> str:
    if face is None or crop is None:
        found = f"no face number {index}, only {len(faces)}" if faces else "no face found"
        return f"{found}, passed through"
    x, y = face.centre
    return (
        f"face at ({x:.0f}, {y:.0f}), 1 of {len(faces)}, found by {face.detector}, crop {crop.side:.0f} px wide, "
        f"turned {crop.angle:+.1f} degrees"
    )
