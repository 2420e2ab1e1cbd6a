"""UoE: Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed Transformer, on a text.

Paper: arXiv 2503.02495. Command: `nestor prove uoe_language`.

A small language model cut as tensor parallelism would cut it: a head, or a slice of the hidden units, is an expert, and
each letter marks half of them; a head attends among the earlier of its own letters. To keep the longest lists only, or
to choose experts for a whole text, would tell of the future, so that letters choose by marks alone. Against the dense
network and Switch; as decomposed, and half as wide again, at no more than Switch's cost. Choices: softmax for each
letter; slices share the bias evenly; learned places; Switch's loss, lest lists be long and dear. The text is Python's
own reference: the King James bible, or the paper's text, does not come with what Nestor installs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense, SelfAttention
from nestor.layers.causal import Causal
from nestor.layers.heads import SeparateHeads, taken
from nestor.layers.mixture import Mixture
from nestor.layers.routed import RoutedBlock
from nestor.measure.dots import Dots
from nestor.measure.points import apart
from nestor.models.causal import CausalModel
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.always import everyone
from nestor.routing.choose import expert_choice, top_k
from nestor.routing.learned import Dot
from nestor.routing.marks import Marks, relative
from nestor.routing.router import ComposedRouter
from nestor.surgery.slices import sliced
from nestor.training.compare import means
from nestor.training.next_word import Priced, next_letters, perplexity, swayed
from nestor.training.settings import FRESH
from nestor.training.tasks import learn

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "UoE: Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed Transformer"
ARXIV = "2503.02495"
IDEA = "Shards of a causal transformer get letters of their own, and no letter hears of what comes later."
LETTERS = 128


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; the dense network has `experts` heads, and `length` is that of a piece of text."""

    length: int = 128
    steps: int = 300
    batch: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 64
    depth: int = 4
    experts: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, wide: float = 1.0, marks: bool = True) -> CausalModel:
    """The network, so many times as wide as the dense one; without `marks` alone slices take half of the letters."""
    D, E, unit = settings.width, round(wide * settings.experts), 4 * settings.width // settings.experts

    def block() -> RoutedBlock:
        k, score = E // 2, (lambda: Dot(D, E))
        alone = partial(ComposedRouter, adjustments=[Softmax()], choice=partial(top_k, k=k), refinements=[relative])
        half = partial(expert_choice, factor=float(k))
        router = alone(score()) if marks else ComposedRouter(score(), [Softmax(), Marks(k)], half, [relative])
        heads, one = SeparateHeads(D, E, alone(score()), each=D // settings.experts), FeedForward(D, E * unit, 1)
        return RoutedBlock(D, Causal(heads), Mixture(router, sliced(one, E)))

    return CausalModel(LETTERS, D, settings.length, [block() for _ in range(settings.depth)])


def switch(settings: Settings, experts: int) -> CausalModel:
    """One expert of the dense network's size for each letter; the dense network itself if there is but one."""
    D, H = settings.width, settings.experts

    def block() -> RoutedBlock:
        made, router = FeedForward(D, 4 * D, experts), ComposedRouter(Dot(D, experts), [Softmax()], partial(top_k, k=1))
        layer = Mixture(router, made) if experts > 1 else Dense(made)
        return RoutedBlock(D, Causal(SeparateHeads(D, H, everyone(H))), layer)

    return CausalModel(LETTERS, D, settings.length, [block() for _ in range(settings.depth)])


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then perplexities over seeds and what a letter costs each network."""
    s, proven, found = settings, _exact(settings), {"perplexity": dict[str, Any](), "macs": dict[str, Any]()}
    rivals = {"half as wide again": partial(build, s, wide=1.5), "UoE": partial(build, s)}
    rivals |= {"Switch": partial(switch, s, s.experts), "dense": partial(switch, s, 1)}
    task, judge = next_letters(s.length)
    for seed in s.seeds:
        how = replace(FRESH, steps=s.steps, batch=s.batch, router_rate=1.0, seed=seed)
        for name, make in rivals.items():
            torch.manual_seed(seed)
            beside = None if name == "dense" else Priced(loss=losses.switch)
            model = cast("Any", learn(cast("Any", make()), [task], how, beside=beside))
            for what, number in zip(found, perplexity(model, judge), strict=True):
                found[what].setdefault(name, []).append(number)
    return Proof(claims=(*proven, *(_claims(found) if s.seeds else ())), details=found if s.seeds else {})


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    D, E, T = settings.width, settings.experts, settings.length
    plain, one, tokens = SelfAttention(D, E), FeedForward(D, 4 * D, 1), torch.randn(3, T, D)
    heads, _ = Causal(taken(SeparateHeads(D, E, everyone(E)), plain))(tokens)
    # What the last letter hears is the same without a future.
    ends = torch.stack([plain(tokens[:, : place + 1])[:, -1] for place in range(T)], 1)
    whole, _ = Mixture(everyone(E), sliced(one, E))(tokens)
    ids, kinds = torch.randint(LETTERS, (3, T)), ((1.0, True), (1.5, True), (1.0, False))
    *one_way, both = (swayed(build(settings, wide=w, marks=m).double(), ids, T // 2) for w, m in kinds)
    rows = {
        "relative error of all heads against attention to what came before": (apart(heads, ends), "<=", 1e-5),
        "relative error of all slices against the network": (apart(whole, Dense(one)(tokens)[0]), "<=", 1e-5),
        "largest change by later letters": (max(one_way), "<=", 1e-10),
        "largest change by later letters, slices that take half of all": (both, ">", 1e-3),
    }
    return claims(rows, exact=True)


def _claims(found: dict[str, Any]) -> list[Claim]:
    score, cost = means(found["perplexity"]), means(found["macs"])
    rows = {
        "perplexity, half as wide again against Switch": (score["half as wide again"], "<=", score["Switch"]),
        "perplexity, half as wide again against dense": (score["half as wide again"], "<=", score["dense"]),
        "multiply-accumulates, UoE over dense": (cost["UoE"] / cost["dense"], "<=", 0.76),
        "multiply-accumulates, half as wide again over Switch": (cost["half as wide again"] / cost["Switch"], "<=", 1),
    }
    return claims(rows)


def curves(details: dict[str, Any]) -> Dots | None:
    """Every network's perplexities."""
    return Dots(title="Python's reference", across="perplexity", rows=details["perplexity"]) if details else None
