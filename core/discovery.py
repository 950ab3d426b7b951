"""Making directions: closed-form factorisation, principal components, pairs and sets of codes, single style channels.

Papers: Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs" (CVPR 2021, SeFa); Harkonen et al.,
"GANSpace" (NeurIPS 2020); Shen et al., "Interpreting the Latent Space of GANs" (CVPR 2020, InterFaceGAN); Wu et al.,
"StyleSpace Analysis" (CVPR 2021). Reference implementations: rosinality/stylegan2-pytorch
`closed_form_factorization.py`, harskish/ganspace, genforce/interfacegan.
Deviations: SeFa for a layer range edits exactly the rows whose layers it analysed (encoder4editing `editings/sefa.py`
edits one row lower); InterFaceGAN's SVM is a linear discriminant with Ledoit-Wolf shrinkage, which has no setting to
tune and stays defined with fewer codes than dimensions; signs are fixed, so that a second run gives the same sliders.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .editing import Coordinate, Direction, Edit, LayerRange
from .errors import InvalidInputError
from .fingerprint import fingerprint
from .generator import Generator, SynthesisHooks
from .ops import EqualLinear

_IMAGE_CHUNK = 4
_NATURAL_STD = 3.0  # a coordinate further than this from the mean is rare among photographs
_STD_LIMITS = (-_NATURAL_STD, _NATURAL_STD)
_STEP_LIMITS = (-2.0, 2.0)  # times the distance between the two kinds of pictures
_CHANNEL_LIMITS = (-10.0, 10.0)  # standard deviations; one channel of thousands may go far (StyleSpace, StyleCLIP)
_UNIT_SAMPLES = 2000
_MEDIAN_STEPS = 64
_BISECTIONS = 14  # the unit is found to 1 part in 10,000 of its bracket


@torch.no_grad()
def sample_w(generator: Generator, samples: int, seed: int = 0) -> Tensor:
    """Codes of random z, [samples, w_dim]; the same seed gives the same codes on every device."""
    if samples < 2:
        raise InvalidInputError(f"{samples} sample(s) of w: expected at least 2.")
    return generator.sample_w(samples, seed)


@torch.no_grad()
def sefa(generator: Generator, count: int = 10, layers: LayerRange | None = None) -> list[Direction]:
    """Directions of w that change the styles most, by singular value decomposition of the affine layers (SeFa).

    Args:
        generator: nothing is sampled from it but the units.
        count: how many, strongest first, at most w_dim.
        layers: half-open range of w_plus rows. The convolutions these rows feed are analysed, and exactly these rows
            are edited. None analyses all convolutions (and the first RGB layer, as rosinality does) and edits all rows.

    Returns:
        Directions "sefa:0", ...; strength 1 is one standard deviation of w along the direction.
    """
    _check_count(count, generator.config.w_dim)
    start, end = _checked_range(layers, generator.num_ws)
    synthesis = generator.synthesis
    weights: list[Tensor] = []
    colour: list[Tensor] = []
    for name, row in zip(synthesis.style_names, synthesis.style_rows, strict=True):
        if start <= row < end:
            is_colour = name.endswith("torgb") and name != "b4.torgb"
            (colour if is_colour else weights).append(_affine(generator, name).weight)
    stacked = torch.cat(weights or colour).cpu().double()  # the last row feeds an RGB layer only
    _, vectors = torch.linalg.eigh(stacked.T @ stacked)
    vectors = _fixed_signs(vectors.T.flip(0)[:count]).float()
    std = (sample_w(generator, _UNIT_SAMPLES).cpu() @ vectors.T).std(dim=0)
    owner = fingerprint(generator)
    note = f"SeFa, rows {start} to {end - 1}."
    return [
        Direction(
            f"sefa:{index}",
            vector[None],
            unit=float(std[index]),
            limits=_STD_LIMITS,
            layers=layers,
            generator_id=owner,
            description=note,
        )
        for index, vector in enumerate(vectors)
    ]


@torch.no_grad()
def pca_of_w(
    generator: Generator,
    count: int = 10,
    samples: int = 10_000,
    seed: int = 0,
    *,
    layers: LayerRange | None = None,
    absolute: bool = False,
) -> list[Direction]:
    """Principal components of w (GANSpace).

    Args:
        generator: whose mapping network is sampled.
        count: how many, largest variance first, at most w_dim.
        samples: number of random z; more than w_dim, or the small components are noise.
        seed: of the samples.
        layers: half-open range of rows the directions shall edit; None is all.
        absolute: strength is the coordinate to reach and not a step (see `Coordinate`).

    Returns:
        Directions "pca:0", ...; strength 1 is one standard deviation along the component.
    """
    _check_count(count, generator.config.w_dim)
    _checked_range(layers, generator.num_ws)
    w = sample_w(generator, samples, seed).cpu().double()
    mean = w.mean(dim=0)
    variances, vectors = torch.linalg.eigh((w - mean).T @ (w - mean) / (samples - 1))
    vectors = _fixed_signs(vectors.T.flip(0)[:count]).float()
    stds = variances.flip(0)[:count].clamp(min=0).sqrt().tolist()
    shares = (variances.flip(0)[:count] / variances.sum()).tolist()
    owner = fingerprint(generator)
    directions = []
    for index, (vector, std, share) in enumerate(zip(vectors, stds, shares, strict=True)):
        directions.append(
            Direction(
                f"pca:{index}",
                vector[None] * std if absolute else vector[None],
                unit=1.0 if absolute else std,
                limits=_STD_LIMITS,
                layers=layers,
                generator_id=owner,
                coordinate=Coordinate(mean.float(), std) if absolute else None,
                description=f"Principal component {index} of w, {share:.1%} of the variance.",
            )
        )
    return directions


@torch.no_grad()
def direction_from_pairs(
    w_a: Tensor,
    w_b: Tensor,
    name: str,
    *,
    robust: bool = False,
    shared: bool = False,
    layers: LayerRange | None = None,
    generator: Generator | None = None,
) -> Direction:
    """The mean step from each code of `w_a` to its partner in `w_b` (the same person neutral and smiling).

    Args:
        w_a, w_b: [N, w_dim] or [N, num_ws, w_dim], in the same order.
        name: of the direction.
        robust: geometric median of the steps, which a few wrong pairs cannot move far, in place of their mean.
        shared: one row for all rows (their mean): less noise where pairs are few, and an edit that stays in W.
        layers: half-open range of rows the direction shall edit; None is all.
        generator: recorded as the one the direction is for.

    Returns:
        A direction of length 1 whose strength 1 is the mean step; -1 takes a picture of kind b back to a.
    """
    a, b = _code_batch(w_a, "w_a"), _code_batch(w_b, "w_b")
    if a.shape != b.shape:
        raise InvalidInputError(f"Pairs of shapes {list(w_a.shape)} and {list(w_b.shape)}: expected equal shapes.")
    steps = b - a
    if shared:
        steps = steps.mean(dim=1, keepdim=True)
    flat = steps.flatten(1)
    step = _geometric_median(flat) if robust else flat.mean(dim=0)
    agreement = float(torch.nn.functional.cosine_similarity(flat, step[None]).mean())
    return _scaled(
        step.reshape(steps.shape[1:]),
        name,
        layers,
        generator,
        f"Mean of {len(a)} paired steps; their mean cosine to it is {agreement:.2f}.",
    )


@torch.no_grad()
def direction_from_sets(
    w_negative: Tensor,
    w_positive: Tensor,
    name: str,
    *,
    method: str = "boundary",
    layers: LayerRange | None = None,
    generator: Generator | None = None,
) -> Direction:
    """From two sets of codes without and with an attribute to the direction between them (InterFaceGAN).

    Args:
        w_negative, w_positive: [N, w_dim] or [M, num_ws, w_dim], at least 2 each.
        name: of the direction.
        method: "boundary" is the normal of the linear discriminant, which leaves out what merely varies together with
            the attribute; "means" is the difference of the two means.
        layers: half-open range of rows the direction shall edit; None is all.
        generator: recorded as the one the direction is for.

    Returns:
        A direction of length 1; strength 1 is the distance of the two means along it.
    """
    negative, positive = _code_batch(w_negative, "w_negative"), _code_batch(w_positive, "w_positive")
    if negative.shape[1:] != positive.shape[1:] or min(len(negative), len(positive)) < 2:
        raise InvalidInputError(
            f"Sets of shapes {list(w_negative.shape)} and {list(w_positive.shape)}: expected at least 2 codes in each, "
            "of the same rows and width."
        )
    shape = negative.shape[1:]
    negative, positive = negative.flatten(1).cpu().double(), positive.flatten(1).cpu().double()
    means = positive.mean(dim=0) - negative.mean(dim=0)
    if method == "boundary":
        centred = torch.cat((negative - negative.mean(dim=0), positive - positive.mean(dim=0)))
        normal = _solve_shrunk_covariance(centred, means)
    elif method == "means":
        normal = means
    else:
        raise InvalidInputError(f"method {method!r}: expected 'boundary' or 'means'.")
    normal = normal / normal.norm().clamp(min=1e-30)
    step = normal * (means @ normal)
    counts = f"{len(negative)} codes without and {len(positive)} with it"
    return _scaled(step.reshape(shape).float(), name, layers, generator, f"Between {counts} ({method}).")


@torch.no_grad()
def direction_from_images(
    encoder: Callable[..., Tensor],
    generator: Generator,
    images_a: Tensor,
    images_b: Tensor,
    name: str,
    *,
    paired: bool = True,
    robust: bool = False,
    shared: bool = False,
    method: str = "boundary",
    layers: LayerRange | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Direction:
    """Encodes two sets of aligned pictures and makes the direction from the first to the second.

    Args:
        encoder: image [B, 3, H, W] in [-1, 1], generator=G -> w_plus, as `encoders.Encoder` is.
        generator: the encoder's.
        images_a, images_b: [N, 3, H, W] in [-1, 1]; aligned as the encoder expects.
        name: of the direction.
        paired: picture i of both is the same but for the attribute (`direction_from_pairs`, with `robust` and
            `shared`); otherwise two independent sets (`direction_from_sets`, with `method`).
        layers: half-open range of rows the direction shall edit; None is all.
        on_progress: called with (images encoded, images in all).
    """
    if paired and len(images_a) != len(images_b):
        raise InvalidInputError(
            f"{len(images_a)} and {len(images_b)} pictures: pairs need the same number. Use paired=False for two sets."
        )
    total, codes = len(images_a) + len(images_b), []
    device = generator.w_avg.device
    for part in [*images_a.split(_IMAGE_CHUNK), *images_b.split(_IMAGE_CHUNK)]:
        codes.append(encoder(part.to(device), generator=generator))
        if on_progress is not None:
            on_progress(sum(map(len, codes)), total)
    a, b = torch.cat(codes).split((len(images_a), len(images_b)))
    if paired:
        return direction_from_pairs(a, b, name, robust=robust, shared=shared, layers=layers, generator=generator)
    return direction_from_sets(a, b, name, method=method, layers=layers, generator=generator)


@torch.no_grad()
def style_direction(
    generator: Generator,
    layer: str,
    channel: int | Sequence[int],
    *,
    name: str | None = None,
    samples: int = _UNIT_SAMPLES,
    seed: int = 0,
) -> Direction:
    """One channel of style space, or several of one layer together (StyleSpace).

    Args:
        generator: whose style space it is.
        layer: a name of `SynthesisNetwork.style_names`, such as "b32.conv1".
        channel: index or indices into that layer's style.
        name: None is "layer:channel".
        samples, seed: of the codes the unit is measured on.

    Returns:
        A style direction; strength 1 adds one standard deviation to each of the channels.
    """
    synthesis = generator.synthesis
    if layer not in synthesis.style_names:
        raise InvalidInputError(f"style layer {layer!r}: this generator has {', '.join(synthesis.style_names)}.")
    row = synthesis.style_rows[synthesis.style_names.index(layer)]
    styles = _affine(generator, layer)(sample_w(generator, samples, seed)).cpu()
    chosen = [channel] if isinstance(channel, int) else list(channel)
    if not chosen or not all(0 <= index < styles.shape[1] for index in chosen):
        raise InvalidInputError(f"channel {channel} of {layer}: expected 0 to {styles.shape[1] - 1}.")
    offset = torch.zeros(styles.shape[1])
    offset[chosen] = styles.std(dim=0)[chosen]
    return Direction(
        name or f"{layer}:{','.join(map(str, chosen))}",
        style={layer: offset},
        limits=_CHANNEL_LIMITS,
        generator_id=fingerprint(generator),
        description=f"Style space, fed by row {row}; 1 is one standard deviation.",
    )


@torch.no_grad()
def calibrate(direction: Direction, generator: Generator, w_samples: Tensor, target: float | None = None) -> Direction:
    """Gives a direction its natural unit and range.

    The coordinate of a code is its projection on the direction, over the rows (or style layers) the direction edits.

    Args:
        direction: any but an absolute one, whose unit is a standard deviation already. Its sign is kept.
        generator: the one it is for.
        w_samples: [N, w_dim] or [N, num_ws, w_dim], natural codes: `sample_w`, or encoded photographs.
        target: None makes strength 1 one standard deviation of the coordinate. A number makes it the strength at which
            the pixels change by so much, mean absolute difference on the [-1, 1] scale over the first samples
            (0.05 is plainly visible); stored noise.

    Returns:
        The same direction with another unit, and limits where the coordinate of an average picture has gone 3 standard
        deviations from the mean.

    Raises:
        InvalidInputError: an absolute direction, or one that does not change the picture as much as asked.
    """
    if direction.coordinate is not None:
        raise InvalidInputError(f"Direction {direction.name!r} is absolute: its unit is a standard deviation already.")
    w_plus = generator.broadcast(w_samples.to(generator.w_avg))
    if w_plus.ndim != 3 or len(w_plus) < 2:
        raise InvalidInputError(f"w_samples of shape {list(w_samples.shape)}: expected at least 2 codes.")
    sign = math.copysign(1.0, direction.unit)
    plain = dataclasses.replace(direction, unit=sign)
    length, std = _coordinate_spread(plain, generator, w_plus)
    if length == 0 or std == 0:
        raise InvalidInputError(
            f"Direction {direction.name!r} does not change these codes in its layer range. Choose other layers."
        )
    unit = std / length
    if target is not None:
        unit = _unit_for_change(plain, generator, w_plus[:_IMAGE_CHUNK], target, start=unit)
    limit = _NATURAL_STD * std / (unit * length)
    return dataclasses.replace(direction, unit=sign * unit, limits=(-limit, limit))


def _coordinate_spread(direction: Direction, generator: Generator, w_plus: Tensor) -> tuple[float, float]:
    """(length of the direction at strength 1, standard deviation of the codes' projections on it)."""
    steps: list[Tensor] = []
    coordinates: list[Tensor] = []
    if direction.offset is not None:
        steps.append(direction.delta(w_plus[:1], 1.0).flatten(1))
        coordinates.append(w_plus.flatten(1))
    if direction.style:
        styles = dict(zip(generator.synthesis.style_names, generator.synthesis.styles(w_plus), strict=True))
        for layer, offset in direction.style.items():
            if layer not in styles:
                raise InvalidInputError(f"style layer {layer!r}: this generator has {', '.join(styles)}.")
            steps.append(offset[None].to(w_plus))
            coordinates.append(styles[layer])
    step, codes = (torch.cat(parts, dim=1).cpu().double() for parts in (steps, coordinates))  # MPS has no float64
    length = float(step.norm())
    return (length, float((codes @ step[0] / length).std())) if length > 0 else (0.0, 0.0)


def _unit_for_change(direction: Direction, generator: Generator, w_plus: Tensor, target: float, start: float) -> float:
    def change(strength: float) -> float:
        edit = Edit.of(direction, strength)
        offsets = {layer: offset.to(w_plus) for layer, offset in edit.style_offsets().items()}
        hooks = SynthesisHooks(style={layer: partial(torch.add, offset) for layer, offset in offsets.items()})
        return float((generator.synthesis(edit.apply(w_plus), hooks=hooks) - plain).abs().mean())

    if not target > 0:
        raise InvalidInputError(f"target {target}: expected a mean absolute pixel change above 0, such as 0.05.")
    plain = generator.synthesis(w_plus)
    low, high = 0.0, start
    while change(high) < target:
        low, high = high, 2 * high
        if high > 1000 * start:
            raise InvalidInputError(
                f"Direction {direction.name!r} changes the picture by less than {target} even at 1000 standard "
                "deviations. Ask for a smaller change, or choose other layers."
            )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) < target else (low, middle)
    return (low + high) / 2


