"""Training settings as a file that a person writes, and that a run leaves beside its result."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.data import Augment
from nestor.store import decode
from nestor.training.balance import Balance, Guide
from nestor.training.schedule import Chosen, Fixed, Leaning, Sampled
from nestor.training.settings import Fit

if TYPE_CHECKING:
    from collections.abc import Mapping

# Types that Fit's annotations mention; of several, the first is meant where a file does not say.
_KNOWN = {
    "Budgets": Sampled | Leaning | Chosen | Fixed,
    "Augment": Augment,
    "Balance": Balance,
    "Guide": Guide,
    "Loss": Callable,
}


def read_config(file: str | Path) -> dict[str, Any]:
    """Read a TOML, YAML or JSON file, by its ending.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another kind, broken, or no table of names and values.
        ImportError: it is YAML and pyyaml is missing.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}. Name a .toml, .yaml or .json file.")
    text = file.read_text(encoding="utf-8")
    try:
        match file.suffix.lower():
            case ".toml":
                found = tomllib.loads(text)
            case ".json":
                found = json.loads(text)
            case ".yaml" | ".yml":
                found = _yaml(text)
            case other:
                raise ValueError(f"its name must end with .toml, .yaml or .json, not {other or 'nothing'}")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as settings: {error}. Mend it.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold names and values; got {type(found).__name__}. Mend it.")
    return found


def fit_from(values: Mapping[str, Any], where: str) -> Fit:
    """Training settings from names and values, as `described` gives them; what is missing has its default.

    Args:
        values: fields of Fit; `budgets`, `loss` and `augment` are tables, in which `type` names the kind of budgets.
        where: they come from, for messages.

    Raises:
        ValueError: a name is unknown, or a value is of the wrong type or outside its range.
    """
    return decode(dict(values), Fit, "fit", where, "Mend it.", _KNOWN)


def to_toml(values: Mapping[str, Any]) -> str:
    """Names and values as TOML: texts, numbers, truths, lists and tables of these; None is left out.

    Raises:
        TypeError: a value is of another type.
    """
    return "\n".join(_lines(values, "")).lstrip("\n") + "\n"


def _lines(values: Mapping[str, Any], table: str) -> list[str]:
    given = {name: value for name, value in values.items() if value is not None}
    lines = [f"{name} = {_toml(value)}" for name, value in given.items() if not isinstance(value, dict)]
    if table and lines:
        lines = ["", f"[{table}]", *lines]
    for name, value in given.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{table}.{name}" if table else name)
    return lines


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, save for one character that JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            raise TypeError(f"TOML here holds texts, numbers, truths and lists; got {type(value).__name__}.")


def _yaml(text: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("Reading YAML needs pyyaml. Install it: pip install 'nestor[train]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def changed(settings: Fit, given: Mapping[str, Any]) -> Fit:
    """The settings with some fields replaced; `low` is the lowest budget to sample, `flip` and so on those of Augment.

    Raises:
        ValueError: a value lies outside its range, or `low` is given and budgets are not sampled.
    """
    fields = dict(given)
    if "low" in fields:
        low = fields.pop("low")
        if not isinstance(settings.budgets, Sampled):
            raise ValueError(
                f"the lowest budget belongs to sampled budgets; the settings have {type(settings.budgets).__name__}. "
                "Change the budgets where they are set."
            )
        fields["budgets"] = replace(settings.budgets, low=low)
    changes = {name: fields.pop(name) for name in ("flip", "rotate90", "jitter") if name in fields}
    if changes:
        augment = replace(settings.augment or Augment(flip=False), **changes)
        fields["augment"] = augment if augment != Augment(flip=False) else None
    return replace(settings, **fields)
