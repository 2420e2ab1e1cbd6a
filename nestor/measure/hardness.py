"""Whether it pays to let hard pictures take more of a batch's budget than easy ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from nestor.data.scan import watch
from nestor.measure.cost import patches
from nestor.measure.likeness import cosines

if TYPE_CHECKING:
    from nestor.data import Pictures
    from nestor.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Swing:
    """Likeness to the full network at one mean budget, with equal shares for all pictures and with unequal ones.

    Attributes:
        equal, unequal: mean cosines of class token and patches; of the patches alone without a class token.
        equal_spent, unequal_spent: mean shares of the full network's multiply-accumulates.
    """

    equal: tuple[float, ...]
    unequal: tuple[float, ...]
    equal_spent: float
    unequal_spent: float

    @property
    def pays(self) -> bool:
        """Whether unequal shares bring the first token (patches, without one) nearer to the full network's."""
        return self.unequal[0] > self.equal[0]


@torch.no_grad()
def swing(model: ViT, pictures: Pictures, budget: float, by: float, *, batch: int = 48) -> Swing:
    """Run the hardest third of each batch at `budget + by` and the easiest at `budget - by`; the sum never exceeds.

    A picture is as hard as the mean probability of the widest expert over its patches.

    Args:
        model: an elastic network in evaluation mode.
        pictures: normalised as it wants them.
        budget: mean fraction of the full network's multiply-accumulates.
        by: how far the thirds are apart; a negative one gives more to the easy ones, which shows what chance gives.
        batch: pictures at a time, who share a budget.

    Raises:
        ValueError: when the network has one expert, or a third cannot keep its budget.
    """
    if model.settings.nest.experts < 2:
        raise ValueError(
            "unequal shares need an elastic network; this one has one expert. Make it elastic: nestor nest."
        )
    N, prefix = patches(model, pictures.size), model.settings.prefix
    full, plans = model.full_macs(N), [model.plan(N, budget + step) for step in (-by, 0.0, by)]
    equal, unequal, spent = [], [], 0
    loader = DataLoader(pictures, batch_size=batch)  # pyright: ignore[reportArgumentType]
    for images, _ in watch(loader, total=len(loader), what="Comparing shares"):
        wanted = model(images, budget=1.0)
        order = wanted.routings[0].scores[..., -1].mean(1).argsort()
        third = len(images) // 3
        groups = order.split([third, len(images) - 2 * third, third])
        equal.append(cosines(model.run(images, plans[1]).tokens, wanted.tokens, prefix))
        for group, plan in zip(groups, plans, strict=True):
            if len(group):
                unequal.append(cosines(model.run(images[group], plan).tokens, wanted.tokens[group], prefix))
                spent += len(group) * model.macs(plan)
    return Swing(
        equal=tuple(torch.cat(equal).mean(0).tolist()),
        unequal=tuple(torch.cat(unequal).mean(0).tolist()),
        equal_spent=model.macs(plans[1]) / full,
        unequal_spent=spent / (len(pictures) * full),
    )
