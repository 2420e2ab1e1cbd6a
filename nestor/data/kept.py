"""Pictures that several pieces of one work ask for again and again, loaded once in a process."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from nestor.data.load import load_splits

if TYPE_CHECKING:
    from nestor.data.pictures import Pictures

# A work looks at one source at one or two sizes; more would only fill the memory.
_SETS = 4


@lru_cache(maxsize=_SETS)
def listed(source: str, size: int) -> tuple[Pictures, Pictures]:
    """Both parts of a source at a size in pixels, as from `load_splits`; pictures are decoded when they are asked for.

    Raises:
        FileNotFoundError, ImportError, ValueError: as in `load_splits`.
    """
    return load_splits(source, size=size)


@lru_cache(maxsize=_SETS)
def decoded(source: str, size: int, most: int | None = None) -> tuple[Pictures, Pictures]:
    """Both parts of a source at a size in pixels, decoded.

    Args:
        source: as in `load_splits`.
        size: side of the square, in pixels.
        most: pictures of each part, drawn with equal shares of every class; None takes all.

    Raises:
        FileNotFoundError, ImportError, ValueError: as in `load_splits`; or `most` is below 1.
    """
    train, test = (part if most is None else part.limit(most) for part in listed(source, size))
    return train.cached(), test.cached()
