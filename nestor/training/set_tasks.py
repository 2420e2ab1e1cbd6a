"""Tasks of different sets of real pictures: classes of garments, defects of cells, masks, digits, and shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from nestor.data import load_splits
from nestor.data.derived import foreground, grey, scattered, shape
from nestor.data.digits import digits
from nestor.measure.fields import intersection
from nestor.training.compare import garments
from nestor.training.pixel_tasks import right
from nestor.training.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

# One digit in so many is held out.
_EVERY = 4


def explained(predicted: Tensor, wanted: Tensor) -> float:
    """One minus the squared error over the variance of what is wanted, mean over the columns of (N, F)."""
    error = (predicted.double() - wanted.double()).square().mean(0)
    return float((1 - error / wanted.double().var(0, correction=0).clamp_min(1e-12)).mean())


def handwritten(size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits (N, size, size), enlarged, and what they show, to learn from and to be judged by.

    Raises:
        ImportError: the package that they travel in is missing.
    """
    pictures, labels = digits()
    large = F.interpolate(pictures.unsqueeze(1), (size, size), mode="bilinear", align_corners=False).squeeze(1)
    held_out = torch.arange(len(large)) % _EVERY == 0
    return (large[~held_out], labels[~held_out]), (large[held_out], labels[held_out])


def sets(pictures: int, held_out: int, *, side: int, cell: int = 64) -> tuple[list[Task], list[Task]]:
    """Four tasks of pictures of their own, to learn from and to be judged by.

    Heads 0 to 3: class of a garment on a canvas; whether a solar cell is defective, at `cell` pixels; foreground of a
    canvas; and which digit it is.

    Raises:
        ImportError: a package that a set travels in is missing.
    """
    found: tuple[list[Task], list[Task]] = ([], [])
    cells = load_splits("elpv", size=cell)
    for part, (clothes, modules, written) in enumerate(
        zip(garments(pictures, held_out), cells, handwritten(side), strict=True)
    ):
        canvas = scattered(grey(clothes), side, seed=part)
        each = (
            ("garments", canvas, torch.tensor(clothes.labels)),
            ("cells", grey(modules.cached()), torch.tensor(modules.labels)),
            ("masks", canvas, foreground(canvas).unsqueeze(1)),
            ("digits", *written),
        )
        for head, (name, images, targets) in enumerate(each):
            masks = targets.ndim > 1
            loss = F.binary_cross_entropy_with_logits if masks else F.cross_entropy
            score = intersection if masks else right
            inputs = ((images - images.mean()) / images.std()).unsqueeze(1)
            found[part].append(Task(name=name, head=head, images=inputs, targets=targets, loss=loss, score=score))
    return found


def shapes(pictures: int, held_out: int) -> tuple[list[Task], list[Task], list[Tensor], list[Tensor]]:
    """Two families of pictures of 28 pixels, garments and digits, whose shape is to be told; and the kind of each.

    Targets are the numbers of `nestor.data.derived.SHAPE`, standardised for each family.

    Raises:
        ImportError: a package that a set travels in is missing.
    """
    parts = [(grey(each), torch.tensor(each.labels)) for each in garments(pictures, held_out)]
    families = (("garments", parts), ("digits", list(handwritten(28))))
    learn, judge, known = [], [], ([], [])
    for head, (name, (first, second)) in enumerate(families):
        numbers = shape(first[0])
        mean, spread = numbers.mean(0), numbers.std(0)
        centre, contrast = first[0].mean(), first[0].std()
        for tasks, kinds, (images, labels) in ((learn, known[0], first), (judge, known[1], second)):
            task = Task(
                name=name,
                head=head,
                images=((images - centre) / contrast).unsqueeze(1),
                targets=(shape(images) - mean) / spread,
                loss=F.mse_loss,
                score=explained,
            )
            tasks.append(task)
            kinds.append(labels + 10 * head)
    return learn, judge, known[0], known[1]


def alone(task: Task) -> Task:
    """The same task for a network that has no other: its head is the first."""
    return replace(task, head=0)
