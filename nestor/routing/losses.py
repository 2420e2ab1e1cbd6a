"""Balance losses, computed from the routings that a mixture returns.

All return a single-precision number through which the router's parameters get a gradient, and take a mask (B, T), true
where a token counts: padding neither balances nor unbalances. Without tokens they are zero. Those that compare choices
with scores want gated scores, which are not negative; the others read the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.types import NOBODY, Origin, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence


def switch(routing: Sparse, mask: Tensor | None = None) -> Tensor:
    """E times the sum over experts of (share of the choices) * (mean probability); 1 when both are even (Switch)."""
    chosen, probable = _shares(routing, mask)
    return chosen.shape[-1] * (_mean(chosen) * _mean(probable)).sum()


def switch_by_item(routing: Sparse, mask: Tensor | None = None) -> Tensor:
    """The same within each item, and then the mean of the items that have tokens: balance along each sequence."""
    chosen, probable = _shares(routing, mask)
    each = chosen.shape[-1] * (_ratio(chosen) * _ratio(probable)).sum(-1)
    some = (chosen.sum(-1) > 0).to(each.dtype)
    return (each * some).sum() / some.sum().clamp_min(1)


def group(routing: Sparse, groups: int, mask: Tensor | None = None) -> Tensor:
    """Switch's loss for groups of neighbouring experts, for instance those of one device; within a group all is free.

    Raises:
        ValueError: when the groups do not divide the experts.
    """
    chosen, probable = (_mean(part) for part in _shares(routing, mask))
    if groups < 1 or len(chosen) % groups:
        raise ValueError(f"groups must divide the {len(chosen)} experts; got {groups}.")
    chosen, probable = (part.unflatten(0, (groups, -1)).sum(1) for part in (chosen, probable))
    return groups * (chosen * probable).sum()


def importance(routing: Sparse, mask: Tensor | None = None, costs: Sequence[float] | None = None) -> Tensor:
    """Squared coefficient of variation of the experts' summed probabilities, before noise and choice (V-MoE).

    With costs, each expert's sum is multiplied by its share of the costs, so that balance is reached when every expert
    takes the same time, not the same number of tokens.
    """
    probable = _origin(routing).logits.float().softmax(-1)
    return _variation(_kept(probable, mask).sum((0, 1)), costs)


def gates(routing: Sparse, mask: Tensor | None = None, costs: Sequence[float] | None = None) -> Tensor:
    """Squared coefficient of variation of the experts' summed weights: only those chosen count (Shazeer et al.)."""
    E = routing.scores.shape[-1]
    named = routing.index.clamp_min(0)
    weight = _kept(routing.weight.float().masked_fill(routing.index == NOBODY, 0), mask)
    total = weight.new_zeros(E).index_add(0, named.flatten(), weight.flatten())
    return _variation(total, costs)


def load(routing: Sparse, deviation: float, mask: Tensor | None = None, costs: Sequence[float] | None = None) -> Tensor:
    """Squared coefficient of variation of how many tokens each expert would get if the noise were drawn again.

    An expert is among the K best with the probability that its logit with new noise exceeds the K-th best noisy logit,
    a smooth function of the logits (V-MoE).

    Args:
        routing: a choice of the K best.
        deviation: of the noise, as in `adjust.Noise`.
        mask: (B, T).
        costs: as with `importance`.

    Raises:
        ValueError: when the deviation is not positive.
    """
    if not deviation > 0:
        raise ValueError(
            f"the load's noise model needs a positive deviation; got {deviation}. Use switch without noise."
        )
    origin = _origin(routing)
    K = origin.wanted.shape[-1]
    last = origin.noisy.float().sort(dim=-1, descending=True).values[..., K - 1 : K]
    wins = torch.special.ndtr((origin.logits.float() - last) / deviation)
    return _variation(_kept(wins, mask).sum((0, 1)), costs)


def z(routing: Sparse, mask: Tensor | None = None) -> Tensor:
    """Mean square of the logarithm of the softmax's denominator: keeps logits small (ST-MoE)."""
    return _average(_origin(routing).logits.float().logsumexp(-1).square(), mask)


