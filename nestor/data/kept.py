"""Pictures that several pieces of one work ask for again and again, loaded once in a process."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from nestor.data.load import load_splits
from nestor.data.pictures import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from nestor.data.pictures import Pictures

# A work looks at one source at one or two sizes; more would only fill the memory.
_SETS = 4


@lru_cache(maxsize=_SETS)
def listed(
    source: str, size: int, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> tuple[Pictures, Pictures]:
    """Both parts of a source at a size in pixels, as from `load_splits`; pictures are decoded when they are asked for.

    Args:
        source: as in `load_splits`.
        size: side of the square, in pixels.
        mean, std: of the pictures' channels.

    Raises:
        FileNotFoundError, ImportError, ValueError: as in `load_splits`.
    """
    return load_splits(source, size=size, mean=mean, std=std)


@lru_cache(maxsize=_SETS)
def decoded(
    source: str,
    size: int,
    most: int | None = None,
    *,
    held_out: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[Pictures, Pictures]:
    """Both parts of a source at a size in pixels, decoded.

    Args:
        source: as in `load_splits`.
        size: side of the square, in pixels.
        most: pictures of each part, drawn with equal shares of every class; None takes all.
        held_out: pictures of the second part; as many as of the first unless given.
        mean, std: of the pictures' channels.

    Raises:
        FileNotFoundError, ImportError, ValueError: as in `load_splits`; or `most` or `held_out` is below 1.
    """
    limits = (most, most if held_out is None else held_out)
    parts = zip(listed(source, size, mean=mean, std=std), limits, strict=True)
    train, test = (part if limit is None else part.limit(limit) for part, limit in parts)
    return train.cached(), test.cached()
