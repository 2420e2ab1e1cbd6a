"""Our own networks to disk and back, bit for bit."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from nestor import store
from nestor.layers.maps import MapHead
from nestor.models.mapped import Mapped, MapSettings
from nestor.models.video import VideoSettings, VideoViT
from nestor.models.vit import ViT, ViTSettings
from nestor.types import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from nestor.models.video import Network

KIND, VIDEO, MAP = "vit", "video", "map"
_SHOWN = 5
_Built = TypeVar("_Built", ViT, VideoViT, Mapped)


def save_model(model: Network, folder: str | Path) -> None:
    """Write a network into a folder; its budget is a dial of the running network and is not kept.

    Of a backbone that a rival runs (token merging, say), the network inside is kept.

    Raises:
        OSError: the folder cannot be written.
    """
    if isinstance(model, Mapped):
        settings = MapSettings(backbone=model.settings, widths=model.head.widths)
        tensors = Mapped(model.inside, model.head).state_dict()
        store.save(Stored(kind=MAP, settings=asdict(settings), tensors=tensors), folder)
        return
    kind = VIDEO if isinstance(model, VideoViT) else KIND
    store.save(Stored(kind=kind, settings=asdict(model.settings), tensors=model.state_dict()), folder)


def load_model(folder: str | Path) -> ViT:
    """Read a network that `save_model` wrote: the same tensors in the same precision, at budget 1, on the CPU.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or settings and tensors do not make a network.
    """
    return _load(folder, KIND, ViTSettings, ViT)


def load_video(folder: str | Path) -> VideoViT:
    """Read a video network that `save_model` wrote, as in `load_model`.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or settings and tensors do not make a video network.
    """
    return _load(folder, VIDEO, VideoSettings, VideoViT)


def load_map(folder: str | Path) -> Mapped:
    """Read a network of maps that `save_model` wrote, as in `load_model`.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or settings and tensors do not make a network of maps.
    """
    return _load(folder, MAP, MapSettings, lambda made: Mapped(ViT(made.backbone), MapHead(made.widths)))


def _load(folder: str | Path, kind: str, settings: type, build: Callable[[Any], _Built]) -> _Built:
    stored = store.load(folder)
    where = f"{folder}/{store.CONFIG}"
    if stored.kind != kind:
        raise ValueError(f"{where} must be of kind {kind!r} to be loaded as a network; got {stored.kind!r}.")
    decoded = _decoded(stored.settings, settings, "settings", where)
    with torch.device("meta"):
        model = build(decoded)
    _check(stored.tensors, model.state_dict(), f"{folder}/{store.WEIGHTS}")
    model.load_state_dict(dict(stored.tensors), assign=True)
    return model.eval()


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    lines = []
    for name in sorted(wanted.keys() | found.keys()):
        expected, got = (tuple(side[name].shape) if name in side else None for side in (wanted, found))
        if expected != got:
            kind = "missing" if got is None else "unexpected" if expected is None else "misshapen"
            lines.append(f"{kind} {name}: expected {expected or 'nothing'}, found {got or 'nothing'}")
        elif not found[name].is_floating_point():
            lines.append(f"misshapen {name}: expected a floating-point type, found {found[name].dtype}")
    if lines:
        shown = "; ".join(lines[:_SHOWN]) + (f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
        raise ValueError(f"{len(lines)} tensors of {where} do not fit its settings: {shown}. Save the network again.")


def _decoded(value: object, kind: Any, name: str, where: str) -> Any:
    """Turn what JSON gave into the type that a field declares."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(value, kind, name, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        inner = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(inner) == len(value):
            return tuple(
                _decoded(part, each, f"{name}[{i}]", where)
                for i, (part, each) in enumerate(zip(value, inner, strict=True))
            )
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{name} in {where} must be {getattr(kind, '__name__', kind)}; got {value!r}. Save it again.")


def _record(value: object, kind: type, name: str, where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{name} in {where} must be an object; got {value!r}. Save it again.")
    if unknown := sorted(value.keys() - known.keys()):
        raise ValueError(f"{name} in {where} has unknown fields: {', '.join(unknown)}. Upgrade nestor, or remove them.")
    # A field with a default may be younger than the file.
    needed = {field.name for field in known.values() if field.default is MISSING and field.default_factory is MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{name} in {where} lacks fields: {', '.join(missing)}. Save it again.")
    hints = get_type_hints(kind)
    return kind(**{key: _decoded(part, hints[key], f"{name}.{key}", where) for key, part in value.items()})
