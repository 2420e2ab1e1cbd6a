"""Where a work keeps its trainings."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def keeping(folder: Path | None) -> Iterator[Path]:
    """The folder for trainings; where none is given, one that vanishes in the end.

    Raises:
        OSError: no passing folder can be made.
    """
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as passing:
        yield Path(passing)
