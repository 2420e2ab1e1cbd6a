"""GNN-MoE: Context-Aware Patch Routing using GNNs for Parameter-Efficient Domain Generalization, on real solar cells.

Paper: arXiv 2511.04008. Command: `nestor prove gnn_moe`.

The first blocks of DINOv2 ViT-S/14 stay as they are; in the last of them small Kronecker experts are added to both maps
of the feed-forward part, and a graph convolution over the patches chooses among them. Learned on monocrystalline cells
and judged on polycrystalline ones, and back. Against a linear probe, fine-tuning those blocks, and the same experts
behind a linear router. Choices: eight neighbours, one graph layer of 32 units, the class token goes where the mean
patch goes, two of four experts, one decision for both maps, Switch's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from nestor.experts.lowrank import Kronecker
from nestor.layers.amended import Amended
from nestor.layers.block import Dense
from nestor.measure.adjacent import agreement
from nestor.measure.cost import parameters
from nestor.measure.points import apart, over_cost
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.graph import Graph, alone
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.surgery.freeze import learning, only
from nestor.training.aims import Priced
from nestor.training.contest import Entry, cells_at, contest
from nestor.training.settings import Fit
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.experts.feedforward import FeedForward
    from nestor.models.composed import Composed

TITLE = "GNN-MoE: Context-Aware Patch Routing using GNNs for Parameter-Efficient Domain Generalization"
ARXIV = "2511.04008"
IDEA = "Small experts adapt a frozen network, and a graph of patches, not each patch alone, chooses among them."
CLASSES = ("functional", "defective")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; the last `adapted` of `depth` blocks get experts, `fine` times the rate fine-tunes."""

    size: int = 84
    pictures: int = 300
    held_out: int = 400
    epochs: int = 2
    rate: float = 1e-2
    fine: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    depth: int = 8
    adapted: int = 4
    experts: int = 4
    choices: int = 2
    terms: int = 8

    @classmethod
    def quick(cls) -> Settings:
        """No training and small pictures: the exact claims only."""
        return cls(seeds=(), size=42)


def build(settings: Settings, kind: str = "graph") -> Composed:
    """The network with a `graph` or a `linear` router, or as a linear `probe`, or to be tuned `fine`."""
    s, first = settings, settings.depth - settings.adapted

    def layer(depth: int, one: FeedForward) -> Any:
        if depth < first or kind in ("probe", "fine"):
            return Dense(one)
        D, H = one.inward.shape[-1], one.outward.shape[-1]
        score = Graph(D, 32, s.experts) if kind == "graph" else Dot(D, s.experts)
        router = ComposedRouter(score, [Softmax()], partial(top_k, k=s.choices))
        return Amended(one, router, *(Kronecker(a, s.terms, 1, s.experts, out=b) for a, b in ((D, H), (H, D))))

    model = composed(read("dinov2-small"), CLASSES, layer, depth=s.depth)
    parts = ("layer.router", "layer.inward", "layer.outward")
    learns = {"probe": (), "fine": tuple(f"blocks.{i}.*" for i in range(first, s.depth))}
    return only(model, ("head.*", *learns.get(kind, tuple(f"*.{part}.*" for part in parts))))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies on the other kind of cell over seeds."""
    claims, found, s = _exact(settings), dict[str, Any](), settings
    if s.seeds:
        aim, grid = Priced(losses=((0.01, losses.switch),)), (s.size // 14, s.size // 14)
        near = {"agreement": lambda output: agreement(output.routings, grid)}
        entries = {"probe": Entry(build=partial(build, s, "probe"))}
        entries |= {kind: Entry(build=partial(build, s, kind), aim=aim, read=near) for kind in ("graph", "linear")}
        entries["fine"] = Entry(build=partial(build, s, "fine"), rate=s.fine)
        how = Fit(epochs=s.epochs, rate=s.rate, batch=32, router_rate=1.0)
        for there, (learn, test) in cells_at(s.size, s.pictures, s.held_out).items():
            found[there] = contest(entries, learn, test, how, s.seeds)
        claims += _claims(found)
    return Proof(claims=tuple(claims), details=found)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, s = torch.randn(2, 3, settings.size, settings.size), settings
    plain, model = build(s, "probe").eval(), build(s).eval()
    share = learning(model) / parameters(model)
    expert, rows = Kronecker(384, s.terms, 1, 1, out=1536), torch.randn(5, 384)
    torch.nn.init.normal_(expert.u)
    u, v = expert.u[0].unflatten(0, (s.terms, 1)), expert.v[0].unflatten(1, (s.terms, 1))
    terms = [torch.kron(a, (v[:, n] @ u[n]).T.contiguous()) for n, a in enumerate(expert.mix[0])]
    score, tokens = Graph(384, 32, s.experts, neighbours=alone), torch.randn(2, 9, 384)
    torch.nn.init.normal_(score.bias)
    perceptron = F.linear(F.relu(F.linear(tokens, score.inward) + score.bias), score.outward)
    errors = {
        "relative error at the start": (apart(model(images).tokens, plain(images).tokens), 2e-5),
        "relative error against the formed product": (apart(expert(rows, torch.tensor([5])), rows @ sum(terms)), 1e-5),
        "relative error, a graph of lone patches against a perceptron": (
            apart(score(tokens, Signal()), perceptron),
            1e-5,
        ),
        "share of numbers that learn": (share, 0.02),
    }
    return [Claim(text=text, left=a, relation="<=", right=b, exact=True) for text, (a, b) in errors.items()]


def _claims(found: dict[str, Any]) -> list[Claim]:
    def over(what: str, name: str) -> float:
        return mean(value for there in found.values() for value in there[what][name])

    pairs = [("accuracy", "linear"), ("accuracy", "probe"), ("accuracy", "fine"), ("agreement", "linear")]
    rows = {f"{what}, graph against {name}": (over(what, "graph"), over(what, name)) for what, name in pairs}
    return [Claim(text=text, left=a, relation=">=", right=b) for text, (a, b) in rows.items()]


def curves(details: dict[str, Any]) -> tuple[Any, ...] | None:
    """Accuracies over costs, for either kind of cell."""
    return tuple(over_cost(found, f"Solar cells {there}") for there, found in details.items()) or None
