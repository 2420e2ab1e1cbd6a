"""Decisions kept on disk, to be looked at or repeated, and watched while a network learns."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from nestor.measure.traffic import Traffic, shares, traffic
from nestor.store import read_tensors, write_tensors
from nestor.types import Origin, Routing, Soft, Sparse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PARTS = {Sparse: ("scores", "index", "weight"), Soft: ("scores", "give", "take")}
_ORIGIN = ("logits", "noisy", "wanted")


def save_trace(path: str | Path, decisions: Mapping[str, Sequence[Routing]]) -> None:
    """Write decisions as `Record.by_name` gives them into one safetensors file.

    Raises:
        ValueError: when a decision is of another kind than Sparse or Soft.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, list[str]] = {}
    for name, several in decisions.items():
        kinds[name] = []
        for number, routing in enumerate(several):
            parts = _PARTS.get(type(routing))
            if parts is None:
                raise ValueError(f"a trace holds Sparse and Soft decisions; got {type(routing).__name__}.")
            kinds[name].append(type(routing).__name__)
            found = {part: getattr(routing, part) for part in parts}
            if isinstance(routing, Sparse) and routing.origin is not None:
                found |= {f"origin.{part}": getattr(routing.origin, part) for part in _ORIGIN}
            tensors |= {f"{name}/{number}/{part}": tensor.detach().contiguous() for part, tensor in found.items()}
    write_tensors(Path(path), tensors, {"format": "pt", "trace": json.dumps(kinds)})


def load_trace(path: str | Path) -> dict[str, tuple[Routing, ...]]:
    """Read decisions that `save_trace` wrote, bit for bit; `recording(replay=...)` repeats them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no trace.
    """
    tensors, metadata = read_tensors(Path(path))
    try:
        kinds = json.loads(metadata["trace"])
        return {
            name: tuple(_routing(tensors, f"{name}/{number}/", kind) for number, kind in enumerate(several))
            for name, several in kinds.items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no trace of decisions ({error!r}). Write one with save_trace.") from error


def _routing(tensors: Mapping[str, Tensor], at: str, kind: str) -> Routing:
    made = {each.__name__: each for each in _PARTS}[kind]
    parts: dict[str, Tensor | Origin] = {part: tensors[at + part] for part in _PARTS[made]}
    if f"{at}origin.logits" in tensors:
        parts["origin"] = Origin(**{part: tensors[f"{at}origin.{part}"] for part in _ORIGIN})
    return made(**parts)


@final
class Watch:
    """What every layer's experts got over the last steps of training, and a warning when one gets nothing.

    Args:
        steps: an expert that had at most `least` of an even share over so many steps is called dead.
        least: that share.
    """

    def __init__(self, *, steps: int = 100, least: float = 0.01):
        if steps < 1 or not 0 <= least < 1:
            raise ValueError(f"steps must be at least 1 and least in [0, 1); got {steps} and {least}.")
        self.steps, self.least = steps, least
        self._seen: list[list[Tensor]] = []
        self._told: set[tuple[int, int]] = set()

    def see(self, routings: Sequence[Routing], mask: Tensor | None = None) -> None:
        """Note one step's decisions, one for each layer; warns, once for each expert, when one is dead.

        Raises:
            ValueError: when the number of layers changes.
        """
        self.count([shares(routing, mask).sum((0, 1)) for routing in routings])

    def count(self, loads: Sequence[Tensor]) -> None:
        """The same from what each layer's experts got (E,), for instance summed over processes or small batches.

        Raises:
            ValueError: when the number of layers changes.
        """
        if self._seen and len(self._seen) != len(loads):
            raise ValueError(f"layers must stay the same; got {len(loads)} after {len(self._seen)}. Watch anew.")
        self._seen = self._seen or [[] for _ in loads]
        for past, load in zip(self._seen, loads, strict=True):
            past.append(load.detach().cpu())
            del past[: -self.steps]
        for layer, expert in self.dead():
            if (layer, expert) not in self._told:
                self._told.add((layer, expert))
                warnings.warn(
                    f"expert {expert} of layer {layer} got at most {self.least:.0%} of an even share in {self.steps} "
                    "steps. Raise the balance loss, add noise, or remove it.",
                    stacklevel=3,
                )

    def loads(self) -> tuple[Tensor, ...]:
        """For each layer (E,): each expert's share of the tokens over the steps that are remembered."""
        totals = [torch.stack(past).sum(0) for past in self._seen]
        return tuple(total / total.sum().clamp_min(1e-20) for total in totals)

    def numbers(self) -> dict[str, float]:
        """By name, for logs: of each layer the least and the greatest load, 1 being even, and how many are dead."""
        dead, told = self.dead(), {}
        for layer, load in enumerate(self.loads()):
            relative = load * len(load)
            told[f"experts/{layer}/least"] = relative.min().item()
            told[f"experts/{layer}/most"] = relative.max().item()
            told[f"experts/{layer}/dead"] = float(sum(each == layer for each, _ in dead))
        return told

    def dead(self) -> tuple[tuple[int, int], ...]:
        """Layers and experts that got next to nothing; none before so many steps were seen."""
        if not self._seen or len(self._seen[0]) < self.steps:
            return ()
        return tuple(
            (layer, expert)
            for layer, load in enumerate(self.loads())
            for expert in (load * len(load) <= self.least).nonzero().flatten().tolist()
        )


def summary(decisions: Mapping[str, Sequence[Routing]]) -> dict[str, Traffic]:
    """The traffic of each slot, as `Record.by_name` gives the decisions."""
    return {name: traffic(tuple(several)) for name, several in decisions.items()}
