"""Which experts whole pictures meet, where one decision is made for all tokens of a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.measure.traffic import shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nestor.data import Pictures
    from nestor.models.composed import Composed
    from nestor.types import Routing


def most_met(routings: Iterable[Routing]) -> int:
    """How many experts the tokens of one picture meet in one layer, at the most.

    Raises:
        ValueError: when there is no decision.
    """
    met = [int((shares(routing).sum(1) > 0).sum(-1).max()) for routing in routings]
    if not met:
        raise ValueError("there is no decision to read. Run a network that has mixtures.")
    return max(met)


@torch.no_grad()
def at_their_expert(model: Composed, pictures: Pictures, groups: Sequence[int], *, most: int = 500) -> float:
    """The share of pictures whose first token the first mixture sends to the expert of their class.

    Args:
        model: with one mixture or more.
        pictures: labelled.
        groups: the expert of each class, as from `nestor.measure.confusion.groups`.
        most: the first so many pictures are looked at.

    Raises:
        ValueError: when a class has no expert, or the network makes no decision.
    """
    if len(groups) != len(pictures.classes):
        raise ValueError(
            f"every class needs an expert; got {len(groups)} experts of classes and {len(pictures.classes)} classes."
        )
    images = pictures.stacked(most)
    wanted = torch.tensor(groups)[torch.tensor(pictures.labels[: len(images)])]
    routings = model(images).routings
    if not routings:
        raise ValueError("the network makes no decision. Give it a mixture.")
    return float((shares(routings[0])[:, 0].argmax(-1) == wanted).double().mean())
