"""How long a network takes at each budget on this machine, so that its budget can be given in milliseconds."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

import torch

from nestor.machine import here
from nestor.measure.clock import race
from nestor.measure.cost import patches
from nestor.models.latency import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.models.vit import ViT

PRECISIONS = ("float32", "bfloat16")


@torch.inference_mode()
def milliseconds(
    model: ViT, images: Tensor, plans: Sequence[tuple[int, ...]], *, rounds: int = 10, what: str = "Timing"
) -> tuple[float, ...]:
    """The median time of one call under each plan, the plans taking turns.

    A call gives logits, or tokens where there is no head. Random routers draw from a generator of their own.

    Args:
        model: as it is, in its precision and mode.
        images: (B, 3, H, W), those of one call.
        plans: how many patches of each picture every expert serves.
        rounds: how often each is timed.
        what: shown beside the progress bar.

    Raises:
        ValueError: when there are no plans, or rounds are too few.
    """

    def call(plan: tuple[int, ...]) -> Tensor:
        output = model.run(images, plan)
        return output.tokens if output.logits is None else output.logits

    with torch.random.fork_rng():
        timings = race({str(i): partial(call, plan) for i, plan in enumerate(plans)}, rounds=rounds, what=what)
    return tuple(timing.median_ms for timing in timings.values())


def latency_table(
    model: ViT, *, size: int, batch: int = 1, precision: str = "float32", points: int = 12, rounds: int = 10
) -> LatencyTable:
    """Time a network over a ladder of budgets, from the least that its widths allow to 1.

    Args:
        model: on any device; a copy in evaluation mode is timed.
        size: side of the pictures in pixels.
        batch: pictures of one call.
        precision: number format of the weights, `float32` or `bfloat16`.
        points: how many budgets, evenly spaced; those that come to the same count once.
        rounds: how often each is timed.

    Raises:
        ValueError: when the patches do not divide the size, or a number is too small.
    """
    if batch < 1 or points < 2:
        raise ValueError(f"a table needs a batch of at least 1 and 2 points; got {batch} and {points}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be among {', '.join(PRECISIONS)}; got {precision!r}.")
    N = patches(model, size)
    least = model.least_budget(N)
    plans = [model.plan(N, least + (1 - least) * i / (points - 1)) for i in range(points - 1)] + [model.plan(N, 1.0)]
    # What is spent, not what was allowed, so that time is looked up for the work that is done.
    ladder = dict(sorted((model.macs(plan), plan) for plan in plans))
    ready = deepcopy(model).to(getattr(torch, precision)).eval()
    like = ready.embed.weight
    images = torch.zeros(batch, model.settings.channels, size, size, dtype=like.dtype, device=like.device)
    taken = milliseconds(ready, images, list(ladder.values()), rounds=rounds, what=f"Timing {precision}, batch {batch}")
    return LatencyTable(
        machine=here(like.device),
        precision=precision,
        patches=N,
        batch=batch,
        budgets=tuple(macs / model.full_macs(N) for macs in ladder),
        ms=taken,
    )
