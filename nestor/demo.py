"""The main job from end to end on real weights and real pictures: `make demo`.

A pretrained DINOv2 ViT-S/14 learns to tell defective solar cells, becomes elastic, is tuned briefly over sampled
budgets, and is measured beside its rivals; the report is runs/demo/report.html. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from nestor.api import load, save
from nestor.data import Augment, load_splits
from nestor.measure.draw import routings
from nestor.measure.profile import print_profile, profile
from nestor.measure.report import Report, write_report
from nestor.models.merged import Merged
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform, randomly_routed
from nestor.store import write_text
from nestor.surgery.nest import nest, with_head
from nestor.training.fit import fit
from nestor.training.probe import probe
from nestor.training.schedule import Fixed
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from nestor.data import Pictures
    from nestor.measure.record import Profile
    from nestor.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Demo:
    """How much the demo does; about ten minutes on two cores as it stands. Sizes in pixels, numbers of pictures."""

    size: int = 112
    train: int = 640
    test: int = 320
    calibration: int = 128
    dense_epochs: int = 5
    dense_rate: float = 1e-3
    epochs: int = 4
    rounds: int = 5
    budgets: tuple[float, ...] = (1.0, 0.65, 0.5, 0.35, 0.25)
    shown: tuple[float, ...] = (0.8, 0.5, 0.3)
    out: Path = Path("runs/demo")


def run(demo: Demo) -> Path:
    """Do it all and return the report's path."""
    console, seconds = Console(stderr=True, highlight=False), {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        console.print(f"[bold]{name}")
        begin = time.monotonic()
        yield
        seconds[name] = f"{time.monotonic() - begin:.0f} s"

    with step("Read weights and pictures"):
        original = load("dinov2-small")
        train, test = load_splits("elpv", size=demo.size)
        train, test = train.limit(demo.train).cached(), test.limit(demo.test).cached()
    with step("Teach the dense network to tell defective cells"):
        start = probe(with_head(original, train.classes), train, l2=0.1)
        labelled = Fit(epochs=demo.dense_epochs, rate=demo.dense_rate, budgets=Fixed())
        dense = _tune(start, train, labelled, demo, "dense")
    with step("Make it elastic"):
        untuned = nest(dense, train.limit(demo.calibration).stacked())
    with step("Tune it over sampled budgets"):
        elastic = _tune(untuned, train, Fit(epochs=demo.epochs), demo, "nested", teacher=dense)
        save(elastic, demo.out / "elastic")
    with step("Measure it beside its rivals"):
        measured = profile(
            elastic,
            test,
            budgets=demo.budgets,
            dense=dense,
            rivals={
                "nested, untuned": untuned,
                "nested, random router": randomly_routed(elastic),
                "token merging": Merged(dense),
                "token pruning": Pruned(dense),
                "one width for all": Uniform(elastic),
            },
            rounds=demo.rounds,
            name="nested, tuned",
        )
        print_profile(measured, Console(width=200, highlight=False))
        write_text(demo.out / "profile.json", measured.to_json())
    return write_report(_report(elastic, untuned, test, measured, seconds, demo), demo.out / "report.html")


def _tune(model: ViT, train: Pictures, how: Fit, demo: Demo, name: str, teacher: ViT | None = None) -> ViT:
    how = replace(how, precision="bf16", augment=Augment(flip=True))
    return fit(model, train, how, teacher=teacher, out=demo.out / name)


def _report(
    elastic: ViT, untuned: ViT, test: Pictures, measured: Profile, seconds: dict[str, str], demo: Demo
) -> Report:
    nested = elastic.settings.nest
    return Report(
        title="One vision transformer, any compute budget",
        summary={
            "network": "DINOv2 ViT-S/14, pretrained, with a linear head on class token and mean patch",
            "pictures": f"ELPV solar cells, {demo.size} px: {demo.train} for training, {demo.test} held out",
            "task": "defective (defect probability 1/2 or more) or functional",
            "experts": f"{nested.experts}, of {' and '.join(map(str, nested.widths))} channels, routed once",
            "calibration": f"{demo.calibration} pictures, closed form; exact at full budget",
            "dense network": f"probed, then {demo.dense_epochs} epochs with the labels",
            "tuning": f"{demo.epochs} epochs over sampled budgets, taught by the dense network",
        }
        | {name.lower(): took for name, took in seconds.items()},
        profile=measured,
        routings=tuple(_cells(elastic, test, demo)),
        notes=(
            "Budgets and ratios count every multiply-accumulate of a forward pass, attention and head included.",
            "Yellow patches run at full width, dark ones at the narrow width. The class token always runs in full.",
            "Untuned: calibrated in closed form, no gradient step. One width for all: every patch at the widest width "
            "that fits the budget.",
            "This is a short run on a part of the pictures; `nestor prove mone` is the full one, over three seeds.",
        ),
    )


def _cells(model: ViT, test: Pictures, demo: Demo) -> Iterator[tuple[str, Figure]]:
    for name, label in (("Defective", 1), ("Functional", 0)):
        for i in [i for i, own in enumerate(test.labels) if own == label][:2]:
            figure = routings(model, test.pixels(i), demo.shown)
            yield f"{name} cell, {test.names[i]}", figure


if __name__ == "__main__":
    print(run(Demo()))
