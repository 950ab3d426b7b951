"""Semantic directions of the "portraits" domain, read off the linear embedding of morph codes.

W is linear in a morph's code, so the difference of two codes is a direction: smiling minus neutral photographs of the
same people, older minus younger people, one unit of yaw. Strength 1 is one natural step by construction.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..directions import save_direction
from ..editing import Direction
from ..fingerprint import fingerprint
from .common import PORTRAITS_CREDIT, SaveModel, add_common_arguments, load_morphs
from .generator import CodeEmbedding, load_trained
from .morphs import EXTRA_NAMES, MorphConfig, MorphModel


def smile_code(morphs: MorphModel) -> Tensor:
    """Code difference [code_dim] of a full smile: the mean over the people with both photographs."""
    both = morphs.smiling_of >= 0
    code = torch.zeros(morphs.code_dim)
    for base in (0, morphs.entries):
        code[base + morphs.smiling_of[both]] += 1.0 / int(both.sum())
        code[base + morphs.neutral_of[both]] -= 1.0 / int(both.sum())
    return code


def people_code(morphs: MorphModel, positive: list[str], negative: list[str]) -> Tensor:
    """Code difference [code_dim] between the average of two groups of people, neutral photographs."""
    code = torch.zeros(morphs.code_dim)
    for people, sign in ((positive, 1.0), (negative, -1.0)):
        rows = morphs.neutral_of[[morphs.person_ids.index(person) for person in people]]
        for base in (0, morphs.entries):
            code[base + rows] += sign / len(people)
    return code


def extra_code(morphs: MorphModel, name: str, amount: float) -> Tensor:
    """Code difference [code_dim] of `amount` of one extra, such as yaw in radians."""
    code = torch.zeros(morphs.code_dim)
    code[2 * morphs.entries + EXTRA_NAMES.index(name)] = amount
    return code


@torch.no_grad()
def portrait_directions(
    morphs: MorphModel,
    embedding: CodeEmbedding,
    portraits: Path,
    generator_id: str,
    config: MorphConfig = MorphConfig(),
) -> list[Direction]:
    """Named, calibrated directions of the bundled generator; `portraits` is the folder with info.csv."""
    with (portraits / "info.csv").open(newline="") as file:
        rows = {f"{row['set']}/{row['id']}": row for row in csv.DictReader(file) if row["split"] == "train"}
    people = [person for person in morphs.person_ids if person in rows]
    ages = {person: float(rows[person]["age"]) for person in people if rows[person]["age"].replace(".", "").isdigit()}
    ordered = sorted(ages, key=lambda person: ages[person])
    quarter = max(1, len(ordered) // 5)
    women = [person for person in people if rows[person]["gender"] == "female"]
    men = [person for person in people if rows[person]["gender"] == "male"]
    codes = {
        "smile": (smile_code(morphs), (-0.5, 1.5), "neutral to a full smile, from real pairs of photographs"),
        "age": (
            people_code(morphs, ordered[-quarter:], ordered[:quarter]),
            (-1.5, 1.5),
            "youngest to oldest fifth of the people",
        ),
        "feminine": (people_code(morphs, women, men), (-1.5, 1.5), "average man to average woman"),
        "yaw": (extra_code(morphs, "yaw", config.yaw), (-1.2, 1.2), "small head turn about the vertical axis"),
        "pitch": (extra_code(morphs, "pitch", config.pitch), (-1.2, 1.2), "small nod"),
        "light-side": (extra_code(morphs, "light_side", config.light_side), (-1.2, 1.2), "light from the right"),
        "brightness": (extra_code(morphs, "brightness", config.brightness), (-1.5, 1.5), "exposure"),
        "warmth": (extra_code(morphs, "warmth", config.warmth), (-1.5, 1.5), "warmer light"),
    }
    return [
        Direction(
            name,
            (code.to(embedding.linear.weight) @ embedding.linear.weight.t())[None].clone(),
            limits=limits,
            generator_id=generator_id,
            description=description,
        )
        for name, (code, limits, description) in codes.items()
    ]


def main(argv: Sequence[str], save_model: SaveModel) -> Path:
    """`gan-inversion train directions`: one safetensors file per direction of a generator run, into the folder --out."""
    parser = argparse.ArgumentParser(prog="gan-inversion train directions", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    options = parser.parse_args(argv)
    morphs = load_morphs(options.portraits, options.runs)
    generator, embedding = load_trained(options.runs / "generator", morphs)
    for direction in portrait_directions(morphs, embedding, options.portraits, fingerprint(generator)):
        path = options.out / f"portraits-{direction.name}.safetensors"
        save_direction(path, direction, licence="CC-BY-4.0", note=PORTRAITS_CREDIT)
    return options.out
