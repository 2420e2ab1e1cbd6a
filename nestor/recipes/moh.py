"""MoH: Multi-Head Attention as Mixture-of-Head Attention, on garments.

Paper: arXiv 2410.11842. Command: `nestor prove moh`.

A transformer whose tokens choose some heads beside two that always answer, against all heads, no more heads than a
token uses, and heads at random. Then a trained network with all heads is cut to the heads with the longest queries,
beside a half that always answers, as it is and tuned. Language models are not repeated: SmolLM2, whose nine heads
would be the experts, does not come with what Nestor installs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense, SelfAttention
from nestor.layers.heads import ChosenHeads, taken
from nestor.layers.routed import RoutedBlock
from nestor.measure.points import apart, over_cost
from nestor.models.composed import Composed, tiny
from nestor.recipes.base import Claim, Proof
from nestor.routing import losses
from nestor.routing.adjust import Softmax
from nestor.routing.always import Always, everyone
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Uniform
from nestor.surgery.heads import cut_heads
from nestor.training.aims import Priced, pursue
from nestor.training.compare import means, right
from nestor.training.contest import Entry, contest, garments_at
from nestor.training.settings import FRESH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nestor.measure.repeats import Repeats
    from nestor.types import Router

TITLE = "MoH: Multi-Head Attention as Mixture-of-Head Attention"
ARXIV = "2410.11842"
IDEA = "Attention is a sum over heads, so that heads are experts: some always answer, a token chooses among the others."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `shared` heads always answer, `active` are all that a token uses."""

    pictures: int = 3000
    held_out: int = 2000
    epochs: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    heads: int = 8
    shared: int = 2
    active: tuple[int, ...] = (6, 4)

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, router: Callable[[], Router] | None = None, heads: int | None = None) -> Composed:
    """The network; its tokens use the most active heads, or what other routers say."""
    s, make = settings, router or partial(routed, settings, settings.active[0])
    attention = [ChosenHeads(s.width, heads or s.heads, make(), each=s.width // s.heads) for _ in range(s.depth)]
    layers = (Dense(FeedForward(s.width, 4 * s.width, 1)) for _ in attention)
    return tiny(s.width, [cast("Any", RoutedBlock(s.width, *both)) for both in zip(attention, layers, strict=True)])


def routed(settings: Settings, active: int, *, chance: bool = False) -> Always:
    """Two stages: heads that always answer, and the best of the others with weights that add up to their number."""
    E, k = settings.heads - settings.shared, active - settings.shared
    score = Uniform(E) if chance else Dot(settings.width, E)
    router = ComposedRouter(score, [Softmax()], partial(top_k, k=k), [partial(renormalise, scale=k)])
    return Always(settings.width, settings.shared, router)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over seeds at what each network costs, and what a trained one can leave out."""
    claims, found, s = _exact(settings), {}, settings
    if s.seeds:
        learn, test = garments_at(28, s.pictures, s.held_out)
        how, most = replace(FRESH, epochs=s.epochs, router_rate=1.0), s.active[0]
        whole = Entry(build=partial(build, s, partial(everyone, s.heads)))
        entries = {"all heads": whole, "as few heads": Entry(build=partial(build, s, partial(everyone, most), most))}
        for k in s.active:
            # As published, R^2 times the mean of probability times selection, over the R heads that are chosen from.
            weight = 0.01 * (s.heads - s.shared) * (k - s.shared) / s.heads
            make, aim = partial(build, s, partial(routed, s, k)), Priced(losses=((weight, losses.switch),))
            entries[f"{k} of {s.heads}"] = Entry(build=make, aim=aim)
        entries["at random"] = Entry(build=partial(build, s, partial(routed, s, most, chance=True)))
        found, cut = contest(entries, learn, test, how, s.seeds), {}
        for seed in s.seeds:
            torch.manual_seed(seed)
            model = pursue(whole.build(), learn, how, whole.aim, seed)
            for name, chance in (("by length", False), ("by chance", True)):
                made = cut_heads(model, most, s.heads // 2, chance=chance)
                tuned = pursue(made, learn, replace(how, epochs=1, rate=how.rate / 3), Priced(), seed)
                cut.setdefault(name, []).append(right(made, test))
                cut.setdefault(f"{name}, tuned", []).append(right(tuned, test))
        found["cut"] = cut
    return Proof(claims=(*claims, *(_claims(s, found) if found else ())), details=found)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    D, H, S = settings.width, settings.heads, settings.shared
    plain, tokens, rows = SelfAttention(D, H), torch.randn(3, 49, D), {}
    free = ComposedRouter(Dot(D, H - S), [Softmax()], partial(top_k, k=H - S), [partial(renormalise, scale=H - S)])
    torch.nn.init.zeros_(free.score.get_parameter("weight"))
    for name, router in (("routers of zeros", Always(D, S, free)), ("weights of one", everyone(H))):
        answer, _ = taken(ChosenHeads(D, H, router), plain)(tokens)
        rows[f"relative error against plain attention, all heads and {name}"] = apart(answer, plain(tokens))
    claims = [Claim(text=text, left=left, relation="<=", right=1e-5, exact=True) for text, left in rows.items()]
    made = ChosenHeads(D, H, routed(settings, settings.active[0]))
    _, (routing,) = made(tokens)
    asked, router = 3 * 49 * settings.active[0] * (D // H) * (2 * D + 2 * 49), 3 * 49 * D * (H + 2)
    spent, counted, text = made.macs(routing, (3, 49, D)), asked + router + 3 * 49 * 2 * D * D, "MACs by formula"
    return [*claims, Claim(text=text, left=spent, relation="==", right=counted, exact=True)]


def _claims(settings: Settings, found: dict[str, Any]) -> list[Claim]:
    score, cut = means(found["accuracy"]), means(found["cut"])
    most = f"{settings.active[0]} of {settings.heads}"
    rows = {
        f"{most} against all heads less 0.3 points": (score[most], score["all heads"] - 0.003),
        f"{most} against a network of as few heads": (score[most], score["as few heads"]),
        f"{most} against heads at random": (score[most], score["at random"]),
        "cut by length against cut by chance": (cut["by length"], cut["by chance"]),
        "cut by length and tuned against all heads": (cut["by length, tuned"], score["all heads"]),
    }
    return [Claim(text=f"accuracy, {text}", left=a, relation=">=", right=b) for text, (a, b) in rows.items()]


def curves(details: dict[str, Any]) -> Repeats | None:
    """Accuracies over costs."""
    return over_cost(details)
