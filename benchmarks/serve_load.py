"""Traffic that grows to three times what the full network can bear, against an elastic server and fixed ones.

    python -m benchmarks.serve_load elastic/ --data elpv --p95 150ms
    python -m benchmarks.serve_load elastic/ --data elpv --p95 150ms --soak 10
    python -m benchmarks.serve_load elastic/ --data elpv --quick

Open loop: requests leave when they are due, whether or not earlier ones were answered, and latency counts from then.
Every system goes through the same sweep of loads in turn, over the loopback interface only. After the sweeps: more than
the least budget bears, and a network that is killed under load. Writes JSON, a table and a picture.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.serve_report import ELASTIC, SETTLE, Summary, claims, draw, flat, recovery, summary, table
from benchmarks.serve_traffic import WAITS, Sample, capacity, drive, empty, schedule, server, until
from nestor.cli import parse
from nestor.cli.console import Commands, say
from nestor.cli.options import Data, Folder  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.serving.network import Served

FACTORS = (0.3, 1.0, 2.0, 3.0, 0.3)
# How much more than the least budget bears is sent to see who is refused.
BEYOND = 1.5
# Seconds between two looks at memory.
LOOK = 2.0

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


def encoded(model: Path, data: str, size: int | None, limit: int) -> tuple[list[tuple[bytes, str]], int, Served]:
    """Held-out pictures as JPEG with their labels, their side, and the network."""
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
    return found, side, ServedViT(network, size=side)


def bare(served: Served, rows: int, seconds: float, budget: float = 1.0) -> float:
    """Pictures a second of the network alone, in batches of so many."""
    import torch

    items = torch.zeros(rows, *served.input.shape)
    served.run(items, budget)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        served.run(items, budget)
        done += rows
    return done / (time.perf_counter() - begin)


def killed(running: Any, sent: Sequence[tuple[bytes, str]], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """What becomes of traffic when the network's process is killed in the middle of it."""
    due = schedule([rate], seconds, seed)
    [worker] = running.workers()
    timer = threading.Timer(seconds / 3, os.kill, (worker, signal.SIGKILL))
    timer.start()
    samples = asyncio.run(drive(running.port, due, sent, ""))
    timer.join()
    asyncio.run(until(running.port, "/v2/health/ready", lambda _: True))
    told = [sample for sample in samples if sample.status in (429, 503)]
    lost = [sample for sample in samples if sample.status not in (200, 429, 503)]
    again = [sample.due for sample in samples if sample.status == 200 and sample.due > seconds / 3]
    return {
        "statuses": dict(sorted(Counter(sample.status for sample in samples).items())),
        "nobody is lost": not lost and all(sample.again for sample in told),
        "another process serves": running.workers() != [worker] and running.metric("nestor_revivals_total") == 1,
        "seconds_until_answers": min(again) - seconds / 3 if again else None,
    }


