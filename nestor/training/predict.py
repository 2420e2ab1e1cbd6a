"""Running a network over a set of pictures, without gradient."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nestor.data.scan import watch
from nestor.training.settings import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from nestor.data import Examples
    from nestor.measure.cost import Elastic
    from nestor.types import Output


def predict(
    model: Elastic, pictures: Examples, budget: float | None = None, *, batch: int = 64, precision: str = "no"
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of all pictures, in single precision on the CPU.

    Args:
        model: a network with a head, or a rival that wraps one; it runs where its weights lie.
        pictures: N of them, or clips.
        budget: the network's own unless given.
        batch: pictures at a time.
        precision: `no` (single) or `bf16`.

    Raises:
        ValueError: the network has no head, or there are no pictures.
    """
    if not model.settings.classes:
        raise ValueError("predictions need a network with a head; this one has none. Give it one and fit it.")
    return _run(model, pictures, _logits, budget=budget, batch=batch, precision=precision, what="Predicting")


def features(
    model: Elastic, pictures: Examples, budget: float | None = None, *, batch: int = 64, precision: str = "no"
) -> tuple[Tensor, Tensor]:
    """The class token beside the mean of the patch tokens, (N, 2D), and labels (N,); as in `predict`.

    Raises:
        ValueError: the network has no class token, or there are no pictures.
    """
    prefix = model.settings.prefix
    if not prefix:
        raise ValueError("features need a class token; this network has prefix 0. Use its tokens.")

    def read(output: Output) -> Tensor:
        return torch.cat([output.tokens[:, 0], output.tokens[:, prefix:].mean(1)], -1)

    return _run(model, pictures, read, budget=budget, batch=batch, precision=precision, what="Reading features")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where matrices are multiplied in this precision.

    Raises:
        ValueError: the precision is neither `no` nor `bf16`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.")
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _logits(output: Output) -> Tensor:
    assert output.logits is not None
    return output.logits


@torch.no_grad()
def _run(
    model: Elastic,
    pictures: Examples,
    read: Callable[[Output], Tensor],
    *,
    budget: float | None,
    batch: int,
    precision: str,
    what: str,
) -> tuple[Tensor, Tensor]:
    if not len(pictures):
        raise ValueError("there are no pictures to run over. Load at least one.")
    device = next(model.parameters()).device

    def results() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in DataLoader(pictures, batch_size=batch, generator=torch.Generator()):
            with autocast(device, precision):
                yield read(model(images.to(device), budget=budget)).float().cpu(), labels

    steps = -(-len(pictures) // batch)
    values, labels = zip(*watch(results(), total=steps, what=what), strict=True)
    return torch.cat(values), torch.cat(labels)
