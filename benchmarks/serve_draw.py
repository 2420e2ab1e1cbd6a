"""A load test as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.serve_traffic import Sample


def draw(runs: dict[str, list[Sample]], *, seconds: float, factors: Sequence[float], target: float) -> Figure:
    """Over time: latency of the slowest in twenty, budget, and what was refused, one line for each system."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    from nestor.measure.draw import COLOURS, GREY, legend_below

    figure = Figure(figsize=(8, 7), layout="constrained")
    late, given, lost = figure.subplots(3, 1, sharex=True)
    for number, (system, samples) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        ends = [second + 0.5 for second in range(int(seconds * len(factors)))]
        bins = [[sample for sample in samples if abs(sample.due - end) <= 0.5] for end in ends]
        good = [[sample for sample in each if sample.status == 200] for each in bins]
        slow = [sorted(1e3 * one.seconds for one in each)[int(0.95 * len(each))] if each else None for each in good]
        mean = [sum(one.budget for one in each) / len(each) if each else None for each in good]
        gone = [100 * (1 - len(ok) / len(each)) if each else None for ok, each in zip(good, bins, strict=True)]
        for axes, values in ((late, slow), (given, mean), (lost, gone)):
            axes.plot(ends, [float("nan") if value is None else value for value in values], color=colour, label=system)
    late.axhline(1e3 * target, color=GREY, linestyle="--", linewidth=1, label="target")
    late.set_yscale("log")
    late.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    late.yaxis.set_major_formatter(ScalarFormatter())
    late.yaxis.set_minor_formatter(NullFormatter())
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
    legend_below(figure, late)
    return figure
