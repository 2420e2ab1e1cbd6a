"""How like the full network's tokens an elastic network's are, budget by budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from nestor.data.scan import watch
from nestor.measure.cost import patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.data import Pictures
    from nestor.measure.cost import Elastic


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What a network gives at one budget, against another's tokens on the same pictures.

    Attributes:
        token: mean cosine of the first token, the class token where there is one.
        patch: mean cosine of the patches.
        error: relative error of all tokens, root mean square.
        spent: share of the full network's multiply-accumulates.
    """

    token: float
    patch: float
    error: float
    spent: float


def cosines(tokens: Tensor, full: Tensor, prefix: int) -> Tensor:
    """Cosines of class token and patches of each item, (B, T, D) twice -> (B, 2); without a class token (B, 1)."""
    each = torch.cosine_similarity(tokens.double(), full.double(), dim=-1)
    patch = each[:, prefix:].mean(1, keepdim=True)
    return torch.cat([each[:, :1], patch], 1) if prefix else patch


@torch.no_grad()
def likeness(
    model: Elastic, dense: Elastic, pictures: Pictures, budgets: Sequence[float], *, batch: int = 64
) -> dict[float, Likeness]:
    """Compare a network's tokens (B, T, D) with a dense one's, over all pictures.

    Args:
        model: at several budgets.
        dense: at its full budget.
        pictures: normalised as both want them.
        budgets: of `model`.
        batch: pictures at a time.
    """
    prefix, sums = dense.settings.prefix, {budget: torch.zeros(4, dtype=torch.float64) for budget in budgets}
    loader = DataLoader(pictures, batch_size=batch)  # pyright: ignore[reportArgumentType]
    for images, _ in watch(loader, total=len(loader), what="Comparing tokens"):
        wanted = dense(images, budget=1.0).tokens
        for budget in budgets:
            found = model(images, budget=budget).tokens
            cosine = torch.cosine_similarity(found, wanted, -1)
            parts = [cosine[:, 0].sum(), cosine[:, prefix:].mean(1).sum(), (found - wanted).square().sum()]
            sums[budget] += torch.stack([*parts, wanted.square().sum()]).double()
    N = patches(dense, pictures.size)
    return {
        budget: Likeness(
            token=(total[0] / len(pictures)).item(),
            patch=(total[1] / len(pictures)).item(),
            error=(total[2] / total[3]).sqrt().item(),
            spent=model.macs(model.plan(N, budget)) / model.full_macs(N),
        )
        for budget, total in sums.items()
    }
