"""Adversarial training of a StyleGAN2 generator: from scratch on a folder of pictures, or after regression on morphs.

Papers: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), and "Training Generative
Adversarial Networks with Limited Data" (NeurIPS 2020). Reference implementation: NVlabs/stylegan3 `training/loss.py`,
`training/training_loop.py` (configuration "stylegan2", `--aug ada`).
Deviations: the generator's pictures of a step serve both networks; R1 is taken at the augmented picture, which needs no
second derivative of the resampling; an optional anchor keeps the generator on known pairs of w and picture (the morphs),
and with it the mapping network, and so W, stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..discriminator import Discriminator, DiscriminatorConfig
from ..generator import Generator
from .augment import AdaptiveAugmentation, augment
from .common import (
    HALF_TYPES,
    RunLog,
    load_checkpoint,
    load_scaler_state,
    make_accelerator,
    process_generator,
    save_checkpoint,
    scaler_state,
    share_gradients,
    step_generator,
    update_ema,
    write_sheet,
)
from .images import RealImages

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_SHEET = 32
# Streams of random numbers within one step.
_REALS, _FAKES, _MIXING, _NOISE, _AUGMENT_FAKES, _AUGMENT_REALS, _PATH = range(7)


@dataclass(frozen=True)
class AdversarialTraining:
    """Settings. `r1_gamma` None stands for the reference's rule 0.0002 resolution^2 / batch."""

    steps: int = 25_000
    batch: int = 16  # of each process
    generator_rate: float = 2e-3
    discriminator_rate: float = 2e-3
    r1_gamma: float | None = None
    r1_interval: int = 16
    path_length: float = 2.0  # weight; 0 leaves it out
    path_length_interval: int = 8
    path_length_decay: float = 0.01
    style_mixing: float = 0.9  # probability that the finer rows come from another z; not used with an anchor
    ema_decay: float = 0.999
    w_avg_decay: float = 0.998
    augmentation: AdaptiveAugmentation | None = AdaptiveAugmentation()
    adversarial: float = 1.0  # weight of the adversarial loss in the generator's
    anchored_share: float = 0.5  # of the batch, where there is an anchor
    seed: int = 3


