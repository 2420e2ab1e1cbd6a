"""Things on disk: settings as JSON, tensors as safetensors, never half of either."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nestor.types import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    Write = Callable[[Path], None]

FORMAT = "nestor"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_FULL = (errno.ENOSPC, errno.EDQUOT)


def save(stored: Stored, folder: str | Path, also: Mapping[str, object] | None = None) -> None:
    """Write a thing into a folder, which is made where there is none; what stood there stays whole until the end.

    Args:
        stored: the thing.
        folder: where to.
        also: further entries of the config, for programs other than this one.

    Raises:
        OSError: the folder cannot be written; on a full disk with the bytes needed and free.
        TypeError: the settings hold what JSON cannot.
    """
    folder = Path(folder)
    ours = {"format": FORMAT, "version": VERSION, "kind": stored.kind, "settings": dict(stored.settings)}
    config = ours | {name: value for name, value in (also or {}).items() if name not in ours}
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    metadata = {"format": "pt", "config": _digest(text)}
    # Both are complete on disk before either is renamed, so that a full disk touches neither.
    with (
        _staged(folder / WEIGHTS, _tensors(stored.tensors, metadata), size(stored.tensors)),
        _staged(folder / CONFIG, _text(text), len(text)),
    ):
        pass


def load(folder: str | Path) -> Stored:
    """Read a thing that `save` wrote.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a file is damaged, of a newer version, not ours, or the two do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. Name a folder that Nestor saved.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}. Name a folder that Nestor saved, or save it again.")
    text = (folder / CONFIG).read_bytes()
    kind, settings = _config(text, folder / CONFIG)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if metadata.get("config") != hashlib.sha256(text).hexdigest():
        raise ValueError(
            f"{CONFIG} and {WEIGHTS} in {folder} do not belong together: one was edited, or a save was interrupted. "
            "Save it again."
        )
    return Stored(kind=kind, settings=settings, tensors=tensors)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole or not at all.

    Raises:
        OSError: it cannot be written; on a full disk with the bytes needed and free.
    """
    with _staged(Path(path), _text(text), len(text.encode())):
        pass


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, such as a picture, as a whole or not at all.

    Raises:
        OSError: it cannot be written; on a full disk with the bytes needed and free.
    """

    def write(part: Path) -> None:
        part.write_bytes(content)

    with _staged(Path(path), write, len(content)):
        pass


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file as a whole or not at all.

    Raises:
        OSError: it cannot be written; on a full disk with the bytes needed and free.
    """
    with _staged(Path(path), _tensors(tensors, metadata), size(tensors)):
        pass


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors and metadata.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut off or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            # Copies, since a mapped file that is cut off later would end the whole process.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or no safetensors file ({error}). Copy or save it again.") from error


@contextmanager
def together(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder to write several files in, which then take their places one after the other; on failure none does.

    Args:
        paths: where the files belong, all in one folder, which is made where there is none. The block writes each
            under its own name into the folder that it is given.

    Raises:
        OSError: they cannot be written.
    """
    folder = paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{paths[0].name}.", suffix=".part", dir=folder))
    try:
        yield stage
        for path in paths:
            with (stage / path.name).open("rb+") as file:
                os.fsync(file.fileno())
        for path in paths:
            os.replace(stage / path.name, path)
        _settle(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def decode(
    value: object,
    kind: Any,
    name: str,
    where: str,
    repair: str = "Save it again.",
    known: Mapping[str, Any] | None = None,
) -> Any:
    """Turn what JSON, TOML or YAML gave into the type that a field declares: numbers, texts, tuples, records.

    Where a field may be one of several records, the entry `type` names which; the first is meant without it.

    Args:
        value: what was read.
        kind: the type it shall have.
        name: of the value, for messages.
        where: it was read from, for messages.
        repair: what to do about an error.
        known: types by name that annotations mention and their module imports for checking only.

    Raises:
        ValueError: the value is of another type, or a record has unknown fields or lacks one.
    """
    rest = (where, repair, known)
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        if value is None and len(options) < len(get_args(kind)):
            return None
        return decode(value, _meant(value, options), name, *rest)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(value, kind, name, *rest)
    if get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        inner = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(inner) == len(value):
            return tuple(
                decode(part, each, f"{name}[{i}]", *rest)
                for i, (part, each) in enumerate(zip(value, inner, strict=True))
            )
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{name} in {where} must be {getattr(kind, '__name__', kind)}; got {value!r}. {repair}")


def _meant(value: object, options: list[Any]) -> Any:
    named = value.get("type") if isinstance(value, dict) else None
    return next((option for option in options if option.__name__ == named), options[0])


def _record(value: object, kind: type, name: str, where: str, repair: str, known: Mapping[str, Any] | None) -> Any:
    declared = {field.name: field for field in fields(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{name} in {where} must be an object; got {value!r}. {repair}")
    if value.get("type") == kind.__name__ and "type" not in declared:
        value = {key: part for key, part in value.items() if key != "type"}
    if unknown := sorted(value.keys() - declared.keys()):
        raise ValueError(
            f"{name} in {where} has unknown fields: {', '.join(unknown)}. Upgrade nestor, or remove them; "
            f"it knows {', '.join(declared)}."
        )
    # A field with a default may be younger than the file.
    needed = {f.name for f in declared.values() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{name} in {where} lacks fields: {', '.join(missing)}. {repair}")
    hints = get_type_hints(kind, localns=dict(known or {}))
    return kind(**{key: decode(part, hints[key], f"{name}.{key}", where, repair, known) for key, part in value.items()})


def size(tensors: Mapping[str, Tensor]) -> int:
    """How many bytes these tensors take on disk, their names left aside."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _config(text: bytes, path: Path) -> tuple[str, dict[str, object]]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Copy or save it again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{path} was not written by Nestor: it lacks the line "format": "{FORMAT}".')
    version = config.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"{path} was written by a newer Nestor: format version {version}, this one reads up to {VERSION}. "
            "Upgrade nestor."
        )
    kind, settings = config.get("kind"), config.get("settings")
    if version != VERSION or not isinstance(kind, str) or not isinstance(settings, dict):
        raise ValueError(f"{path} needs version {VERSION}, kind and settings; got {list(config)}. Save it again.")
    return kind, settings


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(text: str) -> Write:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", newline="\n")

    return write


def _tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Write:
    def write(path: Path) -> None:
        # Copies, because safetensors refuses tensors that share memory.
        plain = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        try:
            save_file(plain, path, dict(metadata))
        except SafetensorError as error:
            # The error number is given in words only.
            number = next((code for code in _FULL if f"os error {code})" in str(error)), errno.EIO)
            raise OSError(number, str(error)) from error

    return write


@contextmanager
def _staged(path: Path, write: Write, needed: int) -> Iterator[None]:
    """Write beside `path`, do what the block does, then put the file in its place; on failure leave no trace."""
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free
            message = (
                f"the disk is full: {path} needs {needed:,} bytes, {free:,} are free. What stood there is unharmed. "
                "Make room, then save again"
            )
            raise OSError(error.errno, message) from error
        yield
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Make renames in this folder survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
