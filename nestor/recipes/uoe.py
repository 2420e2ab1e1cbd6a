"""UoE: Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed Transformer, on garments.

Paper: arXiv 2503.02495. Command: `nestor prove uoe`.

A transformer cut as tensor parallelism would cut it: a head, or a slice of the hidden units, is an expert. Tokens mark
half of the experts; a head attends among its own tokens, a slice takes at most half of all tokens. Or the mean token
picks half of the experts for a picture. Against the dense network and Switch; as decomposed, and twice as wide at about
their cost. Choices: softmax for each token; slices share the bias evenly. `nestor prove uoe_language` reads a text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense, SelfAttention
from nestor.layers.heads import SeparateHeads, taken
from nestor.layers.mixture import Mixture
from nestor.layers.routed import RoutedBlock
from nestor.layers.together import dense
from nestor.measure.points import apart, over_cost
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.always import everyone
from nestor.routing.choose import expert_choice, top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.marks import Marks, relative
from nestor.routing.router import ComposedRouter
from nestor.surgery.slices import sliced
from nestor.training.aims import Priced
from nestor.training.compare import means
from nestor.training.contest import Entry, contest, garments_at
from nestor.training.settings import FRESH

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "UoE: Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed Transformer"
ARXIV = "2503.02495"
IDEA = "A dense transformer is a sum of shards, heads and slices; routing gives each of them tokens of its own."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; the dense network has `experts` heads."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    experts: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, *, wide: int = 1, by: str = "token") -> Composed:
    """The network, so many times as wide as the dense one; each `token` or each `picture` decides."""
    D, E = settings.width, wide * settings.experts

    def block() -> Any:
        heads = SeparateHeads(D, E, chosen(settings, E, by), each=D // settings.experts)
        layer = Mixture(chosen(settings, E, by, slices=True), sliced(FeedForward(D, 4 * wide * D, 1), E))
        return RoutedBlock(D, heads, layer)

    return tiny(D, [block() for _ in range(settings.depth)])


def chosen(settings: Settings, experts: int, by: str, *, slices: bool = False) -> ComposedRouter:
    """Half of the experts for each token or picture; slices also refuse what exceeds half of the tokens."""
    score, half = Dot(settings.width, experts), experts // 2
    if slices and by == "token":
        return ComposedRouter(score, [Softmax(), Marks(half)], partial(expert_choice, factor=experts / 2), [relative])
    return ComposedRouter(Pooled(score) if by == "picture" else score, [Softmax()], partial(top_k, k=half), [relative])


def switch(settings: Settings, experts: int) -> Composed:
    """One expert of the dense network's size for each token; the dense network itself if there is but one."""
    D, layers = settings.width, list[Any]()
    for _ in range(settings.depth):
        made, router = FeedForward(D, 4 * D, experts), ComposedRouter(Dot(D, experts), [Softmax()], partial(top_k, k=1))
        layers.append(Mixture(router, made) if experts > 1 else Dense(made))
    return tiny(D, stack(D, settings.experts, layers))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over seeds at what each network costs."""
    proven, found, s = _exact(settings), {}, settings
    if s.seeds:
        learn, test = garments_at(28, s.pictures, s.held_out)
        how = replace(FRESH, epochs=s.epochs, router_rate=1.0)
        entries = {
            "dense": Entry(build=partial(switch, s, 1)),
            "Switch": Entry(build=partial(switch, s, s.experts), aim=Priced(losses=((0.01, losses.switch),))),
            "UoE": Entry(build=partial(build, s)),
            "twice as wide": Entry(build=partial(build, s, wide=2)),
            "by picture": Entry(build=partial(build, s, by="picture")),
        }
        found = contest(entries, learn, test, how, s.seeds)
    return Proof(claims=(*proven, *(_claims(found) if found else ())), details=found)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    D, E, tokens = settings.width, settings.experts, torch.randn(3, 49, settings.width)
    plain, one = SelfAttention(D, E), FeedForward(D, 4 * D, 1)
    heads, _ = taken(SeparateHeads(D, E, everyone(E)), plain)(tokens)
    whole, _ = Mixture(everyone(E), sliced(one, E))(tokens)
    some = Mixture(chosen(settings, E, "token", slices=True), sliced(one, E))
    answer, found = some(tokens)
    weight = dense(cast("Any", found[0]))
    each = some.experts(tokens.flatten(0, 1).repeat(E, 1), torch.full((E,), 3 * 49)).view(E, 3, 49, D)
    masked = torch.einsum("bte,ebtd->btd", weight, each)
    rows = {
        "relative error of all heads against attention": apart(heads, plain(tokens)),
        "relative error of all slices against the network": apart(whole, Dense(one)(tokens)[0]),
        "relative error of adding answers up against masking them": apart(answer, masked),
    }
    most = {"most tokens of a slice": (float((weight > 0).sum(1).max()), "<=", 25)}
    return claims({text: (left, "<=", 1e-5) for text, left in rows.items()} | most, exact=True)


def _claims(found: dict[str, Any]) -> list[Claim]:
    score, cost = means(found["accuracy"]), found["cost"]
    rows = {
        "accuracy, twice as wide against Switch": (score["twice as wide"], ">=", score["Switch"]),
        "accuracy, twice as wide against dense": (score["twice as wide"], ">=", score["dense"]),
        "multiply-accumulates, UoE over dense": (cost["UoE"], "<=", 0.76),
        "multiply-accumulates, twice as wide over Switch": (cost["twice as wide"] / cost["Switch"], "<=", 1.05),
    }
    return claims(rows)


def curves(details: dict[str, Any]) -> Any:
    """Accuracies over costs."""
    return over_cost(details)
