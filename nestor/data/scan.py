"""Going through all pictures of a set at once: on several threads, with a progress bar when it takes long."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nestor.data.decode import decode, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nestor.data.decode import Items

T = TypeVar("T")


def reasons(items: Items, *, max_pixels: int, what: str = "Checking pictures") -> list[str | None]:
    """Decode every item once and say for each why it cannot be read; None where it can."""

    def check(index: int) -> str | None:
        try:
            # The smallest scale still reads all of the data, so damage shows, at a fraction of the time.
            decode(items[index], at_least=1, max_pixels=max_pixels)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    return list(for_all(check, len(items), what=what))


def for_all(work: Callable[[int], T], count: int, *, what: str) -> Iterator[T]:
    """Give work(0), work(1), ... in order, computed on a few threads."""

    def results() -> Iterator[T]:
        # Pieces bound how many finished results wait in memory.
        piece = 256
        with quiet(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, count, piece):
                yield from pool.map(work, range(start, min(start + piece, count)))

    return watch(results(), total=count, what=what)


def watch(
    results: Iterable[T], *, total: int, what: str, patience: float = 2.0, console: Console | None = None
) -> Iterator[T]:
    """Pass results on; after `patience` seconds show a progress bar, on a terminal only."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(what, total=total)
    begin = time.monotonic()
    shown = False
    try:
        for done, result in enumerate(results, start=1):
            if not shown and console.is_terminal and time.monotonic() - begin >= patience:
                progress.start()
                shown = True
            progress.update(task, completed=done)
            yield result
    finally:
        if shown:
            progress.stop()
