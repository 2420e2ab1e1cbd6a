"""Who went where: what any decision of any router says about its experts.

Everything here takes routings as they were returned or recorded, sparse and soft ones alike. Experts of different
layers have nothing to do with one another, so that layers are compared by what one layer's choice tells of another's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.types import NOBODY, Soft, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.types import Routing


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """How tokens were spread over the experts of one layer.

    Attributes:
        load: (E,), each expert's share of all choices that were served; zeros when none was.
        importance: (E,), mean probability of each expert.
        tokens: how many tokens counted.
        decided: mean entropy of a token's probabilities over log E: 0 when every token is sure, 1 when none is.
        even: entropy of the load over log E: 1 when all experts have the same share, 0 when one has all.
        dropped: share of the wanted choices that a capacity refused.
    """

    load: Tensor
    importance: Tensor
    tokens: int
    decided: float
    even: float
    dropped: float

    @property
    def heaviest(self) -> float:
        """The largest load over an even share: how much longer the busiest expert works than need be."""
        return float(self.load.max()) * len(self.load)

    def idle(self, least: float = 0.0) -> tuple[int, ...]:
        """Experts whose load is at most this share of an even one."""
        return tuple((self.load * len(self.load) <= least).nonzero().flatten().tolist())


@torch.no_grad()
def traffic(routings: Routing | Sequence[Routing], mask: Tensor | None = None) -> Traffic:
    """How one decision, or several of one layer over several batches, spread the tokens.

    Args:
        routings: over the same experts.
        mask: (B, T), true where a token counts; for a single decision.

    Raises:
        ValueError: when there is no decision, or they are over different numbers of experts.
    """
    several = _several(routings)
    load = torch.stack([shares(routing, mask).sum((0, 1)) for routing in several]).sum(0)
    flat = torch.cat([_probable(routing)[_kept(routing, mask)] for routing in several])
    E, tokens = flat.shape[-1], len(flat)
    wanted, served = (sum(_number(routing, mask, part) for routing in several) for part in ("wanted", "index"))
    load = load / load.sum().clamp_min(1e-20)
    return Traffic(
        load=load,
        importance=flat.sum(0) / max(1, tokens),
        tokens=tokens,
        decided=float(_entropy(flat).mean()) / _log(E) if tokens else 0.0,
        even=float(_entropy(load)) / _log(E),
        dropped=1 - served / wanted if wanted else 0.0,
    )


@torch.no_grad()
def shares(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """(B, T, E): how a token's choices are spread over the experts; each row adds up to 1, to 0 where nobody serves."""
    if isinstance(routing, Soft):
        chosen = routing.take.float().sum(-1)
    elif isinstance(routing, Sparse):
        E = routing.scores.shape[-1]
        chosen = F.one_hot(routing.index.clamp_min(0), E).float()
        chosen = chosen.masked_fill((routing.index == NOBODY).unsqueeze(-1), 0).sum(-2)
    else:
        raise ValueError(f"traffic is known of Sparse and Soft decisions; got {type(routing).__name__}.")
    if mask is not None:
        chosen = chosen.masked_fill(~mask.unsqueeze(-1), 0)
    return chosen / chosen.sum(-1, keepdim=True).clamp_min(1e-20)


@torch.no_grad()
def by_class(
    routings: Routing | Sequence[Routing],
    labels: Tensor | Sequence[Tensor],
    classes: int,
    mask: Tensor | None = None,
) -> Tensor:
    """(classes, E): how many tokens of each class every expert served; a token with K choices counts a K-th for each.

    Args:
        routings: of one layer.
        labels: for each decision (B,) or (B, T), what an item or a token is; negative for unknown.
        classes: how many there are.
        mask: (B, T), for a single decision.

    Raises:
        ValueError: when labels and decisions do not fit.
    """
    several = _several(routings)
    named: list[Tensor] = [labels] if isinstance(labels, Tensor) else [*labels]
    if len(named) != len(several):
        raise ValueError(f"every decision needs its labels; got {len(several)} and {len(named)}. Give one tensor each.")
    table = torch.zeros(classes, several[0].scores.shape[-1])
    for routing, label in zip(several, named, strict=True):
        share = shares(routing, mask)
        each = label.unsqueeze(1).expand(share.shape[:2]) if label.ndim == 1 else label
        if each.shape != share.shape[:2] or (each.numel() and int(each.max()) >= classes):
            raise ValueError(
                f"labels must be {tuple(share.shape[:1])} or {tuple(share.shape[:2])}, below {classes}; got "
                f"{tuple(label.shape)} with {int(label.max()) if label.numel() else 'none'}."
            )
        known = each >= 0
        table.index_add_(0, each[known], share[known].to(table))
    return table


