"""Training: one loop over sampled budgets, by labels and by distillation; prediction and linear probes."""

from nestor.training.fit import fit
from nestor.training.predict import features, predict
from nestor.training.probe import probe
from nestor.training.schedule import Chosen, Fixed, InTurn, Leaning, Sampled, Sandwich
from nestor.training.settings import Distil, Fit

__all__ = [
    "Chosen",
    "Distil",
    "Fit",
    "Fixed",
    "InTurn",
    "Leaning",
    "Sampled",
    "Sandwich",
    "features",
    "fit",
    "predict",
    "probe",
]
