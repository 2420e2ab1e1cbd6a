"""GNN-MoE: Context-Aware Patch Routing using GNNs for Parameter-Efficient Domain Generalization, on cells and garments.

Paper: arXiv 2511.04008. Command: `nestor prove gnn_moe`.

In the last blocks of DINOv2 ViT-S/14, else frozen, small Kronecker experts are added to both maps of the feed-forward
part, and a graph convolution over the patches chooses among them. Learned on monocrystalline cells and judged by
polycrystalline ones, and back; learned on garments in three styles and judged by a fourth. Against a linear probe, full
tuning of those blocks, and a linear router. Choices: eight neighbours, one layer of 32 units (of the paper's graphs the
convolution only), the class token goes where the mean patch goes, two of four experts, Switch's loss, bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from nestor.data.altered import left_out_styles
from nestor.experts.lowrank import Kronecker
from nestor.layers.amended import Amended
from nestor.layers.block import Dense
from nestor.measure.adjacent import agreement
from nestor.measure.cost import parameters
from nestor.measure.left_out import by_run, left_out
from nestor.measure.points import apart
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.graph import Graph, alone
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.surgery.freeze import learning, only
from nestor.training.aims import Priced
from nestor.training.compare import means
from nestor.training.contest import Entry, cells_at, contest
from nestor.training.settings import Fit
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.experts.feedforward import FeedForward
    from nestor.measure.dots import Dots
    from nestor.models.composed import Composed

TITLE = "GNN-MoE: Context-Aware Patch Routing using GNNs for Parameter-Efficient Domain Generalization"
ARXIV = "2511.04008"
IDEA = "Small experts adapt a frozen network, and a graph of patches, not each patch alone, chooses among them."
KINDS = ("graph", "linear", "probe", "fine")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; garments are `small`, the last `adapted` blocks change, `fine` is a share of the rate."""

    size: int = 84
    small: int = 56
    cells: tuple[int, int] = (300, 300)
    garments: tuple[int, int] = (240, 200)
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


def build(settings: Settings, classes: tuple[str, ...] = ("a", "b"), kind: str = "graph") -> Composed:
    """The network with a `graph` or a `linear` router, or as a linear `probe`, or to be tuned `fine`."""
    s, first = settings, settings.depth - settings.adapted

    def layer(depth: int, one: FeedForward) -> Any:
        if depth < first or kind in ("probe", "fine"):
            return Dense(one)
        D, H = one.inward.shape[-1], one.outward.shape[-1]
        score = Graph(D, 32, s.experts) if kind == "graph" else Dot(D, s.experts)
        router = ComposedRouter(score, [Softmax()], partial(top_k, k=s.choices))
        return Amended(one, router, *(Kronecker(a, s.terms, 1, s.experts, out=b) for a, b in ((D, H), (H, D))))

    model = composed(read("dinov2-small"), classes, layer, depth=s.depth)
    parts = ("layer.router", "layer.inward", "layer.outward")
    learns = {"probe": (), "fine": tuple(f"blocks.{i}.*" for i in range(first, s.depth))}
    return only(model, ("head.*", *learns.get(kind, tuple(f"*.{part}.*" for part in parts))))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over seeds on the kind of cell and the style of garment that was left out."""
    s, proven, found = settings, _exact(settings), dict[str, Any]()
    sets = {"cells": partial(cells_at, s.size, *s.cells), "garments": partial(left_out_styles, s.small, *s.garments)}
    for name, load in sets.items() if s.seeds else ():
        found[name] = {there: _tuned(s, *parts) for there, parts in load().items()}
        proven += _claims(name, found[name])
    return Proof(claims=tuple(proven), details=found)


def _tuned(settings: Settings, learn: Pictures, test: Pictures) -> dict[str, Any]:
    s, side = settings, learn.size // 14
    aim, near = Priced(losses=((0.01, losses.switch),)), {"agreement": lambda o: agreement(o.routings, (side, side))}
    rate = dict.fromkeys(KINDS, 1.0) | {"fine": s.fine}
    entries = {kind: Entry(build=partial(build, s, learn.classes, kind), rate=rate[kind]) for kind in KINDS}
    entries |= {kind: replace(entries[kind], aim=aim, read=near) for kind in KINDS[:2]}
    return contest(entries, learn, test, Fit(epochs=s.epochs, rate=s.rate, router_rate=1.0, precision="bf16"), s.seeds)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, s = torch.randn(2, 3, settings.size, settings.size), settings
    plain, model = build(s, kind="probe").eval(), build(s).eval()
    expert, rows = Kronecker(384, s.terms, 1, 1, out=1536), torch.randn(5, 384)
    torch.nn.init.normal_(expert.u)
    u, v = expert.u[0].unflatten(0, (s.terms, 1)), expert.v[0].unflatten(1, (s.terms, 1))
    terms = [torch.kron(a, (v[:, n] @ u[n]).T.contiguous()) for n, a in enumerate(expert.mix[0])]
    score, tokens = Graph(384, 32, s.experts, neighbours=alone), torch.randn(2, 9, 384)
    torch.nn.init.normal_(score.bias)
    perceptron = F.linear(F.relu(F.linear(tokens, score.inward) + score.bias), score.outward)
    formed = apart(expert(rows, torch.tensor([5])), rows @ sum(terms))
    errors = {
        "relative error at the start": (apart(model(images).tokens, plain(images).tokens), "<=", 2e-5),
        "relative error against the formed product": (formed, "<=", 1e-5),
        "relative error, lone patches against a perceptron": (apart(score(tokens, Signal()), perceptron), "<=", 1e-5),
        "share of numbers that learn": (learning(model) / parameters(model), "<", 0.02),
    }
    return claims(errors, exact=True)


def _claims(name: str, found: dict[str, Any]) -> list[Claim]:
    score, near = means(by_run(found, "accuracy")), means(by_run(found, "agreement"))
    rows = {f"{name}: accuracy, graph against {kind}": (score["graph"], ">=", score[kind]) for kind in KINDS[1:]}
    return claims(rows | {f"{name}: agreement of neighbours": (near["graph"], ">", near["linear"])})


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Accuracies on what was left out, for cells and garments."""
    return left_out(details)
