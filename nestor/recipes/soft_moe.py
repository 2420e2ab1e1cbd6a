"""Soft MoE: From Sparse to Soft Mixtures of Experts, on garments.

Paper: arXiv 2308.00951. Command: `nestor prove soft_moe`.

A vision transformer of 49 tokens whose last half of feed-forward layers are soft mixtures of 48 slots, over 8, 16 or 48
experts, against a dense one, one whose tokens choose an expert and one whose experts choose tokens, all at about the
same multiply-accumulates. Wall-clock time is not among the claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof
from nestor.routing.adjust import Softmax
from nestor.routing.choose import expert_choice, soft, top_k
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import drop
from nestor.routing.router import ComposedRouter
from nestor.training.balance import Balance
from nestor.training.compare import Rival, compare, garments, means
from nestor.training.settings import Fit
from nestor.types import Signal, Soft

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TITLE = "Soft MoE: From Sparse to Soft Mixtures of Experts"
ARXIV = "2308.00951"
IDEA = "Each slot of an expert takes a mixture of all tokens, each token a mixture of all slots: nothing is dropped."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; slots are those of all experts together."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 4
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    slots: int = 48
    experts: tuple[int, ...] = (8, 16, 48)

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, layer: Callable[[], Mixture | Dense] | None = None) -> Composed:
    """The network; its last half has soft mixtures of the middle number of experts, or other layers if given."""
    make = layer or partial(softly, settings, settings.experts[len(settings.experts) // 2])
    half = settings.depth // 2
    layers = [dense(settings) for _ in range(settings.depth - half)] + [make() for _ in range(half)]
    return tiny(settings.width, stack(settings.width, 4, layers))


def dense(settings: Settings) -> Mixture | Dense:
    """One network for all tokens."""
    return Dense(FeedForward(settings.width, 4 * settings.width, 1))


def softly(settings: Settings, experts: int) -> Mixture:
    """A soft mixture."""
    slots = settings.slots // experts
    router = ComposedRouter(Slots(settings.width, experts, slots=slots), [], partial(soft, slots=slots))
    return Mixture(router, FeedForward(settings.width, 4 * settings.width, experts))


def sparsely(settings: Settings, experts: int, *, by_token: bool) -> Mixture:
    """A mixture whose tokens choose one expert, or whose experts choose an even share of the tokens."""
    choice = partial(top_k, k=1) if by_token else partial(expert_choice, factor=1.0)
    refinements = [partial(drop, factor=1.0)] if by_token else []
    router = ComposedRouter(Dot(settings.width, experts), [Softmax()], choice, refinements)
    return Mixture(router, FeedForward(settings.width, 4 * settings.width, experts))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties of the mixture, then accuracies over seeds."""
    claims, details = _exact(settings), {}
    if settings.seeds:
        train, test = garments(settings.pictures, settings.held_out)
        few = settings.experts[0]
        rivals = {"dense": Rival(build=lambda: build(settings, partial(dense, settings)))}
        for name, by_token in (("tokens choose", True), ("experts choose", False)):
            layer = partial(sparsely, settings, few, by_token=by_token)
            losses = (Balance(),) if by_token else ()
            rivals[name] = Rival(build=partial(build, settings, layer), balance=losses)
        for experts in settings.experts:
            rivals[f"soft, {experts} experts"] = Rival(
                build=partial(build, settings, partial(softly, settings, experts))
            )
        how = Fit(epochs=settings.epochs, rate=settings.rate, batch=64)
        details = {"accuracy": compare(rivals, train, test, how, settings.seeds)}
        claims += _accuracy(settings, details["accuracy"])
    return Proof(claims=tuple(claims), details=details)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    layer, tokens, order = softly(settings, settings.experts[0]), torch.randn(2, 49, settings.width), torch.randperm(49)
    answer, (routing,) = layer(tokens)
    assert isinstance(routing, Soft)
    permuted = layer(tokens[:, order])[0]
    alone = layer(tokens[:1])[0]
    layer.router.get_parameter("score.phi").zero_()
    even = layer.router(tokens, Signal()).dispatch(tokens).unflatten(0, (settings.experts[0], 2, -1))
    images = torch.randn(2, 3, 28, 28)
    spent = [net.macs(net(images), 2, 49) for net in (build(settings), build(settings, partial(dense, settings)))]

    errors = {
        "what a slot takes adds up to one": routing.give.sum(-1) - 1,
        "what a token takes adds up to one": routing.take.sum((2, 3)) - 1,
        "permuted tokens get permuted answers": permuted - answer[:, order],
        "other pictures change nothing": alone - answer[:1],
        "without weights every slot is the mean token": even - tokens.mean(1)[None, :, None],
    }
    return [
        *(
            Claim(text=f"error: {text}", left=float(off.abs().max()), relation="<=", right=1e-5, exact=True)
            for text, off in errors.items()
        ),
        Claim(text="multiply-accumulates over dense", left=spent[0] / spent[1], relation="<=", right=1.15, exact=True),
    ]


def _accuracy(settings: Settings, found: dict[str, Any]) -> list[Claim]:
    mean = means(found)
    ladder = [mean[f"soft, {experts} experts"] for experts in settings.experts]
    pairs = {
        "soft against experts choose": (ladder[-1], mean["experts choose"]),
        "soft against tokens choose": (ladder[-1], mean["tokens choose"]),
        "experts choose against dense": (mean["experts choose"], mean["dense"]),
        "soft, most against fewest experts": (ladder[-1], ladder[0]),
    }
    return [Claim(text=f"accuracy, {text}", left=a, relation=">=", right=b) for text, (a, b) in pairs.items()]
