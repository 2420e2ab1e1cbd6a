"""Scores from what is given: a position, a content, a task, or a decision for many tokens at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.routing.score import Score

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.types import Signal

NEVER = -1e15
"""A logit no token can overcome; finite, so that its square is."""


def positions(tokens: Tensor, signal: Signal) -> Tensor:
    """(B, T): where each token stands."""
    B, T, _ = tokens.shape
    return torch.arange(T, device=tokens.device).expand(B, T)


def contents(tokens: Tensor, signal: Signal) -> Tensor:
    """(B, T): the signal's ids.

    Raises:
        ValueError: when the signal has none.
    """
    if signal.ids is None:
        raise ValueError(
            "hashing by content needs Signal(ids=...) of (B, T); got None. Pass the ids or hash positions."
        )
    return signal.ids


@final
class Hash(Score):
    """Numbers in [0, 1) that depend on nothing but a whole number at each token and the expert; no parameters.

    Equal keys have equal scores on every machine; over many keys every expert is chosen equally often.

    Args:
        experts: E.
        key: which whole numbers (B, T) to hash: `positions` or `contents`.
        seed: another seed, another hash.
    """

    def __init__(self, experts: int, *, key: Callable[[Tensor, Signal], Tensor] = positions, seed: int = 0):
        super().__init__()
        self.experts, self.key, self.seed = experts, key, seed

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        expert = torch.arange(self.experts, device=tokens.device)
        # Each round maps 32 bits to 32 bits one to one; products of 32 and 27 bits fit into a signed 64 bit number.
        bits = _mix(_mix(self.key(tokens, signal).unsqueeze(-1) + 0x9E3779B9 * self.seed) + expert + 1)
        return (bits >> 8).float() / 2**24

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


class _OfTask(Score):
    """A score that knows the task of each item."""

    def __init__(self, tasks: int):
        super().__init__()
        self.tasks = tasks

    @final
    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E).

        Raises:
            ValueError: when the signal has no task, or one that does not exist.
        """
        task = signal.task
        if task is None or task.shape != tokens.shape[:1]:
            got = None if task is None else tuple(task.shape)
            raise ValueError(f"routing by task needs Signal(task=...), one for each of {len(tokens)} items; got {got}.")
        if task.numel() and not 0 <= int(task.min()) <= int(task.max()) < self.tasks:
            raise ValueError(
                f"tasks must lie in [0, {self.tasks}); got {int(task.min())} to {int(task.max())}. "
                "Build the score for more tasks."
            )
        return self.judge(tokens, task)

    @abstractmethod
    def judge(self, tokens: Tensor, task: Tensor) -> Tensor:
        """(B, T, D) and (B,) -> (B, T, E)."""


@final
class Given(_OfTask):
    """Expert t serves the items of task t, and nobody else does: the routing is known, not learned."""

    def judge(self, tokens: Tensor, task: Tensor) -> Tensor:
        """(B, T, D) and (B,) -> (B, T, E)."""
        B, T, _ = tokens.shape
        logits = torch.full((B, self.tasks), NEVER, device=tokens.device).scatter(1, task.unsqueeze(1), 0.0)
        return logits.unsqueeze(1).expand(B, T, self.tasks)

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


@final
class TaskBias(_OfTask):
    """A learned logit for each task and expert; added to another score it conditions that one on the task."""

    def __init__(self, tasks: int, experts: int):
        super().__init__(tasks)
        self.bias = nn.Parameter(torch.zeros(tasks, experts))

    def judge(self, tokens: Tensor, task: Tensor) -> Tensor:
        """(B, T, D) and (B,) -> (B, T, E)."""
        return self.bias.float()[task].unsqueeze(1).expand(-1, tokens.shape[1], -1)

    def macs(self, tokens: int) -> int:
        """None."""
        return 0


@final
class TaskDot(_OfTask):
    """A router for each task over the same experts: r = W_t x."""

    def __init__(self, width: int, tasks: int, experts: int):
        super().__init__(tasks)
        self.weight = nn.Parameter(torch.randn(tasks, experts, width) * width**-0.5)

    def judge(self, tokens: Tensor, task: Tensor) -> Tensor:
        """(B, T, D) and (B,) -> (B, T, E)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return tokens.float() @ self.weight.float()[task].mT

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return tokens * self.weight[0].numel()


@final
class Pooled(Score):
    """One opinion for a whole item, formed of the mean of the tokens that count."""

    def __init__(self, score: Score):
        super().__init__()
        self.score = score

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E), the same for all tokens of an item."""
        return _together(self.score, tokens, signal, max(1, tokens.shape[1]))

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for one mean."""
        return self.score.macs(1)


@final
class Segment(Score):
    """One opinion for each run of `length` tokens, formed of their mean; the last run may be shorter.

    Raises:
        ValueError: when the length is not at least one.
    """

    def __init__(self, score: Score, *, length: int):
        super().__init__()
        if length < 1:
            raise ValueError(f"a segment must have at least one token; got {length}.")
        self.score, self.length = score, length

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E), the same for all tokens of a segment."""
        return _together(self.score, tokens, signal, self.length)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for the means."""
        return self.score.macs(-(-tokens // self.length))


@final
class Jittered(Score):
    """While training, another score hears each token times a random number between 1 - span and 1 + span per channel.

    Raises:
        ValueError: when the span does not lie in [0, 1).
    """

    def __init__(self, score: Score, *, span: float):
        super().__init__()
        if not 0 <= span < 1:
            raise ValueError(f"span must lie in [0, 1); got {span}. Published values are about 0.01.")
        self.score, self.span = score, span

    def forward(self, tokens: Tensor, signal: Signal) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        if self.training and self.span:
            tokens = tokens.float() * (1 + self.span * (2 * torch.rand_like(tokens, dtype=torch.float32) - 1))
        return self.score(tokens, signal)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for this many tokens."""
        return self.score.macs(tokens)


def _together(score: Score, tokens: Tensor, signal: Signal, length: int) -> Tensor:
    B, T, D = tokens.shape
    run = torch.arange(T, device=tokens.device) // length
    runs = -(-T // length)
    mask = signal.mask if signal.mask is not None else torch.ones(B, T, dtype=torch.bool, device=tokens.device)
    # Padding may hold anything, also what no mean survives.
    counting = tokens.float().masked_fill(~mask.unsqueeze(-1), 0)
    total = counting.new_zeros(B, runs, D).index_add(1, run, counting)
    number = counting.new_zeros(B, runs).index_add(1, run, mask.to(counting.dtype))
    mean = total / number.clamp_min(1).unsqueeze(-1)
    return score(mean, replace(signal, mask=None, ids=None, grid=None)).index_select(1, run)


def _mix(bits: Tensor) -> Tensor:
    word = 2**32 - 1
    for factor in (0x45D9F3B, 0x45D9F3B):
        bits = bits & word
        bits = ((bits >> 16) ^ bits) * factor & word
    return (bits >> 16) ^ bits
