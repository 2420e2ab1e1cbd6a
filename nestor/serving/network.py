"""The network behind the server: what it takes, what it answers at each declared budget, and how long that takes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from nestor.data.decode import MAX_PIXELS, decode, square

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from nestor.models.vit import ViT

STEPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ROUNDS = 3
# Seconds; a batch that takes as long is measured once.
LONG = 0.1
# What clients are told of a network, and go by.
PROMISED = ("budgets", "input", "prepare", "cells", "labels")
# Datatypes of the protocol: what torch calls them, and their bytes on the wire.
DATATYPES = {"FP32": (torch.float32, np.dtype("<f4")), "INT64": (torch.int64, np.dtype("<i8"))}


@dataclass(frozen=True, kw_only=True)
class Input:
    """The tensor that a network takes.

    Attributes:
        shape: of one item, without the batch.
        name: that clients know it by.
        datatype: of the Open Inference Protocol, one of DATATYPES.
        below: values lie in [0, below); None for any finite number.
    """

    shape: tuple[int, ...]
    name: str = "images"
    datatype: str = "FP32"
    below: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What torch calls the datatype."""
        return DATATYPES[self.datatype][0]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """From an encoded picture to what a network takes: decode, scale to cover the square, crop, normalise.

    Attributes:
        side: of the square in pixels.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """A picture as (1, 3, side, side).

        Raises:
            ValueError: the picture is damaged, too large, or of a format that is not read.
        """
        pixels = square(decode(picture, at_least=self.side, max_pixels=max_pixels), self.side).float() / 255
        mean, std = (torch.tensor(of).view(3, 1, 1) for of in (self.mean, self.std))
        return ((pixels - mean) / std).unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one batch gives: logits (B, classes), and which expert each patch took (B, rows x columns), if any did."""

    logits: Tensor
    experts: Tensor | None = None


class Served(Protocol):
    """What a server needs of a network: any dial will do that trades quality for time."""

    @property
    def budgets(self) -> tuple[float, ...]:
        """The declared budgets, ascending."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def input(self) -> Input:
        """What it takes."""
        ...

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of patches; (0, 0) where nothing is routed."""
        ...

    @property
    def prepare(self) -> Preparation | None:
        """From an encoded picture to its input; None for a network that takes no pictures."""
        ...

    def run(self, items: Tensor, budget: float) -> Answers:
        """Answers to (B, ...) at a declared budget, on the CPU."""
        ...


@runtime_checkable
class Perishable(Served, Protocol):
    """A network that may be lost, with whoever is in it, and brought back: one in a process of its own.

    Attributes:
        patience: seconds after which a batch that has not ended is given up, and the network with it.
    """

    patience: float

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    @property
    def starting(self) -> float:
        """Seconds that bringing it up took last."""
        ...

    def revive(self) -> bool:
        """Bring it up again after it was lost; says whether it is the same network, bit for bit.

        Raises:
            LostError: it was lost again.
            ValueError: what came up is of another kind.
        """
        ...

    def close(self) -> None:
        """Let it go for good."""
        ...


class LostError(Exception):
    """A network was lost while it ran."""


def promised(served: Served) -> dict[str, object]:
    """What clients were told of a network."""
    return {name: getattr(served, name) for name in PROMISED}


def keep(old: Mapping[str, object], new: Mapping[str, object]) -> None:
    """See to it that a network that takes another one's place is what clients were promised.

    Raises:
        ValueError: it is not.
    """
    for name, was in old.items():
        if new[name] != was:
            raise ValueError(
                f"a new network must keep the {name} {was!s:.200}; got {new[name]!s:.200}. Start another server for it."
            )


class ServedViT:
    """An elastic vision transformer behind a server.

    Args:
        model: the network, with a head.
        budgets: that it may be run at; by default steps of a tenth, from the least that the widths allow.
        size: side of the pictures in pixels; by default the network's nominal one.

    Raises:
        ValueError: it has no head, a budget cannot be kept, or the patches do not divide the size.
    """

    def __init__(self, model: ViT, budgets: Sequence[float] | None = None, *, size: int | None = None):
        settings = model.settings
        if not settings.classes:
            raise ValueError("serving needs a network with a head; this one has none. Give it one: nestor fit.")
        side = settings.nominal if size is None else size
        self.model, self.input = model.eval(), Input(shape=(settings.channels, side, side))
        self.prepare = Preparation(side=side, mean=tuple(settings.mean), std=tuple(settings.std))
        rows, columns = model.cells((1, *self.input.shape))
        self._patches, elastic = rows * columns, settings.nest.experts > 1
        self.cells = (rows, columns) if elastic else (0, 0)
        if budgets is None:
            least = model.least_budget(self._patches) if elastic else 1.0
            # The least one itself, rounded up so that it can be named.
            budgets = (min(1.0, math.ceil(100 * least) / 100), *(each for each in STEPS if each >= least))
        if not budgets:
            raise ValueError("a server needs at least one budget; got none. Try .3,.5,.7,1.")
        self.budgets = tuple(sorted(set(budgets)))
        for budget in self.budgets:
            model.plan(self._patches, budget)
        self.labels = settings.labels or tuple(map(str, range(settings.classes)))

    def run(self, items: Tensor, budget: float) -> Answers:
        """Logits and routing of pictures (B, 3, H, W) at a declared budget."""
        with torch.inference_mode():
            output = self.model(items.to(self.model.embed.weight), budget=budget)
            logits = output.logits.float().cpu()
            routing = output.routings[0].index[..., 0].to("cpu", torch.int32) if output.routings else None
        return Answers(logits=logits, experts=routing)


def sizes(most: int) -> tuple[int, ...]:
    """The sizes of batches that are measured: powers of two up to the largest, and that one.

    Raises:
        ValueError: the largest is below 1.
    """
    if most < 1:
        raise ValueError(f"a batch must hold at least 1 picture; got {most}.")
    return tuple(sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most}))


def warm_up(
    served: Served, most: int, *, clock: Callable[[], float] = time.perf_counter, rounds: int = ROUNDS
) -> dict[tuple[float, int], float]:
    """Run every declared budget at every size of batch and say how many seconds each took at its quickest."""
    taken: dict[tuple[float, int], float] = {}
    for turn in range(rounds):
        for rows in sizes(most):
            items = torch.zeros(rows, *served.input.shape, dtype=served.input.dtype)
            for budget in served.budgets:
                if taken.get((budget, rows), 0.0) >= LONG:
                    continue
                begin = clock()
                served.run(items, budget)
                seconds = max(clock() - begin, 1e-6)
                # The first call pays for memory and plans.
                if turn:
                    taken[budget, rows] = min(seconds, taken.get((budget, rows), seconds))
    return taken