def _scaled(
    step: Tensor, name: str, layers: LayerRange | None, generator: Generator | None, description: str
) -> Direction:
    """A direction of length 1 from a step [rows, w_dim] that strength 1 shall take."""
    length = float(step.norm())
    if not math.isfinite(length) or length == 0.0:
        raise InvalidInputError(
            f"Direction {name!r}: the two groups of codes do not differ (distance {length}). Give pictures that do."
        )
    return Direction(
        name,
        (step / length).cpu(),
        unit=length,
        limits=_STEP_LIMITS,
        layers=layers,
        generator_id=None if generator is None else fingerprint(generator),
        description=description,
    )


def _solve_shrunk_covariance(centred: Tensor, target: Tensor) -> Tensor:
    """(Ledoit-Wolf covariance of centred rows [N, D])^-1 target [D], without ever building a D x D matrix.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004): the sample
    covariance S is pulled to mu I, by a share that the fourth moments of the data give.
    """
    n, d = centred.shape
    _, singular, basis = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square() / n
    mu = variances.sum() / d
    spread = variances.square().sum() - d * mu.square()  # |S - mu I|^2
    noise = (centred.square().sum(dim=1).square().mean() - variances.square().sum()) / n  # how far S is off by chance
    share = (noise / spread).clamp(1e-6, 1.0) if spread > 0 else variances.new_ones(())
    floor = share * mu
    inside = basis @ target
    if floor <= 0:
        return target
    return target / floor + basis.T @ (inside * (1 / ((1 - share) * variances + floor) - 1 / floor))


