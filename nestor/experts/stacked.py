"""What can be done to all experts at once where every tensor holds one slice for each of them.

True of `FeedForward`, `LoRA`, `Bottleneck`, `Kronecker`, `Constant` and `Modulation`; not of nested or joined experts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from nestor.types import Experts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Stack = TypeVar("Stack", bound=Experts)


def select(experts: Stack, keep: Sequence[int]) -> Stack:
    """New experts: those of these numbers, in this order; a number may come twice.

    Raises:
        ValueError: when there is none, one does not exist, or the experts are not stacked.
    """
    E = require_stacked(experts)
    if not keep or min(keep) < 0 or max(keep) >= E:
        raise ValueError(f"experts to keep must be some of 0 to {E - 1}; got {tuple(keep)}. Name at least one.")
    return _changed(experts, lambda tensor: tensor[torch.tensor(tuple(keep), device=tensor.device)])


def average(experts: Stack, weights: Tensor | None = None) -> Stack:
    """One new expert, each of whose weights is the mean of all experts'.

    Args:
        experts: stacked.
        weights: (E,), how much each counts, in proportion; all the same unless given.

    Raises:
        ValueError: when the weights are not E numbers, not negative and not all zero, or the experts not stacked.
    """
    E = require_stacked(experts)
    share = torch.ones(E).double() if weights is None else weights.detach().double().cpu()
    if share.shape != (E,) or not bool((share >= 0).all()) or not float(share.sum()) > 0:
        raise ValueError(f"weights must be {E} numbers, not negative and not all 0; got {share.tolist()}. Take loads.")
    share = share / share.sum()
    # In double precision, so that the mean of equal experts is that expert, bit for bit in single.
    return _changed(experts, lambda t: torch.einsum("e,e...->...", share.to(t.device), t.double())[None])


@torch.no_grad()
def pull(experts: Experts, rate: float) -> None:
    """Draw experts in training towards one another, in place: each keeps 1 - rate and takes rate of the others' mean.

    The sum of all experts stays; their distance from the mean shrinks by 1 - rate * E / (E - 1), so that at a rate of
    (E - 1) / E they coincide (EWA, arXiv 2308.06093).

    Raises:
        ValueError: when the rate does not lie in [0, (E - 1) / E], or the experts are not stacked.
    """
    E = require_stacked(experts)
    most = (E - 1) / E
    if not 0 <= rate <= most + 1e-9:
        raise ValueError(f"rate must lie in [0, {most:.4g}] for {E} experts; got {rate}. There all experts coincide.")
    if E == 1 or not rate:
        return
    for parameter in experts.parameters():
        parameter.lerp_(parameter.mean(0, keepdim=True).expand_as(parameter), min(1.0, rate * E / (E - 1)))


def require_stacked(experts: Experts) -> int:
    """E, where every tensor holds one slice for each expert.

    Raises:
        ValueError: when there is no tensor, or one that is not stacked.
    """
    E = len(experts.costs)
    odd = [name for name, tensor in experts.state_dict().items() if tensor.ndim < 2 or len(tensor) != E]
    if odd or not experts.state_dict():
        raise ValueError(
            f"experts must be stacked, each tensor a slice for each of {E}; got {type(experts).__name__} with "
            f"{', '.join(odd) or 'no tensor'}. Do it to each part by itself."
        )
    return E


def _changed(experts: Stack, change: Callable[[Tensor], Tensor]) -> Stack:
    new = copy.deepcopy(experts)
    with torch.no_grad():
        for name, parameter in list(new.named_parameters()):
            owner, _, last = name.rpartition(".")
            made = nn.Parameter(change(parameter).to(parameter.dtype).contiguous(), parameter.requires_grad)
            setattr(new.get_submodule(owner), last, made)
    return new
