"""The inversion methods by name, as `gan-inversion evaluate` runs them side by side.

A method is an entry of `METHODS`: a name, the models it cannot do without, and a function. `register` adds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from . import dhr
from .dhr import DhrConfig
from .discriminator import Discriminator
from .encoders import Encoder
from .errors import InvalidInputError
from .generator import Generator
from .imaging import area_pool
from .inversion import Inversion, ResidualTransfer, render
from .invertibility import TAU, InvertibilityNet, LatentMap, latent_map, out_of_domain
from .losses import LayeredDistance
from .multilayer import (
    MultilayerConfig,
    invert_multilayer,
    measure_errors,
    measured_tau,
    measuring_config,
    suited_config,
)
from .multilayer_encoder import MultilayerEncoder, encode_multilayer
from .projection import ProjectionConfig, project
from .refinement import Refinement
from .reganie import Reganie, rectify
from .samm import SEGMENTS, Samm, align
from .samm_image import ImageAlignmentConfig, align_image
from .superpixels import superpixels
from .tuning import NearPerfectConfig, PtiConfig, near_perfect, tune


@dataclass(frozen=True)
class Result:
    """What a method gives for a batch: inversions, and where it says that the generator cannot draw the photograph."""

    inversion: Inversion
    mask: Tensor | None = None  # [B, 1, H, W] in 0..1, 1 where out of domain, at any resolution


@dataclass(frozen=True)
class Context:
    """What a method may use."""

    generator: Generator
    models: Mapping[str, nn.Module] = field(default_factory=dict)  # by the names in `Method.needs` and `wants`
    steps: int | None = None  # of optimising methods; None is each method's own default
    seed: int = 0
    distance: LayeredDistance | None = None  # network features that the refining methods compare with
    warm_up: bool = False  # the result will be thrown away: make the fewest steps

    def steps_or(self, default: int) -> int:
        """Steps to make where the method's own default is `default`."""
        return 1 if self.warm_up else default if self.steps is None else self.steps


def _no_settings(context: Context) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Method:
    """One way to invert photographs.

    `run(images [B, 3, R, R], context)` gives a `Result` for the batch. It is called without gradients and switches
    them on itself where it optimises; it changes nothing it was given. `settings(context)` says what it does, as plain
    data for the report.
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[Tensor, Context], Result]
    wants: tuple[str, ...] = ()  # used where present
    compares: bool = False  # uses `Context.distance`
    settings: Callable[[Context], dict[str, Any]] = _no_settings


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Makes a method known to `find_methods`. Raises InvalidInputError for a name that is taken."""
    if method.name in METHODS:
        raise InvalidInputError(f"There is already an inversion method {method.name!r}: choose another name.")
    METHODS[method.name] = method
    return method


def find_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name, each once, in the order given. Raises InvalidInputError that lists the known ones."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        found = f"No method {unknown[0]!r}" if unknown else "No method named"
        raise InvalidInputError(f"{found}: expected some of {', '.join(METHODS)}.")
    return [METHODS[name] for name in dict.fromkeys(names)]


def _encoding(name: str, **settings: Any) -> Method:
    def run(images: Tensor, context: Context) -> Result:
        w_plus = context.models[name](images, generator=context.generator, **settings)
        return Result(Inversion(images, w_plus, context.generator, info={"method": name}))

    return Method(name, (name,), run, settings=lambda context: {"start": "average", **settings} if settings else {})


def _projection(name: str) -> Method:
    def config(context: Context) -> ProjectionConfig:
        return ProjectionConfig(space=name, steps=context.steps_or(ProjectionConfig.steps), seed=context.seed)

    def run(images: Tensor, context: Context) -> Result:
        encoder = context.models.get("e4e")
        start = None if encoder is None else encoder(images, generator=context.generator)
        return Result(project(images, context.generator, config(context), start=start))

    def settings(context: Context) -> dict[str, Any]:
        start = {"w": "mean of the rows of the e4e code", "w-plus": "e4e code"}[name]
        start = start if "e4e" in context.models else "average code"
        return {"start": start, "distance": "multiscale_distance", **dataclasses.asdict(config(context))}

    return Method(name, (), run, wants=("e4e",), settings=settings)


for _name in ("e4e", "psp"):
    register(_encoding(_name))
for _name in ("restyle-e4e", "restyle-psp"):
    register(_encoding(_name, iterations=5))
for _name in ("w", "w-plus"):
    register(_projection(_name))


# --- refinements, all of which start from e4e ---------------------------------------------------------------------------


def _start(images: Tensor, context: Context) -> Inversion:
    w_plus = context.models["e4e"](images, generator=context.generator)
    return Inversion(images, w_plus, context.generator, info={"method": "e4e"})


def _result(found: Refinement) -> Result:
    """The result of a batch; an image that failed is an error, so that it is named and not measured."""
    if found.failures:
        raise InvalidInputError(found.problems())
    return Result(found.inversion, found.out_of_domain)


