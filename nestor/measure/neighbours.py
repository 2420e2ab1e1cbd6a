"""How items lie to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.models.tasked import Tasked


def purity(values: Tensor, kinds: Tensor, *, nearest: int = 10) -> float:
    """The mean share of an item's nearest others, by cosine, that are of its kind: values (N, F), kinds (N,).

    Raises:
        ValueError: when there are not more items than neighbours.
    """
    if not 1 <= nearest < len(values) or len(values) != len(kinds):
        raise ValueError(
            f"there must be a kind for each item and more items than neighbours; got {len(values)} items, "
            f"{len(kinds)} kinds and {nearest} neighbours."
        )
    unit = F.normalize(values.float(), dim=-1)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    found = likeness.sort(dim=-1, descending=True, stable=True).indices[:, :nearest]
    return float((kinds[found] == kinds.unsqueeze(1)).double().mean())


@torch.no_grad()
def purity_of_tasks(model: Tasked, images: Sequence[Tensor], kinds: Sequence[Tensor], *, nearest: int = 10) -> float:
    """The same of the first token of all pictures of all tasks, in the order of their heads."""
    tokens = [model(part, head).tokens[:, 0] for head, part in enumerate(images)]
    return purity(torch.cat(tokens), torch.cat(list(kinds)), nearest=nearest)
