"""Which head a network needs for a set of pictures, and which teacher fits it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nestor.api.prepare import feasible, is_saved, told
from nestor.data import require_classes
from nestor.models.saved import load_model, save_model
from nestor.surgery.nest import with_head as headed
from nestor.training.checkpoint import FOLDER as CHECKPOINT
from nestor.training.probe import KINDS as PROBED
from nestor.training.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.models.vit import ViT
    from nestor.training.settings import Fit


def named(model: ViT, pictures: Pictures) -> ViT:
    """The network with its classes called as those of the pictures, where it knows as many by other names.

    The same names in another order are left for the training to refuse.
    """
    theirs = pictures.classes
    if model.settings.classes != len(theirs) or sorted(model.settings.labels) == sorted(theirs):
        return model
    return told(model, labels=theirs)


def needs_head(model: ViT, pictures: Pictures) -> bool:
    """Whether a network cannot tell the classes of these pictures because it has no head, or one for another number."""
    return bool(pictures.classes) and model.settings.classes != len(pictures.classes)


def check_head(model: ViT, kind: str) -> None:
    """Check that a network can be given a head of a kind.

    Raises:
        ValueError: when there is no such kind, or the network lacks what it reads.
    """
    headed(model, ("",), kind)


def outlined(model: ViT, pictures: Pictures, kind: str | None = None) -> ViT:
    """A copy with a head of zeros for the classes of these pictures; `kind` as in `with_head`."""
    return headed(model, pictures.classes, kind or ("class_mean" if model.settings.prefix else "mean"))


def with_head(model: ViT, pictures: Pictures, kind: str | None = None) -> ViT:
    """A copy with a fresh head, fitted to the labels with all else frozen.

    Args:
        model: any network.
        pictures: labelled ones.
        kind: what the head reads: `class`, `mean` or `class_mean`; by default as much of it as there is.

    Raises:
        ValueError: when the pictures have no labels, or the network has no such head.
    """
    require_classes(pictures)
    fresh = outlined(model, pictures, kind)
    if fresh.settings.head not in PROBED:
        return fresh
    # An elastic network is read at two budgets, since one head serves them all.
    budgets = feasible(model, None, pictures.size)
    return probe(fresh, pictures.augmented(None), budgets=sorted({budgets[len(budgets) // 3], budgets[-1]}))


def started(model: ViT, pictures: Pictures, out: Path | None) -> ViT:
    """A network with a fresh head to train from; of an interrupted training, the very head that it began with.

    Args:
        model: the network without it.
        pictures: labelled ones.
        out: where the training writes; its checkpoint, removed at the end, keeps the beginning too.
    """
    place = None if out is None else out / CHECKPOINT / "start"
    if place is not None and is_saved(place):
        earlier = load_model(place)
        if earlier.settings.labels == pictures.classes and _same_body(earlier, model):
            return earlier
    fresh = with_head(model, pictures)
    if place is not None and os.environ.get("RANK", "0") == "0":
        save_model(fresh, place)
    return fresh


def _same_body(one: ViT, other: ViT) -> bool:
    ours, theirs = (
        {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
        for model in (one, other)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].cpu()) for name in ours)


def check_teacher(model: ViT, teacher: ViT | None, settings: Fit) -> None:
    """Check that one network can teach another, as far as this is known before there are pictures.

    Raises:
        ValueError: when they want pictures normalised otherwise, or tokens are compared and differ in kind.
    """
    if teacher is None:
        return
    ours, theirs = model.settings, teacher.settings
    pairs = [("mean and std", (ours.mean, ours.std), (theirs.mean, theirs.std))]
    if settings.loss.prefix or settings.loss.patches:
        pairs += [
            ("width", ours.nest.widths[-1], theirs.nest.widths[-1]),
            ("patch", ours.patch, theirs.patch),
            ("number of prefix tokens", ours.prefix, theirs.prefix),
        ]
    for what, own, other in pairs:
        if own != other:
            raise ValueError(
                f"a teacher must have the network's own {what}, {own}; got {other}. "
                "Take the dense network that it was made of."
            )


def comparable(model: ViT, pictures: Pictures) -> Pictures:
    """The pictures, without labels where the network's head knows another number of classes."""
    if not model.settings.classes or not needs_head(model, pictures):
        return pictures
    return replace(pictures, classes=(), labels=(-1,) * len(pictures))
