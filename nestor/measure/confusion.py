"""Which classes are mistaken for one another, and groups of those that are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes): how many pictures of each class, rows, were taken for each, columns.

    Raises:
        ValueError: when the two do not fit each other, or a number is no class.
    """
    both = torch.stack([labels, predicted]) if predicted.shape == labels.shape else None
    if both is None or labels.ndim != 1 or (both.numel() and not 0 <= int(both.min()) <= int(both.max()) < classes):
        raise ValueError(
            f"there must be one prediction a label, all in [0, {classes}); got {tuple(predicted.shape)} and "
            f"{tuple(labels.shape)}."
        )
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def groups(table: Tensor, number: int) -> tuple[int, ...]:
    """The group of each class, so that classes mistaken for one another are together: spectral clustering.

    Args:
        table: (classes, classes), as from `confusion`; right predictions do not count.
        number: of groups, numbered by their first class.

    Raises:
        ValueError: when there are more groups than classes, or none.
    """
    classes = len(table)
    if not 1 <= number <= classes:
        raise ValueError(f"the number of groups must lie in [1, {classes}]; got {number}.")
    mistaken = table.double() + table.double().T
    mistaken.fill_diagonal_(0)
    # A trace of a tie between all classes, so that none stands alone in a graph of its own.
    mistaken = mistaken + 1e-3 * mistaken.sum().clamp_min(1) / classes**2
    scale = mistaken.sum(1).rsqrt()
    _, vectors = torch.linalg.eigh(scale.unsqueeze(1) * mistaken * scale)
    place = F.normalize(vectors[:, -number:], dim=1)
    centres = _apart(place, number)
    found = torch.zeros(classes, dtype=torch.long)
    for _ in range(50):
        found = (place @ centres.T).argmax(1)
        total = torch.zeros_like(centres).index_add(0, found, place)
        new = torch.where(total.norm(dim=1, keepdim=True) > 0, F.normalize(total, dim=1), centres)
        if torch.equal(new, centres):
            break
        centres = new
    order = list(dict.fromkeys(found.tolist()))
    return tuple(order.index(each) for each in found.tolist())


def _apart(place: Tensor, number: int) -> Tensor:
    chosen = [0]
    for _ in range(number - 1):
        nearest = (place @ place[chosen].T).amax(1)
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    return place[chosen]