def information(table: Tensor) -> float:
    """Mutual information of rows and columns of a table of counts, in nats; 0 for an empty one."""
    joint = table.double() / table.double().sum().clamp_min(1e-20)
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    terms = torch.where(joint > 0, joint * (joint.clamp_min(1e-300) / expected.clamp_min(1e-300)).log(), 0.0)
    return max(0.0, float(terms.sum()))


def normalised_information(table: Tensor) -> float:
    """The same over the mean of the two entropies: 0 for independence, 1 when each tells all of the other.

    As a score of a layer's specialisation (rows classes, columns experts) it tells which mixtures of a network are
    worth their experts. Few tokens make it too large: compare layers on the same tokens.
    """
    counts = table.double()
    each = [float(_entropy(counts.sum(side) / counts.sum().clamp_min(1e-20))) for side in (0, 1)]
    return information(table) / (sum(each) / 2) if sum(each) > 0 else 0.0


@torch.no_grad()
def overlap(routings: Sequence[Routing], mask: Tensor | None = None) -> Tensor:
    """(L, L): what the first choice of one layer tells of another's, as normalised mutual information over tokens.

    Args:
        routings: of L layers about the same tokens.
        mask: (B, T).

    Raises:
        ValueError: when they are not about the same tokens.
    """
    first = [_first(routing, mask) for routing in routings]
    if len({len(part) for part in first}) > 1:
        raise ValueError(f"layers must decide about the same tokens; got {[len(part) for part in first]} of them.")
    tables = [[_crossed(a, b) for b in first] for a in first]
    return torch.tensor([[normalised_information(table) for table in row] for row in tables])


def divergence(first: Tensor, second: Tensor) -> float:
    """Jensen-Shannon divergence of two distributions over the same experts, (E,), in nats; at most log 2."""
    p, q = (part.double() / part.double().sum().clamp_min(1e-20) for part in (first, second))
    return max(0.0, float(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2))


def _several(routings: Routing | Sequence[Routing]) -> list[Routing]:
    several = list(routings) if isinstance(routings, (list, tuple)) else [routings]
    experts = {routing.scores.shape[-1] for routing in several}  # pyright: ignore[reportAttributeAccessIssue]
    if len(experts) != 1:
        raise ValueError(
            f"decisions must be there, over the same experts; got {sorted(experts) or 'none'}. Take layers one by one."
        )
    return several  # pyright: ignore[reportReturnType]


def _kept(routing: Routing, mask: Tensor | None) -> Tensor:
    B, T, _ = routing.scores.shape
    return torch.ones(B, T, dtype=torch.bool, device=routing.scores.device) if mask is None else mask


def _probable(routing: Routing) -> Tensor:
    scores = routing.scores.detach().float()
    if isinstance(routing, Sparse) and routing.origin is not None and bool((scores < 0).any()):
        scores = routing.origin.logits.detach().float().softmax(-1)
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-20)


def _number(routing: Routing, mask: Tensor | None, part: str) -> int:
    if not isinstance(routing, Sparse):
        return 0
    index = routing.origin.wanted if part == "wanted" and routing.origin is not None else routing.index
    return int((index[_kept(routing, mask)] != NOBODY).sum())


def _first(routing: Routing, mask: Tensor | None) -> Tensor:
    chosen = routing.index[..., 0] if isinstance(routing, Sparse) else routing.scores.argmax(-1)
    # Nobody is an answer too.
    return (chosen + 1)[_kept(routing, mask)]


def _crossed(first: Tensor, second: Tensor) -> Tensor:
    wide = int(second.max()) + 1 if len(second) else 1
    tall = int(first.max()) + 1 if len(first) else 1
    return torch.bincount(first * wide + second, minlength=tall * wide).view(tall, wide)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares.clamp_min(1e-30)).sum(-1)


def _log(experts: int) -> float:
    return math.log(experts) if experts > 1 else 1.0
