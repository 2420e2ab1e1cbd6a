"""Our networks as transformers classes, which all Auto classes know once `nestor` is imported, before them or after.

    import nestor
    from transformers import AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained("elastic/")
    model.budget = 0.5
    pipeline("image-classification", model="elastic/")

Every folder that `nestor.save`, `nestor nest` and `nestor fit` write can be read like this, and what `save_pretrained`
writes can be read by `nestor.load`: it is one format. Folders carry no code, so that nobody needs `trust_remote_code`.
This module takes seconds to import, which opening the first such folder does by itself.

Pictures are prepared by transformers' own `BitImageProcessor`, which each folder names beside the network: bicubic,
shorter side to the nominal size, centre crop. On square pictures its PIL backend agrees with `nestor.data` to rounding.
"""

from nestor.hub.needs import repair

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        PreTrainedConfig,  # noqa: F401
        PreTrainedModel,  # noqa: F401
        TrainerCallback,  # noqa: F401
    )
except ImportError as error:
    raise ImportError(repair(error)) from error

from nestor.hub.budgets import SampledBudgets
from nestor.hub.card import model_card, write_card
from nestor.hub.config import NestorConfig
from nestor.hub.network import NestorForImageClassification, NestorModel

__all__ = [
    "NestorConfig",
    "NestorForImageClassification",
    "NestorModel",
    "SampledBudgets",
    "model_card",
    "write_card",
]

AutoConfig.register(NestorConfig.model_type, NestorConfig, exist_ok=True)
AutoModel.register(NestorConfig, NestorModel, exist_ok=True)
AutoModelForImageClassification.register(NestorConfig, NestorForImageClassification, exist_ok=True)
