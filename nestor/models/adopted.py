"""A network of timm or transformers in our loop: its logits, and what the mixtures in its slots decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from nestor.layers.slot import recording
from nestor.types import Output


@dataclass(frozen=True, kw_only=True)
class AdoptedSettings:
    """What a loop must know of a network that is not ours.

    Attributes:
        classes: of its head.
        labels: their names, in the head's order; empty if unknown.
        mean, std: of the pictures that it was trained on, for each channel.
    """

    classes: int
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    prefix = 0


@final
class Adopted(nn.Module):
    """A classifier of any make, mixtures in its slots or not, that can be trained and judged as ours are.

        new = replace(model, "blocks.*.mlp", lambda mlp: Mixture(router(), upcycle(dense(mlp), 4)))
        fit(Adopted(new, AdoptedSettings(classes=10)), pictures, Fit(budgets=Fixed(), balance=(Balance(),)))

    There is one budget, the whole, and there are no tokens to be matched with a teacher's: Distil(prefix=0, patches=0).

    Args:
        model: pictures (B, 3, H, W) -> logits (B, classes), or something with `logits`; shared and not copied.
        settings: what it does not tell itself.
    """

    def __init__(self, model: nn.Module, settings: AdoptedSettings):
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, images: Tensor, budget: float | None = None) -> Output:
        """(B, 3, H, W) -> logits and the decisions of all slots, first asked first.

        Raises:
            ValueError: when the network's answer holds no logits (B, classes), or its tokens are asked for.
        """
        with recording() as record:
            answer: Any = self.model(images)
        logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
        wanted = (len(images), self.settings.classes)
        if logits is None or tuple(logits.shape) != wanted:
            got = type(answer).__name__ if logits is None else tuple(logits.shape)
            raise ValueError(f"a network must answer with logits {wanted}; got {got}. Give it a head for the classes.")
        return Output(logits, record.routings, _no_tokens)

    @property
    def head(self) -> nn.Module:
        """Where logits come from."""
        return self.model

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """One, whatever the pictures: how they are cut is the network's own affair."""
        return (1, 1)

    def plan(self, patches: int, budget: float) -> tuple[int, ...]:
        """All patches, whatever the budget."""
        return (patches,)

    def least_budget(self, patches: int) -> float:
        """The whole: nothing can be saved by a dial."""
        return 1.0


def _no_tokens() -> Tensor:
    raise ValueError(
        "the tokens of an adopted network are not known; only its logits. Set Distil(prefix=0, patches=0)."
    )
