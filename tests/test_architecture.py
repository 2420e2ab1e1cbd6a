"""The laws of the house, read from the sources themselves."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestor.recipes.evidence import names

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nestor"
FILES = sorted(PACKAGE.rglob("*.py"))

# Imports go only to lower ranks, or stay within one room; "" is the package's own front, nestor/__init__.py.
RANKS = (
    ("types",),
    ("store", "rules", "machine"),
    ("data", "ops"),
    ("routing", "experts"),
    ("layers",),
    ("models",),
    ("measure",),
    ("surgery", "training", "programs"),
    ("serving",),
    ("recipes",),
    ("api", "hub"),
    ("auto",),
    ("",),
    ("demo", "page"),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def room(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(module: ast.Module) -> Iterator[str]:
    """Full names of all that a module imports, inside functions and for types only too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports name their module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_used(module: ast.Module) -> set[str]:
    """The rooms that a module uses; names that are no room belong to the package's front, which loads them all.

    Facts about the package, such as `nestor.__version__`, belong to nobody.
    """
    parts = [name.split(".") for name in imported(module) if name.split(".")[0] == "nestor"]
    used = {part[1] for part in parts if len(part) > 1}
    if ["nestor"] in parts:
        used |= {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute) and is_front(node.value)}
    return {name if name in RANK else "" for name in used if not name.startswith("__")}


def is_front(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "nestor"


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def trespasses(module: ast.Module, own: str) -> list[str]:
    return sorted(used for used in rooms_used(module) if used != own and RANK[used] >= RANK[own])


def test_every_file_belongs_to_a_room():
    assert FILES
    assert {room(file) for file in FILES} <= RANK.keys()


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_go_to_lower_rooms_only(file: Path):
    assert not trespasses(tree(file), room(file))


@pytest.mark.parametrize(
    ("source", "own", "found"),
    [
        ("from nestor.ops.bands import sort", "routing", []),
        ("from nestor.routing.choose import choose", "routing", []),
        ("def f():\n    import nestor.models.vit", "layers", ["models"]),
        ("from nestor import training", "surgery", ["training"]),
        ("from nestor import fit", "recipes", [""]),
        ("import nestor\nnestor.load('x')", "models", [""]),
        ("import nestor\nnestor.cli.main()", "models", ["cli"]),
        ("import nestor\nprint(nestor.__version__)", "models", []),
        ("from nestor import __version__", "models", []),
        ("from nestor import data", "", []),
    ],
)
def test_a_trespass_is_seen(source: str, own: str, found: list[str]):
    assert trespasses(ast.parse(source), own) == found


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_files_stay_short(file: Path):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_everything_public_says_what_it_is_for(file: Path):
    module = tree(file)
    assert ast.get_docstring(module), "the file has no docstring"
    assert not [node.name for node in public(module) if not ast.get_docstring(node) and not continues(node)]


def continues(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether this is one more part of something described before: a setter, or one of several signatures."""
    return any(ast.unparse(mark).split(".")[-1] in ("setter", "overload") for mark in node.decorator_list)


def public(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions and classes of a module, and the public methods of these classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


@pytest.mark.parametrize("file", [PACKAGE / "recipes" / f"{name}.py" for name in names()], ids=relative)
def test_recipes_only_compose(file: Path):
    module = tree(file)
    own = f"nestor.recipes.{file.stem}"
    used = {name for name in imported(module) if name.startswith("nestor.recipes.") and not name.startswith(own)}
    assert all(name.startswith("nestor.recipes.base") for name in used)
    assert not [node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef) and is_module(node)]
    assert not [call for call in calls(module) if call.endswith((".backward", ".zero_grad"))]


def is_module(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split(".")[-1] in ("Module", "ModuleList", "Sequential") for base in node.bases)


def calls(module: ast.Module) -> Iterator[str]:
    yield from (ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_nothing_is_pickled(file: Path):
    module = tree(file)
    assert not {name.split(".")[0] for name in imported(module)} & {"pickle", "dill", "joblib", "marshal", "shelve"}
    assert not {"torch.save", "torch.load", "np.load", "numpy.load"} & set(calls(module))
    assert not {"torch.save", "torch.load"} & set(imported(module))


@pytest.mark.parametrize(
    "file", [PACKAGE / "__init__.py", PACKAGE / "auto.py", *sorted((PACKAGE / "cli").glob("*.py"))], ids=relative
)
def test_the_front_and_the_command_line_load_nothing_heavy(file: Path):
    # What a command needs it imports when it runs, so that help and completion come at once.
    first = [node for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = set(imported(ast.Module([*first], [])))
    ours = {name for name in names if name.split(".")[0] == "nestor"}
    assert all(name.startswith("nestor.cli") or name in ("nestor.__version__", "nestor.auto") for name in ours)
    assert {name.split(".")[0] for name in names - ours} <= {"typer", "rich"} | sys.stdlib_module_names


def own_files() -> list[Path]:
    """Everything that the project publishes."""
    folders = [ROOT / name for name in ("nestor", "tests", "benchmarks", "docs", "evidence", ".ci", ".github")]
    found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    named = [file for file in ROOT.iterdir() if file.is_file() and file.name != ".git"]
    return sorted(file for file in found + named if "__pycache__" not in file.parts)


# Of the web, only what texts cite and the reader's own machine; folders and the hosts of packages say where something
# was built.
CITED = {
    "apache.org",
    "arxiv.org",
    "creativecommons.org",
    "doi.org",
    "keepachangelog.com",
    "semver.org",
    "w3.org",
    "127.0.0.1",
}
FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|root|home|Users)/"
    r"|\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|deb\.debian\.org|npmjs\.(?:com|org))"
    r"|--(?:extra-)?index-[u]rl|--find-[l]inks",
)
HOST = re.compile(r"https?://(?:www\.)?([\w.-]+)")


def test_no_file_names_a_machine_or_a_package_host():
    found = []
    for file in own_files():
        text = file.read_text(encoding="utf-8", errors="ignore")
        hosts = {host for host in HOST.findall(text) if host not in CITED}
        found += [f"{relative(file)}: {match}" for match in FOREIGN.findall(text) + sorted(hosts)]
    assert not found