def _distance(context: Context) -> LayeredDistance:
    if context.distance is None:
        raise InvalidInputError("This method compares network features: give the context a distance.")
    return context.distance


def _described(config: Any, distance: LayeredDistance | None = None, **more: Any) -> dict[str, Any]:
    named = {} if distance is None else {"distance": distance.name}
    return {"start": "e4e code", **named, **more, **dataclasses.asdict(config)}


def _dhr(name: str, **settings: Any) -> Method:
    def config(context: Context) -> DhrConfig:
        usual = DhrConfig(seed=context.seed, **settings)
        steps = context.steps_or(usual.steps)
        part = usual.weight_steps / usual.steps
        coarse = 1 if context.warm_up else usual.coarse_steps
        return dataclasses.replace(usual, steps=steps, weight_steps=round(part * steps), coarse_steps=coarse)

    def run(images: Tensor, context: Context) -> Result:
        parser: Any = context.models.get("bisenet")
        found = dhr.refine(_start(images, context), _distance(context), config(context), parser=parser)
        return _result(found)

    def described(context: Context) -> dict[str, Any]:
        parser = "bisenet" if "bisenet" in context.models else "none: superpixels alone"
        return _described(config(context), _distance(context), face_parser=parser)

    return Method(name, ("e4e",), run, wants=("bisenet",), compares=True, settings=described)


def _pti() -> Method:
    def config(context: Context) -> PtiConfig:
        return PtiConfig(steps=context.steps_or(PtiConfig.steps), seed=context.seed)

    def run(images: Tensor, context: Context) -> Result:
        return _result(tune(_start(images, context), _distance(context), config(context)))

    def described(context: Context) -> dict[str, Any]:
        return _described(config(context), _distance(context))

    return Method("pti", ("e4e",), run, compares=True, settings=described)


def _near_perfect() -> Method:
    judge = "stylegan2-discriminator"

    def config(context: Context) -> NearPerfectConfig:
        return NearPerfectConfig(steps=context.steps_or(NearPerfectConfig.steps), seed=context.seed)

    def run(images: Tensor, context: Context) -> Result:
        discriminator = context.models[judge]
        assert isinstance(discriminator, Discriminator)
        return _result(near_perfect(_start(images, context), discriminator, config(context)))

    return Method("near-perfect", ("e4e", judge), run, settings=lambda context: _described(config(context)))


def _samm(name: str, iterations: int = 2, warp: bool = True, segments: bool = False) -> Method:
    def run(images: Tensor, context: Context) -> Result:
        network, encoder = context.models["samm"], context.models["e4e"]
        assert isinstance(network, Samm) and isinstance(encoder, Encoder)
        labels = superpixels(images, SEGMENTS) if segments else None
        found = align(_start(images, context), encoder, network, segments=labels, iterations=iterations, warp=warp)
        return Result(found.inversion, found.mask)

    def described(context: Context) -> dict[str, Any]:
        edges = "superpixels" if segments else "soft"
        passes = {"iterations": iterations, "warp": warp, "mask_threshold": 0.0, "edges": edges}
        return {"start": "e4e code", "features": "e4e", **passes}

    return Method(name, ("e4e", "samm"), run, settings=described)


def _samm_image(name: str, warp: bool = True, segments: bool = False) -> Method:
    def config(context: Context) -> ImageAlignmentConfig:
        return ImageAlignmentConfig(steps=context.steps_or(ImageAlignmentConfig.steps), seed=context.seed)

    def run(images: Tensor, context: Context) -> Result:
        labels = superpixels(images, SEGMENTS) if segments else None
        start = _start(images, context)
        found = align_image(start, config(context), distance=_distance(context), warp=warp, segments=labels)
        return Result(found.inversion, found.mask)

    def described(context: Context) -> dict[str, Any]:
        # The distance's weight goes by the same name.
        weight = {"distance_weight": ImageAlignmentConfig.distance}
        edges = {"warp": warp, "edges": "superpixels" if segments else "soft"}
        return {**_described(config(context)), "distance": _distance(context).name, **weight, **edges}

    return Method(name, ("e4e",), run, compares=True, settings=described)


_PREDICTED_AT = 256  # px: what the published predictors were trained on
_MEASURING_STEPS = 100
_PREDICTOR, _SAM_ENCODER = "sam-invertibility", "sam-encoder"


def _predicted_map(images: Tensor, predictor: nn.Module) -> LatentMap:
    """By superpixels, with the predictor's own threshold."""
    assert isinstance(predictor, InvertibilityNet)
    small = area_pool(images, min(_PREDICTED_AT, images.shape[3]))
    return latent_map(predictor(small), superpixels(small), predictor.config.tau)