@dataclass(frozen=True)
class Anchor:
    """Known pairs that the generator must keep drawing.

    draw: (count, CPU random generator) -> w [count, w_dim] and pictures [count, 3, r, r].
    loss: (drawn, wanted) -> scalar.
    """

    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def train(
    generator: Generator,
    reals: RealImages,
    out: Path,
    settings: AdversarialTraining = AdversarialTraining(),
    *,
    discriminator: Discriminator | None = None,
    anchor: Anchor | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> tuple[Generator, Discriminator]:
    """Runs or resumes the training; returns the averaged generator and the discriminator, on the CPU.

    Args:
        generator: where a new run starts from; not changed.
        reals: real pictures at the generator's resolution.
        out: folder for checkpoint.pt, log and sample sheets.
        settings: those of the run being resumed.
        discriminator: where a new run starts from; None makes one of the generator's widths.
        anchor: known pairs. With it the mapping network is frozen.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.
    """
    accelerator = accelerator or make_accelerator()
    run = _Run(generator, discriminator, settings, anchor, accelerator)
    log = RunLog(out, "adversarial", time_budget=time_budget)
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        run.load(checkpoint)
    while run.step < settings.steps:
        values = run.one_step(reals)
        if run.step % 10 == 0 and accelerator.is_main_process:
            log.write(step=run.step, **values)
        stop = log.out_of_time() or (max_steps is not None and run.step >= max_steps)
        if accelerator.is_main_process and (stop or run.step == settings.steps or log.checkpoint_due()):
            save_checkpoint(out / "checkpoint.pt", run.state())
            _samples(run.average, out / f"samples-{run.step:06d}.png", settings.seed)
            logger.info("step %d: %s", run.step, ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if stop:
            break
    return run.average.cpu().eval().requires_grad_(False), run.discriminator.cpu().eval().requires_grad_(False)


class _Run:
    """Both networks, their optimisers and running averages: all that a checkpoint holds."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator | None,
        settings: AdversarialTraining,
        anchor: Anchor | None,
        accelerator: Accelerator,
    ) -> None:
        device = accelerator.device
        if discriminator is None:
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed)
                config = generator.config
                discriminator = Discriminator(DiscriminatorConfig(config.resolution, config.channels))
        self.settings, self.anchor, self.accelerator = settings, anchor, accelerator
        self.generator = copy.deepcopy(generator).to(device).train().requires_grad_(True)
        self.generator.mapping.requires_grad_(anchor is None)
        self.discriminator = copy.deepcopy(discriminator).to(device).train().requires_grad_(True)
        for network in (self.generator, self.discriminator):
            cast(Any, network).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.dtype = HALF_TYPES.get(accelerator.mixed_precision, torch.float32)

        def adam(parameters: list[nn.Parameter], rate: float, interval: int) -> Any:
            # Lazy regularisation: one step in `interval` counts double, so the others weigh a little less.
            ratio = interval / (interval + 1)
            made = torch.optim.Adam(parameters, lr=rate * ratio, betas=(0.0, 0.99**ratio))
            return accelerator.prepare_optimizer(made, device_placement=False)

        trained = [p for p in self.generator.parameters() if p.requires_grad]
        self.generator_optimiser = adam(trained, settings.generator_rate, settings.path_length_interval)
        self.discriminator_optimiser = adam(
            list(self.discriminator.parameters()), settings.discriminator_rate, settings.r1_interval
        )
        self.step = 0
        self.probability = 0.0  # of each augmentation
        self.signs: list[float] = []
        self.path_mean = torch.zeros([], device=device)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
            "probability": self.probability,
            "signs": list(self.signs),
            "path_mean": self.path_mean,
            "scaler": scaler_state(self.accelerator),
            "settings": dataclasses.asdict(self.settings),
        }

    def load(self, state: dict[str, Any]) -> None:
        for name in ("generator", "discriminator", "average", "generator_optimiser", "discriminator_optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.probability, self.signs = state["step"], state["probability"], list(state["signs"])
        self.path_mean = state["path_mean"].to(self.path_mean)
        load_scaler_state(self.accelerator, state["scaler"])

    def random(self, stream: int) -> torch.Generator:
        return process_generator(self.accelerator, self.settings.seed, self.step, stream)

    def one_step(self, reals: RealImages) -> dict[str, float]:
        """One step of both networks; the values worth logging."""
        settings, step = self.settings, self.step
        real = reals.draw(settings.batch, self.random(_REALS)).to(self.accelerator.device)
        values, fake = self._generator_step()
        values |= self._discriminator_step(real, fake)
        if settings.path_length and step % settings.path_length_interval == 0:
            values["path_length"] = self._path_length_step()
        if step % settings.r1_interval == 0:
            values["r1"] = self._r1_step(real)
        self._follow(len(real))
        self.step += 1
        values["augment"] = self.probability
        return {
            name: values.get(name, float("nan"))
            for name in ("generator", "anchor", "discriminator", "sign", "r1", "path_length", "augment")
        }

    def _codes(self, count: int, stream: int, mixing: bool) -> Tensor:
        """w_plus [count, num_ws, w_dim] of random z, with another z for the finer rows of some."""
        generator = self.generator
        draw = self.random(stream)
        z = torch.randn(count, 2, generator.config.z_dim, generator=draw).to(self.accelerator.device)
        w = generator.mapping(z[:, 0])
        if self.anchor is None:
            generator.mapping.w_avg.lerp_(w.detach().mean(dim=0), 1 - self.settings.w_avg_decay)
        w_plus = generator.broadcast(w)
        if not mixing or self.anchor is not None:
            return w_plus
        coins = self.random(_MIXING)
        cutoff = torch.randint(1, generator.num_ws, (count,), generator=coins)
        never = torch.rand(count, generator=coins) >= self.settings.style_mixing
        cutoff = torch.where(never, torch.full_like(cutoff, generator.num_ws), cutoff).to(w.device)
        rows = torch.arange(generator.num_ws, device=w.device)
        return torch.where((rows < cutoff[:, None])[..., None], w_plus, generator.broadcast(generator.mapping(z[:, 1])))

    def _draw(self, w_plus: Tensor, stream: int) -> Tensor:
        noise = self.generator.synthesis.random_noise(len(w_plus), self.random(stream))
        return self.generator.synthesis(w_plus, noise=noise, dtype=self.dtype)

    def _judge(self, images: Tensor, stream: int) -> Tensor:
        images = augment(images, self.probability, self.random(stream))
        with self.accelerator.autocast():
            return self.discriminator(images).float()

    def _generator_step(self) -> tuple[dict[str, float], Tensor]:
        settings, known = self.settings, None
        self.discriminator.requires_grad_(False)
        if self.anchor is None:
            w_plus = self._codes(settings.batch, _FAKES, mixing=True)
        else:
            anchored = round(settings.batch * settings.anchored_share)
            w, known = self.anchor.draw(anchored, self.random(_FAKES + 100))
            free = self._codes(settings.batch - anchored, _FAKES, mixing=False)
            w_plus = torch.cat((self.generator.broadcast(w), free))
        fake = self._draw(w_plus, _NOISE)
        adversarial = F.softplus(-self._judge(fake, _AUGMENT_FAKES)).mean()
        loss = settings.adversarial * adversarial
        values = {"generator": adversarial.item()}
        if self.anchor is not None and known is not None:
            kept = self.anchor.loss(fake[: len(known)], known)
            values["anchor"] = kept.item()
            loss = loss + kept
        self._update(loss, self.generator_optimiser, self.generator)
        self.discriminator.requires_grad_(True)
        return values, fake.detach()

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        on_real, on_fake = self._judge(real, _AUGMENT_REALS), self._judge(fake, _AUGMENT_FAKES + 100)
        loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        self._update(loss, self.discriminator_optimiser, self.discriminator)
        self.signs.append(self.accelerator.reduce(on_real.detach().sign().mean(), reduction="mean").item())
        return {"discriminator": loss.item(), "sign": self.signs[-1]}

    def _r1_step(self, real: Tensor) -> float:
        """Gradient penalty on real pictures (Mescheder et al. 2018), every `r1_interval` steps, in float32."""
        settings, resolution = self.settings, real.shape[2]
        gamma = 0.0002 * resolution**2 / (settings.batch * self.accelerator.num_processes)
        gamma = gamma if settings.r1_gamma is None else settings.r1_gamma
        images = augment(real, self.probability, self.random(_AUGMENT_REALS)).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.discriminator(images).sum(), images, create_graph=True)
        penalty = slope.square().sum(dim=(1, 2, 3)).mean()
        self._update(penalty * (gamma / 2) * settings.r1_interval, self.discriminator_optimiser, self.discriminator)
        return penalty.item()

    def _path_length_step(self) -> float:
        """Path length regularisation on half a batch, in float32 (StyleGAN2, section 3.2)."""
        settings = self.settings
        w_plus = self._codes(max(1, settings.batch // 2), _PATH, mixing=True)
        if not w_plus.requires_grad:
            w_plus = w_plus.clone().requires_grad_(True)
        noise = self.generator.synthesis.random_noise(len(w_plus), self.random(_PATH + 100))
        image = self.generator.synthesis(w_plus, noise=noise)
        direction = torch.randn(image.shape, generator=self.random(_PATH + 200)).to(image) / self.generator.resolution
        (slope,) = torch.autograd.grad((image * direction).sum(), w_plus, create_graph=True)
        lengths = slope.square().sum(dim=2).mean(dim=1).sqrt()
        mean = self.path_mean.lerp(
            self.accelerator.reduce(lengths.detach().mean(), reduction="mean"), settings.path_length_decay
        )
        self.path_mean = mean
        loss = (lengths - mean).square().mean() * settings.path_length * settings.path_length_interval
        self._update(loss, self.generator_optimiser, self.generator)
        return lengths.mean().item()

    def _update(self, loss: Tensor, optimiser: Any, network: nn.Module) -> None:
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        trained = [p for p in network.parameters() if p.requires_grad]
        share_gradients(self.accelerator, trained)
        optimiser.step()

    def _follow(self, count: int) -> None:
        """Moves the averaged generator and the augmentation's probability."""
        settings, done = self.settings, self.step
        update_ema(self.average, self.generator, min(settings.ema_decay, (1 + done) / (10 + done)))
        adaptive = settings.augmentation
        if adaptive is not None and len(self.signs) >= adaptive.interval:
            shown = count * self.accelerator.num_processes * len(self.signs)
            self.probability = adaptive.adjust(self.probability, sum(self.signs) / len(self.signs), shown)
        if adaptive is None or len(self.signs) >= adaptive.interval:
            self.signs = []


@torch.no_grad()
def random_faces(generator: Generator, count: int = 64, truncation_psi: float = 1.0, seed: int = 0) -> Tensor:
    """[count, 3, r, r] of seeded z, stored noise."""
    z = torch.randn(count, generator.config.z_dim, generator=step_generator(seed, 0)).to(generator.w_avg.device)
    return torch.cat([generator(part, truncation_psi=truncation_psi) for part in z.split(16)])


def _samples(generator: Generator, path: Path, seed: int) -> None:
    """Pictures of the averaged generator, as drawn and truncated to 0.7 below."""
    rows = [random_faces(generator, _SHEET, psi, seed) for psi in (1.0, 0.7)]
    write_sheet(torch.cat(rows), path)
