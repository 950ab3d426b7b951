"""The one idea of this library: an inversion is a w_plus code plus a stack of modulations, drawn by one renderer.

Every method adds one kind of modulation (weights, features, flows, pixels) and never changes what it was given.
Encode once, edit many times: `render` runs the synthesis network and nothing that encodes or optimises.

Order inside a render: weight offsets -> features between and inside blocks -> pixels, each kind in list order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import CropTransform
from .editing import Edit
from .errors import GeneratorMismatchError, InvalidInputError
from .files import replacing
from .fingerprint import fingerprint
from .generator import FeatureHook, Generator, Noise, SynthesisHooks

FORMAT = "gan-inversion/inversion"
FORMAT_VERSION = 1


class Modulation:
    """Something that changes a render without changing the generator. Subclasses are frozen dataclasses.

    Tensor fields have the batch first; `dict` fields hold such tensors by name. Plain fields must survive JSON.
    """

    kind: ClassVar[str]
    registry: ClassVar[dict[str, type[Modulation]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Modulation.registry[cls.kind] = cls

    def weight_offsets(self) -> Mapping[str, Tensor]:
        """Synthesis parameter name -> [B, ...] to add to it."""
        return {}

    def hooks(self, context: RenderContext) -> SynthesisHooks:
        """Changes to features."""
        return SynthesisHooks()

    def finish(self, image: Tensor, context: RenderContext, position: int) -> Tensor:
        """Changes to the drawn image [B, 3, H, W]; `position` is the modulation's own in the inversion's list."""
        return image

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Modulation:
        """The same modulation with every tensor replaced by function(tensor)."""
        changed: dict[str, Any] = {}
        for name, value in _fields(self).items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
            elif isinstance(value, dict):
                changed[name] = {key: function(tensor) for key, tensor in value.items()}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def without_effect(self) -> Modulation:
        """The same modulation with values that change nothing: for the images of a batch that have none."""
        return self.map_tensors(torch.zeros_like)

    @classmethod
    def batch(cls, modulations: Sequence[Modulation]) -> Modulation:
        """One modulation from several of this class, whose tensors are put one after another along the batch."""
        joined: dict[str, Any] = {}
        for name, value in _fields(modulations[0]).items():
            values = [getattr(modulation, name) for modulation in modulations]
            if isinstance(value, Tensor):
                joined[name] = torch.cat(values)
            elif isinstance(value, dict):
                joined[name] = {key: torch.cat([v[key] for v in values]) for key in value}
        return dataclasses.replace(modulations[0], **joined)  # type: ignore[type-var]


@dataclass(frozen=True)
class WeightOffset(Modulation):
    """Tuned generator weights minus the base weights, for named synthesis parameters (PTI, near-perfect, DHR)."""

    kind: ClassVar[str] = "weight-offset"
    offsets: dict[str, Tensor]  # name -> [B, ...]; float16 is enough and halves the file

    def weight_offsets(self) -> Mapping[str, Tensor]:
        return self.offsets

    @classmethod
    def batch(cls, modulations: Sequence[Modulation]) -> Modulation:
        """As for all; a parameter that some of them leave alone has an offset of zero there."""
        shapes = {name: tensor for m in modulations for name, tensor in m.weight_offsets().items()}
        rows = {n: [m.weight_offsets().get(n, torch.zeros_like(t)) for m in modulations] for n, t in shapes.items()}
        return cls({name: torch.cat(tensors) for name, tensors in rows.items()})


@dataclass(frozen=True)
class FeatureOffset(Modulation):
    """Adds an offset to the features that leave a block, inside a region (SAM, section "multilayer").

    Under an edit the region keeps its unedited features, so that the edit acts only on what lies behind this layer.
    Upstream, an edit of no strength changes the picture where the mask is soft (the offset counts with the mask squared
    there); here it counts once, edited or not. The same where the mask is 0 or 1.
    """

    kind: ClassVar[str] = "feature-offset"
    resolution: int
    offset: Tensor  # [B, C, r, r]
    mask: Tensor  # [B, 1, r, r], 1 inside the region

    def hooks(self, context: RenderContext) -> SynthesisHooks:
        def change(x: Tensor) -> Tensor:
            if context.edited:
                kept = context.unedited_features(f"block{self.resolution}")
                added = self.offset * self.mask
                return torch.lerp(x, kept - added, self.mask) + added
            return x + self.offset * self.mask

        return SynthesisHooks(after_block={self.resolution: change})


@dataclass(frozen=True)
class FeatureOverride(Modulation):
    """Replaces the features that leave a block outside the in-domain mask, edited or not (DHR)."""

    kind: ClassVar[str] = "feature-override"
    resolution: int
    features: Tensor  # [B, C, r, r]; float16 is enough and halves the file
    in_domain: Tensor  # [B, 1, r, r], 1 where the generator's own features stay

    def hooks(self, context: RenderContext) -> SynthesisHooks:
        def change(x: Tensor) -> Tensor:
            return torch.lerp(self.features.to(x.dtype), x, self.in_domain.to(x.dtype))

        return SynthesisHooks(after_block={self.resolution: change})

    def without_effect(self) -> Modulation:
        return dataclasses.replace(self, in_domain=torch.ones_like(self.in_domain))


@dataclass(frozen=True)
class FeatureWarp(Modulation):
    """Moves the up-convolution's output by a flow where a mask says so, before noise and bias (SAMM).

    See `warp_features` for a trap in the sampling grid.
    """

    kind: ClassVar[str] = "feature-warp"
    resolution: int
    flow: Tensor  # [B, 2, r, r], (x, y) in normalised grid units
    mask: Tensor  # [B, 1, r, r]

    def hooks(self, context: RenderContext) -> SynthesisHooks:
        def change(x: Tensor) -> Tensor:
            warped = warp_features(x, self.flow)
            return torch.lerp(x, warped, self.mask)

        return SynthesisHooks(after_upconv={self.resolution: change})


def warp_features(x: Tensor, flow: Tensor) -> Tensor:
    """Samples x [B, C, r, r] at the flow [B, 2, r, r] (x, y) in normalised units; zeros outside.

    The grid spans linspace(-1, 1, r) while align_corners is False, so that no flow at all already zooms slightly and
    halves the rim: part of SAMM's reference implementation.
    """
    line = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    y, xs = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack((xs, y), dim=-1) + flow.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class ResidualTransfer(Modulation):
    """Adds what the inversion misses (photograph minus unedited render) to the edited render, moved nowhere.

    The plain baseline of a rectifier: exact without an edit, and sharp under small edits; ghosts where the edit moves
    edges. `strength` 0..1 and a mask say how much and where.
    """

    kind: ClassVar[str] = "residual-transfer"
    mask: Tensor  # [B, 1, H, W], 1 where the residual is added
    strength: float = 1.0

    def finish(self, image: Tensor, context: RenderContext, position: int) -> Tensor:
        residual = context.inversion.image - context.unedited_image(position)
        # Selected where nothing is added: exact, also beside a photograph that holds NaN.
        return torch.where(self.mask <= 0, image, image + self.strength * self.mask * residual)


@dataclass(frozen=True)
class PixelBlend(Modulation):
    """Keeps the photograph's pixels: mask * photograph + (1 - mask) * image (SAMM's last step)."""

    kind: ClassVar[str] = "pixel-blend"
    mask: Tensor  # [B, 1, H, W], 1 where the photograph stays
    made_by: str = ""  # the method that added it, so that a second run replaces it

    def finish(self, image: Tensor, context: RenderContext, position: int) -> Tensor:
        source = context.inversion.image
        mixed = torch.lerp(image, source, self.mask)
        # Selected, not computed, where the mask is 0 or 1: exact, also beside a photograph that holds NaN.
        return torch.where(self.mask >= 1, source, torch.where(self.mask <= 0, image, mixed))


@dataclass(frozen=True)
class Inversion:
    """A photograph in terms of a generator. Immutable; refining steps return new ones."""

    image: Tensor  # [B, 3, H, W] in [-1, 1], the aligned photograph at the generator's size
    w_plus: Tensor  # [B, num_ws, w_dim]
    generator: Generator
    modulations: tuple[Modulation, ...] = ()
    crops: tuple[CropTransform | None, ...] = ()  # where each image was cut from; empty is unknown
    info: Mapping[str, str] = field(default_factory=dict)  # how it was made, for people to read

    def __post_init__(self) -> None:
        g = self.generator
        expected = (len(self.image), g.num_ws, g.config.w_dim)
        if tuple(self.w_plus.shape) != expected:
            raise InvalidInputError(
                f"Inversion with w_plus of shape {tuple(self.w_plus.shape)} for {len(self.image)} image(s): "
                f"this generator takes {list(expected)}."
            )
        if tuple(self.image.shape[1:]) != (3, g.resolution, g.resolution):
            raise InvalidInputError(
                f"Inversion with an image of shape {tuple(self.image.shape)}: expected "
                f"[batch, 3, {g.resolution}, {g.resolution}], the generator's size."
            )
        if not self.image.is_floating_point():
            raise InvalidInputError(f"Inversion with a {self.image.dtype} image: expected floating point in [-1, 1].")
        if self.crops and len(self.crops) != len(self.image):
            raise InvalidInputError(f"{len(self.crops)} crop transforms for {len(self.image)} image(s).")

    def __len__(self) -> int:
        return len(self.w_plus)

    def __getitem__(self, index: int) -> Inversion:
        """One image of the batch, as an inversion of batch 1."""
        index = range(len(self))[index]
        rows = slice(index, index + 1)
        return dataclasses.replace(
            self,
            image=self.image[rows],
            w_plus=self.w_plus[rows],
            crops=self.crops[rows],
            modulations=tuple(m.map_tensors(lambda t: t[rows] if len(t) > 1 else t) for m in self.modulations),
        )

    def with_modulation(self, modulation: Modulation) -> Inversion:
        """A new inversion with one more modulation."""
        return dataclasses.replace(self, modulations=(*self.modulations, modulation))

    def to(self, device: torch.device | str) -> Inversion:
        """Copy on a device; the generator is expected to be moved by its owner."""
        return dataclasses.replace(
            self,
            image=self.image.to(device),
            w_plus=self.w_plus.to(device),
            modulations=tuple(m.map_tensors(lambda t: t.to(device)) for m in self.modulations),
        )

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file; `load` renders the same image from it.

        The generator is not in the file, only its fingerprint. Raises InvalidInputError for a path that cannot be a file.
        """
        from safetensors.torch import save_file

        tensors = {"image": self.image, "w_plus": self.w_plus}
        described = []
        for index, modulation in enumerate(self.modulations):
            plain: dict[str, Any] = {}
            for name, value in _fields(modulation).items():
                if isinstance(value, Tensor):
                    tensors[f"modulations.{index}.{name}"] = value
                elif isinstance(value, dict):
                    plain[name] = list(value)
                    tensors.update({f"modulations.{index}.{name}.{key}": tensor for key, tensor in value.items()})
                else:
                    plain[name] = value
            described.append({"kind": modulation.kind, "settings": plain})
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "generator": fingerprint(self.generator),
            "resolution": str(self.generator.resolution),
            "modulations": json.dumps(described),
            "crops": json.dumps([crop.to_dict() if crop else None for crop in self.crops]),
            "info": json.dumps(dict(self.info)),
        }
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            save_file(contiguous, temporary, metadata=metadata)
        return Path(path)

    @staticmethod
    def load(path: str | Path, generator: Generator) -> Inversion:
        """Reads a file written by `save`.

        Raises:
            ModelNotFoundError: no such file.
            CorruptFileError: not such a file, or a damaged one; the message says what is wrong.
            GeneratorMismatchError: it was made with another generator.
        """
        from .inversion_reading import read_inversion

        return read_inversion(path, generator)