def soaked(running: Any, sent: Sequence[tuple[bytes, str]], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """How much memory a server holds while it is busy, in megabytes, and whether that is flat."""
    memory, over = [], threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            memory.append(round(running.memory(), 1))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    samples = asyncio.run(drive(running.port, schedule([rate], seconds, seed), sent, ""))
    over.set()
    thread.join()
    statuses = dict(sorted(Counter(sample.status for sample in samples).items()))
    return {"statuses": statuses, "megabytes": memory, "memory is flat": flat(memory)}


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
    soak: Annotated[float, typer.Option("--soak", min=0, max=60, help="Minutes of steady traffic at the end.")] = 0.0,
    quick: Annotated[bool, typer.Option("--quick", help="Two seconds of each load, once: whether it runs.")] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for what was found.")] = Path("runs/serve_load"),
) -> None:
    """Sweep an elastic server and fixed ones through growing loads, in turn, and keep what was found."""
    from nestor.measure.clock import machine
    from nestor.store import write_bytes, write_text

    if quick:
        seconds, rounds, pictures = 2.0, 1, 40
    target, loads = parse.seconds(p95, "p95"), parse.numbers(factors, "factors")
    out = parse.writable_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    sent, side, network = encoded(model, data, size, pictures)
    least, glance = network.budgets[0], min(10.0, seconds)
    chosen = {1.0, least} if fixed is None else {1.0, *parse.numbers(fixed, "fixed")}
    systems = {ELASTIC: None} | {f"fixed {budget:g}": f"{budget:g}" for budget in sorted(chosen, reverse=True)}
    planned = len(systems) * rounds * len(loads) * seconds + 5 * glance + 2 * seconds + 60 * soak
    say(f"About {planned / 60:.0f} minutes of traffic, and the starting of {len(systems) * rounds + 4} servers.")

    def serving(name: str, only: str | None) -> Any:
        return server(model, only, p95, side, out / f"{name.replace(' ', '-')}.log")

    with serving("capacity", "1") as running:
        full = asyncio.run(capacity(running.port, sent, glance))
        batch = running.metric("nestor_batch_pictures_sum") / running.metric("nestor_batch_pictures_count")
    alone = bare(network, max(1, round(batch)), glance)
    with serving("capacity-least", f"{least:g}") as running:
        most = asyncio.run(capacity(running.port, sent, glance))
    say(f"The full network bears {full:.1f} pictures a second ({alone:.1f} alone), the least budget {most:.1f}.")

    found: list[Summary] = []
    recovered: dict[str, list[float | None]] = {}
    shown: dict[str, list[Sample]] = {}
    for turn in range(rounds):
        due = schedule([full * load for load in loads], seconds, seed + turn)
        for system, only in systems.items():
            with serving(system, only) as running:
                samples = asyncio.run(drive(running.port, due, sent, "" if only is None else WAITS))
                asyncio.run(until(running.port, "/metrics", empty))
            shown.setdefault(system, samples)
            top = 1.0 if only is None else float(only)
            recovered.setdefault(system, []).append(recovery(samples, (len(loads) - 1) * seconds, top))
            found += summary(samples, system=system, turn=turn, factors=loads, seconds=seconds, target=target)
            counted = Counter(sample.status for sample in samples)
            say(f"{system:12} answers by status: {dict(sorted(counted.items()))}")
    with serving("beyond", None) as running:
        samples = asyncio.run(drive(running.port, schedule([BEYOND * most], seconds, seed), sent, ""))
        rates = (BEYOND * most / full,)
        [beyond] = summary(samples, system="beyond", turn=0, factors=rates, seconds=seconds, target=target)
    with serving("killed", None) as running:
        lost = killed(running, sent, full, 3 * glance, seed)
    held: dict[str, bool | None] = claims(
        found,
        full="fixed 1",
        target=target,
        recovered=recovered[ELASTIC],
        beyond=beyond,
        served=full,
        bare=alone,
    )
    held |= {name: lost[name] for name in ("nobody is lost", "another process serves")}
    report = {
        "target_ms": 1e3 * target,
        "capacity": {"full": full, "least": most, "bare": alone, "batch": batch},
        "seconds": seconds,
        "settle": SETTLE,
        "pictures": len(sent),
        "size": side,
        "data": data,
        "seed": seed,
        "machine": machine(),
        "steps": [asdict(line) for line in found],
        "seconds_back_to_full": recovered,
        "beyond": asdict(beyond),
        "killed": lost,
    }
    if soak:
        with serving("soak", None) as running:
            report["soak"] = soaked(running, sent, full, 60 * soak, seed)
        held["memory is flat"] = report["soak"]["memory is flat"]
    report["claims"] = held
    lines = table([*found, beyond])
    write_text(out / "serve_load.json", json.dumps(_finite(report), indent=1, allow_nan=False) + "\n")
    write_text(out / "serve_load.md", lines)
    file = io.BytesIO()
    draw(shown, seconds=seconds, factors=loads, target=target).savefig(file, format="png", dpi=150)
    write_bytes(out / "serve_load.png", file.getvalue())
    say(lines)
    for claim, so in held.items():
        say(f"{'not measured' if so is None else 'holds' if so else 'FAILS':12} {claim}")
    say(f"Kept: {out}")


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.serve_load")
