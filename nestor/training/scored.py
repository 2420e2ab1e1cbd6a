"""How well a network tells two classes apart at each of its budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.measure.reach import in_reach
from nestor.measure.score import auroc
from nestor.training.predict import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.data import Pictures
    from nestor.models.video import Network


def aurocs(
    network: Network, pictures: Pictures, budgets: Sequence[float], *, seed: int | None = None
) -> dict[str, float]:
    """AUROC by budget, in bf16; budgets are words, as JSON holds them, and those out of reach are left out.

    Args:
        network: with a head of two classes; a dense one reaches the full budget only.
        pictures: of two classes, the second being the positives.
        budgets: at most 1.
        seed: given to torch's generator before each budget, for routers that draw; None draws on.

    Raises:
        ValueError: a budget is above 1, the network has no head, has diverged, or a class is missing.
    """
    found = {}
    for budget in in_reach(network, pictures.size, budgets):
        if seed is not None:
            torch.manual_seed(seed)
        logits, labels = predict(network, pictures, budget=budget, precision="bf16")
        found[str(budget)] = auroc(logits.softmax(-1)[:, 1], labels)
    return found
