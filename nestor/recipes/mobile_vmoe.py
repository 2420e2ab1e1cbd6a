"""Mobile V-MoE: Scaling Down Vision Transformers via Sparse Mixture-of-Experts, on garments.

Paper: arXiv 2309.04354. Command: `nestor prove mobile_vmoe`.

A small transformer whose last layers have four experts, one for a whole picture. The router is taught which classes
belong together: those that a dense network mistakes for one another on other pictures. Against the dense network,
random groups, and a router kept in balance. Choice: the mean token decides, once for all mixtures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.data.named import FASHION_CLASSES
from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.confusion import confusion, groups
from nestor.measure.cost import parameters
from nestor.measure.met import at_their_expert, most_met
from nestor.measure.over_seeds import over_seeds
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.fixed import Again
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.refine import unweighted
from nestor.routing.router import ComposedRouter
from nestor.surgery.grow import fill
from nestor.training.balance import Balance, Guide
from nestor.training.compare import Rival, garments, means, right, train
from nestor.training.predict import predict
from nestor.training.settings import FRESH

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.dots import Dots

TITLE = "Mobile V-MoE: Scaling Down Vision Transformers via Sparse Mixture-of-Experts"
ARXIV = "2309.04354"
OURS = "super-classes"
TOPS = tuple(FASHION_CLASSES.index(name) for name in ("T-shirt/top", "Pullover", "Coat", "Shirt"))
IDEA = "A whole picture goes to one expert, and the router is taught which classes belong together, not balanced."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `last` is how many layers have experts."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 4
    last: int = 2

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, last: int | None = None) -> Composed:
    """The network; without layers of experts it is dense."""
    s, L = settings, settings.last if last is None else last
    layers: list[Mixture | Dense] = [Dense(FeedForward(s.width, 4 * s.width, 1)) for _ in range(s.depth - L)]
    for place in range(L):
        first = ComposedRouter(Pooled(Dot(s.width, s.experts)), [Softmax()], partial(top_k, k=1))
        layers.append(Mixture(Again() if place else first, FeedForward(s.width, 4 * s.width, s.experts)))
    return tiny(s.width, stack(s.width, 4, layers))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies of networks and routers over seeds."""
    shown, details = _exact(settings), {}
    if settings.seeds:
        details = _runs(settings)
        shown += _accuracy(details)
    return Proof(claims=tuple(shown), details=details)


def _runs(settings: Settings) -> dict[str, Any]:
    pictures, test = garments(2 * settings.pictures, settings.held_out)
    learn, judge = (pictures.subset(range(part, len(pictures), 2)) for part in (0, 1))
    how = replace(FRESH, epochs=settings.epochs)
    found: dict[str, Any] = {"accuracy": {}, "router": {}, "groups": []}
    for seed in settings.seeds:
        dense = train(Rival(build=partial(build, settings, last=0)), learn, how, seed)
        logits, labels = predict(cast("Any", dense), judge)
        together = groups(confusion(logits.argmax(-1), labels, 10), settings.experts)
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
        guides = {OURS: together, "random groups": tuple(together[i] for i in order)}
        kinds: dict[str, Any] = {name: (settings.last, Guide(groups=each)) for name, each in guides.items()}
        kinds |= {"balanced": (settings.last, Balance()), f"{OURS}, all layers": (settings.depth, kinds[OURS][1])}
        found["groups"].append(list(together))
        found["accuracy"].setdefault("dense", []).append(right(dense, test))
        for name, (last, loss) in kinds.items():
            model = train(Rival(build=partial(build, settings, last=last), balance=(loss,)), learn, how, seed)
            found["accuracy"].setdefault(name, []).append(right(model, test))
            found["router"].setdefault(name, []).append(at_their_expert(model, test, together))
    return found


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, plain, model = torch.randn(4, 3, 28, 28), build(settings, last=0), build(settings)
    torch.nn.init.normal_(plain.head.weight)
    model = fill(model, plain)
    first = model.mixtures[0].router
    assert isinstance(first, ComposedRouter)
    first.refinements = (unweighted,)
    error = float((model(images).logits - plain(images).logits).norm() / plain(images).logits.norm())
    experts = sum(parameters(layer.experts) for layer in model.mixtures)
    met = parameters(model) - experts + experts // settings.experts
    wanted = parameters(plain) + settings.experts * settings.width
    rows = {
        "relative error against dense, equal experts": (error, "<=", 1e-5),
        "experts that a picture meets in a layer": (most_met(model(images).routings), "==", 1),
        "parameters a picture meets: dense and router": (met, "==", wanted),
    }
    return claims(rows, exact=True)


def _accuracy(found: dict[str, Any]) -> list[Claim]:
    score, router = means(found["accuracy"]), means(found["router"])
    signs = {"dense": ">=", "random groups": ">", "balanced": ">="}
    rows = {f"accuracy, {OURS} against {name}": (score[OURS], sign, score[name]) for name, sign in signs.items()}
    rows["accuracy of the router, last layers against all"] = (router[OURS], ">", router[f"{OURS}, all layers"])
    most = [max(Counter(each[top] for top in TOPS).values()) for each in found["groups"]]
    rows["T-shirt, pullover, coat and shirt, how many share a group, fewest of any seed"] = (min(most), "==", len(TOPS))
    return claims(rows)


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Accuracies of networks, and of routers, over seeds."""
    across = {"accuracy": "accuracy", "router": "pictures at the expert of their class, share"}
    return tuple(over_seeds(details[what], OURS, what, across[what]) for what in across if details) or None
