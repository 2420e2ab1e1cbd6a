"""Independent pieces of work side by side, one thread each: small networks gain nothing from a second thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], *, processes: int | None = None, what: str = "Working"
) -> list[Result]:
    """Do a piece of work for each item, and give the results in the order of the items.

    Pieces run in processes of one thread each, which is also what lets other programs run beside them without holding
    them up; they stop when this process ends, however it ends. Where there is an accelerator, a single core or a single
    item, they run here, one after the other.

    Args:
        work: a function of a module, or a `functools.partial` of one; it, the items and the results travel between
            processes.
        items: what the work is done for.
        processes: how many at a time; as many as there are cores to use unless given.
        what: stands before the progress bar.

    Raises:
        ValueError: processes is below 1.
        Exception: whatever the work raises; pieces that have not begun are left out then.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}. Leave it out for one on each core.")
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(len(items), processes or (1 if torch.cuda.is_available() else most))
    if count <= 1:
        return [work(item) for item in items]
    console = Console(stderr=True)
    # A forked child would inherit the threads' locks but not the threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_alone)
    try:
        waiting = [pool.submit(_while_waited_for, work, item) for item in items]
        told = track(waiting, what, console=console, disable=not console.is_terminal)
        return [each.result() for each in told]
    finally:
        pool.shutdown(cancel_futures=True)


def _while_waited_for(work: Callable[[Item], Result], item: Item) -> Result:
    try:
        return work(item)
    finally:
        # Workers keep the queue of pieces open for each other, and would wait for more of them for ever.
        if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
            os._exit(1)


def _alone() -> None:
    """Keep to one thread, leave the terminal to the process that counts the pieces, and end when it ends."""
    torch.set_num_threads(1)
    threading.Thread(target=_follow, daemon=True).start()
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _follow() -> None:
    """Ask this process to stop, as a user would, once nobody waits for what it finds."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
