"""What load tests found, as tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).parents[2] / "benchmarks" / "history"


def under_load() -> str:
    """The load test that is kept of each machine."""
    kept = _kept()
    if not kept:
        return (
            "No load test is kept yet: `python -m benchmarks.serve_load elastic/ --data photos/ --history` makes one."
        )
    return "\n\n".join(_told(path, json.loads(path.read_text(encoding="utf-8"))) for path in kept)


def figures() -> dict[str, bytes]:
    """Their pictures, by path."""
    return {_figure(path): path.with_suffix(".png").read_bytes() for path in _kept()}


def _kept() -> list[Path]:
    return sorted(HISTORY.glob("*/serving/*.json"))


def _figure(path: Path) -> str:
    return f"load/{path.parent.parent.name}-{path.stem}.png"


def _told(path: Path, found: dict[str, Any]) -> str:
    machine, target = found["machine"], f"{found['target_ms']:g} ms"
    rows = [
        "| load | p95, ms | in time | budget | right | refused | lost |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for step in found["steps"]:
        if step["system"] == "elastic":
            cells = (
                f"{step['factor']:g}",
                f"{step['p95_ms']:.0f}",
                f"{100 * step['kept']:.1f}%",
                f"{step['budget']:.2f}",
                f"{step['accuracy_offered']:.3f}",
                f"{step['refused']} of {step['offered']}",
                f"{step['lost'] + step['errors']}",
            )
            rows.append(f"| {' | '.join(cells)} |")
    runtime = ", in OpenVINO" if found.get("programs") else ""
    claims = found["claims"]
    failed = [claim for claim, holds in claims.items() if holds is False]
    unknown = [claim for claim, holds in claims.items() if holds is None]
    short = f" These do not: {'; '.join(failed)}." if failed else ""
    short += f" Nothing can be said of these: {'; '.join(unknown)}." if unknown else ""
    return "\n\n".join(
        (
            f"{machine['processor']}, {machine['threads']} threads, {found['precision']}{runtime}, pictures of "
            f"{found['size']} pixels, at most {target} promised. A load of 1 is what the full network can bear, "
            f"{found['capacity']['full']:.0f} pictures a second:",
            "\n".join(rows),
            f"![Latency, budget and accuracy over growing loads, elastic beside fixed](../{_figure(path)}){{ .chart }}",
            f"Of {len(claims)} claims {len(claims) - len(failed) - len(unknown)} hold.{short}",
        )
    )
