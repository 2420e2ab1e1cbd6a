"""An Efficient General-Purpose Modular Vision Model via Multi-Task Heterogeneous Training, on four sets.

Paper: arXiv 2306.17165, with the blocks of Mod-Squad. Command: `nestor prove modular`.

Heads of attention and feed-forward networks are modules, eight of each in a block, and every task has a router of its
own that takes two. A step learns one task from its own set: classes of garments, defects of solar cells, masks; digits
come later. A loss on the mutual information of task and module makes tasks claim few of them, so that those a task does
not use can be cut, and a new task can learn its routers alone, or bring modules of its own. Choices: what was seen of
other tasks is a running mean without gradient; routers begin with zeros, hence with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.stacked import select
from nestor.layers.answers import OfMean, OfPixels
from nestor.layers.block import Dense
from nestor.layers.queries import first_head
from nestor.measure.repeats import Repeats
from nestor.measure.task_traffic import told, usage
from nestor.models.tasked import Tasked, grey_patches, modular_block, modular_router
from nestor.recipes.base import Claim, Proof
from nestor.surgery.modules import alike, cut, extended, used
from nestor.training.beside import Informed, Level
from nestor.training.compare import means
from nestor.training.set_tasks import sets
from nestor.training.settings import Fit
from nestor.training.tasks import OneAtATime, Task, learn, lines, note, scores
from nestor.types import Signal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TITLE = "An Efficient General-Purpose Modular Vision Model via Multi-Task Heterogeneous Training"
ARXIV = "2306.17165"
IDEA = "Tasks that share a network claim few of its modules each, so that it can be cut, tuned and extended by modules."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `least` is the share of a task's choices below which a module is cut."""

    pictures: int = 4000
    held_out: int = 1000
    side: int = 32
    steps: int = 500
    tuned: int = 150
    batch: int = 32
    rate: float = 0.03
    information: float = 0.03
    least: float = 0.01
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 8
    choices: int = 2

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings) -> Tasked:
    """The network, with heads for garments, cells and masks."""
    s, D = settings, settings.width
    blocks = [modular_block(D, tasks=3, experts=s.experts, choices=s.choices) for _ in range(s.depth)]
    return Tasked(grey_patches(D, s.side, 8), blocks, [OfMean(D, 10), OfMean(D, 2), OfPixels(D, 8, 1)])


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then over seeds what tasks claim, what cutting costs and how a new task is learnt."""
    if not settings.seeds:
        return Proof(claims=_exact(settings), details={})
    details = _runs(settings)
    return Proof(claims=(*_exact(settings), *_claims(details)), details=details)


def _runs(settings: Settings) -> dict[str, Any]:
    s, found = settings, {"information": {}, "scores": {}, "lost": {"unused": [], "random": []}, "digits": {}}
    (*tasks, late), (*test, judged) = sets(s.pictures, s.held_out, side=s.side)
    model = build(s)
    for seed in s.seeds:
        how = Fit(steps=s.steps, batch=s.batch, rate=s.rate, seed=seed)
        rivals = {"level": Level(deviation=1 / s.experts), "information": Informed(3, weight=s.information)}
        for name, beside in rivals.items():
            torch.manual_seed(seed)
            model = learn(build(s), tasks, how, beside=beside, draw=OneAtATime(seed=seed))
            note(found["information"], name, told(model, [task.images for task in test]))
            note(found["scores"], name, scores(model, test))
        _cut(s, model, test, found["lost"])
        short = Fit(steps=s.tuned, batch=s.batch, rate=s.rate, seed=seed)
        wider = extended(model, OfMean(s.width, 10), lambda first, experts: first)
        for way, parts in (("head", ["heads.3."]), ("routers", ["heads.3.", ".routers.3."])):
            note(found["digits"], way, scores(learn(wider, [late], short, only=parts), [judged]))
    return found


def _cut(settings: Settings, model: Tasked, test: Sequence[Task], lost: dict[str, list[float]]) -> None:
    """What each task loses without the modules that it does not use, and without as many others."""
    for task in test:
        kept = used(usage(model, task.images, task.head), settings.least)
        drawn = [torch.randperm(settings.experts)[: len(each)].tolist() for each in kept]
        whole, *less = (scores(each, [task])[task.name] for each in (model, cut(model, kept), cut(model, drawn)))
        for kind, value in zip(lost, less, strict=True):
            lost[kind].append(whole - value)


@torch.no_grad()
def _exact(settings: Settings) -> tuple[Claim, ...]:
    torch.manual_seed(0)
    D, E = settings.width, settings.experts
    model, images = build(settings).eval(), torch.randn(2, 1, settings.side, settings.side)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) if "router" in name else parameter)
    wider = extended(model, OfMean(D, 10), lambda first, experts: modular_router(D, experts, 2), more=2).eval()
    changed = [float((wider(images, task).tokens - model(images, task).tokens).abs().max()) for task in range(3)]
    block = alike(modular_block(D, tasks=1, experts=E, choices=E).eval())
    tokens, signal = torch.randn(2, 9, D), Signal(task=torch.zeros(2, dtype=torch.long))
    network = Dense(select(block.layer.experts, (0,)))(tokens)[0]
    parts = ((block.attention, first_head(block.attention, tokens)), (block.layer, network))
    off = max(float((part(tokens, signal)[0] - (1 + E * 1e-4) * plain).abs().max()) for part, plain in parts)
    rows = {"change of old tasks after extension": (max(changed), 0), "error of equal modules": (off, 1e-5)}
    return tuple(Claim(text=t, left=a, relation="<=", right=b, exact=True) for t, (a, b) in rows.items())


def _claims(found: dict[str, Any]) -> list[Claim]:
    known = {name: mean(means(layers).values()) for name, layers in found["information"].items()}
    lost, digits = means(found["lost"]), {way: means(each)["digits"] for way, each in found["digits"].items()}
    rows = {
        "information of module on task in nats, against balanced routers": (known["information"], ">", known["level"]),
        "score lost without unused modules": (lost["unused"], "<", 0.005),
        "score lost without as many others, against that": (lost["random"], ">", lost["unused"]),
        "accuracy on digits, routers and head against the head alone": (digits["routers"], ">", digits["head"]),
    }
    return [Claim(text=t, left=a, relation=sign, right=b) for t, (a, sign, b) in rows.items()]


def curves(details: dict[str, Any]) -> Repeats | None:
    """What the module tells of the task, by layer; seeds spread it."""
    if not details:
        return None
    rows = lines(details["information"])
    return Repeats(title="Modules", across="layer", upward="information in nats", lines=rows, levels={})
