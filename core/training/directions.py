"""Semantic directions of the "portraits" domain, read off the linear embedding of morph codes.

W is linear in a morph's code, so a difference of two codes is a direction: smiling minus neutral photographs of the
same people, one unit of yaw, or a re-weighting of people that raises one measured attribute (age, gender, hair, skin)
and leaves the others where they are. Strength 1 is one natural step by construction. Beside these, the strongest
principal components of what is left of W: the ways in which people differ that have no name here.
How far a direction carries is measured: `natural_reach` is the range that the training pictures cover along it.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..directions import save_direction
from ..editing import Direction
from ..fingerprint import fingerprint
from ..generator import Generator
from .common import PORTRAITS_CREDIT, Registry, add_common_arguments, load_morphs
from .generator import CodeEmbedding, load_trained
from .morphs import EXTRA_NAMES, MARGIN, MIRRORED, MorphConfig, MorphModel

logger = logging.getLogger(__name__)

# Patches of the mean-shape frame, (left, top, right, bottom) in crop widths.
SKIN_PATCHES = ((0.30, 0.56, 0.38, 0.64), (0.62, 0.56, 0.70, 0.64), (0.44, 0.30, 0.56, 0.36))
HAIR_PATCH = (0.30, 0.04, 0.70, 0.18)
COMPONENTS = 4


def smile_code(morphs: MorphModel) -> Tensor:
    """Code difference [code_dim] of a full smile: the mean over the people with both photographs."""
    both = morphs.smiling_of >= 0
    code = torch.zeros(morphs.code_dim)
    for base in (0, morphs.entries):
        code[base + morphs.smiling_of[both]] += 1.0 / int(both.sum())
        code[base + morphs.neutral_of[both]] -= 1.0 / int(both.sum())
    return code


def extra_code(morphs: MorphModel, name: str, amount: float) -> Tensor:
    """Code difference [code_dim] of `amount` of one extra, such as yaw in radians."""
    code = torch.zeros(morphs.code_dim)
    code[2 * morphs.entries + EXTRA_NAMES.index(name)] = amount
    return code


def attribute_code(morphs: MorphModel, attributes: Tensor, column: int, step: float) -> Tensor:
    """Code difference [code_dim] that raises one attribute by `step` and leaves the others, with the least re-weighting.

    Args:
        morphs: the bank.
        attributes: [P, A], one row for each of `morphs.person_ids`; neutral photographs are what is mixed.
        column: the attribute that changes.
        step: in its own units.
    """
    table = torch.cat((attributes, torch.ones(len(attributes), 1)), dim=1).double()
    scale = table.abs().amax(dim=0).clamp(min=1e-12)
    wanted = torch.zeros(table.shape[1], dtype=table.dtype)
    wanted[column] = step / scale[column]
    weights = torch.linalg.lstsq((table / scale).t(), wanted[:, None], driver="gelsd").solution[:, 0]  # least norm
    code = torch.zeros(morphs.code_dim)
    for base in (0, morphs.entries):
        code[base + morphs.neutral_of] += weights.float()
    return code


def measured_tones(morphs: MorphModel) -> Tensor:
    """Lightness of skin and hair in 0..1, [P, 2], from each person's neutral photograph in the mean-shape frame."""
    textures = morphs.textures[morphs.neutral_of].float() / 255
    luma = (textures[:, :3] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)
    alpha = textures[:, 3]

    def tone(patches: Sequence[tuple[float, float, float, float]]) -> Tensor:
        total = weight = torch.zeros(len(luma))
        for left, top, right, bottom in patches:
            x0, y0, x1, y1 = (
                int((edge + MARGIN) / (1 + 2 * MARGIN) * luma.shape[-1]) for edge in (left, top, right, bottom)
            )
            inside = alpha[:, y0:y1, x0:x1]
            total = total + (luma[:, y0:y1, x0:x1] * inside).sum(dim=(1, 2))
            weight = weight + inside.sum(dim=(1, 2))
        return total / weight.clamp(min=1e-6)

    return torch.stack((tone(SKIN_PATCHES), tone((HAIR_PATCH,))), dim=1)


def people_attributes(morphs: MorphModel, portraits: Path) -> dict[str, Tensor]:
    """Age in years, femininity 0 or 1, lightness of skin and hair, membership of a set of photographs.

    Each [P], in the order of `morphs.person_ids`.
    """
    with (portraits / "info.csv").open(newline="") as file:
        rows = {f"{row['set']}/{row['id']}": row for row in csv.DictReader(file)}
    people = [rows[person.removesuffix(MIRRORED)] for person in morphs.person_ids]
    ages = torch.tensor([_number(row["age"]) for row in people])
    tones = measured_tones(morphs)
    sets = sorted({row["set"] for row in people})
    return {
        "age": torch.where(ages.isnan(), ages.nanmean(), ages),
        "feminine": torch.tensor([float(row["gender"] == "female") for row in people]),
        "skin": tones[:, 0],
        "hair": tones[:, 1],
        # Held where it is by all the others: each set of photographs has a light and colours of its own.
        **{f"set {name}": torch.tensor([float(row["set"] == name) for row in people]) for name in sets[1:]},
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


@torch.no_grad()
def leading_components(morphs: MorphModel, embedding: CodeEmbedding, known: Tensor, count: int) -> Tensor:
    """Principal components of w over random people, orthogonal to `known` [K, w_dim]; one standard deviation long each.

    Light, pose, background and smile are left out of the people's codes, so that the components speak of people.
    """
    codes = morphs.draw_codes(4096, torch.Generator().manual_seed(0))
    codes[:, 2 * morphs.entries :] = codes[:, 2 * morphs.entries :].mean(dim=0)
    w = embedding(codes.to(embedding.linear.weight)).cpu()
    basis = torch.linalg.qr(known.t()).Q
    w = w - w.mean(dim=0)
    w = w - (w @ basis) @ basis.t()
    _, deviations, axes = torch.linalg.svd(w, full_matrices=False)
    axes = axes * torch.where(axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)) < 0, -1.0, 1.0)
    return axes[:count] * deviations[:count, None] / len(w) ** 0.5


