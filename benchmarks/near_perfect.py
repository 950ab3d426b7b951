"""Which terms and settings of near-perfect inversion matter: an ablation on people the generator was trained on.

    python benchmarks/near_perfect.py --portraits PORTRAITS [--people 4] [--steps 200] [--only NAME ...]

Starts from the bundled e4e code. Columns: MSE and bundled perceptual distance of the reconstruction; drift, the MSE
between random faces of the tuned and of the untuned generator (same codes); the Frechet distance of random faces of the
tuned generator to the untuned one's, position means of the trunk's taps; seconds for each image.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch

from gan_inversion.core import metrics
from gan_inversion.core.inversion import Inversion, render
from gan_inversion.core.training.common import keep_freed_memory
from gan_inversion.core.training.portraits import load_people
from gan_inversion.core.tuning import NearPerfectConfig, near_perfect
from gan_inversion.model_registry import load_model, perceptual_distance

FACES, BATCH = 64, 8
FULL = NearPerfectConfig()
VARIANTS = {
    "full": {},
    "without reconstruction": {"recon_weight": 0.0},
    "without local adversarial": {"local_adversarial_weight": 0.0},
    "ten times the global cohesion": {"global_weight": 1.0},
    "a tenth of the global cohesion": {"global_weight": 0.01},
    "without global cohesion": {"global_weight": 0.0},
    "p = 0.5": {"local_probability": 0.5},
    "p = 1": {"local_probability": 1.0},
    "all levels alike": {"level_ratio": 1.0, "recon_weight": 2000.0},
    "norm 1, all levels alike (GLO)": {"norm": 1, "level_ratio": 1.0, "recon_weight": 200.0},
    "one level": {"levels": 1},
    "local adversarial 1": {"local_adversarial_weight": 1.0},
    "without momentum": {"momentum": 0.0},
    "adversarial terms in every step": {"adversarial_every": 1},
    "half the rate": {"learning_rate": 1e-3},
    "twice the rate": {"learning_rate": 4e-3},
}


def main() -> None:
    """Prints one Markdown row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", required=True)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--steps", type=int, default=FULL.steps)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    keep_freed_memory()
    generator, encoder, judge = (
        load_model(name).module for name in ("portraits", "portraits-e4e", "portraits-discriminator")
    )
    distance = perceptual_distance("portraits-perceptual", size=None)
    _, images = load_people(options.portraits, "train", generator.resolution)
    images = images[:: len(images) // options.people][: options.people]
    with torch.no_grad():
        plain = Inversion(images, encoder(images, generator=generator), generator)
        codes = generator.broadcast(generator.sample_w(FACES, seed=1))
        before = torch.cat([generator.synthesis(part) for part in codes.split(BATCH)])

    def features(faces: torch.Tensor) -> torch.Tensor:
        return torch.cat([tap.mean(dim=(2, 3)) for tap in distance.features(faces)], dim=1)

    def row(name: str, inversion: Inversion, seconds: float) -> None:
        drifts, frechets = [], []
        with torch.no_grad():
            drawn = render(inversion).clamp(-1, 1)
            for single in (inversion[index] for index in range(len(inversion))) if inversion.modulations else ():
                parts = codes.split(BATCH)
                tuned = [dataclasses.replace(single, image=single.image.expand(len(part), -1, -1, -1), w_plus=part, crops=())
                         for part in parts]  # fmt: skip
                after = torch.cat([render(one) for one in tuned])
                drifts.append(float((after - before).square().mean()))
                frechets.append(metrics.frechet_distance(features(after), features(before)))
            mse, lpips = metrics.mse(drawn, images).mean(), distance(drawn, images).mean()
        means = [sum(values) / len(values) if values else 0.0 for values in (drifts, frechets)]
        print(f"| {name} | {mse:.5f} | {lpips:.4f} | {means[0]:.4f} | {means[1]:.4f} | {seconds:.0f} |", flush=True)

    print("| | MSE | LPIPS* | drift | Frechet* | s/image |\n|---|---|---|---|---|---|", flush=True)
    row("e4e, not tuned", plain, 0)
    for name in options.only:
        config = dataclasses.replace(FULL, steps=options.steps, **VARIANTS[name])
        began = time.monotonic()
        found = near_perfect(plain, judge, config)
        row(name, found.inversion, (time.monotonic() - began) / len(plain))


if __name__ == "__main__":
    main()
