"""What a load test found, on disk: numbers, tables and a picture."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import place
from benchmarks.serve_draw import draw
from nestor.store import write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve_traffic import Sample

HISTORY = Path(__file__).parent / "history"


def keep(
    report: dict[str, Any],
    lines: str,
    folders: Sequence[Path],
    runs: dict[str, list[Sample]],
    *,
    seconds: float,
    factors: Sequence[float],
    target: float,
) -> list[Path]:
    """Write `serve_load.json`, `.md` and `.png` into each folder, into the machine's own where that is the history.

    Returns:
        Where they are.

    Raises:
        OSError: one cannot be written.
        ImportError: matplotlib is missing; numbers and tables are kept all the same.
    """
    runtime = ["openvino"] if report["programs"] else []
    precision = [] if report["precision"] == "float32" else [report["precision"]]
    name = "-".join(("serve_load", *runtime, *precision))
    own = HISTORY / place(report["machine"]) / "serving"
    places = [own if folder == HISTORY else folder for folder in folders]
    for folder in places:
        write_text(folder / f"{name}.json", json.dumps(plain(report), indent=1, allow_nan=False) + "\n")
        write_text(folder / f"{name}.md", lines)
    file = io.BytesIO()
    figure = draw(runs, seconds=seconds, factors=factors, target=target)
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    for folder in places:
        write_bytes(folder / f"{name}.png", file.getvalue())
    return places


def plain(value: Any) -> Any:
    """As JSON knows it, which has no NaN, with six digits a number."""
    match value:
        case dict():
            return {name: plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case _:
            return value
