"""Reading a feed-forward part of any network as one expert."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.experts.feedforward import Activation, FeedForward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 8
"""How many random rows a reading is checked on."""


def dense(module: nn.Module) -> FeedForward:
    """One expert with the weights of a feed-forward part, whatever its class and the names in it.

    A part of two linear maps may be plain or gated with both halves in the first map; one of three is gated. Which
    half is the gate, and which activation stands between, is found by comparing answers on random rows, so that what
    comes back computes the same. Dropout is not carried over.

    Args:
        module: maps (..., D) to (..., D'), for instance `blocks[0].mlp` of timm or `layer[0].mlp` of transformers.

    Raises:
        ValueError: when the part has not two or three linear maps, or no reading of it gives its answers.
    """
    maps = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if len(maps) not in (2, 3):
        raise ValueError(
            f"a feed-forward part has two linear maps, or three if gated; got {len(maps)} in "
            f"{type(module).__name__}. Build the expert with FeedForward.of."
        )
    rows = torch.randn(ROWS, maps[0].in_features, generator=torch.Generator().manual_seed(0)).to(maps[0].weight)
    wanted = _evaluated(module, rows)
    counts = torch.tensor([ROWS], device=rows.device)
    best = torch.inf
    for made in _readings(module, maps):
        with torch.no_grad():
            found = made(rows, counts)
        if found.shape == wanted.shape:
            error = ((found - wanted).float().norm() / wanted.float().norm().clamp_min(1e-20)).item()
            if error < (1e-5 if rows.dtype in (torch.float32, torch.float64) else 1e-2):
                return made
            best = min(best, error)
    raise ValueError(
        f"no reading of {type(module).__name__} gives its answers; the nearest is off by {best:.2g}. "
        "A norm or another map may stand between. Build the expert with FeedForward.of."
    )


def _readings(module: nn.Module, maps: list[nn.Linear]) -> Iterator[FeedForward]:
    own = [part for part in module.modules() if _acts(part)]
    functions: list[Callable[[Tensor], Tensor]] = [F.gelu, _tanh, F.silu, F.relu, *own]
    for apply in functions:
        if len(maps) == 3:
            for gate, value, down in permutations(maps):
                if gate.weight.shape == value.weight.shape and down.in_features == gate.out_features:
                    up = torch.cat([gate.weight, value.weight])
                    bias = None if gate.bias is None or value.bias is None else torch.cat([gate.bias, value.bias])
                    yield _made(up, bias, down, Activation(fan=2, apply=Gate(apply)))
            continue
        up, down = maps
        if up.out_features == down.in_features:
            yield _made(up.weight, up.bias, down, Activation(fan=1, apply=apply))
        elif up.out_features == 2 * down.in_features:
            for turn in (0, down.in_features):
                bias = None if up.bias is None else up.bias.roll(turn, 0)
                yield _made(up.weight.roll(turn, 0), bias, down, Activation(fan=2, apply=Gate(apply)))


@dataclass(frozen=True)
class Gate:
    """act(first half) * second half."""

    apply: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 2H) -> (..., H)."""
        gate, value = x.chunk(2, -1)
        return self.apply(gate) * value


def _made(up: Tensor, bias: Tensor | None, down: nn.Linear, activation: Activation) -> FeedForward:
    outward_bias = None if down.bias is None else down.bias[None]
    return FeedForward.of(
        up[None], down.weight[None], None if bias is None else bias[None], outward_bias, activation=activation
    )


def _acts(part: nn.Module) -> bool:
    leaf = not any(True for _ in part.children()) and not any(True for _ in part.parameters())
    return leaf and not isinstance(part, (nn.Dropout, nn.Identity))


def _tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@torch.no_grad()
def _evaluated(module: nn.Module, rows: Tensor) -> Tensor:
    modes = {part: part.training for part in module.modules()}
    try:
        return module.eval()(rows.unsqueeze(0)).squeeze(0)
    finally:
        for part, mode in modes.items():
            part.training = mode