def _sam() -> Method:
    def config(context: Context) -> MultilayerConfig:
        steps = context.steps_or(MultilayerConfig.steps)
        return suited_config(_distance(context).name, steps=steps, seed=context.seed)

    def measuring(context: Context) -> MultilayerConfig:
        steps = min(context.steps_or(_MEASURING_STEPS), _MEASURING_STEPS)
        return measuring_config(_distance(context).name, steps=steps, seed=context.seed)

    def run(images: Tensor, context: Context) -> Result:
        code, distance = _start(images, context).w_plus, _distance(context)
        predictor = context.models.get(_PREDICTOR)
        if predictor is not None:
            where = _predicted_map(images, predictor)
        else:
            options: dict[str, Any] = {"start": code, "distance": distance}
            errors = measure_errors(images, context.generator, config=measuring(context), **options)
            where = latent_map(errors, superpixels(images), measured_tau(distance.name))
        found = invert_multilayer(images, context.generator, where, config(context), start=code, distance=distance)
        return Result(found, out_of_domain(where))

    def described(context: Context) -> dict[str, Any]:
        predictor = context.models.get(_PREDICTOR)
        errors: dict[str, Any] = {"errors": _PREDICTOR}
        if predictor is None:
            errors = {
                "errors": "measured",
                "measuring_steps": measuring(context).steps,
                "tau": measured_tau(_distance(context).name),
            }
        elif isinstance(predictor, InvertibilityNet):
            errors["tau"] = predictor.config.tau
        return _described(config(context), _distance(context), **errors, segments="superpixels")

    return Method("sam", ("e4e",), run, wants=(_PREDICTOR,), compares=True, settings=described)


def _sam_encoder() -> Method:
    def run(images: Tensor, context: Context) -> Result:
        network = context.models[_SAM_ENCODER]
        assert isinstance(network, MultilayerEncoder)
        where = _predicted_map(images, context.models[_PREDICTOR])
        return Result(encode_multilayer(_start(images, context), where, network), out_of_domain(where))

    def described(context: Context) -> dict[str, Any]:
        tau = getattr(getattr(context.models.get(_PREDICTOR), "config", None), "tau", TAU)
        return {"start": "e4e code", "errors": _PREDICTOR, "tau": tau, "segments": "superpixels"}

    return Method(_SAM_ENCODER, ("e4e", _PREDICTOR, _SAM_ENCODER), run, settings=described)


def _reganie() -> Method:
    def run(images: Tensor, context: Context) -> Result:
        network = context.models["reganie"]
        assert isinstance(network, Reganie)
        return Result(rectify(_start(images, context), network))

    def described(context: Context) -> dict[str, Any]:
        network = context.models.get("reganie")
        size = {"network_resolution": network.config.resolution} if isinstance(network, Reganie) else {}
        return {"start": "e4e code", "strength": 1.0, **size}

    return Method("reganie", ("e4e", "reganie"), run, settings=described)


def _residual_transfer() -> Method:
    """What a rectifier has to beat under an edit: what the inversion misses, moved nowhere. Exact without an edit."""

    def run(images: Tensor, context: Context) -> Result:
        start = _start(images, context)
        return Result(start.with_modulation(ResidualTransfer(images.new_ones(len(images), 1, *images.shape[2:]))))

    def described(context: Context) -> dict[str, Any]:
        role = "baseline: adds the photograph minus its unedited inversion"
        return {"start": "e4e code", "strength": 1.0, "role": role}

    return Method("residual-transfer", ("e4e",), run, settings=described)


def _error_threshold() -> Method:
    """What a segmentation has to beat: out of domain is where the mean absolute error of e4e is large."""
    largest = 0.275  # best IoU on occluded photographs of training people, docs/refinement.md

    def run(images: Tensor, context: Context) -> Result:
        start = _start(images, context)
        error = (render(start) - images).abs().mean(dim=1, keepdim=True)
        return Result(start, (error >= largest).to(images.dtype))

    return Method(
        "error-threshold", ("e4e",), run, settings=lambda context: {"start": "e4e code", "threshold": largest}
    )


register(_error_threshold())
register(_dhr("dhr"))
register(_dhr("dhr-keep", keep_pixels=True))  # with the photograph's own pixels where it is out of domain
register(_pti())
register(_near_perfect())
register(_samm("samm"))
register(_samm("samm-1", iterations=1))
register(_samm("samm-3", iterations=3))
register(_samm("samm-blend-only", warp=False))  # the paper's "skip SA": the same masks, flows left out
register(_samm("samm-segments", segments=True))  # masks decided by superpixels, as the node can
register(_samm_image("samm-image"))
register(_samm_image("samm-image-no-warp", warp=False))  # the ablation again, optimised without flows
register(_samm_image("samm-image-segments", segments=True))
register(_sam())
register(_sam_encoder())
register(_reganie())
register(_residual_transfer())
