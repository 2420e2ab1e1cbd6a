"""One network and several tasks, each with pictures of its own or all with the same: a short loop in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from nestor.training.run import parameter_groups
from nestor.training.schedule import order, rate_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nestor.models.tasked import Tasked
    from nestor.training.settings import Fit
    from nestor.types import Output


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Something to be learnt of pictures, or judged.

    Attributes:
        name: of the task.
        head: number of the head that answers; routers are told the same.
        images: (N, C, H, W), as the network takes them.
        targets: (N, ...), what answers are compared with.
        loss: of answers and targets of a batch.
        score: the same of all pictures, higher when better.
        weight: of the loss.
    """

    name: str
    head: int
    images: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a network made of a task's batch: `rows` (B,) are the numbers of its pictures."""

    task: Task
    rows: Tensor
    output: Output


class Beside(Protocol):
    """A loss beside those of the tasks, of all that was seen in a step."""

    def __call__(self, model: Tasked, seen: Sequence[Seen], /) -> Tensor:
        """A number with a gradient."""
        ...


def together(tasks: Sequence[Task], step: int) -> Sequence[Task]:
    """All tasks in every step; those with as many pictures see the same rows."""
    return tasks


@dataclass(frozen=True, kw_only=True)
class OneAtATime:
    """One task a step, drawn with odds in proportion to the square root of its number of pictures.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    def __call__(self, tasks: Sequence[Task], step: int) -> Sequence[Task]:
        """The task of this step."""
        odds = np.sqrt([len(task.images) for task in tasks])
        return [tasks[int(np.random.default_rng((self.seed, step)).choice(len(tasks), p=odds / odds.sum()))]]


def learn(
    model: Tasked,
    tasks: Sequence[Task],
    how: Fit,
    *,
    beside: Beside | None = None,
    draw: Callable[[Sequence[Task], int], Sequence[Task]] = together,
    only: Sequence[str] = ("",),
) -> Tasked:
    """Train a copy of a network on tasks: in each step a batch of every task that is drawn, then one update.

    Args:
        model: stays as it is.
        tasks: with at least one batch of pictures each.
        how: of it count steps, batch (of each task), rate, head_rate, router_rate, decay, warmup, clip and seed.
        beside: a further loss.
        draw: which tasks a step learns.
        only: parameters learn whose name has one of these parts.

    Raises:
        ValueError: there is no task, a task has not one batch, the number of steps is not given, or nothing learns.
        FloatingPointError: the loss is no longer a finite number.
    """
    short = [task.name for task in tasks if len(task.images) < how.batch or len(task.images) != len(task.targets)]
    if short or not tasks or how.steps is None:
        raise ValueError(
            f"every task needs at least a batch of {how.batch} pictures, each with its target, and the settings their "
            f"steps; got {', '.join(short) or f'{len(tasks)} tasks'} and {how.steps} steps."
        )
    student = copy.deepcopy(model).train()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(part in name for part in only))
    groups = parameter_groups(cast("Any", student), how)
    if not groups:
        raise ValueError("a network that learns must have parameters that do; got none. Change `only`.")
    optimizer = torch.optim.AdamW(groups, lr=how.rate, fused=True)
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(), torch.enable_grad():
        for step in range(how.steps):
            # Whatever is random in a network depends on the step alone.
            torch.manual_seed(int(np.random.SeedSequence((how.seed, step)).generate_state(1)[0]))
            for group in optimizer.param_groups:
                group["lr"] = how.rate * rate_factor(step, how.steps, how.warmup) * group["scale"]
            seen = [_see(student, task, how, step) for task in draw(tasks, step)]
            parts = [each.task.weight * _loss(each) for each in seen]
            loss = torch.stack([*parts, *([] if beside is None else [beside(student, seen)])]).sum()
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"step {step + 1} gave a loss of {loss.item():.4g}. Lower the rate.")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, how.clip)
            optimizer.step()
            optimizer.zero_grad()
    for parameter, before in zip(student.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return student.eval()


@torch.no_grad()
def scores(model: Tasked, tasks: Sequence[Task], *, told: Callable[[Task], int] | None = None) -> dict[str, float]:
    """How well a network does each task, by its name.

    Args:
        model: as for evaluation.
        tasks: with held-out pictures.
        told: what routers are told instead of the number of the head.
    """
    found = {}
    for task in tasks:
        number = None if told is None else told(task)
        answers = [model(part, task.head, number).logits for part in task.images.split(256)]
        found[task.name] = task.score(torch.cat(answers), task.targets)
    return found


def note(found: dict[str, dict[str, list[float]]], name: str, values: Mapping[str, float]) -> None:
    """Add one run's values to those of the other runs of the same name."""
    for key, value in values.items():
        found.setdefault(name, {}).setdefault(key, []).append(value)


def lines(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[float, list[float]]]:
    """The same with places in a row instead of names, as curves are drawn."""
    return {name: {float(place): runs for place, runs in enumerate(each.values())} for name, each in found.items()}


def _see(model: Tasked, task: Task, how: Fit, step: int) -> Seen:
    epoch, place = divmod(step, len(task.images) // how.batch)
    rows = torch.tensor(order(len(task.images), how.seed, epoch)[place * how.batch : (place + 1) * how.batch])
    return Seen(task=task, rows=rows, output=model(task.images[rows], task.head))


def _loss(seen: Seen) -> Tensor:
    assert seen.output.logits is not None
    return seen.task.loss(seen.output.logits, seen.task.targets[seen.rows])
