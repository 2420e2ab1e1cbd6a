"""A report as aligned tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nestor.measure.table import SHORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from benchmarks.record import Operator, Report, Row

NOTE = (
    "Milliseconds of a batch with quartiles; speed-up over the best dense network (*); efficiency: speed-up / "
    "reduction of MACs; x floor: time over what the best matmul or memory rate measured in this run would allow."
)


def show(report: Report, console: Console) -> None:
    """Print what was found: a table of times and one of speed-ups over each dense network, for every cell."""
    for cell in report.cells:
        rows = [row for row in report.rows if row.cell == cell]
        console.print(f"\n{cell.title}", style="bold", highlight=False)
        console.print(_times(rows))
        if len(rows[0].against) > 1:
            console.print(_against(rows))
        if profiled := [one for one in report.operators if one.cell == cell.title]:
            console.print(_operators(profiled))
    console.print("\nThe machine's rates", style="bold", highlight=False)
    console.print(_rates(report))
    console.print(NOTE, style="dim", highlight=False)
    for reason, names in _left_out(report).items():
        console.print(f"Left out: {', '.join(names)}: {reason}", style="dim", highlight=False, markup=False)
    facts = {**report.machine, **{name: value or "none" for name, value in report.versions.items()}}
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    console.print(f"{told}; {report.seconds:.0f} s.", style="dim", highlight=False)


def _times(rows: Sequence[Row]) -> Table:
    table = _table("network", "budget", "GMACs", "ms", "quartiles", "speed-up", "efficiency", "x floor")
    for row in rows:
        t = row.timing
        best = " *" if row.kind == "dense" and row.speed_up == 1 else ""
        table.add_row(
            f"{row.name}{best}",
            f"{row.budget:g}",
            f"{row.macs / 1e9:.3g}",
            _ms(t.median_ms),
            f"{_ms(t.low_ms)} .. {_ms(t.high_ms)}",
            f"{row.speed_up:.2f}",
            f"{row.efficiency:.2f}",
            f"{row.over_floor:.2f}",
        )
    return table


def _against(rows: Sequence[Row]) -> Table:
    names = list(rows[0].against)
    table = _table("speed-up over", "budget", *(name.replace(" ", "\n") for name in names))
    for row in rows:
        if row.kind != "dense":
            table.add_row(row.name, f"{row.budget:g}", *(f"{row.against[name]:.2f}" for name in names))
    return table


def _operators(found: Sequence[Operator]) -> Table:
    """Own milliseconds (calls) of every operator and network."""
    networks = list(dict.fromkeys(one.network for one in found))
    taken = {(one.operator, one.network): one for one in found}
    table = _table("operator: ms (calls)", *(name.replace(" ", "\n") for name in networks))
    for operator in dict.fromkeys(one.operator for one in sorted(found, key=lambda one: one.operator == "others")):
        cells = [taken.get((operator, network)) for network in networks]
        table.add_row(operator, *("–" if one is None else f"{_ms(one.ms)} ({one.calls})" for one in cells))
    sums = [sum(one.ms for one in found if one.network == network) for network in networks]
    table.add_section()
    table.add_row("all", *(_ms(total) for total in sums))
    return table


def _left_out(report: Report) -> dict[str, list[str]]:
    """Who is missing, by reason; what is alike in all cells is said once."""
    names: dict[str, list[str]] = {}
    for one in report.absent:
        name = one.name if one.budget == 1 else f"{one.name} {one.budget:g}"
        if name not in names.setdefault(one.reason, []):
            names[one.reason].append(name)
    return names


def _rates(report: Report) -> Table:
    """Matmuls by shape, the best of each precision, memory."""
    rates = report.rates
    found = {((m.rows, m.inputs, m.outputs), m.precision): m.gflops for m in rates.matmuls}
    kinds = list(dict.fromkeys(m.precision for m in rates.matmuls))
    table = _table("rows x inputs x outputs", *(f"{SHORT.get(kind, kind)}, GFLOP/s" for kind in kinds))
    for shape in dict.fromkeys(shape for shape, _ in found):
        cells = [f"{found[shape, kind]:.0f}" if (shape, kind) in found else "–" for kind in kinds]
        table.add_row(" x ".join(map(str, shape)), *cells)
    table.add_section()
    table.add_row("best", *(f"{rates.best(kind):.0f}" for kind in kinds))
    table.add_row(f"memory: {rates.memory:.1f} GB/s")
    return table


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
