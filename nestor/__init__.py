"""Nestor: elastic vision transformers, one set of weights that runs at any compute budget.

    model = nestor.nest("dinov2-small", "photos/")
    model = nestor.fit(model, "photos/")
    model.budget = 0.5
    logits = model(images).logits
    nestor.save(model, "elastic/")

Everything else lives in its room: `nestor.data`, `nestor.models`, `nestor.surgery`, `nestor.measure` and so on.
transformers knows our folders too: `pipeline("image-classification", model="elastic/")`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nestor import auto

if TYPE_CHECKING:
    from nestor import data
    from nestor.api import Fit, Latency, Nest, Output, ViT, clock, export, fit, load, nest, profile, save, show

__version__ = "0.1.0"

__all__ = [
    "Fit",
    "Latency",
    "Nest",
    "Output",
    "ViT",
    "clock",
    "data",
    "export",
    "fit",
    "load",
    "nest",
    "profile",
    "save",
    "show",
]


# Importing torch takes seconds, which nobody shall wait for who only asks for help or a version.
def __getattr__(name: str) -> object:
    if name == "data":
        return import_module("nestor.data")
    if name in __all__:
        return getattr(import_module("nestor.api"), name)
    raise AttributeError(f"nestor has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


auto.announce()
