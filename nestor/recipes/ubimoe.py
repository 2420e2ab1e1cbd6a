"""UbiMoE: A Ubiquitous Mixture-of-Experts Vision Transformer Accelerator With Hybrid Computation Pattern, simulated.

Paper: arXiv 2502.05602. Command: `nestor prove ubimoe`.

Attention has a streaming kernel, all linear maps share one kernel of several units, and the two work on different
pictures at a time, so that the slower one sets the pace. A genetic algorithm shares the multipliers out between them:
tiles, units and bits of the linear kernel, and by bisection the least parallelism that keeps attention no slower.
Cycles are counted from the decisions of a trained network about real pictures. Choices: the cost model; a number of 32
bits takes four multipliers; where the parallelism that is wanted does not fit, the most that fits is taken; each budget
is searched afresh, so that more multipliers need not help by themselves; far fewer trials are less than a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.measure.accelerator import Array, Encoder, dealt, pinned, queues
from nestor.measure.repeats import Repeats
from nestor.measure.search import exhaustive, genetic
from nestor.measure.sharing import Shared
from nestor.measure.task_traffic import traced
from nestor.models.tasked import Tasked, every_second, for_canvases, gated_by_task
from nestor.ops.attention import attend
from nestor.ops.streaming import attend_fused
from nestor.recipes.base import Claim, Proof, claims
from nestor.training.beside import Level
from nestor.training.pixel_tasks import tasks_of_garments
from nestor.training.settings import Fit
from nestor.training.tasks import learn

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.types import Sparse

TITLE = "UbiMoE: A Ubiquitous Mixture-of-Experts Vision Transformer Accelerator With Hybrid Computation Pattern on FPGA"
ARXIV = "2502.05602"
IDEA = "Attention streams, all linear maps share one kernel, and a search shares the multipliers out between the two."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `budgets` are numbers of multipliers, `memory` is bytes on the chip."""

    pictures: int = 4000
    traced: int = 6
    side: int = 30
    patch: int = 5
    steps: int = 300
    batch: int = 16
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 16
    choices: int = 2
    budgets: tuple[int, ...] = (256, 512, 1024, 2048)
    memory: int = 65536
    space: tuple[tuple[int, ...], ...] = (*[(2, 3, 4, 6, 8, 12, 16, 24, 48)] * 2, tuple(range(1, 25)), (16, 32))
    population: int = 48

    @classmethod
    def quick(cls) -> Settings:
        """No training: the decisions are an untrained network's about noise, and there is one budget."""
        return cls(seeds=(), traced=1, budgets=(512,))


def build(settings: Settings) -> Tasked:
    """The network whose decisions are traced."""
    s, D = settings, settings.width
    mixture = partial(gated_by_task, D, 2 * D, tasks=4, experts=s.experts, choices=s.choices)
    return for_canvases(D, s.side, every_second(s.depth, D, mixture), patch=s.patch)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """The attention kernel, and for each trace the search under every budget and the two ways to deal out tokens."""
    s = settings
    torch.manual_seed(0)
    found: dict[str, Any] = {"genetic": {}, "exhaustive": {}, "tried": {}, "dealt": [], "pinned": []}
    if s.seeds:
        tasks, test = tasks_of_garments(s.pictures, s.traced, s.side)
        for seed in s.seeds:
            torch.manual_seed(seed)
            how = Fit(steps=s.steps, batch=s.batch, rate=s.rate, seed=seed)
            model = learn(build(s), tasks, how, beside=Level(deviation=1 / s.experts))
            _simulate(s, traced(model, test[0].images, range(4), folder), seed, found)
    else:
        _simulate(s, traced(build(s).eval(), torch.randn(s.traced, 1, s.side, s.side), range(4), folder), 0, found)
    return Proof(claims=(*_exact(s), *_claims(s, found)), details=found)


def _simulate(settings: Settings, decisions: list[list[Sparse]], seed: int, found: dict[str, Any]) -> None:
    s, D, N = settings, settings.width, (settings.side // settings.patch) ** 2
    expert = ((D, 2 * D), (2 * D, D))
    shape = Encoder(tokens=N, width=D, depth=s.depth, dense=((D, 4 * D), (4 * D, D)), expert=expert)
    # Of each picture and task, the queues of all layers.
    items = [item for layers in decisions for item in zip(*map(queues, layers), strict=True)]
    shared = Shared(encoder=shape, items=items, memory=s.memory)
    for budget in s.budgets:
        pace = partial(shared.pace, multipliers=budget)
        every, some = exhaustive(s.space, pace), genetic(s.space, pace, population=s.population, seed=seed)
        for name, value in (("genetic", some.cost), ("exhaustive", every.cost), ("tried", some.tried / every.tried)):
            found[name].setdefault(str(budget), []).append(value)
    array = Array(units=4)
    layers = [queue for item in items for queue in item]
    skewed = sorted(layers, key=max)[len(layers) // 2 :]
    found["dealt"].append(mean(dealt(queue, expert, array) for queue in skewed))
    found["pinned"].append(mean(pinned(queue, expert, array) for queue in skewed))


def _exact(settings: Settings) -> list[Claim]:
    query, key, value = (torch.randn(2, 3, 129, 16) for _ in range(3))
    error = float((attend_fused(query, key, value) - attend(query, key, value)).abs().max())
    array, maps = Array(units=4), ((settings.width, 2 * settings.width),)
    tiles = -(-settings.width // 16) * -(-2 * settings.width // 16)
    spent = dealt((0, 1, 4, 9), maps, array)
    rows = {"error, streaming attention": (error, "<=", 1e-5), "cycles dealt to four units": (spent, "==", 5 * tiles)}
    return claims(rows, exact=True)


def _claims(settings: Settings, found: dict[str, Any]) -> list[Claim]:
    budgets = [str(budget) for budget in settings.budgets]
    runs = [(found["genetic"][b], found["exhaustive"][b]) for b in budgets]
    over = max(a / b for some, every in runs for a, b in zip(some, every, strict=True))
    rise = max((b / a for less, more in pairwise(runs) for a, b in zip(less[0], more[0], strict=True)), default=1.0)
    tried = max(share for b in budgets for share in found["tried"][b])
    rows = {
        "cycles found over the fewest there are, any budget and trace": (over, "<=", 1.05),
        "share of all choices that were tried, at most": (tried, "<", 0.1),
        "cycles with a larger budget over those with a smaller, at most": (rise, "<=", 1.0),
        "cycles, tokens dealt in turn against experts pinned": (mean(found["dealt"]), "<", mean(found["pinned"])),
    }
    return claims(rows)


def curves(details: dict[str, Any]) -> Repeats:
    """Cycles of a picture by the number of multipliers; traces spread them."""
    rows = {kind: {float(b): v for b, v in details[kind].items()} for kind in ("genetic", "exhaustive")}
    return Repeats(title="Search", across="multipliers", upward="cycles of a picture", lines=rows, levels={})
