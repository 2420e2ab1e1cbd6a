"""What a recipe is: a published system built from parts, and the claims that it proves."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import operator
import pkgutil
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import nestor
from nestor.measure.clock import machine
from nestor.measure.frontier import reached
from nestor.measure.repeats import draw_repeats
from nestor.store import write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement with two numbers; `exact` ones hold on any machine and seed and belong to the tests."""

    text: str
    left: float
    relation: str
    right: float
    exact: bool = False

    @property
    def holds(self) -> bool:
        """Whether the relation is true of the two numbers."""
        return bool(RELATIONS[self.relation](self.left, self.right))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a recipe found.

    Attributes:
        claims: that it makes.
        details: the curves and tables behind them, as JSON can hold them.
        figures: by name, what only the proof itself can draw, because it needs the networks; kept beside the evidence.
    """

    claims: tuple[Claim, ...]
    details: Mapping[str, Any]
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Recipe(Protocol):
    """A module in this folder; the folder is the registry.

    `TITLE`, `ARXIV` (empty where there is no paper) and `IDEA` describe it; `Settings` is a frozen dataclass with a
    class method `quick()` of about five seconds. A recipe with curves has `curves(details)` too: one Repeats, several
    to stand side by side, or None.
    """

    TITLE: str
    ARXIV: str
    IDEA: str
    Settings: Any

    def build(self, settings: Any) -> Any:
        """The system itself."""
        ...

    def prove(self, settings: Any, folder: Path | None = None) -> Proof:
        """Run the proof; `folder` keeps checkpoints, so that it may be interrupted."""
        ...


def in_time(
    what: str,
    mine: Mapping[float, float],
    rival: Mapping[float, float],
    took: Mapping[str, Mapping[str, Mapping[float, float]]],
    names: tuple[str, str],
) -> list[Claim]:
    """Claims that one network reaches what a rival does in the time that the rival takes at each budget below 1.

    Args:
        what: is compared.
        mine, rival: its values by budget.
        took: milliseconds by precision, network and budget, as from `nestor.measure.frontier`.
        names: of the two among the networks.
    """
    own, other = names
    return [
        Claim(
            text=f"{what}, {own} in the time of {other} at {budget}, {precision}",
            left=reached(at[own], mine, at[other][budget]),
            relation=">=",
            right=rival[budget],
        )
        for precision, at in took.items()
        for budget in at[other]
        if budget < 1
    ]


def names() -> tuple[str, ...]:
    """The recipes there are."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name not in ("base", "catalogue")))


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
    return _keep(draw_repeats(*found if isinstance(found, tuple) else (found,)), evidence.with_suffix(".png"))


def _keep(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def sources(name: str, root: Path | None = None) -> str:
    """SHA-256 of a recipe's code and of all of the library that it imports, so that evidence tells what made it.

    Comments, docstrings and empty lines do not count, since they change nothing that was measured.

    Args:
        name: of the recipe.
        root: folder of the library; this one unless given.
    """
    root = root or Path(nestor.__file__).parent
    waiting, used = [root / "recipes" / f"{name}.py"], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in used:
            continue
        used.add(path)
        module = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module]
        names = {name for node in nodes for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
        for each in names:
            package, *parts = str(each).split(".")
            if package == "nestor" and parts:
                place = root.joinpath(*parts)
                waiting += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    digest = hashlib.sha256()
    for path in sorted(used):
        digest.update(str(path.relative_to(root)).encode() + _code(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _code(text: str) -> str:
    """The lines of a module that are not words about it."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=int(last)):
                lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