def entropy(routing: Sparse, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of a token's probabilities, in nats: less of it makes tokens decided."""
    log = _origin(routing).logits.float().log_softmax(-1)
    return _average(-(log.exp() * log).sum(-1), mask)


def spread(routing: Sparse, mask: Tensor | None = None) -> Tensor:
    """Entropy of the mean probabilities, in nats: more of it makes experts even; at most log E."""
    mean = _mean(_kept(_origin(routing).logits.float().softmax(-1), mask).sum(1))
    return -torch.special.xlogy(mean, mean.clamp_min(1e-30)).sum()


def cost(routing: Sparse, costs: Sequence[float], mask: Tensor | None = None) -> Tensor:
    """Expected cost of a token: the mean of its probabilities times the costs, in their unit."""
    probable = _origin(routing).logits.float().softmax(-1)
    return _average(probable @ _costs(costs, probable), mask)


def affinity(routing: Sparse, task: Tensor, tasks: int, mask: Tensor | None = None) -> Tensor:
    """(tasks, E): mean probability of each expert over the tokens of each task's items; zeros for a task without any.

    Where a batch holds few of the tasks, keep a running mean of this without gradient for the others.

    Args:
        routing: of items of several tasks.
        task: (B,).
        tasks: how many there are.
        mask: (B, T).

    Raises:
        ValueError: when there is not one task in [0, tasks) for each item.
    """
    B, T, E = routing.scores.shape
    if task.shape != (B,) or (B and not 0 <= int(task.min()) <= int(task.max()) < tasks):
        raise ValueError(f"affinity needs a task in [0, {tasks}) for each of {B} items; got {tuple(task.shape)}.")
    probable = _origin(routing).logits.float().softmax(-1)
    counted = probable.new_full((B,), float(T)) if mask is None else mask.sum(1).to(probable.dtype)
    total = probable.new_zeros(tasks, E).index_add(0, task, _kept(probable, mask).sum(1))
    number = probable.new_zeros(tasks).index_add(0, task, counted)
    return total / number.clamp_min(1).unsqueeze(-1)


def task_information(affinity: Tensor, share: Tensor | None = None) -> Tensor:
    """Minus the mutual information of task and expert, in nats: less of it makes tasks claim few experts each, and all
    experts used (Mod-Squad).

    Args:
        affinity: (tasks, E), from `affinity`, rows that add up to one, or to zero for tasks that do not count.
        share: (tasks,) of the tasks; the same for all that count unless given.
    """
    counts = (affinity.detach().sum(-1) > 0).to(affinity.dtype)
    given = counts if share is None else share.to(affinity) * counts
    each = (given / given.sum().clamp_min(1e-20)).unsqueeze(-1)
    joint = affinity * each
    expected = each * joint.sum(0, keepdim=True)
    floor = 1e-20
    return -(joint * (joint.clamp_min(floor).log() - expected.clamp_min(floor).log())).sum()


def _origin(routing: Sparse) -> Origin:
    if routing.origin is None:
        raise ValueError("this loss needs the logits of a decision; got a routing without origin. Let a Router decide.")
    return routing.origin


def _shares(routing: Sparse, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, E) and (B, E): number of choices before any were dropped, and summed probabilities."""
    wanted = routing.index if routing.origin is None else routing.origin.wanted
    E = routing.scores.shape[-1]
    hits = _kept((wanted != NOBODY).float(), mask)
    chosen = hits.new_zeros(len(wanted), E).scatter_add(1, wanted.clamp_min(0).flatten(1), hits.flatten(1))
    scores = routing.scores.float()
    probable = scores / scores.sum(-1, keepdim=True).clamp_min(1e-20)
    return chosen, _kept(probable, mask).sum(1)


def _kept(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values.masked_fill(~mask.unsqueeze(-1), 0)


def _average(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.sum() / max(1, values.numel())
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def _ratio(parts: Tensor) -> Tensor:
    return parts / parts.sum(-1, keepdim=True).clamp_min(1e-20)


def _mean(parts: Tensor) -> Tensor:
    return _ratio(parts.sum(0))


def _variation(total: Tensor, costs: Sequence[float] | None) -> Tensor:
    if costs is not None:
        weight = _costs(costs, total)
        total = total * (weight / weight.sum())
    return (len(total) * _ratio(total)).var(correction=0)


def _costs(costs: Sequence[float], like: Tensor) -> Tensor:
    if len(costs) != like.shape[-1] or min(costs) < 0:
        raise ValueError(f"costs must be {like.shape[-1]} numbers that are not negative; got {tuple(costs)}.")
    return torch.tensor(costs, dtype=like.dtype, device=like.device)
