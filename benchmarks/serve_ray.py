"""The server under Ray Serve on this machine: replicas, their answers, and one of them killed.

    python -m benchmarks.serve_ray elastic/ --replicas 2

Takes about a minute; every address is on the loopback interface.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.serve_traffic import HOST, Connection
from nestor.cli.console import Commands, say
from nestor.cli.options import Folder  # noqa: TC001

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


async def ask(port: int, count: int, together: int, body: bytes) -> Counter[int]:
    """Statuses of so many requests, some at a time."""
    statuses: Counter[int] = Counter()
    left = iter(range(count))

    async def one() -> None:
        connection = Connection(port)
        for _ in left:
            try:
                statuses[(await connection.ask("POST", "/v2/models/nestor/infer", body)).status] += 1
            except OSError:
                statuses[0] += 1
        connection.close()

    await asyncio.gather(*(one() for _ in range(together)))
    return statuses


@app.command()
def main(
    model: Folder,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=8)] = 2,
    p95_ms: Annotated[float, typer.Option("--p95-ms", min=1)] = 2000.0,
    requests: Annotated[int, typer.Option("--requests", min=1, max=10_000)] = 200,
) -> None:
    """Start a local Ray with replicas of a network, ask them, kill one, and ask again."""
    import json

    import ray
    from ray import serve
    from ray.util.state import list_actors

    from nestor.serving.open import open_served
    from nestor.serving.ray import app as application

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    served = open_served(model)
    given = {"name": served.input.name, "datatype": served.input.datatype, "shape": [1, *served.input.shape]}
    count = 1
    for side in served.input.shape:
        count *= side
    body = json.dumps({"inputs": [given | {"data": [0] * count}]}).encode()
    began = time.perf_counter()
    ray.init(include_dashboard=False, num_cpus=replicas + 1, log_to_driver=False)
    try:
        serve.start(http_options={"host": HOST, "port": port})
        folder = str(Path(model).resolve())
        serve.run(application({"model": folder, "name": "nestor", "p95_ms": p95_ms, "replicas": replicas, "batch": 4}))
        say(f"{replicas} replicas are up after {time.perf_counter() - began:.0f} s")
        say(f"answers by status: {dict(asyncio.run(ask(port, requests, 8, body)))}")
        victims = [actor for actor in list_actors() if actor.state == "ALIVE" and "ServeReplica" in actor.class_name]
        os.kill(victims[0].pid, signal.SIGKILL)
        say(f"with one of {len(victims)} replicas killed: {dict(asyncio.run(ask(port, requests, 8, body)))}")
        while serve.status().applications["default"].status != "RUNNING":
            time.sleep(0.5)
        say(f"with another in its place: {dict(asyncio.run(ask(port, requests, 8, body)))}")
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.serve_ray")
