"""Rules that several families share: tokens in front of the patches, and their positions."""

import torch
from torch import Tensor

from nestor.models.plain import PlainSettings
from nestor.rules import Rule


def prefix_tokens(*sources: str) -> Rule:
    """The rule for the tokens in front of the patches, kept by each source as (1,n,D) or (D,), in their order."""
    return Rule("embed.prefix", sources, lambda *parts: torch.cat([_rows(part) for part in parts]))


def positions(source: str, settings: PlainSettings, *, covered: int) -> tuple[Rule, ...]:
    """The rules for one table of positions whose first `covered` rows belong to the first tokens of the prefix."""

    def of_prefix(table: Tensor) -> Tensor:
        rows = _rows(table)[:covered]
        return torch.cat([rows, rows.new_zeros(settings.prefix - len(rows), rows.shape[1])])

    def of_patches(table: Tensor) -> Tensor:
        return _rows(table)[covered:].reshape(*settings.grid, table.shape[-1])

    return (Rule("embed.prefix_position", source, of_prefix), Rule("embed.position", source, of_patches))


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
