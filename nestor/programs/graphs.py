"""Networks as programs of torch.export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from nestor.programs.fixed import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from nestor.programs.fixed import Fixed

FACTS = "nestor.json"
"""The extra file in a program that holds what it says of itself."""


def write_torch(programs: Mapping[Path, Fixed]) -> None:
    """Write one program for each file, with weights of its own."""
    for path, program in programs.items():
        torch.export.save(capture(program), path, extra_files={FACTS: json.dumps(program.facts(), indent=2)})


def run_torch(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Pictures to outputs through the program."""
    return torch.export.load(file).module()
