"""The curve over budgets with the present point on it, drawn as SVG in the page's own colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nestor.measure.record import Profile

_WIDE, _HIGH = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 20, 10, 42


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quality over shares of the full network's multiply-accumulates.

    Attributes:
        title: what is drawn, for a heading.
        measure: name of the quality.
        points: (share, quality), by share.
        full: quality of what it is compared with.
        name: of that.
        note: where the numbers come from.
    """

    title: str
    measure: str
    points: tuple[tuple[float, float], ...]
    full: float
    name: str
    note: str

    def at(self, ratio: float) -> float | None:
        """The quality at a share, on the line between its neighbours; None outside of what was measured."""
        for (left, low), (right, high) in zip(self.points, self.points[1:], strict=False):
            if left <= ratio <= right:
                return low + (high - low) * (ratio - left) / max(right - left, 1e-12)
        return next((value for share, value in self.points if share == ratio), None)


def measured(profile: Profile, parameters: int, size: int) -> Curve:
    """The curve of a network that was profiled.

    Args:
        profile: what `nestor profile` wrote.
        parameters: how many the network has that is shown.
        size: side of the pictures that are shown.

    Raises:
        ValueError: it is the profile of another network, or of pictures of another size.
    """
    network = profile.networks[0]
    if (network.parameters, profile.size) != (parameters, size):
        raise ValueError(
            f"the profile must be of this network, {parameters:,} parameters at {size} px; got one of "
            f"{network.parameters:,} at {profile.size} px. Measure again: nestor profile."
        )
    name = profile.measure
    points = sorted((p.ratio, p.quality.shown[name]) for p in network.points if name in p.quality.shown)
    return Curve(
        title=f"{name[:1].upper()}{name[1:]} over budgets",
        measure=name,
        points=tuple(points),
        full=profile.dense.points[0].quality.shown[name],
        name="dense network",
        note=f"Measured on {profile.pictures} pictures; between the marks the line is straight.",
    )


def draw(curve: Curve, ratio: float, value: float | None, *, rungs: int = 0) -> str:
    """The curve as SVG.

    Args:
        curve: what to draw.
        ratio: the present share of multiply-accumulates.
        value: the quality there; None where it is not known.
        rungs: how many points there will be; fewer are drawn as a line that is not ready yet.
    """
    seen = [quality for _, quality in curve.points] + [curve.full] + ([] if value is None else [value])
    ticks = _ticks(min(seen), max(seen))
    low, high = ticks[0], ticks[-1]

    def across(share: float) -> float:
        return _LEFT + share * (_WIDE - _LEFT - _RIGHT)

    def up(quality: float) -> float:
        return _TOP + (high - quality) / (high - low) * (_HIGH - _TOP - _BOTTOM)

    digits = max(2, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    parts = [
        *(_line(_LEFT, up(y), _WIDE - _RIGHT, up(y), "grid") + _text(_LEFT - 7, up(y) + 4, f"{y:.{digits}f}", "end")
          for y in ticks),
        *(_text(across(x / 100), _HIGH - _BOTTOM + 18, f"{x}%", "middle") for x in (0, 25, 50, 75, 100)),
        _text((_LEFT + _WIDE - _RIGHT) / 2, _HIGH - 8, "multiply-accumulates, share of the full network", "middle"),
        _line(_LEFT, up(curve.full), _WIDE - _RIGHT, up(curve.full), "full"),
        _line(across(ratio), _TOP, across(ratio), _HIGH - _BOTTOM, "now"),
    ]  # fmt: skip
    if len(curve.points) > 1:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points)
        parts.append(f'<polyline class="nst-line" points="{path}"/>')
    parts += [f'<circle class="nst-mark" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5"/>' for x, y in curve.points]
    if value is not None:
        parts.append(f'<circle class="nst-here" cx="{across(ratio):.1f}" cy="{up(value):.1f}" r="8"/>')
    said = f"{curve.title}: {curve.measure} {_number(value)} at {ratio:.0%} of the work; {curve.name} {curve.full:.3f}."
    known, note = len(curve.points), escape(curve.note)
    if known < rungs:
        note = progress("Measuring the curve, point", known, rungs)
    return (
        f'<figure class="nst-chart"><figcaption><strong>{escape(curve.title)}</strong></figcaption>'
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
        f'<p class="nst-key"><span class="nst-dot"></span>now: {_number(value)}'
        f'<span class="nst-dash"></span>{curve.name}: {curve.full:.3f}</p>'
        f'<p class="nst-note">{note}</p></figure>'
    )


def progress(what: str, done: int, whole: int) -> str:
    """What is being measured, and how far it is."""
    return f'{what} {done + 1} of {whole} <progress max="{whole}" value="{done}" aria-label="{what}"></progress>'


def _number(value: float | None) -> str:
    return "not measured here" if value is None else f"{value:.3f}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, three to six of them; a range of next to nothing is widened to below."""
    # Nothing that is drawn can be above 1.
    low = min(low, high - 0.004)
    span = high - low
    step = 10 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="nst-{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
