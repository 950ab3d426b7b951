"""Settings of the SAMM trainer: ours for hours on a CPU, and the paper's.

The paper's are those of AbnerVictor/OOD-GAN-inversion `options/train/E4E_Face.yml` and `src/models/OOD_faceGAN_model.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInputError
from .common import cosine

OFFICIAL_STYLE = 50.0  # weight, on VGG19
OFFICIAL_STEPS = 1_800_000


@dataclass(frozen=True)
class SammTraining:
    """Settings of a run; weights are the paper's unless said otherwise. `paper_settings` has the paper's schedule."""

    mask_steps: int = 3500
    image_steps: int = 500
    batch: int = 4
    clean_pictures: bool = True  # nothing foreign is in a picture unless it was drawn: its exact mask is known
    occluded_share: float = 0.85  # of the pictures: those with objects
    objects: tuple[int, int] = (1, 2)  # in such a picture
    deformation: float = 0.045  # of the faces, see `encoder.deformed`
    # Of Algorithm 1, drawn for each step; the original: 2. One in mask steps, in which flows do not learn.
    iterations: tuple[int, int] = (1, 3)
    encoder_iterations: int = 5  # ReStyle's passes
    noise: str = "const"  # of the generator: stored, or "random" in each step
    warp_scale: float = 0.08
    flow_start: float = 0.1  # of the flow channels' normalisation; below 1, shifts are near zero at first
    level_every: int = 50  # steps to the next finer level
    level_starts: tuple[int, ...] = ()  # steps at which the second, third, ... level opens, in place of level_every
    adversarial_start: int = 100  # step of the image stage from which the discriminator counts
    learning_rate: float = 3e-3
    image_learning_rate: float = 2e-4  # the original: 2e-5 for a thousand times as many steps
    last_norm_rate: float = 10.0  # factor on the rate of the normalisation behind flows and masks; 1 in the original
    discriminator_learning_rate: float = 2e-5
    momentum: float = 0.9  # Adam's first decay, of SAMM's own optimiser
    decay_every: int = 0  # steps of a stage after which the learning rates fall to `decay` of theirs; 0: a cosine
    decay: float = 0.75
    final_learning_rate: float = 0.05  # fraction of a learning rate at the end of its stage, by the cosine
    warmup: int = 50  # steps of each stage, before the cosine
    clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.99
    l2: float = 1.0
    perceptual: float = 1.0
    style: float = 0.0
    identity: float = 0.1
    adversarial: float = 0.0  # the original: 0.5; in a short training it takes kept objects for what is wrong
    area: float = 5.0
    binary: float = 0.05  # the original: 0.2
    mask: float = 6.0  # cross-entropy against the exact masks; ours
    # Of each level's mask, coarse first, and the merged one; with a `mask` weight, at least the exact mask's area.
    allowed_area: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2, 0.2)
    seed: int = 4

    def __post_init__(self) -> None:
        for name in ("objects", "allowed_area", "iterations", "level_starts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 <= self.occluded_share <= 1 or self.total < 1 or self.batch < 1 or self.level_every < 0:
            raise InvalidInputError(
                f"SAMM training of {self.total} steps of {self.batch} pictures, occluded_share {self.occluded_share}, "
                f"level_every {self.level_every}: expected positive numbers, and a share in 0..1."
            )
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise InvalidInputError(f"SAMM training with objects {self.objects}: expected 1 <= least <= greatest.")
        if len(self.iterations) != 2 or not 1 <= self.iterations[0] <= self.iterations[1]:
            raise InvalidInputError(
                f"SAMM training with iterations {self.iterations}: expected 1 <= least <= greatest."
            )
        if self.mask_steps and not self.clean_pictures and not self.occluded_share:
            raise InvalidInputError(
                f"SAMM training with {self.mask_steps} mask steps: they learn from drawn objects, and occluded_share is "
                "0. Give a share, or 0 mask steps."
            )
        if self.noise not in ("const", "random"):
            raise InvalidInputError(f"SAMM training with noise {self.noise!r}: expected 'const' or 'random'.")
        if self.decay_every < 0 or not 0 < self.decay <= 1 or list(self.level_starts) != sorted(self.level_starts):
            raise InvalidInputError(
                f"SAMM training with decay_every {self.decay_every}, decay {self.decay} and level_starts "
                f"{self.level_starts}: expected 0 or more, 0..1, and growing numbers."
            )

    @property
    def total(self) -> int:
        """Steps of both stages."""
        return self.mask_steps + self.image_steps

    def open_levels(self, step: int) -> int:
        """Levels in use at a step of the whole run, from the coarsest on."""
        if self.level_starts:
            return 1 + sum(step >= start for start in self.level_starts)
        return 1 + (step // self.level_every if self.level_every else 1_000)

    def rate_factor(self, within: int, length: int) -> float:
        """Of a learning rate, at a step of a stage of `length` steps."""
        if self.decay_every:
            return self.decay ** (within // self.decay_every)
        return cosine(within, length, self.warmup, self.final_learning_rate)


def paper_settings(**changes: Any) -> SammTraining:
    """The original training: real photographs, no exact masks, 1.8 million steps of two pictures.

    Its learning rate falls to three quarters every 15,000 steps: 98 % of the sum of all learning rates is spent in the
    first 200,000 steps. The losses need VGG19 and ArcFace, and a discriminator that starts from nothing. R1 and path
    length are off in the original too.
    """
    paper = SammTraining(
        mask_steps=0,
        image_steps=OFFICIAL_STEPS,
        batch=2,
        clean_pictures=False,
        occluded_share=0.0,
        deformation=0.0,
        iterations=(2, 2),
        noise="random",
        flow_start=1.0,
        level_starts=(2000, 6000, 10_000),
        adversarial_start=0,
        image_learning_rate=2e-5,
        last_norm_rate=1.0,
        momentum=0.0,
        decay_every=15_000,
        decay=0.75,
        warmup=0,
        clip=999.0,
        ema_decay=0.5 ** (32 / 10_000),
        style=OFFICIAL_STYLE,
        adversarial=0.5,
        binary=0.2,
        mask=0.0,
    )
    return dataclasses.replace(paper, **changes)
