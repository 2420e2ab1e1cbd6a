"""1,797 handwritten digits of 8 x 8 pixels, which travel inside scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_REPAIR = "Install it: pip install 'nestor[data]'"


def digits(file: Path | None = None) -> tuple[Tensor, Tensor]:
    """Pictures (N, 8, 8) in [0, 1] and what they show (N,), in the order of the file.

    Args:
        file: digits.csv.gz; by default the one inside the installed package.

    Raises:
        ImportError: the package scikit-learn is missing.
        FileNotFoundError: its file is missing.
        ValueError: the file is damaged.
    """
    file = file or _packaged()
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {_REPAIR}")
    try:
        table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",", ndmin=2)
    except Exception as error:
        raise ValueError(f"{file} is no readable table: {error}. {_REPAIR}") from error
    if table.shape[1] != 65 or not len(table) or table.min() < 0 or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise ValueError(f"{file} must have 64 numbers up to 16 and a digit in each line; got {table.shape}. {_REPAIR}")
    values = torch.from_numpy(table)
    return values[:, :64].float().view(-1, 8, 8) / 16, values[:, 64].long()


def _packaged() -> Path:
    # Found without being imported: only its file matters.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ImportError(f"Handwritten digits travel in the package scikit-learn. {_REPAIR}")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
