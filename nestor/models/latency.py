"""Budgets in time: tables of what was measured, and the fraction of the multiply-accumulates that keeps a latency."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING

import torch

from nestor.machine import here
from nestor.types import Latency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """How long one call of a network took at several budgets.

    Attributes:
        machine: what it ran on, see `nestor.machine.here`.
        precision: the number format of its weights, for instance `float32`.
        patches: of one picture.
        batch: pictures of one call.
        budgets: fractions of the full network's multiply-accumulates, increasing, the last 1.
        ms: milliseconds of one call at each of them.

    Raises:
        ValueError: when budgets do not increase to 1, or there is not one positive time for each.
    """

    machine: str
    precision: str
    patches: int
    batch: int
    budgets: tuple[float, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.budgets or self.budgets[-1] != 1 or any(b <= a for a, b in pairwise(self.budgets)):
            raise ValueError(f"the budgets of a table must increase to 1; got {self.budgets}. Measure it again.")
        if len(self.ms) != len(self.budgets) or not all(ms > 0 for ms in self.ms):
            raise ValueError(
                f"a table needs a positive time for each of its {len(self.budgets)} budgets; got {self.ms}. "
                "Measure it again."
            )

    @property
    def conditions(self) -> tuple[str, str, int, int]:
        """What it holds for: machine, precision, patches and batch."""
        return self.machine, self.precision, self.patches, self.batch

    def fraction(self, ms: float) -> float:
        """The largest budget whose measured time fits, and on towards the next one as far as a straight line allows.

        Raises:
            ValueError: when none fits.
        """
        fitting = [i for i, time in enumerate(self.ms) if time <= ms]
        if not fitting:
            raise ValueError(
                f"latency must be at least {min(self.ms):.4g} ms, the fastest that was measured for {_told(self)}; the "
                f"full network takes {self.ms[-1]:.4g} ms; got {ms:.4g} ms. Allow more, or add a narrower width."
            )
        at = fitting[-1]
        if at == len(self.ms) - 1:
            return 1.0
        (low, high), (start, end) = self.budgets[at : at + 2], self.ms[at : at + 2]
        return min(high, low + (high - low) * (ms - start) / (end - start))


def fraction(model: ViT, budget: float | Latency, patches: int, batch: int | None = None) -> float:
    """A budget as a fraction of the full network's multiply-accumulates; a latency by what was measured here.

    Args:
        model: the network, whose tables are consulted.
        budget: a fraction, which comes back as it is, or a latency.
        patches: of one picture.
        batch: pictures of the call; None where there is no call yet.

    Raises:
        ValueError: when this was not measured on this machine, no budget is as fast, or autocast is on.
    """
    if not isinstance(budget, Latency):
        return budget
    batch = batch if budget.batch is None else budget.batch
    like = model.embed.weight
    if torch.is_autocast_enabled(like.device.type):
        raise ValueError(
            "latencies are measured without autocast, which takes time of its own; got a call under autocast. "
            "Convert the network instead: model.to(torch.bfloat16)."
        )
    precision = str(like.dtype).removeprefix("torch.")
    wanted = here(like.device), precision, patches
    found = {table.batch: table for table in model.latencies if table.conditions[:3] == wanted}
    if batch is None and len(found) > 1:
        raise ValueError(
            f"latencies were measured for batches of {', '.join(map(str, sorted(found)))}; got none to choose by. "
            f"Say which: Latency(ms={budget.ms:g}, batch={min(found)})."
        )
    batch = next(iter(found), 1) if batch is None else batch
    if batch in found:
        return found[batch].fraction(budget.ms)
    known = "; ".join(_told(table) for table in model.latencies) or "nothing"
    raise ValueError(
        f"a latency can be kept only where it was measured; got {_words(*wanted, batch)}, and measured was {known}. "
        f"Measure it here: nestor clock FOLDER --size {isqrt(patches) * model.settings.patch} --batches {batch} "
        f"--precisions {precision}, or model = nestor.clock(model, ...)."
    )


def joined(old: Sequence[LatencyTable], new: Sequence[LatencyTable]) -> tuple[LatencyTable, ...]:
    """All tables; of two for the same conditions the new one."""
    return tuple({table.conditions: table for table in (*old, *new)}.values())


def _told(table: LatencyTable) -> str:
    return _words(*table.conditions)


def _words(machine: str, precision: str, patches: int, batch: int) -> str:
    return f"batches of {batch} at {patches} patches, {precision}, on {machine}"
