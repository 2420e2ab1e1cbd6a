"""Scores: what a router thinks of each token and expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.types import Signal


class Score(nn.Module, ABC):
    """Gives each token a logit for each of E experts."""

    @abstractmethod
    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""

    @abstractmethod
    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""


@final
class Linear(Score):
    """A learned linear map from the token, zero at first: r = W x + b."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width))
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return nn.functional.linear(tokens, self.weight, self.bias)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.weight.numel()


@final
class TrailingEnergy(Score):
    """The energy of the channels beyond the narrowest width: what a token loses first when it is made narrow.

    A token whose trailing channels carry much is worth a wide expert. The logit of expert j is
    slope_j * log(energy) + offset_j, rising with j, so that the order of the tokens is that of their energies with every
    expert. It needs no training; slopes and offsets are learnable all the same.

    Args:
        start: the first channel that counts.
        experts: E.
    """

    def __init__(self, start: int, experts: int):
        super().__init__()
        self.start = start
        steps = torch.linspace(0, 1, experts) if experts > 1 else torch.zeros(1)
        # Small slopes and falling offsets keep every logit but the first rising with the energy even after the softmax.
        self.slope = nn.Parameter(0.5 * steps)
        self.offset = nn.Parameter(-1.2 * torch.arange(experts, dtype=torch.float32))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, tokens: Tensor) -> None:
        """Take centre and spread of the logarithmic energy from these tokens (B, T, D)."""
        energy = self._energy(tokens)
        self.centre.copy_(energy.mean())
        self.spread.copy_(energy.std().clamp_min(1e-6))

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        standard = (self._energy(tokens) - self.centre) / self.spread
        return standard.unsqueeze(-1) * self.slope + self.offset

    def macs(self, tokens: int) -> int:
        """Squaring is counted with the norms, which is to say not at all."""
        return 0

    def _energy(self, tokens: Tensor) -> Tensor:
        return tokens[..., self.start :].float().square().sum(-1).clamp_min(1e-12).log()


@final
class Uniform(Score):
    """Random scores, a new draw for each call from torch's generator: the baseline that every router must beat."""

    def __init__(self, experts: int):
        super().__init__()
        self.experts = experts

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return torch.rand(*tokens.shape[:2], self.experts, device=tokens.device)

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


@final
class Sum(Score):
    """The sum of several scores."""

    def __init__(self, parts: Sequence[Score]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return torch.stack([part(tokens, signal) for part in self.parts]).sum(0)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of all parts."""
        return sum(part.macs(tokens) for part in self.parts if isinstance(part, Score))
