"""Who takes part in a race, and who could not and why."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import runtimes
from benchmarks.networks import Logits
from benchmarks.record import Absent, Candidate
from nestor.data.scan import watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from benchmarks.networks import Networks
    from benchmarks.settings import Cell, Settings
    from nestor.measure.cost import Elastic

    Call = Callable[[], object]
    Entry = tuple[Candidate, Callable[[], Call]]


def prepare(networks: Networks, cell: Cell, settings: Settings) -> tuple[dict[Candidate, Call], list[Absent]]:
    """Build all that takes part in a cell from networks in single precision.

    Compiled networks and foreign runtimes that cannot be had are named with the reason, and so are budgets that a
    network cannot reach.
    """
    # Compiled code of earlier cells counts against a limit, beyond which torch falls back to eager silently.
    torch.compiler.reset()
    images, cast = pictures(cell), networks.to(cell.precision)
    field = [*_dense(networks, cast, images, settings), *_elastic(cast, images, settings)]
    found: dict[Candidate, Call] = {}
    absent = []
    for candidate, make in watch(field, total=len(field), what=f"Preparing {cell.title}"):
        try:
            found[candidate] = make()
        except runtimes.UnavailableError as error:
            absent.append(Absent(cell=cell.title, name=candidate.name, budget=candidate.budget, reason=str(error)))
    return found, absent


def pictures(cell: Cell, seed: int = 0) -> Tensor:
    """(batch, 3, side, side) of noise in the cell's precision."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(cell.batch, 3, cell.side, cell.side, generator=generator)
    return drawn.to(getattr(torch, cell.precision))


def _dense(single: Networks, cast: Networks, images: Tensor, settings: Settings) -> Iterator[Entry]:
    dense = partial(Candidate, kind="dense", budget=1.0, macs=cast.dense.full_macs(settings.patches(images.shape[-1])))
    for name, network in (("ours", cast.dense), ("timm", cast.timm), ("transformers", cast.transformers)):
        yield dense(name=name), partial(_eager, Logits(network), images)
        if "compiled" in settings.ways:
            yield dense(name=f"{name} compiled"), partial(runtimes.compiled, Logits(network), images)
    yield dense(name="onnxruntime"), partial(runtimes.onnxruntime, single.plain, images)
    yield dense(name="openvino"), partial(runtimes.openvino, Logits(single.timm), images)


def _elastic(cast: Networks, images: Tensor, settings: Settings) -> Iterator[Entry]:
    patches = settings.patches(images.shape[-1])
    compiled = settings.compiled_budgets if "compiled" in settings.ways else ()
    # At full budget nothing is merged, and the dense network has been timed.
    merging = [budget for budget in settings.budgets if budget < 1]
    entries: tuple[tuple[str, str, Elastic, Sequence[float], Callable[[nn.Module, Tensor], Call]], ...] = (
        ("nested", "nested", cast.nested, settings.budgets, _eager),
        ("nested published", "nested", cast.published, settings.budgets, _eager),
        ("nested compiled", "nested", cast.nested, compiled, runtimes.compiled),
        ("merged", "merged", cast.merged, merging, _eager),
    )
    for name, kind, network, budgets, make in entries:
        for budget in budgets:
            try:
                macs = network.macs(network.plan(patches, budget))
            except ValueError as error:
                yield Candidate(name=name, kind=kind, budget=budget, macs=0), partial(_refuse, str(error))
                continue
            yield (
                Candidate(name=name, kind=kind, budget=budget, macs=macs),
                partial(make, Logits(network, budget), images),
            )


def _eager(network: nn.Module, images: Tensor) -> Call:
    return partial(network, images)


def _refuse(reason: str) -> Call:
    raise runtimes.UnavailableError(reason)
