"""What the maps of the out-of-domain methods are worth beyond `gan-inversion evaluate`: false alarms, and pictures to look at.

    python benchmarks/out_of_domain.py --portraits PORTRAITS --out FOLDER [--only alarms iterations tau] [--samples 64]

alarms: mean mask on the generator's own samples, inverted by e4e as a photograph would be, and with their true codes.
iterations: occluded test people; photograph, e4e, blend without alignment, N = 1, 2, 3; below each its mask, and the mouth
and brows enlarged under a smile, where a missing alignment leaves ghosts.
tau: the latent map, the reconstruction and a smile of SAM at growing thresholds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_inversion.core.editing import Edit
from gan_inversion.core.inversion import Inversion, render
from gan_inversion.core.invertibility import LatentMap, colour_preview, latent_map, out_of_domain
from gan_inversion.core.latents import sample
from gan_inversion.core.metrics import psnr
from gan_inversion.core.multilayer import invert_multilayer, suited_config
from gan_inversion.core.samm import align
from gan_inversion.core.samm_image import ImageAlignmentConfig, align_image
from gan_inversion.core.superpixels import superpixels
from gan_inversion.core.training.common import keep_freed_memory, write_sheet
from gan_inversion.core.training.occluders import occlude
from gan_inversion.core.training.portraits import load_people
from gan_inversion.model_registry import load_direction, load_model, perceptual_distance

TAUS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 9.0)
SMILE = 1.0
MOUTH = (slice(72, 112), slice(36, 92))  # rows and columns of a 128 px crop
_FULL, _SMALL = 128, 16


class Models:
    """Everything bundled that is measured, loaded once."""

    def __init__(self) -> None:
        def network(name: str) -> torch.nn.Module:
            return load_model(name).module

        self.generator, self.encoder = network("portraits"), network("portraits-e4e")
        self.samm, self.predictor = network("portraits-samm"), network("portraits-invertibility")
        self.distance = perceptual_distance("portraits-perceptual", size=None)
        self.smile = Edit.of(load_direction("portraits-smile"), SMILE)

    @torch.no_grad()
    def inverted(self, image: Tensor) -> Inversion:
        """Photographs with their e4e codes."""
        return Inversion(image, self.encoder(image, generator=self.generator), self.generator)

    def sam_map(self, image: Tensor, tau: float | None = None) -> Tensor:
        """SAM's out-of-domain mask [B, 1, R, R]."""
        return out_of_domain(self.latent_map(image, tau))

    def latent_map(self, image: Tensor, tau: float | None = None) -> LatentMap:
        """Predicted, on superpixels."""
        with torch.no_grad():
            errors = self.predictor(image)
        threshold = self.predictor.config.threshold if tau is None else tau
        return latent_map(errors, superpixels(image), threshold)


def alarms(models: Models, count: int) -> dict[str, float]:
    """Mean mask on `count` samples, by method."""
    masks: dict[str, Callable[[Inversion], Tensor]] = {
        **{
            f"SAMM N={n}": lambda inv, n=n: align(inv, models.encoder, models.samm, iterations=n).mask
            for n in (1, 2, 3)
        },
        "SAMM N=2, mask_threshold 0.3": lambda inv: align(inv, models.encoder, models.samm, mask_threshold=0.3).mask,
        "SAM map": lambda inv: models.sam_map(inv.image),
    }
    found: dict[str, float] = {}
    for psi in (1.0, 0.7):
        codes = sample(models.generator, list(range(count)), psi)
        for part in codes.split(_SMALL):
            with torch.no_grad():
                image = models.generator.synthesis(part).clamp(-1, 1)
            for name, inversion in (
                ("e4e", models.inverted(image)),
                ("true code", Inversion(image, part, models.generator)),
            ):
                for method, mask in masks.items():
                    key = f"{method}, psi {psi:g}, {name}"
                    found[key] = found.get(key, 0.0) + float(mask(inversion).mean()) * len(part) / count
    few = sample(models.generator, list(range(_SMALL)), 1.0)
    with torch.no_grad():
        image = models.generator.synthesis(few).clamp(-1, 1)
    aligned = align_image(models.inverted(image), ImageAlignmentConfig(), distance=models.distance)
    found[f"SAMM per image, psi 1, e4e, {_SMALL} samples"] = float(aligned.mask.mean())
    return found


def iterations(models: Models, people: Tensor, path: Path) -> dict[str, float]:
    """Writes the sheet; seconds for each image by N."""
    plain = models.inverted(people)
    seconds, rows, mouths = {}, [people, render(plain)], [people, render(plain, models.smile)]
    masks = [torch.full_like(people, -1), torch.full_like(people, -1)]
    for name, options in {"blend only": {"warp": False}, **{f"N={n}": {"iterations": n} for n in (1, 2, 3)}}.items():
        begun = time.perf_counter()
        aligned = align(plain, models.encoder, models.samm, **options)
        rows.append(render(aligned.inversion))
        seconds[name] = (time.perf_counter() - begun) / len(people)
        masks.append((aligned.mask * 2 - 1).expand(-1, 3, -1, -1))
        mouths.append(render(aligned.inversion, models.smile))
    enlarged = [F.interpolate(m[:, :, MOUTH[0], MOUTH[1]], size=(_FULL, _FULL), mode="bicubic") for m in mouths]
    columns = [torch.cat(parts, dim=2) for parts in zip(rows, masks, enlarged, strict=True)]
    write_sheet(torch.stack(columns, dim=1).flatten(0, 1), path, columns=len(columns))
    return seconds


def tau_sweep(models: Models, people: Tensor, path: Path, steps: int) -> dict[str, dict[str, float]]:
    """Writes the sheet; PSNR and the share of the picture outside W+ by tau, the last of which leaves all to W+."""
    found, columns = {}, [torch.cat((people, people, people), dim=2)]
    start = models.inverted(people).w_plus
    config = suited_config(models.distance.name, steps=steps)
    for tau in TAUS:
        chosen = models.latent_map(people, tau)
        inversion = invert_multilayer(people, models.generator, chosen, config, start=start, distance=models.distance)
        drawn, smiling = render(inversion).clamp(-1, 1), render(inversion, models.smile).clamp(-1, 1)
        columns.append(torch.cat((colour_preview(chosen, people), drawn, smiling), dim=2))
        share = float(out_of_domain(chosen).mean())
        found[f"{tau:g}"] = {"outside W+": share, "psnr": float(psnr(drawn, people).mean())}
    write_sheet(torch.stack(columns, dim=1).flatten(0, 1), path, columns=len(columns))
    return found


def main() -> None:
    """Writes results.json and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", nargs="*", default=["alarms", "iterations", "tau"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60, help="of each inversion in the tau sweep")
    options = parser.parse_args()
    keep_freed_memory()
    models = Models()
    _, images = load_people(options.portraits, "test", models.generator.resolution)
    chosen = images[:: max(1, len(images) // options.people)][: options.people]
    people = occlude(chosen, list(range(100, 100 + len(chosen)))).images
    results = {}
    if "alarms" in options.only:
        results["alarms"] = alarms(models, options.samples)
    if "iterations" in options.only:
        results["seconds"] = iterations(models, people, options.out / "iterations.png")
    if "tau" in options.only:
        results["tau"] = tau_sweep(models, people, options.out / "tau.png", options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
