"""Choices: how scores become a decision.

`scores` (B, T, E) become the weights. `preference` (B, T, E), the scores themselves unless given, decides who is
chosen: -inf or NaN is never chosen, and a token for which nothing is left is served by nobody. Ties go to the earlier
expert and the earlier token, so that a decision does not depend on the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.ops.noise import gumbel
from nestor.routing.adjust import by_group
from nestor.routing.capacity import per_expert
from nestor.types import NOBODY, Soft, Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence


def top_k(scores: Tensor, preference: Tensor | None = None, *, k: int) -> Sparse:
    """Each token takes its k best experts; weights are the scores as they are (see `refine.renormalise`).

    Raises:
        ValueError: when k does not lie in [1, E].
    """
    wish = _wish(scores, preference)
    _within("k", k, scores.shape[-1])
    return _take(scores, wish, wish.sort(dim=-1, descending=True, stable=True).indices[..., :k])


def top_p(scores: Tensor, preference: Tensor | None = None, *, p: float, most: int | None = None) -> Sparse:
    """Each token takes its best experts until their scores add up to p of its total: few if it is sure, many if not.

    Args:
        scores: not negative, for instance probabilities.
        preference: who comes first.
        p: share of the total in (0, 1]; every token takes at least one expert.
        most: K, the most experts of one token; E unless given.

    Raises:
        ValueError: when p does not lie in (0, 1] or most not in [1, E].
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1]; got {p}. It is a share of each token's total score.")
    E = scores.shape[-1]
    most = E if most is None else most
    _within("most", most, E)
    wish = _wish(scores, preference)
    order = wish.sort(dim=-1, descending=True, stable=True).indices
    allowed = scores.detach().masked_fill(wish == -torch.inf, 0).gather(-1, order)
    reached = allowed.cumsum(-1)
    enough = reached.roll(1, -1) >= p * reached[..., -1:]
    enough[..., :1] = False
    return _take(scores, wish, order[..., :most], enough[..., :most])


def threshold(
    scores: Tensor, preference: Tensor | None = None, *, least: float | Tensor, most: int | None = None
) -> Sparse:
    """Each token takes every expert whose preference is at least `least`, the best first; perhaps none, perhaps all.

    Args:
        scores: become the weights.
        preference: what is compared.
        least: a number, or a tensor that fits (B, T, E): `r * scores.amax(-1, keepdim=True)` is min-p.
        most: K, the most experts of one token; E unless given.

    Raises:
        ValueError: when most does not lie in [1, E].
    """
    E = scores.shape[-1]
    most = E if most is None else most
    _within("most", most, E)
    wish = _wish(scores, preference)
    order = wish.sort(dim=-1, descending=True, stable=True).indices
    short = (wish < least).gather(-1, order)
    return _take(scores, wish, order[..., :most], short[..., :most])


