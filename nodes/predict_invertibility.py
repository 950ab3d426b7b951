"""Predict Invertibility: an inversion -> which parts of its photograph the codes can draw, and which need features."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import GeneratorMismatchError, InvalidInputError, NotFiniteError
from ..core.imaging import area_pool, resize_antialiased
from ..core.inversion import Inversion
from ..core.invertibility import TAU, InvertibilityNet, LatentMap, latent_map, latent_spaces, out_of_domain, with_region
from ..core.multilayer import measure_errors, measured_tau, measuring_config
from ..core.parsing import face_segments, parse
from ..core.refinement import check_refinable
from ..core.superpixels import superpixels
from ..model_registry import hub, load_model
from ..model_registry.perceptual import BUNDLED_DISTANCE
from . import _models
from ._comfy import (
    EXPERT,
    check_interrupt,
    intermediate_device,
    io,
    on_device,
    optimising,
    progress,
    schema,
    with_room,
)
from ._drawing import latent_map_picture
from ._refinement import (
    AUTOMATIC,
    DISTANCE_TOOLTIP,
    DISTANCES,
    FACE_PARSER,
    GRADIENT_COPIES,
    differentiable,
    distance_input,
    distance_named,
    distance_words,
    find_face_parser,
    modules_of,
    seed_input,
)
from ._types import (
    GeneratorWire,
    InversionSocket,
    InversionWire,
    LatentMapSocket,
    LatentMapWire,
    check_choice,
    check_finite,
    check_same_generator,
    mask_in,
    mask_out,
    painted,
    to_comfy,
)

if TYPE_CHECKING:
    from ..core.parsing import FaceParser

_KIND = "invertibility"
_MEASURE = "measure (no network)"
_SEGMENTS = _, _FACE, _SUPERPIXELS, _PIXELS = AUTOMATIC, "face parser", "superpixels", "per pixel"
_FINEST = "keep the finest"
_SPACES = (_FINEST, "W+", "F2", "F4", "F6", "F8", "F10")
_SIZE = 256  # px: what the published networks were trained on, and the side at which inversions are compared
_BYTES = 400 * 2**20  # activations of the published network at that size
_BARS = {"car": 3 / 4}  # domain -> height over width of its pictures, which lie between black bars
_BLACK = -0.98
_REMEMBERED = 64  # images
_Errors = dict[str, Tensor]  # space -> [B, 1, h, w]
_Step = Callable[[int, Tensor | None], None]  # steps made, preview
# Errors of the images seen last: another threshold or mask measures nothing again.
_memory: OrderedDict[str, _Errors] = OrderedDict()


class GANInversionPredictInvertibility(io.ComfyNode):
    """Makes latent maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return schema(
            node_id="GANInversionPredictInvertibility",
            display_name="Predict Invertibility",
            category="GAN Inversion/refine",
            description=(
                "Decides for each part of the photograph where it can be inverted: in the codes (W+), where edits work "
                "best, or in ever finer features (F4, F6, ...), which keep hats, hands and backgrounds as they are. For "
                "Multilayer Invert. Every decision can be painted over. With a predictor network under a second; "
                "measured instead, about half a minute for each picture on a CPU with the bundled model. Another "
                "threshold or mask measures nothing again."
            ),
            search_aliases=["sam", "invertibility", "latent map", "out of domain", "segment", "spatially adaptive"],
            inputs=[
                InversionSocket.Input(
                    "inversion", tooltip="From Encode or Project. Its code is where measuring begins."
                ),
                io.Combo.Input(
                    "method",
                    options=[AUTOMATIC, _MEASURE, *_models.found(_KIND)],
                    default=AUTOMATIC,
                    optional=True,
                    tooltip="automatic: the predictor network of this generator where it is on this machine, else "
                    "measuring. Measuring makes a short inversion in each space and needs no network. Or a predictor: from "
                    "the catalogue, or a file of models/stylegan. The report says what was used.",
                ),
                io.Float.Input(
                    "tau",
                    default=0.0,
                    min=0.0,
                    max=5.0,
                    step=0.005,
                    round=0.0001,
                    optional=True,
                    tooltip="Error up to which a space suffices: less keeps more of the photograph as it is, more makes "
                    "more of it editable. 0 is automatic: the predictor's own, 0.225 for LPIPS (0.1 to 0.4 is useful), "
                    f"{measured_tau(BUNDLED_DISTANCE):g} for measuring with the bundled network.",
                ),
                io.Combo.Input(
                    "segments",
                    options=list(_SEGMENTS),
                    default=AUTOMATIC,
                    optional=True,
                    tooltip="What is decided as a whole. face parser: the face, hair, clothes, hat, ... (downloads 53 MB "
                    "once, non-commercial). superpixels: about 200 patches of like colour. per pixel: each alone, ragged. "
                    "automatic: the face parser for faces if its file is on this machine, else superpixels.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A region to decide by hand, 1 is inside: painted, or of any other node, in the frame of the "
                    "aligned photograph. An empty mask counts as none.",
                ),
                io.Combo.Input(
                    "mask_space",
                    options=list(_SPACES),
                    default=_FINEST,
                    optional=True,
                    tooltip="Where the masked region is inverted. keep the finest: as close to the photograph as possible, "
                    "hardly editable. W+: by the codes alone, fully editable. F2 to F10 lie between, coarse to fine; "
                    "which of them there are depends on the generator.",
                ),
                LatentMapSocket.Input(
                    "latent_map",
                    optional=True,
                    tooltip="A map of another Predict Invertibility to change by this mask; nothing is predicted then. One "
                    "node for each region puts any number of them where you want.",
                ),
                io.Int.Input(
                    "steps",
                    default=40,
                    min=1,
                    max=2000,
                    optional=True,
                    **EXPERT,
                    tooltip="For measuring: of the inversion in each of the five spaces. 20 is rough, above 100 errors "
                    "shrink and tau should too. Time grows in proportion.",
                ),
                distance_input(f"For measuring only; a trained predictor has learned its own. {DISTANCE_TOOLTIP}"),
                seed_input("For measuring: of the codes that tell which ones are usual."),
            ],
            outputs=[
                LatentMapSocket.Output(display_name="latent_map", tooltip="For Multilayer Invert."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where W+ does not suffice, 1 is there: for DHR Refine, Blend, or to paint on.",
                ),
                io.Mask.Output(
                    display_name="error_maps",
                    tooltip="For each image one map for each space, W+ first, scaled by 1 / (2 tau): 0.5 is the threshold, "
                    "brighter does not suffice.",
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The map in colours over the photograph, with each space's share of the picture.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was used, shares and mean errors of each space, and which images failed and why.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str = AUTOMATIC) -> bool | str:
        """Whether the predictor's name is known."""
        return method in (AUTOMATIC, _MEASURE) or _models.check(method, _KIND)

    @classmethod
    def fingerprint_inputs(
        cls,
        inversion: InversionWire | None = None,
        method: str = AUTOMATIC,
        tau: float = 0.0,
        segments: str = AUTOMATIC,
        mask: Tensor | None = None,
        mask_space: str = _FINEST,
        latent_map: LatentMapWire | None = None,
        steps: int = 40,
        distance: str = DISTANCES[0],
        seed: int = 0,
    ) -> str:
        """Changes with the predictor's file; with "automatic", with those that may be chosen."""
        if method == AUTOMATIC:
            return _models.all_fingerprints(_KIND)
        return method if method == _MEASURE else _models.fingerprint(method, _KIND)

    @classmethod
    def execute(
        cls,
        inversion: InversionWire,
        method: str = AUTOMATIC,
        tau: float = 0.0,
        segments: str = AUTOMATIC,
        mask: Tensor | None = None,
        mask_space: str = _FINEST,
        latent_map: LatentMapWire | None = None,
        steps: int = 40,
        distance: str = DISTANCES[0],
        seed: int = 0,
    ) -> io.NodeOutput:
        """Predicts or measures image by image, decides, and lets the mask decide last."""
        check_choice("segments", segments, _SEGMENTS)
        check_choice("mask_space", mask_space, _SPACES)
        check_choice("distance", distance, DISTANCES)
        check_finite(tau=tau)
        if tau < 0:
            raise InvalidInputError(
                f"Input 'tau' is {tau:g}: expected a threshold above 0, or 0 for the automatic one."
            )
        chosen = mask_in(painted(mask), inversion.inversion)
        frame = _Frame.of(inversion)
        failures: dict[int, str] = {}
        if latent_map is not None:
            check_same_generator(latent_map.generator, inversion.generator, "Inputs 'latent_map' and 'inversion'")
            given, wanted = tuple(latent_map.latent_map.index.shape), (len(inversion.inversion), *frame.size)
            if given != wanted:
                raise InvalidInputError(
                    f"Input 'latent_map' is {list(given)} (images, height, width), input 'inversion' asks for "
                    f"{list(wanted)}: connect maps of the same images."
                )
            wire, words = latent_map, ["The map is the one given; nothing was predicted."]
        else:
            source = _source(method, inversion.generator, distance, steps, seed)
            errors, failures = _find(source, inversion, frame)
            threshold = tau or source.tau
            parser = _parser(segments, inversion.generator)
            made = _decided(inversion.inversion, frame, errors, failures, threshold, segments, parser)
            wire = LatentMapWire(made, inversion.generator, errors, threshold)
            how = "given" if tau else source.tau_words
            words = [source.words, f"Threshold tau {threshold:g} ({how}).", _segment_words(segments, parser)]
        if chosen is not None:
            space = wire.latent_map.spaces[-1] if mask_space == _FINEST else mask_space
            region = frame.cut(chosen)
            wire = dataclasses.replace(wire, latent_map=with_region(wire.latent_map, region, space))
            words.append(f"The mask puts {float(region.mean()):.0%} of the picture into {space}.")
        square = frame.whole(wire.latent_map)
        maps = torch.stack(list(wire.errors.values()), dim=1).flatten(0, 1)  # images, then spaces
        return io.NodeOutput(
            wire,
            mask_out(frame.grown(out_of_domain(wire.latent_map))),
            mask_out(frame.grown((maps / (2 * wire.tau)).clamp(0, 1))),
            to_comfy(latent_map_picture(square, inversion.inversion.image, wire.latent_map.shares())),
            _report(wire, words, failures),
        )


@dataclass(frozen=True)
class _Frame:
    """The rows of a generator's square pictures that show something, and the size at which a map is made of them."""

    side: int
    rows: slice
    size: tuple[int, int]

    @staticmethod
    def of(wire: InversionWire) -> _Frame:
        """Between the black bars, where the generator draws them and all photographs have them."""
        image, side = wire.inversion.image, wire.generator.generator.resolution
        bar = round(side * (1 - _BARS.get(wire.generator.domain or "", 1.0)) / 2)
        rows = slice(bar, side - bar)
        if bar and float(torch.cat((image[:, :, :bar], image[:, :, side - bar :]), dim=2).max()) > _BLACK:
            rows = slice(0, side)
        small = min(_SIZE, side)
        return _Frame(side, rows, (round(small * (rows.stop - rows.start) / side), small))

    def cut(self, picture: Tensor) -> Tensor:
        """[B, C, R, R] -> its rows."""
        return picture[:, :, self.rows]

    def small(self, image: Tensor) -> Tensor:
        """Photographs [B, 3, R, R] -> [B, 3, h, w], as the predictors were trained."""
        return resize_antialiased(self.cut(image).float(), self.size, "lanczos").clamp(-1, 1)

    def grown(self, maps: Tensor) -> Tensor:
        """[B, 1, h, w] -> [B, 1, R, R], 0 on the bars."""
        height = self.rows.stop - self.rows.start
        if tuple(maps.shape[2:]) != (height, self.side):
            maps = F.interpolate(maps, size=(height, self.side), mode="bilinear", align_corners=False)
        return F.pad(maps, (0, 0, self.rows.start, self.side - self.rows.stop))

    def whole(self, latent_map: LatentMap) -> LatentMap:
        """A map [B, h, w] -> [B, w, w], bars in the first space."""
        above = (self.size[1] - self.size[0]) // 2
        index = F.pad(latent_map.index, (0, 0, above, self.size[1] - self.size[0] - above))
        return LatentMap(latent_map.spaces, index)


class _Predictor:
    """Errors that a network predicts."""

    each = 1  # steps of progress for an image

    def __init__(self, place: str | Path, generator: GeneratorWire) -> None:
        if isinstance(place, Path):
            path, self.name = place, place.name
        else:
            path = hub.fetch(place, progress=progress(), check_interrupt=check_interrupt)
            self.name = place
        facts = _models.header(path)
        self.place, self.generator = place, generator
        noted = (_models.configured(facts).get("threshold"), facts.get("tau"))
        found = next((value for text in noted if (value := _positive(text)) is not None), None)
        self.tau = TAU if found is None else found
        self.tau_words = "SAM's" if found is None else "the predictor's own"
        self.key = _models.file_fingerprint(path)
        self.words = f"Predictor: {self.name}."
        domain = facts.get("domain")
        if None not in (domain, generator.domain) and domain != generator.domain:
            self.words += f" It was trained on {domain} pictures, {generator.name} draws {generator.domain}."

    def _load(self) -> InvertibilityNet:
        """Raises GeneratorMismatchError where the network was made for other spaces than the generator has."""
        loaded = load_model(self.place, architecture="sam-invertibility", check_interrupt=check_interrupt)
        network: InvertibilityNet = loaded.module  # type: ignore[assignment]
        side = self.generator.generator.resolution
        own, spaces = latent_spaces(side), network.spaces
        if not set(spaces) <= set(own):
            raise GeneratorMismatchError(
                f"Predictor {self.name} was made for the latent spaces {', '.join(spaces)}; generator "
                f"{self.generator.name} ({side} px) has {', '.join(own)}. Choose a predictor made for this generator, or "
                f"method {_MEASURE!r}."
            )
        return network

    @contextmanager
    def prepared(self) -> Iterator[Callable[[Inversion, _Frame, _Step], dict[str, Tensor]]]:
        """A function from an image to space -> errors [1, 1, h, w], while the network lies on the device."""
        network = self._load()
        with on_device([], [network], _BYTES) as (device, loaded), torch.no_grad():

            def errors(one: Inversion, frame: _Frame, step: _Step) -> dict[str, Tensor]:
                return with_room(lambda: network(frame.small(one.image).to(device)), loaded)

            yield errors


class _Measuring:
    """Errors of a short inversion in each space."""

    def __init__(self, name: str, steps: int, seed: int, generator: GeneratorWire, why: str) -> None:
        self.distance = distance_named(name, ("lpips-vgg",))
        called = self.distance.name
        self.generator = generator
        self.config = measuring_config(called, steps=steps, seed=seed)
        self.each = steps * len(latent_spaces(generator.generator.resolution))
        self.tau, self.tau_words = measured_tau(called), f"usual for {called}"
        self.key = f"{self.config} {called}"
        self.words = f"{why} {steps} steps in each space. {distance_words(self.distance, name)}"

    @contextmanager
    def prepared(self) -> Iterator[Callable[[Inversion, _Frame, _Step], dict[str, Tensor]]]:
        """A function from an image to space -> errors [1, 1, h, w], while the generator lies on the device."""
        memory = GRADIENT_COPIES * self.generator.activation_bytes
        helpers = modules_of([self.distance])
        with on_device([self.generator.network], helpers, memory) as (device, loaded), optimising():
            network = differentiable(self.generator.generator)

            def measured(one: Inversion, step: _Step) -> dict[str, Tensor]:
                image, code = (value.detach().clone().to(device) for value in (one.image, one.w_plus))
                return measure_errors(
                    image,
                    network,
                    None,
                    self.config,
                    start=code,
                    distance=self.distance,
                    progress=lambda made, _, preview: step(made, preview),
                )

            def errors(one: Inversion, frame: _Frame, step: _Step) -> dict[str, Tensor]:
                found = with_room(lambda: measured(one, step), loaded)
                return {space: area_pool(frame.cut(error), frame.size) for space, error in found.items()}

            yield errors


def _source(method: str, generator: GeneratorWire, distance: str, steps: int, seed: int) -> _Predictor | _Measuring:
    """What the widget names; with "automatic", what there is for this generator."""
    place: str | Path | None = None
    if method == AUTOMATIC:
        side = generator.generator.resolution
        place = _models.made_for(_KIND, generator.domain, generator.name, side, latent_spaces(side))
        why = f"No predictor for {generator.name} is on this machine, so errors were measured:"
    elif method == _MEASURE:
        why = "Errors were measured:"
    else:
        place = _models.resolve(method, _KIND)
    return _Measuring(distance, steps, seed, generator, why) if place is None else _Predictor(place, generator)


def _find(source: _Predictor | _Measuring, wire: InversionWire, frame: _Frame) -> tuple[_Errors, dict[int, str]]:
    """Space -> errors [B, 1, h, w] of each image, remembered or new; 0 for images that failed, and why these did."""
    inversion, report = wire.inversion, progress(source.each * len(wire.inversion))
    made: list[_Errors | None] = []
    failures: dict[int, str] = {}
    first_error: Exception | None = None
    with ExitStack() as stack:
        find: Callable[[Inversion, _Frame, _Step], dict[str, Tensor]] | None = None
        for index in range(len(inversion)):
            one, done = inversion[index], index * source.each

            def step(value: int, preview: Tensor | None, done: int = done) -> None:
                report(done + value, preview=preview)

            try:
                check_refinable(one)
                key = _hash(one, wire.generator.identity, source.key, str(frame))
                if key not in _memory:
                    find = find or stack.enter_context(source.prepared())
                    errors = find(one, frame, step)
                    _memory[key] = {space: error.detach().float().cpu() for space, error in errors.items()}
                _memory.move_to_end(key)
                made.append(_memory[key])
                while len(_memory) > _REMEMBERED:
                    _memory.popitem(last=False)
            except (NotFiniteError, InvalidInputError) as error:
                # A traceback would keep all tensors of the attempt alive.
                first_error = first_error or error.with_traceback(None)
                failures[index] = str(error)
                made.append(None)
            report(done + source.each)
    good = next((errors for errors in made if errors is not None), None)
    try:
        if good is None:
            raise first_error or InvalidInputError("Input 'inversion' holds no image: expected one or more.")
    finally:
        del first_error  # an error and the frame that it was raised in must not hold each other
    none = torch.zeros_like(next(iter(good.values())))
    joined = {space: torch.cat([none if maps is None else maps[space] for maps in made]) for space in good}
    return {space: maps.to(intermediate_device()) for space, maps in joined.items()}, failures


def _hash(one: Inversion, *more: str) -> str:
    """Of all that the errors of an image depend on."""
    found = hashlib.sha256("\n".join(more).encode())
    for tensor in (one.image, one.w_plus):
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _decided(
    inversion: Inversion,
    frame: _Frame,
    errors: _Errors,
    failures: Mapping[int, str],
    tau: float,
    segments: str,
    parser: FaceParser | None,
) -> LatentMap:
    """The map of each image; that of failed ones is W+ everywhere."""
    found: list[LatentMap] = []
    with on_device([], modules_of([parser]), _BYTES) as (device, loaded):

        def labels_of(index: int) -> Tensor:
            return _labels(inversion[index].image, frame, parser, device).to(intermediate_device())

        for index in range(len(inversion)):
            check_interrupt()
            own = {space: maps[index : index + 1] for space, maps in errors.items()}
            labels = None
            if segments != _PIXELS and index not in failures:
                labels = with_room(partial(labels_of, index), loaded)
            found.append(latent_map(own, labels, tau))
    return LatentMap(found[0].spaces, torch.cat([one.index for one in found]))


def _labels(image: Tensor, frame: _Frame, parser: FaceParser | None, device: torch.device) -> Tensor:
    """Segments [1, h, w] of a photograph [1, 3, R, R]."""
    if parser is None:
        return superpixels(frame.small(image))
    labels = face_segments(parse(parser, frame.cut(image).to(device)))
    return F.interpolate(labels[:, None].float(), size=frame.size, mode="nearest")[:, 0].long()


def _parser(segments: str, generator: GeneratorWire) -> FaceParser | None:
    if segments in (_SUPERPIXELS, _PIXELS):
        return None
    return find_face_parser(FACE_PARSER if segments == _FACE else AUTOMATIC, generator)


def _segment_words(segments: str, parser: FaceParser | None) -> str:
    """What a report says of the segments."""
    if segments == _PIXELS:
        return "Each pixel was decided alone."
    return f"Decided for each of the {'face parts' if parser is not None else 'superpixels'} as a whole."


def _report(wire: LatentMapWire, words: Sequence[str], failures: Mapping[int, str]) -> str:
    """One line on what was used, then one for each image."""
    shares = wire.latent_map.shares()
    lines = [" ".join(words)]
    for index in range(len(wire.latent_map)):
        if index in failures:
            lines.append(f"Image {index + 1}: {failures[index]} Nothing was predicted for it.")
            continue
        parts = ", ".join(f"{space} {float(share[index]):.0%}" for space, share in shares.items())
        means = ", ".join(f"{space} {float(maps[index].mean()):.3f}" for space, maps in wire.errors.items())
        lines.append(f"Image {index + 1}: {parts}. Mean error: {means}.")
    return "\n".join(lines)


def _positive(noted: Any) -> float | None:
    """A number of a header; None for what is none or not above 0."""
    try:
        value = float(noted)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