def _geometric_median(points: Tensor) -> Tensor:
    """The point [D] with the smallest sum of distances to points [N, D] (Weiszfeld's iteration)."""
    median = points.mean(dim=0)
    for _ in range(_MEDIAN_STEPS):
        distance = (points - median).norm(dim=1)
        weight = 1 / distance.clamp(min=1e-6 * float(distance.mean()) + 1e-12)  # a point may be the median itself
        median = weight @ points / weight.sum()
    return median


def _affine(generator: Generator, layer: str) -> EqualLinear:
    affine = generator.synthesis.get_submodule(f"{layer}.affine")
    assert isinstance(affine, EqualLinear)
    return affine


def _fixed_signs(rows: Tensor) -> Tensor:
    """Makes the largest entry of each row positive: eigenvectors come with arbitrary signs."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()


def _code_batch(codes: Tensor, what: str) -> Tensor:
    """[N, w_dim] or [N, rows, w_dim] -> [N, rows, w_dim]."""
    if codes.ndim not in (2, 3) or 0 in codes.shape:
        raise InvalidInputError(f"{what} of shape {list(codes.shape)}: expected [N, w_dim] or [N, num_ws, w_dim].")
    if not torch.isfinite(codes).all():
        raise InvalidInputError(f"{what} contains NaN or infinity: expected finite codes.")
    return codes.float() if codes.ndim == 3 else codes.float()[:, None]


def _check_count(count: int, w_dim: int) -> None:
    if not 1 <= count <= w_dim:
        raise InvalidInputError(f"{count} directions asked for: this generator has 1 to {w_dim}.")


def _checked_range(layers: LayerRange | None, num_ws: int) -> LayerRange:
    start, end = layers or (0, num_ws)
    if not 0 <= start < end <= num_ws:
        raise InvalidInputError(f"Layer range {start}..{end}: expected 0 <= first < end <= {num_ws}.")
    return start, end
