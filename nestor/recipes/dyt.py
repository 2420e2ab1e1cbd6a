"""DyT: Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation, on a pretrained network.

Paper: arXiv 2403.11808. Command: `nestor prove dyt`.

The first blocks of DINOv2 ViT-S/14 stay as they are. Beside each feed-forward part an adapter answers every token, and
a dispatcher lets half of the tokens skip the feed-forward part. On garments and, at 112 pixels, on solar cells; against
a linear probe, adapters without skipping, and skipping at random, which costs the same. Choices: dispatcher and adapter
read the normed stream; no dropout; a mixture of adapters is blended by the softmax of the mean token, so that it costs
as much as one; few cells, since four times as many tokens cost as much more; bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.data import load_splits
from nestor.experts.cheap import Zero
from nestor.experts.joined import Joined
from nestor.experts.lowrank import Bottleneck
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.layers.together import Blended, Together
from nestor.measure.points import apart, over_cost
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof, claims
from nestor.routing.adjust import Softmax
from nestor.routing.choose import top_k
from nestor.routing.given import Pooled
from nestor.routing.learned import Dot
from nestor.routing.router import ComposedRouter
from nestor.routing.score import Linear, Uniform
from nestor.routing.straight import StraightThrough
from nestor.surgery.freeze import only
from nestor.training.aims import Skipping, kept_share
from nestor.training.compare import means
from nestor.training.contest import Entry, contest
from nestor.training.settings import Fit
from nestor.types import Signal

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.experts.feedforward import FeedForward
    from nestor.models.composed import Composed

TITLE = "DyT: Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation"
ARXIV = "2403.11808"
IDEA = "A frozen network learns by adapters that see every token, and which tokens may skip its feed-forward parts."
SETS = {"garments": "fashion-mnist", "solar cells": "elpv"}
RIVALS = ("linear probe", "adapters", "DyT", "DyT, blended adapters", "random skipping")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run: numbers of garments, then of cells; `kept` tokens, as a share, and `adapters` blended."""

    size: tuple[int, int] = (56, 112)
    pictures: tuple[int, int] = (600, 240)
    held_out: tuple[int, int] = (600, 240)
    batch: tuple[int, int] = (32, 16)
    epochs: int = 2
    rate: float = 3e-2
    seeds: tuple[int, ...] = (0, 1, 2)
    depth: int = 6
    hidden: int = 16
    kept: float = 0.5
    adapters: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """No training: the exact claims only."""
        return cls(seeds=())


def build(settings: Settings, classes: tuple[str, ...], kind: str = "DyT") -> Composed:
    """One of the rivals."""

    def layer(depth: int, one: FeedForward) -> Any:
        if kind == "linear probe":
            return Dense(one)
        D, E = one.inward.shape[-1], settings.adapters if "blended" in kind else 1
        dispatcher = StraightThrough(Uniform(2) if kind == "random skipping" else Linear(D, 2), temperature=5.0)
        mean_token = ComposedRouter(Pooled(Dot(D, E)), [Softmax()], partial(top_k, k=E))
        tuned = Bottleneck(D, settings.hidden, E, scale=0.1)
        first = Dense(one) if kind == "adapters" else Mixture(dispatcher, Joined([one, Zero()]))
        return Together([first, (Dense(tuned) if E == 1 else Blended(tuned, mean_token))])

    model = composed(read("dinov2-small"), classes, layer, depth=settings.depth)
    adapters = () if kind == "linear probe" else ("*.layer.parts.1.*",)
    return only(model, ("head.*", *adapters, *(("*.router.*",) if "DyT" in kind else ())))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties, then accuracies over seeds at what each network costs."""
    s, proven, found = settings, _exact(settings), dict[str, Any]()
    for at, (name, source) in enumerate(SETS.items() if s.seeds else ()):
        learn, test = load_splits(source, size=s.size[at])
        how = Fit(epochs=s.epochs, rate=s.rate, batch=s.batch[at], router_rate=1.0, precision="bf16")
        entries = {kind: Entry(build=partial(build, s, learn.classes, kind)) for kind in RIVALS}
        for kind in RIVALS[2:]:
            entries[kind] = replace(entries[kind], aim=Skipping(rate=s.kept), read={"kept": kept_share})
        learn, test = learn.limit(s.pictures[at]).cached(), test.limit(s.held_out[at]).cached()
        found[name] = contest(entries, learn, test, how, s.seeds)
        proven += _claims(s, name, found[name])
    return Proof(claims=tuple(proven), details=found)


@torch.no_grad()
def _exact(settings: Settings) -> list[Claim]:
    torch.manual_seed(0)
    images, classes = torch.randn(4, 3, settings.size[0], settings.size[0]), ("a", "b")
    plain, model = (build(settings, classes, kind).eval() for kind in ("linear probe", "DyT"))
    tokens = (settings.size[0] // 14) ** 2 + 1
    expected, whole = plain(images).tokens, model.told(images, Signal(counts=(tokens, 0))).tokens
    for block in model.chain:
        torch.nn.init.normal_(cast("Any", block.layer).parts[0].router.get_parameter("free.score.weight"))
    some, stream = model(images), torch.randn(4, tokens, 384)
    answer, (routing,) = (skipping := cast("Any", model.chain[0].layer).parts[0])(stream)
    masked = Dense(skipping.experts.parts[0])(stream)[0] * (routing.index == 0)
    D, H, L = 384, settings.hidden, len(model.chain)
    skipped = sum(int(routing.counts[1]) for routing in some.routings) / len(images)
    more = L * tokens * (2 * D + 2 * H * D) - skipped * 8 * D * D + plain.macs(plain(images), 4, tokens - 1)
    rows = {
        "relative error at the start, nothing skipped": (apart(whole, expected), "<=", 2e-5),
        "relative error of leaving tokens out against multiplying by zero": (apart(answer, masked), "<=", 1e-5),
        "multiply-accumulates by formula": (model.macs(some, 4, tokens - 1), "==", more),
    }
    return claims(rows, exact=True)


def _claims(settings: Settings, name: str, found: dict[str, Any]) -> list[Claim]:
    score, cost, kept = means(found["accuracy"]), found["cost"], found["kept"]["DyT"]
    rows = {
        "share of kept tokens, off by": (max(abs(each - settings.kept) for each in kept), "<=", 0.05),
        "accuracy, DyT against adapters less one point": (score["DyT"], ">=", score["adapters"] - 0.01),
        "accuracy, DyT against random skipping": (score["DyT"], ">=", score["random skipping"]),
        "accuracy, blended adapters against one": (score["DyT, blended adapters"], ">=", score["DyT"]),
        "multiply-accumulates, DyT over adapters": (cost["DyT"] / cost["adapters"], "<=", 0.85),
    }
    return claims({f"{name}: {text}": row for text, row in rows.items()})


def curves(details: dict[str, Any]) -> tuple[Any, ...] | None:
    """Accuracies over costs, for either set."""
    return tuple(over_cost(found, name.capitalize()) for name, found in details.items()) or None