def _fields(modulation: Modulation) -> dict[str, Any]:
    return {f.name: getattr(modulation, f.name) for f in dataclasses.fields(modulation)}  # type: ignore[arg-type]


class RenderContext:
    """What a modulation may ask for during one render."""

    def __init__(self, inversion: Inversion, edit: Edit | None, noise: Noise, dtype: torch.dtype) -> None:
        self.inversion, self.edit, self.noise, self.dtype = inversion, edit, noise, dtype
        self.edited = edit is not None and bool(edit.terms)
        self._features: dict[str, Tensor] | None = None

    def unedited_features(self, tap: str) -> Tensor:
        """Features of the unedited inversion at a tap of `SynthesisNetwork.forward`, drawn once."""
        if self._features is None:
            self._features = {}
            _synthesize(self.inversion, None, self.noise, self.dtype, taps=self._features)
        return self._features[tap]

    def unedited_image(self, position: int) -> Tensor:
        """The unedited picture that the modulation at `position` gets: with all weights and features, as in every render,
        and what finishes pictures before it."""
        kept = tuple(
            modulation
            for index, modulation in enumerate(self.inversion.modulations)
            if index < position or type(modulation).finish is Modulation.finish
        )
        earlier = dataclasses.replace(self.inversion, modulations=kept)
        return render(earlier, noise=self.noise, dtype=self.dtype)


