"""How like the full network's maps those of an elastic network are, budget by budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nestor.data.scan import watch
from nestor.measure.cost import patches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nestor.data import Pictures
    from nestor.models.mapped import Mapped

# Two maps of equal pixels have no correlation to speak of: they get 0 in place of a division by zero.
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class MapLikeness:
    """What a network draws at one budget, against another's maps of the same pictures.

    Attributes:
        correlation: of the pixels of a picture (Pearson's), mean over the pictures.
        difference: mean absolute difference of the pixels, which lie in [0, 1].
        spent: share of the full network's multiply-accumulates.
    """

    correlation: float
    difference: float
    spent: float


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of the pixels of each pair of maps, (B, H, W) twice -> (B,); 0 where one is constant."""
    one, two = (part.double().flatten(1) for part in (maps, others))
    one, two = (part - part.mean(1, keepdim=True) for part in (one, two))
    return (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1)).clamp_min(_LEAST)


@torch.no_grad()
def map_likeness(
    networks: Mapping[str, Mapped], full: Mapped, pictures: Pictures, budgets: Sequence[float], *, batch: int = 16
) -> dict[str, dict[float, MapLikeness]]:
    """Compare the maps of networks, by name and budget, with those of another at its full budget, over all pictures.

    A budget that a network cannot reach is left out of what is said of it.

    Args:
        networks: each at the budgets that it can reach.
        full: what they are compared with.
        pictures: normalised as all of them want them.
        budgets: shares of the full network's multiply-accumulates.
        batch: pictures at a time.
    """
    N = patches(full, pictures.size)
    pairs = [(name, budget) for name in networks for budget in budgets if reaches(networks[name], N, budget)]
    sums = {pair: torch.zeros(2, dtype=torch.float64) for pair in pairs}
    loader = DataLoader(pictures, batch_size=batch)  # pyright: ignore[reportArgumentType]
    for images, _ in watch(loader, total=len(loader), what="Comparing maps"):
        wanted = full.map(images, budget=1.0)
        for name, budget in pairs:
            found = networks[name].map(images, budget=budget)
            difference = (found - wanted).abs().double().mean((1, 2)).sum()
            sums[name, budget] += torch.stack([correlation(found, wanted).sum(), difference])
    said: dict[str, dict[float, MapLikeness]] = {name: {} for name in networks}
    for (name, budget), total in sums.items():
        network = networks[name]
        said[name][budget] = MapLikeness(
            correlation=(total[0] / len(pictures)).item(),
            difference=(total[1] / len(pictures)).item(),
            spent=network.macs(network.plan(N, budget)) / network.full_macs(N),
        )
    return said


def reaches(network: Mapped, patches: int, budget: float) -> bool:
    """Whether a network can run at this budget on pictures of so many patches."""
    return network.least_budget(patches) <= budget * (1 + 1e-9)
