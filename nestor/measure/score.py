"""How good predictions are."""

from __future__ import annotations

import torch
from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of right predictions; both (N,) class numbers.

    Raises:
        ValueError: when the two do not fit each other or are empty.
    """
    _require(predicted, labels)
    return (predicted == labels).double().mean().item()


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur of the share of right predictions in each; both (N,) class numbers.

    Raises:
        ValueError: when the two do not fit each other or are empty.
    """
    _require(predicted, labels)
    right = predicted == labels
    return torch.stack([right[labels == label].double().mean() for label in labels.unique()]).mean().item()


def auroc(scores: Tensor, labels: Tensor) -> float:
    """The probability that a positive scores higher than a negative, ties counting half: exact, by midranks.

    Args:
        scores: (N,), higher for positives.
        labels: (N,), 1 for positives and 0 for negatives.

    Raises:
        ValueError: when the two do not fit each other, a score is NaN, or one of the two classes is missing.
    """
    _require(scores, labels)
    if scores.isnan().any():
        raise ValueError("scores must be numbers; got NaN. The network has diverged.")
    if not ((labels == 0) | (labels == 1)).all() or not 0 < (positives := int((labels == 1).sum())) < len(labels):
        found = ", ".join(str(label) for label in labels.unique().tolist()[:5])
        raise ValueError(f"AUROC needs pictures of both classes, labelled 0 and 1; got labels {found}.")
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    # The mean rank of equal scores; doubles hold every such sum exactly.
    midrank = counts.cumsum(0).double() - (counts - 1).double() / 2
    ranks = midrank[inverse][labels == 1].sum().item()
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def _require(predicted: Tensor, labels: Tensor) -> None:
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"there must be one prediction a label, both (N,) and N above 0; "
            f"got {tuple(predicted.shape)} and {tuple(labels.shape)}."
        )
