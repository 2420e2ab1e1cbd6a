"""What one visitor sees, and how it comes to be: at once what is known, then what takes longer, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from nestor.data import MAX_PIXELS
from nestor.page import words
from nestor.page.chart import Curve, draw
from nestor.page.explore import TURNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nestor.data.decode import Item
    from nestor.page.explore import Explorer, Full, Look, Picture
    from nestor.page.samples import Sample

EMPTY = '<p class="nst-empty">Drop a picture above to begin.</p>'


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture at a budget.

    Attributes:
        picture: what is looked at.
        full: what the full network makes of it.
        look: what the network makes of it at the budget.
        likeness: of this picture at budgets of the curve, as far as it was measured.
    """

    picture: Picture
    full: Full
    look: Look
    likeness: dict[float, float]


class Visitor:
    """Someone who looks at one scene at a time, whatever they click on meanwhile."""

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.busy = Lock()

    def __deepcopy__(self, memo: object) -> Visitor:
        # gradio gives each visitor a copy of the first one, who has seen nothing.
        return Visitor()


class Parts(NamedTuple):
    """The parts of the page that change with the budget, as HTML."""

    stage: str = EMPTY
    verdict: str = ""
    chart: str = ""


class View:
    """Makes the page's parts for any visitor.

    Args:
        explorer: the network.
        samples: pictures that are offered; one that cannot be read is left out.
        curve: quality over budgets; None to measure, for each picture, how like the full network's its features are.
    """

    def __init__(self, explorer: Explorer, samples: Sequence[Sample] = (), curve: Curve | None = None):
        self.explorer, self.curve = explorer, curve
        self.samples: list[Sample] = []
        self.opened: list[Picture] = []
        for sample in samples:
            try:
                self.opened.append(explorer.open(sample.item, sample.name, sample.label))
                self.samples.append(sample)
            except (OSError, ValueError):
                continue

    def choices(self, chosen: int | None) -> str:
        """The samples as buttons."""
        return words.choices(self.samples, self.opened, chosen)

    def choose(self, visitor: Visitor, number: int, budget: float) -> Parts:
        """Show a sample.

        Raises:
            IndexError: there is no such sample.
        """
        return self._show(visitor, self.opened[number], budget)

    def open(self, visitor: Visitor, item: Item, name: str, budget: float) -> Parts | str:
        """Show a visitor's own picture; where it cannot be read, say why."""
        try:
            picture = self.explorer.open(item, name)
        except (OSError, ValueError, MemoryError) as error:
            why = str(error).rstrip(".") or type(error).__name__
            return (
                f"{name} cannot be shown: {why}. Try a JPEG, PNG or WebP of up to {MAX_PIXELS // 1_000_000} megapixels."
            )
        return self._show(visitor, picture, budget)

    def look(self, visitor: Visitor, budget: float) -> Parts:
        """Show the same picture at another budget: all that is known at once."""
        with visitor.busy:
            if visitor.scene is None:
                return Parts()
            look = self.explorer.look(visitor.scene.full, self._kept(budget))
            visitor.scene = replace(visitor.scene, look=look)
            return self._parts(visitor.scene)

    def refine(self, visitor: Visitor) -> Iterator[Parts]:
        """What is shown, then what takes longer, the curve and the times, until the visitor moves on."""
        scene = visitor.scene
        if scene is None:
            return
        yield self._parts(scene)
        for budget in self._rungs:
            if budget in scene.likeness:
                continue
            found = self.explorer.look(scene.full, budget).likeness
            if visitor.scene is not scene:
                return
            scene.likeness[budget] = found
            yield self._parts(scene)
        clock = self.explorer.clock(scene.look.plan)
        while clock is None or clock.turns < TURNS:
            clock = self.explorer.turn(scene.full, scene.look.plan)
            if visitor.scene is not scene:
                return
            yield self._parts(scene)

    def _show(self, visitor: Visitor, picture: Picture, budget: float) -> Parts:
        with visitor.busy:
            full = self.explorer.full(picture)
            look = self.explorer.look(full, self._kept(budget))
            visitor.scene = Scene(picture=picture, full=full, look=look, likeness={})
            return self._parts(visitor.scene)

    def _kept(self, budget: float) -> float:
        return min(1.0, max(self.explorer.least, budget))

    def _parts(self, scene: Scene) -> Parts:
        look, widths, labels = scene.look, self.explorer.widths, self.explorer.labels
        curve, value = self.curve, None
        if curve is None:
            curve, value = self._likeness(scene), look.likeness
        return Parts(
            stage=words.stage(scene.picture, look, widths, words.headline(look, labels)),
            verdict=words.verdict(look, self.explorer.clock(look.plan), labels),
            chart=draw(curve, look.ratio, curve.at(look.ratio) if value is None else value, rungs=len(self._rungs)),
        )

    @property
    def _rungs(self) -> tuple[float, ...]:
        return self.explorer.rungs if self.curve is None else ()

    def _likeness(self, scene: Scene) -> Curve:
        model, count = self.explorer.model, self.explorer.patches
        full = model.full_macs(count)
        points = sorted((model.macs(model.plan(count, b)) / full, value) for b, value in scene.likeness.items())
        what = "class token" if model.settings.prefix else "patches"
        return Curve(
            title="Likeness over budgets",
            measure="cosine",
            points=tuple(points),
            full=1.0,
            name="full network",
            note=f"Cosine of this picture's {what} to the full network's.",
        )
