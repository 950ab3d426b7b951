"""What the optimising refinements (DHR, PTI, near-perfect inversion) share: their loop, the weights they tune, batches.

A refinement never changes the generator. It optimises the tensors of a modulation (weight offsets, features) that starts
without effect, drawing through `render` like everything else, so it also works on an inversion that is refined already.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import InvalidInputError, NotFiniteError
from .generator import Generator
from .inversion import Inversion, Modulation, WeightOffset

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, Tensor | None], None]  # step, steps, preview [1, 3, H, W] every few steps

_ONE_COLOUR = 1e-4  # largest spread of values at which a picture counts as one flat colour
_FLOAT16_MAX = 65504.0
_USUAL_CHANNELS = 512  # of the generators that the published rates were made for


class StopOptimisation(Exception):
    """Raised by a progress callback to end an optimisation now and keep the best found so far."""


class Steps:
    """The steps of an optimisation: until the last one, the end of its time, or `StopOptimisation` from the callback.

    Iterate over it and call `done` at the end of each step. Other exceptions of the callback pass through.
    """

    def __init__(
        self, count: int, progress: Progress | None = None, *, seconds: float | None = None, preview_every: int = 10
    ) -> None:
        self.count, self.progress, self.seconds, self.preview_every = count, progress, seconds, preview_every
        self.made = 0
        self._ended = False

    def __iter__(self) -> Iterator[int]:
        end = math.inf if self.seconds is None else time.monotonic() + self.seconds
        for step in range(self.count):
            yield step
            if self._ended or time.monotonic() >= end:
                break

    def done(self, drawn: Tensor | None = None) -> None:
        """A step is made; `drawn` [B, 3, H, W] is shown every few steps."""
        self.made += 1
        if self.progress is None:
            return
        shown = drawn is not None and ((self.made - 1) % self.preview_every == 0 or self.made == self.count)
        try:
            self.progress(self.made, self.count, drawn[:1].detach() if shown and drawn is not None else None)
        except StopOptimisation:
            self.end()

    def end(self) -> None:
        """Makes this step the last one."""
        self._ended = True


class Best:
    """Copies of some tensors from when the loss was lowest."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.live = dict(tensors)
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.loss = math.inf

    @torch.no_grad()
    def offer(self, loss: Tensor) -> None:
        """Keeps the tensors as they are now if `loss` [] is the lowest yet. Raises NotFiniteError for NaN or infinity."""
        value = float(loss)
        if not math.isfinite(value):
            raise NotFiniteError(
                f"The optimisation diverged (its loss became {value}). Use a lower learning rate, or check the picture."
            )
        if value < self.loss:
            self.loss = value
            for name, tensor in self.live.items():
                self.values[name].copy_(tensor)


def after(progress: Progress | None, done: int) -> Progress | None:
    """The same callback for a part of the work that begins when `done` steps are made."""
    if progress is None:
        return None
    return lambda step, steps, preview: progress(done + step, done + steps, preview)


def rate_scale(generator: Generator) -> float:
    """By how much rates made for 512 channels grow for a narrower generator, so that a step changes the picture as much.

    Adam moves every weight alike, and a layer's output adds up over its inputs: with equalised learning rate it moves by
    the rate times the root of their number.
    """
    return max(1.0, math.sqrt(_USUAL_CHANNELS / max(generator.config.channels)))


def weight_leaves(generator: Generator) -> dict[str, Tensor]:
    """Offsets of zero to every synthesis parameter, [1, ...] each, to optimise; see `WeightOffset`."""
    return {
        name: torch.zeros_like(parameter)[None].requires_grad_(True)
        for name, parameter in generator.synthesis.named_parameters()
    }


def compact(offsets: Mapping[str, Tensor]) -> WeightOffset:
    """The offsets [1, ...] that are not zero, in float16: what an inversion keeps and saves.

    Raises NotFiniteError for offsets beyond the range of float16: no picture comes out of such weights.
    """
    changed = {name: offset.detach() for name, offset in offsets.items() if bool(offset.detach().any())}
    return WeightOffset({name: to_float16(offset, f"tuned weight {name}") for name, offset in changed.items()})


