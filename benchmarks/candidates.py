"""Who takes part in a race of vision transformers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import runtimes
from benchmarks.networks import Logits
from benchmarks.record import Candidate
from benchmarks.settings import INT8
from nestor.measure.cost import parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from benchmarks.networks import Networks
    from benchmarks.runtimes import Call
    from benchmarks.settings import Cell, Settings, Vision

Entry = tuple[Candidate, "Callable[[], Call]"]


def vision_entries(vision: Vision, networks: Networks, cell: Cell, settings: Settings) -> Iterator[Entry]:
    """Candidates with what prepares them, from networks in single precision.

    Compiled networks and foreign runtimes answer only, and do not learn.
    """
    trains = cell.work == "step"
    cast = networks.to("float32" if trains else cell.precision)
    images = pictures(vision, cell)
    how = partial(runtimes.step, precision=cell.precision) if trains else runtimes.predict
    eight = cell.precision == INT8
    compiled = () if trains or eight else settings.compiled
    macs, weights = cast.dense.full_macs(vision.patches), parameters(cast.dense)
    dense = partial(Candidate, kind="dense", budget=1.0, macs=macs, weights=weights)
    others = () if eight else (("timm", cast.timm), ("transformers", cast.transformers))
    for name, network in (("ours", cast.dense), *others):
        yield dense(name=name), partial(how, Logits(network), images)
        if name in compiled:
            yield dense(name=f"{name} compiled"), partial(runtimes.compiled, Logits(network), images)
    if not trains:
        yield dense(name="onnxruntime"), partial(runtimes.onnxruntime, networks.plain, images, eight=eight)
    foreign = not trains and not eight
    if foreign:
        yield dense(name="openvino"), partial(runtimes.openvino, Logits(networks.timm), images)
        yield dense(name="ours openvino"), partial(runtimes.openvino, Logits(networks.dense), images)
    for name, network in cast.elastic.items():
        for budget in settings.budgets:
            if name == "merged" and budget == 1:
                # Nothing is merged then, and the dense network has been timed.
                continue
            kind = "merged" if name == "merged" else "nested"
            made = partial(Candidate, kind=kind, budget=budget, weights=weights)
            try:
                cost = network.macs(network.plan(vision.patches, budget))
            except ValueError as error:
                yield made(name=name, macs=0), partial(_refuse, str(error))
                continue
            yield made(name=name, macs=cost), partial(how, Logits(network, budget), images)
            if name in compiled and budget in settings.compiled_budgets:
                compile_it = partial(runtimes.compiled, Logits(network, budget), images)
                yield made(name=f"{name} compiled", macs=cost), compile_it
            if foreign:
                # Rounded to the pictures' precision there, where it must be.
                exact = Logits(networks.elastic[name], budget)
                yield made(name=f"{name} openvino", macs=cost), partial(runtimes.openvino, exact, images)


def pictures(vision: Vision, cell: Cell, seed: int = 0) -> Tensor:
    """(batch, 3, side, side) of noise; in the cell's precision, unless autocast or the network will see to that."""
    drawn = torch.randn(cell.batch, 3, vision.side, vision.side, generator=torch.Generator().manual_seed(seed))
    return drawn if cell.work == "step" or cell.precision == INT8 else drawn.to(getattr(torch, cell.precision))


def _refuse(reason: str) -> Call:
    raise runtimes.UnavailableError(reason)
