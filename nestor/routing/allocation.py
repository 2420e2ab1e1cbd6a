"""How the tokens are shared among the experts at each budget: evenly as published, or as measurements say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from nestor.routing.capacity import require, solve
from nestor.types import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A rule that gives each budget its capacity: the most even one (maximum entropy), or one along a path.

    A path leads from all tokens at the first expert to all at the last, each stage promoting some tokens of the one
    before; between two stages the shares change in proportion. It holds for pictures of any size, since promotions
    never lower a cost. With two experts every rule gives the same shares.

    Attributes:
        path: the fractions of the E experts at each stage; empty for maximum entropy.

    Raises:
        ValueError: when the path does not lead from the first expert to the last by promotions alone.
    """

    path: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.path:
            return
        experts = len(self.path[0])
        if experts < 2 or any(len(stage) != experts for stage in self.path):
            raise ValueError(
                f"a path needs the same experts at each stage, two or more; got {[len(stage) for stage in self.path]} "
                "of them. Give one fraction for every expert."
            )
        for stage in self.path:
            Capacity(fractions=stage)
        if self.path[0][0] != 1 or self.path[-1][-1] != 1:
            raise ValueError(
                f"a path must lead from all tokens at the first expert to all at the last; got {self.path[0]} to "
                f"{self.path[-1]}. Add these two stages."
            )
        for one, other in pairwise(self.path):
            if any(math.fsum(other[j:]) < math.fsum(one[j:]) - 1e-9 for j in range(1, experts)):
                raise ValueError(
                    f"each stage of a path must promote tokens of the one before; got {one}, then {other}. "
                    "Sort the stages, or drop one of these."
                )

    def check(self, experts: int) -> None:
        """Check that the rule is one for this many experts.

        Raises:
            ValueError: when it is a path for others.
        """
        if self.path and len(self.path[0]) != experts:
            raise ValueError(
                f"the allocation is a path for {len(self.path[0])} experts; the network has {experts}. "
                "Measure it again: nestor.surgery.allocate."
            )

    def capacity(self, budget: float, costs: Sequence[float]) -> Capacity:
        """The shares whose mean cost per token is `budget`.

        Args:
            budget: mean cost of one token, in the unit of `costs`.
            costs: cost of one token with each expert, not decreasing.

        Raises:
            ValueError: when no capacity has this mean cost, or the path is one for other experts.
        """
        if not self.path:
            return solve(budget, costs)
        self.check(len(costs))
        require(budget, costs)
        means = [math.fsum(f * c for f, c in zip(stage, costs, strict=True)) for stage in self.path]
        # The last stage before the first that costs more, so that of stages of equal cost the widest counts.
        at = next((i for i, mean in enumerate(means[1:]) if mean > budget), len(means) - 2)
        step = means[at + 1] - means[at]
        part = min(1.0, max(0.0, (budget - means[at]) / step)) if step else 1.0
        ends = zip(self.path[at], self.path[at + 1], strict=True)
        return Capacity(fractions=tuple((1 - part) * low + part * high for low, high in ends))


EVEN = Allocation()
"""Maximum entropy, as published (MoNE, section 3.3)."""
