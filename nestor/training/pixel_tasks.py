"""Four tasks from the pixels of real pictures: class, foreground, edges and their directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from nestor.data.derived import directions, edges, foreground, grey, scattered
from nestor.measure.fields import alignment, correlation, intersection
from nestor.measure.score import accuracy
from nestor.training.compare import garments
from nestor.training.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from nestor.data import Pictures

NAMES = ("class", "foreground", "edges", "directions")


def right(logits: Tensor, labels: Tensor) -> float:
    """The share of items whose highest logit is that of their label."""
    return accuracy(logits.argmax(-1), labels)


def pixel_tasks(pictures: Pictures, side: int, *, seed: int = 0) -> tuple[Task, ...]:
    """The four tasks of pictures that lie anywhere on black canvases; head 0 is the class's, and so on by NAMES.

    Args:
        pictures: grey on black, with labels.
        side: of a canvas in pixels.
        seed: of the places.
    """
    canvas = scattered(grey(pictures), side, seed=seed)
    normal, outline = ((part - part.mean()) / part.std() for part in (canvas, edges(canvas)))
    images = normal.unsqueeze(1)
    kinds = (
        (torch.tensor(pictures.labels), F.cross_entropy, right),
        (foreground(canvas).unsqueeze(1), F.binary_cross_entropy_with_logits, intersection),
        (outline.unsqueeze(1), F.mse_loss, correlation),
        (directions(canvas), F.mse_loss, alignment),
    )
    return tuple(
        Task(name=name, head=head, images=images, targets=targets, loss=loss, score=score)
        for head, (name, (targets, loss, score)) in enumerate(zip(NAMES, kinds, strict=True))
    )


def tasks_of_garments(pictures: int, held_out: int, side: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """The same of so many pictures of Fashion-MNIST to learn from and to be judged by.

    Raises:
        ImportError: the files are missing, and so is datasets.
        ValueError: a file is damaged, or the hub cannot give it.
    """
    learn, judge = garments(pictures, held_out)
    return pixel_tasks(learn, side), pixel_tasks(judge, side, seed=1)
