"""A network in a process of its own, which may crash or be killed without taking the server along."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from nestor.serving import wire
from nestor.serving.network import Answers, Input, LostError, Preparation, keep, promised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# What a process may say of why it cannot start; anything else is a RuntimeError.
_ERRORS = {
    kind.__name__: kind
    for kind in (ValueError, FileNotFoundError, ImportError, ModuleNotFoundError, OSError, MemoryError)
}
# Seconds that loading a network may take, and that a process may take to die.
LOADING, DYING = 600.0, 10.0


class Remote:
    """A perishable network (see `nestor.serving.network.Perishable`): another process that calls `worker.work`.

    Args:
        command: starts the process; the descriptor of its socket and the largest batch are added at the end.
        most: rows of the largest batch.
        patience: seconds after which a process that does not answer is killed, until it is told better.

    Raises:
        ValueError: or whatever else the process says of why it cannot start.
        LostError: it ended without a word.
    """

    def __init__(self, command: Sequence[str], *, most: int = 16, patience: float = 30.0):
        self.command, self.most, self.patience = tuple(command), most, patience
        self.starting, self._cold = 0.0, patience
        self._closed = False
        self._start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._lost and self._process.poll() is None

    @property
    def number(self) -> int:
        """The number of the process."""
        return self._process.pid

    def run(self, items: Tensor, budget: float) -> Answers:
        """Answers to (B, ...) at a declared budget; one batch at a time.

        Raises:
            RuntimeError: the network failed, and is there still.
            LostError: the process ended, or did not answer in time.
        """
        return self._run(items, budget, self.patience)

    def revive(self) -> bool:
        """Start another process, and run each budget once; says whether it has the same files as the last one.

        Raises:
            LostError: it ended too, or the network was closed.
            ValueError: its files have become another network than clients were promised.
        """
        self._kill()
        before, stamp = promised(self), self._stamp
        self._start()
        try:
            keep(before, promised(self))
        except ValueError:
            vars(self).update(before)
            self._kill()
            raise
        for budget in self.budgets:
            # Nothing is warm yet.
            self._run(torch.zeros(1, *self.input.shape, dtype=self.input.dtype), budget, self._cold)
        return self._stamp == stamp

    def close(self) -> None:
        """End the process for good; whoever is in it is lost."""
        self._closed = True
        self._kill()

    def _run(self, items: Tensor, budget: float, patience: float) -> Answers:
        # What goes wrong here is not heard of on the other side.
        self._items[: len(items)].copy_(items)
        try:
            self._channel.settimeout(patience)
            wire.send(self._channel, {"rows": len(items), "budget": budget})
            said, tensors = wire.receive(self._channel)
            answers = None if "failed" in said else Answers(logits=tensors["logits"], experts=tensors.get("experts"))
        # Whatever it was, an answer may be under way still, and the next batch would get it for its own.
        except BaseException as error:
            self._kill()
            if not isinstance(error, Exception):
                raise
            raise LostError(f"the network's process was lost ({error or type(error).__name__}).") from error
        if answers is None:
            raise RuntimeError(f"{said['failed']}: {said['message']}")
        return answers

    def _start(self) -> None:
        began = time.monotonic()
        self._channel, theirs = socket.socketpair()
        self._lost = False
        with theirs:
            # In a session of its own, so that Ctrl-C reaches the server only.
            self._process = subprocess.Popen(
                [*self.command, str(theirs.fileno()), str(self.most)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            if self._closed:
                raise LostError("the network was closed.")
            self._channel.settimeout(LOADING)
            said, _ = wire.receive(self._channel)
            if "failed" in said:
                raise _ERRORS.get(said["failed"], RuntimeError)(said["message"])
            self._take(said)
            _, files, _, _ = socket.recv_fds(self._channel, 1, 1)
            if not files:
                raise EOFError
            self._items, file = wire.memory(self.input, self.most, files[0])
            os.close(file)
        except EOFError:
            self._kill()
            raise LostError(f"the network's process ended with {self._process.returncode} while it started.") from None
        except BaseException:
            self._kill()
            raise
        self.starting = time.monotonic() - began

    def _take(self, said: dict[str, Any]) -> None:
        self.budgets, self.labels = tuple(said["budgets"]), tuple(said["labels"])
        rows, columns = said["cells"]
        self.cells = (rows, columns)
        self.input = Input(**said["input"] | {"shape": tuple(said["input"]["shape"])})
        prepare = said["prepare"]
        if prepare is not None:
            prepare = Preparation(side=prepare["side"], mean=tuple(prepare["mean"]), std=tuple(prepare["std"]))
        self.prepare: Preparation | None = prepare
        self._stamp: str = said["stamp"]

    def _kill(self) -> None:
        # First of all, so that a process that does not die is not asked again either.
        self._lost = True
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING)
        self._channel.close()
