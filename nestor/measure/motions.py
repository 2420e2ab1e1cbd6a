"""How good predictions are where each class is a picture's together with a motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.data import MOTIONS
from nestor.measure.score import accuracy

if TYPE_CHECKING:
    from torch import Tensor


def told_motions(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of the motion alone, `motion`, and of picture and motion together, `both`.

    Args:
        logits: (N, classes), classes as `nestor.data.Clips` numbers them: each class of picture with each motion.
        labels: (N,) of the same classes.

    Raises:
        ValueError: the two do not fit each other or are empty.
    """
    told, n = logits.argmax(-1), len(MOTIONS)
    return {"motion": accuracy(told % n, labels % n), "both": accuracy(told, labels)}
