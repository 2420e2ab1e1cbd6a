"""Tokens that become one: the most alike (ToMe, arXiv 2210.09461) or the least attended (EViT, arXiv 2202.07800)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Merge:
    """A decision which tokens become one, with two verbs: `merge` to fewer tokens, `unmerge` back to all of them."""

    target: Tensor
    """(B, T): where among the merged tokens each token goes."""
    length: int
    """How many tokens there are afterwards."""

    def merge(self, tokens: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the tokens that go to the same place, weighted by size.

        Args:
            tokens: (B, T, D).
            size: (B, T, 1), how many of the first tokens each of these stands for.

        Returns:
            Tokens (B, length, D) and their sizes (B, length, 1).
        """
        place = self.target.unsqueeze(-1)
        total = size.new_zeros(size.shape[0], self.length, 1).scatter_add(1, place, size)
        share = (size / total.gather(1, place)).to(tokens.dtype)
        merged = tokens.new_zeros(tokens.shape[0], self.length, tokens.shape[-1])
        return merged.scatter_add(1, place.expand_as(tokens), tokens * share), total

    def unmerge(self, tokens: Tensor) -> Tensor:
        """Every token gets what became of it, (B, length, D) -> (B, T, D)."""
        return tokens.gather(1, self.target.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def then(self, later: Merge) -> Merge:
        """Both merges as one."""
        return Merge(later.target.gather(1, self.target), later.length)


def keep(tokens: Tensor) -> Merge:
    """Merge nothing of (B, T, D)."""
    B, T, _ = tokens.shape
    return Merge(torch.arange(T, device=tokens.device).expand(B, T), T)


@torch.no_grad()
def match(metric: Tensor, r: int, protected: int) -> Merge:
    """Bipartite soft matching: of the tokens at even positions, the r most alike to one at an odd position join it.

    The first `protected` tokens are left alone and stay in front; behind them come the even tokens that stayed, then
    the odd ones, as published.

    Args:
        metric: (B, T, C), compared by cosine.
        r: how many tokens vanish.
        protected: tokens in front that take no part (class, registers).

    Raises:
        ValueError: when there are not r tokens that could vanish.
    """
    B, T, _ = metric.shape
    even, odd = protected + protected % 2, protected + 1 - protected % 2
    if not 0 <= r <= mergeable(T - protected):
        raise ValueError(f"r must lie in [0, {mergeable(T - protected)}] for {T - protected} tokens; got {r}.")
    if r == 0:
        return keep(metric)
    unit = F.normalize(metric, dim=-1)
    likeness, partner = (unit[:, even::2] @ unit[:, odd::2].transpose(1, 2)).max(-1)
    gone = likeness.argsort(dim=1, descending=True, stable=True)[:, :r]
    stays = torch.ones_like(likeness, dtype=torch.bool).scatter(1, gone, False)
    after = protected + stays.shape[1] - r
    target = torch.arange(T, device=metric.device).repeat(B, 1)
    target[:, even::2] = torch.where(stays, protected - 1 + stays.cumsum(1), after + partner)
    target[:, odd::2] = after + torch.arange(target[:, odd::2].shape[1], device=metric.device)
    return Merge(target, T - r)


@torch.no_grad()
def fuse(weight: Tensor, kept: int, protected: int) -> Merge:
    """The tokens of greatest weight stay and all others become one: their mean, when merged with these weights.

    The first `protected` tokens are left alone and stay in front; behind them come the fused token and, in their order,
    those that stayed.

    Args:
        weight: (B, T).
        kept: how many of the other tokens stay.
        protected: tokens in front that take no part (class, registers, tokens fused before).

    Raises:
        ValueError: when no token is left to become the fused one.
    """
    B, T = weight.shape
    if not 0 <= kept < T - protected:
        raise ValueError(f"kept must lie in [0, {T - protected - 1}] for {T - protected} tokens; got {kept}.")
    best = weight[:, protected:].argsort(dim=1, descending=True, stable=True)[:, :kept]
    stays = torch.zeros(B, T - protected, dtype=torch.bool, device=weight.device).scatter(1, best, True)
    target = torch.arange(T, device=weight.device).repeat(B, 1)
    target[:, protected:] = torch.where(stays, protected + stays.cumsum(1), protected)
    return Merge(target, protected + 1 + kept)


def mergeable(tokens: int) -> int:
    """How many of this many unprotected tokens can vanish at once."""
    return max(tokens, 0) // 2


def match_macs(tokens: int, channels: int) -> int:
    """Multiply-accumulates of matching this many unprotected tokens."""
    return (tokens // 2) * (tokens - tokens // 2) * channels