def to_float16(tensor: Tensor, what: str) -> Tensor:
    """The tensor in float16. Raises NotFiniteError, which says `what`, for values beyond its range, NaN among them."""
    if not bool((tensor.abs() <= _FLOAT16_MAX).all()):
        raise NotFiniteError(f"The {what} is out of bounds: use a lower learning rate.")
    return tensor.half()


def add_gradients(loss: Tensor, variables: Mapping[str, Tensor]) -> None:
    """Adds the gradient of `loss` to the variables', and to nothing else's."""
    loss.backward(inputs=list(variables.values()))


@dataclass(frozen=True)
class Refinement:
    """What refining a batch gave."""

    inversion: Inversion  # all images; those that failed are as they were before
    failures: Mapping[int, str] = field(default_factory=dict)  # index in the batch -> what is wrong with that image
    steps: tuple[int, ...] = ()  # made for each image
    out_of_domain: Tensor | None = None  # [B, 1, R, R], where the method says that the generator cannot draw

    def problems(self) -> str:
        """The failures in words; empty where there are none."""
        return " ".join(f"Image {index + 1}: {why}" for index, why in self.failures.items())


@dataclass(frozen=True)
class Refined:
    """What refining one image gave."""

    inversion: Inversion  # of batch 1: the one given with further modulations, perhaps another w_plus
    steps: int
    out_of_domain: Tensor | None = None  # [1, 1, R, R]


RefineOne = Callable[[Inversion, int, Progress | None], Refined]  # inversion of batch 1, its index, progress


def refine_each(inversion: Inversion, refine: RefineOne, steps: int, progress: Progress | None = None) -> Refinement:
    """Refines the images of a batch one after another, so that memory does not grow with the batch.

    Args:
        inversion: the batch; nothing of it is changed. Each image is brought to the generator's device only while it is
            refined.
        refine: called with each image's inversion outside inference mode, with gradients switched on.
        steps: at most made for each image, for the progress of the batch.
        progress: called after every step with (steps done, steps in all, preview or None). `StopOptimisation` ends the
            image at hand, in whatever part of its work; what else it raises ends all, whatever it is.

    Returns:
        One inversion with the modulations that `refine` added. Images for which it raised NotFiniteError or
        InvalidInputError keep their inversion and are named in `failures`.

    Raises:
        NotFiniteError, InvalidInputError: of the first image, where all failed.
    """
    images: list[Refined | None] = []
    failures: dict[int, str] = {}
    first_error: NotFiniteError | InvalidInputError | None = None
    total = steps * len(inversion)
    for index in range(len(inversion)):
        report = None if progress is None else _Report(progress, index * steps, total)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                one = _owned(inversion[index], inversion.generator.w_avg.device)
                check_refinable(one)
                images.append(_back(refine(one, index, report), inversion.w_plus.device))
        except (NotFiniteError, InvalidInputError) as error:
            if report is not None and report.failed:
                raise
            # A traceback would keep all tensors of the attempt alive.
            first_error = first_error or error.with_traceback(None)
            failures[index] = str(error)
            images.append(None)
            logger.warning("Image %d of %d was not refined: %s", index + 1, len(inversion), error)
    try:
        if first_error is not None and len(failures) == len(inversion):
            raise first_error
    finally:
        del first_error  # an error and the frame that it was raised in must not hold each other
    return Refinement(
        _join(inversion, images),
        failures,
        tuple(0 if image is None else image.steps for image in images),
        _masks(inversion, images),
    )


