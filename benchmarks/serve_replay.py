"""Whether what a server answered under load is what the network says without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from benchmarks.serve_traffic import Sample
    from nestor.serving.network import Served

# Largest difference from the network's answer to the picture alone, by precision. In bfloat16 a batch of another size
# rounds otherwise by more than any bound would tell, so that only the same size is judged.
WITHIN = {"float32": 1e-5, "bfloat16": None}
MOST = 200


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay found.

    Attributes:
        logits: how many answers with logits were replayed.
        chances: how many with the probability of one label.
        budgets: at how many budgets.
        batches: sizes of the batches in which they were.
        same: share of the logits that are the network's bit for bit in a batch of the same size.
        equal_batch: largest difference from those.
        alone: largest difference of logits from those of the picture alone.
        chance: largest difference of a probability from that of the picture alone.
    """

    logits: int
    chances: int
    budgets: int
    batches: tuple[int, ...]
    same: float
    equal_batch: float
    alone: float
    chance: float

    def holds(self, precision: str) -> dict[str, bool | None]:
        """Which claims hold; None where nothing was replayed, or nothing is promised."""
        within, names = WITHIN[precision], (f"served answers are the network's, {how}" for how in HOW)
        some = self.logits > 0 and self.chances > 0
        near = None if within is None or not some else max(self.alone, self.chance) <= within
        return dict(zip(names, (self.same == 1.0 if self.logits else None, near), strict=True))


HOW = ("bit for bit in a batch of the same size", "within 1e-5 alone")


def replay(served: Served, pictures: Mapping[int, Tensor], samples: Sequence[Sample], most: int = MOST) -> Replay:
    """Run what was answered again, at the budget that each answer names.

    Args:
        served: the network.
        pictures: what it takes of each picture, by its number.
        samples: those that were answered.
        most: so many answers of each kind, evenly from all.
    """
    good = [sample for sample in samples if sample.status == 200 and sample.picture in pictures]
    told = spread([sample for sample in good if sample.logits], most)
    chances = spread([sample for sample in good if not sample.logits], most)
    same, equal, alone, chance = 0, 0.0, 0.0, 0.0
    for sample in told:
        item, said = pictures[sample.picture], torch.tensor(sample.logits)
        # Where in its batch a picture was is not told; copies of it are everywhere.
        rows = served.run(item.expand(sample.batch, *item.shape[1:]), sample.budget).logits
        same += bool((rows == said).all(-1).any())
        equal = max(equal, float((rows - said).abs().amax(-1).min()))
        alone = max(alone, float((served.run(item, sample.budget).logits[0] - said).abs().max()))
    for sample in chances:
        logits = served.run(pictures[sample.picture], sample.budget).logits[0]
        chance = max(chance, abs(float(logits.softmax(-1).max()) - sample.chance))
    return Replay(
        logits=len(told),
        chances=len(chances),
        budgets=len({sample.budget for sample in told}),
        batches=tuple(sorted({sample.batch for sample in told})),
        same=same / max(1, len(told)),
        equal_batch=equal,
        alone=alone,
        chance=chance,
    )


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, evenly from all."""
    count = min(most, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]
