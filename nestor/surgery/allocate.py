"""An allocation found by measurement: which shares of the experts lose least at each cost."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from nestor.data.scan import watch
from nestor.measure.likeness import cosines
from nestor.models.vit import ViT
from nestor.routing.allocation import Allocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from nestor.types import Output

    Plan = tuple[int, ...]
    Loss = Callable[[Output, Output], Tensor]
    Costs = Callable[[Sequence[Plan]], Sequence[float]]


@torch.no_grad()
def allocate(
    model: ViT, images: Tensor, *, steps: int = 8, loss: Loss | None = None, costs: Costs | None = None, batch: int = 32
) -> ViT:
    """A copy whose budgets are shared among the experts along the path that lost least on calibration pictures.

    Every plan on a grid, the patches dealt out in `steps` equal parts, is run once; of all ways through the grid that
    only promote, the one whose curve of loss over cost encloses the least area becomes the settings' allocation. Two
    experts leave nothing to find.

    Args:
        model: a nested network; it is not changed.
        images: (n, 3, H, W) calibration pictures, normalised; 32 to 128 are enough.
        steps: parts of the patches; with 4 experts 8 give 165 plans to run, with 3 experts 45.
        loss: what an output (first) loses against the full budget's (second), (n,); by default one minus the mean of
            the cosines of class token and patches.
        costs: what plans cost; by default multiply-accumulates. `nestor.measure.latency.milliseconds`, bound to the
            network and a batch, finds the path that loses least for its time.
        batch: pictures at a time.

    Raises:
        ValueError: when the network has one expert, or there are more steps than patches.
    """
    E, (rows, columns) = model.settings.nest.experts, model.cells(images.shape)
    if E < 2:
        raise ValueError("an allocation needs two experts or more; this network has one. Make it elastic: nestor nest.")
    N = rows * columns
    if not 1 <= steps <= N:
        raise ValueError(f"steps must lie in [1, {N}], the patches of a picture; got {steps}. Take 8, for instance.")
    grid = {parts: _whole(parts, N) for parts in mixtures(E, steps)}
    loss = partial(_lost, prefix=model.settings.prefix) if loss is None else loss
    lost = losses(model, images, list(grid.values()), loss, batch)
    spent = [model.macs(plan) for plan in grid.values()] if costs is None else costs(list(grid.values()))
    way = least_area(dict(zip(grid, zip(spent, lost, strict=True), strict=True)))
    path = tuple(tuple(part / steps for part in parts) for parts in way)
    # Built without memory, so that no generator is advanced and nothing is initialised twice.
    with torch.device("meta"):
        new = ViT(replace(model.settings, allocation=Allocation(path=path)))
    new.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return new.train(model.training)


@torch.no_grad()
def losses(model: ViT, images: Tensor, plans: Sequence[Plan], loss: Loss, batch: int = 32) -> list[float]:
    """What each plan loses against all patches at full width, the mean over pictures (n, 3, H, W).

    Args:
        model: a nested network, run as it is.
        images: normalised.
        plans: how many patches every expert serves.
        loss: of an output against the full one, (n,).
        batch: pictures at a time.
    """
    sums = [0.0] * len(plans)
    full = (0,) * (model.settings.nest.experts - 1) + (sum(plans[0]),)
    work = [(part, i) for part in images.split(batch) for i in range(len(plans))]
    wanted: Output | None = None
    for part, i in watch(work, total=len(work), what="Measuring allocations"):
        wanted = model.run(part, full) if i == 0 or wanted is None else wanted
        sums[i] += loss(model.run(part, plans[i]), wanted).double().sum().item()
    return [total / len(images) for total in sums]


def mixtures(experts: int, steps: int) -> Iterator[tuple[int, ...]]:
    """All ways to deal `steps` parts out to the experts, each after those that promotions lead to it from."""
    for bars in itertools.combinations(range(steps + experts - 1), experts - 1):
        ends = (-1, *bars, steps + experts - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(ends))[::-1]


def least_area(points: Mapping[tuple[int, ...], tuple[float, float]]) -> list[tuple[int, ...]]:
    """The way from all parts at the first expert to all at the last with the least area under loss over cost.

    Each step of it promotes one part to any wider expert. A step whose measured cost falls has no area.

    Args:
        points: cost and loss of every mixture, in the order of `mixtures`.
    """
    best: dict[tuple[int, ...], tuple[float, tuple[int, ...] | None]] = {}
    for here, (cost, loss) in points.items():
        reached: list[tuple[float, tuple[int, ...] | None]] = []
        for before in _demoted(here):
            other, its = points[before]
            reached.append((best[before][0] + max(0.0, cost - other) * (loss + its) / 2, before))
        best[here] = min(reached, key=lambda way: way[0], default=(0.0, None))
    way = [list(points)[-1]]
    while (before := best[way[-1]][1]) is not None:
        way.append(before)
    return way[::-1]


def _demoted(parts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for low, high in itertools.combinations(range(len(parts)), 2):
        if parts[high]:
            moved = list(parts)
            moved[low], moved[high] = moved[low] + 1, moved[high] - 1
            yield tuple(moved)


def _whole(parts: tuple[int, ...], patches: int) -> Plan:
    """Whole patches by the same parts, by cumulative shares, so that promotions of parts are promotions of patches."""
    ends = [patches * total // sum(parts) for total in itertools.accumulate(parts)]
    return tuple(b - a for a, b in itertools.pairwise((0, *ends)))


def _lost(found: Output, full: Output, prefix: int) -> Tensor:
    return 1 - cosines(found.tokens, full.tokens, prefix).mean(1)
