"""What a recipe's proof leaves behind: a record that tells what was found, with what and how, and its pictures."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pkgutil
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nestor
from nestor.measure.clock import machine
from nestor.measure.dots import Dots, draw_dots
from nestor.measure.repeats import draw_repeats
from nestor.recipes.reach import reached
from nestor.store import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is no recipe itself.
_AROUND = ("base", "catalogue", "evidence", "reach")


def names() -> tuple[str, ...]:
    """The recipes there are."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name not in _AROUND))


def find(name: str) -> Any:
    """The recipe of this name.

    Raises:
        ValueError: when there is none.
    """
    if name not in names():
        raise ValueError(f"recipe must be one of {', '.join(names())}; got {name!r}.")
    return importlib.import_module(f"nestor.recipes.{name}")


def prove(name: str, *, quick: bool = False, evidence: Path = Path("evidence"), runs: Path = Path("runs")) -> Path:
    """Run a recipe's proof and write its evidence: settings, versions, machine, seconds, claims, hash of the sources.

    Args:
        name: of the recipe.
        quick: the small settings, whose evidence goes below `runs` only.
        evidence: folder of the evidence that is kept.
        runs: folder for checkpoints.

    Returns:
        The file that was written.
    """
    recipe = find(name)
    settings = recipe.Settings.quick() if quick else recipe.Settings()
    work = runs / name / ("quick" if quick else "full")
    start, made_with = time.monotonic(), sources(name)
    proof = recipe.prove(settings, work)
    record = {
        "recipe": name,
        "title": recipe.TITLE,
        "arxiv": recipe.ARXIV,
        "settings": asdict(settings),
        "seconds": round(time.monotonic() - start),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"nestor": nestor.__version__, "python": platform.python_version()},
        "machine": machine(),
        "sources": made_with,
        "claims": [asdict(claim) | {"holds": claim.holds} for claim in proof.claims],
        "details": proof.details,
    }
    target = (work if quick else evidence) / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(record, indent=1) + "\n")
    draw(target)
    for kind, figure in proof.figures.items():
        _keep(figure, target.with_name(f"{name}-{kind}.png"))
    return target


def due(evidence: Path) -> tuple[str, ...]:
    """The recipes without evidence in this folder, and those whose evidence is of earlier sources."""

    def current(name: str) -> bool:
        file = evidence / f"{name}.json"
        return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["sources"] == sources(name)

    return tuple(name for name in names() if not current(name))


def draw(evidence: Path) -> Path | None:
    """Draw the curves of an evidence file beside it, as PNG; None for a recipe without curves.

    Raises:
        ImportError: matplotlib is missing.
    """
    record = json.loads(evidence.read_text(encoding="utf-8"))
    curves = getattr(find(record["recipe"]), "curves", None)
    found = None if curves is None else curves(record["details"])
    if found is None:
        return None
    panels = found if isinstance(found, tuple) else (found,)
    figure = draw_dots(*panels) if isinstance(panels[0], Dots) else draw_repeats(*panels)
    return _keep(figure, evidence.with_suffix(".png"))


def _keep(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def sources(name: str, root: Path | None = None) -> str:
    """SHA-256 of all that a recipe can reach in this library, so that evidence tells what made it.

    Args:
        name: of the recipe.
        root: folder of the library; this one unless given.
    """
    root = root or Path(nestor.__file__).parent
    found = reached(root / "recipes" / f"{name}.py", root)
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(str(path.relative_to(root)).encode() + found[path].encode())
    return digest.hexdigest()
