"""What a step of training costs: forward and backward of a nested network beside dense ones."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from benchmarks.candidates import pictures
from benchmarks.judge import judge
from benchmarks.networks import Logits
from benchmarks.races import timed
from benchmarks.record import Candidate
from nestor.measure.cost import parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.floor import Rates
    from benchmarks.networks import Networks
    from benchmarks.record import Row
    from benchmarks.settings import Cell, Settings


def race_steps(networks: Networks, cell: Cell, settings: Settings, rates: Rates) -> tuple[Row, ...]:
    """Time the way to the loss, and the whole step with the way back; the optimiser is left out.

    Args:
        networks: in single precision; autocast casts, as in `nestor.training`.
        cell: size, pictures and the precision of autocast.
        settings: rounds and the nested network's budget.
        rates: what the machine can do.
    """
    nets = networks.to("float32")
    images = pictures(replace(cell, precision="float32"))
    labels = torch.arange(cell.batch) % settings.classes
    patches, budget = settings.patches(cell.side), settings.training_budget
    dense = partial(Candidate, kind="dense", budget=1.0, macs=nets.dense.full_macs(patches))
    macs = nets.nested.macs(nets.nested.plan(patches, budget))
    runs: dict[Candidate, nn.Module] = {
        dense(name="ours"): Logits(nets.dense),
        dense(name="timm"): Logits(nets.timm),
        dense(name="transformers"): Logits(nets.transformers),
        Candidate(name="nested", kind="nested", budget=budget, macs=macs): Logits(nets.nested, budget),
    }
    works = (replace(cell, work="forward"), replace(cell, work="step"))
    calls = {
        (work, candidate): partial(_run, network.train(), images, labels, work)
        for candidate, network in runs.items()
        for work in works
    }
    timings = timed(calls, settings, f"{cell.title}, training")
    rows: list[Row] = []
    for work in works:
        mine = {candidate: timing for (at, candidate), timing in timings.items() if at == work}
        floors = {c: rates.floor_ms(work, c.macs, parameters(nets.dense)) for c in mine}
        rows += judge(work, mine, floors)
    return tuple(rows)


def _run(network: nn.Module, images: Tensor, labels: Tensor, cell: Cell) -> None:
    kind = getattr(torch, cell.precision)
    with nullcontext() if kind == torch.float32 else torch.autocast(images.device.type, kind):
        loss = F.cross_entropy(network(images).float(), labels)
    if cell.work == "step":
        loss.backward()
        network.zero_grad(set_to_none=True)
