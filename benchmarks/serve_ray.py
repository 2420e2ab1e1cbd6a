"""The server under Ray Serve on this machine: replicas, their answers, and one of them killed.

    python -m benchmarks.serve_ray elastic/ --replicas 2

Takes about a minute; asks over the loopback interface only. Ends with 1 when a claim fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from benchmarks.serve_http import HOST, Connection
from benchmarks.serve_process import counted
from benchmarks.serve_traffic import tensor_ask
from nestor.cli.console import Commands, say
from nestor.cli.options import Folder  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.serve_http import Reply
    from benchmarks.serve_traffic import Ask
    from nestor.serving.network import Served

# Seconds that Ray may take to replace a replica, and to answer all of one round.
BACK, ROUND = 120.0, 300.0
# How often metrics are asked for each replica: Ray hands each request to either.
LOOKS = 30
# How many different items are sent, and by how much an answer may differ from the network's own.
ITEMS, WITHIN = 8, 1e-5
FAILED = 1
REPLICA = b"ray::ServeReplica"

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


async def ask(port: int, count: int, together: int, asks: Sequence[Ask]) -> list[tuple[int, Reply | None]]:
    """Replies to so many requests, some at a time, each with the number of its ask; None where a connection broke.

    Raises:
        TimeoutError: they took too long.
    """
    found: list[tuple[int, Reply | None]] = []
    left = iter(range(count))

    async def one() -> None:
        connection = Connection(port)
        for number in left:
            asked = asks[number % len(asks)]
            try:
                reply = await connection.ask("POST", asked.path, asked.body, asked.headers)
            except OSError:
                reply = None
            found.append((number % len(asks), reply))
        connection.close()

    async with asyncio.timeout(ROUND):
        await asyncio.gather(*(one() for _ in range(together)))
    return found


async def looks(port: int, count: int) -> list[str]:
    """The metrics of whichever replicas were asked."""
    connection = Connection(port)
    found = [(await connection.ask("GET", "/metrics")).body.decode() for _ in range(count)]
    connection.close()
    return found


def served_by(metrics: Sequence[str]) -> dict[float, float]:
    """Pictures that each replica has run; replicas are told apart by the seconds that they have spent on them."""
    return {
        seconds: counted(text, "nestor_pictures_total")
        for text in metrics
        if (seconds := counted(text, "nestor_batch_seconds_sum")) > 0
    }


def statuses(replies: Sequence[tuple[int, Reply | None]]) -> dict[int, int]:
    """How many requests ended with each status; 0 is a broken connection."""
    return dict(sorted(Counter(0 if reply is None else reply.status for _, reply in replies).items()))


def difference(served: Served, items: Sequence[torch.Tensor], replies: Sequence[tuple[int, Reply | None]]) -> float:
    """The largest one between answered logits and those of the network at the budgets that the answers name."""
    worst, known = 0.0, {}
    for number, reply in replies:
        if reply is None or reply.status != 200:
            continue
        answer: dict[str, Any] = json.loads(reply.body)
        budget = answer["parameters"]["budget"]
        if (number, budget) not in known:
            known[number, budget] = served.run(items[number], budget).logits[0]
        said = torch.tensor(answer["outputs"][0]["data"])
        worst = max(worst, float((known[number, budget] - said).abs().max()))
    return worst


def claims(
    rounds: Sequence[Sequence[tuple[int, Reply | None]]], spread: dict[float, float], replicas: int, worst: float
) -> dict[str, bool]:
    """What must be true of three rounds: before a replica was killed, right after, and with another in its place."""
    counts = [statuses(replies) for replies in rounds]
    first = counts[0].get(200, 0)
    return {
        "every request is answered with 200 or 429": all(set(each) <= {200, 429} for each in counts),
        "every round has answers": all(each.get(200, 0) > 0 for each in counts),
        "every replica serves": len(spread) == replicas and min(spread.values()) > 0,
        "the replicas' pictures are those that were answered": sum(spread.values()) == first,
        "answers are the network's own": worst <= WITHIN,
    }


def alive() -> list[int]:
    """Numbers of the processes, begun by this one, that are replicas: Ray names them so."""
    parents: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while it is looked at.
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])

    def ours(number: int) -> bool:
        return number == os.getpid() or (number in parents and ours(parents[number]))

    found = []
    for number in sorted(filter(ours, parents)):
        with suppress(OSError):
            if Path(f"/proc/{number}/cmdline").read_bytes().startswith(REPLICA):
                found.append(number)
    return found


def wait(so: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until it is so.

    Raises:
        TimeoutError: it was not for so long.
    """
    over = time.monotonic() + seconds
    while not so():
        if time.monotonic() > over:
            raise TimeoutError(f"{what} took more than {seconds:g} s.")
        time.sleep(0.5)


@app.command()
def main(
    model: Folder,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=8)] = 2,
    p95_ms: Annotated[float, typer.Option("--p95-ms", min=1)] = 2000.0,
    requests: Annotated[int, typer.Option("--requests", min=1, max=10_000)] = 200,
) -> None:
    """Start a local Ray with replicas of a network, ask them, kill one, ask again, and judge what was answered."""
    import ray
    from ray import serve

    from nestor.serving.open import open_served
    from nestor.serving.ray import app as application

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    served = open_served(model)
    torch.manual_seed(0)
    items = [torch.randn(1, *served.input.shape) for _ in range(ITEMS)]
    asks = [tensor_ask(served.input.name, each) for each in items]
    began = time.perf_counter()
    ray.init(include_dashboard=False, num_cpus=replicas + 1, log_to_driver=False, _node_ip_address=HOST)

    def whole() -> bool:
        # Ray calls an application running until it has seen that a replica is gone.
        return serve.status().applications["default"].status == "RUNNING" and len(alive()) == replicas

    try:
        serve.start(http_options={"host": HOST, "port": port})
        folder = str(Path(model).resolve())
        serve.run(application({"model": folder, "name": "served", "p95_ms": p95_ms, "replicas": replicas, "batch": 4}))
        say(f"{replicas} replicas are up after {time.perf_counter() - began:.0f} s")
        rounds = [asyncio.run(ask(port, requests, 8, asks))]
        spread = served_by(asyncio.run(looks(port, LOOKS * replicas)))
        say(f"answers by status: {statuses(rounds[0])}, pictures by replica: {list(spread.values())}")
        victims = alive()
        os.kill(victims[0], signal.SIGKILL)
        rounds.append(asyncio.run(ask(port, requests, 8, asks)))
        say(f"with one of {len(victims)} replicas killed: {statuses(rounds[1])}")
        wait(lambda: whole() and victims[0] not in alive(), BACK, "replacing a replica")
        rounds.append(asyncio.run(ask(port, requests, 8, asks)))
        say(f"with another in its place: {statuses(rounds[2])}")
    finally:
        serve.shutdown()
        ray.shutdown()
    worst = difference(served, items, [each for replies in rounds for each in replies])
    say(f"largest difference from the network's own logits: {worst:.1e}")
    held = claims(rounds, spread, replicas, worst)
    for claim, so in held.items():
        say(f"{'holds' if so else 'FAILS':6} {claim}")
    if not all(held.values()):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.serve_ray")
