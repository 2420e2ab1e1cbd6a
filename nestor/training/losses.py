"""What a training step minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.measure.traffic import shares
from nestor.training.balance import balance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestor.models.video import Network
    from nestor.training.balance import Balance, Guide
    from nestor.training.settings import Distil
    from nestor.types import Output

PARTS = ("labels", "logits", "prefix", "patches", "balance")


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened probabilities (B, classes), mean over the items.

    Multiplied by the squared temperature, so that the size of its gradient does not depend on it.
    """
    ours, theirs = (F.log_softmax(each.float() / temperature, -1) for each in (logits, target))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def map_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The same for the log-odds of maps (B, H, W), each pixel a chance of its own; mean over items and pixels."""
    ours, theirs = (each.float() / temperature for each in (logits, target))
    chance = theirs.sigmoid()
    crossed, own = (F.binary_cross_entropy_with_logits(each, chance) for each in (ours, theirs))
    return (crossed - own) * temperature**2


def misalignment(tokens: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of tokens (B, T, D) to their targets, mean over all."""
    return 1 - F.cosine_similarity(tokens.float(), target.float(), dim=-1).mean()


@dataclass(frozen=True, eq=False)
class Target:
    """What a teacher says of a batch: `logits` of classes or a map, and `tokens` (B, T, D); None where not needed."""

    logits: Tensor | None
    tokens: Tensor | None


def target(output: Output, loss: Distil) -> Target:
    """What of this output a student shall copy, without gradient."""
    logits = output.logits if loss.logits and output.logits is not None else None
    tokens = output.tokens if loss.prefix or loss.patches else None
    return Target(None if logits is None else logits.detach(), None if tokens is None else tokens.detach())


@final
class Objective(nn.Module):
    """A network with its loss, so that DistributedDataParallel sees all that happens between weights and gradient.

    Pictures and clips fill all their tokens, so that there is no padding for balance losses to leave out.

    Args:
        model: the network to train.
        loss: weights of the parts.
        smoothing: of the labels.
        labels: weight of the cross-entropy to the labels.
        sandwich: whether the full network runs beside the drawn budget.
        balance: losses of the decisions that the network returns.
        watched: whether what every expert got is returned too.
    """

    def __init__(
        self,
        model: Network,
        loss: Distil,
        *,
        smoothing: float,
        labels: float,
        sandwich: bool,
        balance: Sequence[Balance | Guide] = (),
        watched: bool = False,
    ):
        super().__init__()
        self.model, self.loss, self.smoothing = model, loss, smoothing
        self.labels, self.sandwich, self.balance = labels, sandwich, tuple(balance)
        self.watched = watched

    def forward(
        self, images: Tensor, labels: Tensor, budget: float, logits: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The loss, and its weighted parts in the order of PARTS, without gradient; then, if watched, layers' loads.

        A load (E,) is what each expert of a layer got at the budget of this step.

        Args:
            images: (B, 3, H, W), or clips (B, F, 3, H, W).
            labels: (B,).
            budget: of this step.
            logits: the teacher's (B, classes), or of its map (B, H, W), or None.
            tokens: the teacher's (B, T, D), or None.
        """
        teacher = Target(logits, tokens)
        if not self.sandwich or budget == 1:
            output = self.model(images, budget=budget)
            parts = self._parts(output, labels, teacher)
        else:
            full = self.model(images, budget=1.0)
            parts = self._parts(full, labels, teacher)
            if logits is None and tokens is None:
                teacher = target(full, self.loss)
            output = self.model(images, budget=budget)
            parts = parts + self._parts(output, labels, teacher)
        loads = [shares(routing).detach().sum((0, 1)) for routing in output.routings] if self.watched else []
        return parts.sum(), parts.detach(), *loads

    def _parts(self, output: Output, labels: Tensor, teacher: Target) -> Tensor:
        loss, prefix = self.loss, self.model.settings.prefix
        parts = {}
        if output.logits is not None:
            if self.labels:
                entropy = F.cross_entropy(output.logits.float(), labels, label_smoothing=self.smoothing)
                parts["labels"] = self.labels * entropy
            if teacher.logits is not None:
                apart = divergence if output.logits.ndim == 2 else map_divergence
                parts["logits"] = loss.logits * apart(output.logits, teacher.logits, loss.temperature)
        if teacher.tokens is not None:
            ours, theirs = output.tokens, teacher.tokens
            if loss.prefix and prefix:
                parts["prefix"] = loss.prefix * misalignment(ours[:, :prefix], theirs[:, :prefix])
            if loss.patches:
                parts["patches"] = loss.patches * misalignment(ours[:, prefix:], theirs[:, prefix:])
        if self.balance:
            parts["balance"] = balance(self.balance, output.routings, labels=labels)
        zero = torch.zeros((), device=labels.device)
        return torch.stack([parts.get(name, zero) for name in PARTS])
