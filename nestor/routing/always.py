"""Experts that always answer beside those that a router chose, and how much each kind counts."""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.routing.choose import top_k
from nestor.routing.given import NEVER, Hash
from nestor.routing.refine import unweighted
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Score
from nestor.types import NOBODY, Origin, Router, Signal, Sparse

LONG = 1e36
"""The greatest square of a query's length: its own square root can be squared and is still a number."""


@final
class Always(Router):
    """The first experts answer every token, a router chooses among the others, and each token weighs the two kinds.

    Weights are those of two-stage routing (MoH): a_1 * S * softmax(W_s x) for the S that always answer, and a_2 times
    the router's weights for the others, with (a_1, a_2) = 2 * softmax(W_h x). This router's own weights are zero at
    first, and its S and a are then one. Scores and wanted experts, which balance losses read, are the router's alone.

    Args:
        width: D.
        always: S, at least one.
        router: sparse, over the experts that are left.

    Raises:
        ValueError: when nobody answers always.
    """

    def __init__(self, width: int, always: int, router: Router):
        super().__init__()
        if always < 1:
            raise ValueError(f"at least one expert must answer always; got {always}. Use the router alone.")
        self.always, self.router = always, router
        self.share = nn.Parameter(torch.zeros(always, width))
        self.kind = nn.Parameter(torch.zeros(2, width))

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> a decision over S + E experts.

        Raises:
            ValueError: when the router decides softly.
        """
        S, chosen = self.always, self.router(tokens, signal)
        if not isinstance(chosen, Sparse):
            raise ValueError("only sparse decisions can be joined by experts that always answer; got a soft one.")
        clean = tokens if signal.mask is None else tokens.masked_fill(~signal.mask.unsqueeze(-1), 0)
        with torch.autocast(tokens.device.type, enabled=False):
            share, kind = (F.linear(clean.float(), part.float()) for part in (self.share, self.kind))
        # Half precision may make infinities of large tokens, which no softmax survives.
        share, kind = (torch.nan_to_num(part).clamp(NEVER, -NEVER).softmax(-1) for part in (share, kind))
        first = torch.arange(S, device=tokens.device).expand_as(share)
        weight = 2 * kind[..., :1] * S * share
        if signal.mask is not None:
            first = first.masked_fill(~signal.mask.unsqueeze(-1), NOBODY)
            weight = weight.masked_fill(~signal.mask.unsqueeze(-1), 0)
        index = torch.cat([first, self._renamed(chosen.index)], -1)
        weight = torch.cat([weight, 2 * kind[..., 1:] * chosen.weight], -1)
        origin = chosen.origin and Origin(
            F.pad(chosen.origin.logits, (S, 0), value=NEVER),
            F.pad(chosen.origin.noisy, (S, 0), value=NEVER),
            self._renamed(chosen.origin.wanted),
            chosen.origin.mask,
        )
        return Sparse(F.pad(chosen.scores, (S, 0)), index, weight, origin)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""
        return self.router.macs(tokens) + tokens * (self.share.numel() + self.kind.numel())

    def _renamed(self, index: Tensor) -> Tensor:
        return torch.where(index == NOBODY, NOBODY, index + self.always)


def everyone(experts: int) -> ComposedRouter:
    """All experts answer every token, with weight one; nothing is learned."""
    return ComposedRouter(Hash(experts), [], partial(top_k, k=experts), [unweighted])


@final
class Lengths(Score):
    """How long a head's query is, over the spread of these lengths: heads are chosen without a weight of one's own.

    Args:
        inward: (3, H, e, D), queries first, of `layers.heads`; shared with the heads, so that it learns with them.
        bias: (3, H, e).
        first: the heads before this one are not scored, for instance because they always answer.
    """

    def __init__(self, inward: nn.Parameter, bias: nn.Parameter, *, first: int = 0):
        super().__init__()
        self.inward, self.bias, self.first = inward, bias, first

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, H - first)."""
        weight, bias = (part[0, self.first :].float() for part in (self.inward, self.bias))
        with torch.autocast(tokens.device.type, enabled=False):
            asked = F.linear(tokens.float(), weight.flatten(0, 1), bias.flatten()).unflatten(-1, weight.shape[:2])
            # The root of zero has no gradient; a query that small is nobody's.
            length = (asked.square().sum(-1).clamp(max=LONG) + 1e-12).sqrt()
            spread = (length - length.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
            return length / (spread + 1e-12).sqrt()

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens: the queries of all heads that are scored."""
        return tokens * self.inward[0, self.first :].numel()
