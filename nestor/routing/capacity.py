"""How a budget becomes shares of the tokens, and shares become whole tokens."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from nestor.types import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def solve(budget: float, costs: Sequence[float]) -> Capacity:
    """The most even capacity whose mean cost per token is `budget`.

    Maximum entropy under a linear cost has the closed form c_j ~ exp(-x * cost_j); x is found by bisection. With costs
    that double from expert to expert this is the published optimum (MoNE, section 3.3, delta = 2): its reward is then
    constant, so that only the entropy counts, whatever beta. Experts of equal cost receive equal shares.

    Args:
        budget: mean cost of one token, in the unit of `costs`; the published effective capacity e_c when the costs
            are widths over the full width.
        costs: cost of one token with each expert, not decreasing.

    Raises:
        ValueError: when no capacity has this mean cost.
    """
    require(budget, costs)
    low, high = costs[0], costs[-1]
    if high == low:
        return Capacity(fractions=(1 / len(costs),) * len(costs))
    scaled = [(cost - low) / (high - low) for cost in costs]
    target = (budget - low) / (high - low)
    # At this x the shares of two experts as close as the closest differ by more than a double can tell from zero.
    reach = 750 / min(b - a for a, b in pairwise(scaled) if b > a)
    lo, hi = -reach, reach
    for _ in range(200):
        middle = (lo + hi) / 2
        if _mean(scaled, middle) > target:
            lo = middle
        else:
            hi = middle
    return Capacity(fractions=tuple(_shares(scaled, hi)))


def require(budget: float, costs: Sequence[float]) -> None:
    """Check that tokens of these costs, not decreasing, can cost `budget` on average.

    Raises:
        ValueError: when they cannot.
    """
    low, high = costs[0], costs[-1]
    if any(b < a for a, b in pairwise(costs)):
        raise ValueError(f"costs must not decrease from expert to expert; got {tuple(costs)}. Sort the experts.")
    slack = 1e-9 * abs(high)
    if not low - slack <= budget <= high + slack:
        raise ValueError(
            f"budget must lie in [{low:.4g}, {high:.4g}] for these costs; got {budget:.4g}. "
            "Add a cheaper expert or change the budget."
        )


def whole(capacity: Capacity, tokens: int, cost: Callable[[Sequence[int]], float], limit: float) -> tuple[int, ...]:
    """Whole tokens for each expert that spend as much of `limit` as they can and never more.

    Starts from the published floors and then promotes one token after the other to the next expert, the most expensive
    promotion that still fits first; in the end no promotion fits, so less than one token's cost is left over.

    Args:
        capacity: the shares to start from.
        tokens: how many tokens there are.
        cost: cost of a tuple of counts; must not fall when a token is promoted.
        limit: what may be spent, in the unit of `cost`.

    Raises:
        ValueError: when even the cheapest counts exceed the limit.
    """
    counts = list(capacity.counts(tokens))
    while cost(counts) > limit:
        donor = next((j for j in range(len(counts) - 1, 0, -1) if counts[j]), None)
        if donor is None:
            raise ValueError(f"{tokens} tokens cost at least {cost(counts):.4g}; got a limit of {limit:.4g}. Raise it.")
        counts[donor], counts[donor - 1] = counts[donor] - 1, counts[donor - 1] + 1
    promoted = True
    while promoted:
        promoted = False
        for j in range(len(counts) - 1, 0, -1):
            if counts[j - 1] == 0:
                continue
            trial = counts.copy()
            trial[j - 1], trial[j] = trial[j - 1] - 1, trial[j] + 1
            if cost(trial) <= limit:
                counts, promoted = trial, True
                break
    return tuple(counts)


def per_expert(tokens: Tensor, experts: int, factor: float, choices: int = 1) -> Tensor:
    """Tokens for each expert: `factor` times an even share of all choices, rounded up, at least one, at most all.

    Args:
        tokens: of each item, (B,) or any other shape, which is that of the answer too.
        experts: E.
        factor: 1 is an even share.
        choices: K.

    Raises:
        ValueError: when the factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f"the capacity factor must be positive; got {factor}. 1 is an even share.")
    # Without the slack, 1.2 times 10 would be 13 rounded up; single precision would need more of it.
    even = ((tokens * choices).double() * factor / experts - 1e-6).ceil().clamp_min(1)
    return torch.minimum(tokens, even.to(tokens.dtype))


def _shares(costs: Sequence[float], x: float) -> list[float]:
    peak = max(-x * cost for cost in costs)
    weights = [math.exp(-x * cost - peak) for cost in costs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _mean(costs: Sequence[float], x: float) -> float:
    return math.fsum([share * cost for share, cost in zip(_shares(costs, x), costs, strict=True)])
