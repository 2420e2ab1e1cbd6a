"""Pages of the reference: the front of `nestor`, its commands, and one page for each room."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import typer

import nestor
from nestor.cli import app

PACKAGE = Path(nestor.__file__).parent
# Described by the pages of commands, of the front and of systems.
ELSEWHERE = ("cli", "demo", "recipes")


@cache
def pages() -> dict[str, str]:
    """Markdown of the pages, by path."""
    rooms: dict[str, list[str]] = {}
    for module in modules():
        rooms.setdefault(module.split(".")[1], []).append(module)
    found = {"reference/index.md": _front(), "reference/commands.md": _commands()}
    return found | {f"reference/{room}.md": _room(room, inside) for room, inside in rooms.items()}


@cache
def modules() -> dict[str, list[str]]:
    """Public classes and functions that each module defines, by its full name; what is described elsewhere aside."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names = _public(path)
        if parts[0] not in (*ELSEWHERE, "__init__") and names:
            found[".".join(("nestor", *(part for part in parts if part != "__init__")))] = names
    return found


def _public(path: Path) -> list[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _front() -> str:
    rooms = {name for name in nestor.__all__ if (PACKAGE / name).is_dir()}
    parts = ["---\ntitle: nestor\n---\n# nestor", "What most users need. Everything else lives in its room."]
    parts += [f"::: nestor.{name}" for name in nestor.__all__ if name not in rooms]
    parts += [f"`nestor.{name}` is a room of its own: [{name}]({name}.md)." for name in sorted(rooms)]
    return "\n\n".join(parts) + "\n"


def _room(room: str, inside: list[str]) -> str:
    path = PACKAGE / room / "__init__.py"
    text = (path if path.is_file() else PACKAGE / f"{room}.py").read_text(encoding="utf-8")
    # The front has these already, under their short names.
    shown = [module for module in inside if module != "nestor.api"]
    parts = [f"---\ntitle: {room}\n---\n# nestor.{room}", ast.get_docstring(ast.parse(text)) or ""]
    return "\n\n".join([*parts, *(f"::: {module}" for module in shown)]) + "\n"


def _commands() -> str:
    group: Any = typer.main.get_command(app)
    parts = ["---\ntitle: commands\n---\n# Commands", group.help]
    for name, command in group.commands.items():
        parts += [f"## nestor {name}", _told(command.help), _options(command)]
    return "\n\n".join(parts) + "\n"


def _told(text: str) -> str:
    """Help as Markdown: what follows `Example:` is code."""
    paragraphs = [part.replace("\n", " ").strip() for part in text.split("\n\n")]
    named = [part.partition(": nestor ") for part in paragraphs]
    return "\n\n".join(f"{head}: `nestor {rest}`" if rest else head for head, _, rest in named)


def _options(command: Any) -> str:
    rows = ["| option | what it says | by default |", "| --- | --- | --- |"]
    for each in command.params:
        if each.name == "help":
            continue
        argument = each.param_type_name == "argument"
        name = each.name.upper() if argument else ", ".join((*each.opts, *each.secondary_opts))
        usual = "" if each.default is None or each.required or not each.show_default else f"`{each.default}`"
        rows.append(
            f"| `{name}` | {(each.help or '').replace('|', '&#124;')} | {'required' if each.required else usual} |"
        )
    return "\n".join(rows)
