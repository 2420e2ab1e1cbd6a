"""Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level Sparsity, simulated.

Paper: arXiv 2305.18691. Command: `nestor prove edge_moe`.

A transformer for four tasks with two of 16 experts for each token, as an accelerator of constant bandwidth runs it:
attention whose queries share a stream of keys, softmax in one pass, GELU from a table, fixed-point numbers, and a queue
of tokens for each expert, so that its weights are read once. Cycles and bytes are counted from the decisions of the
trained network about real pictures, saved as a trace and read again. Choices: numbers are rounded to the nearest and
saturate; the network is smaller than the published one, in the same proportions; energy is not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import gelu

from nestor.layers.token_order import error_of_order
from nestor.measure.accelerator import Array, compared, schedule
from nestor.measure.repeats import Repeats
from nestor.measure.task_traffic import traced
from nestor.models.tasked import Tasked, every_second, for_canvases, gated_by_task
from nestor.ops.rounded import REACH, STEP, gelu_by_table
from nestor.ops.streaming import softmax_in_one_pass
from nestor.recipes.base import Claim, Proof, claims
from nestor.surgery.fixed_point import fixed_point
from nestor.training.beside import Level
from nestor.training.compare import means
from nestor.training.pixel_tasks import NAMES, tasks_of_garments
from nestor.training.settings import Fit
from nestor.training.tasks import learn, lines, note, scores
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

TITLE = (
    "Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level Sparsity via "
    "Mixture-of-Experts"
)
ARXIV = "2305.18691"
IDEA = "On hardware of constant bandwidth order decides: tokens queue for experts, queries share a stream of keys."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `parallel` is how many queries the attention kernel holds, a divisor of the tokens."""

    pictures: int = 4000
    held_out: int = 1000
    side: int = 30
    patch: int = 5
    steps: int = 400
    batch: int = 16
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 16
    choices: int = 2
    parallel: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims, and what an untrained network's decisions about noise come to."""
        return cls(seeds=())


def build(settings: Settings) -> Tasked:
    """The network; experts are twice as wide inside as outside."""
    s, D = settings, settings.width
    mixture = partial(gated_by_task, D, 2 * D, tasks=4, experts=s.experts, choices=s.choices)
    return for_canvases(D, s.side, every_second(s.depth, D, mixture), patch=s.patch)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """The kernels against the plain ways, what a network's decisions cost in either order, and fixed-point scores."""
    torch.manual_seed(0)
    s, shown = settings, _kernels(settings)
    if not s.seeds:
        counts = _counted(s, build(s).eval(), torch.randn(4, 1, s.side, s.side), folder)
        return Proof(claims=(*shown, *_loads(s, counts)), details={})
    tasks, test = tasks_of_garments(s.pictures, s.held_out, s.side)
    found: dict[str, Any] = {"single": {}, "fixed point": {}, "counts": {}}
    for seed in s.seeds:
        torch.manual_seed(seed)
        how = Fit(steps=s.steps, batch=s.batch, rate=s.rate, seed=seed)
        model = learn(build(s), tasks, how, beside=Level(deviation=1 / s.experts))
        for kind, each in (("single", model), ("fixed point", fixed_point(model))):
            note(found, kind, scores(each, test))
        for name, values in _counted(s, model, test[0].images[:100], folder).items():
            found["counts"].setdefault(name, []).extend(values)
    lost = max(mean(found["single"][name]) - mean(found["fixed point"][name]) for name in NAMES)
    shown += claims({"score lost to fixed-point numbers, any task": (lost, "<", 0.005)})
    return Proof(claims=(*shown, *_loads(s, found["counts"])), details=found | {"counts": means(found["counts"])})


def _counted(settings: Settings, model: Tasked, images: torch.Tensor, folder: Path | None) -> dict[str, list[float]]:
    """For each task, layer and picture, what its experts take in the order of queues and of tokens."""
    D, array, decisions = settings.width, Array(parallel=settings.parallel), traced(model, images, range(4), folder)
    each = [compared(one, ((D, 2 * D), (2 * D, D)), array) for layers in decisions for one in layers]
    return {name: [value for part in each for value in part[name]] for name in each[0]}


def _loads(settings: Settings, found: dict[str, list[float]]) -> list[Claim]:
    loads, spent = found["loads, queues"], means(found)
    wanted = settings.choices * (settings.side // settings.patch) ** 2
    weights = max(a / b for a, b in zip(found["weights, queues"], found["weights, tokens"], strict=True))
    sure = {
        "whether loads ever differ from experts with tokens": (int(loads != found["experts with tokens"]), "==", 0),
        "loads of experts in a layer, at most": (max(loads), "<=", settings.experts),
        "the same in the order of tokens, at least": (min(found["loads, tokens"]), "==", wanted),
        "bytes of weights, queues over order of tokens, at most": (weights, "<=", settings.experts / wanted),
    }
    now, then = (spent[f"weights, {order}"] + spent[f"tokens, {order}"] for order in ("queues", "tokens"))
    cycles = spent["cycles, queues"], "<", spent["cycles, tokens"]
    less = {"cycles, queues against order of tokens": cycles, "bytes, queues against order of tokens": (now, "<", then)}
    return [*claims(sure, exact=True), *claims(less)]


def _kernels(settings: Settings) -> list[Claim]:
    P, N = settings.parallel, (settings.side // settings.patch) ** 2
    values, scores = torch.linspace(-9, 9, 200_001, dtype=torch.float64), 30 * torch.randn(64, 129)
    steps, tokens, task = list(schedule(N, P)), torch.randn(2, 9, settings.width), Signal(task=torch.tensor([0, 3]))
    softmax = float((softmax_in_one_pass(scores) - scores.softmax(-1)).abs().max())
    met = [(query, step.key) for step in steps for query in step.pairs]
    queued = error_of_order(build(settings).eval().feedforwards[0], tokens, task)
    rows = {
        "error, softmax in one pass": (softmax, "<=", 1e-6),
        "error, GELU from a table": (float((gelu_by_table(values) - gelu(values)).abs().max()), "<", 1e-4),
        "error, queues against order of tokens": (queued, "<=", 1e-5),
        "entries of the table": (round(REACH / STEP) + 1, "==", 177),
        "steps of attention, N (N + P - 1) / P": (len(steps), "==", N * (N + P - 1) / P),
        "pairs of query and key that are missed or met again": (len(met) + N * N - 2 * len(set(met)), "==", 0),
        "queries read": (sum(step.query is not None for step in steps), "==", N),
        "times that fewer keys are read, P queries at a time, and 0.9 P": (N * N / len(steps), ">=", 0.9 * P),
    }
    return claims(rows, exact=True)


def curves(details: dict[str, Any]) -> Repeats | None:
    """Scores of each task in single precision and in fixed point; seeds spread them."""
    if "single" not in details:
        return None
    rows = lines({kind: details[kind] for kind in ("single", "fixed point")})
    return Repeats(title="Numbers", across=f"tasks: {', '.join(NAMES)}", upward="score", lines=rows, levels={})
