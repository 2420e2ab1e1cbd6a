"""Open-loop traffic over the loopback interface: requests leave when they are due, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HOST = "127.0.0.1"
# More requests than these are never under way at once (a server takes more connections), nor sent in a run; those that
# are left out are counted.
OPEN, MOST = 480, 200_000
# Whoever waits for a fixed server says so, which shows what becomes of its latency; the elastic one keeps its promise.
WAITS = "&deadline_ms=60000"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request: when it was due (seconds), what became of it, and how long that took.

    `status` 0 is a broken connection, -1 a request that was not sent; `again` says that it was told when to come back.
    """

    due: float
    step: int
    status: int
    seconds: float
    budget: float = 0.0
    right: bool = False
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server says: status, headers in small letters, body."""

    status: int
    headers: dict[str, str]
    body: bytes


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
        text = asyncio.run(Connection(self.port).ask("GET", "/metrics")).body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


class Connection:
    """One connection that stays open, with no more of HTTP than a server of ours needs; a library would cost more."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """An answer.

        Raises:
            OSError: the connection broke, or an answer took more than a minute.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # A server may close what was idle.
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self.port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(60):
                writer.write(head.encode() + body)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                fields = dict(line.split(": ", 1) for line in lines[1:] if line)
                content = await reader.readexactly(int(fields["content-length"]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.close()
            raise OSError(str(error)) from error
        if fields.get("connection") == "close":
            self.close()
        return Reply(status=int(lines[0].split()[1]), headers=fields, body=content)

    def close(self) -> None:
        """Leave; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def schedule(rates: Sequence[float], seconds: float, seed: int) -> list[tuple[float, int]]:
    """When requests are due, and in which step: moments at random, `rates[i]` a second in step i."""
    rng, due = random.Random(seed), []
    for step, rate in enumerate(rates):
        now = step * seconds + rng.expovariate(rate)
        while now < (step + 1) * seconds:
            due.append((now, step))
            now += rng.expovariate(rate)
    return due


async def drive(
    port: int, due: Sequence[tuple[float, int]], pictures: Sequence[tuple[bytes, str]], query: str
) -> list[Sample]:
    """Send each request when it is due, and gather what became of all."""
    free, samples = [Connection(port) for _ in range(OPEN)], []
    begin = time.perf_counter()

    async def one(when: float, step: int, picture: bytes, label: str, connection: Connection) -> None:
        reply = Reply(status=0, headers={}, body=b"")
        try:
            reply = await connection.ask("POST", f"/predict?top=1{query}", picture)
        except OSError:
            pass
        finally:
            free.append(connection)
        seconds, again = time.perf_counter() - begin - when, "retry-after" in reply.headers
        sample = Sample(due=when, step=step, status=reply.status, seconds=seconds, again=again)
        if reply.status == 200:
            answer = json.loads(reply.body)
            sample = replace(sample, budget=answer["budget"], right=answer["labels"][0]["label"] == label)
        samples.append(sample)

    async with asyncio.TaskGroup() as group:
        for number, (when, step) in enumerate(due):
            await asyncio.sleep(max(0.0, begin + when - time.perf_counter()))
            picture, label = pictures[number % len(pictures)]
            if free and number < MOST:
                group.create_task(one(when, step, picture, label, free.pop()))
            else:
                samples.append(Sample(due=when, step=step, status=-1, seconds=0.0))
    for connection in free:
        connection.close()
    return sorted(samples, key=lambda sample: sample.due)


async def capacity(port: int, pictures: Sequence[tuple[bytes, str]], seconds: float, together: int = 32) -> float:
    """Pictures a second when somebody always waits: what a server can bear."""
    begin, answered = time.perf_counter(), 0

    async def keep(number: int) -> None:
        nonlocal answered
        connection = Connection(port)
        while time.perf_counter() - begin < seconds:
            reply = await connection.ask("POST", f"/predict?top=1{WAITS}", pictures[number % len(pictures)][0])
            answered += reply.status == 200
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(together):
            group.create_task(keep(number))
    return answered / (time.perf_counter() - begin)


@contextmanager
def server(model: Path, budgets: str | None, p95: str, size: int, log: Path) -> Iterator[Running]:
    """A server in a process of its own, once it is ready."""
    command = [
        sys.executable,
        "-m",
        "nestor.cli",
        "serve",
        str(model),
        "--p95",
        p95,
        "--port",
        "0",
        "--size",
        str(size),
    ]
    if budgets is not None:
        command += ["--budgets", budgets]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"a server did not start; {log} says why.")
            port = int(line.split()[0].rsplit(":", 1)[1])
            asyncio.run(until(port, "/v2/health/ready", lambda _: True))
            yield Running(port=port, process=process.pid, log=log)
        finally:
            process.terminate()
            process.wait(60)


async def until(port: int, path: str, enough: Callable[[bytes], bool]) -> None:
    """Ask until an answer is there that is enough."""
    while True:
        connection = Connection(port)
        try:
            reply = await connection.ask("GET", path)
            if reply.status == 200 and enough(reply.body):
                return
        except OSError:
            pass
        finally:
            connection.close()
        await asyncio.sleep(0.1)


def empty(metrics: bytes) -> bool:
    """Whether nobody waits any more."""
    return b"nestor_queue_pictures 0.0" in metrics
