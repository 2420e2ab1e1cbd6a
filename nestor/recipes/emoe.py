"""EMoE: Emergent Mixture-of-Experts, on a pretrained network, real solar cells and worn garments.

Paper: arXiv 2310.10908. Command: `nestor prove emoe`.

Two feed-forward layers of DINOv2 ViT-S/14 are cut into 24 experts of neurons that look for the same; four answer each
token, chosen by the mean key, without a new weight. Fine-tuned on monocrystalline cells and judged by polycrystalline
ones; fine-tuned on garments and judged by others with noise, blur, fading or gaps. Against plain fine-tuning, neurons
cut at random, and the tuned network with experts drawn at random. Not repeated: tasks of text, since no encoder of
text is installed, and GMoE.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

import torch

from nestor.data.altered import WORN, altered
from nestor.experts.feedforward import FeedForward
from nestor.layers.block import Dense
from nestor.measure.dots import Dots
from nestor.measure.kept import answers, heard
from nestor.measure.points import apart
from nestor.measure.score import accuracy, auroc
from nestor.models.composed_plain import composed
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, Proof, claims
from nestor.surgery.chance import drawn, scattered
from nestor.surgery.grow import emerge, keys
from nestor.surgery.shrink import join
from nestor.training.compare import Rival, means, train
from nestor.training.contest import cells_at, garments_at
from nestor.training.predict import predict
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from nestor.data import Pictures
    from nestor.layers.mixture import Mixture
    from nestor.models.composed import Composed

TITLE = (
    "EMoE: Emergent Mixture-of-Experts: Can Dense Pre-trained Transformers Benefit from Emergent Modular Structures?"
)
ARXIV = "2310.10908"
IDEA = "Neurons of a trained layer that look for the same become one expert; the mean key chooses, nothing is added."
CELLS, GARMENTS = "AUROC on polycrystalline cells", "accuracy on worn garments"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run; `pictures` and `held_out` of either set, `where` names the blocks that are cut."""

    size: int = 56
    epochs: int = 2
    rate: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    pictures: int = 700
    held_out: int = 800
    experts: int = 24
    choices: int = 4
    where: tuple[int, ...] = (8, 10)

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures, one block: the exact claims only."""
        return cls(seeds=(), pictures=8, held_out=2, where=(8,))


def build(settings: Settings, classes: tuple[str, ...], *, cut: str = "keys", choices: int = 0) -> Composed:
    """The network with its layers cut by `keys`, at `random`, or not (`none`); so many experts answer, or as usual."""
    cuts = {"keys": emerge, "random": scattered}

    def layer(depth: int, one: FeedForward) -> Mixture | Dense:
        if depth not in settings.where or cut == "none":
            return Dense(one)
        return cuts[cut](one, settings.experts, choices or settings.choices)

    return composed(read("dinov2-small"), classes, layer)


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exact properties and what the untrained router keeps, then how networks do on pictures unlike those of tuning."""
    s = settings
    mono, poly = cells_at(s.size, s.pictures, s.held_out)["from mono to poly"]
    found, proven = dict[str, Any](), _exact(settings, mono.stacked(64))
    if s.seeds:
        learn, test = garments_at(s.size, s.pictures, s.held_out)
        found = {CELLS: _tuned(s, mono, poly), GARMENTS: _tuned(s, learn, altered(test, *WORN))}
        proven += _claims(found)
    return Proof(claims=tuple(proven), details=found)


def _tuned(settings: Settings, learn: Pictures, test: Pictures) -> dict[str, list[float]]:
    how = Fit(epochs=settings.epochs, rate=settings.rate, batch=32, precision="bf16", head_rate=10.0)
    found: dict[str, list[float]] = {"EMoE": [], "dense": [], "random cut": [], "random gate": []}
    for seed in settings.seeds:
        for name, cut in (("EMoE", "keys"), ("dense", "none"), ("random cut", "random")):
            model = train(Rival(build=partial(build, settings, learn.classes, cut=cut)), learn, how, seed)
            found[name].append(_score(model, test, seed))
            if cut == "keys":
                found["random gate"].append(_score(drawn(model), test, seed))
    return found


def _score(model: Composed, test: Pictures, seed: int) -> float:
    torch.manual_seed(seed)
    logits, labels = predict(cast("Any", model), test, precision="bf16")
    return auroc(logits[:, 1] - logits[:, 0], labels) if len(test.classes) == 2 else accuracy(logits.argmax(-1), labels)


def _claims(found: dict[str, Any]) -> list[Claim]:
    score = {what: means(each) for what, each in found.items()}
    score["mean of both"] = {name: mean(each[name] for each in score.values()) for name in score[CELLS]}
    rows = product(score.items(), (("dense", ">="), ("random cut", ">"), ("random gate", ">")))
    return claims({f"{what}, EMoE against {name}": (s["EMoE"], sign, s[name]) for (what, s), (name, sign) in rows})


@torch.no_grad()
def _exact(settings: Settings, images: Tensor) -> list[Claim]:
    torch.manual_seed(0)
    plain, whole = build(settings, ("a", "b"), cut="none"), build(settings, ("a", "b"), choices=settings.experts)
    place = settings.where[0]
    one, cut = (net.chain[place].layer.experts for net in (plain, whole))
    assert isinstance(one, FeedForward)
    assert isinstance(cut, FeedForward)
    moved = (keys(join(cut)).sort(0).values - keys(one).sort(0).values).abs().max()
    rows = {
        "relative error, all experts chosen": (apart(whole(images).tokens, plain(images).tokens), "<=", 2e-5),
        "weights changed by cutting and joining": (float(moved), "==", 0),
    }
    tokens = heard(plain, place, images)
    full, (ours, chance) = Dense(one)(tokens)[0], answers(emerge(one, settings.experts, settings.choices), tokens)
    kept = {
        "length of the answer, mean key against chance": (float(ours.norm()), ">", float(chance.norm())),
        "error of the answer, mean key against chance": (apart(ours, full), "<", apart(chance, full)),
    }
    return [*claims(rows, exact=True), *claims(kept)]


def curves(details: dict[str, Any]) -> tuple[Dots, ...] | None:
    """Every network's score on either set."""
    return tuple(Dots(title="DINOv2 ViT-S/14", across=what, rows=rows) for what, rows in details.items()) or None
