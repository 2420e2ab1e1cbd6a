"""From a folder to a network that can be served, whatever its dial is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor.models.readings import load_readings
from nestor.models.saved import load_model
from nestor.serving.mixture import load_mixture
from nestor.serving.network import ServedViT
from nestor.serving.programs import SUFFIX, ServedPrograms
from nestor.surgery.quantize import quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.models.vit import ViT
    from nestor.serving.network import Served

CONFIG = "config.json"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INT8 = "int8"


def open_served(
    folder: str | Path,
    *,
    budgets: Sequence[float] | None = None,
    size: int | None = None,
    precision: str = "float32",
    load: Callable[[str | Path], ViT] = load_model,
) -> Served:
    """Load what a folder holds: a vision transformer, a mixture of transformers that classifies sequences, or programs.

    Args:
        folder: saved by Nestor or by transformers, or with programs of `nestor export --format openvino`.
        budgets: that are declared; by default the network's own.
        size: side of the pictures in pixels, or length of the sequences in tokens; by default 128 tokens.
        precision: number format of the weights, float32, bfloat16 or int8; the last for what was made ready by
            `nestor quantize`.
        load: reads whatever is no mixture.

    Raises:
        FileNotFoundError: the folder is missing, or not ready for eight bits.
        ValueError: it holds nothing that can be served, or the precision is not known.
    """
    if precision not in (*PRECISIONS, INT8):
        raise ValueError(f"precision must be {', '.join(PRECISIONS)} or {INT8}; got {precision!r}.")
    if any(Path(folder).glob(f"*{SUFFIX}")):
        if precision == INT8 or size is not None:
            raise ValueError(
                f"programs are served in {' or '.join(PRECISIONS)}, at the size that they are made for; got "
                f"{precision!r} and size {size}. Export others."
            )
        return ServedPrograms(folder, budgets, precision=precision)
    if _mixture(Path(folder) / CONFIG):
        if precision == INT8:
            raise ValueError(f"a mixture of transformers is served in {' or '.join(PRECISIONS)}; got {precision!r}.")
        length = 128 if size is None else size
        return load_mixture(folder, length=length, budgets=budgets, dtype=PRECISIONS[precision])
    model = load(folder)
    ready = quantized(model, load_readings(folder)) if precision == INT8 else model.to(PRECISIONS[precision])
    return ServedViT(ready, budgets, size=size)


def stamp(folder: str | Path) -> str:
    """Tells one state of a folder's files from another: their names, sizes and moments of change."""
    if not Path(folder).is_dir():
        return ""
    files = [(each.name, each.stat()) for each in sorted(Path(folder).iterdir()) if each.is_file()]
    return json.dumps([(name, found.st_size, found.st_mtime_ns) for name, found in files])


def _mixture(config: Path) -> bool:
    try:
        return "num_experts_per_tok" in json.loads(config.read_text(encoding="utf-8"))
    # Whatever is no readable JSON object is for the loader to complain of.
    except (OSError, ValueError, TypeError):
        return False
