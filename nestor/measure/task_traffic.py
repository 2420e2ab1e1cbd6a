"""Where the routers of several tasks send their tokens."""

from __future__ import annotations

from itertools import combinations, pairwise
from statistics import mean
from typing import TYPE_CHECKING

import torch

from nestor.measure.trace import load_trace, save_trace
from nestor.measure.traffic import divergence, information, traffic
from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from nestor.models.tasked import Tasked


@torch.no_grad()
def usage(model: Tasked, images: Tensor, task: int) -> list[Tensor]:
    """For each layer that decides (E,): each expert's share of the choices that pictures of a task come to."""
    return [traffic(routing).load for routing in model(images, task).routings]


def apart(model: Tasked, images: Tensor, tasks: Sequence[int]) -> tuple[float, float]:
    """Mean divergence in nats of the loads of two tasks about the same pictures, and of two halves of them for one.

    Raises:
        ValueError: when there are fewer than two tasks or pictures.
    """
    if len(tasks) < 2 or len(images) < 2:
        raise ValueError(f"there must be two tasks and two pictures at least; got {len(tasks)} and {len(images)}.")
    loads = [[usage(model, part, task) for part in images.chunk(2)] for task in tasks]
    first = [halves[0] for halves in loads]
    between = [divergence(a, b) for one, two in combinations(first, 2) for a, b in zip(one, two, strict=True)]
    within = [
        divergence(a, b) for halves in loads for one, two in pairwise(halves) for a, b in zip(one, two, strict=True)
    ]
    return mean(between), mean(within)


def told(model: Tasked, images: Sequence[Tensor]) -> dict[str, float]:
    """For each layer that decides, by its number, what the expert tells of the task in nats, all tasks weighing alike.

    Args:
        model: of several tasks.
        images: of each task, by the number of its head.
    """
    loads = [usage(model, part, task) for task, part in enumerate(images)]
    return {str(layer): information(torch.stack(rows)) for layer, rows in enumerate(zip(*loads, strict=True))}


@torch.no_grad()
def traced(model: Tasked, images: Tensor, tasks: Sequence[int], folder: Path | None = None) -> list[list[Sparse]]:
    """For each task, the sparse decisions of all layers about these pictures.

    Args:
        model: of these tasks.
        images: (B, C, H, W).
        tasks: by the numbers of their heads.
        folder: where the decisions are saved as trace.safetensors, and read again, if there is one.
    """
    found = {str(task): model(images, task).routings for task in tasks}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_trace(folder / "trace.safetensors", found)
        found = load_trace(folder / "trace.safetensors")
    return [[routing for routing in several if isinstance(routing, Sparse)] for several in found.values()]
