"""Telling a network how fast it is on this machine."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from nestor.api import prepare
from nestor.measure.latency import latency_table
from nestor.models.latency import joined

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nestor.models.vit import ViT


def clock(
    model: ViT | str | Path,
    *,
    size: int | None = None,
    batches: Sequence[int] = (1,),
    precisions: Sequence[str] = ("float32",),
    rounds: int = 10,
) -> ViT:
    """Time a network on this machine, so that its budget can be given in time: `model.budget = Latency(ms=12)`.

    Args:
        model: a network, or its name as in `load`; its device and the threads that torch uses now count.
        size: side of the pictures in pixels; by default the network's nominal one.
        batches: numbers of pictures of one call.
        precisions: number formats of the weights, `float32` or `bfloat16`.
        rounds: how often each budget is timed.

    Returns:
        The network over the same weights, with these times beside those that it knew; `save` keeps them.

    Raises:
        ValueError: size, batches or precisions do not fit.
    """
    model = prepare.network(model)
    size = prepare.side(model, size)
    if not batches or not precisions or min(batches) < 1:
        raise ValueError(
            f"clock needs batches from 1 on, and precisions; got {tuple(batches)} and {tuple(precisions)}. "
            "Try batches=(1, 16), precisions=('float32',)."
        )
    tables = [
        latency_table(model, size=size, batch=batch, precision=precision, rounds=rounds)
        for precision in precisions
        for batch in batches
    ]
    # A shallow copy shares the weights; the caller's network stays as it is.
    new = copy.copy(model)
    new.latencies = joined(model.latencies, tables)
    return new
