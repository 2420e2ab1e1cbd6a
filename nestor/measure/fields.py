"""How good predictions are that have a number for each pixel; all of them are better when higher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def intersection(logits: Tensor, mask: Tensor) -> float:
    """Pixels found and there over pixels found or there, of all pictures together: (N, ...) log-odds and 0 or 1."""
    _require(logits, mask)
    found, there = logits > 0, mask > 0.5
    either = int((found | there).sum())
    return int((found & there).sum()) / either if either else 1.0


def correlation(predicted: Tensor, wanted: Tensor) -> float:
    """Pearson's, over all pixels of all pictures; 0 where one of the two never changes."""
    _require(predicted, wanted)
    a, b = (part.double() - part.double().mean() for part in (predicted, wanted))
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / size if size else 0.0


def alignment(predicted: Tensor, directions: Tensor) -> float:
    """Mean cosine of vectors (N, 2, H, W) to directions, over the pixels that have one."""
    _require(predicted, directions)
    there = directions.square().sum(1) > 0
    cosine = F.cosine_similarity(predicted.double(), directions.double(), dim=1)
    return float(cosine[there].mean()) if bool(there.any()) else 1.0


def _require(predicted: Tensor, wanted: Tensor) -> None:
    if predicted.shape != wanted.shape or not predicted.numel():
        raise ValueError(
            f"predictions must have the shape of what is wanted, not empty; got {tuple(predicted.shape)} and "
            f"{tuple(wanted.shape)}."
        )
