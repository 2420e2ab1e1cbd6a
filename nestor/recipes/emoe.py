"""EMoE: Emergent Mixture-of-Experts, on a pretrained network and real solar cells.

Paper: arXiv 2310.10908. Command: `nestor prove emoe`.

Two feed-forward layers of DINOv2 ViT-S/14 are cut into 24 experts of neurons that look for the same; four answer each
token, chosen by the mean key, without a new weight. Fine-tuned on monocrystalline cells and scored on polycrystalline
ones, against plain fine-tuning and against neurons cut at random. The text tasks of the paper are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from nestor.data import load
from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.layers.mixture import Mixture
from nestor.measure.score import auroc
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof
from nestor.surgery.grow import emerge, keys, split
from nestor.surgery.shrink import join
from nestor.training.compare import Rival, train
from nestor.training.predict import predict
from nestor.training.settings import Fit
from nestor.types import Signal, Sparse

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.models.composed import Composed

TITLE = (
    "EMoE: Emergent Mixture-of-Experts: Can Dense Pre-trained Transformers Benefit from Emergent Modular Structures?"
)
ARXIV = "2310.10908"
IDEA = "Neurons of a trained layer that look for the same become one expert; the mean key chooses, nothing is added."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `where` names the blocks that are cut."""

    size: int = 56
    epochs: int = 3
    rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    pictures: int = 64
    experts: int = 24
    choices: int = 4
    where: tuple[int, ...] = (8, 10)

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures, one block: the exact claims only."""
        return cls(seeds=(), pictures=8, where=(8,))


def build(settings: Settings, *, cut: str = "keys", choices: int | None = None) -> Composed:
    """The network with its layers cut by `keys`, at `random`, or not (`none`)."""

    def layer(depth: int, one: FeedForward) -> Mixture | Dense:
        if depth not in settings.where or cut == "none":
            return Dense(one)
        made = emerge(one, settings.experts, choices or settings.choices)
        return made if cut == "keys" else scattered(made, one, choices or settings.choices)

    return composed(read("dinov2-small"), ("functional", "defective"), layer)


def scattered(layer: Mixture, one: FeedForward, choices: int) -> Mixture:
    """The same with neurons dealt out at random; the mean keys still choose."""
    E = len(layer.experts.costs)
    made = split(one, torch.randperm(one.outward.shape[-1]) % E, choices)
    with torch.no_grad():
        layer.router.get_parameter("score.weight").copy_(made.inward.mean(1))
    return Mixture(layer.router, made)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties and what the untrained router keeps, then AUROC on the other kind of cell."""
    cells = load("elpv", size=settings.size)
    mono, poly = (
        cells.subset([i for i, group in enumerate(cells.groups) if group.startswith(kind)]) for kind in ("mono", "poly")
    )
    claims = _exact(settings, mono.limit(settings.pictures).stacked())
    details: dict[str, Any] = {"auroc": {}}
    if settings.seeds:
        mono, poly = mono.cached(), poly.cached()
        how = Fit(epochs=settings.epochs, rate=settings.rate, batch=32, precision="bf16", head_rate=10.0)
        for seed in settings.seeds:
            for name, cut in (("dense", "none"), ("EMoE", "keys"), ("random cut", "random")):
                model = train(Rival(build=partial(build, settings, cut=cut)), mono, how, seed)
                logits, labels = predict(cast("Any", model), poly, precision="bf16")
                details["auroc"].setdefault(name, []).append(auroc(logits[:, 1] - logits[:, 0], labels))
        ours, dense, chance = (mean(details["auroc"][name]) for name in ("EMoE", "dense", "random cut"))
        claims += [
            Claim(text="AUROC on the other cells, EMoE against dense tuning", left=ours, relation=">=", right=dense),
            Claim(text="AUROC on the other cells, EMoE against random cut", left=ours, relation=">", right=chance),
        ]
    return Proof(claims=tuple(claims), details=details)


@torch.no_grad()
def _exact(settings: Settings, images: Tensor) -> list[Claim]:
    torch.manual_seed(0)
    plain = build(settings, cut="none").eval()
    whole = build(settings, choices=settings.experts).eval()
    expected = plain(images).tokens
    error = float((whole(images).tokens - expected).norm() / expected.norm())
    place = settings.where[0]
    one, cut = (net.chain[place].layer.experts for net in (plain, whole))
    assert isinstance(one, FeedForward)
    assert isinstance(cut, FeedForward)
    moved = (keys(join(cut)).sort(0).values - keys(one).sort(0).values).abs().max()
    kept = _kept(settings, one, _read(plain, place, images))
    return [
        Claim(text="relative error, all experts chosen", left=error, relation="<=", right=2e-5, exact=True),
        Claim(text="weights changed by cutting and joining", left=float(moved), relation="==", right=0, exact=True),
        Claim(text="share of the answer kept, mean key against chance", left=kept[0], relation=">", right=kept[1]),
    ]


def _read(model: Composed, place: int, images: Tensor) -> Tensor:
    """(B, T, D): what the feed-forward part of a block reads."""
    tokens = model.embed(images)
    for number, block in enumerate(model.chain):
        if number == place:
            return block.norm2(tokens + block.attention(block.norm1(tokens)))
        tokens, _ = block(tokens, Signal())
    raise AssertionError(place)


def _kept(settings: Settings, one: FeedForward, tokens: Tensor) -> tuple[float, float]:
    """One minus the relative error of the chosen experts' answer, and of as many experts chosen by chance."""
    layer = emerge(one, settings.experts, settings.choices)
    full, (routing,) = Dense(one)(tokens)[0], layer(tokens)[1]
    assert isinstance(routing, Sparse)
    turn = torch.randint(1, settings.experts, (*routing.index.shape[:2], 1))
    chance = Sparse(routing.scores, (routing.index + turn) % settings.experts, routing.weight)
    errors = [(layer.answer(tokens, each) - full).norm() / full.norm() for each in (routing, chance)]
    return float(1 - errors[0]), float(1 - errors[1])
