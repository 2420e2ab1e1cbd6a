"""Stacked feed-forward experts: E networks of one shape, in one tensor for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.ops import grouped
from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Activation:
    """What stands between two linear maps: `apply` takes `fan` numbers for each hidden unit, all first ones first."""

    fan: int
    apply: Callable[[Tensor], Tensor]


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


GELU = Activation(fan=1, apply=F.gelu)
RELU = Activation(fan=1, apply=F.relu)
SWIGLU = Activation(fan=2, apply=_swiglu)


@final
class FeedForward(Experts):
    """y = W2 act(W1 x + b1) + b2 for each expert.

    Args:
        width: D.
        hidden: units of each expert.
        experts: E.
        activation: `GELU`, `RELU`, `SWIGLU` or one of your own.
        bias: whether there are b1 and b2.
        out: D', D unless given.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        *,
        activation: Activation = GELU,
        bias: bool = True,
        out: int | None = None,
    ):
        super().__init__()
        out = width if out is None else out
        self.activation = activation
        self.inward = nn.Parameter(uniform(experts, activation.fan * hidden, width))
        self.inward_bias = nn.Parameter(torch.zeros(experts, activation.fan * hidden)) if bias else None
        self.outward = nn.Parameter(uniform(experts, out, hidden))
        self.outward_bias = nn.Parameter(torch.zeros(experts, out)) if bias else None

    @classmethod
    def of(
        cls,
        inward: Tensor,
        outward: Tensor,
        inward_bias: Tensor | None = None,
        outward_bias: Tensor | None = None,
        *,
        activation: Activation = GELU,
    ) -> FeedForward:
        """Experts with copies of these weights.

        Args:
            inward: (E, fan * H, D).
            outward: (E, D', H).
            inward_bias: (E, fan * H); of two biases one may be missing, which is then zero.
            outward_bias: (E, D').
            activation: as above.

        Raises:
            ValueError: when the shapes do not fit one another.
        """
        E, H = len(inward), outward.shape[-1]
        shapes = {"inward": (E, activation.fan * H, inward.shape[-1]), "outward": (E, outward.shape[1], H)}
        found = {"inward": inward, "outward": outward}
        biased = inward_bias is not None or outward_bias is not None
        if biased:
            shapes |= {"inward_bias": shapes["inward"][:2], "outward_bias": shapes["outward"][:2]}
            found["inward_bias"] = inward.new_zeros(shapes["inward_bias"]) if inward_bias is None else inward_bias
            found["outward_bias"] = outward.new_zeros(shapes["outward_bias"]) if outward_bias is None else outward_bias
        for name, tensor in found.items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(
                    f"{name} must be {shapes[name]} for {E} experts of {H} units; got {tuple(tensor.shape)}. "
                    "An activation of fan 2 takes two rows for each unit."
                )
        with torch.device("meta"):
            made = cls(inward.shape[-1], H, E, activation=activation, bias=biased, out=outward.shape[1])
        made.load_state_dict({name: tensor.detach().clone() for name, tensor in found.items()}, assign=True)
        return made

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, D) and (E,) -> (R, D')."""
        hidden = self.activation.apply(grouped.linear(rows, counts, self.inward, self.inward_bias))
        return grouped.linear(hidden, counts, self.outward, self.outward_bias)

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-accumulates of one row, for each expert."""
        return (self.inward[0].numel() + self.outward[0].numel(),) * len(self.inward)


def uniform(*shape: int) -> Tensor:
    """Weights (..., O, D) drawn between -1 and 1 over the square root of D, as torch's own linear maps are."""
    return (torch.rand(*shape) * 2 - 1) * shape[-1] ** -0.5
