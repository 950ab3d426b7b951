"""Trains the bundled perceptual trunk (core/perceptual.py): its distance learns to agree with that of a larger network.

Teacher: the distance of LPIPS (Zhang et al. 2018) on SqueezeNet 1.1; see `LpipsTeacher` for what it is not. Losses: log
distances of a picture and its versions agree; the order of a picture's versions agrees; the features predict the
teacher's through 1x1 convolutions that are thrown away (Romero et al., "FitNets", ICLR 2015); distances agree on
pictures that the trunk's own gradient made (`_Pursuit`), without which it is a good judge and a bad loss.
Pairs of pictures come from perceptual_samples.py; `agreement` measures on people and pictures that training never saw.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
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

from ..errors import CorruptFileError, MissingPackageError
from ..perceptual import PerceptualTrunk, PerceptualTrunkConfig, tap_distance, trunk_distance
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
    update_ema,
)
from .morphs import MorphModel
from .perceptual_samples import (
    HELD_OUT_PICTURES,
    KINDS,
    PICTURES,
    Pictures,
    draw_comparisons,
    held_out_pictures,
    training_pictures,
)
from .trunk import SqueezeNetTrunk

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_TEACHER_TAPS = ((0,), (1,), (2,), (3, 4), (5, 6))  # of the seven taps of SqueezeNet, by stride
_TINY = 1e-3  # added to distances before logarithms: nobody sees differences below it
_BATCHES, _MEASURE, _PURSUIT = 0, 4, 5  # streams of random numbers; 1 to 3 are those of the pictures
_COARSENESS = (1, 1, 2, 2, 4, 8)  # pixels that a pursuer moves together


@dataclass(frozen=True)
class PerceptualTraining:
    """Settings of a run."""

    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    steps: int = 2600
    sizes: tuple[int, ...] = (64, 80, 96)  # of the compared pictures, multiples of 16; drawn for every step
    side: int = 160  # of the pictures they are cut from
    faces: int = 450  # groups of `members` morphs
    content: int = 450  # groups of `members` crops
    members: int = 3  # pictures of nearly the same thing
    references: int = 5  # per step
    versions: int = 5  # of each reference
    pursuers: int = 6  # pictures that are pulled towards a reference by the trunk itself
    pursuit_size: int = 80  # their size in pixels, a multiple of 16
    pursuit_steps: int = 48  # how long each is pulled
    pursuit_rate: float = 0.03  # root mean square of a pull
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.02
    rank: float = 0.3
    feature: float = 0.3
    pursuit: float = 0.2
    temperature: float = 0.1  # log distances this far apart are ordered with 73 % certainty
    ema_decay: float = 0.995
    seed: int = 5


class LpipsTeacher(nn.Module):
    """SqueezeNet features scaled so that their squared differences are weighted like those of LPIPS v0.1.

    The published heads belong to torchvision's SqueezeNet. The Caffe model was trained separately, its channels stand
    in another order, so only a head's mean weight carries over: it says how much the tap counts.
    """

    def __init__(self, trunk: nn.Module, heads: Sequence[Tensor]) -> None:
        """Args: heads: the weights of each tap of `trunk`, any shape."""
        super().__init__()
        self.trunk = trunk
        self.weights = [float(head.float().clamp(min=0).mean()) for head in heads]

    @staticmethod
    def load(squeezenet: str | Path, heads: str | Path | None = None) -> LpipsTeacher:
        """Reads the .npz of a `SqueezeNetTrunk` and LPIPS' squeeze.pth, by default that of the package lpips."""
        if heads is None:
            package = importlib.util.find_spec("lpips")
            if package is None or package.origin is None:
                raise MissingPackageError("The heads of LPIPS come with the package lpips: pip install lpips.")
            heads = Path(package.origin).parent / "weights" / "v0.1" / "squeeze.pth"
        try:
            tensors = torch.load(heads, map_location="cpu", weights_only=True)
            weights = [tensors[f"lin{tap}.model.1.weight"] for tap in range(7)]
        except Exception as error:  # the reader's own errors are many
            raise CorruptFileError(
                f"{heads}: not the heads of LPIPS squeeze ({type(error).__name__}: {error})."
            ) from error
        return LpipsTeacher(SqueezeNetTrunk.load(squeezenet), weights)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> weighted features of each tap."""
        return [tap * weight**0.5 for tap, weight in zip(self.trunk(image), self.weights, strict=True)]


def train(
    morphs: MorphModel,
    teacher: nn.Module,
    out: Path,
    settings: PerceptualTraining = PerceptualTraining(),
    *,
    accelerator: Accelerator | None = None,
    time_budget: float | None = None,
    max_steps: int | None = None,
) -> PerceptualTrunk:
    """Runs or resumes the distillation; returns the averaged trunk, frozen.

    Args:
        morphs: the bank of photographs.
        teacher: images -> weighted features at seven taps, such as `LpipsTeacher`.
        out: folder for checkpoint.pt and log.
        settings: must be the ones of the run being resumed.
        accelerator: see `common.make_accelerator`; None trains on the CPU.
        time_budget: seconds; the run stops at a checkpoint and can be resumed.
        max_steps: stops after so many steps in all.
    """
    accelerator = accelerator or make_accelerator()
    device = accelerator.device
    log = RunLog(out, "perceptual", time_budget=time_budget)
    pictures = training_pictures(
        morphs.to(device), settings.faces, settings.content, settings.members, settings.side, settings.seed
    )
    teacher = teacher.to(device).eval()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = PerceptualTrunk(PerceptualTrunkConfig(settings.widths))
        adapters = _adapters(teacher, settings)
    student = nn.ModuleList((model, adapters)).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    parameters = list(student.parameters())
    optimiser = accelerator.prepare_optimizer(
        torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99)), device_placement=False
    )
    pursuit = _Pursuit(settings, device)
    checkpoint, step = load_checkpoint(out / "checkpoint.pt"), 0
    if checkpoint:
        step = checkpoint["step"]
        student.load_state_dict(checkpoint["student"])
        average.load_state_dict(checkpoint["average"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        load_scaler_state(accelerator, checkpoint["scaler"])
        pursuit.references, pursuit.images = (checkpoint[name].to(device) for name in ("references", "pursuers"))
    while step < settings.steps and (max_steps is None or step < max_steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps, 50, settings.final_learning_rate)
        random = process_generator(accelerator, settings.seed, step, _BATCHES)
        size = settings.sizes[int(torch.randint(len(settings.sizes), (), generator=random))]
        drawn = draw_comparisons(pictures, settings.references, settings.versions, size, random)
        images = torch.cat((drawn.references, drawn.versions.flatten(0, 1))).to(device)
        images = images.contiguous(memory_format=torch.channels_last)  # the teacher takes half the time
        wanted = teacher(images)
        with accelerator.autocast():
            features = model.features(images)
        loss, values = _loss(model.weighted(features), features, adapters, wanted, settings)
        pursuit.renew(pictures, step, process_generator(accelerator, settings.seed, step, _PURSUIT))
        values["pursuit"] = pursuit.loss(model, teacher)
        loss = loss + settings.pursuit * values["pursuit"]
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        share_gradients(accelerator, parameters)
        accelerator.unscale_gradients(optimiser)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        update_ema(average, model, min(settings.ema_decay, (1 + step) / (10 + step)))
        step += 1
        # Processes must stop together: one that is left alone would wait for the others' gradients.
        late = accelerator.reduce(torch.tensor(float(log.out_of_time()), device=device), reduction="sum").item() > 0
        stop = late or step == settings.steps or step == max_steps
        if accelerator.is_main_process and step % 20 == 0:
            log.write(step=step, size=size, loss=loss.item(), **{name: value.item() for name, value in values.items()})
        if accelerator.is_main_process and (stop or log.checkpoint_due()):
            save_checkpoint(
                out / "checkpoint.pt",
                {
                    "step": step,
                    "student": student.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scaler": scaler_state(accelerator),
                    "references": pursuit.references,
                    "pursuers": pursuit.images,
                    "settings": dataclasses.asdict(settings),
                },
            )
        if stop:
            break
    return average.eval()


def _adapters(teacher: nn.Module, settings: PerceptualTraining) -> nn.ModuleList:
    """1x1 convolutions from each tap to the teacher's taps of that stride."""
    device = next(iter(teacher.buffers())).device
    known = [tap.shape[1] for tap in teacher(torch.zeros(1, 3, 64, 64, device=device))]
    outputs = [sum(known[index] for index in group) for group in _TEACHER_TAPS]
    adapters = [nn.Conv2d(width, out, 1) for width, out in zip(settings.widths, outputs, strict=True)]
    for adapter in adapters:
        nn.init.zeros_(adapter.weight)
    return nn.ModuleList(adapters)


