"""Facts that pages name as `{{ name }}`: words, tables and pictures that are measured or computed, never typed."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.record import Report
from docs.hooks import pictures
from docs.hooks.serving import under_load
from docs.hooks.systems import currency, held, record
from nestor.measure.memory import peak_bytes
from nestor.recipes.catalogue import systems as published
from nestor.recipes.evidence import find

if TYPE_CHECKING:
    from collections.abc import Callable

HISTORY = Path(__file__).parents[2] / "benchmarks" / "history"


def fact(name: str) -> str:
    """One of them, as Markdown.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in FACTS:
        raise ValueError(f"a fact must be one of {', '.join(FACTS)}; got {name!r}.")
    return FACTS[name]()


def dial() -> str:
    """The same picture over budgets, with a dial to turn; one beside the other without JavaScript."""
    parts = [
        f'<figure data-budget="{view.budget:g}"><img src="pictures/{view.name}.png" alt="{escape(view.words)}"'
        f' width="{pictures.SIDE}" height="{pictures.SIDE}"><figcaption>{escape(view.words)}</figcaption></figure>'
        for view in pictures.views()
    ]
    whole = (
        f'<figure class="whole"><img src="pictures/picture.png" alt="The picture itself" width="{pictures.SIDE}"'
        f' height="{pictures.SIDE}"><figcaption>The picture</figcaption></figure>'
    )
    return f'<div class="dial" markdown="0">{whole}{"".join(parts)}</div>'


def dial_note() -> str:
    """How the dial's pictures were made."""
    model = pictures.elastic().settings
    widths = " and ".join(map(str, model.nest.widths))
    return (
        f"DINOv2 ViT-S/14, nested to widths {widths}, calibrated on {pictures.CALIBRATION} pieces of this photograph, "
        "not trained. Bright patches run at full width, dark ones narrow. Grace Hopper; US Navy, public domain."
    )


def proof(name: str = "mone", up: str = "") -> str:
    """The curve of a proof, and what it says of itself; `up` leads from the page to the first one's folder."""
    found = record(name)
    if found is None:
        return f"`nestor prove {name}` has not run yet."
    title = find(name).TITLE.partition(":")[0]
    return (
        f"![Quality over budgets, {title} beside its rivals]({up}systems/{name}.png){{ .chart }}\n\n"
        f"{held((found,))} claims of this proof hold. It was made on {found['date']} with {currency(found)}: "
        f"[all claims]({up}systems/{name}.md)."
    )


def untrained() -> str:
    """What a pretrained network keeps before any training."""
    return proof("mone_pretrained", "../")


def training() -> str:
    """What leaving out each part of the training costs."""
    return proof("mone_training", "../")


def scratch() -> str:
    """Training from nothing, beside rivals."""
    return proof("mone_scratch", "../")


def speed() -> str:
    """The latest run of the benchmarks on each machine."""
    latest = [sorted(place.glob("*.json"))[-1] for place in sorted(HISTORY.glob("*")) if any(place.glob("*.json"))]
    if not latest:
        return "No run is kept yet: `make bench` makes one."
    return "\n\n".join(_run(Report.from_json(path.read_text(encoding="utf-8"))) for path in latest)


def _run(report: Report) -> str:
    head = f"{report.machine['processor']}, {report.machine['threads']} threads, {report.date[:10]}:"
    rows = ["| network | runs as | budget | MACs, share of dense | speed-up over the best dense | efficiency |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in report.rows:
        if row.kind != "nested" or row.budget == 1:
            continue
        cells = (f"{row.budget:g}", f"{1 / row.reduction:.2f}", f"{row.speed_up:.2f}", f"{row.efficiency:.2f}")
        rows.append(f"| {row.cell.title} | {row.name} | {' | '.join(cells)} |")
    return head + "\n\n" + "\n".join(rows)


def capacity() -> str:
    """What a few budgets come to in whole patches."""
    model, patches = pictures.elastic(), pictures.PATCHES
    widths = model.settings.nest.widths
    heads = [f"patches at width {width}" for width in widths]
    rows = ["| budget | " + " | ".join(heads) + " | MACs spent |", "|" + " ---: |" * (len(widths) + 2)]
    for budget in pictures.BUDGETS:
        plan = model.plan(patches, budget)
        spent = 100 * model.macs(plan) / model.full_macs(patches)
        rows.append(f"| {budget:g} | {' | '.join(map(str, plan))} | {spent:.1f}% |")
    return "\n".join(rows)


def memory() -> str:
    """What one picture takes beside the weights, at a few budgets."""
    model, dense = pictures.elastic(), pictures.dense()
    side = dense.settings.patch * math.isqrt(pictures.PATCHES)
    image = torch.zeros(1, 3, side, side)
    with torch.inference_mode():
        whole = peak_bytes(lambda: dense(image))
        rows = ["| network | MB | of dense |", "| --- | ---: | ---: |", f"| dense | {whole / 1e6:.2f} | 1 |"]
        for budget in pictures.BUDGETS:
            taken = peak_bytes(lambda b=budget: model(image, budget=b))
            rows.append(f"| nested, {budget:g} | {taken / 1e6:.2f} | {taken / whole:.2f} |")
    return "\n".join(rows)


def least() -> str:
    """The smallest budget of the default shape."""
    return f"{pictures.elastic().least_budget(pictures.PATCHES):.2f}"


def energy() -> str:
    """How much of the energy the first eighth of the channels holds, in three orders."""
    found = pictures.energies()
    eighth = len(found["as they come"]) // 8
    told = [f"{100 * shares[eighth - 1]:.0f}% {name}" for name, shares in found.items()]
    return f"The first {eighth} of {8 * eighth} channels hold {', '.join(told)}."


def weights() -> str:
    """What the default shape adds to the parameters."""
    dense, elastic = (sum(p.numel() for p in m.parameters()) for m in (pictures.dense(), pictures.elastic()))
    return f"{100 * (elastic / dense - 1):.0f}%"


def systems() -> str:
    """How many published systems are listed."""
    return str(len(published()))


FACTS: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        dial,
        dial_note,
        proof,
        untrained,
        training,
        scratch,
        speed,
        under_load,
        memory,
        capacity,
        least,
        energy,
        weights,
        systems,
    )
}
