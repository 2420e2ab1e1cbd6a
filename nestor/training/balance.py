"""Balance losses as settings: which of them count how much, for our loop and for the Trainer of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.nn import functional as F

from nestor.layers.slot import recording
from nestor.measure.traffic import shares
from nestor.routing import losses
from nestor.types import Signal, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from nestor.measure.trace import Watch
    from nestor.types import Routing

    Loss = Callable[..., Tensor]

Trainer = TypeVar("Trainer", bound=type)

LOSSES: dict[str, Loss] = {
    "switch": losses.switch,
    "switch_by_item": losses.switch_by_item,
    "importance": losses.importance,
    "gates": losses.gates,
    "z": losses.z,
    "entropy": losses.entropy,
}


@dataclass(frozen=True, kw_only=True)
class Balance:
    """One balance loss and its weight.

        Balance(kind="switch", weight=0.01)
        Balance(kind=partial(losses.load, deviation=1 / E))
        Balance(kind=partial(losses.importance, costs=milliseconds))
        Balance(kind=losses.spread, weight=-0.01)

    Attributes:
        kind: its name in LOSSES, or a function of nestor.routing.losses with its settings bound; what it is called with
            is a decision and `mask`.
        weight: negative where there shall be more of it, as of `spread`, which no name stands for.

    Raises:
        ValueError: when there is no such loss, or the weight is not positive.
    """

    kind: str | Loss = "switch"
    weight: float = 0.01

    def __post_init__(self) -> None:
        if not callable(self.kind) and self.kind not in LOSSES:
            raise ValueError(
                f"kind must be one of {', '.join(LOSSES)}, or a loss itself; got {self.kind!r}. Pass "
                "partial(losses.NAME, ...) for one that has settings."
            )
        if not (self.weight > 0 or (callable(self.kind) and self.weight < 0)):
            raise ValueError(f"a balance loss needs a positive weight; got {self.weight}. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Cross-entropy between a router's logits and the expert that an item's class belongs to (Mobile V-MoE).

    Attributes:
        groups: the expert of each class.
        weight: of the loss.

    Raises:
        ValueError: when there is no class, or the weight is not positive.
    """

    groups: tuple[int, ...]
    weight: float = 0.3

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 0 or not self.weight > 0:
            raise ValueError(
                f"a guide needs an expert for each class and a positive weight; got {self.groups} and {self.weight}."
            )


def balance(
    parts: Sequence[Balance | Guide],
    routings: Sequence[Routing],
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """The weighted sum of balance losses, mean over the decisions.

    Args:
        parts: which ones.
        routings: of all layers of one forward pass; soft ones are even by themselves and do not count.
        mask: (B, T), true where a token counts.
        labels: (B,), the class of each item, for guides.

    Raises:
        ValueError: when there is no sparse decision, or a gradient is wanted and none of them has any.
    """
    sparse = [routing for routing in routings if isinstance(routing, Sparse)]
    if not sparse:
        raise ValueError(
            f"balance losses need sparse decisions; got {len(routings)} soft ones. Set no balance for soft mixtures, "
            "and call the network itself, not a copy in another thread."
        )
    if torch.is_grad_enabled() and not any(_learns(routing) for routing in sparse):
        raise ValueError(
            "balance losses need decisions with a gradient; got none. Use use_reentrant=False for gradient "
            "checkpointing, and no balance for routers without parameters."
        )
    total = [part.weight * _loss(part, routing, mask, labels) for routing in sparse for part in parts]
    return torch.stack(total).sum() / len(sparse)


def signal_of(inputs: Mapping[str, Any]) -> Signal:
    """What a batch of transformers says of padding: its two-dimensional attention mask, where there is one."""
    mask: Any = inputs.get("attention_mask")
    return Signal(mask=mask.bool()) if isinstance(mask, torch.Tensor) and mask.ndim == 2 else Signal()


def balanced(
    trainer: Trainer,
    parts: Sequence[Balance],
    signal: Callable[[Mapping[str, Any]], Signal] = signal_of,
    watch: Watch | None = None,
) -> Trainer:
    """A subclass of a Trainer of transformers that adds balance losses of all slots to the loss.

        Balanced = balanced(transformers.Trainer, [Balance(kind="switch", weight=0.01)])

    The loss that it reports contains them. With accumulated gradients they are averaged over the accumulated steps,
    whatever the Trainer does to the loss itself.

    Args:
        trainer: Trainer or a subclass.
        parts: which losses; may be none where there is a watch.
        signal: what the routers may consult, from a batch.
        watch: sees the decisions of every small batch of training, those of all processes, and warns of experts that
            get nothing. What it tells stands in every entry of the Trainer's log, which no callback could add to.
    """

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        known = signal(inputs)
        with recording(known) as record:
            loss, outputs = super(made, self).compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if watch is not None and model.training:
            loads = [shares(routing, known.mask).detach().sum((0, 1)) for routing in record.routings]
            loads = [self.accelerator.reduce(load, "sum") for load in loads]
            if self.is_world_process_zero():
                watch.count(loads)
        if not parts:
            return (loss, outputs) if return_outputs else loss
        extra = balance(parts, record.routings, known.mask)
        if model.training and _scaled(self, num_items_in_batch):
            extra = extra / self.current_gradient_accumulation_steps
        loss = loss + extra.to(loss.device, loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def log(self: Any, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        told = {} if watch is None else watch.numbers()
        super(made, self).log({**logs, **told}, *rest, **named)

    made: Any = type(f"Balanced{trainer.__name__}", (trainer,), {"compute_loss": compute_loss, "log": log})
    return cast("Trainer", made)


def _loss(part: Balance | Guide, routing: Sparse, mask: Tensor | None, labels: Tensor | None) -> Tensor:
    if isinstance(part, Balance):
        loss = part.kind if callable(part.kind) else LOSSES[part.kind]
        return loss(routing, mask=mask)
    if labels is None or routing.origin is None or int(labels.max()) >= len(part.groups):
        got = "none" if labels is None else int(labels.max()) + 1
        raise ValueError(
            f"a guide needs labels of its {len(part.groups)} classes and a router's logits; got {got} classes."
        )
    logits = routing.origin.logits.float()
    wanted = torch.tensor(part.groups, device=labels.device)[labels]
    if max(part.groups) >= logits.shape[-1]:
        raise ValueError(f"a guide's experts must lie below {logits.shape[-1]}; got {max(part.groups)}.")
    each = F.cross_entropy(logits.flatten(0, 1), wanted.repeat_interleave(logits.shape[1]), reduction="none")
    kept = torch.ones_like(each) if mask is None else mask.flatten().to(each.dtype)
    return (each * kept).sum() / kept.sum().clamp_min(1)


def _scaled(trainer: Any, items: Any) -> bool:
    """Whether the Trainer will not divide the loss by the number of accumulated steps."""
    if getattr(trainer, "loss_is_scaled_for_ga", None) is not None:
        return bool(trainer.loss_is_scaled_for_ga)
    return (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None


def _learns(routing: Sparse) -> bool:
    return routing.scores.requires_grad or (routing.origin is not None and routing.origin.logits.requires_grad)
