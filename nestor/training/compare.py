"""Several networks through the same training, over several seeds, so that a comparison is one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.data import load_splits
from nestor.measure.score import accuracy
from nestor.training.fit import fit
from nestor.training.predict import predict
from nestor.training.schedule import Fixed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nestor.data import Pictures
    from nestor.models.composed import Composed
    from nestor.training.balance import Balance, Guide
    from nestor.training.settings import Fit


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A network to be trained and what is done with it then.

    Attributes:
        build: makes it; called after the seed was set.
        balance: losses of its decisions.
        convert: what is scored beside it, by name, made of the trained network.
    """

    build: Callable[[], Composed]
    balance: tuple[Balance | Guide, ...] = ()
    convert: Mapping[str, Callable[[Composed], Composed]] = field(default_factory=dict)


def train(rival: Rival, pictures: Pictures, how: Fit, seed: int) -> Composed:
    """A rival built and trained with this seed."""
    torch.manual_seed(seed)
    settings = replace(how, seed=seed, balance=rival.balance, sandwich=False, budgets=Fixed())
    # The loop asks of a network what Composed has too.
    return fit(cast("Any", rival.build()), pictures, settings)


def right(model: Composed, pictures: Pictures, seed: int = 0) -> float:
    """The share of pictures that are recognised; what is random is drawn from this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        logits, labels = predict(cast("Any", model), pictures)
    return accuracy(logits.argmax(-1), labels)


def garments(pictures: int, held_out: int) -> tuple[Pictures, Pictures]:
    """So many pictures of Fashion-MNIST to learn from and to be judged by, all classes alike, decoded.

    Raises:
        ImportError: the files are missing, and so is datasets.
        ValueError: a file is damaged, or the hub cannot give it.
    """
    learn, judge = load_splits("fashion-mnist", size=28)
    return learn.limit(pictures).cached(), judge.limit(held_out).cached()


def compare(
    rivals: Mapping[str, Rival], pictures: Pictures, held_out: Pictures, how: Fit, seeds: Sequence[int]
) -> dict[str, list[float]]:
    """Accuracy on held-out pictures of every rival and what is made of it, one number for each seed."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for name, rival in rivals.items():
            model = train(rival, pictures, how, seed)
            found.setdefault(name, []).append(right(model, held_out))
            for other, convert in rival.convert.items():
                found.setdefault(other, []).append(right(convert(model), held_out))
    return found


def means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean over the seeds of each."""
    return {name: mean(values) for name, values in found.items()}
