"""A task of a text: what comes next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from nestor.data.text import reference, windows
from nestor.training.tasks import Task
from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from nestor.models.causal import CausalModel
    from nestor.training.tasks import Seen


def next_letters(length: int) -> tuple[Task, Task]:
    """What letter comes next in Python's reference, to learn and to be judged by, in pieces of this length."""
    learn, judge = (windows(text, length) for text in reference())
    return _task(learn), _task(judge)


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A loss beside the task's: of all sparse decisions of a step, their mean.

    Attributes:
        loss: of a decision.
        weight: of it.
    """

    loss: Callable[[Sparse], Tensor]
    weight: float = 0.01

    def __call__(self, model: object, seen: Sequence[Seen]) -> Tensor:
        """Of all that was seen."""
        found = [self.loss(r) for each in seen for r in each.output.routings if isinstance(r, Sparse)]
        return self.weight * torch.stack(found).mean() if found else torch.zeros(())


@torch.no_grad()
def perplexity(model: CausalModel, task: Task, batch: int = 32) -> tuple[float, float]:
    """The perplexity of all that comes next, and multiply-accumulates of a word."""
    nats, macs, words = 0.0, 0.0, task.targets.numel()
    for ids, targets in zip(task.images.split(batch), task.targets.split(batch), strict=True):
        output = model(ids)
        assert output.logits is not None
        nats += float(task.loss(output.logits, targets)) * targets.numel()
        macs += model.macs(output) * targets.numel()
    return math.exp(nats / words), macs / words


@torch.no_grad()
def swayed(model: CausalModel, ids: Tensor, place: int) -> float:
    """The largest change of a token before a place when all words from there on become others.

    Args:
        model: causal or not.
        ids: (B, T).
        place: at least 1.
    """
    others = ids.clone()
    others[:, place:] = (others[:, place:] + 1) % len(model.words)
    first, second = (model(each).tokens[:, :place] for each in (ids, others))
    return float((first - second).abs().max())


def _task(pieces: Tensor) -> Task:
    return Task(name="next", head=0, images=pieces[:, :-1], targets=pieces[:, 1:], loss=_loss, score=_score)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _score(logits: Tensor, targets: Tensor) -> float:
    return -float(_loss(logits, targets))