def natural_reach(offset: Tensor, w: Tensor) -> float:
    """How many steps lie between the two ends of what the generator was trained on, 0.5 to 2.

    The position of a code along a direction is its coordinate in units of the direction, all that the covariance of w
    explains otherwise taken out; the ends are the 0.5 and 99.5 percentiles over random codes. An edit of this length
    takes a face from one end to the other; further out the generator guesses.

    Args:
        offset: [w_dim], one step.
        w: [N, w_dim] of random faces.
    """
    centred = (w - w.mean(dim=0)).double()
    covariance = centred.t() @ centred / len(w)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    dual = torch.linalg.solve(covariance, offset.double())
    along = centred @ (dual / (offset.double() @ dual))
    low, high = along.quantile(torch.tensor([0.005, 0.995], dtype=along.dtype)).tolist()
    return round(min(2.0, max(0.5, high - low)), 1)


@torch.no_grad()
def portrait_directions(
    morphs: MorphModel,
    embedding: CodeEmbedding,
    portraits: Path,
    generator: Generator,
    config: MorphConfig = MorphConfig(),
    components: Mapping[str, int] | None = None,
) -> list[Direction]:
    """Named, calibrated directions of a generator trained on `morphs`.

    Args:
        morphs, embedding: of the generator's run.
        portraits: the folder with info.csv.
        generator: the directions carry its identity.
        config: how the run's codes were drawn: one step of pose or light is the range it saw.
        components: names for principal components, counted from 1, negative turned around. None: the first few, unnamed.
    """
    attributes = people_attributes(morphs, portraits)
    table = torch.stack(list(attributes.values()), dim=1)

    def attribute(name: str, step: float) -> Tensor:
        return attribute_code(morphs, table, list(attributes).index(name), step)

    codes = {
        "smile": (smile_code(morphs), "neutral to a full smile, from real pairs of photographs"),
        "age": (attribute("age", 15.0), "fifteen years older"),
        "feminine": (attribute("feminine", 1.0), "average man to average woman of the same age and colours"),
        "skin-tone": (attribute("skin", 0.1), "lighter skin, hair as it is"),
        "hair-colour": (attribute("hair", 0.12), "lighter hair, skin as it is"),
        "yaw": (extra_code(morphs, "yaw", config.yaw), "small head turn about the vertical axis"),
        "pitch": (extra_code(morphs, "pitch", config.pitch), "small nod"),
        "light-side": (extra_code(morphs, "light_side", config.light_side), "light from the right"),
        "brightness": (extra_code(morphs, "brightness", config.brightness), "exposure"),
        "warmth": (extra_code(morphs, "warmth", config.warmth), "warmer light"),
        "contrast": (extra_code(morphs, "contrast", config.contrast), "contrast"),
        "background": (
            sum((extra_code(morphs, f"background_{c}", 0.5) for c in "rgb"), torch.zeros(morphs.code_dim)),
            "lighter backdrop",
        ),
    }
    weight = embedding.linear.weight.cpu()
    offsets = {name: (code @ weight.t(), text) for name, (code, text) in codes.items()}
    known = torch.stack([offset for offset, _ in offsets.values()])
    components = components or {f"people-{k}": k for k in range(1, COMPONENTS + 1)}
    found = leading_components(morphs, embedding, known, max(abs(k) for k in components.values()))
    for name, k in components.items():
        text = f"principal component {abs(k)} of how people differ otherwise"
        offsets[name] = (found[abs(k) - 1] * (1 if k > 0 else -1), text)
    w = embedding(morphs.draw_codes(2048, torch.Generator().manual_seed(1)).to(embedding.linear.weight)).cpu()
    made = []
    for name, (offset, text) in offsets.items():
        reach = natural_reach(offset, w)
        logger.info("%s: natural from %.1f to %.1f", name, -reach, reach)
        made.append(
            Direction(
                name,
                offset[None].clone(),
                limits=(-reach, reach),
                generator_id=fingerprint(generator),
                description=text,
            )
        )
    return made


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train directions`: one safetensors file per direction of a generator run, into the folder --out."""
    parser = argparse.ArgumentParser(prog="gan-inversion train directions", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    parser.add_argument(
        "--component",
        metavar="NAME=K",
        action="append",
        default=[],
        help="name the K-th principal component of people (negative: turned around); look at people-1 ... first",
    )
    options = parser.parse_args(argv)
    components = {}
    for given in options.component:
        name, _, k = given.partition("=")
        if not name or not k.removeprefix("-").isdigit() or int(k) == 0:
            parser.error(f"--component {given}: expected NAME=K, like long-hair=-3")
        components[name] = int(k)
    morphs = load_morphs(options.portraits, options.runs)
    generator, embedding = load_trained(options.runs / "generator", morphs)
    for direction in portrait_directions(morphs, embedding, options.portraits, generator, components=components):
        path = options.out / f"portraits-{direction.name}.safetensors"
        save_direction(path, direction, licence="CC-BY-4.0", note=PORTRAITS_CREDIT)
    return options.out
