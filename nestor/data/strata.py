"""Choosing pictures so that every class and group keeps its share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.data.pictures import Pictures


def split(
    pictures: Pictures, *, fraction: float = 0.25, seed: int = 0, groups: Sequence[str] | None = None
) -> tuple[Pictures, Pictures]:
    """Part pictures into a training and a test side, with equal shares of every class and of every group within it.

    Args:
        pictures: what to part.
        fraction: the share of the test side, in (0, 1).
        seed: equal seeds give equal sides.
        groups: one name for each picture, whose shares are kept too; by default the groups that the set brings along.

    Raises:
        ValueError: fraction out of range, a class with fewer than two pictures, or groups of another length.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1); got {fraction}. 0.25 keeps a quarter for testing.")
    groups = pictures.groups if groups is None else tuple(groups)
    if groups and len(groups) != len(pictures):
        raise ValueError(f"groups needs one name for each of {len(pictures)} pictures; got {len(groups)}.")
    for label, count in sorted(Counter(pictures.labels).items()):
        if count < 2:
            what = f"class {pictures.classes[label]!r}" if label >= 0 else "the unlabelled set"
            raise ValueError(
                f"a split needs at least two pictures of every class; {what} has {count}. "
                "Add pictures or drop the class."
            )
    test = pick(pictures.labels, groups, round(fraction * len(pictures)), seed=seed, least=1, spare=1)
    chosen = set(test)
    return pictures.subset([i for i in range(len(pictures)) if i not in chosen]), pictures.subset(test)


def pick(
    labels: Sequence[int], groups: Sequence[str], total: int, *, seed: int, least: int = 0, spare: int = 0
) -> list[int]:
    """Choose positions, in ascending order, that keep the shares of labels and of groups within each label.

    Each label gives at least `least` and keeps at least `spare` pictures back, which outweighs `total`.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}.")
    rng = np.random.default_rng(seed)
    strata: dict[int, dict[str, list[int]]] = {}
    for position, label in enumerate(labels):
        group = groups[position] if groups else ""
        strata.setdefault(label, {}).setdefault(group, []).append(position)
    order = sorted(strata)
    sizes = [sum(map(len, strata[label].values())) for label in order]
    chosen: list[int] = []
    for label, share in zip(order, allot(sizes, total, least=least, spare=spare), strict=True):
        members = [strata[label][group] for group in sorted(strata[label])]
        for positions, count in zip(members, allot([len(m) for m in members], share), strict=True):
            chosen += [positions[i] for i in rng.permutation(len(positions))[:count]]
    return sorted(chosen)


def allot(sizes: Sequence[int], total: int, *, least: int = 0, spare: int = 0) -> list[int]:
    """Part `total` in proportion to sizes, by largest remainder, with each part in [least, size - spare]."""
    shares = [size * total / sum(sizes) for size in sizes]
    parts = [max(least, min(int(share), size - spare)) for share, size in zip(shares, sizes, strict=True)]
    while sum(parts) < total:
        room = [i for i, size in enumerate(sizes) if parts[i] < size - spare]
        if not room:
            break
        parts[max(room, key=lambda i: shares[i] - parts[i])] += 1
    while sum(parts) > total:
        room = [i for i in range(len(parts)) if parts[i] > least]
        if not room:
            break
        parts[min(room, key=lambda i: shares[i] - parts[i])] -= 1
    return parts
