"""M3ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning, on garments.

Paper: arXiv 2210.14793. Command: `nestor prove m3vit`.

One transformer for four tasks from the pixels of a canvas: class, foreground, edges and their directions. In every
second block each task has a router of its own over 16 experts, of which a token takes four, which cost what one dense
network costs. Against a dense network with all heads, and a network for each task, all of one width and depth, trained
for as many steps. Choices: noise has a deviation of 1/16; the chosen probabilities do not add up to one; all tasks
weigh the same; scores are the share of right classes, intersection over union, correlation and mean cosine. One task is
held against what the dense network spends on all four, its trunk once and each head: four tasks of ours, one after the
other, cost four trunks. The published variant of one router that is told the task can be built too, and is not trained
unless `rivals` names it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.layers.token_order import error_of_order
from nestor.measure.over_seeds import over_seeds
from nestor.measure.task_traffic import apart
from nestor.models.tasked import Tasked, every_second, for_canvases, gated_by_task, gated_knowing_task
from nestor.recipes.base import Claim, Proof, claims
from nestor.training.beside import Level
from nestor.training.compare import means
from nestor.training.pixel_tasks import NAMES, tasks_of_garments
from nestor.training.settings import Fit
from nestor.training.tasks import learn, note, scores
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.dots import Dots

TITLE = (
    "M3ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning with Model-Accelerator Co-design"
)
ARXIV = "2210.14793"
IDEA = "Every task has a router of its own over experts that all tasks share, so that one task wakes only its own path."

RIVALS = {"a router for each task": gated_by_task, "one router told the task": gated_knowing_task, "dense": None}
OURS = next(iter(RIVALS))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `side` is that of a canvas in pixels."""

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
    choices: int = 4
    rivals: tuple[str, ...] = (OURS, "dense")

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, kind: str = OURS, heads: tuple[int, ...] = (0, 1, 2, 3)) -> Tasked:
    """The network with a kind of layer in every second block, and some of the heads."""
    s, mixture = settings, RIVALS[kind]
    routed = mixture and partial(mixture, s.width, s.width, tasks=4, experts=s.experts, choices=s.choices)
    return for_canvases(s.width, s.side, every_second(s.depth, s.width, routed), heads, patch=s.patch)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then scores of the tasks over seeds and where the routers of the tasks send their tokens."""
    shown, details = _exact(settings), {}
    if settings.seeds:
        details = _runs(settings)
        shown += _claims(details)
    return Proof(claims=tuple(shown), details=details)


def _runs(settings: Settings) -> dict[str, Any]:
    tasks, test = tasks_of_garments(settings.pictures, settings.held_out, settings.side)
    found: dict[str, Any] = {"scores": {}, "relative": {}, "divergence": {"tasks": [], "halves": []}}
    for seed in settings.seeds:
        how = Fit(steps=settings.steps, batch=settings.batch, rate=settings.rate, seed=seed)
        single: dict[str, float] = {}
        for head in range(4):
            torch.manual_seed(seed)
            learnt, judged = ([replace(part[head], head=0)] for part in (tasks, test))
            single |= scores(learn(build(settings, "dense", (head,)), learnt, how), judged)
        every = {"a network for each task": single}
        for kind in settings.rivals:
            torch.manual_seed(seed)
            level = None if RIVALS[kind] is None else Level(deviation=1 / settings.experts)
            model = learn(build(settings, kind), tasks, how, beside=level)
            every[kind] = scores(model, test)
            if kind == OURS:
                for name, value in zip(found["divergence"], apart(model, test[0].images, range(4)), strict=True):
                    found["divergence"][name].append(value)
        for kind, score in every.items():
            relative = mean(score[name] / single[name] for name in NAMES)
            found["relative"].setdefault(kind, []).append(relative)
            note(found["scores"], kind, score)
    return found


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    s, model, plain = settings, build(settings).eval(), build(settings, "dense")
    images, patches, tokens = torch.randn(2, 1, s.side, s.side), (s.side // s.patch) ** 2, torch.randn(2, 9, s.width)
    error = error_of_order(model.feedforwards[0], tokens, Signal(task=torch.tensor([0, 3])))
    one = [model.macs(model(images, task), patches, [task]) for task in range(4)]
    every = plain.macs(plain(images, 1), patches, range(4))
    routers = s.depth // 2 * patches * s.experts * s.width
    over = one[1] - routers - plain.macs(plain(images, 1), patches, [1])
    rows = {
        "error, expert by expert against token by token": (error, "<=", 1e-5),
        "multiply-accumulates of one task beyond a dense network and the routers": (over, "==", 0),
        "multiply-accumulates, the dearest task against one pass of the dense network for all": (max(one), "<", every),
    }
    return claims(rows, exact=True)


def _claims(found: dict[str, Any]) -> list[Claim]:
    score, loads = means(found["relative"]), means(found["divergence"])
    rows = {
        "score relative to single networks, against dense": (score[OURS], ">=", score["dense"]),
        "divergence of loads, tasks against halves of the pictures": (loads["tasks"], ">", loads["halves"]),
    }
    return claims(rows)


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Scores of each task, over seeds."""
    if not details:
        return None
    ways = details["scores"]
    return tuple(over_seeds({way: ways[way][task] for way in ways}, OURS, task, "score") for task in NAMES)
