"""WideNet: Go Wider Instead of Deeper, on garments.

Paper: arXiv 2107.11817. Command: `nestor prove widenet`.

One block at every depth: attention, router and experts are shared, the norms alone are each depth's own. Against a
plain transformer, one with unshared mixtures, one shared dense block, and sharing the norms too. The language tasks of
the paper are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Block, Dense, SelfAttention
from nestor.layers.mixture import Mixture
from nestor.measure.cost import parameters
from nestor.measure.over_seeds import over_seeds
from nestor.measure.traffic import divergence, traffic
from nestor.models.composed import Composed, stack, tiny
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.adjust import Noise, Softmax
from nestor.routing.choose import top_k
from nestor.routing.learned import Dot
from nestor.routing.losses import switch
from nestor.routing.refine import drop_in_batch, renormalise
from nestor.routing.router import ComposedRouter
from nestor.surgery.grow import fill
from nestor.training.aims import Priced
from nestor.training.compare import garments, means
from nestor.training.contest import Entry, contest
from nestor.training.settings import FRESH

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.measure.dots import Dots
    from nestor.types import Output

TITLE = "WideNet: Go Wider Instead of Deeper"
ARXIV = "2107.11817"
IDEA = "One block is used at every depth; its feed-forward part is a mixture, and only the norms are each depth's own."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run."""

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


def build(settings: Settings, *, experts: int | None = None, blocks: bool = True, norms: bool = False) -> Composed:
    """The network; `blocks` and `norms` tell what all depths share, and one expert is a dense network."""
    s, E = settings, settings.experts if experts is None else experts

    def layer() -> Mixture | Dense:
        return Dense(FeedForward(s.width, 4 * s.width, 1)) if E == 1 else mixture(s.width, E)

    if blocks:
        shared = SelfAttention(s.width, 4), layer()
        made = [Block(s.width, *shared) for _ in range(1 if norms else s.depth)] * (s.depth if norms else 1)
    else:
        made = stack(s.width, 4, [layer() for _ in range(s.depth)])
    return tiny(s.width, made)


def mixture(width: int, experts: int) -> Mixture:
    """Two of the experts for each token, with noise, and room for 1.2 times an even share."""
    gate = [Noise(1 / experts), Softmax()]
    router = ComposedRouter(Dot(width, experts), gate, partial(top_k, k=2), [partial(drop_in_batch, factor=1.2)])
    return Mixture(router, FeedForward(width, 4 * width, experts))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies and how differently the depths route."""
    shown, details, s = _exact(settings), {}, settings
    aim, read = Priced(losses=((0.01, switch),)), {"divergence": _apart}
    if s.seeds:
        entries = {
            "plain": Entry(build=partial(build, s, experts=1, blocks=False)),
            "unshared mixtures": Entry(build=partial(build, s, blocks=False), aim=aim),
            "shared dense": Entry(build=partial(build, s, experts=1)),
            "shared norms": Entry(build=partial(build, s, norms=True), aim=aim, read=read),
            "WideNet": Entry(build=partial(build, s), aim=aim, read=read),
        }
        data, how = garments(s.pictures, s.held_out), replace(FRESH, epochs=s.epochs)
        details = contest(entries, *data, how, s.seeds)
        shown += _accuracy(details)
    return Proof(claims=tuple(shown), details=details)


def _apart(output: Output) -> float:
    """Mean Jensen-Shannon divergence of the loads of two depths, in nats."""
    loads = [traffic(routing).load for routing in output.routings]
    return mean(divergence(a, b) for a, b in combinations(loads, 2))


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, plain = torch.randn(2, 3, 28, 28), build(settings, experts=1).eval()
    torch.nn.init.normal_(plain.head.weight)
    wide = fill(build(settings), plain).eval()
    router = wide.mixtures[0].router
    assert isinstance(router, ComposedRouter)
    router.refinements = (renormalise,)
    expected = plain(images).logits
    D, L, E = settings.width, settings.depth, settings.experts
    norms, attention, network, frame = 4 * D, 4 * D * D + 4 * D, 8 * D * D + 5 * D, 110 * D + 10
    counted = frame + L * norms + attention + E * D + E * network
    error = float((wide(images).logits - expected).norm() / expected.norm())
    rows = {
        "relative error against the shared dense network, equal experts and nothing dropped": (error, "<=", 1e-5),
        "parameters by formula": (parameters(wide), "==", counted),
        "parameters against unshared": (parameters(wide), "<", parameters(build(settings, blocks=False))),
    }
    return claims(rows, exact=True)


def _accuracy(found: dict[str, Any]) -> list[Claim]:
    score, apart = means(found["accuracy"]), means(found["divergence"])
    mine, signs = score["WideNet"], {"shared dense": ">", "shared norms": ">=", "plain": ">="}
    rows = {f"accuracy, WideNet against {name}": (mine, sign, score[name]) for name, sign in signs.items()}
    rows["divergence of the depths' loads, own against shared norms"] = (apart["WideNet"], ">", apart["shared norms"])
    return claims(rows)


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Accuracies, and how differently the depths route, over seeds."""
    across = {"accuracy": "accuracy", "divergence": "divergence of the loads of two depths, nats"}
    return tuple(over_seeds(details[what], "WideNet", what, across[what]) for what in across if details) or None
