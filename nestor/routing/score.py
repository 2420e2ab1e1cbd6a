"""Scores: what a router thinks of each token and expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.ops.noise import gumbel

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
        return linear(tokens, self.weight, self.bias)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.weight.numel()


@final
class TrailingEnergy(Score):
    """The energy of the channels beyond the narrowest width: what a token loses first when it is made narrow.

    A token whose trailing channels carry much is worth a wide expert. The logit of expert j is
    slope_j * log(energy) + offset_j, rising with j, so that the order of the tokens is that of their energies with
    every expert. It needs no training; slopes and offsets are learnable all the same.

    Args:
        start: the first channel that counts.
        experts: E.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, start: int, experts: int):
        super().__init__()
        self.start = start
        self.slope, self.offset = (nn.Parameter(part) for part in _ranks(experts))
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
        return _some(tokens[..., self.start :].float().square().sum(-1)).log()


@final
class ExpectedLoss(Score):
    """What a token is expected to lose by being narrow, predicted linearly from its embedding.

    z = w . (x / rms(x), log of the trailing energy, log of the whole energy) + b, fitted to measured losses
    (nestor.surgery.losses); the logit of expert j is slope_j * z + offset_j as with TrailingEnergy, and everything is
    learnable. Before it is fitted it equals the trailing energy.

    Args:
        start: the first channel of the trailing ones.
        width: D.
        experts: E.
    """

    def __init__(self, start: int, width: int, experts: int):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.zeros(width + 2))
        self.bias = nn.Parameter(torch.zeros(()))
        self.slope, self.offset = (nn.Parameter(part) for part in _ranks(experts))
        with torch.no_grad():
            self.weight[-2] = 1

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D + 2)."""
        x = tokens.float()
        whole = _some(x.square().sum(-1, keepdim=True))
        trailing = _some(x[..., self.start :].square().sum(-1, keepdim=True))
        return torch.cat([x * (whole / x.shape[-1]).rsqrt(), trailing.log(), whole.log()], -1)

    @torch.no_grad()
    def calibrate(self, tokens: Tensor, losses: Tensor, ridge: float = 10.0) -> None:
        """Fit to measured losses (B, T) of tokens (B, T, D): ridge regression of their standardised logarithms."""
        wanted = losses.double().clamp_min(1e-12).log().flatten()
        wanted = (wanted - wanted.mean()) / wanted.std().clamp_min(1e-9)
        known = self.features(tokens).double().flatten(0, 1)
        centre = known.mean(0)
        known = known - centre
        gram = known.T @ known + ridge * torch.eye(known.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, known.T @ wanted)
        self.weight.copy_(weight)
        self.bias.copy_(-centre @ weight)

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        with torch.autocast(tokens.device.type, enabled=False):
            z = self.features(tokens) @ self.weight.float() + self.bias
        return z.unsqueeze(-1) * self.slope + self.offset

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.weight.numel()


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
class Perturbed(Score):
    """Gumbel noise while training and nothing otherwise, so that the router sees what other choices would have done.

    Beside other scores in a `Sum`, the largest ones are then a draw without replacement (perturbed top-k).

    Args:
        experts: E.
        scale: of the noise.
    """

    def __init__(self, experts: int, scale: float = 0.1):
        super().__init__()
        self.experts, self.scale = experts, scale

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        nothing = torch.zeros(*tokens.shape[:2], self.experts, device=tokens.device)
        return self.scale * gumbel(nothing) if self.training else nothing

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


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b in single precision, whatever surrounds it: half precision makes ties out of differences that decide."""
    with torch.autocast(tokens.device.type, enabled=False):
        return F.linear(tokens.float(), weight.float(), None if bias is None else bias.float())


def _some(energy: Tensor) -> Tensor:
    """An energy whose logarithm is a number, though there may be none, or more than single precision holds."""
    return energy.clamp(1e-12, torch.finfo(energy.dtype).max)


def _ranks(experts: int) -> tuple[Tensor, Tensor]:
    """Slopes and offsets by which the probability of every expert but the first rises with one number of order one.

    The slopes are small and the offsets fall, so that this holds after the softmax too and expert preferred routing
    takes the tokens in the order of that number.
    """
    steps = torch.arange(experts, dtype=torch.get_default_dtype())
    return 0.5 * steps / max(1, experts - 1), -1.2 * steps
