"""A network of modules for several tasks loses those that a task does not use, or learns a task beside the others."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from nestor.experts.feedforward import uniform
from nestor.experts.joined import Joined
from nestor.experts.stacked import select
from nestor.layers.queries import QueryMixture
from nestor.routing.several import ByTask, Renamed
from nestor.surgery.shrink import keep
from nestor.types import NOBODY, Router

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.experts.stacked import Stack
    from nestor.layers.queries import MixedBlock
    from nestor.models.tasked import Tasked


def cut(model: Tasked, kept: Sequence[Sequence[int]]) -> Tasked:
    """A copy that has some of the experts of each layer; tokens lose the share of those that are gone, all else stays.

    Args:
        model: of stacked experts.
        kept: for each of `model.mixtures` the experts that stay, at least one.

    Raises:
        ValueError: when there is not one list for each layer, or an expert does not exist or is named twice.
    """
    new = copy.deepcopy(model)
    if len(kept) != len(new.mixtures):
        raise ValueError(f"every layer that decides needs its experts; got {len(kept)} of {len(new.mixtures)} lists.")
    left = iter(kept)

    def fewer(part: nn.Module) -> nn.Module:
        if part not in new.mixtures:
            return part
        experts = list(next(left))
        return _fewer(part, experts) if isinstance(part, QueryMixture) else keep(part, experts)  # pyright: ignore[reportArgumentType]

    for block in new.chain:
        block.attention, block.layer = fewer(block.attention), fewer(block.layer)  # pyright: ignore[reportAttributeAccessIssue]
    return new


def extended(model: Tasked, head: nn.Module, router: Callable[[Router, int], Router], *, more: int = 0) -> Tasked:
    """A copy with one more task; only its head, its routers and new experts learn, and old tasks stay, to the bit.

    Args:
        model: with a router for each task.
        head: of the new task, which gets the next number.
        router: makes the new task's router for a layer, of a copy of the first task's router and how many experts
            there are now.
        more: new experts in each layer, with weights drawn anew.

    Raises:
        ValueError: when a layer has not a router for each task.
    """
    new = copy.deepcopy(model).requires_grad_(False)
    new.heads.append(head)
    for part in new.mixtures:
        if not isinstance(part.router, ByTask):
            raise ValueError(f"every layer needs a router for each task; got {type(part.router).__name__}.")
        old = [each for each in part.router.routers if isinstance(each, Router)]
        E = len((part.queries if isinstance(part, QueryMixture) else part.experts).costs)
        fresh = router(copy.deepcopy(old[0]), E + more).requires_grad_(True)
        if more:
            for name in ("queries", "outputs") if isinstance(part, QueryMixture) else ("experts",):
                experts = getattr(part, name)
                setattr(part, name, Joined([experts, _fresh(experts, more)]))
            old = [Renamed(each, range(E), E + more) for each in old]
        part.router = ByTask([*old, fresh])
    return new


@torch.no_grad()
def _fresh(experts: Stack, count: int) -> Stack:
    made = select(experts, (0,) * count).requires_grad_(True)
    for parameter in made.parameters():
        parameter.copy_(uniform(*parameter.shape) if parameter.ndim > 2 else torch.zeros_like(parameter))
    return made


def _fewer(layer: QueryMixture, experts: list[int]) -> QueryMixture:
    """The same attention with some of its heads."""
    E, size = len(layer.queries.costs), layer.memory.out_features // 2
    queries, outputs = (select(part, experts) for part in (layer.queries, layer.outputs))
    names = [experts.index(e) if e in experts else NOBODY for e in range(E)]
    if len(set(experts)) != len(experts):
        raise ValueError(f"every expert can be kept once; got {tuple(experts)}.")
    router = Renamed(layer.router, names, len(experts))
    made = QueryMixture(layer.memory.in_features, router, queries, outputs, size=size)
    made.memory = layer.memory
    return made


def used(shares: Sequence[torch.Tensor], least: float) -> list[list[int]]:
    """For each layer the experts with at least this share of the choices (E,), and always the one with the most."""
    return [sorted({*(share >= least).nonzero().flatten().tolist(), int(share.argmax())}) for share in shares]


def alike(block: MixedBlock) -> MixedBlock:
    """A copy of a block whose experts are all copies of the first one of each layer."""
    new = copy.deepcopy(block)
    for part, name in ((new.attention, "queries"), (new.attention, "outputs"), (new.layer, "experts")):
        experts = getattr(part, name)
        setattr(part, name, select(experts, (0,) * len(experts.costs)))
    return new
