"""Which parts of a network learn, and which stay as they are."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

Net = TypeVar("Net", bound="nn.Module")


def only(model: Net, patterns: str | Sequence[str]) -> Net:
    """A copy of a network of which only those parameters learn that a pattern names.

        only(model, ("head.*", "*.router.*"))

    Args:
        model: stays as it is.
        patterns: names of parameters, in which `*` stands for anything.

    Raises:
        ValueError: when a pattern names no parameter.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    new = copy.deepcopy(model)
    found = dict(new.named_parameters())
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in found)]
    if idle:
        raise ValueError(
            f"every pattern must name a parameter; got {', '.join(map(repr, idle))}. The first of this network is "
            f"{next(iter(found), 'missing')}."
        )
    for name, parameter in found.items():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    return new


def learning(model: nn.Module) -> int:
    """How many numbers of a network learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
