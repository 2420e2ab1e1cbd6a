"""Open-loop traffic over the loopback interface: requests leave when they are due, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.serve_http import Connection, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

# More requests than these are never under way at once (a server takes more connections), nor sent in a run; those that
# are left out are counted.
OPEN, MOST = 480, 200_000
# Whoever measures what a server can bear is not to be turned away.
PATIENT_MS = 60_000
HEADER = "inference-header-content-length"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked.

    Attributes:
        path: with the query.
        body: an encoded picture, or JSON with tensors behind it.
        head: how many bytes of the body are JSON, where tensors follow.
        picture: its number.
        label: what the picture shows.
        place: of that label among the network's.
    """

    path: str
    body: bytes
    head: int | None = None
    picture: int = 0
    label: str = ""
    place: int = -1

    @property
    def headers(self) -> dict[str, str]:
        """Headers of its own."""
        return {} if self.head is None else {HEADER: str(self.head)}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request: when it was due (seconds), what became of it, and how long that took.

    Attributes:
        status: 0 is a broken connection, -1 a request that was not sent.
        again: whether it was told when to come back.
        retried: whether its connection had been closed as idle, so that it was sent on another one.
        batch: pictures that ran with it, and itself.
        picture: which one was sent.
        chance: probability of the label that was answered, where a picture was sent.
        logits: that were answered, where a tensor was sent.
    """

    due: float
    step: int
    status: int
    seconds: float
    budget: float = 0.0
    right: bool = False
    again: bool = False
    retried: bool = False
    batch: int = 0
    picture: int = 0
    chance: float = 0.0
    logits: tuple[float, ...] = ()


def picture_ask(body: bytes, **more: Any) -> Ask:
    """Ask what an encoded picture shows."""
    return Ask(path="/predict?top=1", body=body, **more)


def tensor_ask(name: str, items: Tensor, parameters: Mapping[str, Any] | None = None, **more: Any) -> Ask:
    """Ask for the logits of items (B, ...), sent as bytes to the input of this name."""
    raw = items.contiguous().numpy().astype("<f4").tobytes()
    given = {"name": name, "datatype": "FP32", "shape": list(items.shape), "parameters": {"binary_data_size": len(raw)}}
    asked = {"parameters": dict(parameters or {}), "inputs": [given], "outputs": [{"name": "logits"}]}
    head = json.dumps(asked).encode()
    return Ask(path="/v2/models/served/infer", body=head + raw, head=len(head), **more)


def schedule(rates: Sequence[float], seconds: float, seed: int) -> list[tuple[float, int]]:
    """When requests are due, and in which step: moments at random, `rates[i]` a second in step i."""
    rng, due = random.Random(seed), []
    for step, rate in enumerate(rates):
        now = step * seconds + rng.expovariate(rate)
        while now < (step + 1) * seconds:
            due.append((now, step))
            now += rng.expovariate(rate)
    return due


async def drive(port: int, due: Sequence[tuple[float, int]], asks: Sequence[Ask]) -> list[Sample]:
    """Send each request when it is due, one ask after the other, and gather what became of all."""
    free, samples = [Connection(port) for _ in range(OPEN)], []
    begin = time.perf_counter()

    async def one(when: float, step: int, asked: Ask, connection: Connection) -> None:
        reply = Reply(status=0, headers={}, body=b"")
        try:
            reply = await connection.ask("POST", asked.path, asked.body, asked.headers)
        except OSError:
            pass
        finally:
            free.append(connection)
        seconds = time.perf_counter() - begin - when
        samples.append(_sample(Sample(due=when, step=step, status=reply.status, seconds=seconds), reply, asked))

    async with asyncio.TaskGroup() as group:
        for number, (when, step) in enumerate(due):
            await asyncio.sleep(max(0.0, begin + when - time.perf_counter()))
            if free and number < MOST:
                group.create_task(one(when, step, asks[number % len(asks)], free.pop()))
            else:
                samples.append(Sample(due=when, step=step, status=-1, seconds=0.0))
    for connection in free:
        connection.close()
    return sorted(samples, key=lambda sample: sample.due)


async def capacity(port: int, asks: Sequence[Ask], seconds: float, together: int = 32) -> float:
    """Answers a second when somebody always waits: what a server can bear."""
    begin, answered = time.perf_counter(), 0

    async def keep(number: int) -> None:
        nonlocal answered
        connection, asked = Connection(port), asks[number % len(asks)]
        while time.perf_counter() - begin < seconds:
            reply = await connection.ask("POST", asked.path, asked.body, asked.headers)
            answered += reply.status == 200
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(together):
            group.create_task(keep(number))
    return answered / (time.perf_counter() - begin)


def patient(asks: Sequence[Ask]) -> list[Ask]:
    """The asks for pictures, by somebody who waits."""
    return [replace(ask, path=f"{ask.path}&deadline_ms={PATIENT_MS}") for ask in asks if ask.head is None]


def _sample(sample: Sample, reply: Reply, asked: Ask) -> Sample:
    sample = replace(sample, picture=asked.picture, again="retry-after" in reply.headers, retried=reply.retried)
    if reply.status != 200:
        return sample
    answer = json.loads(reply.body)
    if asked.head is None:
        [best] = answer["labels"]
        right = best["label"] == asked.label
        return _ran(replace(sample, right=right, chance=best["probability"]), answer)
    logits = tuple(answer["outputs"][0]["data"])
    right = max(range(len(logits)), key=logits.__getitem__) == asked.place
    return _ran(replace(sample, right=right, logits=logits), answer["parameters"])


def _ran(sample: Sample, facts: Mapping[str, Any]) -> Sample:
    return replace(sample, budget=facts["budget"], batch=facts["batch"])
