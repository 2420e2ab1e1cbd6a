"""What a forward pass would take from a battery: operations by kind, times their energies in a 45 nm process."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from nestor.experts.joined import Joined
from nestor.experts.rounded import Rounded
from nestor.layers.angular import AngularAttention, binary
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nestor.models.composed import Composed
    from nestor.types import Output

PICOJOULES = {"multiply": 3.7, "add": 0.9, "integer add": 0.1, "shift": 0.13}
"""Single-precision multiplication and addition and 32-bit integer addition (Horowitz, ISSCC 2014), 32-bit shift
(ShiftAddNet, arXiv 2010.12785)."""


def operations(model: Composed, output: Output, items: int, patches: int) -> dict[str, float]:
    """How often each operation of PICOJOULES happens for one item, the mean of those that gave this output.

    Rounded experts shift and add integers, binary attention adds integers, all else multiplies and adds; norms,
    activations and softmaxes are not counted.

    Args:
        model: of plain or angular attention, and dense layers or mixtures.
        output: of this network.
        items: B.
        patches: of each item.

    Raises:
        ValueError: when a layer is of another kind.
    """
    T, left = patches + model.settings.prefix, iter(output.routings)
    total: Counter[str] = Counter()
    _multiply(total, items * (model.embed.macs(patches) + model.head.weight.numel()))
    for block in model.chain:
        attention, layer = block.attention, block.layer
        coded = isinstance(attention, AngularAttention) and attention.code is binary
        sums = items * attention.products(T) if isinstance(attention, AngularAttention) and coded else 0
        total["integer add"] += sums
        _multiply(total, items * attention.macs(T) - sums)
        if isinstance(layer, Dense):
            counts = [items * T]
        elif isinstance(layer, Mixture) and layer.shared is None:
            counts = next(left).counts.tolist()
            _multiply(total, items * layer.router.macs(T))
        else:
            raise ValueError(f"energy is known of dense layers and mixtures; got {type(layer).__name__}.")
        for count, cost, shifts in zip(counts, layer.experts.costs, _shifts(layer.experts), strict=True):
            if shifts:
                total["shift"] += count * cost
                total["integer add"] += count * cost
            else:
                _multiply(total, count * cost)
    return {kind: number / items for kind, number in total.items()}


def multiplied(model: Composed, output: Output, items: int, patches: int) -> float:
    """The share of tokens whose feed-forward part multiplies, mean over the layers; arguments as with `operations`."""
    left, total = iter(output.routings), 0.0
    for block in model.chain:
        layer = block.layer
        counts = [1] if isinstance(layer, Dense) else next(left).counts.tolist()
        pairs = list(zip(counts, _shifts(layer.experts), strict=True))
        total += sum(count for count, shifts in pairs if not shifts) / max(1, sum(counts))
    return total / len(model.chain)


def energy(operations: Mapping[str, float]) -> float:
    """Picojoules of so many operations."""
    return sum(PICOJOULES[kind] * number for kind, number in operations.items())


def _multiply(total: Counter[str], macs: int) -> None:
    total["multiply"] += macs
    total["add"] += macs


def _shifts(experts: Any) -> list[bool]:
    if isinstance(experts, Joined):
        return [shifts for part in experts.parts for shifts in _shifts(part)]
    return [isinstance(experts, Rounded)] * len(experts.costs)
