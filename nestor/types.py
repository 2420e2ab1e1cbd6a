"""The letters, the records and the contracts that everything in Nestor flows through.

The letters are the same in every docstring and every shape:

    B  items of a batch        D  width of the residual stream
    T  tokens of one item      E  experts
    K  choices of one token    C  slots of one expert
    R  routed rows, all items of a batch together
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOBODY = -1


class Routing(ABC):
    """A decision about tokens and experts, as an immutable value with two verbs."""

    scores: Tensor
    """(B, T, E): what the decision was made from."""

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """(E,): how many rows each expert receives."""

    @abstractmethod
    def dispatch(self, tokens: Tensor) -> Tensor:
        """Rows for the experts, (B, T, D) -> (R, D), sorted by expert."""

    @abstractmethod
    def combine(self, rows: Tensor) -> Tensor:
        """The experts' answers at their tokens, (R, D') -> (B, T, D'); a token that nobody serves gets zero."""


@dataclass(frozen=True, eq=False)
class Origin:
    """How a decision came about, for balance losses and statistics."""

    logits: Tensor
    """(B, T, E): what the score said."""
    noisy: Tensor
    """(B, T, E): the same after noise, if there was any."""
    wanted: Tensor
    """(B, T, K): the choice before a capacity dropped some of it."""
    mask: Tensor | None = None
    """(B, T): true where a token counted; None if all did."""


@dataclass(frozen=True, eq=False)
class Sparse(Routing):
    """Each token names up to K experts: `index` (B, T, K), -1 for nobody, and `weight` (B, T, K)."""

    scores: Tensor
    index: Tensor
    weight: Tensor
    origin: Origin | None = None

    @cached_property
    def _served(self) -> tuple[Tensor, Tensor]:
        flat = self.index.flatten()
        order = flat.argsort(stable=True)
        choice = order[int((flat == NOBODY).sum()) :]
        return choice, choice // self.index.shape[-1]

    @property
    def counts(self) -> Tensor:
        """(E,): how many rows each expert receives."""
        served = self.index[self.index != NOBODY]
        return torch.bincount(served, minlength=self.scores.shape[-1])

    def dispatch(self, tokens: Tensor) -> Tensor:
        """Rows for the experts, (B, T, D) -> (R, D), sorted by expert, then by item and token."""
        _, token = self._served
        return tokens.flatten(0, 1).index_select(0, token)

    def combine(self, rows: Tensor) -> Tensor:
        """Weighted sum of the answers at each token, (R, D') -> (B, T, D')."""
        choice, token = self._served
        B, T, _ = self.index.shape
        weighted = rows * self.weight.flatten().index_select(0, choice).to(rows.dtype).unsqueeze(-1)
        out = rows.new_zeros(B * T, rows.shape[-1]).index_add(0, token, weighted)
        return out.unflatten(0, (B, T))


@dataclass(frozen=True, eq=False)
class Soft(Routing):
    """Each slot gets a mixture of tokens, `give` (B, E, C, T), each token a mixture of slots, `take` (B, T, E, C)."""

    scores: Tensor
    give: Tensor
    take: Tensor

    @property
    def counts(self) -> Tensor:
        """(E,): how many rows each expert receives."""
        B, E, C, _ = self.give.shape
        return torch.full((E,), B * C, device=self.give.device)

    def dispatch(self, tokens: Tensor) -> Tensor:
        """Mixtures of tokens, (B, T, D) -> (R, D) with R = E * B * C, sorted by expert."""
        return torch.einsum("bect,btd->ebcd", self.give.to(tokens.dtype), tokens).flatten(0, 2)

    def combine(self, rows: Tensor) -> Tensor:
        """Mixtures of the slots' answers, (R, D') -> (B, T, D')."""
        B, E, C, _ = self.give.shape
        return torch.einsum("btec,ebcd->btd", self.take.to(rows.dtype), rows.unflatten(0, (E, B, C)))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Which share of the tokens each of E experts receives.

    Raises:
        ValueError: when a fraction is negative or they do not sum to one.
    """

    fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        total = math.fsum(self.fractions)
        if not self.fractions or min(self.fractions) < 0 or abs(total - 1) > 1e-6:
            raise ValueError(
                f"capacity fractions must be non-negative and sum to 1; got {total:.4g} from {self.fractions}. "
                "Use nestor.routing.capacity.solve(budget, costs)."
            )

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Whole tokens for each expert: floors from the last expert down, the rest to the first (MoNE, algorithm 1)."""
        above = tuple(math.floor(share * tokens + 1e-6) for share in self.fractions[1:])
        return (tokens - sum(above), *above)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A budget in time: what one call may take on this machine.

    Attributes:
        ms: milliseconds of one call.
        batch: how many items the call brings; None for those that it does bring, or where there is no call yet, for
            the only batch that was measured.

    Raises:
        ValueError: when either is not positive.
    """

    ms: float
    batch: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ms < math.inf:
            raise ValueError(f"a latency must be a positive number of milliseconds; got {self.ms}. Try Latency(ms=12).")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"the batch of a latency must be at least 1; got {self.batch}. Leave it out, or raise it.")


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Whatever a router may consult beside the tokens; what is unknown is None."""

    counts: tuple[int, ...] | None = None
    """How many tokens of each item every expert shall receive."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches, row by row, at the end of the tokens."""
    task: Tensor | None = None
    """(B,): which task an item belongs to."""
    time: Tensor | None = None
    """(B,): diffusion time or position in a stream."""
    mask: Tensor | None = None
    """(B, T): true where a token counts."""
    ids: Tensor | None = None
    """(B, T): whole numbers that say what stands at a token, for instance its word."""
    routing: Routing | None = None
    """A decision made earlier."""


class Router(nn.Module, ABC):
    """Decides which experts serve which tokens."""

    @abstractmethod
    def forward(self, tokens: Tensor, signal: Signal) -> Routing:
        """(B, T, D) and whatever else is known -> a decision."""

    @abstractmethod
    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one decision over this many tokens."""


class Experts(nn.Module, ABC):
    """E experts that answer rows sorted by expert."""

    @abstractmethod
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""

    @property
    @abstractmethod
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""


@dataclass(frozen=True, eq=False)
class Output:
    """What a model returns: `logits` (B, classes) if it has a head, `tokens` (B, T, D), and the `routings` taken.

    Where the head draws a map, its logits are (B, H, W): the log-odds of each pixel. The tokens stand after the final
    norm, in the order and basis of the original network, class token first. They are put together when they are first
    read, so that nobody pays for tokens that only wanted logits.
    """

    logits: Tensor | None
    routings: tuple[Routing, ...]
    read: Callable[[], Tensor]

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T, D)."""
        return self.read()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A thing on its way to or from disk: what it is, how it is built, and its tensors."""

    kind: str
    settings: Mapping[str, object]
    tensors: Mapping[str, Tensor]


class Edit(Protocol):
    """A surgery: takes a model and returns a new one, never changing the old."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the edited copy."""
        ...
