"""The page in gradio's terms: where things stand, and what happens when one of them is used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.themes import Base

from nestor.page import words
from nestor.page.view import Parts, Visitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nestor.page.view import View

START = 0.5
STYLE = Path(__file__).with_name("page.css")
# A press tells which sample; the others are released here, so that the pressed one keeps the focus.
_PRESS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  element.querySelectorAll('button').forEach((each) => each.setAttribute('aria-pressed', each === button));
  trigger('select', {number: Number(button.dataset.index)});
});
"""


def build(view: View, name: str) -> gr.Blocks:
    """The page of a network.

    Args:
        view: makes what it shows.
        name: what the network is called.
    """
    explorer = view.explorer

    def begin(visitor: Visitor, budget: float) -> Parts:
        return view.choose(visitor, 0, budget) if view.opened else Parts()

    def choose(visitor: Visitor, budget: float, event: gr.EventData) -> tuple[str, ...]:
        return ("", *view.choose(visitor, event.number, budget))

    def opened(file: str, visitor: Visitor, budget: float) -> tuple[Any, ...]:
        parts = view.open(visitor, file, Path(file).name, budget)
        if isinstance(parts, str):
            return (gr.skip(), words.notice(parts), *[gr.skip()] * len(Parts._fields))
        return (view.choices(None), "", *parts)

    def refine(visitor: Visitor) -> Iterator[tuple[Any, ...]]:
        # Without a single yield gradio would empty what is shown.
        yield gr.skip(), gr.skip()
        for parts in view.refine(visitor):
            yield parts.verdict, parts.chart

    html = partial(gr.HTML, apply_default_css=False)
    with gr.Blocks(title=f"{name} at any budget", analytics_enabled=False, fill_width=True) as page:
        visitor = gr.State(Visitor())
        html(words.heading(explorer, name))
        with gr.Row(elem_id="nst-choose"):
            own = gr.File(label="Your picture", file_types=["image"], height=96, show_label=False, elem_id="nst-own")
            samples = html(view.choices(0), js_on_load=_PRESS, elem_id="nst-samples")
        notice = html("", elem_id="nst-notice")
        with gr.Row(elem_id="nst-main"):
            with gr.Column(scale=8, min_width=340):
                stage = html(elem_id="nst-stage")
                budget = gr.Slider(
                    explorer.least,
                    1.0,
                    value=max(START, explorer.least),
                    step=0.01,
                    label="Budget",
                    info="Share of the full network's multiply-accumulates that may be spent",
                    elem_id="nst-budget",
                    buttons=[],
                )
            with gr.Column(scale=5, min_width=340):
                verdict = html(elem_id="nst-verdict")
                chart = html(elem_id="nst-chart")
        shown = [stage, verdict, chart]
        # While one look is on its way the last position of a slider that is dragged waits, and only that.
        now: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": stage, "api_visibility": "private"}
        later: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        for event in (
            page.load(begin, [visitor, budget], shown, **now),
            budget.input(view.look, [visitor, budget], shown, trigger_mode="always_last", concurrency_limit=4, **now),
            samples.select(choose, [visitor, budget], [notice, *shown], trigger_mode="always_last", **now),
            own.upload(opened, [own, visitor, budget], [samples, notice, *shown], **now),
        ):
            event.then(refine, [visitor], [verdict, chart], concurrency_limit=4, **later)
    return page


def theme() -> Base:
    """Colours and the fonts that are on every machine, so that none is fetched."""
    return Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
