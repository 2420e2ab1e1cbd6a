"""Where a training run stands, in one file, so that it can go on after any interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nestor import store
from nestor.models.wrapped import Wrapped
from nestor.training.settings import described

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from nestor.data import Examples
    from nestor.models.video import Network
    from nestor.training.report import Epoch
    from nestor.training.settings import Fit

FOLDER = "checkpoint"
FILE = "state.safetensors"
RECORD = "fit.json"
_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        seconds: spent on them.
        sums: sums of the loss parts over the steps of the epoch under way.
        epochs: what was noted of each finished epoch.
    """

    step: int = 0
    seconds: float = 0.0
    sums: tuple[float, ...] = ()
    epochs: tuple[Epoch, ...] = ()


def file_of(out: Path) -> Path:
    """The checkpoint of a run that writes to this folder."""
    return out / FOLDER / FILE


def write(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, identity: Mapping[str, object]
) -> None:
    """Write weights, the optimizer's memory and the progress: one file, as a whole or not at all.

    Raises:
        OSError: it cannot be written; an earlier checkpoint stays as it is.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{key}.{name}"] = value
    state = {
        "step": progress.step,
        "seconds": progress.seconds,
        "sums": list(progress.sums),
        "epochs": [dict(epoch) for epoch in progress.epochs],
        "identity": dict(identity),
    }
    store.write_tensors(file_of(out), tensors, {"format": "pt", "state": json.dumps(state)})


def read(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, object]
) -> Progress | None:
    """Put model and optimizer where the checkpoint left them; None where there is no checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to a run with other settings, pictures or weights.
    """
    path = file_of(out)
    if not path.is_file():
        return None
    tensors, metadata = store.read_tensors(path)
    anew = f"Delete {path.parent} to start anew"
    try:
        state = json.loads(metadata["state"])
        progress = Progress(
            step=state["step"],
            seconds=state["seconds"],
            sums=tuple(state["sums"]),
            epochs=tuple(state["epochs"]),
        )
        theirs = state["identity"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of a training run ({error!r}). {anew}.") from error
    weights = {n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)}
    ours = json.loads(json.dumps(identity))
    # A run that was killed between putting its result in the model's own place and removing the checkpoint.
    if ours["weights"] == fingerprint(weights):
        ours |= {"weights": theirs.get("weights")}
    _require_same(theirs, ours, path, anew)
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            key, _, owner = name.removeprefix(_OPTIMIZER).partition(".")
            parameter = parameters[owner]
            # Fused kernels want the count of steps beside the weights too.
            optimizer.state[parameter][key] = tensor.to(parameter.device)
    return progress


def result(out: Path, identity: Mapping[str, object]) -> dict[str, Tensor] | None:
    """The final weights, where this folder holds what the very same run wrote at its end; else None."""
    if file_of(out).exists():
        return None
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        tensors = dict(store.load(out).tensors)
        same = record["identity"] == json.loads(json.dumps(identity)) and record["result"] == fingerprint(tensors)
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return tensors if same else None


def remove(out: Path) -> None:
    """Delete the checkpoint of a finished run."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def identity(model: Network, pictures: Examples, settings: Fit, teacher: Network | None) -> dict[str, object]:
    """All that the final weights of a run depend on."""
    flat = _flat("settings", described(settings))
    flat.pop("settings.checkpoint_every")
    if isinstance(model, Wrapped):
        flat |= {"run": [type(model).__name__, *_plans(model, pictures, settings)]}
    return flat | {
        "pictures": fingerprint_pictures(pictures),
        "teacher": None if teacher is None else fingerprint(teacher.state_dict()),
        "weights": fingerprint(model.state_dict()),
    }


def _plans(model: Wrapped, pictures: Examples, settings: Fit) -> list[list[int]]:
    """What a wrapper makes of a few budgets tells how it is set."""
    rows, columns = model.cells((1, *pictures.shape))
    least = model.least_budget(rows * columns)
    return [list(model.plan(rows * columns, budget)) for budget in settings.budgets.shown(least)]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short name that changes when any tensor does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_pictures(pictures: Examples) -> str:
    """A short name that changes when names, labels, size, preprocessing or random changes of the pictures do."""
    return hashlib.sha256(repr(pictures.identity).encode()).hexdigest()[:16]


def _require_same(theirs: Mapping[str, object], ours: Mapping[str, object], path: Path, anew: str) -> None:
    other = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if other:
        shown = "; ".join(f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}" for name in other)
        raise ValueError(
            f"{path} belongs to another run: {shown}. "
            f"{anew}, choose another folder, or go on with the same settings, pictures and weights."
        )


def _flat(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: part for inner, each in value.items() for key, part in _flat(f"{name}.{inner}", each).items()}
