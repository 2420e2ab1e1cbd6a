"""Choices: how scores become a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence


def expert_preferred(scores: Tensor, counts: Sequence[int]) -> Sparse:
    """Experts choose tokens, the last expert first, each exactly its count; the first takes the rest.

    Expert preferred routing (MoNE, algorithm 1): from the last expert down, each takes those tokens of every item that
    nobody has taken yet and that score highest with it. Ties go to the earlier token, so that the decision does not
    depend on the machine.

    Args:
        scores: (B, T, E), probabilities or logits.
        counts: E whole numbers that sum to T.

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
    index = torch.zeros_like(scores[..., 0], dtype=torch.long)
    for expert in range(E - 1, 0, -1):
        if counts[expert] == 0:
            continue
        chosen = free[..., expert].sort(dim=1, descending=True, stable=True).indices[:, : counts[expert]]
        index = index.scatter(1, chosen, expert)
        free = free.scatter(1, chosen.unsqueeze(-1).expand(-1, -1, E), -torch.inf)
    index = index.unsqueeze(-1)
    return Sparse(scores=scores, index=index, weight=scores.gather(-1, index))
