"""Several networks through the same training, and what each reached, cost and decided, over several seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import torch

from nestor.data import load_splits
from nestor.models.composed_run import macs
from nestor.training.aims import Aim, Priced, pursue
from nestor.training.checks import patches_of
from nestor.training.compare import means, right

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, SupportsFloat

    from nestor.data import Pictures
    from nestor.models.composed import Composed
    from nestor.training.settings import Fit
    from nestor.types import Output

_FEW = 200


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network to be trained, and towards what.

    Attributes:
        build: makes it; called after the seed was set.
        aim: what its training minimises; the labels alone unless given.
        read: numbers to be read from its output for held-out pictures, by name.
    """

    build: Callable[[], Composed]
    aim: Aim = field(default_factory=Priced)
    read: Mapping[str, Callable[[Output], SupportsFloat]] = field(default_factory=dict)


def contest(
    entries: Mapping[str, Entry], learn: Pictures, test: Pictures, how: Fit, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train every entry with every seed.

    Args:
        entries: by name; the first is what costs are shares of.
        learn: pictures to train on.
        test: pictures to be judged by.
        how: the same for all.
        seeds: of building and training.

    Returns:
        `accuracy` by name, one number for each seed; `cost` by name, multiply-accumulates of one picture as a share of
        the first entry's; and all that was read, as accuracies are.
    """
    found: dict[str, Any] = {"accuracy": {name: [] for name in entries}}
    spent: dict[str, list[float]] = {name: [] for name in entries}
    for seed, (name, entry) in product(seeds, entries.items()):
        torch.manual_seed(seed)
        model = pursue(entry.build(), learn, how, entry.aim, seed)
        found["accuracy"][name].append(right(model, test))
        output, items, patches = seen(model, test)
        spent[name].append(macs(model, output, items, patches))
        for what, read in entry.read.items():
            found.setdefault(what, {}).setdefault(name, []).append(float(read(output)))
    mean = means(spent)
    whole = mean[next(iter(entries))]
    return found | {"cost": {name: each / whole for name, each in mean.items()}}


def garments_at(size: int, pictures: int, held_out: int) -> tuple[Pictures, Pictures]:
    """So many pictures of Fashion-MNIST to learn from and to be judged by, of this size in pixels, decoded.

    Raises:
        ImportError: the files are missing, and so is datasets.
    """
    learn, judge = load_splits("fashion-mnist", size=size)
    return learn.limit(pictures).cached(), judge.limit(held_out).cached()


@torch.no_grad()
def seen(model: Composed, pictures: Pictures) -> tuple[Output, int, int]:
    """What a network answers to the first pictures of a set, how many these are, and the patches of each."""
    count = min(_FEW, len(pictures))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = model(torch.stack([pictures[i][0] for i in range(count)]))
    network: Any = model
    return output, count, patches_of(network, pictures)
