"""Training over budgets with transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from nestor.training.schedule import Sampled

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from nestor.hub.network import NestorForImageClassification
    from nestor.training.schedule import Budgets


class SampledBudgets(TrainerCallback):
    """Draws a budget before each step of a Trainer; between the steps, and afterwards, the network has its own.

    Without this callback a Trainer trains the network at the budget that it has. Give it as
    `Trainer(..., callbacks=[SampledBudgets()])`; it finds the network below PEFT's and PyTorch's wrappers.

    Args:
        budgets: `Sampled`, `Chosen` or `Fixed` of `nestor.training`; Sampled() unless given.
    """

    def __init__(self, budgets: Budgets | None = None):
        self.budgets = Sampled() if budgets is None else budgets
        self._own = 1.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the budget of the step; it depends on the seed and the step alone."""
        network = _network(kwargs["model"])
        self._own = network.budget
        network.budget = self.budgets.draw(args.seed, state.global_step, network.least_budget)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the network its own budget back."""
        _network(kwargs["model"]).budget = self._own


def _network(model: nn.Module) -> NestorForImageClassification:
    from nestor.hub.network import NestorPreTrainedModel

    found = next((part for part in model.modules() if isinstance(part, NestorPreTrainedModel)), None)
    if found is None:
        raise ValueError(f"SampledBudgets needs a network of nestor.hub; got {type(model).__name__}. Leave it out.")
    return found  # pyright: ignore[reportReturnType]
