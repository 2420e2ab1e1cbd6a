"""Networks at equal milliseconds: what each takes at each of its budgets, and what one reaches in another's time."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from nestor.measure.clock import race
from nestor.measure.cost import patches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def milliseconds(
    networks: Mapping[str, Any], budgets: Sequence[float], *, size: int, batch: int = 16, rounds: int = 15
) -> dict[str, dict[str, dict[float, float]]]:
    """Median milliseconds of a batch by precision, network and budget, all of them in turns.

    Args:
        networks: by name; each has `least_budget`, and budgets below it are left out.
        budgets: of all networks.
        size: of the pictures, in pixels.
        batch: pictures in a call.
        rounds: how often each is timed.

    Raises:
        ValueError: when there is nothing to time, or rounds are too few.
    """
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    took: dict[str, dict[str, dict[float, float]]] = {}
    for precision, dtype in PRECISIONS.items():
        # Weights as they would be served, rather than converted on each call.
        cast_down = {name: cast("nn.Module", copy.deepcopy(network)).to(dtype) for name, network in networks.items()}
        calls = {
            (name, budget): partial(cast_down[name], images.to(dtype), budget=budget)
            for name, network in networks.items()
            for budget in budgets
            if budget >= network.least_budget(patches(network, size))
        }
        found = race({f"{name} {budget}": call for (name, budget), call in calls.items()}, rounds=rounds)
        took[precision] = {name: {} for name in networks}
        for name, budget in calls:
            took[precision][name][budget] = found[f"{name} {budget}"].median_ms
    return took


def reached(costs: Mapping[float, float], values: Mapping[float, float], at: float) -> float:
    """What a network reaches at a cost, on straight lines between its budgets; beyond the highest, what that reaches.

    Args:
        costs: by budget.
        values: by the same budgets, or more.
        at: the cost.

    Raises:
        ValueError: no budget costs so little.
    """
    if not at >= min(costs.values()):
        raise ValueError(
            f"a cost must be at least that of the cheapest budget, {min(costs.values()):.4g}; got {at:.4g}. "
            "Measure a lower budget."
        )
    points = sorted((cost, values[budget]) for budget, cost in costs.items())
    # More cost never has to mean less: whoever may spend it may also leave it.
    best = np.maximum.accumulate([value for _, value in points])
    return float(np.interp(at, [cost for cost, _ in points], best))
