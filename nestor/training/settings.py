"""How to train, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING

from nestor.training.schedule import Sampled

if TYPE_CHECKING:
    from collections.abc import Callable

    from nestor.data import Augment
    from nestor.training.balance import Balance, Guide
    from nestor.training.schedule import Budgets

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True, kw_only=True)
class Distil:
    """How much each part of the loss weighs; a part of weight 0 is not computed.

    Attributes:
        labels: cross-entropy to the labels; None for 1 where no teacher gives logits and 0 where one does, who has
            learnt from labels himself.
        logits: divergence from the teacher's class probabilities, or the chances of its map's pixels, softened by
            `temperature`.
        temperature: of both sets of logits.
        prefix: one minus the cosine to the teacher's class token (and registers).
        patches: one minus the cosine to the teacher's patch tokens, mean over the patches.

    Raises:
        ValueError: a weight is negative or the temperature not positive.
    """

    labels: float | None = None
    logits: float = 1.0
    temperature: float = 2.0
    prefix: float = 1.0
    patches: float = 1.0

    def __post_init__(self) -> None:
        for name in ("labels", "logits", "prefix", "patches"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 0, "at least 0")
        _require("temperature", self.temperature, self.temperature > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to train.

    Attributes:
        epochs: how often all pictures are shown.
        steps: of the whole run, in place of epochs; the last epoch is cut short where it must be.
        batch: pictures of one step, all processes together.
        rate: highest learning rate (AdamW), as a share of each tensor's root mean square at the start; it rises
            linearly over the fraction `warmup` of all steps, then follows a cosine down to a hundredth. By default
            that for a pretrained network with a teacher; labels alone bear thrice as much, a start from nothing a
            hundred times.
        head_rate: multiplies the rate of the head.
        router_rate: multiplies the rate of the router and of its gates, which start from nothing.
        decay: weight decay of matrices, a step's share being rate * decay; biases, gates and positions have none.
        clip: largest norm of the gradient.
        smoothing: of the labels.
        seed: of data order, budgets and random changes.
        budgets: Sampled, Leaning, Chosen, InTurn, Sandwich or Fixed.
        loss: weights of the parts of the loss.
        sandwich: run the full network and the drawn budget in each step, the first teaching the second where there is
            no teacher; None for nested networks without a teacher only.
        precision: `no` (single) or `bf16` (autocast; weights stay single).
        checkpoint_every: steps between checkpoints; one is written after each epoch too.
        augment: random changes of the pictures.
        balance: losses of the decisions that a network returns, for routers that choose freely.

    Raises:
        ValueError: a number lies outside its range.
    """

    epochs: int = 10
    steps: int | None = None
    batch: int = 32
    rate: float = 3e-4
    head_rate: float = 1.0
    router_rate: float = 10.0
    decay: float = 0.0
    warmup: float = 0.3
    clip: float = 1.0
    smoothing: float = 0.0
    seed: int = 0
    budgets: Budgets = field(default_factory=Sampled)
    loss: Distil = field(default_factory=Distil)
    sandwich: bool | None = None
    precision: str = "no"
    checkpoint_every: int = 100
    augment: Augment | None = None
    balance: tuple[Balance | Guide, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "checkpoint_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1")
        for name in ("rate", "clip"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        for name in ("head_rate", "router_rate", "decay", "seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("warmup", "smoothing"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")


def described(value: object) -> object:
    """A settings value as JSON can hold it; records bear their type's name, functions their own and what is bound."""
    if isinstance(value, partial):
        bound = {name: described(part) for name, part in value.keywords.items()}
        return {"type": _name(value.func), "given": described(value.args)} | bound
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: described(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    return _name(value) if callable(value) else value


def _name(function: Callable[..., object]) -> str:
    """Where a function or the type of a callable value is found."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    # A comparison with NaN is false, so that NaN is refused too.
    if not holds:
        raise ValueError(f"{name} must be {rule}; got {value!r}. Change it.")


FRESH = Fit(epochs=5, batch=16, rate=0.02, head_rate=10.0, warmup=0.1)
"""For small networks that start from nothing and take few steps: small batches, and a head that catches up.

Chosen on training pictures of Fashion-MNIST that were kept apart: a head that moves like the rest, a slow rise of the
rate and larger batches each learn less there in as many passes.
"""
