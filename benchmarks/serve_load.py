"""Traffic that grows to three times what the full network can bear, against an elastic server and fixed ones.

    python -m benchmarks.serve_load elastic/ --data elpv --p95 150ms
    python -m benchmarks.serve_load elastic/ --data elpv --p95 150ms --soak 10 --fixed all --history
    python -m benchmarks.serve_load elastic/ --data elpv --quick
    python -m benchmarks.serve_load programs/ --data elpv --p95 150ms

Open loop: requests leave when they are due, whether or not earlier ones were answered, and latency counts from then.
Every system goes through the same sweep of loads in turn, under the same promise, over the loopback interface only.
Beside the sweeps: throughput against the bare network's, whether answers are the network's own, more than the least
budget bears, and a network that is killed under load. Writes JSON, tables and a picture.
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import serve_bare
from benchmarks.serve_faults import killed, soaked
from benchmarks.serve_http import empty, until
from benchmarks.serve_keep import HISTORY, keep
from benchmarks.serve_process import DONE, Start
from benchmarks.serve_replay import replay
from benchmarks.serve_report import ELASTIC, SETTLE, Summary, claims, recovery, summary, table
from benchmarks.serve_traffic import Ask, Sample, capacity, drive, patient, picture_ask, schedule, tensor_ask
from nestor.cli import parse
from nestor.cli.console import Commands, say
from nestor.cli.options import Data, Folder, Size  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.serving.network import Served

FACTORS = (0.3, 1.0, 2.0, 3.0, 0.3)
# Fixed budgets, beside full and least, that an elastic server has to be better than.
BETWEEN = (0.65, 0.5)
# How much more than the least budget bears is sent to see who is refused.
BEYOND = 1.5
# One request in so many sends a tensor and is answered with logits.
EVERY = 17
NOT_JUDGED = "A quick run shows whether it runs; its claims are not judged."

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


def asked(
    model: Path, data: str, size: int | None, limit: int, precision: str
) -> tuple[list[Ask], dict[int, Tensor], Served]:
    """What is asked about held-out pictures, what the network takes of each, and the network.

    Raises:
        ValueError: it takes no pictures.
    """
    from PIL import Image

    from nestor.data import load_splits
    from nestor.serving.open import open_served

    served = open_served(model, size=size, precision=precision)
    if served.prepare is None:
        raise ValueError(f"the traffic is of pictures; {model} takes none. Choose a network that does.")
    _, held_out = load_splits(data, size=served.prepare.side)
    few, asks, items = held_out.limit(limit), [], {}
    for i in range(len(few)):
        file = io.BytesIO()
        Image.fromarray(few.pixels(i).permute(1, 2, 0).numpy()).save(file, "jpeg", quality=95)
        label = few.classes[few.labels[i]] if few.classes else ""
        place = served.labels.index(label) if label in served.labels else -1
        more: dict[str, Any] = {"picture": i, "label": label, "place": place}
        items[i] = served.prepare(file.getvalue())
        probe = i % EVERY == 0
        asks.append(tensor_ask(served.input.name, items[i], **more) if probe else picture_ask(file.getvalue(), **more))
    return asks, items, served


def chosen(fixed: str | None, budgets: Sequence[float]) -> tuple[float, ...]:
    """Budgets of the fixed servers, descending; full budget is always among them.

    Raises:
        ValueError: one is none, or cannot be kept.
    """
    if fixed == "all":
        found = set(budgets)
    elif fixed is None:
        found = {budgets[0], *(each for each in BETWEEN if each > budgets[0])}
    else:
        found = set(parse.numbers(fixed, "fixed (unless all)"))
    if wrong := [each for each in found if not budgets[0] <= each <= 1]:
        raise ValueError(f"fixed budgets must lie from {budgets[0]:g} to 1; got {wrong[0]:g}.")
    return tuple(sorted({1.0, *found}, reverse=True))


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
        typer.Option(
            "--fixed",
            help="Budgets of fixed servers, or all that are declared; by default 1, .65, .5 and the least.",
            show_default=False,
        ),
    ] = None,
    size: Size = None,
    precision: Annotated[str, typer.Option("--precision", help="float32 or bfloat16.")] = "float32",
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="At most so many different ones.")] = 400,
    soak: Annotated[float, typer.Option("--soak", min=0, max=60, help="Minutes of steady traffic at the end.")] = 0.0,
    quick: Annotated[bool, typer.Option("--quick", help="Two seconds of each load, once: whether it runs.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Keep the result in benchmarks/history too.")] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for what was found.")] = Path("runs/serve_load"),
) -> None:
    """Sweep an elastic server and fixed ones through growing loads, in turn, and keep what was found."""
    from nestor.measure.clock import machine
    from nestor.serving.programs import ServedPrograms

    if quick and history:
        raise ValueError("a quick run is not judged and not kept; leave out --quick or --history.")
    if quick:
        seconds, rounds, pictures = 2.0, 1, 40
    target, loads = parse.seconds(p95, "p95"), parse.numbers(factors, "factors")
    precision, out = parse.precision(precision), parse.writable_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    asks, items, network = asked(model, data, size, pictures, precision)
    least, glance, turns = network.budgets[0], min(10.0, seconds), 1 if quick else 5
    start = Start(model=model, p95=p95, size=size, precision=precision, out=out)
    budgets = chosen(fixed, network.budgets)
    systems: dict[str, str | None] = {ELASTIC: None} | {f"fixed {budget:g}": f"{budget:g}" for budget in budgets}
    cells = 2 * len(serve_bare.BATCHES)
    planned = len(systems) * rounds * len(loads) * seconds + 6 * glance + cells * turns * 3.5 * glance / 10 + 60 * soak
    say(f"About {planned / 60:.0f} minutes of traffic, and the starting of {len(systems) * rounds + 7} servers.")

    waiting, ends = patient(asks), (1.0, least)
    borne: dict[float, float] = {}
    for budget in ends:
        with start.server(f"capacity {budget:g}", f"{budget:g}") as running:
            borne[budget] = asyncio.run(capacity(running.port, waiting, glance))
    full, most = borne[1.0], borne[least]
    say(f"The full network bears {full:.1f} pictures a second, the least budget {most:.1f}.")
    compared = serve_bare.compare(start, network, asks, ends, rounds=turns, seconds=glance / 10)
    say(serve_bare.table(compared))

    found: list[Summary] = []
    recovered: dict[str, list[float | None]] = {}
    shown: dict[str, list[Sample]] = {}
    answers: list[Sample] = []
    for turn in range(rounds):
        due = schedule([full * load for load in loads], seconds, seed + turn)
        for system, only in systems.items():
            with start.server(system, only) as running:
                samples = asyncio.run(drive(running.port, due, asks))
                asyncio.run(until(running.port, "/metrics", empty, DONE))
            shown.setdefault(system, samples)
            answers += samples if only is None else []
            top = 1.0 if only is None else float(only)
            recovered.setdefault(system, []).append(recovery(samples, (len(loads) - 1) * seconds, top))
            found += summary(samples, system=system, turn=turn, factors=loads, seconds=seconds, target=target)
            say(table([line for line in found if (line.system, line.round) == (system, turn)]))
    with start.server("beyond") as running:
        samples = asyncio.run(drive(running.port, schedule([BEYOND * most], seconds, seed), asks))
        rates = (BEYOND * most / full,)
        [beyond] = summary(samples, system="beyond", turn=0, factors=rates, seconds=seconds, target=target)
    with start.server("killed") as running:
        lost = killed(running, asks, full, 3 * glance, seed)
    own = replay(network, items, answers)
    held = claims(found, full="fixed 1", target=target, recovered=recovered[ELASTIC], beyond=beyond)
    held |= serve_bare.holds(compared) | own.holds(precision)
    held |= {name: lost[name] for name in ("nobody is lost", "another process serves")}
    report = {
        "target_ms": 1e3 * target,
        "precision": precision,
        "capacity": {"full": full, "least": most},
        "throughput": [asdict(each) for each in compared],
        "seconds": seconds,
        "settle": SETTLE,
        "pictures": len(asks),
        "size": network.input.shape[-1],
        "programs": isinstance(network, ServedPrograms),
        # A name, and no place on somebody's disk.
        "data": Path(data).name,
        "seed": seed,
        "judged": not quick,
        "machine": machine(),
        "steps": [asdict(line) for line in found],
        "seconds_back_to_full": recovered,
        "beyond": asdict(beyond),
        "killed": lost,
        "replay": asdict(own),
    }
    if soak:
        with start.server("soak") as running:
            report["soak"] = soaked(running, asks, full, 60 * soak, seed)
        held |= {name: report["soak"][name] for name in ("memory is flat", "the soak is answered")}
    report["claims"] = dict.fromkeys(held) if quick else held
    lines = f"{table(found, [beyond])}\n{serve_bare.table(compared)}\n{verdict(held, judged=not quick)}"
    folders = [out, *([HISTORY] if history else [])]
    kept = keep(report, lines, folders, shown, seconds=seconds, factors=loads, target=target)
    say(lines)
    for folder in kept:
        say(f"Kept: {folder}")


def verdict(held: dict[str, bool | None], *, judged: bool) -> str:
    """Each claim and whether it holds, as a list of Markdown."""
    if not judged:
        return f"{NOT_JUDGED}\n"
    words = {None: "not measured", True: "holds", False: "FAILS"}
    return "".join(f"- {words[so]}: {claim}\n" for claim, so in held.items())


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.serve_load")
