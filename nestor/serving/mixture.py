"""Mixture networks of transformers behind a server: how many experts serve a token is their budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nestor.serving.network import Answers, Input

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn


class ServedMixture:
    """A sequence classifier of transformers whose tokens are each served by the top k of many experts.

    A budget is k over the k that the network was trained with, rounded up to hundredths so that it can be named. Items
    are token ids of a fixed length, padded with the network's padding id.

    Args:
        model: a `...ForSequenceClassification`; the k of its routers is set for every batch.
        length: of a sequence, in tokens.
        budgets: those that are declared; by default every k from 1 on.

    Raises:
        ValueError: it is no such network, has no padding id, or a budget is not one of a k.
    """

    # It takes no pictures, and says nothing of patches.
    prepare: None = None
    cells: tuple[int, int] = (0, 0)

    def __init__(self, model: nn.Module, *, length: int = 128, budgets: Sequence[float] | None = None):
        config: Any = model.config
        most = getattr(config, "num_experts_per_tok", None)
        # Families differ in where the number stands; what stands at the trained number is what decides.
        self._routers: list[Any] = [part for part in model.modules() if getattr(part, "top_k", None) == most]
        if not isinstance(most, int) or not self._routers or not getattr(config, "num_labels", 0):
            raise ValueError(
                f"a mixture to be served must be a sequence classifier with num_experts_per_tok, like those of Mixtral "
                f"and Qwen; got {type(model).__name__}."
            )
        if config.pad_token_id is None:
            raise ValueError("a served classifier needs a padding id to batch sequences; set config.pad_token_id.")
        longest = getattr(config, "max_position_embeddings", length)
        if not 1 <= length <= longest:
            raise ValueError(f"length must lie in [1, {longest}] for this network; got {length}.")
        self.model, self._pad = model.eval(), config.pad_token_id
        self._experts = {math.ceil(100 * k / most) / 100: k for k in range(1, most + 1)}
        self.budgets = tuple(sorted(self._experts if budgets is None else set(budgets)))
        if not self.budgets or not self._experts.keys() >= set(self.budgets):
            known = ", ".join(f"{each:g}" for each in self._experts)
            raise ValueError(f"budgets must be among {known}, one for each number of experts; got {self.budgets}.")
        self.input = Input(name="input_ids", datatype="INT64", shape=(length,), below=config.vocab_size)
        self.labels = tuple(str(config.id2label[place]) for place in range(config.num_labels))

    def run(self, items: Tensor, budget: float) -> Answers:
        """Logits (B, classes) of sequences (B, length) at a declared budget."""
        for router in self._routers:
            router.top_k = self._experts[budget]
        mask = (items != self._pad).long()
        # A sequence of padding alone would look at nothing.
        mask[:, 0] = 1
        with torch.inference_mode():
            logits = self.model(input_ids=items, attention_mask=mask, use_cache=False).logits
        return Answers(logits=logits.float().cpu())


def load_mixture(
    folder: str | Path,
    *,
    length: int = 128,
    budgets: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ServedMixture:
    """Read a sequence classifier that transformers saved, from safetensors only.

    Args:
        folder: that holds it.
        length: of a sequence, in tokens.
        budgets: those that are declared; by default every k from 1 on.
        dtype: of its weights.

    Raises:
        ImportError: transformers is missing.
        OSError: the folder holds no such network.
        ValueError: it cannot be served, as in `ServedMixture`.
    """
    try:
        from transformers import AutoModelForSequenceClassification
    except ModuleNotFoundError as error:
        raise ImportError("Serving a mixture needs transformers. Install it: pip install 'nestor[hub]'") from error
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, dtype=dtype
    )
    return ServedMixture(model, length=length, budgets=budgets)
