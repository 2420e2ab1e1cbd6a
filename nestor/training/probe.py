"""The best linear head on frozen features: where fine-tuning starts from, and what a nested network may need anew."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nestor.data import require_classes
from nestor.training.predict import features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.data import Pictures
    from nestor.models.vit import ViT

KINDS = ("class", "class_mean")


def probe(
    model: ViT, pictures: Pictures, budgets: Sequence[float] = (1.0,), *, l2: float = 0.01, batch: int = 64
) -> ViT:
    """A copy whose linear head is the optimum of logistic regression on what the head reads.

    Args:
        model: a network with a head of kind `class` or `class_mean` and the classes of the pictures.
        pictures: labelled; without random changes.
        budgets: at which the features are read; one head serves them all.
        l2: weight of half the squared norm of the weights on standardised features, beside the mean cross-entropy.
        batch: pictures at a time.

    Raises:
        ValueError: the head is of another kind or size, the pictures have no labels or one class only, a budget
            cannot be met, or l2 is not positive.
    """
    settings = model.settings
    if model.head is None or settings.head not in KINDS:
        found = "none" if model.head is None else repr(settings.head)
        raise ValueError(
            f"a probe needs a head of kind {' or '.join(KINDS)}; got {found}. Give the network such a head."
        )
    require_classes(pictures)
    if settings.classes != len(pictures.classes):
        raise ValueError(
            f"the head has {settings.classes} classes and the pictures {len(pictures.classes)}. "
            "Give the network a fresh head for these pictures."
        )
    if not budgets or not l2 > 0:
        raise ValueError(f"a probe needs at least one budget and l2 above 0; got {tuple(budgets)} and {l2}.")
    read = [features(model, pictures, budget, batch=batch) for budget in budgets]
    weight, bias = logistic(
        torch.cat([values[:, : model.head.linear.in_features] for values, _ in read]),
        torch.cat([labels for _, labels in read]),
        settings.classes,
        l2=l2,
    )
    result = copy.deepcopy(model)
    assert result.head is not None
    with torch.no_grad():
        result.head.linear.weight.copy_(weight)
        result.head.linear.bias.copy_(bias)
    return result


def logistic(values: Tensor, labels: Tensor, classes: int, *, l2: float) -> tuple[Tensor, Tensor]:
    """Weights (classes, F) and biases (classes,) of multinomial logistic regression on values (N, F).

    The penalty l2/2 |W|^2 is on the weights of standardised features and not on the biases. In double precision.
    """
    values = values.double()
    mean, spread = values.mean(0), values.std(0, correction=0)
    # A feature that never changes tells nothing; its rounding noise must not be blown up.
    spread = torch.where(spread > 1e-9 * (1 + mean.abs()), spread, torch.inf)
    standard = (values - mean) / spread
    weight = torch.zeros(classes, values.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    weight = weight.detach() / spread
    return weight, bias.detach() - weight @ mean
