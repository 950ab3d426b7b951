"""Trains the identity embedding of core/identity.py on morphs, and measures it on people it has never seen.

Losses: CosFace (Wang et al., CVPR 2018) over the people of the bank, with soft targets, so that a 70/30 morph of two
people lies between them; and supervised contrast (Khosla et al., NeurIPS 2020) with CosFace's margin, between two
pictures of one person against all others of the batch. A few dozen people alone would be learned by heart; mixes of
two or three of them, always with their own shape and texture, are as many new people as wanted, and near ones.
Deviations: a mirrored person is the same person; smile, pose, light and background are drawn anew for every picture.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CorruptFileError, InvalidInputError
from ..files import replacing
from ..identity import CROP_SIZE, IdentityConfig, IdentityNet
from ..imaging import resize_antialiased
from ..metrics import verification_auc
from .common import (
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
    save_checkpoint,
    scaler_state,
    share_gradients,
    step_generator,
    write_sheet,
)
from .morphs import MIRRORED, MorphConfig, MorphModel
from .portraits import load_people, load_smiles

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

VIEW_CONFIG = MorphConfig(yaw=0.3, pitch=0.15, light_side=0.35, brightness=0.5, warmth=0.1, own_background=0.3)
_PICTURE_SIZE = 128  # morphs and photographs are cropped so large, and shrunk
_SAME_MIX = 0.98  # cosine of two mixing vectors from which on they are one person
_BLOCK = 8  # of the JPEG-like noise
_CLIP = 5.0  # norm of the gradient


@dataclass(frozen=True)
class IdentityTraining:
    """Settings of the run."""

    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    dim: int = 96
    pool: int = 2000  # people rendered before training
    views: int = 4  # pictures of each
    single: float = 0.4  # part of the pool that is one person of the bank; the others are mixes of two or three
    steps: int = 1500
    batch: int = 64  # pictures; two of each person
    learning_rate: float = 3e-3
    final_learning_rate: float = 0.02
    weight_decay: float = 0.05
    scale: float = 24.0  # of the cosines of the people's CosFace
    margin: float = 0.2
    temperature: float = 0.1  # of the contrast
    contrast: float = 1.0  # its weight
    ema_decay: float = 0.995
    seed: int = 5

    def __post_init__(self) -> None:
        if self.views < 2 or self.batch < 4 or self.pool < self.batch // 2:
            raise InvalidInputError(
                f"views {self.views}, batch {self.batch}, pool {self.pool}: expected 2 views at least, and a batch of two "
                "people or more, two pictures each, from a pool that has so many."
            )


@dataclass(frozen=True)
class Pool:
    """Rendered people."""

    pictures: Tensor  # [people, views, 3, 96, 96] uint8
    mixes: Tensor  # [people, classes] non-negative, sums of 1: how much of each person of the bank


def classes_of(morphs: MorphModel) -> Tensor:
    """Class [people] of each entry of `person_ids`: a person and the mirror image are one."""
    names = [name.removesuffix(MIRRORED) for name in morphs.person_ids]
    order = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([order[name] for name in names])


def draw_people(morphs: MorphModel, count: int, single: float, generator: torch.Generator) -> Tensor:
    """Mixing weights [count, people] over `person_ids`: the first part single people in turn, then mixes of 2 or 3."""
    people = len(morphs.person_ids)
    weights = torch.zeros(count, people)
    alone = round(single * count) if people > 1 else count
    order = torch.cat([torch.randperm(people, generator=generator) for _ in range(1 + alone // people)])[:alone]
    weights[torch.arange(alone), order] = 1.0
    for row in range(alone, count):
        members = min(people, int(torch.randint(2, 4, (1,), generator=generator)))
        chosen = torch.randperm(people, generator=generator)[:members]
        shares = torch.rand(members, generator=generator) + 0.1
        weights[row, chosen] = shares / shares.sum()
    return weights


def view_codes(morphs: MorphModel, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [count, code_dim] that show the people `weights` [count, people], each with a smile, pose and light drawn anew.

    Shape and texture are those of the same people, which makes the picture theirs.
    """
    count, entries = len(weights), morphs.entries
    codes = morphs.draw_codes(count, generator, VIEW_CONFIG)
    smile = torch.rand(count, generator=generator)
    ends = torch.rand(count, generator=generator) < 0.7
    smile = torch.where(ends, (smile < 0.5).float(), smile)[:, None] * (morphs.smiling_of >= 0).float()
    part = torch.zeros(count, entries)
    part.index_add_(1, morphs.neutral_of, weights * (1 - smile))
    part.index_add_(1, morphs.smiling_of.clamp(min=0), weights * smile)
    codes[:, :entries] = codes[:, entries : 2 * entries] = part
    return codes


