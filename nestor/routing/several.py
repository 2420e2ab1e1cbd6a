"""Routers made of routers: experts under other numbers, and a router for each task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from nestor.routing.given import NEVER
from nestor.types import NOBODY, Origin, Router, Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class Renamed(Router):
    """Another router's decisions about experts that bear new numbers now, or are gone.

    So experts can be added that this router never names, which changes nothing, and others removed, whose tokens then
    lack their share of the answer.

    Args:
        router: decides over len(names) experts, sparsely.
        names: the new number of each, -1 for one that is gone.
        experts: how many there are now.

    Raises:
        ValueError: when two experts get one number, or one that does not exist.
    """

    table: Tensor

    def __init__(self, router: Router, names: Sequence[int], experts: int):
        super().__init__()
        kept = [name for name in names if name != NOBODY]
        if len(set(kept)) != len(kept) or any(not 0 <= name < experts for name in kept):
            raise ValueError(
                f"new numbers must be different ones of 0 to {experts - 1}, or -1; got {tuple(names)}. "
                "Give each expert its own."
            )
        self.router, self.experts = router, experts
        self.register_buffer("table", torch.tensor([*names]), persistent=False)

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> the decision under the new numbers.

        Raises:
            ValueError: when the router decides softly, or over another number of experts.
        """
        old = self.router(tokens, signal)
        if not isinstance(old, Sparse) or old.scores.shape[-1] != len(self.table):
            raise ValueError(
                f"only sparse decisions over {len(self.table)} experts can be renamed; got {type(old).__name__} over "
                f"{old.scores.shape[-1]}. Give one name for each expert."
            )
        index = self._name(old.index)
        origin = old.origin and Origin(
            self._spread(old.origin.logits, NEVER),
            self._spread(old.origin.noisy, NEVER),
            self._name(old.origin.wanted),
            old.origin.mask,
        )
        weight = old.weight.masked_fill(index == NOBODY, 0)
        return Sparse(self._spread(old.scores, 0.0), index, weight, origin)

    def macs(self, tokens: int) -> int:
        """Those of the router."""
        return self.router.macs(tokens)

    def _name(self, index: Tensor) -> Tensor:
        return self.table[index.clamp_min(0)].masked_fill(index == NOBODY, NOBODY)

    def _spread(self, values: Tensor, fill: float) -> Tensor:
        kept = self.table != NOBODY
        empty = values.new_full((*values.shape[:-1], self.experts), fill)
        return empty.index_copy(-1, self.table[kept], values[..., kept])


@final
class ByTask(Router):
    """A router of its own for each task, all over the same experts; `Signal.task` says which decides for an item.

    Routers without an item in a batch get zero gradients, not missing ones.

    Args:
        routers: one for each task, sparse.

    Raises:
        ValueError: when there is none.
    """

    def __init__(self, routers: Sequence[Router]):
        super().__init__()
        if not routers:
            raise ValueError("there must be a router for each task; got none.")
        self.routers = nn.ModuleList(routers)

    def forward(self, tokens: Tensor, signal: Signal) -> Sparse:
        """(B, T, D) -> each item's decision by its task's router.

        Raises:
            ValueError: when the signal has no task or one without a router, or a router decides softly.
        """
        task, n = signal.task, len(self.routers)
        wrong = task is None or (task.numel() and not 0 <= int(task.min()) <= int(task.max()) < n)
        if task is None or wrong:
            got = None if task is None else f"{int(task.min())} to {int(task.max())}"
            raise ValueError(f"routing by task needs Signal(task=...) in [0, {n}); got {got}. Add a router.")
        items = [(task == t).nonzero().squeeze(-1) for t in range(n)]
        parts = [router(tokens[rows], _of(signal, rows)) for router, rows in zip(self.routers, items, strict=True)]
        sparse = [part for part in parts if isinstance(part, Sparse)]
        if len(sparse) != n:
            raise ValueError("routers of tasks must decide sparsely; got a soft one. Give soft mixtures to one task.")
        K, back = max(part.index.shape[-1] for part in sparse), torch.cat(items).argsort()
        wide = [_widened(part, K) for part in sparse]
        origins = [part.origin for part in wide if part.origin is not None]
        joined = len(origins) == n
        return Sparse(
            torch.cat([part.scores for part in wide])[back],
            torch.cat([part.index for part in wide])[back],
            torch.cat([part.weight for part in wide])[back],
            Origin(
                torch.cat([origin.logits for origin in origins])[back],
                torch.cat([origin.noisy for origin in origins])[back],
                torch.cat([origin.wanted for origin in origins])[back],
                signal.mask,
            )
            if joined
            else None,
        )

    def macs(self, tokens: int) -> int:
        """Those of the dearest router."""
        return max(router.macs(tokens) for router in self.routers if isinstance(router, Router))


def _of(signal: Signal, rows: Tensor) -> Signal:
    parts = {name: getattr(signal, name) for name in ("task", "time", "mask", "ids")}
    return replace(signal, **{name: part if part is None else part[rows] for name, part in parts.items()})


def _widened(routing: Sparse, choices: int) -> Sparse:
    more = choices - routing.index.shape[-1]
    if not more:
        return routing
    pad = nn.functional.pad
    origin = routing.origin and replace(routing.origin, wanted=pad(routing.origin.wanted, (0, more), value=NOBODY))
    return replace(
        routing,
        index=pad(routing.index, (0, more), value=NOBODY),
        weight=pad(routing.weight, (0, more)),
        origin=origin,
    )
