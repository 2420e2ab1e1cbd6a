"""What the page shows, as values: a picture at a budget beside the full network."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import torch

from nestor.api import prepare
from nestor.data import MAX_PIXELS, open_picture
from nestor.data.decode import square
from nestor.measure.cost import patches
from nestor.measure.likeness import cosines
from nestor.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nestor.data.decode import Item
    from nestor.models.vit import ViT

T = TypeVar("T")

TURNS = 7
RUNGS = 9
# Pixels that a picture is shown with at least, so that it is sharp on a large screen.
_SHARP = 560


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture as the network reads it and as people see it.

    Attributes:
        name: what it is called.
        pixels: uint8 (3, size, size), for the network.
        shown: uint8 (3, S, S), the same square with more pixels.
        label: its true class, where that is known.
    """

    name: str
    pixels: Tensor
    shown: Tensor
    label: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Full:
    """What the full network makes of a picture: its normalised tensor (1, 3, H, W), tokens, and chances (C,) if any."""

    image: Tensor
    tokens: Tensor
    chances: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One picture at one budget beside the full network.

    Attributes:
        budget: what was asked for.
        plan: how many patches each expert got.
        index: (rows, columns), the expert of each patch.
        macs: multiply-accumulates that were spent.
        full_macs: those of the full network.
        chances: probabilities of the classes (C,), where there is a head.
        full_chances: those of the full network.
        likeness: cosine to the full network's class token, or to its patches where there is none.
    """

    budget: float
    plan: tuple[int, ...]
    index: Tensor
    macs: int
    full_macs: int
    chances: Tensor | None
    full_chances: Tensor | None
    likeness: float

    @property
    def ratio(self) -> float:
        """The share of the full network's multiply-accumulates that was spent."""
        return self.macs / self.full_macs


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Median milliseconds of one picture, elastic and full, over turns in which both ran."""

    ms: float
    full_ms: float
    turns: int


class Explorer:
    """An elastic network that people look at; safe to be asked from several threads, for it runs on one of its own.

    Nobody waits for more than the forward passes that others asked for before, since long work is asked for one pass
    at a time.

    Args:
        model: an elastic network.
        size: side of the pictures in pixels; by default the network's nominal one.

    Raises:
        ValueError: the network has one expert only, or the patches do not divide the size.
    """

    def __init__(self, model: ViT, size: int | None = None):
        self.model = prepare.elastic(model).eval()
        self.size = prepare.side(model, size)
        self.patches = patches(model, self.size)
        settings = model.settings
        self.widths = settings.nest.widths
        self.labels = settings.labels or tuple(map(str, range(settings.classes)))
        cell = self.size // settings.patch
        self.shown = cell * math.ceil(_SHARP / cell)
        # The least budget, rounded up so that it can be named.
        self.least = min(1.0, math.ceil(100 * model.least_budget(self.patches)) / 100)
        self._turns: dict[tuple[int, ...], deque[tuple[float, float]]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nestor-page")

    @property
    def rungs(self) -> tuple[float, ...]:
        """Budgets of the curve, from the least to 1."""
        return (*(self.least + (1 - self.least) * i / (RUNGS - 1) for i in range(RUNGS - 1)), 1.0)

    def open(self, item: Item, name: str, label: str | None = None) -> Picture:
        """Decode a picture.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, too large, or of a format that is not read.
        """
        whole = open_picture(item, at_least=self.shown, max_pixels=MAX_PIXELS)
        return Picture(name=name, label=label, pixels=prepare.pixels(item, self.size), shown=square(whole, self.shown))

    def full(self, picture: Picture) -> Full:
        """Run the full network on a picture."""
        image = prepare.normalised(self.model, picture.pixels)

        def run() -> Full:
            output = self.model(image, budget=1.0)
            return Full(image=image, tokens=output.tokens, chances=_chances(output.logits))

        return self._alone(run)

    def look(self, full: Full, budget: float) -> Look:
        """Run a picture at a budget.

        Raises:
            ValueError: the budget cannot be kept.
        """
        model = self.model
        plan = model.plan(self.patches, budget)

        def run() -> Look:
            output = model.run(full.image, plan)
            (decision,) = output.routings
            assert isinstance(decision, Sparse)
            return Look(
                budget=budget,
                plan=plan,
                index=decision.index[0, :, 0].reshape(model.cells(tuple(full.image.shape))).cpu(),
                macs=model.macs(plan),
                full_macs=model.full_macs(self.patches),
                chances=_chances(output.logits),
                full_chances=full.chances,
                likeness=float(cosines(output.tokens, full.tokens, model.settings.prefix)[0, 0]),
            )

        return self._alone(run)

    def turn(self, full: Full, plan: tuple[int, ...]) -> Clock:
        """Time a picture under a plan and at full budget, once more each."""
        whole = self.model.plan(self.patches, 1.0)

        def run() -> tuple[float, float]:
            return self._seconds(full.image, plan), self._seconds(full.image, whole)

        self._turns.setdefault(plan, deque(maxlen=2 * TURNS)).append(self._alone(run))
        clock = self.clock(plan)
        assert clock is not None
        return clock

    def clock(self, plan: tuple[int, ...]) -> Clock | None:
        """What was timed under a plan so far."""
        taken = list(self._turns.get(plan, ()))
        if not taken:
            return None
        own, whole = (1e3 * median(column) for column in zip(*taken, strict=True))
        return Clock(ms=own, full_ms=whole, turns=len(taken))

    def _seconds(self, image: Tensor, plan: tuple[int, ...]) -> float:
        _settle()
        begin = time.perf_counter()
        output = self.model.run(image, plan)
        _ = output.tokens if output.logits is None else output.logits
        _settle()
        return time.perf_counter() - begin

    def _alone(self, work: Callable[[], T]) -> T:
        """Do something on the one thread that runs the network, so that nothing disturbs what is timed."""

        def run() -> T:
            with torch.inference_mode():
                return work()

        return self._pool.submit(run).result()


def _chances(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits[0].float().softmax(-1).cpu()


def _settle() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
