"""200 steps of every trainer, straight and stopped half-way: the weights must be the same to the bit.

    python benchmarks/resume.py [--steps 200]

Small networks on a bank of morphs made up here, on the CPU; no photographs are needed. Prints one line per trainer and
exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gan_inversion.core.deeplab import DeepLabConfig
from gan_inversion.core.generator import Generator, GeneratorConfig
from gan_inversion.core.invertibility import InvertibilityConfig, latent_spaces
from gan_inversion.core.training import adversarial, encoder, generator, identity, invertibility, landmarks, perceptual
from gan_inversion.core.training.common import keep_freed_memory
from gan_inversion.core.training.images import MorphImages
from gan_inversion.core.training.landmark_samples import LandmarkTrainingConfig, Pool
from gan_inversion.core.training.morphs import FIELD_SIZE, MorphModel
from gan_inversion.core.training.trunk import SqueezeNetTrunk

W_DIM, SIZE = 16, 32


def made_up_bank() -> MorphModel:
    """Six people of random colours who smile, with random smooth shapes."""
    random = torch.Generator().manual_seed(0)
    people, expressions = [f"p{k // 2}" for k in range(12)], ["neutral", "smiling"] * 6
    textures = torch.rand(12, 4, 6, 6, generator=random)
    textures = nn.functional.interpolate(textures, size=(80, 80), mode="bilinear") * 255
    textures[:, 3] = 255
    shifts = (torch.rand(12, 2, generator=random) - 0.5) * 0.1
    fields = shifts[:, :, None, None].expand(-1, -1, FIELD_SIZE, FIELD_SIZE).contiguous()
    points = torch.rand(189, 2, generator=random) * 0.5 + 0.25
    offsets = shifts[:, None].expand(-1, 189, -1).contiguous()
    return MorphModel(textures.byte(), fields, points, offsets, people, expressions)


def made_up_pool() -> Pool:
    """Random pictures with random points for the landmark trainer."""
    random = torch.Generator().manual_seed(0)
    pictures = (torch.rand(8, 3, 256, 256, generator=random) * 255).byte()
    points = torch.rand(8, 68, 2, generator=random) * 2 - 1
    points[:, 36:42], points[:, 42:48] = points[:, 36:42] * 0.05 - 0.5, points[:, 42:48] * 0.05 + 0.5
    return Pool(pictures, points, torch.ones(8, dtype=torch.bool), pictures[..., :96, :96] / 127.5 - 1)


def made_up_labels() -> invertibility.Labels:
    """Random pictures with random errors for the invertibility trainer."""
    random, spaces = torch.Generator().manual_seed(0), latent_spaces(SIZE)
    pictures = (torch.rand(8, 3, SIZE, SIZE, generator=random) * 255).byte()
    errors = torch.rand(8, len(spaces), SIZE, SIZE, generator=random).half()
    return invertibility.Labels(pictures, errors, pictures[:, :1], torch.arange(8) > 5, spaces)


def trainers(steps: int, scratch: Path) -> dict[str, Callable[[Path, int | None], nn.Module]]:
    """Name -> function (folder of the run, where to stop) giving the trained network."""
    bank = made_up_bank()
    regression = generator.GeneratorTraining(
        channels=(16, 16, 16, 8),
        w_dim=W_DIM,
        mapping_layers=2,
        stages=((16, steps // 2), (SIZE, steps - steps // 2)),
        batch=4,
    )
    generator.train(bank, scratch, regression, max_steps=steps)
    drawn, embedding = generator.load_trained(scratch, bank)
    started = Generator(GeneratorConfig(16, (16, 16, 8), W_DIM, W_DIM, 2))
    free = adversarial.AdversarialTraining(steps=steps, batch=4)
    anchor = generator.portrait_anchor(bank, embedding, SIZE, regression)
    found: dict[str, Callable[[Path, int | None], nn.Module]] = {
        "generator, regression": lambda out, stop: generator.train(bank, out, regression, max_steps=stop),
        "generator, adversarial": lambda out, stop: nn.ModuleList(
            adversarial.train(started, MorphImages(bank, 16), out, free, max_steps=stop)
        ),
        "generator, anchored": lambda out, stop: nn.ModuleList(
            adversarial.train(drawn, MorphImages(bank, SIZE), out, free, anchor=anchor, max_steps=stop)
        ),
    }
    for kind in encoder.OFFICIAL_CLASSES:
        settings = encoder.EncoderTraining(
            encoder_type=kind,
            stem=8,
            widths=(16, 32, 48),
            units=(1, 1, 1),
            style_channels=16,
            code_steps=steps // 2,
            image_steps=steps - steps // 2,
            batch=2,
            iterations=2,
        )
        found[f"encoder, {kind}"] = lambda out, stop, settings=settings: encoder.train(  # type: ignore[misc]
            bank, drawn, embedding, out, settings, max_steps=stop
        )
    known = identity.IdentityTraining(widths=(4, 4, 8, 8), dim=8, pool=6, views=2, steps=steps, batch=6)
    found["identity"] = lambda out, stop: identity.train(bank, out, known, max_steps=stop)
    small = perceptual.PerceptualTraining(
        widths=(8, 8, 8, 8, 8),
        steps=steps,
        sizes=(32, 48),
        side=48,
        pursuit_size=32,
        faces=3,
        content=3,
        members=2,
        references=2,
        versions=3,
    )
    teacher = made_up_teacher()
    found["perceptual"] = lambda out, stop: perceptual.train(bank, teacher, out, small, max_steps=stop)
    labels = made_up_labels()
    narrow = InvertibilityConfig(labels.spaces, DeepLabConfig(8, (4, 8, 8), (1, 1, 1), 8, 4, 8, 4))
    maps = invertibility.InvertibilityTraining(steps=steps, batch=2)
    found["invertibility"] = lambda out, stop: invertibility.train(labels, out, maps, config=narrow, max_steps=stop)
    (scratch / "landmarks.json").write_text("{}")
    marks = LandmarkTrainingConfig(steps=steps, batch=2)
    landmarks.build_pool = lambda *_: made_up_pool()
    found["landmarks"] = lambda out, stop: landmarks.train(scratch, out, marks, max_steps=stop)
    return found


def made_up_teacher() -> SqueezeNetTrunk:
    """SqueezeNet of the real depth, few channels and random weights."""
    random = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        weights[f"{name}.weight"] = torch.randn(out, into, side, side, generator=random) / (into * side * side) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(out)

    conv("0", 6, 3, 3)
    for index in (3, 4, 6, 7, 9, 10, 11, 12):
        conv(f"{index}.squeeze", 4, 6, 1)
        conv(f"{index}.expand1x1", 3, 4, 1)
        conv(f"{index}.expand3x3", 3, 4, 3)
    return SqueezeNetTrunk(weights)


def main() -> int:
    """Runs every trainer three times: straight, and in two halves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", help="trainers whose name contains this")
    options = parser.parse_args()
    keep_freed_memory()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        (scratch := Path(folder) / "scratch").mkdir()
        for name, train in trainers(options.steps, scratch).items():
            if options.only and options.only not in name:
                continue
            straight = train(Path(folder) / name / "straight", None).state_dict()
            half = train(Path(folder) / name / "stopped", options.steps // 2).state_dict()
            resumed = train(Path(folder) / name / "stopped", None).state_dict()
            same = all(torch.equal(straight[key], resumed[key]) for key in straight)
            moved = any(not torch.equal(straight[key], half[key]) for key in straight)
            failed += not (same and moved)
            print(f"{name:24} {options.steps} steps: {'the same' if same and moved else 'DIFFERS'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
