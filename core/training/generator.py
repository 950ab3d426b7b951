"""Trains the bundled "portraits" StyleGAN2 by regression from known codes.

A morph is a function of its code (morphs.py), so there is nothing to discriminate at first: a linear embedding takes
the code to w, the synthesis network must draw the morph, an L1 pyramid says how well. W becomes linear in people,
smile, light and pose, which is what editing wants. The mapping network is then fitted so that a normal z gives w
distributed like the morphs' (`fit_mapping`).
Growing: each stage trains a generator of half the size first and hands its blocks on (Karras et al. 2018).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..generator import MAPPING_LR_MUL, Generator, GeneratorConfig
from ..losses import Distance
from ..metrics import psnr
from .adversarial import AdversarialTraining, Anchor, random_faces
from .adversarial import train as adversarial_stage
from .common import (
    HALF_TYPES,
    Registry,
    RunLog,
    add_common_arguments,
    card,
    cosine,
    keep_freed_memory,
    load_checkpoint,
    load_morphs,
    load_scaler_state,
    make_accelerator,
    process_generator,
    pyramid,
    save_checkpoint,
    scaler_state,
    share_gradients,
    step_generator,
    update_ema,
    write_sheet,
)
from .images import FolderImages, MorphImages, RealImages
from .morphs import MorphModel
from .trunk import SqueezeNetTrunk, trunk_distance

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorTraining:
    """Settings of the regression stage."""

    channels: tuple[int, ...] = (192, 192, 192, 96, 48, 24)  # 4x4 .. 128x128
    w_dim: int = 256
    mapping_layers: int = 4
    stages: tuple[tuple[int, int], ...] = ((64, 2500), (128, 6000))  # (resolution, steps)
    batch: int = 16
    learning_rate: float = 1.5e-2
    final_learning_rate: float = 0.05  # fraction of learning_rate at the end of a stage
    embedding_steps: int | None = None  # fix the embedding, and so W, after so many steps: an encoder can start then
    ema_decay: float = 0.998
    levels: int = 3  # of the L1 pyramid
    edges: float = 1.0  # weight of L1 on neighbour differences: plain L1 is content with soft eyes and hair
    face_weight: float = 3.0  # weight of the face's middle against the picture's border
    perceptual: float = 0.15  # weight of the trunk's distance, where a trunk is given
    anchor: float = 20.0  # weight of this loss in the adversarial stage
    seed: int = 1


ADVERSARIAL = "adversarial"  # folder of that stage, in the run's
EMBEDDING_STD = 0.15  # small: styles start near 1, the mean face is learned first and people part from it


class CodeEmbedding(nn.Module):
    """Linear map from a morph's code to w."""

    def __init__(self, code_dim: int, w_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(code_dim, w_dim)
        nn.init.normal_(self.linear.weight, std=EMBEDDING_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, code_dim] -> w [B, w_dim]."""
        return self.linear(codes)


def face_weights(resolution: int, peak: float, device: torch.device | str = "cpu") -> Tensor:
    """[1, 1, r, r] weights of mean 1: `peak` times heavier on eyes, nose and mouth than at the border."""
    line = (torch.arange(resolution, device=device) + 0.5) / resolution
    y, x = torch.meshgrid(line, line, indexing="ij")
    bump = torch.exp(-(((x - 0.5) / 0.26) ** 2 + ((y - 0.58) / 0.30) ** 2))
    weights = 1 + (peak - 1) * bump
    return (weights / weights.mean())[None, None]


def regression_loss(image: Tensor, target: Tensor, weights: Tensor, levels: int, edges: float) -> Tensor:
    """Weighted L1 on colours, and `edges` times the same on neighbour differences, averaged over pyramid levels."""
    loss = image.new_zeros([])
    for error, weight in zip(pyramid(image - target, levels), pyramid(weights, levels), strict=True):
        loss = loss + (error.abs() * weight).mean()
        if edges:
            loss = loss + edges * (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
            loss = loss + edges * (error.diff(dim=3).abs() * weight[..., 1:]).mean()
    return loss / levels


def train(
    morphs: MorphModel,
    out: Path,
    settings: GeneratorTraining = GeneratorTraining(),
    *,
    trunk: Distance | None = None,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Generator:
    """Runs or resumes the regression; returns the averaged generator (its mapping network is not fitted yet).

    Args:
        morphs: the bank of photographs.
        out: folder for checkpoint.pt, log, sample sheets.
        settings: must be the ones of the run being resumed.
        trunk: perceptual distance added to the pixel loss (`trunk.trunk_distance`).
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds; the run stops at a checkpoint and can be resumed.
        max_steps: stops after so many steps in all (for tests).
    """
    accelerator = accelerator or make_accelerator()
    device = accelerator.device
    morphs = morphs.to(device)
    log = RunLog(out, "regression", time_budget=time_budget)
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    stage, step = (checkpoint["stage"], checkpoint["step"]) if checkpoint else (0, 0)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        embedding = CodeEmbedding(morphs.code_dim, settings.w_dim).to(device)
        model = _stage_generator(settings, stage).to(device)
    average = copy.deepcopy(nn.ModuleList((model, embedding)))
    optimiser = accelerator.prepare_optimizer(_optimiser(model, embedding, settings), device_placement=False)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        embedding.load_state_dict(checkpoint["embedding"])
        average.load_state_dict(checkpoint["average"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        load_scaler_state(accelerator, checkpoint.get("scaler", {}))
    done = sum(steps for _, steps in settings.stages[:stage]) + step
    dtype = HALF_TYPES.get(accelerator.mixed_precision, torch.float32)

    def state() -> dict:
        return {
            "stage": stage,
            "step": step,
            "model": model.state_dict(),
            "embedding": embedding.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler_state(accelerator),
            "settings": dataclasses.asdict(settings),
        }

    while stage < len(settings.stages):
        resolution, total = settings.stages[stage]
        weights = face_weights(resolution, settings.face_weight, device)
        while step < total:
            rate = settings.learning_rate * cosine(step, total, warmup=100, low=settings.final_learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            if settings.embedding_steps is not None and done >= settings.embedding_steps:
                optimiser.param_groups[1]["lr"] = 0.0
            codes = morphs.draw_codes(settings.batch, process_generator(accelerator, settings.seed, done)).to(device)
            target = morphs.render(codes, resolution).contiguous(memory_format=torch.channels_last)
            image = model.synthesis(model.broadcast(embedding(codes)), noise="none", dtype=dtype)
            loss = regression_loss(image, target, weights, settings.levels, settings.edges)
            if trunk is not None and settings.perceptual:
                loss = loss + settings.perceptual * trunk(image, target).mean()
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            share_gradients(accelerator, [*model.parameters(), *embedding.parameters()])
            optimiser.step()
            update_ema(average, nn.ModuleList((model, embedding)), min(settings.ema_decay, (1 + done) / (10 + done)))
            step, done = step + 1, done + 1
            if done % 20 == 0 and accelerator.is_main_process:
                batch_psnr = -10 * torch.log10((image.detach().clamp(-1, 1) - target).square().mean() / 4)
                log.write(step=done, resolution=resolution, loss=loss.item(), psnr=batch_psnr.item(), rate=rate)
            stop = log.out_of_time() or (max_steps is not None and done >= max_steps)
            if accelerator.is_main_process and (stop or log.checkpoint_due()):
                save_checkpoint(out / "checkpoint.pt", state())
                _samples(morphs, average, out / f"samples-{done:06d}.png", resolution)
            if stop:
                return _finished(average, morphs)
        if stage + 1 == len(settings.stages):
            break
        stage, step = stage + 1, 0
        model, average, optimiser = _grow(settings, stage, model, average, embedding)
        model.to(device), average.to(device)
        optimiser = accelerator.prepare_optimizer(optimiser, device_placement=False)
    if accelerator.is_main_process and (not checkpoint or step > checkpoint["step"]):
        save_checkpoint(out / "checkpoint.pt", state())
        _samples(morphs, average, out / f"samples-{done:06d}.png", settings.stages[-1][0])
    return _finished(average, morphs)


def fit_mapping(
    generator: Generator,
    embedding: CodeEmbedding,
    morphs: MorphModel,
    *,
    steps: int = 3000,
    batch: int = 256,
    learning_rate: float = 5e-2 / MAPPING_LR_MUL,
    seed: int = 1,
) -> float:
    """Fits `generator.mapping`, in place, so that a normal z gives w with the mean and covariance of the morphs' w.

    No pictures are drawn, so this takes a minute or two on a CPU. Also sets `w_avg`. Returns the relative error of w.
    """
    device = generator.w_avg.device
    with torch.no_grad():
        known = embedding(morphs.draw_codes(8192, step_generator(seed, 0, stream=8)).to(device))
        mean = known.mean(dim=0)
        variances, axes = torch.linalg.eigh(torch.cov(known.t()))
        colouring = axes * variances.clamp(min=0).sqrt()  # [w_dim, w_dim]
    mapping = generator.mapping.requires_grad_(True)
    optimiser = torch.optim.Adam(mapping.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    spread, error = variances.mean(), torch.tensor(0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * cosine(step, steps, warmup=100, low=0.01)
        z = torch.randn(batch, generator.config.z_dim, generator=step_generator(seed, step, stream=7)).to(device)
        direction = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)  # all the mapping network sees of z
        target = mean + direction[:, : len(mean)] @ colouring.t()
        loss = (mapping(z) - target).square().mean() / spread
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        error = error.lerp(loss.detach().cpu(), 0.02 if step else 1.0)
    mapping.requires_grad_(False)
    generator.mapping.w_avg.copy_(mean)
    return float(error.sqrt())


@torch.no_grad()
def start_from(
    generator: Generator,
    encoder: Callable[[Tensor], Tensor],
    morphs: MorphModel,
    out: Path,
    settings: GeneratorTraining,
    samples: int = 6000,
) -> None:
    """Writes the checkpoint of a run that goes on from an earlier generator, in its W, at the last stage of `settings`.

    The earlier run's embedding is not needed: W is linear in the codes, so least squares on the codes of random morphs
    and what the generator's own encoder makes of them gives it back, photographs new to the bank included.
    """
    codes = morphs.draw_codes(samples, step_generator(settings.seed, 0, stream=9)).to(generator.w_avg.device)
    w = torch.cat([encoder(morphs.render(part, generator.resolution)).mean(dim=1) for part in codes.split(50)])
    centre = codes.mean(dim=0)
    x, y = (codes - centre).double(), (w - w.mean(dim=0)).double()
    ridge = 1e-3 * x.square().mean() * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(x.t() @ x + ridge, x.t() @ y).float()  # [code_dim, w_dim]
    embedding = CodeEmbedding(morphs.code_dim, settings.w_dim).to(codes.device)
    embedding.linear.weight.copy_(solution.t())
    embedding.linear.bias.copy_(w.mean(dim=0) - centre @ solution)
    model = _stage_generator(settings, len(settings.stages) - 1).to(codes.device)
    model.load_state_dict(generator.state_dict())
    average = nn.ModuleList((model, embedding))
    save_checkpoint(
        out / "checkpoint.pt",
        {
            "stage": len(settings.stages) - 1,
            "step": 0,
            "model": model.state_dict(),
            "embedding": embedding.state_dict(),
            "average": average.state_dict(),
            "optimiser": _optimiser(model, embedding, settings).state_dict(),
            "settings": dataclasses.asdict(settings),
        },
    )


def load_trained(out: Path, morphs: MorphModel, *, adversarial: bool = True) -> tuple[Generator, CodeEmbedding]:
    """The averaged generator and embedding of a run's last checkpoint, in the sizes that run was given.

    Args:
        out: folder of the run.
        morphs: the bank it was trained on.
        adversarial: with the adversarial stage, where that has begun.

    Raises:
        InvalidInputError: no checkpoint there.
    """
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint is None:
        raise InvalidInputError(f"{out}: no checkpoint.pt there. Train the generator first.")
    settings = GeneratorTraining(**checkpoint["settings"])
    average = nn.ModuleList(
        (_stage_generator(settings, checkpoint["stage"]), CodeEmbedding(morphs.code_dim, settings.w_dim))
    )
    average.load_state_dict(checkpoint["average"])
    generator, embedding = _finished(average, morphs), _parts(average)[1]
    later = load_checkpoint(out / ADVERSARIAL / "checkpoint.pt") if adversarial else None
    if later is not None:
        generator.load_state_dict(later["average"])
    return generator, embedding.requires_grad_(False)


def _stage_generator(settings: GeneratorTraining, stage: int) -> Generator:
    resolution = settings.stages[stage][0]
    blocks = GeneratorConfig.official(resolution).num_ws // 2
    config = GeneratorConfig(
        resolution, settings.channels[:blocks], settings.w_dim, settings.w_dim, settings.mapping_layers
    )
    generator = Generator(config)
    cast(Any, generator).to(memory_format=torch.channels_last)  # an overload that some versions' stubs leave out
    return generator


def _optimiser(model: Generator, embedding: CodeEmbedding, settings: GeneratorTraining) -> torch.optim.Adam:
    groups = [{"params": list(model.synthesis.parameters())}, {"params": list(embedding.parameters())}]
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=(0.9, 0.99))


def _grow(
    settings: GeneratorTraining, stage: int, model: Generator, average: nn.ModuleList, embedding: CodeEmbedding
) -> tuple[Generator, nn.ModuleList, torch.optim.Adam]:
    """The next stage's generator with the trained blocks in it; the new block starts from nothing."""
    grown = []
    for trained in (model, average[0]):
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed + stage)
            bigger = _stage_generator(settings, stage)
        new_block = getattr(bigger.synthesis, f"b{bigger.resolution}")
        nn.init.zeros_(new_block.torgb.weight)  # starts as the smaller picture, enlarged
        bigger.load_state_dict(trained.state_dict(), strict=False)
        grown.append(bigger)
    averaged = nn.ModuleList((grown[1], average[1]))
    return grown[0], averaged, _optimiser(grown[0], embedding, settings)


