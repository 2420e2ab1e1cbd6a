"""A run of `nestor fit` as a file: written by hand, or left beside a result so that the run can be repeated."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestor.training.settings import Fit

FILE = "run.toml"
_HEADER = "# This folder's network was trained like this; the same again: nestor fit --config {file} --out FOLDER\n\n"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run is made of; None is not said.

    Attributes:
        model, data, teacher, out: as on the command line.
        size: side of the pictures in pixels.
        validate: whether accuracies on held-out pictures are noted.
        weights, pictures, teacher_weights: fingerprints of what a run that was made began with.
        fit: fields of `nestor.Fit`.
    """

    model: str | None = None
    data: str | None = None
    teacher: str | None = None
    out: str | None = None
    size: int | None = None
    validate: bool = True
    weights: str | None = None
    pictures: str | None = None
    teacher_weights: str | None = None
    fit: dict[str, Any] | None = None


def read(file: Path | None) -> Job:
    """The run that a TOML, YAML or JSON file describes; an empty one without a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or a name or value in it is wrong.
    """
    if file is None:
        return Job()
    from nestor.store import decode
    from nestor.training.config import read_config

    found = read_config(file)
    table = found.pop("fit", None)
    if table is not None and not isinstance(table, dict):
        raise ValueError(f"fit in {file} must be a table of settings; got {table!r}. Mend it.")
    return replace(decode(found, Job, "the run", str(file), "Mend it."), fit=table)


def settings(job: Job, file: Path | None, given: dict[str, Any]) -> Fit:
    """The training settings of a run, with those that were given on the command line in their place.

    Raises:
        ValueError: a name or value is wrong.
    """
    from nestor.training.config import changed, fit_from

    return changed(fit_from(job.fit or {}, str(file)), given)


def require_same(job: Job, now: Job, file: Path | None) -> None:
    """Check that what a run is to be repeated from is still what it began with.

    Raises:
        ValueError: the network, its teacher or the pictures have changed since, though they go by the same name.
    """
    for what, name, mark in (
        ("the network", "model", "weights"),
        ("the teacher", "teacher", "teacher_weights"),
        ("the training pictures", "data", "pictures"),
    ):
        then, today = getattr(job, mark), getattr(now, mark)
        same_name = _absolute(getattr(job, name)) == _absolute(getattr(now, name))
        if then is not None and same_name and then != today and (mark != "pictures" or job.size == now.size):
            raise ValueError(
                f"{what} at {getattr(now, name)} changed since the run of {file}: its fingerprint was {then}, is "
                f"{today}. Bring the old one back, or remove the line {mark!r} to train with the new one."
            )


def write(job: Job, fitted: Fit, folder: Path) -> None:
    """Leave a run beside its result; names of files and folders become absolute.

    Raises:
        OSError: the folder cannot be written.
    """
    from nestor.store import write_text
    from nestor.training.config import to_toml
    from nestor.training.settings import described

    said = asdict(job) | {name: _absolute(getattr(job, name)) for name in ("model", "data", "teacher")}
    text = to_toml(said | {"out": None, "fit": described(fitted)})
    write_text(folder / FILE, _HEADER.format(file=FILE) + text)


def _absolute(name: str | None) -> str | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
