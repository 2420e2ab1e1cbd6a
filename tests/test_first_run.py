"""What importing Nestor costs: counted in modules, for seconds depend on the machine."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What the core is declared to need, and what rich and typer need themselves.
CORE = {"torch", "numpy", "safetensors", "PIL", "rich", "typer"}
OF_CORE = {"pygments", "markdown_it", "mdurl", "click", "shellingham", "annotated_doc", "typing_extensions"}


def added(before: str, code: str) -> set[str]:
    """Names of packages that running `code` after `before` loads, without the standard library's."""
    script = (
        f"import sys\n{before}\nknown = set(sys.modules)\n{code}\nimport json\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - known})))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, text=True, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr
    names = set(json.loads(found.stdout.splitlines()[-1]))
    return {name for name in names if name not in sys.stdlib_module_names and not name.startswith("_")}


def test_importing_the_package_loads_nothing_else():
    assert added("", "import nestor") == {"nestor"}


def test_help_and_completion_need_no_torch():
    assert added("", "import nestor.cli") <= {"nestor", "typer", "rich"} | OF_CORE


def test_all_of_the_front_adds_to_torch_only_what_the_core_declares():
    used = "import nestor\nfor name in nestor.__all__: getattr(nestor, name)"
    found = added("import torch, numpy", used)
    assert "nestor" in found
    assert found - {"nestor"} <= (CORE - {"torch", "numpy"}) | OF_CORE


def test_the_hub_module_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("nestor.hub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"nestor.hub needs transformers. Install it: pip install 'nestor\[hub\]'"):
        import_module("nestor.hub")


def test_any_other_failure_of_transformers_is_told_by_its_first_cause(monkeypatch: pytest.MonkeyPatch):
    from nestor.hub.needs import repair

    monkeypatch.setitem(sys.modules, "torchvision", None)
    error = ImportError("Could not import module 'TrainerCallback'.")
    error.__cause__ = OSError("no such\nlibrary")
    said = repair(error)
    assert said.startswith("nestor.hub needs transformers, and transformers 5")
    assert said.endswith(
        "cannot be imported (no such library). Install one that can: pip install --upgrade 'nestor[hub]'"
    )