def _parts(average: nn.ModuleList) -> tuple[Generator, CodeEmbedding]:
    return cast(Generator, average[0]), cast(CodeEmbedding, average[1])


def _finished(average: nn.ModuleList, morphs: MorphModel) -> Generator:
    generator, embedding = _parts(average)
    generator.eval().requires_grad_(False)
    with torch.no_grad():
        codes = morphs.draw_codes(4096, step_generator(99, 0)).to(generator.w_avg.device)
        generator.mapping.w_avg.copy_(embedding(codes).mean(dim=0))
    return generator


@torch.no_grad()
def _samples(morphs: MorphModel, average: nn.ModuleList, path: Path, resolution: int) -> None:
    """Eight unseen morphs above the generator's drawings of them, twice."""
    generator, embedding = _parts(average)
    codes = morphs.draw_codes(16, step_generator(12345, 0)).to(generator.w_avg.device)
    target = morphs.render(codes, resolution)
    image = generator.synthesis(generator.broadcast(embedding(codes)), noise="none")
    logger.info("%s: %.2f dB on unseen morphs", path.name, psnr(image.clamp(-1, 1), target).mean())
    write_sheet(torch.cat((target[:8], image[:8], target[8:], image[8:])), path)


def portrait_anchor(
    morphs: MorphModel,
    embedding: CodeEmbedding,
    resolution: int,
    settings: GeneratorTraining,
    trunk: Distance | None = None,
) -> Anchor:
    """Keeps an adversarially trained generator on the morphs of known codes, by the loss of the regression stage."""
    device = embedding.linear.weight.device
    weights = face_weights(resolution, settings.face_weight, device)

    @torch.no_grad()
    def draw(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        codes = morphs.draw_codes(count, random).to(device)
        return embedding(codes), morphs.render(codes, resolution)

    def loss(image: Tensor, target: Tensor) -> Tensor:
        distance = regression_loss(image, target, weights, settings.levels, settings.edges)
        if trunk is not None and settings.perceptual:
            distance = distance + settings.perceptual * trunk(image, target).mean()
        return settings.anchor * distance

    return Anchor(draw, loss)


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train generator`: on morphs of --portraits, or on the pictures of --images; writes safetensors.

    Portraits: regression, the mapping network, then adversarial steps anchored on the morphs. Images: adversarial steps
    from nothing. Stopped runs go on where they were. The discriminator is written beside the generator.
    """
    parser = argparse.ArgumentParser(prog="gan-inversion train generator", description=__doc__.split("\n")[0])
    add_common_arguments(parser, portraits_required=False)
    defaults, adversarial = GeneratorTraining(), AdversarialTraining()
    parser.add_argument("--images", type=Path, help="folder of your own pictures, in place of --portraits")
    parser.add_argument("--resolution", type=int, default=256, help="of a generator for --images (default %(default)s)")
    parser.add_argument("--channel-base", type=int, default=16384, help="--images: width times size of the fine blocks")
    parser.add_argument("--channel-max", type=int, default=512, help="--images: most channels of a block")
    parser.add_argument("--no-mirror", action="store_true", help="--images: the pictures must not be mirrored")
    parser.add_argument(
        "--stages",
        default=",".join(f"{r}:{n}" for r, n in defaults.stages),
        metavar="SIZE:STEPS,...",
        help="--portraits: sizes to grow through and regression steps at each (default %(default)s)",
    )
    parser.add_argument("--mapping-steps", type=int, default=3000, help="--portraits: steps of the mapping network")
    parser.add_argument("--start", metavar="MODEL", help="--portraits: go on from this generator, in its W ...")
    parser.add_argument("--start-encoder", metavar="MODEL", help="... which this encoder of it reads")
    parser.add_argument("--trunk", type=Path, help="SqueezeNet weights (.npz): a perceptual loss beside the pixels")
    parser.add_argument("--adversarial-steps", type=int, help="default: 2000 on portraits, 25000 on images")
    parser.add_argument("--r1-gamma", type=float, help="default: 0.0002 resolution^2 / batch")
    options = parser.parse_args(argv)
    if (options.portraits is None) == (options.images is None):
        parser.error("give either --portraits or --images")
    keep_freed_memory()
    accelerator = make_accelerator(options.device, options.mixed_precision)
    folder = options.runs / "generator"
    adversarial = dataclasses.replace(
        adversarial,
        steps=options.adversarial_steps
        if options.adversarial_steps is not None
        else (2000 if options.portraits else 25_000),
        batch=options.batch or adversarial.batch,
        r1_gamma=options.r1_gamma,
    )
    log = RunLog(folder, "run", time_budget=options.seconds)
    anchor = None
    if options.images:
        with accelerator.main_process_first():
            reals: RealImages = FolderImages.open(
                options.images, folder, options.resolution, mirror=not options.no_mirror, device=accelerator.device
            )
        config = GeneratorConfig.official(options.resolution, options.channel_base, options.channel_max)
        with torch.random.fork_rng():
            torch.manual_seed(adversarial.seed)
            generator = Generator(config)
        facts = {
            "data": f"pictures of {options.images.name}",
            "title": options.out.stem,
            "domain": "custom",
            "licence": "unknown",
        }
        metadata = {**facts, "settings": json.dumps(dataclasses.asdict(adversarial))}
    else:
        stages = tuple((int(r), int(n)) for r, n in (stage.split(":") for stage in options.stages.split(",")))
        settings = dataclasses.replace(defaults, stages=stages, batch=options.batch or defaults.batch)
        trunk = trunk_distance(SqueezeNetTrunk.load(options.trunk).to(accelerator.device)) if options.trunk else None
        with accelerator.main_process_first():
            morphs = load_morphs(options.portraits, options.runs)
        if options.start and not (folder / "checkpoint.pt").is_file():
            if not options.start_encoder:
                parser.error("--start needs --start-encoder: an encoder of that generator, to find its W")
            start, encoder = (
                registry.load_model(options.start).module,
                registry.load_model(options.start_encoder).module,
            )
            start_from(cast(Generator, start), encoder, morphs, folder, settings)
        generator = train(morphs, folder, settings, trunk=trunk, accelerator=accelerator, time_budget=options.seconds)
        _, embedding = load_trained(folder, morphs, adversarial=False)
        error = fit_mapping(generator, embedding, morphs, steps=options.mapping_steps)
        morphs, embedding = morphs.to(accelerator.device), embedding.to(accelerator.device)
        reals = MorphImages(morphs, generator.resolution)
        anchor = portrait_anchor(morphs, embedding, generator.resolution, settings, trunk)
        metadata = card(
            "generator",
            settings,
            adversarial=json.dumps(dataclasses.asdict(adversarial)),
            mapping_relative_error=f"{error:.3f}",
        )
    if adversarial.steps:
        left = None if log.time_budget is None else max(1.0, log.time_budget - log.seconds())
        generator, discriminator = adversarial_stage(
            generator,
            reals,
            folder / ADVERSARIAL,
            adversarial,
            anchor=anchor,
            accelerator=accelerator,
            time_budget=left,
        )
        if accelerator.is_main_process:
            registry.save_model(discriminator, folder / "discriminator.safetensors", metadata, torch.float16)
    if not accelerator.is_main_process:
        return options.out
    write_sheet(random_faces(generator), folder / "random-faces.png")
    return registry.save_model(generator.eval().requires_grad_(False), options.out, metadata, torch.float16)
