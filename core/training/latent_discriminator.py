"""A discriminator on rows of w_plus, which keeps an encoder's codes where the generator's own w lie.

Paper: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (SIGGRAPH 2021), section 4.2, after Nitzan et
al., "Face Identity Disentanglement via Latent Space Mapping" (2020). Reference implementation: omertov/encoder4editing
`models/latent_codes_pool.py`, `models/discriminator.py`, `training/coach.py`.
Non-saturating loss, R1 on real w, a pool of earlier fake codes.
Deviations: the pool keeps fake codes only (real w are fresh at each step anyway); the fake codes are those of the
encoder's own step, so that no second pass of the encoder is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentCodesDiscriminator(nn.Module):
    """Three linear layers with leaky ReLU and one to a score, for each w on its own."""

    def __init__(self, w_dim: int, hidden_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2)]
        self.mlp = nn.Sequential(*layers, nn.Linear(w_dim, 1))

    def forward(self, w: Tensor) -> Tensor:
        """[..., w_dim] -> scores [...]; positive: taken for a w of the generator."""
        return self.mlp(w).squeeze(-1)


class LatentCodesPool:
    """Earlier codes, half of which come back in place of new ones (Shrivastava et al. 2017)."""

    def __init__(self, size: int, w_dim: int) -> None:
        """Args: size: codes that are kept; 0 gives every new code straight back."""
        self.size = size
        self.codes = torch.zeros(0, w_dim)

    def query(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """[B, w_dim] -> [B, w_dim] on the same device: each code itself, or an earlier one whose place it takes."""
        if self.size == 0:
            return codes
        given = []
        for code in codes.detach().float().cpu():
            if len(self.codes) < self.size:
                self.codes = torch.cat((self.codes, code[None]))
                given.append(code)
            elif torch.rand((), generator=generator) < 0.5:
                place = int(torch.randint(self.size, (), generator=generator))
                given.append(self.codes[place].clone())
                self.codes[place] = code
            else:
                given.append(code)
        return torch.stack(given).to(codes.device)


class LatentAdversary:
    """Discriminator, its optimiser and its pool: a loss for the encoder, and a step of its own."""

    def __init__(
        self,
        w_dim: int,
        *,
        learning_rate: float = 2e-5,
        r1: float = 10.0,
        r1_every: int = 16,
        pool: int = 50,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args as the paper's implementation; `r1` is the weight gamma of R1, applied every `r1_every` steps."""
        self.discriminator = LatentCodesDiscriminator(w_dim).to(device).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate)
        self.pool = LatentCodesPool(pool, w_dim)
        self.r1, self.r1_every = r1, r1_every

    def encoder_loss(self, rows: Tensor) -> Tensor:
        """[B, rows, w_dim] -> scalar; small where the rows pass for w of the generator."""
        return F.softplus(-self.discriminator(rows.float())).mean()

    def step(
        self, index: int, real: Tensor, fake: Tensor, generator: torch.Generator, share: Callable[[], None]
    ) -> dict[str, float]:
        """One step on real and fake w [B, w_dim], and R1 where it is due.

        Args:
            index: number of the step in the whole run.
            generator: CPU random numbers for the pool.
            share: called between backward pass and update, to average gradients over processes.

        Returns:
            The loss and the mean probabilities given to real and fake w.
        """
        self.discriminator.requires_grad_(True)
        real, fake = real.detach().float(), self.pool.query(fake, generator)
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        self._update(loss, share)
        if index % self.r1_every == 0:
            real.requires_grad_(True)
            (slope,) = torch.autograd.grad(self.discriminator(real).sum(), real, create_graph=True)
            self._update(0.5 * self.r1 * self.r1_every * slope.square().sum(dim=1).mean(), share)
        self.discriminator.requires_grad_(False)
        return {
            "discriminator": loss.item(),
            "real": on_real.detach().sigmoid().mean().item(),
            "fake": on_fake.detach().sigmoid().mean().item(),
        }

    def _update(self, loss: Tensor, share: Callable[[], None]) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        share()
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "pool": self.pool.codes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.pool.codes = state["pool"].clone()
