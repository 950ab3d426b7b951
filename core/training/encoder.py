"""Trains a slim e4e encoder for the "portraits" generator.

Paper: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (SIGGRAPH 2021).
First stage ("codes"): morphs have a known w, so the encoder regresses it; no picture is drawn. Second stage ("images"):
the paper's image losses through the frozen generator (L2, a perceptual distance, the norm of the row deltas), with the
known w as a further anchor that keeps the codes inside W, where the paper uses a discriminator on codes.
Deviations: slim widths and 128 px input; multi-scale L1 in place of LPIPS; rows open all at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..encoders import Encoder, EncoderConfig
from ..generator import Generator
from ..losses import multiscale_distance
from .common import (
    RunLog,
    SaveModel,
    add_common_arguments,
    card,
    cosine,
    keep_freed_memory,
    load_checkpoint,
    load_morphs,
    save_checkpoint,
    step_generator,
    write_sheet,
)
from .generator import CodeEmbedding, load_trained
from .morphs import MorphModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderTraining:
    """Settings of both stages."""

    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 64, 128)
    units: tuple[int, ...] = (2, 2, 4, 2)
    style_channels: int = 64
    code_steps: int = 2000
    image_steps: int = 800
    batch: int = 16
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.05
    l2: float = 1.0
    perceptual: float = 0.8
    delta_norm: float = 2e-4
    code: float = 0.05  # squared error of w, in units of its spread, during the image stage
    seed: int = 2


def encoder_config(generator: Generator, settings: EncoderTraining) -> EncoderConfig:
    """The slim e4e that fits `generator`."""
    return EncoderConfig(
        encoder_type="Encoder4Editing",
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
        input_size=(generator.resolution, generator.resolution),
        stem=settings.stem,
        widths=settings.widths,
        units=settings.units,
        style_channels=settings.style_channels,
        domain="portraits",
    )


def train(
    morphs: MorphModel,
    generator: Generator,
    embedding: CodeEmbedding,
    out: Path,
    settings: EncoderTraining = EncoderTraining(),
    *,
    device: str = "cpu",
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> Encoder:
    """Runs or resumes both stages.

    Args:
        morphs: the bank of photographs.
        generator: frozen, its `w_avg` set.
        embedding: code -> w of that generator.
        out: folder for checkpoint, log and sheets.
        settings: those of the run being resumed.
        device: where to train.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.
    """
    morphs, generator, embedding = morphs.to(device), generator.to(device).eval(), embedding.to(device)
    generator.requires_grad_(False)
    embedding.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = Encoder(encoder_config(generator, settings))
    encoder.set_latent_avg(generator.w_avg)
    encoder.to(device).train()
    optimiser = torch.optim.Adam(encoder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    log = RunLog(out, "encoder", time_budget=time_budget)
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    step = 0
    if checkpoint:
        step = checkpoint["step"]
        encoder.load_state_dict(checkpoint["encoder"])
        optimiser.load_state_dict(checkpoint["optimiser"])
    with torch.no_grad():
        spread = embedding(morphs.draw_codes(512, step_generator(settings.seed, 0, 3)).to(device)).var(dim=0).mean()
    total = settings.code_steps + settings.image_steps
    while step < total:
        drawing = step >= settings.code_steps
        within, length = (step - settings.code_steps, settings.image_steps) if drawing else (step, settings.code_steps)
        peak = settings.learning_rate * (0.5 if drawing else 1.0)
        rate = peak * cosine(within, length, warmup=50, low=settings.final_learning_rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            codes = morphs.draw_codes(settings.batch, step_generator(settings.seed, step)).to(device)
            image = morphs.render(codes, generator.resolution)
            w = embedding(codes)[:, None]
        w_plus = encoder(image)
        code_error = (w_plus - w).square().mean() / spread
        loss = code_error
        if drawing:
            drawn = generator.synthesis(w_plus)
            deltas = w_plus[:, 1:] - w_plus[:, :1]
            loss = (
                settings.code * code_error
                + settings.l2 * (drawn - image).square().mean()
                + settings.perceptual * multiscale_distance(drawn, image).mean()
                + settings.delta_norm * deltas.norm(dim=2).mean()
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            log.write(step=step, loss=loss.item(), code_error=code_error.item(), rate=rate)
        stop = log.out_of_time() or (max_steps is not None and step >= max_steps)
        if stop or step == total or log.checkpoint_due():
            save_checkpoint(
                out / "checkpoint.pt",
                {
                    "step": step,
                    "encoder": encoder.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "settings": dataclasses.asdict(settings),
                },
            )
            _samples(morphs, generator, encoder, out / f"samples-{step:06d}.png")
        if stop:
            break
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def _samples(morphs: MorphModel, generator: Generator, encoder: Encoder, path: Path) -> None:
    codes = morphs.draw_codes(16, step_generator(12345, 0)).to(generator.w_avg.device)
    image = morphs.render(codes, generator.resolution)
    encoder.eval()
    drawn = generator.synthesis(encoder(image))
    encoder.train()
    logger.info("%s: %.2f dB on unseen morphs", path.name, psnr(drawn, image).mean())
    write_sheet(torch.cat((image[:8], drawn[:8], image[8:], drawn[8:])), path)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of [B, 3, H, W] in [-1, 1] (peak-to-peak 2), [B]; `image` is clamped first."""
    return -10 * torch.log10((image.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)) / 4)


def main(argv: Sequence[str], save_model: SaveModel) -> Path:
    """`gan-inversion train encoder`: trains or resumes the e4e of a generator run in the same --runs folder."""
    parser = argparse.ArgumentParser(prog="gan-inversion train encoder", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = EncoderTraining()
    parser.add_argument("--code-steps", type=int, default=defaults.code_steps)
    parser.add_argument("--image-steps", type=int, default=defaults.image_steps)
    options = parser.parse_args(argv)
    keep_freed_memory()
    settings = dataclasses.replace(
        defaults, code_steps=options.code_steps, image_steps=options.image_steps, batch=options.batch or defaults.batch
    )
    morphs = load_morphs(options.portraits, options.runs)
    generator, embedding = load_trained(options.runs / "generator", morphs)
    encoder = train(
        morphs,
        generator,
        embedding,
        options.runs / "encoder",
        settings,
        device=options.device,
        time_budget=options.seconds,
    )
    return save_model(encoder.cpu(), options.out, card("e4e encoder", settings), torch.float16)
