"""One HTML file that shows what was done and what came of it, and opens anywhere without a network."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nestor.measure.draw import curve_timing, draw_latency, draw_macs, legend_below, panel
from nestor.measure.table import cost_cells, latency_cells
from nestor.store import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

    from nestor.measure.record import Network, Point, Profile

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6470; --line: #d9dee4; --card: #f4f6f8; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --dim: #9aa4b0; --line: #343b44; --card: #1d2229; --page: #14181d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
p, li { max-width: 75ch; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.card { background: var(--card); border-radius: .6rem; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; }
.card span, figcaption, .dim { color: var(--dim); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0 0 1.2rem; }
figure svg { display: block; width: 100%; height: auto; fill: currentColor; }
.wide { overflow-x: auto; }
.wide svg { min-width: 720px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: pre; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody tr:first-child > * { border-top: 1px solid var(--line); }
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says.

    Attributes:
        title: stands on top.
        summary: what was done, as facts: names and values.
        profile: what it cost and gave; its first network is the one the headlines are about.
        routings: captions and figures, as from `nestor.measure.draw.routings`.
        notes: sentences for the end, on how to read it or where the pictures come from.
        versions: further names and values beside those of the profile's machine.
    """

    title: str
    summary: Mapping[str, str]
    profile: Profile
    routings: tuple[tuple[str, Figure], ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None


def write_report(report: Report, out: str | Path) -> Path:
    """Write the report as one HTML file, whole or not at all, and return its path.

    Raises:
        ImportError: matplotlib is missing.
        OSError: when it cannot be written; a file that was there before is then untouched.
    """
    out = Path(out)
    page = render(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def render(report: Report) -> str:
    """The report as HTML."""
    profile = report.profile
    sections = [
        _section("What was done", _facts(report.summary)),
        _section("In short", headlines(profile)),
        _section(f"{profile.measure[:1].upper() + profile.measure[1:]} at every budget", _curves(profile)),
    ]
    if report.routings:
        shown = "".join(_figure(figure, caption, wide=True) for caption, figure in report.routings)
        sections.append(_section("Which patch got which width", shown))
    sections.append(_section("Cost and quality", _table(profile, cost_cells)))
    if profile.settings_timed:
        told = _paragraph(
            "Milliseconds of a batch, speed-up over dense, and efficiency: speed-up over the reduction of "
            "multiply-accumulates. All networks were timed in turns.",
            "dim",
        )
        sections.append(_section("Latency", told + _table(profile, latency_cells)))
    if report.notes:
        sections.append(_section("Notes", "<ul>" + "".join(f"<li>{escape(n)}</li>" for n in report.notes) + "</ul>"))
    sections.append(_section("Machine and versions", _facts({**profile.machine, **(report.versions or {})})))
    title = escape(report.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def headlines(profile: Profile) -> str:
    """The numbers that matter most, as cards."""
    network, measure = profile.networks[0], profile.measure
    full = profile.dense.points[0].quality.shown[measure]
    half = min(network.points, key=lambda point: abs(point.budget - 0.5))
    value = half.quality.shown[measure]
    cards = [
        _card(f"{value:.4f}", f"{measure} at {100 * half.ratio:.0f}% of the dense network's MACs (dense: {full:.4f})")
    ]
    close = [point for point in network.points if point.quality.shown[measure] >= full - 0.01]
    if close:
        least = min(close, key=lambda point: point.ratio)
        cards.append(_card(f"{100 * least.ratio:.0f}%", f"of the MACs suffice to stay within 0.01 {measure} of dense"))
    if (timed := half.latency(*curve_timing(profile))) is not None:
        where = f"batch {timed.batch}, {timed.precision}; efficiency {timed.efficiency:.2f}"
        cards.append(_card(f"{timed.speed_up:.2f}x", f"as fast as dense at budget {half.budget:g} ({where})"))
    size = f"{network.parameters / 1e6:.1f} M parameters, {network.weight_bytes / 1e6:.0f} MB"
    cards.append(_card("1 network", f"for {len(network.points)} budgets: {size}"))
    return '<div class="cards">' + "".join(cards) + "</div>"


def _curves(profile: Profile) -> str:
    # Apart, so that they stand below each other on a narrow screen.
    drawn = [_plot(draw_macs, profile)] + ([_plot(draw_latency, profile)] if profile.settings_timed else [])
    return '<div class="plots">' + "".join(_figure(figure, "") for figure in drawn) + "</div>"


def _plot(draw: Callable[..., None], profile: Profile) -> Figure:
    figure, axes = panel()
    draw(axes, profile)
    legend_below(figure, axes)
    return figure


def _figure(figure: Figure, caption: str, *, wide: bool = False) -> str:
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="{"wide" if wide else "plot"}">{svg(figure)}</div>{told}</figure>'


def svg(figure: Figure) -> str:
    """A figure as SVG to stand inside a page, on the page's own background and in its ink."""
    import matplotlib

    buffer = io.StringIO()
    # Letters as paths look alike on every machine; the salt makes equal figures equal texts.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "nestor"}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("#000000", "currentColor")


def _table(profile: Profile, cells: Callable[[Profile, Network, Point], dict[str, str]]) -> str:
    names = cells(profile, profile.dense, profile.dense.points[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in ("network", *names))
    groups = []
    for network in (profile.dense, *profile.networks):
        rows = [
            "".join(f"<td>{escape(value)}</td>" for value in cells(profile, network, point).values())
            for point in network.points
        ]
        name = escape(network.name)
        groups.append("".join(f"<tr><td>{'' if i else name}</td>{row}</tr>" for i, row in enumerate(rows)))
    body = "".join(f"<tbody>{group}</tbody>" for group in groups)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _card(value: str, told: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(told)}</span></div>'


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>'
