"""A server in a process of its own, for as long as it is measured."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serve_http import Connection, anything, until

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds that a server may take until it is ready, until it has answered all, and until it ends.
READY, DONE, ENDING = 600.0, 120.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server in a process of its own, and the file of its log."""

    port: int
    process: int
    log: Path

    def workers(self) -> list[int]:
        """Numbers of the processes that run its network."""
        lists = Path(f"/proc/{self.process}/task").glob("*/children")
        return [int(each) for file in lists for each in file.read_text().split()]

    def memory(self) -> float:
        """Megabytes that the server and its workers hold."""
        pages = [Path(f"/proc/{number}/statm").read_text().split()[1] for number in (self.process, *self.workers())]
        return sum(map(int, pages)) * resource.getpagesize() / 1e6

    def metric(self, name: str) -> float:
        """A number that the server counts, over all its labels."""
        return counted(asyncio.run(Connection(self.port).ask("GET", "/metrics")).body.decode(), name)


def counted(metrics: str, name: str) -> float:
    """A number in Prometheus's text, over all its labels."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name))


@dataclass(frozen=True, kw_only=True)
class Start:
    """How servers are started.

    Attributes:
        model: folder of the network, or of its programs.
        p95: the promise, with its unit.
        size: side of the pictures; by default the network's own.
        precision: number format of the weights.
        out: folder of the logs.
    """

    model: Path
    p95: str
    size: int | None
    precision: str
    out: Path

    @contextmanager
    def server(
        self, name: str, budgets: str | None = None, *, p95: str | None = None, batch: int | None = None
    ) -> Iterator[Running]:
        """A server, once it is ready.

        Args:
            name: of its log.
            budgets: that are declared; by default the network's own.
            p95: another promise.
            batch: its largest one.

        Raises:
            ValueError: it did not start.
            TimeoutError: it did not become ready.
        """
        command = [sys.executable, "-m", "nestor.cli", "serve", str(self.model), "--name", "served", "--port", "0"]
        options = {"--p95": p95 or self.p95, "--size": self.size, "--precision": self.precision}
        options |= {"--budgets": budgets, "--batch": batch, "--max-bytes": 64_000_000}
        for option, value in options.items():
            command += [] if value is None else [option, str(value)]
        log = self.out / f"{name.replace(' ', '-')}.log"
        with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            try:
                line = first_line(process, READY)
                if not line:
                    raise ValueError(f"a server did not start; {log} says why.")
                port = int(line.split()[0].rsplit(":", 1)[1])
                asyncio.run(until(port, "/v2/health/ready", anything, READY))
                yield Running(port=port, process=process.pid, log=log)
            finally:
                end(process)


def first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """The first line that a process prints; less than one if it ended before.

    Raises:
        TimeoutError: it printed none for so long.
    """
    assert process.stdout is not None
    found, over = b"", time.monotonic() + seconds
    while b"\n" not in found:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, over - time.monotonic()))
        if not ready:
            raise TimeoutError(f"a process said nothing for {seconds:g} s.")
        more = os.read(process.stdout.fileno(), 4096)
        if not more:
            break
        found += more
    return found.decode().partition("\n")[0]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it."""
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
