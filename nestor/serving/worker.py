"""The process that runs a network for a server: it answers batches until the server is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.serving import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.serving.network import Served

_log = logging.getLogger("nestor.serving")
# How much sooner than others the kernel takes this process when memory runs out, of 1000: the server shall outlive it.
SACRIFICE = 500


def work(load: Callable[[], Served], *, channel: int, most: int, stamp: Callable[[], str] = str) -> None:
    """Load a network, say what it is, and answer batches until the other side of the channel is closed.

    Args:
        load: gives the network.
        channel: descriptor of a socket.
        most: rows of the largest batch.
        stamp: tells one state of the network's files from another.
    """
    # Who tells the server to stop may tell all its processes; this one is let go by the server, when everybody in it
    # is answered.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(SACRIFICE))
    with socket.socket(fileno=channel) as other, contextlib.suppress(EOFError, OSError):
        try:
            # Before the files are read: who changes them meanwhile is noticed.
            found, served = stamp(), load()
        except Exception as error:
            wire.send(other, _failure(error))
            return
        wire.send(other, _described(served) | {"stamp": found})
        _answer(served, other, most)


def _answer(served: Served, other: socket.socket, most: int) -> None:
    items, file = wire.memory(served.input, most)
    socket.send_fds(other, [b"\0"], [file])
    os.close(file)
    while True:
        asked, _ = wire.receive(other)
        try:
            answers = served.run(items[: asked["rows"]], asked["budget"])
        # MemoryError included: a batch that does not fit need not take the network along.
        except Exception as error:
            _log.exception("the network failed with a batch of %d at budget %g", asked["rows"], asked["budget"])
            wire.send(other, _failure(error))
        else:
            tensors = {"logits": answers.logits.contiguous()}
            if answers.experts is not None:
                tensors["experts"] = answers.experts.contiguous()
            wire.send(other, {}, tensors)


def _failure(error: Exception) -> dict[str, Any]:
    return {"failed": type(error).__name__, "message": str(error)}


def _described(served: Served) -> dict[str, Any]:
    return {
        "budgets": served.budgets,
        "labels": served.labels,
        "cells": served.cells,
        "input": asdict(served.input),
        "prepare": None if served.prepare is None else asdict(served.prepare),
    }
