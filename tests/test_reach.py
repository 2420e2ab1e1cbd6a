"""What evidence is younger than: all of the library that a recipe can reach, and nothing else."""

import ast
import inspect
import sys
from pathlib import Path
from types import CodeType, FrameType

import pytest

import nestor
from nestor.recipes.evidence import find, sources
from nestor.recipes.reach import reached

ROOT = Path(nestor.__file__).parent
FILES = {
    "recipes/one.py": (
        "from nestor.ops.bands import sort\nfrom nestor.types import Kept as Renamed\n\n\n"
        "def prove():\n    return sort(), Renamed\n\n\ndef curves(details):\n    return details\n"
    ),
    "recipes/two.py": "from nestor.ops import bands\n\nprove = bands.merge\n",
    "recipes/three.py": "from nestor import ops\n\nprove = (ops, ops.sort)\n",
    "ops/__init__.py": "from nestor.ops.bands import sort\n",
    "ops/bands.py": (
        '"""Bands."""\n\nfrom nestor.measure import draw\n\nSIZE: int = 2\nOTHER, LAST = 3, 4\n\n\n'
        "def sort():\n    from nestor.types import within\n\n    return SIZE, within, draw.curve\n\n\n"
        "def merge():\n    return OTHER\n"
    ),
    "measure/__init__.py": "",
    "measure/draw.py": "def curve():\n    return 1\n",
    "types.py": (
        "if TYPE_CHECKING:\n    from nestor.store import Path\n\n\n"
        'class Base:\n    size = 1\n\n\nclass Kept(Base):\n    """Kept."""\n\n    # why\n    more = 2\n\n\n'
        "def within():\n    return 3\n\n\nprint(4)\n"
    ),
    "store.py": "Path = str\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "nestor" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nestor" / name).write_text(text)
    return tmp_path / "nestor"


@pytest.mark.parametrize(
    ("file", "old", "new", "aged"),
    [
        ("recipes/one.py", "return sort()", "return 0, sort()", {"one"}),
        ("recipes/one.py", "return details", "return None", set()),
        ("ops/bands.py", "return SIZE", "return 0, SIZE", {"one", "three"}),
        ("ops/bands.py", "SIZE: int = 2", "SIZE: int = 5", {"one", "three"}),
        ("ops/bands.py", "OTHER, LAST = 3, 4", "OTHER, LAST = 3, 5", {"two"}),
        ("ops/bands.py", "return OTHER", "return -OTHER", {"two"}),
        ("ops/bands.py", '"""Bands."""', '"""Bands of rows."""', set()),
        ("types.py", "size = 1", "size = 2", {"one"}),
        ("types.py", "more = 2", "more = 3", {"one"}),
        ("types.py", "return 3", "return 4", {"one", "three"}),
        ("types.py", "print(4)", "print(5)", {"one", "three"}),
        ("types.py", '"""Kept."""', '"""Held."""', set()),
        ("types.py", "    # why\n", "", set()),
        ("measure/draw.py", "return 1", "return 2", set()),
        ("store.py", "str", "int", set()),
    ],
)
def test_evidence_ages_with_what_its_recipe_reaches_only(root: Path, file: str, old: str, new: str, aged: set[str]):
    before = {name: sources(name, root) for name in ("one", "two", "three")}
    assert len(set(before.values())) == 3
    text = (root / file).read_text()
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new))
    assert {name for name, told in before.items() if sources(name, root) != told} == aged


def test_a_file_used_as_a_value_or_asked_for_what_it_does_not_bind_counts_whole(root: Path):
    (root / "recipes/two.py").write_text("from nestor.ops import bands\n\nprove = vars(bands)\n")
    assert "def sort" in reached(root / "recipes/two.py", root)[root / "ops/bands.py"]
    (root / "recipes/two.py").write_text("from nestor.ops import bands\n\nprove = bands.made_later\n")
    assert "def sort" in reached(root / "recipes/two.py", root)[root / "ops/bands.py"]


@pytest.mark.parametrize("name", ["animer", "edge_moe", "ewa", "modular", "moh", "soft_moe", "uoe_language", "vimoe"])
def test_whatever_a_proof_runs_is_among_what_its_recipe_reaches(name: str, tmp_path: Path):
    recipe, seen = find(name), set[CodeType]()

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(see)
    try:
        recipe.prove(recipe.Settings.quick(), tmp_path)
    finally:
        sys.setprofile(None)
    told = reached(ROOT / "recipes" / f"{name}.py", ROOT)
    ran = {place for code in seen if (place := defined(code)) is not None}
    assert len(ran) > 20
    assert {(path, head) for path, head in ran if head not in told.get(path, "")} == set()


def defined(code: CodeType) -> tuple[Path, str] | None:
    """The file and the head of the definition at whose top level this code lies; None for what is not of the library.

    Bodies of classes and files run when they are imported, whoever asks for them.
    """
    path = Path(code.co_filename)
    if ROOT not in path.parents or not code.co_flags & inspect.CO_OPTIMIZED or path == ROOT / "auto.py":
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min((each.lineno for each in node.decorator_list), default=node.lineno)
            if first <= code.co_firstlineno <= (node.end_lineno or first):
                return path, f"{'def' if isinstance(node, ast.FunctionDef) else 'class'} {node.name}"
    return None