class _Report:
    """The callback of one image, which counts on through the batch."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.before, self.total = progress, done, total
        self.stopped = False
        self.failed = False  # by something the callback raised

    def __call__(self, step: int, steps: int, preview: Tensor | None) -> None:
        if self.stopped:  # in an earlier part of this image's work
            raise StopOptimisation
        try:
            self.progress(self.before + step, self.total, preview)
        except StopOptimisation:
            self.stopped = True
            raise
        except Exception:
            self.failed = True
            raise


def check_refinable(inversion: Inversion) -> None:
    """Raises NotFiniteError or InvalidInputError for a picture that no optimisation can make anything of."""
    if not bool(torch.isfinite(inversion.image).all()):
        raise NotFiniteError("The picture holds NaN or infinity: expected values in [-1, 1]. Check what made it.")
    if not bool(torch.isfinite(inversion.w_plus).all()):
        raise NotFiniteError("The code holds NaN or infinity: expected finite numbers. Check the encoder's input.")
    spread = inversion.image.amax(dim=(2, 3)) - inversion.image.amin(dim=(2, 3))
    if float(spread.max()) <= _ONE_COLOUR:
        raise InvalidInputError("The picture is one flat colour: expected a photograph. Check what made it.")


def check_settings(**values: tuple[float | None, float]) -> None:
    """Raises InvalidInputError naming the first setting that is not finite or below its minimum: name=(value, minimum)."""
    for name, (value, least) in values.items():
        if value is not None and not (math.isfinite(value) and value >= least):
            raise InvalidInputError(f"{name} {value}: expected a finite number of at least {least:g}.")


def _owned(inversion: Inversion, device: torch.device) -> Inversion:
    """A copy on a device whose tensors may take part in an optimisation, whatever mode they were made in."""
    inversion = inversion.to(device)
    return dataclasses.replace(
        inversion,
        image=inversion.image.detach().clone(),
        w_plus=inversion.w_plus.detach().clone(),
        modulations=tuple(m.map_tensors(lambda t: t.detach().clone()) for m in inversion.modulations),
    )


def _back(refined: Refined, device: torch.device) -> Refined:
    """The same on the device where the batch lies."""
    mask = refined.out_of_domain
    return Refined(refined.inversion.to(device), refined.steps, None if mask is None else mask.to(device))


def _join(before: Inversion, images: Sequence[Refined | None]) -> Inversion:
    """The batch with each image's own further modulations; those of failed images have no effect."""
    refined = [image.inversion for image in images if image is not None]
    kept = len(before.modulations)
    # Not all images got the same kinds: one without anything out of domain has no features to override.
    own = [_by_kind(() if image is None else image.inversion.modulations[kept:]) for image in images]
    longest = max(own, key=len)
    places = list(longest)
    places += dict.fromkeys(place for some in own for place in some if place not in places)
    added = [_stack([some.get(place) for some in own]) for place in places]
    codes = [before.w_plus[i : i + 1] if image is None else image.inversion.w_plus for i, image in enumerate(images)]
    info = {**before.info, **refined[0].info}
    return dataclasses.replace(
        before,
        w_plus=torch.cat([code.detach() for code in codes]),
        modulations=(*before.modulations, *added),
        info=info,
    )


def _by_kind(modulations: Sequence[Modulation]) -> dict[tuple[str, int], Modulation]:
    """(kind, how many of it came before) -> modulation, in their order."""
    found: dict[tuple[str, int], Modulation] = {}
    for modulation in modulations:
        found[modulation.kind, sum(kind == modulation.kind for kind, _ in found)] = modulation
    return found


def _stack(modulations: Sequence[Modulation | None]) -> Modulation:
    """One modulation of a batch from those of its images; None has no effect."""
    first = next(m for m in modulations if m is not None)
    idle = first.without_effect()
    return type(first).batch([idle if m is None else m for m in modulations])


def _masks(before: Inversion, images: Sequence[Refined | None]) -> Tensor | None:
    found = [image.out_of_domain for image in images if image is not None]
    if not found or any(mask is None for mask in found):
        return None
    side = before.generator.resolution
    none = before.image.new_zeros(1, 1, side, side)
    masks: Iterable[Tensor] = (
        none if image is None or image.out_of_domain is None else image.out_of_domain.to(none) for image in images
    )
    return torch.cat(list(masks))