def grouped_top_k(scores: Tensor, preference: Tensor | None = None, *, k: int, groups: int) -> Sparse:
    """Each token takes the k / groups best experts of every group of neighbours, so that groups are always level.

    Raises:
        ValueError: when the groups do not divide E and k, or k does not lie in [1, E].
    """
    wish = by_group(_wish(scores, preference), groups)
    _within("k", k, scores.shape[-1])
    if k % groups:
        raise ValueError(f"k must be a multiple of the {groups} groups; got {k}. Take {groups * -(-k // groups)}.")
    within = wish.sort(dim=-1, descending=True, stable=True).indices[..., : k // groups]
    first = torch.arange(groups, device=scores.device).unsqueeze(-1) * wish.shape[-1]
    return _take(scores, wish.flatten(-2), (within + first).flatten(-2))


def sampled(scores: Tensor, preference: Tensor | None = None, *, k: int) -> Sparse:
    """Each token draws k different experts, each draw with odds in proportion to the preferences that are left.

    Adding Gumbel noise to logarithms and taking the k best is drawing without replacement. Preferences of zero or less
    are never drawn. A new draw for each call from torch's generator.

    Args:
        scores: become the weights.
        preference: odds, for instance probabilities.
        k: how many.

    Raises:
        ValueError: when k does not lie in [1, E].
    """
    odds = _wish(scores, preference)
    return top_k(scores, odds.clamp_min(0).log() + gumbel(odds), k=k)


def expert_choice(
    scores: Tensor,
    preference: Tensor | None = None,
    *,
    factor: float | None = None,
    counts: Sequence[int] | None = None,
    most: int | None = None,
) -> Sparse:
    """Each expert takes the tokens of every item that it likes best, whoever else takes them too.

    Args:
        scores: become the weights.
        preference: whom an expert likes.
        factor: each expert takes this multiple of an even share of the item's tokens (see `capacity.per_expert`), of
            which those that nobody may take, such as masked ones, do not count, or else
        counts: E numbers, how many tokens of an item each expert takes. Fewer where a mask leaves fewer.
        most: K, the most experts of one token, of which it keeps those it scores highest; E unless given.

    Returns:
        A decision in which an expert that was not filled up by `most` has exactly its count.

    Raises:
        ValueError: when not exactly one of factor and counts is given, the counts do not lie in [0, T], or most does
            not lie in [1, E].
    """
    _, T, E = scores.shape
    if (factor is None) == (counts is None):
        raise ValueError(f"give a factor or counts; got factor {factor} and counts {counts}.")
    if counts is not None and (len(counts) != E or not all(0 <= count <= T for count in counts)):
        raise ValueError(f"counts must be {E} numbers between 0 and the {T} tokens; got {tuple(counts)}.")
    most = E if most is None else most
    _within("most", most, E)
    wish = _wish(scores, preference)
    if counts is not None:
        wanted = torch.tensor(tuple(counts), device=scores.device)
    else:
        wanted = per_expert((wish > -torch.inf).any(-1).sum(1), E, factor or 0.0).view(-1, 1, 1)
    order = wish.sort(dim=1, descending=True, stable=True).indices
    rank = torch.arange(T, device=scores.device).unsqueeze(-1)
    late = rank >= wanted
    refused = torch.zeros_like(wish, dtype=torch.bool).scatter(1, order, late.expand_as(wish))
    wish = wish.masked_fill(refused, -torch.inf)
    return _take(scores, wish, wish.sort(dim=-1, descending=True, stable=True).indices[..., :most])


def soft(scores: Tensor, preference: Tensor | None = None, *, slots: int) -> Soft:
    """Every slot takes a mixture of all tokens, every token a mixture of all slots; nothing is dropped (Soft MoE).

    Args:
        scores: (B, T, E * C) logits, the slots of one expert side by side (see `learned.Slots`).
        preference: -inf excludes a token, everything else is ignored.
        slots: C, slots of each expert.

    Returns:
        A decision whose scores (B, T, E) are each expert's share in a token's answer.

    Raises:
        ValueError: when the slots do not divide the scores.
    """
    if slots < 1 or scores.shape[-1] % slots:
        raise ValueError(
            f"slots must divide the {scores.shape[-1]} scores of a token; got {slots}. Use the slots of the score."
        )
    logits = scores if preference is None else scores.masked_fill(preference == -torch.inf, -torch.inf)
    logits = logits.unflatten(-1, (-1, slots))
    give = _softmax(logits, 1).permute(0, 2, 3, 1)
    take = _softmax(logits.flatten(2), -1).unflatten(-1, (-1, slots))
    return Soft(scores=take.sum(-1), give=give, take=take)


def expert_preferred(scores: Tensor, counts: Sequence[int], mask: Tensor | None = None) -> Sparse:
    """Experts choose tokens, the last expert first, each exactly its count; the first takes the rest.

    Expert preferred routing (MoNE, algorithm 1): from the last expert down, each takes those tokens of every item that
    nobody has taken yet and that score highest with it. Ties go to the earlier token, so that the decision does not
    depend on the machine.

    Args:
        scores: (B, T, E), probabilities or logits.
        counts: E whole numbers that sum to T.
        mask: (B, T), true where a token counts. The others are served by nobody, as if they were not there: the last
            experts get their counts of the tokens that are left, and the first what then remains.

    Returns:
        A decision with K = 1; its weights are the scores of the chosen experts.

    Raises:
        ValueError: when the counts do not fit the scores.
    """
    _, T, E = scores.shape
    if len(counts) != E or sum(counts) != T or min(counts) < 0:
        raise ValueError(f"counts must be {E} numbers that sum to {T} tokens; got {tuple(counts)}.")
    finite = torch.finfo(scores.dtype)
    free = scores.detach().clamp(finite.min / 2, finite.max)
    free = free if mask is None else free.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    index = torch.zeros_like(scores[..., 0], dtype=torch.long)
    for expert in range(E - 1, 0, -1):
        if counts[expert] == 0:
            continue
        chosen = free[..., expert].sort(dim=1, descending=True, stable=True).indices[:, : counts[expert]]
        if mask is None:
            index = index.scatter(1, chosen, expert)
        else:
            # There may be fewer left than the count: the others were masked or taken before.
            left = free[..., expert].gather(1, chosen) > -torch.inf
            index = index.scatter(1, chosen, torch.where(left, expert, index.gather(1, chosen)))
        free = free.scatter(1, chosen.unsqueeze(-1).expand(-1, -1, E), -torch.inf)
    index = index.unsqueeze(-1)
    weight = scores.gather(-1, index)
    if mask is not None:
        index, weight = (part.masked_fill(~mask.unsqueeze(-1), to) for part, to in ((index, NOBODY), (weight, 0)))
    return Sparse(scores=scores, index=index, weight=weight)


def _wish(scores: Tensor, preference: Tensor | None) -> Tensor:
    wish = scores if preference is None else preference
    wish = wish.detach()
    return wish.masked_fill(wish.isnan(), -torch.inf)


def _take(scores: Tensor, wish: Tensor, index: Tensor, refused: Tensor | None = None) -> Sparse:
    nobody = wish.gather(-1, index) == -torch.inf
    nobody = nobody if refused is None else nobody | refused
    weight = scores.gather(-1, index).masked_fill(nobody, 0)
    return Sparse(scores=scores, index=index.masked_fill(nobody, NOBODY), weight=weight)


def _within(name: str, value: int, experts: int) -> None:
    if not 1 <= value <= experts:
        raise ValueError(f"{name} must lie in [1, {experts}], the number of experts; got {value}.")


def _softmax(logits: Tensor, dim: int) -> Tensor:
    # Where everything is excluded a softmax has no answer; ours is that nothing is given.
    excluded = logits == -torch.inf
    return logits.masked_fill(excluded, torch.finfo(logits.dtype).min).softmax(dim).masked_fill(excluded, 0)