def _loss(
    taps: Sequence[Tensor],
    features: Sequence[Tensor],
    adapters: nn.ModuleList,
    wanted: Sequence[Tensor],
    settings: PerceptualTraining,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the three losses, and each; the references come first in every batch of features."""
    ours, theirs = (_log(_distances(found, settings.references, settings.versions)) for found in (taps, wanted))
    distance = F.smooth_l1_loss(ours, theirs, beta=0.2)
    row, column = torch.triu_indices(settings.versions, settings.versions, offset=1)
    margins = [(logs[:, row] - logs[:, column]) / settings.temperature for logs in (ours, theirs)]
    rank = F.binary_cross_entropy_with_logits(margins[0], margins[1].sigmoid())
    feature = torch.zeros_like(distance)
    some = slice(2 * settings.references)  # the references and as many versions: the adapters cost more than the trunk
    for tap, adapter, group in zip(features, adapters, _TEACHER_TAPS, strict=True):
        target = torch.cat([wanted[index][some] for index in group], dim=1)
        # Means of 2x2 neighbours lie where the teacher's unpadded maps do.
        found = adapter(F.avg_pool2d(tap[some], 2, stride=1))
        feature = feature + (found - target / target.std().clamp(min=1e-6)).square().mean()
    feature = feature / len(_TEACHER_TAPS)
    values = {"distance": distance, "rank": rank, "feature": feature}
    return distance + settings.rank * rank + settings.feature * feature, values


def _log(distance: Tensor) -> Tensor:
    return (distance + _TINY).log()


class _Pursuit:
    """Pictures on their way to a reference along the gradient of the trunk's distance, one pull for each step.

    A distance that is minimised meets pictures that no list of distortions has. Where the trunk is fooled, it calls
    near what the teacher calls far, and learns from it.
    """

    def __init__(self, settings: PerceptualTraining, device: torch.device) -> None:
        self.settings = settings
        self.references = torch.zeros(settings.pursuers, 3, settings.pursuit_size, settings.pursuit_size, device=device)
        self.images = self.references.clone()

    def renew(self, pictures: Pictures, step: int, random: torch.Generator) -> None:
        """Starts all of them at step 0, then one after the other."""
        count, size = self.settings.pursuers, self.settings.pursuit_size
        turn, rest = divmod(step, max(1, self.settings.pursuit_steps // count))
        for slot in range(count) if step == 0 else [turn % count] if rest == 0 else []:
            drawn = draw_comparisons(pictures, 1, 1, size, random)
            self.references[slot], self.images[slot] = drawn.references[0], drawn.versions[0, 0]

    def loss(self, model: PerceptualTrunk, teacher: nn.Module) -> Tensor:
        """Disagreement of the log distances; afterwards every picture has moved."""
        images = self.images.clone().requires_grad_(True)
        ours = tap_distance(model(images), model(self.references))
        theirs = tap_distance(teacher(self.images), teacher(self.references))
        (slopes,) = torch.autograd.grad(ours.sum(), images, retain_graph=True)
        pulls = []
        for slot, slope in enumerate(slopes):
            pixels = _COARSENESS[slot % len(_COARSENESS)]
            coarse = F.interpolate(F.avg_pool2d(slope[None], pixels), scale_factor=float(pixels))
            pulls.append((coarse / coarse.square().mean().sqrt().clamp(min=1e-12)).clamp(-2, 2))
        self.images = (self.images - self.settings.pursuit_rate * torch.cat(pulls)).clamp(-1, 1)
        return F.smooth_l1_loss(_log(ours), _log(theirs), beta=0.2)


def _distances(taps: Sequence[Tensor], references: int, versions: int) -> Tensor:
    """[R, V] from taps of R references followed by their R * V versions."""
    first = [tap[:references].repeat_interleave(versions, dim=0) for tap in taps]
    return tap_distance([tap[references:] for tap in taps], first).view(references, versions)


@torch.no_grad()
def agreement(
    trunk: nn.Module,
    teacher: nn.Module,
    pictures: Pictures,
    *,
    size: int = 128,
    references: int = 160,
    versions: int = 8,
    seed: int = 1234,
) -> dict[str, float]:
    """How well the distance of `trunk` agrees with that of `teacher` on fresh comparisons of `pictures`.

    Args:
        trunk, teacher: images -> weighted features.
        pictures: at least `size` pixels wide, such as `held_out_pictures`.
        size: of the compared pictures.
        references, versions: how many pictures, and versions of each.
        seed: of the comparisons.

    Returns:
        "spearman" and "pearson" over all pairs, "spearman_faces", "spearman_<kind>" within each kind of distortion,
        "triplets": share of pairs of versions of one picture that both call nearer, and "triplets_clear": the same
        where the teacher's distances differ by a tenth or more, "ratio": median of ours by theirs, "pairs".
    """
    device = next(iter(trunk.parameters())).device
    found: list[list[Tensor]] = [[], [], [], []]
    for start in range(0, references, 8):
        count = min(8, references - start)
        drawn = draw_comparisons(pictures, count, versions, size, step_generator(seed, start, _MEASURE))
        images = torch.cat((drawn.references, drawn.versions.flatten(0, 1))).to(device)
        for kept, network in zip(found, (trunk, teacher), strict=False):
            kept.append(_distances(network(images), count, versions).double().cpu())
        found[2].append(drawn.kinds)
        found[3].append(drawn.faces[:, None].expand(-1, versions))
    ours, theirs, kinds, faces = (torch.cat(part) for part in found)
    row, column = torch.triu_indices(versions, versions, offset=1)
    nearer = [(values[:, row] < values[:, column]).flatten() for values in (ours, theirs)]
    gaps = (theirs[:, row] / theirs[:, column]).log().abs().flatten()
    same = (nearer[0] == nearer[1]).double()
    result = {
        "spearman": _correlation(_ranks(ours.flatten()), _ranks(theirs.flatten())),
        "pearson": _correlation(ours.flatten(), theirs.flatten()),
        "spearman_faces": _correlation(_ranks(ours[faces]), _ranks(theirs[faces])),
        "triplets": float(same[gaps > 0].mean()),
        "triplets_clear": float(same[gaps > math.log(1.1)].mean()),
        "ratio": float((ours / theirs).median()),
        "pairs": float(ours.numel()),
    }
    for index, kind in enumerate(KINDS):
        of_kind = kinds == index
        result[f"spearman_{kind}"] = _correlation(_ranks(ours[of_kind]), _ranks(theirs[of_kind]))
    return result


def recovery(
    trunk: nn.Module, teacher: nn.Module, pictures: Pictures, *, size: int = 128, steps: int = 100
) -> dict[str, float]:
    """What the trunk is worth as a loss: softened pictures, every pixel free, pulled back by its distance alone.

    Returns "teacher_before" and "teacher_after", mean distances by the teacher to eight pictures, half of them faces;
    "psnr_before" and "psnr_after" in dB.
    """
    device = next(iter(trunk.parameters())).device
    groups = len(pictures.images)
    chosen = [*range(min(4, pictures.faces)), *range(pictures.faces, min(groups, pictures.faces + 4))]
    wanted = F.interpolate(pictures.images[chosen, 0].float() / 127.5 - 1, (size, size), mode="area").to(device)
    image = F.interpolate(F.avg_pool2d(wanted, 8), (size, size), mode="bilinear").requires_grad_(True)
    distance, judge = trunk_distance(trunk), trunk_distance(teacher)
    optimiser = torch.optim.Adam([image], lr=0.03)

    def figures(when: str) -> dict[str, float]:
        error = (image.detach().clamp(-1, 1) - wanted).square().mean(dim=(1, 2, 3))
        found = judge(image.detach(), wanted).mean().item()
        return {f"teacher_{when}": found, f"psnr_{when}": (-10 * torch.log10(error / 4)).mean().item()}

    before = figures("before")
    for _ in range(steps):
        optimiser.zero_grad()
        distance(image, wanted).sum().backward()
        optimiser.step()
    return {**before, **figures("after")}


def _ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a, b)))[0, 1]) if len(a) > 1 else math.nan


def main(argv: Sequence[str], registry: Registry) -> Path:
    """`gan-inversion train perceptual`; run again to resume."""
    parser = argparse.ArgumentParser(prog="gan-inversion train perceptual", description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    defaults = PerceptualTraining()
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--teacher", type=Path, required=True, help="SqueezeNet 1.1, the Caffe model, as .npz")
    parser.add_argument("--heads", type=Path, default=None, help="LPIPS' squeeze.pth; default: of the package lpips")
    options = parser.parse_args(argv)
    keep_freed_memory()
    settings = dataclasses.replace(defaults, steps=options.steps, references=options.batch or defaults.references)
    teacher = LpipsTeacher.load(options.teacher, options.heads)
    accelerator = make_accelerator(options.device, options.mixed_precision)
    morphs = load_morphs(options.portraits, options.runs)
    out = options.runs / "perceptual"
    trunk = train(morphs, teacher, out, settings, accelerator=accelerator, time_budget=options.seconds)
    trunk, teacher = trunk.cpu(), teacher.cpu()
    trunk.config = dataclasses.replace(trunk.config, domain="portraits")
    held_out = held_out_pictures(options.portraits)
    measured = agreement(trunk, teacher, held_out)
    recovered = recovery(trunk, teacher, held_out)
    logger.info("agreement with the teacher: %s; as a loss: %s", measured, recovered)
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    facts = {
        "steps": str(checkpoint["step"] if checkpoint else 0),
        "teacher": "SqueezeNet 1.1 (Caffe model, MIT), taps weighted by the mean of each LPIPS v0.1 head (BSD-2-Clause)",
        "pictures": f"morphs; {', '.join(PICTURES)} of scikit-image; procedural textures",
        "held_out": f"photographs of test people; {', '.join(HELD_OUT_PICTURES)} of scikit-image",
        "agreement": json.dumps({name: round(value, 4) for name, value in measured.items()}),
        "recovery": json.dumps({name: round(value, 4) for name, value in recovered.items()}),
    }
    return registry.save_model(trunk, options.out, card("perceptual trunk", settings, **facts), torch.float16)
