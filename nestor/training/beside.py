"""Losses beside those of the tasks: of the decisions taken, and of how items lie to one another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.routing.losses import affinity, gates, load, task_information
from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.tasked import Tasked
    from nestor.training.tasks import Seen


@dataclass(frozen=True, kw_only=True)
class Level:
    """Keeps the experts of each task's router level: squared variation of their summed weights and of their load.

    Attributes:
        deviation: of the routers' noise, by which the load is smooth.
        weight: of both, mean over the decisions.
    """

    deviation: float
    weight: float = 0.01

    def __call__(self, model: Tasked, seen: Sequence[Seen]) -> Tensor:
        """Of all decisions of a step."""
        found = [
            gates(routing) + load(routing, self.deviation)
            for each in seen
            for routing in each.output.routings
            if isinstance(routing, Sparse)
        ]
        return self.weight * torch.stack(found).mean() if found else torch.zeros(())


@final
class Informed:
    """Makes each task claim few experts, and all tasks together use all: more mutual information of task and expert.

    What was seen of the tasks that a step does not learn is remembered as a running mean without gradient.

    Args:
        tasks: how many there are.
        weight: of the loss, sum over the layers.
        keep: share of the running mean that stays from step to step.
    """

    def __init__(self, tasks: int, *, weight: float = 0.005, keep: float = 0.99):
        if not 0 <= keep < 1 or not weight > 0 or tasks < 1:
            raise ValueError(f"keep must lie in [0, 1), weight be positive, and a task be there; got {keep}, {weight}.")
        self.tasks, self.weight, self.keep = tasks, weight, keep
        self.means: list[Tensor] = []

    def __call__(self, model: Tasked, seen: Sequence[Seen]) -> Tensor:
        """Of all decisions of a step."""
        total = torch.zeros(())
        for each in seen:
            task = torch.full((len(each.rows),), each.task.head)
            sparse = [routing for routing in each.output.routings if isinstance(routing, Sparse)]
            for layer, routing in enumerate(sparse):
                E = routing.scores.shape[-1]
                if layer == len(self.means):
                    self.means.append(torch.full((self.tasks, E), 1 / E))
                fresh = affinity(routing, task, self.tasks)[each.task.head]
                mine = (torch.arange(self.tasks) == each.task.head).unsqueeze(1)
                total = total + task_information(torch.where(mine, fresh, self.means[layer]))
                moved = self.means[layer][each.task.head].lerp(fresh.detach(), 1 - self.keep)
                self.means[layer] = torch.where(mine, moved, self.means[layer])
        return self.weight * total


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """Draws items of one kind together and others apart, by what one head makes of all items of a step.

    Attributes:
        head: number of the head.
        kinds: for each task, by the number of its head, the kind of each picture (N,).
        temperature: of the comparison.
        weight: of the loss.
    """

    head: int
    kinds: dict[int, Tensor] = field(default_factory=dict)
    temperature: float = 0.1
    weight: float = 0.01

    def __call__(self, model: Tasked, seen: Sequence[Seen]) -> Tensor:
        """Of all items of a step."""
        tokens = torch.cat([each.output.tokens for each in seen])
        kinds = torch.cat([self.kinds[each.task.head][each.rows] for each in seen])
        return self.weight * contrastive(model.heads[self.head](tokens, (1, 1)), kinds, self.temperature)


def contrastive(values: Tensor, kinds: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss: minus the mean log share of each item's own kind among all other items.

    Args:
        values: (N, F), normalised here.
        kinds: (N,); items that are alone of their kind do not count.
        temperature: of the cosines.

    Raises:
        ValueError: when the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive; got {temperature}.")
    unit = F.normalize(values.float(), dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(itself, 0)
    same = (kinds.unsqueeze(1) == kinds) & ~itself
    number = same.sum(-1)
    each = -(log * same).sum(-1) / number.clamp_min(1)
    return (each * (number > 0)).sum() / (number > 0).sum().clamp_min(1)
