"""A profile as tables: on the terminal, and as texts for whoever sets them otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.measure.record import Network, Point, Profile

    Cells = Callable[[Profile, Network, Point], dict[str, str]]

SHORT = {"float32": "fp32", "bfloat16": "bf16"}


def print_profile(profile: Profile, console: Console | None = None) -> None:
    """Print what every network costs and gives at every budget, and how long it takes."""
    console = console or Console()
    console.print(_table(profile, cost_cells))
    if profile.settings_timed:
        console.print(_table(profile, latency_cells))
        note = (
            "Milliseconds of a batch, speed-up over dense (timed in turns), efficiency: speed-up / reduction of MACs."
        )
        console.print(note, style="dim", highlight=False)
    facts = ", ".join(f"{name} {value}" for name, value in profile.machine.items())
    console.print(f"{profile.pictures} pictures of {profile.size} px. {facts}.", style="dim", highlight=False)


def cost_cells(profile: Profile, network: Network, point: Point) -> dict[str, str]:
    """Cost and quality of a point, by name of the column."""
    row = {
        "budget": f"{point.budget:.2f}",
        "GMACs": f"{point.macs / 1e9:.3g}",
        "of dense": f"{100 * point.ratio:.1f}%",
        "weights": f"{network.parameters / 1e6:.1f} M",
        "MB": f"{network.weight_bytes / 1e6:.0f}",
    }
    return row | {
        name: f"{point.quality.shown[name]:.4f}" if name in point.quality.shown else "–"
        for name in profile.dense.points[0].quality.shown
    }


def latency_cells(profile: Profile, network: Network, point: Point) -> dict[str, str]:
    """Latency of a point at every batch and precision, by name of the column."""
    row = {"budget": f"{point.budget:.2f}"}
    for batch, precision in profile.settings_timed:
        name, latency = f"{SHORT[precision]}, batch {batch}", point.latency(batch, precision)
        if latency is None:
            row[name] = "–"
        else:
            row[name] = f"{latency.timing.median_ms:.1f} {latency.speed_up:5.2f}x {latency.efficiency:.2f}"
    return row


def _table(profile: Profile, cells: Cells) -> Table:
    found = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    found.add_column("network", no_wrap=True)
    for name in cells(profile, profile.dense, profile.dense.points[0]):
        found.add_column(name, justify="right", no_wrap=True)
    for network in (profile.dense, *profile.networks):
        for position, point in enumerate(network.points):
            values = cells(profile, network, point).values()
            last = position == len(network.points) - 1
            found.add_row("" if position else network.name, *values, end_section=last)
    return found
