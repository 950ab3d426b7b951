"""Reconstruction and smile of the bundled model on the `test` people, whom no bundled weight has seen.

    python benchmarks/portraits.py PORTRAITS [--steps 100] [--sheet FILE]

Prints mean PSNR (128 px, images in [-1, 1], peak-to-peak 2) of e4e and of projection into W and W+ started from it, then
how far the smile direction (strength 1) moves the mouth corners apart, by the bundled landmark net, on the e4e inversion.
The sheet (photograph, e4e, W+, smile) shows real people: look at it, do not publish it.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gan_inversion as gi
from gan_inversion.core.landmarks import load_landmark_net, predict_landmarks, region_of_face
from gan_inversion.core.training.common import keep_freed_memory, write_sheet
from gan_inversion.core.training.encoder import psnr

BUNDLED = Path(__file__).resolve().parents[1] / "model_registry" / "bundled"
FIVE_OF_189 = (0, 1, 55, 87, 93)  # pupils, a point of the nose (unused by the crop), mouth corners


def main() -> None:
    """Runs every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("portraits", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    generator, encoder = (gi.load_model(name).module for name in ("portraits", "portraits-e4e"))
    photographs = test_people(options.portraits, generator.resolution)
    with torch.no_grad():
        codes = encoder(photographs)
    inversion = gi.Inversion(photographs, codes, generator)
    results = {"e4e": inversion}
    for space in ("w", "w-plus"):
        config = gi.ProjectionConfig(space=space, steps=options.steps)
        results[space] = gi.project(photographs, generator, config, start=codes)
    with torch.no_grad():
        for name, result in results.items():
            values = psnr(gi.render(result), photographs)
            print(f"{name:8} PSNR {values.mean():.2f} dB, from {values.min():.2f} to {values.max():.2f}")
        plain = gi.render(inversion)
        smile = gi.Edit.of(gi.load_direction(BUNDLED / "portraits-smile.safetensors"), 1.0)
        smiling = gi.render(inversion, smile)
        before, after = mouth_widths(plain), mouth_widths(smiling)
    print(
        f"smile    mouth {100 * (after / before - 1).mean():.1f} % wider, wider in {(after > before).mean():.0%} of {len(before)}"
    )
    if options.sheet:
        rows = [photographs, plain, gi.render(results["w-plus"]), smiling, gi.render(results["w-plus"], smile)]
        write_sheet(
            torch.cat([row[i : i + 12] for i in range(0, len(photographs), 12) for row in rows]), options.sheet, 12
        )


def test_people(portraits: Path, size: int) -> Tensor:
    """The neutral photographs of the `test` people, FFHQ-cropped by their own landmarks, [N, 3, size, size]."""
    marks = json.loads((portraits / "landmarks.json").read_text())
    crops = []
    with (portraits / "info.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test":
                folder = "neutral" if row["set"] == "london" else row["set"]
                photograph = gi.load_image(portraits / folder / f"{row['id']}.jpg")
                five = np.array(marks[f"{folder}/{row['id']}"])[list(FIVE_OF_189)]
                crop = gi.CropTransform.from_landmarks(five, tuple(photograph.shape[2:]), size)
                crops.append(gi.align(photograph, crop))
    return torch.cat(crops)


def mouth_widths(images: Tensor) -> np.ndarray:
    """Distance of the mouth corners in pixels, [N], by the bundled landmark net."""
    net, size = load_landmark_net(), images.shape[2]
    guess = np.zeros((68, 2))  # where an FFHQ crop has eyes and mouth corners
    guess[36:42], guess[42:48], guess[48], guess[54] = (0.385, 0.48), (0.615, 0.48), (0.41, 0.70), (0.59, 0.70)
    region = region_of_face(guess * size, (size, size))
    found = [predict_landmarks(net, image[None].clamp(-1, 1), region)[0] for image in images]
    return np.array([np.hypot(*(points[54] - points[48])) for points in found])


if __name__ == "__main__":
    main()