def render(
    inversion: Inversion,
    edit: Edit | None = None,
    *,
    noise: Noise = "const",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws an inversion, edited or not.

    Args:
        inversion: what to draw.
        edit: W+ and style-space offsets; None draws the photograph's own code.
        noise: as in `SynthesisNetwork.forward`; random maps are drawn once and serve every pass of this render.
        generator: CPU random generator for noise "random".
        dtype: of the convolutions.

    Returns:
        [B, 3, H, W], float32, nominal range [-1, 1], not clamped.

    Raises:
        InvalidInputError: strengths that are no numbers or do not fit the batch.
        GeneratorMismatchError: an edit or a modulation made for another generator's shapes.
    """
    if isinstance(noise, str) and noise == "random":
        noise = inversion.generator.synthesis.random_noise(len(inversion), generator)
    if len(inversion) > 1 and any(len(t) > 1 for m in inversion.modulations for t in m.weight_offsets().values()):
        # Each image has weights of its own: one pass each.
        edits = [edit and edit.of_image(index, len(inversion)) for index in range(len(inversion))]
        noises = [_noise_of(noise, index) for index in range(len(inversion))]
        images = zip(edits, noises, strict=True)
        return torch.cat([render(inversion[i], e, noise=n, dtype=dtype) for i, (e, n) in enumerate(images)])
    context = RenderContext(inversion, edit, noise, dtype)
    image = _synthesize(inversion, edit, noise, dtype, context=context)
    for position, modulation in enumerate(inversion.modulations):
        image = modulation.finish(image, context, position)
    return image


def _synthesize(
    inversion: Inversion,
    edit: Edit | None,
    noise: Noise,
    dtype: torch.dtype,
    taps: dict[str, Tensor] | None = None,
    context: RenderContext | None = None,
) -> Tensor:
    context = context or RenderContext(inversion, edit, noise, dtype)
    hooks = [modulation.hooks(context) for modulation in inversion.modulations]
    w_plus = inversion.w_plus
    if edit is not None:
        w_plus = edit.apply(w_plus)
        styles = {name: _adds(name, offset.to(w_plus)) for name, offset in edit.style_offsets().items()}
        hooks.append(SynthesisHooks(style=styles))
    synthesis = inversion.generator.synthesis
    options = {"noise": noise, "hooks": combine_hooks(hooks), "taps": taps, "dtype": dtype}
    weights = tuned_weights(inversion)
    if not weights:
        return synthesis(w_plus, **options)
    return torch.func.functional_call(synthesis, weights, (w_plus,), options, strict=False)


def tuned_weights(inversion: Inversion) -> dict[str, Tensor]:
    """Synthesis parameters with the weight offsets of an inversion of batch 1 added; those without any are absent."""
    base = dict(inversion.generator.synthesis.named_parameters())
    tuned: dict[str, Tensor] = {}
    for modulation in inversion.modulations:
        for name, offset in modulation.weight_offsets().items():
            if name not in base:
                raise GeneratorMismatchError(f"Weight offset for {name!r}: this generator has no such parameter.")
            tuned[name] = tuned.get(name, base[name]) + offset[0].to(base[name])
    return tuned


def _noise_of(noise: Noise, index: int) -> Noise:
    """The part of batched noise maps that belongs to one image."""
    if isinstance(noise, str):
        return noise
    return [maps[index : index + 1] if len(maps) > 1 else maps for maps in noise]


def combine_hooks(hooks: Sequence[SynthesisHooks]) -> SynthesisHooks:
    """One set of hooks that runs the given ones in order at each place."""
    merged: dict[str, dict[Any, FeatureHook]] = {"after_upconv": {}, "after_block": {}, "style": {}}
    for one in hooks:
        for kind, places in merged.items():
            for place, function in getattr(one, kind).items():
                places[place] = _chained(places[place], function) if place in places else function
    return SynthesisHooks(**merged)


def _chained(first: FeatureHook, second: FeatureHook) -> FeatureHook:
    return lambda x: second(first(x))


def _adds(name: str, offset: Tensor) -> FeatureHook:
    def add(style: Tensor) -> Tensor:
        if offset.shape[1] != style.shape[1]:
            raise GeneratorMismatchError(
                f"Style edit of {name} has {offset.shape[1]} channels, this generator's layer has {style.shape[1]}: "
                "the direction was made for another generator."
            )
        return style + offset

    return add
