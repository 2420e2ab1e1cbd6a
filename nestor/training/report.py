"""What a run tells while it runs: a bar on a terminal, lines elsewhere, TensorBoard on request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nestor.training.losses import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch.utils.tensorboard.writer import SummaryWriter

Epoch: TypeAlias = "dict[str, object]"
"""What was noted of one epoch: its number, mean losses, and accuracies where a set for validation was given.

With a watch also what each layer's experts got over the steps that it remembers, and who of them is dead.
"""

_EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class Report:
    """Shows the steps of a run; silent unless `active`.

    Args:
        steps: of the whole run.
        done: steps done earlier.
        active: whether this process speaks.
        tensorboard: folder for TensorBoard's logs, or None.
        console: where to speak; standard error unless given.

    Raises:
        ImportError: TensorBoard is asked for and missing.
    """

    def __init__(
        self, *, steps: int, done: int, active: bool, tensorboard: Path | None = None, console: Console | None = None
    ):
        self.console = console or Console(stderr=True, quiet=not active, highlight=False)
        self.steps, self.active = steps, active
        self._writer = _writer(tensorboard, done) if tensorboard and active else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self.console, disable=not (active and self.console.is_terminal))
        self._task = self._bar.add_task("Training", total=steps, completed=done, line="")
        self._shown = self._last = time.monotonic()

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def step(self, done: int, *, parts: tuple[float, ...], budget: float, rate: float, pictures: int) -> None:
        """Tell of the step that has just ended: `pictures` shown in it, weighted loss parts."""
        if not self.active:
            return
        now = time.monotonic()
        speed, self._last = pictures / max(now - self._last, 1e-9), now
        line = f"loss {sum(parts):.4f}  budget {budget:.2f}  {speed:.0f} pictures/s"
        self._bar.update(self._task, completed=done, line=line)
        if not self.console.is_terminal and now - self._shown >= _EVERY:
            self._shown = now
            self.say(f"step {done} of {self.steps}: {line}")
        if self._writer is not None:
            values = dict(zip(PARTS, parts, strict=True)) | {"total": sum(parts)}
            for name, value in values.items():
                self._writer.add_scalar(f"loss/{name}", value, done)
            self._writer.add_scalar("budget", budget, done)
            self._writer.add_scalar("rate", rate, done)

    def loads(self, done: int, numbers: Mapping[str, float]) -> None:
        """Log what a watch saw, as `Watch.numbers` tells it."""
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, done)

    def epoch(self, epoch: Epoch, done: int) -> None:
        """Tell of an epoch that has ended after `done` steps in all."""
        accuracies = epoch.get("accuracy")
        line = f"epoch {epoch['epoch']}: loss {epoch['loss']:.4f}"
        if isinstance(accuracies, dict):
            line += "".join(f"  accuracy at {budget}: {value:.3f}" for budget, value in accuracies.items())
            if self._writer is not None:
                for budget, value in accuracies.items():
                    self._writer.add_scalar(f"accuracy/{budget}", value, done)
        if dead := epoch.get("dead"):
            line += f"  dead experts: {', '.join(f'{expert} of layer {layer}' for layer, expert in cast('Any', dead))}"
        self.say(line)
        # Validation is not part of the next step's time.
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line)


def _writer(folder: Path, done: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need tensorboard. Install it: pip install 'nestor[train]'.") from error
    # Steps that a killed run logged beyond its last checkpoint will be logged again.
    return SummaryWriter(str(folder), purge_step=done + 1)
