"""Traffic that grows to three times what the full network can bear, against an elastic server and fixed ones.

    python -m benchmarks.serve_load elastic/ --data elpv --p95 150ms

Open loop: requests leave when they are due, whether or not earlier ones were answered, and latency counts from then.
Every system goes through the same sweep of loads in turn, over the loopback interface only; writes JSON and a picture.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestor.cli import parse
from nestor.cli.console import Commands, say
from nestor.cli.options import Data, Folder  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

HOST = "127.0.0.1"
FACTORS = (0.3, 1.0, 2.0, 3.0, 0.3)
SETTLE = 5.0
# More requests than these are never under way at once, nor sent in a run; what is left out is counted.
OPEN, MOST = 600, 200_000
# Whoever waits for a fixed server says so, which shows what becomes of its latency; the elastic one keeps its promise.
WAITS = "&deadline_ms=60000"

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request: when it was due (seconds), what became of it, and how long that took.

    `status` 0 is a broken connection, -1 a request that was not sent.
    """

    due: float
    step: int
    status: int
    seconds: float
    budget: float = 0.0
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one system did at one load, after it had settled; milliseconds of those that were answered."""

    system: str
    round: int
    step: int
    factor: float
    offered: int
    answered: int
    refused: int
    failed: int
    kept: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    budget: float
    accuracy: float


class Connection:
    """One connection that stays open, with no more of HTTP than a server of ours needs; a library would cost more."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of an answer.

        Raises:
            OSError: the connection broke, or an answer took more than a minute.
        """
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
        return int(lines[0].split()[1]), content

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
        status, content = 0, b""
        try:
            status, content = await connection.ask("POST", f"/predict?top=1{query}", picture)
        except OSError:
            pass
        finally:
            free.append(connection)
        sample = Sample(due=when, step=step, status=status, seconds=time.perf_counter() - begin - when)
        if status == 200:
            answer = json.loads(content)
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
            status, _ = await connection.ask("POST", f"/predict?top=1{WAITS}", pictures[number % len(pictures)][0])
            answered += status == 200
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(together):
            group.create_task(keep(number))
    return answered / (time.perf_counter() - begin)


def summary(
    samples: Sequence[Sample], *, system: str, turn: int, factors: Sequence[float], seconds: float, target: float
) -> list[Summary]:
    """One line for each step; the first seconds of a step, in which a server settles, are left out."""
    found = []
    for step, factor in enumerate(factors):
        settled = step * seconds + min(SETTLE, seconds / 2)
        mine = [sample for sample in samples if sample.step == step and sample.due >= settled]
        good = [sample for sample in mine if sample.status == 200]
        taken = sorted(1e3 * sample.seconds for sample in good) or [float("nan")]
        count = max(1, len(good))
        found.append(
            Summary(
                system=system,
                round=turn,
                step=step,
                factor=factor,
                offered=len(mine),
                answered=len(good),
                refused=sum(sample.status == 429 for sample in mine),
                failed=sum(sample.status not in (200, 429) for sample in mine),
                kept=sum(sample.seconds <= target for sample in good) / max(1, len(mine)),
                p50_ms=taken[int(0.5 * len(taken))],
                p95_ms=taken[int(0.95 * len(taken))],
                p99_ms=taken[int(0.99 * len(taken))],
                budget=sum(sample.budget for sample in good) / count,
                accuracy=sum(sample.right for sample in good) / count,
            )
        )
    return found


def recovery(samples: Sequence[Sample], begin: float, top: float) -> float | None:
    """Seconds from `begin` to the first of the answers that all have the top budget; None if the last has less."""
    later = [sample for sample in samples if sample.due >= begin and sample.status == 200]
    lower = [sample.due for sample in later if sample.budget < top]
    if not later or later[-1].budget < top:
        return None
    return max(lower) - begin if lower else 0.0


def draw(runs: dict[str, list[Sample]], *, seconds: float, factors: Sequence[float], target: float) -> Figure:
    """Over time: latency of the slowest in twenty, budget, and what was refused, one line for each system."""
    from matplotlib.figure import Figure

    from nestor.measure.draw import COLOURS, GREY

    figure = Figure(figsize=(8, 7), layout="constrained")
    late, given, lost = figure.subplots(3, 1, sharex=True)
    for (system, samples), colour in zip(runs.items(), COLOURS, strict=False):
        ends = [number + 0.5 for number in range(int(seconds * len(factors)))]
        bins = [[sample for sample in samples if abs(sample.due - end) <= 0.5] for end in ends]
        good = [[sample for sample in each if sample.status == 200] for each in bins]
        slow = [sorted(1e3 * one.seconds for one in each)[int(0.95 * len(each))] if each else None for each in good]
        mean = [sum(one.budget for one in each) / len(each) if each else None for each in good]
        gone = [100 * (1 - len(ok) / len(each)) if each else None for ok, each in zip(good, bins, strict=True)]
        for axes, values in ((late, slow), (given, mean), (lost, gone)):
            axes.plot(ends, [float("nan") if value is None else value for value in values], color=colour, label=system)
    late.axhline(1e3 * target, color=GREY, linestyle="--", linewidth=1, label="target")
    late.set_yscale("log")
    late.set_ylabel("p95, ms")
    given.set_ylabel("mean budget")
    given.set_ylim(0, 1.05)
    lost.set_ylabel("refused or lost, %")
    lost.set_xlabel("seconds; shaded by load")
    for axes in (late, given, lost):
        axes.spines[["top", "right"]].set_visible(False)
        for step, factor in enumerate(factors):
            axes.axvspan(step * seconds, (step + 1) * seconds, color=GREY, alpha=0.07 * factor, linewidth=0)
    for step, factor in enumerate(factors):
        late.annotate(f"{factor:g} x", ((step + 0.5) * seconds, 1.0), xycoords=("data", "axes fraction"), ha="center")
    late.legend(frameon=False, loc="upper left")
    return figure


@contextmanager
def server(model: Path, budgets: str | None, p95: str, size: int, log: Path) -> Iterator[int]:
    """A server in a process of its own; gives its port once it is ready."""
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
            asyncio.run(_until(port, "/v2/health/ready", lambda status, _: status == 200))
            yield port
        finally:
            process.terminate()
            process.wait(60)


async def _until(port: int, path: str, enough: Any) -> None:
    while True:
        connection = Connection(port)
        try:
            if enough(*await connection.ask("GET", path)):
                return
        except OSError:
            pass
        finally:
            connection.close()
        await asyncio.sleep(0.1)


def _empty(status: int, metrics: bytes) -> bool:
    return status == 200 and b"nestor_queue_pictures 0.0" in metrics


def encoded(model: Path, data: str, size: int | None, limit: int) -> tuple[list[tuple[bytes, str]], int, float]:
    """Held-out pictures as JPEG with their labels, their side, and the least budget that the network declares."""
    from PIL import Image

    import nestor
    from nestor.api import prepare
    from nestor.serving.network import ServedViT

    network = nestor.load(str(model))
    side = prepare.side(network, size)
    _, held_out = prepare.parts(network, data, side)
    few, found = held_out.limit(limit), []
    for i in range(len(few)):
        file = io.BytesIO()
        Image.fromarray(few.pixels(i).permute(1, 2, 0).numpy()).save(file, "jpeg", quality=95)
        found.append((file.getvalue(), few.classes[few.labels[i]] if few.classes else ""))
    return found, side, ServedViT(network, size=side).budgets[0]


@app.command()
def main(
    model: Folder,
    data: Data,
    p95: Annotated[str, typer.Option("--p95", help="The promise, like 150ms.")] = "150ms",
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=120, help="Of each load.")] = 20.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10, help="Sweeps of each system.")] = 2,
    factors: Annotated[
        str, typer.Option("--factors", help="Loads, as multiples of what the full network can bear.")
    ] = ",".join(map(str, FACTORS)),
    fixed: Annotated[
        str | None,
        typer.Option("--fixed", help="Budgets of fixed servers; by default 1 and the least.", show_default=False),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of the pictures.", show_default=False)] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="At most so many different ones.")] = 400,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for what was found.")] = Path("runs/serve_load"),
) -> None:
    """Sweep an elastic server and fixed ones through growing loads, in turn, and keep what was found."""
    from nestor.measure.clock import machine
    from nestor.store import write_bytes, write_text

    target, loads = parse.seconds(p95, "p95"), parse.numbers(factors, "factors")
    out = parse.writable_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    sent, side, least = encoded(model, data, size, pictures)
    budgets = (1.0, least) if fixed is None else parse.numbers(fixed, "fixed")
    systems = {"elastic": None} | {f"fixed {budget:g}": f"{budget:g}" for budget in budgets}
    with server(model, "1", p95, side, out / "capacity.log") as port:
        full = asyncio.run(capacity(port, sent, min(10.0, seconds)))
    say(f"The full network bears {full:.1f} pictures a second.")
    found: list[Summary] = []
    recovered: dict[str, list[float | None]] = {}
    shown: dict[str, list[Sample]] = {}
    for turn in range(rounds):
        due = schedule([full * load for load in loads], seconds, seed + turn)
        for system, only in systems.items():
            with server(model, only, p95, side, out / f"{system.replace(' ', '-')}.log") as port:
                samples = asyncio.run(drive(port, due, sent, "" if only is None else WAITS))
                asyncio.run(_until(port, "/metrics", _empty))
            shown.setdefault(system, samples)
            top = 1.0 if only is None else float(only)
            recovered.setdefault(system, []).append(recovery(samples, (len(loads) - 1) * seconds, top))
            found += summary(samples, system=system, turn=turn, factors=loads, seconds=seconds, target=target)
            for line in found[-len(loads) :]:
                say(
                    f"{system:12} x{line.factor:g}: p95 {line.p95_ms:.0f} ms, budget {line.budget:.2f}, "
                    f"accuracy {line.accuracy:.3f}, kept {line.kept:.1%}, refused {line.refused} of {line.offered}"
                )
            counted = Counter(sample.status for sample in samples)
            say(f"{system:12} answers by status: {dict(sorted(counted.items()))}")
    report = {
        "target_ms": 1e3 * target,
        "capacity": full,
        "seconds": seconds,
        "settle": SETTLE,
        "pictures": len(sent),
        "size": side,
        "data": data,
        "seed": seed,
        "machine": machine(),
        "steps": [asdict(line) for line in found],
        "seconds_back_to_full": recovered,
    }
    write_text(out / "serve_load.json", json.dumps(_finite(report), indent=1, allow_nan=False) + "\n")
    file = io.BytesIO()
    draw(shown, seconds=seconds, factors=loads, target=target).savefig(file, format="png", dpi=150)
    write_bytes(out / "serve_load.png", file.getvalue())
    say(f"Kept: {out}")


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if value != value else value


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.serve_load")