def build_pool(morphs: MorphModel, settings: IdentityTraining) -> Pool:
    """Renders the pool; the same for the same bank and settings."""
    weights = draw_people(morphs, settings.pool, settings.single, step_generator(settings.seed, 0, stream=1))
    pictures = torch.empty(settings.pool, settings.views, 3, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    flat, rows = pictures.flatten(0, 1), torch.arange(settings.pool).repeat_interleave(settings.views)
    for number, part in enumerate(rows.split(64)):
        codes = view_codes(morphs, weights[part], step_generator(settings.seed, number, stream=2))
        images = resize_antialiased(morphs.render(codes, _PICTURE_SIZE), CROP_SIZE)
        flat[number * 64 : number * 64 + len(part)] = ((images + 1) * 127.5).round().clamp(0, 255).byte().cpu()
    classes = classes_of(morphs)
    return Pool(pictures, weights @ F.one_hot(classes).float())


def load_pool(morphs: MorphModel, settings: IdentityTraining, path: Path) -> Pool:
    """The pool kept at `path`, or a new one that is then kept there. It shows faces: keep the file private.

    Raises CorruptFileError for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    drawn = [settings.pool, settings.views, settings.single, settings.seed, dataclasses.asdict(VIEW_CONFIG)]
    bank = [morphs.people, morphs.expressions, list(morphs.textures.shape)]
    made_from = hashlib.sha256(json.dumps([drawn, bank]).encode()).hexdigest()
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("made_from") == made_from:
                    return Pool(file.get_tensor("pictures"), file.get_tensor("mixes"))
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(
                f"{path} cannot be read as a pool ({error}): delete it to render it anew."
            ) from error
    pool = build_pool(morphs, settings)
    with replacing(path) as temporary:
        save_file({"pictures": pool.pictures, "mixes": pool.mixes}, temporary, metadata={"made_from": made_from})
    return pool


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, 3, S, S] -> [B, 3, S, S] in [-1, 1] as another camera, crop or generator might give them.

    Mirror image, shift, scale, turn; exposure, contrast, warmth, light from a side; blur, noise, and the coarse steps
    of an 8x8 cosine transform (JPEG's). Numbers are drawn on the CPU, so every device sees the same pictures.
    """
    count, size = len(pictures), pictures.shape[-1]
    device = pictures.device

    def signed(*shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1).to(device)

    def some(part: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < part).float().to(device)

    angle, scale = 0.07 * signed(), 1 + 0.07 * signed()
    mirror = torch.where(signed() < 0, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = 0.07 * signed(2)
    matrix = torch.stack((mirror * cos, -sin, shift[:, 0], mirror * sin, cos, shift[:, 1]), dim=1).view(count, 2, 3)
    grid = F.affine_grid(matrix, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(pictures.float() / 255, grid, padding_mode="border", align_corners=False)

    line = torch.linspace(-1, 1, size, device=device)
    across = 0.2 * signed(1, 1, 1) * line + 0.1 * signed(1, 1, 1) * line[:, None]
    tint = 1 + 0.05 * signed(3, 1, 1)
    x = x * torch.exp2(0.3 * signed(1, 1, 1)) * (1 + across) * tint
    x = (0.5 + (x - 0.5) * (1 + 0.2 * signed(1, 1, 1))).clamp(0, 1)

    small = int(torch.randint(size // 4, size, (1,), generator=generator))
    soft = F.interpolate(x, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    soft = F.interpolate(soft, size=(size, size), mode="bilinear", align_corners=False)
    x = torch.lerp(x, soft, some(0.6) * (signed(1, 1, 1) * 0.5 + 0.5))
    noise = torch.randn(x.shape, generator=generator).to(device)
    x = x + some(0.5) * 0.03 * signed(1, 1, 1) * noise
    x = torch.lerp(x, _coarse_blocks(x, 0.006 + 0.02 * signed(1, 1, 1).abs()), some(0.4))
    return x.clamp(0, 1) * 2 - 1


def _coarse_blocks(x: Tensor, step: Tensor) -> Tensor:
    """Rounds the 8x8 cosine transform of [B, C, S, S] to multiples of `step` [B, 1, 1, 1], coarser for finer waves."""
    count, channels, size, _ = x.shape
    if size % _BLOCK:
        raise InvalidInputError(f"Pictures of {size} px: expected a multiple of {_BLOCK}.")
    wave = torch.arange(_BLOCK, device=x.device, dtype=x.dtype)
    basis = torch.cos(math.pi / _BLOCK * (wave + 0.5) * wave[:, None]) * math.sqrt(2 / _BLOCK)
    basis[0] /= math.sqrt(2)
    n = size // _BLOCK
    blocks = x.view(count, channels, n, _BLOCK, n, _BLOCK).transpose(3, 4)  # [B, C, n, n, 8, 8]
    steps = step[..., None, None] * (1 + wave + wave[:, None])
    rounded = torch.round(basis @ blocks @ basis.t() / steps) * steps
    return (basis.t() @ rounded @ basis).transpose(3, 4).reshape(x.shape)


def people_loss(embedding: Tensor, prototypes: Tensor, mixes: Tensor, scale: float, margin: float) -> Tensor:
    """CosFace with soft targets: cross-entropy over people, the margin taken off in proportion to the share.

    Args:
        embedding: [B, D], length 1.
        prototypes: [classes, D], any length.
        mixes: [B, classes] shares of each person, sums of 1; a single 1 gives CosFace itself.
        scale, margin: of the cosines.
    """
    logits = scale * (embedding @ F.normalize(prototypes, dim=1).t() - margin * mixes)
    return -(mixes * logits.log_softmax(dim=1)).sum(dim=1).mean()


def contrast_loss(embedding: Tensor, mixes: Tensor, temperature: float, margin: float) -> Tensor:
    """Supervised contrast: every picture [B, D] must be nearest to the others of its person, by a margin.

    Pictures are of one person where their mixes [B, classes] are (nearly) the same. Each needs a partner in the batch.
    """
    directions = F.normalize(mixes, dim=1)
    self_pair = torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    same = ((directions @ directions.t() > _SAME_MIX) & ~self_pair).float()
    logits = (embedding @ embedding.t() - margin * same) / temperature
    log_share = logits - logits.masked_fill(self_pair, -math.inf).logsumexp(dim=1, keepdim=True)
    return -((same * log_share).sum(dim=1) / same.sum(dim=1)).mean()


def train(
    morphs: MorphModel,
    out: Path,
    settings: IdentityTraining = IdentityTraining(),
    *,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> IdentityNet:
    """Runs or resumes the training; returns the averaged network, frozen, in eval mode.

    Args:
        morphs: the bank of photographs.
        out: folder for the pool, checkpoint, log and sheet.
        settings: those of the run being resumed; the batch is that of each process.
        accelerator: device, precision and processes; one process on the CPU by default.
        time_budget: seconds until the run stops at a checkpoint.
        max_steps: stops after so many steps in all.
    """
    accelerator = accelerator or make_accelerator()
    device = accelerator.device
    with accelerator.main_process_first():
        pool = load_pool(morphs.to(device), settings, out / "pool.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        net = IdentityNet(IdentityConfig(settings.widths, settings.dim)).to(device).train()
        prototypes = nn.Parameter(torch.randn(pool.mixes.shape[1], settings.dim).to(device))
    average = copy.deepcopy(net).requires_grad_(False)
    parameters = [*net.parameters(), prototypes]
    optimiser = accelerator.prepare_optimizer(
        torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay),
        device_placement=False,
    )
    step = 0
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    if checkpoint:
        step = checkpoint["step"]
        net.load_state_dict(checkpoint["net"])
        average.load_state_dict(checkpoint["average"])
        prototypes.data.copy_(checkpoint["prototypes"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        load_scaler_state(accelerator, checkpoint["scaler"])
    log = RunLog(out, "identity", time_budget=time_budget)
    while step < settings.steps:
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * cosine(
                step, settings.steps, warmup=min(100, settings.steps // 4), low=settings.final_learning_rate
            )
        pictures, mixes = _batch(pool, settings, process_generator(accelerator, settings.seed, step), device)
        with accelerator.autocast():
            embedding = net(pictures)
        by_people = people_loss(embedding, prototypes, mixes, settings.scale, settings.margin)
        by_contrast = contrast_loss(embedding, mixes, settings.temperature, settings.margin)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(by_people + settings.contrast * by_contrast)
        share_gradients(accelerator, parameters)
        accelerator.unscale_gradients(optimiser)
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        step += 1
        _follow(average, net, min(settings.ema_decay, step / (9 + step)))
        if step % 20 == 0 and accelerator.is_main_process:
            log.write(step=step, people=by_people.item(), contrast=by_contrast.item())
        stop = _agreed(accelerator, log.out_of_time()) or (max_steps is not None and step >= max_steps)
        if accelerator.is_main_process and (stop or step == settings.steps or log.checkpoint_due()):
            state = {"step": step, "net": net.state_dict(), "average": average.state_dict(),
                     "prototypes": prototypes.detach(), "optimiser": optimiser.state_dict(),
                     "scaler": scaler_state(accelerator), "settings": dataclasses.asdict(settings)}  # fmt: skip
            save_checkpoint(out / "checkpoint.pt", state)
            write_sheet(pictures[:32], out / "batch.png")
        if stop:
            break
    return average.eval()


def _batch(
    pool: Pool, settings: IdentityTraining, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two views of each of batch / 2 people: pictures [batch, 3, S, S] in [-1, 1] and mixes [batch, classes]."""
    people = torch.randperm(len(pool.pictures), generator=generator)[: settings.batch // 2]
    views = torch.stack([torch.randperm(settings.views, generator=generator)[:2] for _ in people])  # [people, 2]
    pictures = pool.pictures[people[:, None], views].flatten(0, 1).to(device)
    return augment(pictures, generator), pool.mixes[people].repeat_interleave(2, dim=0).to(device)


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Averages weights and normalisation statistics: those of single batches are noisy."""
    current = net.state_dict()
    for name, kept in average.state_dict().items():
        if kept.is_floating_point():
            kept.lerp_(current[name], 1 - decay)
        else:
            kept.copy_(current[name])


def _agreed(accelerator: Accelerator, stop: bool) -> bool:
    """Whether any process wants to stop: all must leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return stop
    return bool(accelerator.gather(torch.tensor([stop], device=accelerator.device)).any())


def portrait_pairs(portraits: str | Path, split: str = "test") -> tuple[Tensor, Tensor]:
    """Neutral and smiling photographs of the people of a split who have both, FFHQ crops [N, 3, 128, 128] each.

    Neutral ones are cropped by the landmarks of the folder, smiling ones around the face that is found in them.
    Raises InvalidInputError where there are not two such people.
    """
    names, neutral = load_people(portraits, split, _PICTURE_SIZE)
    smiles = load_smiles(
        portraits, names, _PICTURE_SIZE, on_problem=lambda name, why: logger.warning("%s: %s", name, why)
    )
    if len(smiles) < 2:
        raise InvalidInputError(f"{portraits}: {len(smiles)} {split} people with a smiling photograph; 2 are needed.")
    return neutral[[names.index(name) for name in smiles]], torch.cat(list(smiles.values()))


def verification(net: nn.Module, portraits: str | Path) -> dict[str, float]:
    """How well `net` tells the `test` people apart, who trained nothing; see `verify_pairs`."""
    return verify_pairs(net, *portrait_pairs(portraits))


@torch.no_grad()
def verify_pairs(net: nn.Module, images: Tensor, others: Tensor) -> dict[str, float]:
    """Every picture of one set against every picture of another one of the same people.

    Args:
        net: crops [N, 3, S, S] -> unit vectors [N, D].
        images, others: [N, 3, S, S] in [-1, 1]; those of equal index show one person, all others different people.

    Returns:
        "auc": how often a pair of one person is more similar than one of two; "same" and "different": mean cosines;
        "threshold": the cosine where as large a part of either kind is taken for the other, "equal_error": that part;
        "same_pairs", "different_pairs": how many.
    """
    cosines = net(images) @ net(others).t()
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return separation(cosines[own], cosines[~own])


def separation(same: Tensor, different: Tensor) -> dict[str, float]:
    """The figures of `verify_pairs` from the cosines of same-person pairs [N] and of different people [M]."""
    same, different = same.double().cpu(), different.double().cpu()
    values = torch.cat((same, different)).unique()
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    missed = (same < cuts[:, None]).double().mean(dim=1)
    mistaken = (different >= cuts[:, None]).double().mean(dim=1)
    gap = (missed - mistaken).abs()
    best = gap == gap.min()  # a whole range where nothing lies between: its middle
    return {
        "auc": verification_auc(same, different),
        "same": float(same.mean()),
        "different": float(different.mean()),
        "threshold": float(cuts[best].mean()),
        "equal_error": float((missed + mistaken)[best].mean() / 2),
        "same_pairs": float(len(same)),
        "different_pairs": float(len(different)),
    }


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train identity`: trains or resumes the embedding, measures it, and writes the file."""
    parser = argparse.ArgumentParser(prog="gan-inversion train identity", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = IdentityTraining()
    parser.add_argument("--steps", type=int, default=defaults.steps)
    options = parser.parse_args(argv)
    keep_freed_memory()
    settings = dataclasses.replace(defaults, steps=options.steps, batch=options.batch or defaults.batch)
    out = options.runs / "identity"
    net = train(
        load_morphs(options.portraits, options.runs),
        out,
        settings,
        accelerator=make_accelerator(options.device, options.mixed_precision),
        time_budget=options.seconds,
    ).cpu()
    figures = verification(net, options.portraits)
    logger.info("test people: %s", figures)
    done = load_checkpoint(out / "checkpoint.pt")
    facts = {name: f"{value:.4g}" for name, value in figures.items()}
    facts["steps"] = str(done["step"] if done else 0)
    return registry.save_model(net, options.out, card("identity embedding", settings, **facts), torch.float16)
