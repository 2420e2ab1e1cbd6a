"""From what stands on the command line to values, and what can be checked before any work."""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("float32", "bfloat16")


def numbers(text: str, name: str) -> tuple[float, ...]:
    """Numbers parted by commas.

    Raises:
        ValueError: when one is none.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be numbers parted by commas, like .3,.5,1; got {text!r}.") from None


def budgets(text: str | None) -> tuple[float, ...] | None:
    """Budgets parted by commas; None where the network's own are wanted.

    Raises:
        ValueError: when one is no number.
    """
    return None if text is None else numbers(text, "budgets")


def shape(text: str) -> str | tuple[float, ...]:
    """The name of a shape, or widths parted by commas.

    Raises:
        ValueError: when it is neither.
    """
    return text if text in ("default", "published") else numbers(text, "shape (unless default or published)")


def batches(text: str) -> tuple[int, ...]:
    """Sizes of batches parted by commas.

    Raises:
        ValueError: when one is no whole number from 1 on.
    """
    parsed = numbers(text, "batches")
    if any(size < 1 or size % 1 for size in parsed):
        raise ValueError(f"batches must be whole numbers from 1 on; got {text!r}. Try 1,16.")
    return tuple(int(size) for size in parsed)


def precisions(text: str, known: Sequence[str] = PRECISIONS) -> tuple[str, ...]:
    """Number formats parted by commas.

    Raises:
        ValueError: when one is not known.
    """
    parsed = tuple(text.split(","))
    if not set(parsed) <= set(known):
        raise ValueError(f"precisions must be among {', '.join(known)}; got {text!r}.")
    return parsed


def precision(text: str, known: Sequence[str] = PRECISIONS) -> str:
    """A number format.

    Raises:
        ValueError: when it is not known.
    """
    if text not in known:
        raise ValueError(f"precision must be {', '.join(known[:-1])} or {known[-1]}; got {text!r}.")
    return text


def seconds(text: str, name: str) -> float:
    """A time with its unit, ms or s, in seconds.

    Raises:
        ValueError: when it is none, or not above 0.
    """
    for unit, worth in (("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            try:
                value = worth * float(text.removesuffix(unit))
            except ValueError:
                break
            if 0 < value < float("inf"):
                return value
            break
    raise ValueError(f"{name} must be a time above 0 with its unit, like 80ms or 0.2s; got {text!r}.")


def keys(file: Path) -> dict[str, str]:
    """API keys of a file: on each line a name and its secret; empty lines and lines with # are left out.

    Raises:
        OSError: when it cannot be read.
        ValueError: when a line is something else, or a name stands twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(file.expanduser().read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # The line itself is a secret, which no message shall show.
        if len(words) != 2 or words[0] in found:
            raise ValueError(f"line {number} of {file} must hold a new name and its secret, parted by a space.")
        found[words[0]] = words[1]
    if not found:
        raise ValueError(f"{file} must hold at least one key: a name and its secret on each line; got none.")
    return found


def writable_folder(folder: Path) -> Path:
    """A folder that a network can be saved in, whether it exists or not.

    Raises:
        OSError: when it cannot be written.
        ValueError: when it holds something else.
    """
    folder = folder.expanduser()
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        raise OSError(f"{folder} must be a folder that can be written; {error.strerror}. Name another one.") from error
    config = folder / "config.json"
    if config.exists() and not _is_ours(config):
        raise ValueError(f"{folder} holds another network's config.json, which saving would replace. Name another one.")
    return folder


def writable_file(file: Path, *suffixes: str) -> Path:
    """A file that can be written.

    Raises:
        OSError: when it cannot.
        ValueError: when its name ends otherwise.
    """
    file = file.expanduser()
    if suffixes and file.suffix.lower() not in suffixes:
        raise ValueError(f"the name of {file} must end with one of {', '.join(suffixes)}.")
    try:
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with tempfile.TemporaryFile(dir=_nearest(file.parent)):
            pass
    except OSError as error:
        raise OSError(f"{file} must be a file that can be written; {error.strerror}. Name another one.") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def require_matplotlib() -> None:
    """Check that drawings can be made.

    Raises:
        ImportError: when matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("Drawing needs matplotlib. Install it: pip install 'nestor[plot]'")


def _nearest(folder: Path) -> Path:
    """The folder, or the lowest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _is_ours(config: Path) -> bool:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("format") == "nestor"
