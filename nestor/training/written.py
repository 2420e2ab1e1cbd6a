"""Handwritten digits as pictures, so that whatever learns garments may learn them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.data.named import Stack
from nestor.data.pictures import Pictures
from nestor.training.set_tasks import handwritten

if TYPE_CHECKING:
    from torch import Tensor


def written(size: int = 28) -> tuple[Pictures, Pictures]:
    """Digits to learn from and to be judged by, grey on black, enlarged to this size in pixels, decoded.

    Raises:
        ImportError: the package that they travel in is missing.
    """
    learn, judge = handwritten(size)
    return _pictures(*learn, "train"), _pictures(*judge, "test")


def _pictures(values: Tensor, labels: Tensor, part: str) -> Pictures:
    pixels = (values * 255).round().byte()
    return Pictures(
        items=Stack(pixels.numpy()),
        rows=tuple(range(len(pixels))),
        size=pixels.shape[-1],
        classes=tuple("0123456789"),
        labels=tuple(labels.tolist()),
        names=tuple(f"{part} {index}" for index in range(len(pixels))),
        cache=pixels.unsqueeze(1),
    )
