"""Tokens that something chose, as lists of equal length, and back to where they came from."""

from __future__ import annotations

import torch
from torch import Tensor


def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen tokens of every item for each expert, in their order, as lists as long as the longest.

    Args:
        chosen: (B, T, E), true where an expert serves a token.

    Returns:
        place: (B, E, N), where each token of a list stands; what fills a list up are tokens that were not chosen.
        real: (B, E, N), true where a token was chosen.
    """
    # One token at least, for attention over nothing has no answer.
    longest = max(1, int(chosen.sum(1).max())) if chosen.numel() else chosen.shape[1]
    columns = chosen.mT
    place = (~columns).to(torch.uint8).argsort(dim=-1, stable=True)[..., :longest]
    return place, columns.gather(-1, place)


def gather(tokens: Tensor, place: Tensor) -> Tensor:
    """(B, T, D) and (B, E, N) -> (B, E, N, D)."""
    B, E, N = place.shape
    rows = tokens.gather(1, place.flatten(1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return rows.view(B, E, N, tokens.shape[-1])


def scatter(rows: Tensor, place: Tensor, tokens: int) -> Tensor:
    """(B, E, N, D) and (B, E, N) -> (B, T, D): the sum of all rows that belong to a token."""
    B, D = rows.shape[0], rows.shape[-1]
    index = place.flatten(1).unsqueeze(-1).expand(-1, -1, D)
    return rows.new_zeros(B, tokens, D).scatter_add(1, index, rows.flatten(1, 2))
