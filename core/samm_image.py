"""SAMM without a trained network: flows and masks optimised for one photograph, on any generator.

Paper and reference implementation: see samm.py. Free parameters on coarse grids take the place of the networks' output;
how flows and masks act, propagate and merge is the same (Algorithms 1 and 2), and so is the objective: squared error
and a perceptual distance of the blended picture, the mean of each mask above an allowance, and its distance from 0 and 1.

Deviations: a price on the merged mask, without which every mask fills its allowance; masks start from the error of the
plain inversion, flows near zero; the code can be refined too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InvalidInputError
from .generator import SynthesisHooks
from .inversion import Inversion
from .losses import Distance, multiscale_distance, require_finite
from .projection import w_statistics
from .refinement import Progress, Steps, check_settings
from .samm import (
    Aligned,
    Found,
    alignment_penalties,
    compose,
    draw,
    enlarged,
    gated,
    merge_levels,
    moved,
    without_alignment,
)

_FINEST = 256  # px: the original's finest level
_LEVELS = 4
_START_SLOPE, _START_LIMIT = 3.0, 3.0  # of the mask's logit at the start, by the error in units of `start_error`
_JITTER = 0.01  # of the flows' logits at the start


@dataclass(frozen=True)
class ImageAlignmentConfig:
    """Settings of an optimisation; weights are the paper's unless said otherwise."""

    steps: int = 120
    learning_rate: float = 0.1  # of the logits
    resolutions: tuple[int, ...] = ()  # of the generator's features; (): the four finest ones up to 256 px
    warp_scale: float = 0.08  # largest shift, in units of half the picture
    flow_cell: int = 4  # pixels of a level per grid node: shifts are smooth
    mask_cell: int = 2
    l2: float = 1.0
    distance: float = 1.0
    area: float = 5.0
    binary: float = 0.2
    price: float = 0.05  # of the merged mask's mean; ours: a pixel is kept where its squared error is larger
    allowed_area: float = 0.3  # of each mask; the paper has 0.3 for coarse and 0.2 for fine levels
    start_error: float = 0.2  # mean absolute error at which a mask starts at one half
    refine_w: bool = False  # also moves the code
    w_learning_rate: float = 0.02  # in units of the spread of w
    preview_every: int = 10
    seed: int = 0
    seconds: float | None = None  # after so long the best step so far is kept; None is no limit

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        if min(self.steps, self.flow_cell, self.mask_cell, self.preview_every) < 1:
            raise InvalidInputError(
                f"Per-image alignment with {self.steps} steps, cells of {self.flow_cell} and {self.mask_cell} px and a "
                f"preview every {self.preview_every}: expected at least 1."
            )
        check_settings(seconds=(self.seconds, 0))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0 and self.start_error > 0):
            raise InvalidInputError(
                f"Per-image alignment with learning rate {self.learning_rate} and start_error {self.start_error}: "
                "expected positive numbers."
            )


def align_image(
    inversion: Inversion,
    config: ImageAlignmentConfig = ImageAlignmentConfig(),
    *,
    distance: Distance = multiscale_distance,
    warp: bool = True,
    mask: Tensor | None = None,
    mask_mode: str = "union",
    mask_threshold: float = 0.0,
    segments: Tensor | None = None,
    progress: Progress | None = None,
) -> Aligned:
    """Finds flows and masks for the photographs of an inversion.

    Args:
        inversion: as in `samm.align`; its weights and features stay, its code too unless `refine_w`.
        config: settings.
        distance: perceptual or other distance between two batches, [B].
        warp: False optimises masks for the picture as it is drawn, without flows (the paper's "without spatial alignment").
        mask, mask_mode, mask_threshold, segments: as in `samm.align`.
        progress: called after each step; what it raises ends the optimisation.

    Returns:
        The best flows and masks met for each image, by the loss.

    Raises:
        InvalidInputError: resolutions the generator does not have, or a mask that does not fit.
        NotFiniteError: the photograph holds NaN, or the optimisation diverged; names the images.
    """
    inversion = without_alignment(inversion)
    require_finite(inversion.image, "The photograph to align")
    levels = _levels(inversion, config)
    with torch.inference_mode(False):
        inversion = _normal(inversion)
        size = len(inversion)
        if size > 1 and any(len(t) > 1 for m in inversion.modulations for t in m.weight_offsets().values()):
            parts = [_optimise(inversion[i], levels, config, distance, warp, progress) for i in range(size)]
            found = Found(
                {r: torch.cat([part.flows[r] for part, _ in parts]) for r in levels},
                {r: torch.cat([part.masks[r] for part, _ in parts]) for r in levels},
            )
            w_plus = torch.cat([w for _, w in parts])
        else:
            found, w_plus = _optimise(inversion, levels, config, distance, warp, progress)
        with torch.no_grad():
            with_code = dataclasses.replace(inversion, w_plus=w_plus)
            return compose(with_code, found.flows, found.masks, warp, mask, mask_mode, mask_threshold, segments)


def _normal(inversion: Inversion) -> Inversion:
    """A copy whose tensors may take part in an optimisation though they were made in inference mode."""
    modulations = tuple(m.map_tensors(lambda t: t.detach().clone()) for m in inversion.modulations)
    image, w_plus = inversion.image.detach().clone(), inversion.w_plus.detach().clone()
    return dataclasses.replace(inversion, image=image, w_plus=w_plus, modulations=modulations)


