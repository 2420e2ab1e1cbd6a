"""Programs of OpenVINO behind a server: one for each budget, in a folder of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor.programs.openvino import Program
from nestor.serving.network import Answers, Input, Preparation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SUFFIX = ".xml"
_COMMON = ("labels", "classes", "mean", "std", "size", "inputs")


class ServedPrograms:
    """The programs of one network that `nestor export --format openvino` wrote into a folder.

    Args:
        folder: of the programs, which give logits; where all give experts too, the routing can be asked for.
        budgets: that are declared; by default those of all programs.
        precision: that products are computed in, float32 or bfloat16.

    Raises:
        ImportError: OpenVINO is missing.
        ValueError: there is no program for a budget, two have the same one, they are not of the same network, or they
            are not made for what a server gives and wants.
    """

    def __init__(self, folder: str | Path, budgets: Sequence[float] | None = None, *, precision: str = "float32"):
        programs = [Program(file, precision=precision) for file in sorted(Path(folder).glob(f"*{SUFFIX}"))]
        self._programs = {float(each.facts.get("budget", "nan")): each for each in programs}
        if not programs or len(self._programs) < len(programs) or any(map(math.isnan, self._programs)):
            raise ValueError(
                f"{folder} must hold programs of Nestor's, each with a budget of its own; got {len(programs)} files "
                f"and the budgets {sorted(self._programs)}. Export them into an empty folder."
            )
        self.budgets = tuple(sorted(self._programs if budgets is None else set(budgets)))
        if missing := [budget for budget in self.budgets if budget not in self._programs]:
            raise ValueError(
                f"{folder} has programs for the budgets {', '.join(f'{b:g}' for b in sorted(self._programs))}; got "
                f"{missing[0]:g}. Export one for it too."
            )
        common = [{key: each.facts[key] for key in _COMMON} for each in programs]
        if any(each != common[0] for each in common) or common[0]["inputs"] != "normalised":
            raise ValueError(
                f"{folder} must hold programs of one network that take normalised pictures of one size; got "
                f"{common}. Export them together."
            )
        if any("logits" not in each.names for each in programs):
            raise ValueError(
                f"{folder} must hold programs that give logits. Export them with --outputs logits,experts."
            )
        mean, std = (tuple(json.loads(common[0][name])) for name in ("mean", "std"))
        side = int(common[0]["size"])
        self.labels = tuple(json.loads(common[0]["labels"])) or tuple(map(str, range(int(common[0]["classes"]))))
        self.input = Input(shape=(len(mean), side, side))
        self.prepare = Preparation(side=side, mean=mean, std=std)
        rows, columns = json.loads(programs[0].facts["cells"])
        self.cells = (rows, columns) if all("experts" in each.names for each in programs) else (0, 0)

    def run(self, items: Tensor, budget: float) -> Answers:
        """Logits, and routing where there is any, of pictures (B, C, H, W) at a declared budget."""
        program = self._programs[budget]
        found = dict(zip(program.names, program(items.float()), strict=True))
        return Answers(
            logits=found["logits"].float(), experts=found["experts"].to(torch.int32) if self.cells[0] else None
        )
