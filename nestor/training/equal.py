"""Contestants at equal training compute: each in place of a dense network, at budgets that are shares of its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from nestor.measure.score import accuracy
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.predict import predict
from nestor.training.schedule import Fixed
from nestor.training.within import within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from nestor.data import Examples
    from nestor.models.video import Network
    from nestor.training.schedule import Budgets
    from nestor.training.settings import Fit


@dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    """A network before any training, and where it stands in for the dense one.

    Attributes:
        line: what it is a case of; several may share one, each with its own places.
        name: of its training, for the folder that keeps it.
        model: the network.
        budgets: that it is trained over.
        places: by share of the dense network's cost, the network's own budget there.
        arena: what it learns from and is measured by.
    """

    line: str
    name: str
    model: Network
    budgets: Budgets
    places: Mapping[float, float]
    arena: Arena

    def spent(self) -> tuple[float, ...]:
        """What it costs at each place below 1, as a share of what that place allows."""
        model, patches, full = self.model, self.arena.patches, self.arena.full
        return tuple(
            model.macs(model.plan(patches, own)) / (place * full) for place, own in self.places.items() if place < 1
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Arena:
    """What contestants have in common, and the kinds of them that there are.

    Attributes:
        full: multiply-accumulates of the dense network for one picture or clip.
        patches: of a picture, or of one index of a clip.
        parts: what is learnt from, and what is judged by.
    """

    full: int
    patches: int
    parts: tuple[Examples, Examples]

    def elastic(
        self, line: str, model: Network, budgets: Budgets, shares: Sequence[float], *, name: str | None = None
    ) -> Contestant:
        """One network for all shares of the dense one's cost, but for those that it cannot reach.

        Args:
            line: of the contestant, and its name unless another is given.
            model: runs at any budget.
            budgets: that it is trained over.
            shares: at which it is scored; 1 stands for its own full budget, whatever that costs.
            name: of the contestant.
        """
        places = self._own(model, shares)
        return Contestant(line=line, name=name or line, model=model, budgets=budgets, places=places, arena=self)

    def dedicated(self, line: str, model: Network, share: float) -> Contestant:
        """An elastic network that is trained and scored at one share of the dense one's cost alone.

        Raises:
            ValueError: the network cannot be had for so little.
        """
        places = self._own(model, (share,))
        if not places:
            raise ValueError(f"{line} must reach {share} of the dense network's cost and cannot. Raise the share.")
        budgets = Fixed(budget=places[share])
        return Contestant(line=line, name=f"{line} {share}", model=model, budgets=budgets, places=places, arena=self)

    def ordinary(self, line: str, model: Network, share: float) -> Contestant:
        """A network of a single budget that costs no more than this share of the dense one."""
        name, places = f"{line} {share}", {share: 1.0}
        return Contestant(line=line, name=name, model=model, budgets=Fixed(), places=places, arena=self)

    def _own(self, model: Network, shares: Sequence[float]) -> dict[float, float]:
        """The network's budgets at these shares: what it adds, such as a router, the dense network does not have."""
        full, least = model.full_macs(self.patches), model.least_budget(self.patches)
        own = {share: 1.0 if share == 1 else share * self.full / full for share in shares}
        return {share: budget for share, budget in own.items() if budget >= least}


def recognised(logits: Tensor, labels: Tensor) -> float:
    """The share of the labels (N,) that are the likeliest class of the logits (N, classes).

    Raises:
        ValueError: the two do not fit each other or are empty.
    """
    return accuracy(logits.argmax(-1), labels)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How all contestants are trained and scored.

    Attributes:
        how: they are trained, but for seed, budgets and the number of steps.
        steps: of the dense network, which no training may cost more than.
        batch: pictures or clips at a time when they are scored.
        score: made of logits (N, classes) and labels (N,), as JSON can hold it; a function of a module, since it
            travels.
    """

    how: Fit
    steps: float
    batch: int
    score: Callable[[Tensor, Tensor], Any] = recognised


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a contestant.

    Attributes:
        seed, line: it belongs to.
        scores: by place, as JSON writes it.
        paid: for its training, as a share of what was allowed.
        spent: at each place below 1, as a share of what that place allows.
    """

    seed: int
    line: str
    scores: Mapping[str, Any]
    paid: float
    spent: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all contestants of all seeds, and what no network may exceed.

    Attributes:
        results: at least one.
    """

    results: Sequence[Result]

    @property
    def runs(self) -> list[dict[str, dict[str, Any]]]:
        """Scores by line and place, one such table for each seed."""
        runs: dict[int, dict[str, dict[str, Any]]] = {}
        for each in self.results:
            runs.setdefault(each.seed, {}).setdefault(each.line, {}).update(each.scores)
        return list(runs.values())

    @property
    def spent(self) -> float:
        """The most that any network costs at a place below 1, as a share of what that place allows."""
        return max(share for each in self.results for share in each.spent)

    @property
    def paid(self) -> tuple[float, float]:
        """The least and the most that a training cost, as shares of what was allowed."""
        paid = [each.paid for each in self.results]
        return min(paid), max(paid)


def tried(contestant: Contestant, terms: Terms, seed: int, out: Path | None = None) -> Result:
    """Train a contestant for as long as the terms allow, and score it at each of its places.

    Args:
        contestant: its network stays as it is.
        terms: the same for all.
        seed: of training, and of what is drawn by lot when it is scored.
        out: folder of the training, as in `fit`; None to keep nothing.

    Raises:
        ValueError: not even one step is allowed, or as in `fit`.
    """
    (learn, judge), arena, model = contestant.arena.parts, contestant.arena, contestant.model
    how = replace(terms.how, seed=seed, budgets=contestant.budgets)
    how, paid = within(model, arena.patches, how, terms.steps * arena.full)
    tuned, scores = fit(model, learn, how, out=out), {}
    for place, budget in contestant.places.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            logits, labels = predict(tuned, judge, budget, batch=terms.batch, precision=how.precision)
        scores[str(place)] = terms.score(logits, labels)
    return Result(seed=seed, line=contestant.line, scores=scores, paid=paid, spent=contestant.spent())


def compete(
    contestants: Callable[[int], Iterable[Contestant]], terms: Terms, seeds: Sequence[int], folder: Path | None = None
) -> Outcome:
    """Try all contestants of all seeds, side by side; results come seed by seed, in the order of the contestants.

    Args:
        contestants: makes those of a seed, equally many for each and always in the same order; a function of a module
            or a `functools.partial` of one, since each contestant is made where it is tried.
        terms: the same for all.
        seeds: of the contestants and their training.
        folder: keeps the trainings, so that they may be interrupted.

    Raises:
        ValueError: there are no seeds or no contestants, or as in `tried`.
    """
    count = sum(1 for _ in contestants(seeds[0])) if seeds else 0
    if not count:
        raise ValueError(f"there must be a seed and a contestant of it; got seeds {tuple(seeds)} and none. Add one.")
    pieces = [(seed, number) for seed in seeds for number in range(count)]
    results = side_by_side(partial(_piece, contestants, terms, folder), pieces, what="Training")
    return Outcome(results=results)


def _piece(
    contestants: Callable[[int], Iterable[Contestant]], terms: Terms, folder: Path | None, piece: tuple[int, int]
) -> Result:
    seed, number = piece
    contestant = next(islice(contestants(seed), number, None))
    out = None if folder is None else folder / f"seed{seed}" / contestant.name.replace(" ", "-")
    return tried(contestant, terms, seed, out)
