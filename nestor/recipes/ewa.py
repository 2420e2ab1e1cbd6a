"""EWA: Experts Weights Averaging, on garments.

Paper: arXiv 2308.06093. Command: `nestor prove ewa`.

Every second feed-forward layer is trained as four copies that get random parts of the tokens and are drawn together
after each step; the mean of the copies is the network that remains. Against a dense network and against copies that
are averaged at the end only. Choices where the paper leaves them open: four experts, every second block, a rate that
grows linearly to one half. Averaging of weights over time, another rival of the paper, is left out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.experts.stacked import average, pull
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof
from nestor.routing.fixed import Shuffled
from nestor.surgery.grow import upcycle
from nestor.training.compare import Rival, compare, garments, means
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "EWA: Experts Weights Averaging: A New General Training Scheme for Vision Transformers"
ARXIV = "2308.06093"
IDEA = "Train copies of a layer on random parts of the tokens, draw them together after each step, and keep their mean."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `most` is the rate at which copies are drawn together in the end."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 4
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 4
    most: float = 0.5

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, most: float | None = None) -> Composed:
    """The network in training: every second layer as copies, drawn together at a rate that grows to `most`."""
    top = settings.most if most is None else most

    def draw(model: torch.nn.Module, progress: float) -> None:
        for layer in model.mixtures if isinstance(model, Composed) else ():
            pull(layer.experts, top * progress)

    model = dense(settings)
    for block in model.chain[1::2]:
        one = block.layer.experts
        assert isinstance(one, FeedForward)
        block.layer = Mixture(Shuffled(settings.experts), upcycle(one, settings.experts))
    model.after = draw if top else None
    return model


def dense(settings: Settings) -> Composed:
    """The plain network."""
    layers = [Dense(FeedForward(settings.width, 4 * settings.width, 1)) for _ in range(settings.depth)]
    return tiny(settings.width, stack(settings.width, 4, layers))


def averaged(model: Composed) -> Composed:
    """What remains: a plain network whose layers are the means of the copies."""
    new = copy.deepcopy(model)
    for block in new.chain:
        if isinstance(block.layer, Mixture):
            block.layer = Dense(average(block.layer.experts))
    return new


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies before and after averaging."""
    claims, details = _exact(settings), {}
    if settings.seeds:
        train, test = garments(settings.pictures, settings.held_out)
        rivals = {
            "dense": Rival(build=partial(dense, settings)),
            "copies": Rival(build=partial(build, settings, most=0.0), convert={"copies, averaged": averaged}),
            "EWA": Rival(build=partial(build, settings), convert={"EWA, averaged": averaged}),
        }
        how = Fit(epochs=settings.epochs, rate=settings.rate, batch=64)
        details = {"accuracy": compare(rivals, train, test, how, settings.seeds)}
        claims += _accuracy(details["accuracy"])
    return Proof(claims=tuple(claims), details=details)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, model = torch.randn(2, 3, 28, 28), build(settings)
    torch.nn.init.normal_(model.head.weight)
    same = _off(model(images).logits, averaged(model)(images).logits)
    N, rate = settings.experts, settings.most / 2
    experts = FeedForward(settings.width, 8, N)
    before = [parameter.clone() for parameter in experts.parameters() if parameter.any()]
    pull(experts, rate)
    after = [parameter.clone() for parameter in experts.parameters() if parameter.any()]
    kept = max(_off(a.sum(0), b.sum(0)) for a, b in zip(after, before, strict=True))
    shrunk = mean(float((a - a.mean(0)).norm() / (b - b.mean(0)).norm()) for a, b in zip(after, before, strict=True))
    pull(experts, (N - 1) / N)
    spread = max(float((part - part[:1]).abs().max()) for part in experts.parameters())
    meant = abs(shrunk - (1 - rate * N / (N - 1)))
    found = {
        "relative error: equal copies are the dense network": same,
        "relative error: drawing together keeps the sum of the copies": kept,
        "error: copies come nearer by 1 - b N / (N - 1)": meant,
        "error: at b = (N - 1) / N all copies coincide": spread,
    }
    return [Claim(text=text, left=left, relation="<=", right=1e-5, exact=True) for text, left in found.items()]


def _off(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


def _accuracy(found: dict[str, Any]) -> list[Claim]:
    score = means(found)
    lost = {name: score[name] - score[f"{name}, averaged"] for name in ("EWA", "copies")}
    return [
        Claim(text="accuracy, EWA against dense", left=score["EWA, averaged"], relation=">=", right=score["dense"]),
        Claim(text="accuracy lost by averaging, EWA", left=lost["EWA"], relation="<", right=0.003),
        Claim(
            text="accuracy lost by averaging, copies against EWA", left=lost["copies"], relation=">", right=lost["EWA"]
        ),
    ]
