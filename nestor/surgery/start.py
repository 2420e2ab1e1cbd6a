"""Where trainings start from: a pretrained network made ready, and ways to nest it other than by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nestor.models.pretrained import read
from nestor.models.uniform import routed_by
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, published, with_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.models.vit import ViT


def folded(name: str, labels: Sequence[str] = ()) -> ViT:
    """A pretrained network, folded so that it can be nested exactly.

    Args:
        name: as in `nestor.models.pretrained.read`.
        labels: names of the classes of a fresh head of zeros; without any the network stays as it is read.

    Raises:
        ValueError: as in `read` and `fold`.
    """
    model = fold(read(name))
    return with_head(model, labels) if labels else model


def sizes(dense: ViT) -> tuple[int, int, int]:
    """Channels, hidden units and heads of a dense network, as `nestor.surgery.nest.shape` and `published` take them.

    Raises:
        ValueError: when the network is nested already.
    """
    full = dense.settings.nest
    if full.experts != 1:
        raise ValueError(f"sizes are those of a network with one expert; got one with {full.experts}.")
    return full.widths[0], full.hidden[0], full.heads[0]


def unrotated(dense: ViT, images: Tensor) -> ViT:
    """The network nested with its channels in the order in which they come.

    Args:
        dense: a network with one expert; it is not changed.
        images: (n, 3, H, W), as in `nestor.surgery.nest.nest`.

    Raises:
        ValueError: when the network is nested already.
    """
    return nest(dense, images, basis=torch.eye(sizes(dense)[0]))


def as_published(dense: ViT, images: Tensor) -> ViT:
    """The network nested in the published shape; arguments as in `unrotated`.

    Raises:
        ValueError: when the network is nested already.
    """
    return nest(dense, images, nest=published(*sizes(dense)))


def routed(dense: ViT, images: Tensor, *, scores: tuple[str, ...]) -> ViT:
    """The network nested, with a router of these scores in place of the one that was measured.

    Args:
        dense: a network with one expert; it is not changed.
        images: (n, 3, H, W), as in `nestor.surgery.nest.nest`.
        scores: as in `ViTSettings`; what is learnt of them starts from torch's generator.

    Raises:
        ValueError: when the network is nested already, or a score is unknown.
    """
    return routed_by(nest(dense, images), scores)


def perturbed(dense: ViT, images: Tensor) -> ViT:
    """The network nested, with noise beside the scores that were measured; arguments as in `unrotated`.

    Raises:
        ValueError: when the network is nested already.
    """
    model = nest(dense, images)
    return routed_by(model, (*model.settings.scores, "perturbed"))
