"""Several networks through the same training, and what each reached, cost and decided, over several seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from nestor.data import load, load_splits
from nestor.models.composed import Composed
from nestor.training.aims import Aim, Priced, pursue
from nestor.training.checks import patches_of
from nestor.training.compare import means, right

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, SupportsFloat

    from nestor.data import Pictures
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
        rate: multiplies the contest's rate, for parts that bear more or less.
    """

    build: Callable[[], Composed]
    aim: Aim = field(default_factory=Priced)
    read: Mapping[str, Callable[[Output], SupportsFloat]] = field(default_factory=dict)
    rate: float = 1.0


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
        `accuracy`, `macs` (multiply-accumulates of one picture) and all that was read by name, one number for each
        seed; and `cost` by name, the mean of macs as a share of the first entry's.
    """
    found: dict[str, Any] = {}
    for seed, (name, entry) in product(seeds, entries.items()):
        torch.manual_seed(seed)
        model = pursue(entry.build(), learn, replace(how, rate=entry.rate * how.rate), entry.aim, seed)
        reads = {what: _of_output(read) for what, read in entry.read.items()}
        note(found, name, model, test, {"macs": Composed.macs} | reads)
    return found | {"cost": shares(found["macs"])}


def shares(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each over that of the first."""
    mean = means(found)
    return {name: each / mean[next(iter(mean))] for name, each in mean.items()}


def garments_at(size: int, pictures: int, held_out: int) -> tuple[Pictures, Pictures]:
    """So many pictures of Fashion-MNIST to learn from and to be judged by, of this size in pixels, decoded.

    Raises:
        ImportError: the files are missing, and so is datasets.
    """
    learn, judge = load_splits("fashion-mnist", size=size)
    return learn.limit(pictures).cached(), judge.limit(held_out).cached()


def cells_at(size: int, learn: int, judge: int) -> dict[str, tuple[Pictures, Pictures]]:
    """Solar cells of one crystal to learn from and of the other to be judged by, so many of this size in pixels.

    Raises:
        ImportError: elpv_dataset is missing.
    """
    cells = load("elpv", size=size)
    mono, poly = (
        cells.subset([i for i, group in enumerate(cells.groups) if group.startswith(kind)]) for kind in ("mono", "poly")
    )
    pairs = {"from mono to poly": (mono, poly), "from poly to mono": (poly, mono)}
    return {name: (a.limit(learn).cached(), b.limit(judge).cached()) for name, (a, b) in pairs.items()}


def note(
    found: dict[str, Any],
    name: str,
    model: Composed,
    test: Pictures,
    reads: Mapping[str, Callable[[Composed, Output, int, int], SupportsFloat]],
) -> None:
    """Add to what was found of a network its accuracy and what is read from its output, one number each.

    Args:
        found: by what, then by name; changed in place.
        name: of the network.
        model: trained.
        test: pictures to be judged by.
        reads: from the network, its output for some of the pictures, how many these are, and the patches of each.
    """
    output, items, patches = seen(model, test)
    numbers = {"accuracy": right(model, test)}
    numbers |= {what: float(read(model, output, items, patches)) for what, read in reads.items()}
    for what, number in numbers.items():
        found.setdefault(what, {}).setdefault(name, []).append(number)


@torch.no_grad()
def seen(model: Composed, pictures: Pictures) -> tuple[Output, int, int]:
    """What a network answers to the first pictures of a set, how many these are, and the patches of each."""
    count = min(_FEW, len(pictures))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = model(pictures.stacked(count))
    network: Any = model
    return output, count, patches_of(network, pictures)


def _of_output(
    read: Callable[[Output], SupportsFloat],
) -> Callable[[Composed, Output, int, int], SupportsFloat]:
    return lambda model, output, items, patches: read(output)