def _levels(inversion: Inversion, config: ImageAlignmentConfig) -> tuple[int, ...]:
    known = [r for r in inversion.generator.config.resolutions if r >= 8]
    if not config.resolutions:
        return tuple([r for r in known if r <= _FINEST][-_LEVELS:])
    unknown = sorted(set(config.resolutions) - set(known))
    if unknown:
        raise InvalidInputError(f"No features of {unknown} px to align: this generator has {known}.")
    return tuple(sorted(config.resolutions))


class _Fields:
    """Logits of flows and masks on coarse grids, and what they stand for at a level's size."""

    def __init__(self, error: Tensor, levels: tuple[int, ...], config: ImageAlignmentConfig, warp: bool) -> None:
        """Args: error: [B, 1, R, R], mean absolute error of the plain inversion; warp: False has no flows."""
        self.config, self.levels, self.warp = config, levels, warp
        random = torch.Generator().manual_seed(config.seed)
        self.flows: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        for r in levels:
            nodes = max(2, r // config.flow_cell)
            jitter = _JITTER * torch.randn(1, 2, nodes, nodes, generator=random).to(error)
            self.flows[r] = jitter.repeat(len(error), 1, 1, 1).requires_grad_(True)
            nodes = max(2, r // config.mask_cell)
            relative = F.adaptive_avg_pool2d(error, nodes) / config.start_error - 1
            self.masks[r] = (_START_SLOPE * relative).clamp(-_START_LIMIT, _START_LIMIT).requires_grad_(True)

    def parameters(self) -> list[Tensor]:
        return [*(self.flows.values() if self.warp else ()), *self.masks.values()]

    def hooks(self) -> tuple[SynthesisHooks, Found]:
        """As `Samm.hooks`."""
        found = Found()
        below: Tensor | None = None
        for r in self.levels:
            found.flows[r] = torch.tanh(_smooth(self.flows[r], r)) * self.config.warp_scale
            mask = torch.sigmoid(_smooth(self.masks[r], r))
            below = found.masks[r] = mask if below is None else gated(enlarged(below, mask), mask)
        if not self.warp:
            found.flows = {r: torch.zeros_like(flow) for r, flow in found.flows.items()}
            return SynthesisHooks(), found
        places = {
            r: lambda x, flow=found.flows[r], mask=found.masks[r]: moved(x, flow, mask)  # type: ignore[misc]
            for r in self.levels
        }
        return SynthesisHooks(after_upconv=dict(places)), found


def _smooth(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)


def _optimise(
    inversion: Inversion,
    levels: tuple[int, ...],
    config: ImageAlignmentConfig,
    distance: Distance,
    warp: bool,
    progress: Progress | None,
) -> tuple[Found, Tensor]:
    image = inversion.image
    with torch.no_grad():
        error = (draw(inversion, SynthesisHooks()) - image).abs().mean(dim=1, keepdim=True)
    fields = _Fields(error, levels, config, warp)
    groups = [{"params": fields.parameters(), "lr": config.learning_rate}]
    w_plus = inversion.w_plus.clone()
    if config.refine_w:
        _, spread = w_statistics(inversion.generator, seed=config.seed)
        groups.append({"params": [w_plus.requires_grad_(True)], "lr": config.w_learning_rate * float(spread)})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    variables = [variable for group in optimiser.param_groups for variable in group["params"]]
    best_loss = torch.full((len(image),), math.inf, device=image.device)
    best: Found | None = None
    best_w = w_plus.detach().clone()
    with torch.enable_grad():
        steps = Steps(config.steps, progress, seconds=config.seconds, preview_every=config.preview_every)
        for _ in steps:
            hooks, found = fields.hooks()
            drawn = draw(dataclasses.replace(inversion, w_plus=w_plus), hooks)
            merged = merge_levels(found.masks, drawn.shape[2])
            picture = torch.lerp(drawn, image, merged)
            masks = [*found.masks.values(), merged]
            area, binary = alignment_penalties(masks, [config.allowed_area] * len(masks))
            loss = config.l2 * (picture - image).square().mean(dim=(1, 2, 3))
            loss = loss + config.distance * distance(picture, image) + config.area * area + config.binary * binary
            loss = loss + config.price * merged.mean(dim=(1, 2, 3))
            require_finite(loss[:, None], "The loss of the per-image alignment")
            better = loss.detach() < best_loss
            best_loss = torch.where(better, loss.detach(), best_loss)
            best = _chosen(better, found, best)
            best_w = torch.where(better[:, None, None], w_plus.detach(), best_w)
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=variables)  # nothing else gets a gradient
            optimiser.step()
            steps.done(picture)
    assert best is not None
    return best, best_w


def _chosen(better: Tensor, new: Found, old: Found | None) -> Found:
    """For each image the new fields where they are better."""

    def choose(fresh: dict[int, Tensor], kept: dict[int, Tensor]) -> dict[int, Tensor]:
        return {r: torch.where(better[:, None, None, None], fresh[r].detach(), kept[r]) for r in fresh}

    if old is None:
        return Found({r: t.detach() for r, t in new.flows.items()}, {r: t.detach() for r, t in new.masks.items()})
    return Found(choose(new.flows, old.flows), choose(new.masks, old.masks))
