"""Training settings as files: TOML, YAML and JSON, there and back."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor import Fit
from nestor.data import Augment
from nestor.training import Chosen, Distil, Fixed, Sampled
from nestor.training.config import changed, fit_from, read_config, to_toml
from nestor.training.settings import described

CASES = {
    "default": Fit(),
    "everything else": Fit(
        epochs=3,
        rate=1e-05,
        budgets=Chosen(budgets=(0.5, 1.0)),
        loss=Distil(labels=0.5, patches=0.0),
        sandwich=False,
        precision="bf16",
        augment=Augment(flip=False, jitter=0.25),
    ),
    "fixed": Fit(budgets=Fixed(budget=0.5)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["toml", "yaml", "yml", "json"])
def test_settings_come_back_from_every_kind_of_file(tmp_path: Path, case: str, kind: str):
    values: Any = {"fit": described(CASES[case])}
    text = {"toml": to_toml, "json": json.dumps}.get(kind, yaml.safe_dump)(values)
    (tmp_path / f"run.{kind}").write_text(text)
    assert fit_from(read_config(tmp_path / f"run.{kind}")["fit"], "here") == CASES[case]


def test_what_a_file_does_not_say_has_its_default():
    assert fit_from({}, "here") == Fit()
    assert fit_from({"rate": 1}, "here") == Fit(rate=1.0)
    assert fit_from({"budgets": {"low": 0.5}}, "here").budgets == Sampled(low=0.5)
    assert fit_from({"augment": {}}, "here").augment == Augment()


texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
names = st.text("abcdefghij_-0123456789", min_size=1)
trees = st.recursive(scalars | st.lists(scalars), lambda inner: st.dictionaries(names, inner), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, trees))
def test_toml_written_here_is_toml(values: dict[str, Any]):
    def kept(value: Any) -> Any:
        """An empty table leaves no trace."""
        if not isinstance(value, dict):
            return value
        inner = {name: kept(part) for name, part in value.items()}
        return {name: part for name, part in inner.items() if part != {}}

    assert kept(tomllib.loads(to_toml(values))) == kept(values)


def test_none_is_left_out_and_other_types_are_refused():
    assert to_toml({"a": None, "b": {"c": None}}).strip() == ""
    with pytest.raises(TypeError, match="TOML here holds texts, numbers, truths and lists; got PosixPath"):
        to_toml({"a": PosixPath()})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ini", "", r"a\.ini cannot be read as settings: its name must end with \.toml, \.yaml or \.json, not \.ini"),
        ("a.toml", "x = ", r"a\.toml cannot be read as settings: .*\. Mend it"),
        ("a.json", "{", r"a\.json cannot be read as settings: .*\. Mend it"),
        ("a.yaml", "a: [", r"a\.yaml cannot be read as settings: .*\. Mend it"),
        ("a.yaml", "- 1", r"a\.yaml must hold names and values; got list"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.toml. Name a \.toml, \.yaml or \.json file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"fit in run\.toml has unknown fields: epoch\. .*it knows epochs, steps, batch, rate"),
        ({"epochs": "ten"}, r"fit\.epochs in run\.toml must be int; got 'ten'. Mend it"),
        ({"epochs": True}, r"fit\.epochs in run\.toml must be int; got True"),
        ({"epochs": 0}, r"epochs must be at least 1; got 0"),
        ({"loss": 3}, r"fit\.loss in run\.toml must be an object; got 3"),
        ({"budgets": {"type": "Fixed", "low": 0.5}}, r"fit\.budgets in run\.toml has unknown fields: low"),
        ({"budgets": {"type": "Some"}}, r"fit\.budgets in run\.toml has unknown fields: type"),
        ({"sandwich": 1}, r"fit\.sandwich in run\.toml must be bool; got 1"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fit_from(values, "run.toml")


def test_single_settings_are_replaced():
    start = Fit(epochs=3, augment=Augment(flip=True))
    assert changed(start, {}) == start
    assert changed(start, {"rate": 0.5, "low": 0.4}) == replace(start, rate=0.5, budgets=Sampled(low=0.4))
    assert changed(start, {"jitter": 0.1}).augment == Augment(flip=True, jitter=0.1)
    assert changed(start, {"flip": False}).augment is None
    assert changed(Fit(), {"rotate90": True}).augment == Augment(flip=False, rotate90=True)
    with pytest.raises(ValueError, match="the lowest budget belongs to sampled budgets; the settings have Fixed"):
        changed(Fit(budgets=Fixed()), {"low": 0.5})
