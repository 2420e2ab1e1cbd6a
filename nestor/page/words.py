"""What the page says, as HTML; whatever comes from files or networks is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nestor.page.chart import progress
from nestor.page.explore import TURNS
from nestor.page.paint import address, swatches, tinted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nestor.page.explore import Clock, Explorer, Look, Picture
    from nestor.page.samples import Sample

_BARS = 3


def heading(explorer: Explorer, name: str) -> str:
    """What is shown here."""
    settings = explorer.model.settings
    facts = [
        settings.source,
        f"{len(explorer.widths)} widths, {explorer.widths[0]} to {explorer.widths[-1]} channels",
        f"{explorer.patches} patches of {settings.patch} px",
        f"{len(explorer.labels)} classes" if settings.classes else "features, no head",
    ]
    return (
        f'<header class="nst-head"><h1>{escape(name)}<span> at any budget</span></h1>'
        "<p>One network, one file of weights. Drag the budget: patches that matter keep their full width, "
        "the others get by with less.</p>"
        f'<ul class="nst-facts">{"".join(f"<li>{escape(fact)}</li>" for fact in facts)}</ul></header>'
    )


def choices(samples: Sequence[Sample], pictures: Sequence[Picture], chosen: int | None) -> str:
    """Samples as buttons."""
    buttons = [
        f'<button type="button" class="nst-sample" data-index="{number}" aria-pressed="{str(number == chosen).lower()}"'
        f' title="{escape(sample.name)}"><img src="{address(picture.shown[:, ::4, ::4])}" '
        f'alt="Sample {number + 1}: {escape(sample.name)}"></button>'
        for number, (sample, picture) in enumerate(zip(samples, pictures, strict=True))
    ]
    return f'<div class="nst-samples" role="group" aria-label="Samples">{"".join(buttons)}</div>' if buttons else ""


def stage(picture: Picture, look: Look, widths: Sequence[int], said: str) -> str:
    """The picture, beside it which patch got which width, and how many got each; `said` is read aloud only."""
    counts = ", ".join(map(str, look.plan))
    truth = "" if picture.label is None else f", labelled <em>{escape(picture.label)}</em>"
    return (
        f'<p class="nst-aloud" role="status">{said}</p><div class="nst-stage">'
        f'<figure><img src="{address(picture.shown)}" alt="The picture: {escape(picture.name)}">'
        f"<figcaption>{escape(picture.name)}{truth}</figcaption></figure>"
        f'<figure><img src="{address(tinted(picture.shown, look.index, len(widths)))}" class="nst-routing" '
        f'alt="The same picture, each patch coloured by its width; patches from the narrowest to the widest: {counts}">'
        f"<figcaption>Bright patches run wide, dark ones narrow</figcaption></figure></div>{_legend(look, widths)}"
    )


def verdict(look: Look, clock: Clock | None, labels: Sequence[str]) -> str:
    """Answers and costs of both, side by side, under a sentence that says it all."""
    rows = []
    if look.chances is not None and look.full_chances is not None:
        rows.append(("Answer", "", _says(look.full_chances, labels), _says(look.chances, labels)))
    own, whole = f"{look.macs / 1e9:.3g} G", f"{look.full_macs / 1e9:.3g} G"
    rows.append(("Work", "multiply-accumulates", whole, f"{own}<small>{look.ratio:.1%}</small>"))
    times = ("…", "…")
    if clock is not None:
        times = (f"{clock.full_ms:.1f} ms", f"{clock.ms:.1f} ms<small>{_speed(clock)} as fast</small>")
    rows.append(("Time", "measured here", *times))
    rows.append(("Likeness", "cosine of features", "1.0000", f"{look.likeness:.4f}"))
    body = "".join(
        f'<tr><th scope="row">{name}<small>{what}</small></th><td>{left}</td><td>{right}</td></tr>'
        for name, what, left, right in rows
    )
    return (
        f'<section class="nst-verdict"><p class="nst-headline">{headline(look, labels)}</p>'
        '<table><thead><tr><td></td><th scope="col">Full network</th>'
        f'<th scope="col">Budget {look.budget:.2f}</th></tr></thead><tbody>{body}</tbody></table>'
        f"{_bars(look, labels)}{_waiting(clock)}</section>"
    )


def headline(look: Look, labels: Sequence[str]) -> str:
    """The present point in one sentence."""
    if look.macs == look.full_macs:
        return "Every patch at full width: this is the full network."
    work = f"<b>{look.ratio:.0%}</b> of the work"
    if look.chances is None or look.full_chances is None:
        return f"Cosine <b>{look.likeness:.3f}</b> to the full network, with {work}."
    best, full = int(look.chances.argmax()), int(look.full_chances.argmax())
    if best == full:
        return f'<span class="nst-same">✓ Same answer</span> with {work}.'
    return f'<span class="nst-other">≠ Another answer</span>, {escape(labels[best])}, with {work}.'


def notice(text: str) -> str:
    """A message about something that did not work."""
    return f'<p class="nst-notice" role="alert">{escape(text)}</p>' if text else ""


def _says(chances: Tensor, labels: Sequence[str]) -> str:
    best = int(chances.argmax())
    return f"<b>{escape(labels[best])}</b><small>{float(chances[best]):.1%} sure</small>"


def _speed(clock: Clock) -> str:
    return f"{clock.full_ms / clock.ms:.2f}×"


def _bars(look: Look, labels: Sequence[str]) -> str:
    if look.chances is None or look.full_chances is None:
        return ""
    order = [int(number) for number in look.full_chances.argsort(descending=True)]
    best = int(look.chances.argmax())
    shown = order[:_BARS] + [best] * (best not in order[:_BARS])
    rows = "".join(
        f'<li><span>{escape(labels[number])}</span><div><i class="nst-whole" style="width:{share:.1%}"></i>'
        f'<i class="nst-own" style="width:{own:.1%}"></i></div></li>'
        for number in shown
        for share, own in [(float(look.full_chances[number]), float(look.chances[number]))]
    )
    return (
        f'<ul class="nst-chances" aria-hidden="true">{rows}</ul><p class="nst-key" aria-hidden="true">'
        '<span class="nst-box nst-whole"></span>full network<span class="nst-box nst-own"></span>this budget</p>'
    )


def _waiting(clock: Clock | None) -> str:
    turns = 0 if clock is None else clock.turns
    done = f"Times: median of {turns} turns, one picture at a time."
    return f'<p class="nst-note">{done if turns >= TURNS else progress("Timing, turn", turns, TURNS)}</p>'


def _legend(look: Look, widths: Sequence[int]) -> str:
    """How many patches got which width."""
    total, colours = sum(look.plan), swatches(len(widths))
    names = [f"{width} channels" if width else "skipped" for width in widths]
    rows = list(zip(names, look.plan, colours, strict=True))
    bar = "".join(f'<i style="flex:{count};background:{colour}"></i>' for _, count, colour in rows if count)
    keys = "".join(
        f'<li><i style="background:{colour}"></i>{name}<b>{count}</b><small>{count / total:.0%}</small></li>'
        for name, count, colour in rows
    )
    return (
        f'<div class="nst-legend"><div class="nst-bar" aria-hidden="true">{bar}</div>'
        f'<ul aria-label="Patches of each width">{keys}</ul></div>'
    )
