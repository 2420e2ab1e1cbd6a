"""How a network's activations are rounded to eight bits, beside its weights on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor import store
from nestor.ops.int8 import Reading, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

READINGS = "int8.safetensors"


def save_readings(readings: Sequence[Mapping[str, Mapping[int, Reading]]], folder: str | Path) -> Path:
    """Write what `nestor.surgery.quantize.measured` found beside the network that it was found for.

    Raises:
        FileNotFoundError: no network was saved there.
        OSError: the folder cannot be written.
    """
    file = Path(folder) / READINGS
    tensors = {
        f"{number}.{site}.{expert}": _written(reading)
        for number, sites in enumerate(readings)
        for site, experts in sites.items()
        for expert, reading in experts.items()
    }
    store.write_tensors(file, tensors, {"weights": _weights(file.parent)})
    return file


def load_readings(folder: str | Path) -> list[dict[str, dict[int, Reading]]]:
    """Read what `save_readings` wrote.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: the file is damaged, or the weights beside it are others now.
    """
    file = Path(folder) / READINGS
    again = f"Make it: nestor quantize {folder} --data ..."
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {READINGS}, which eight bits need. {again}")
    tensors, metadata = store.read_tensors(file)
    if metadata.get("weights") != _weights(file.parent):
        raise ValueError(f"{file} was made for other weights than those beside it. {again}")
    found: dict[int, dict[str, dict[int, Reading]]] = {}
    for name, tensor in tensors.items():
        number, layer, way, expert = name.split(".")
        found.setdefault(int(number), {}).setdefault(f"{layer}.{way}", {})[int(expert)] = _read(tensor)
    return [found[number] for number in sorted(found)]


def _written(reading: Reading) -> Tensor:
    """Size and zero of the steps, then the reaches if there are any; double precision, as Python's own numbers are."""
    steps = torch.tensor([reading.steps.size, reading.steps.zero], dtype=torch.float64)
    return steps if reading.reaches is None else torch.cat([steps, reading.reaches.double()])


def _read(written: Tensor) -> Reading:
    steps = Steps(size=float(written[0]), zero=int(written[1]))
    return Reading(steps=steps, reaches=written[2:].float() if len(written) > 2 else None)


def _weights(folder: Path) -> str:
    with (folder / store.WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
