"""Parts of any network exchanged by name: how a mixture gets into a network of transformers or timm."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from nestor.layers.mixture import Mixture
from nestor.layers.slot import Slot
from nestor.types import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

Net = TypeVar("Net", bound=nn.Module)
_SHOWN = 8


def replace(model: Net, patterns: str | Sequence[str], build: Callable[[nn.Module], nn.Module]) -> Net:
    """A copy of a network in which every part that a pattern names is what `build` makes of it.

        replace(model, "blocks.*.mlp", lambda mlp: upcycle(dense(mlp), 4, router))

    A mixture gets a slot around it (nestor.layers.slot), named as the part was; anything else must take and give what
    the part did. A part that the network uses in several places is built once and used in all of them. The copy is of
    the same class as the network, so that saving, configurations and trainers work as before; its weights can be
    loaded into a network to which the same was done.

    Args:
        model: any network; it stays as it is.
        patterns: names of parts, in which `*`, `?` and `[89]` stand for parts of one step of the path.
        build: gets the part, which it may use and change, and returns what stands in its place.

    Raises:
        ValueError: when a pattern names nothing, or one named part lies within another.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    new = copy.deepcopy(model)
    parts = dict(new.named_modules(remove_duplicate=False))
    names = [name for name in parts if name and any(_fits(name, pattern) for pattern in patterns)]
    idle = [pattern for pattern in patterns if not any(_fits(name, pattern) for name in parts if name)]
    if idle or not patterns:
        found = sorted({_general(name) for name in parts if name})
        shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise ValueError(
            f"every pattern must name a part; got {', '.join(map(repr, idle)) or 'no pattern'}. "
            f"This network has {shown or 'no parts'}."
        )
    for name in names:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise ValueError(f"no part may lie within another that is replaced; got {name!r} in {outer!r}. Name one.")
    made: dict[int, nn.Module] = {}
    for name in names:
        part = parts[name]
        if id(part) not in made:
            built = build(part)
            made[id(part)] = (Slot(name, built) if isinstance(built, Mixture) else built).train(part.training)
        owner, _, last = name.rpartition(".")
        setattr(new.get_submodule(owner), last, made[id(part)])
    return new


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a surgery did to a network.

    Attributes:
        error: the largest difference of an answer over the largest answer before; 0 when nothing changed.
        before: parameters, without those shared counted twice.
        after: the same of the new network.
    """

    error: float
    before: int
    after: int

    def __str__(self) -> str:
        return f"relative error {self.error:.2g}, {self.before:,} parameters before and {self.after:,} after"


@torch.no_grad()
def receipt(before: nn.Module, after: nn.Module, *inputs: object, **named: object) -> Receipt:
    """Compare two networks on the same input, both as for evaluation.

    Of our own networks the logits are compared, or the tokens where one of the two has no head.

    Args:
        before: the network that was given.
        after: the network that was made.
        *inputs: what both are called with.
        **named: the same by name.

    Raises:
        ValueError: when an answer holds no tensor, or the shapes of the two differ.
    """
    found = [_called(model, inputs, named) for model in (before, after)]
    headless = any(isinstance(each, Output) and each.logits is None for each in found)
    old, new = (_tensor(each, headless=headless) for each in found)
    if old.shape != new.shape:
        raise ValueError(
            f"both networks must give answers of one shape; got {tuple(old.shape)} before and {tuple(new.shape)} "
            "after. Compare the networks before a head is exchanged."
        )
    scale = old.abs().max().clamp_min(torch.finfo(torch.float32).tiny) if old.numel() else torch.ones(())
    error = ((new - old).abs().max() / scale).item() if old.numel() else 0.0
    return Receipt(error=error, before=_parameters(before), after=_parameters(after))


def _called(model: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> object:
    was = {part: part.training for part in model.modules()}
    try:
        return model.eval()(*inputs, **named)
    finally:
        for part, training in was.items():
            part.training = training


def _tensor(found: Any, *, headless: bool) -> Tensor:
    """The tensor that an answer is, or its first one."""
    while not isinstance(found, Tensor):
        if isinstance(found, Output):
            found = found.tokens if headless or found.logits is None else found.logits
            continue
        values = tuple(found.values()) if hasattr(found, "values") else found
        if not isinstance(values, (tuple, list)) or not values:
            raise ValueError(
                f"a receipt needs answers that hold a tensor; got {type(found).__name__}. Wrap the network."
            )
        found = values[0]
    return found.float()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _fits(name: str, pattern: str) -> bool:
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatchcase, steps, wanted))


def _general(name: str) -> str:
    return ".".join("*" if step.isdigit() else step for step in name.split("."))
