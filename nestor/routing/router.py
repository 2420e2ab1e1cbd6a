"""Routers: a score and a choice put together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, final

import torch
from torch import Tensor, nn

from nestor.routing.adjust import Adjustment, Proposal
from nestor.routing.choose import expert_preferred
from nestor.types import Origin, Router, Routing, Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.routing.score import Score

LIMIT = 1e15
"""Logits stay within +-LIMIT, so that half precision's infinities are numbers and the square of a logit is finite."""


class Choice(Protocol):
    """A function of nestor.routing.choose with its settings bound, for instance `partial(top_k, k=2)`."""

    def __call__(self, scores: Tensor, preference: Tensor | None = None, /) -> Routing:
        """Scores and preferences (B, T, E) -> a decision."""
        ...


@final
class ComposedRouter(Router):
    """A score, adjustments, a choice and refinements, one after the other; any published token router is one of these.

        Switch      Jittered(Dot(D, E)), [Softmax()], partial(top_k, k=1), [partial(drop_in_batch, factor=1.25)]
        V-MoE       Dot(D, E), [Noise(1 / E), Softmax()], partial(top_k, k=2), [partial(drop, order=heaviest_first...)]
        Mixtral     Dot(D, E), [Softmax()], partial(top_k, k=2), [renormalise]
        DeepSeek    Dot(D, E), [Sigmoid(), Bias(E), GroupLimit(...)], partial(top_k, k=8), [partial(renormalise, ...)]
        Soft MoE    Slots(D, E, slots=C), [], partial(soft, slots=C)

    Masked tokens are never chosen. NaN is no error, which a device would have to be asked for: it comes last and gives
    NaN to its own item, where training and serving find it. `choice` may be replaced between calls, which changes k,
    a threshold or a capacity without touching a parameter.

    Args:
        score: what is thought of each token and expert.
        adjustments: applied in order; the gate (Softmax, Sigmoid) is one of them.
        choice: how scores become a decision.
        refinements: what is done to a sparse decision, in order.
    """

    def __init__(
        self,
        score: Score,
        adjustments: Sequence[Adjustment],
        choice: Choice,
        refinements: Sequence[Callable[[Sparse], Sparse]] = (),
    ):
        super().__init__()
        self.score = score
        self.adjustments = nn.ModuleList(adjustments)
        self.choice = choice
        self.refinements = tuple(refinements)

    def forward(self, tokens: Tensor, signal: Signal) -> Routing:
        """(B, T, D) -> a decision.

        Raises:
            ValueError: as in `judged`, or when a soft decision is to be refined.
        """
        mask, logits = signal.mask, judged(self.score, tokens, signal)
        proposal = Proposal(scores=logits, preference=logits, noisy=logits)
        for adjustment in self.adjustments:
            proposal = adjustment(proposal, signal)
        preference = proposal.preference
        # A token of which nothing can be said takes nobody's place; its weights stay NaN, and are seen in its answer.
        preference = preference.masked_fill(preference.isnan(), torch.finfo(preference.dtype).min)
        if mask is not None:
            preference = preference.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        routing = self.choice(proposal.scores, preference)
        if isinstance(routing, Sparse):
            origin = Origin(logits=logits, noisy=proposal.noisy, wanted=routing.index, mask=mask)
            routing = replace(routing, origin=origin)
            for refinement in self.refinements:
                routing = refinement(routing)
        elif self.refinements:
            raise ValueError(
                f"only sparse decisions can be refined; got {type(routing).__name__}. Leave refinements out."
            )
        return routing

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""
        return self.score.macs(tokens)


@final
class ExpertPreferredRouter(Router):
    """Softmax over the experts, then expert preferred routing with the signal's counts (MoNE, section 3.2)."""

    def __init__(self, score: Score):
        super().__init__()
        self.score = score

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> a decision with K = 1 whose weights are the probabilities of the chosen experts.

        Masked tokens are served by nobody; there are so many fewer for the first expert.

        Raises:
            ValueError: as in `judged`, or when the signal has no counts.
        """
        if signal.counts is None:
            raise ValueError("expert preferred routing needs Signal(counts=...); got None.")
        logits = judged(self.score, tokens, signal)
        routing = expert_preferred(logits.softmax(-1), signal.counts, signal.mask)
        return replace(routing, origin=Origin(logits=logits, noisy=logits, wanted=routing.index, mask=signal.mask))

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""
        return self.score.macs(tokens)


def judged(score: Score, tokens: Tensor, signal: Signal) -> Tensor:
    """(B, T, D) -> (B, T, E): what a score says, within +-LIMIT and in single precision; masked tokens are zeros to it.

    Raises:
        ValueError: when the mask is not (B, T).
    """
    B, T, _ = tokens.shape
    mask = signal.mask
    if mask is not None and (mask.shape != (B, T) or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be boolean of shape {(B, T)}; got {mask.dtype} of {tuple(mask.shape)}. "
            "True is where a token counts."
        )
    if mask is not None:
        # Padding may hold anything; zero times NaN would still reach the score's gradient.
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0)
    return score(tokens, signal).float().clamp(-LIMIT, LIMIT)
