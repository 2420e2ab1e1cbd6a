"""What a recipe can reach: the definitions of the library on which what it finds may depend."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Pictures are drawn from the evidence, at any time.
_DRAWING = tuple(f"measure/{name}.py" for name in ("draw", "draw_maps", "draw_traffic", "dots", "repeats"))
_ASIDE = "curves"


@dataclass(frozen=True, kw_only=True)
class _Module:
    """A file as what its names stand for, and as what runs whenever it is imported."""

    bound: dict[str, tuple[ast.stmt, ...]]
    always: tuple[ast.stmt, ...]
    imported: dict[str, tuple[tuple[str, str | None], ...]]


def reached(start: Path, root: Path) -> dict[Path, str]:
    """The lines of each file that running this one can reach, without comments and docstrings.

    A function, a class or a constant counts when code that counts names it; so does, in each file that is entered, what
    binds no name. A file that is used as a value, or asked for a name that it does not bind, counts whole. Imports for
    types alone do not count, nor does how things are drawn.

    Args:
        start: a file of the library, which counts whole but for its `curves`.
        root: folder of the library.
    """
    found: dict[Path, set[ast.stmt]] = defaultdict(set)
    waiting: list[tuple[Path, str | None]] = [(start, None)]
    seen: set[tuple[Path, str | None]] = set()
    while waiting:
        place = waiting.pop()
        path, name = place
        if place in seen or path.relative_to(root).as_posix() in _DRAWING:
            continue
        seen.add(place)
        module = _read(path.read_text(encoding="utf-8"))
        if name is None or (name not in module.bound and name not in module.imported):
            counted = [each for key, bound in module.bound.items() if key != _ASIDE for each in bound]
        else:
            counted = list(module.bound.get(name, ()))
            waiting += _targets(module.imported.get(name, ()), root)
        for statement in {*counted, *module.always} - found[path]:
            found[path].add(statement)
            waiting += _named(statement, path, module, root)
    told = {path: _lines(path.read_text(encoding="utf-8"), statements) for path, statements in found.items()}
    return {path: lines for path, lines in told.items() if lines}


def _named(statement: ast.stmt, path: Path, module: _Module, root: Path) -> list[tuple[Path, str | None]]:
    """The places whose definitions a statement names, in this file or through its imports."""
    found: list[tuple[Path, str | None]] = []
    asked = {
        id(node.value): node.attr
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for node in ast.walk(statement):
        if not isinstance(node, ast.Name):
            continue
        if node.id in module.bound:
            found.append((path, node.id))
        for target, name in _targets(module.imported.get(node.id, ()), root):
            # A name of a module that stands before a dot asks for what comes after it.
            found.append((target, asked.get(id(node)) if name is None else name))
    return found


def _targets(imported: tuple[tuple[str, str | None], ...], root: Path) -> list[tuple[Path, str | None]]:
    """Where an imported name of this library lies: a file and a name in it, or None for the file itself."""
    found: list[tuple[Path, str | None]] = []
    for source, name in imported:
        package, *parts = source.split(".")
        if package != root.name:
            continue
        inner = None if name is None else _file(root.joinpath(*parts, name))
        if inner is not None:
            found.append((inner, None))
        elif (outer := _file(root.joinpath(*parts))) is not None:
            found.append((outer, name))
    return found


def _file(place: Path) -> Path | None:
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@cache
def _read(text: str) -> _Module:
    bound, imported, always = (
        defaultdict[str, list[ast.stmt]](list),
        defaultdict[str, list[tuple[str, str | None]]](list),
        [],
    )
    for statement in ast.parse(text).body:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound[name].append(statement)
            case ast.Assign(targets=targets):
                for target in targets:
                    for node in ast.walk(target):
                        if isinstance(node, ast.Name):
                            bound[node.id].append(statement)
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound[name].append(statement)
            case _:
                always.append(statement)
        for node in ast.walk(statement):
            match node:
                case ast.ImportFrom(module=str(source), names=names):
                    for each in names:
                        imported[each.asname or each.name].append((source, each.name))
                case ast.Import(names=names):
                    for each in names:
                        imported[each.asname or each.name.split(".")[0]].append((each.name, None))
                case _:
                    pass
    return _Module(
        bound={name: tuple(statements) for name, statements in bound.items()},
        always=tuple(always),
        imported={name: tuple(dict.fromkeys(places)) for name, places in imported.items()},
    )


def _lines(text: str, statements: set[ast.stmt]) -> str:
    """What these statements say, in the order of the file."""
    lines, kept = text.splitlines(), set[int]()
    for statement in statements:
        first = min((each.lineno for each in getattr(statement, "decorator_list", ())), default=statement.lineno)
        kept |= set(range(first, (statement.end_lineno or first) + 1))
        for node in ast.walk(statement):
            match node:
                case ast.Expr(value=ast.Constant(value=str()), lineno=start, end_lineno=int(last)):
                    kept -= set(range(start, last + 1))
                case _:
                    pass
    told = (lines[number - 1] for number in sorted(kept))
    return "\n".join(line for line in told if line.strip() and not line.lstrip().startswith("#"))
