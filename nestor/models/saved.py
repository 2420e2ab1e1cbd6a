"""Our own networks to disk and back, bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from nestor import store
from nestor.layers.maps import MapHead
from nestor.models.adopted import Adopted, AdoptedSettings
from nestor.models.latency import LatencyTable
from nestor.models.mapped import Mapped, MapSettings
from nestor.models.video import VideoSettings, VideoViT
from nestor.models.vit import ViT, ViTSettings
from nestor.models.wrapped import Wrapped
from nestor.types import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from nestor.models.video import Network

KIND, VIDEO, MAP, ADOPTED = "vit", "video", "map", "adopted"
LATENCIES = "latency.json"
TRANSFORMERS = "nestor"
"""What transformers calls our networks, see `nestor.auto` and `nestor.hub`."""
PROCESSOR = "preprocessor_config.json"
_SHOWN = 5
_Built = TypeVar("_Built", ViT, VideoViT, Mapped)


def inside(model: Network | Adopted) -> ViT | VideoViT | Mapped | Adopted:
    """The network whose weights these are, without what wraps it or its backbone; weights are shared."""
    match model:
        case Wrapped():
            return model.model
        case Mapped():
            return Mapped(model.inside, model.head)
        case _:
            return model


def save_model(model: Network | Adopted, folder: str | Path) -> None:
    """Write a network into a folder, and beside it what was measured of its speed.

    Its budget, and what wraps it, are ways to run it and are not kept.

    The folder of a ViT serves transformers too, once `nestor` is imported.

    Of an adopted network weights are kept and not what it is built of; see `load_adopted`.

    Of a backbone that a rival runs (token merging, say), the network inside is kept.

    Raises:
        OSError: the folder cannot be written.
    """
    model = inside(model)
    if isinstance(model, Adopted):
        store.save(Stored(kind=ADOPTED, settings=asdict(model.settings), tensors=model.state_dict()), folder)
        return
    if isinstance(model, Mapped):
        settings = MapSettings(backbone=model.settings, widths=model.head.widths)
        store.save(Stored(kind=MAP, settings=asdict(settings), tensors=model.state_dict()), folder)
        return
    if isinstance(model, VideoViT):
        store.save(Stored(kind=VIDEO, settings=asdict(model.settings), tensors=model.state_dict()), folder)
        return
    save_tensors(model.settings, model.state_dict(), folder)
    save_latencies(model.latencies, folder)


def save_tensors(
    settings: ViTSettings, tensors: Mapping[str, Tensor], folder: str | Path, also: Mapping[str, object] | None = None
) -> None:
    """Write a ViT that is given as settings and tensors; `also` are further entries of its config.

    Raises:
        OSError: the folder cannot be written.
    """
    name = "NestorForImageClassification" if settings.classes else "NestorModel"
    also = {"model_type": TRANSFORMERS, "architectures": [name]} | dict(also or {})
    store.save(Stored(kind=KIND, settings=asdict(settings), tensors=tensors), folder, also)
    store.write_text(Path(folder) / PROCESSOR, json.dumps(processor(settings), indent=2) + "\n")


def processor(settings: ViTSettings) -> dict[str, object]:
    """How transformers is to prepare pictures: shorter side to the nominal size, centre crop, mean and std."""
    side = settings.nominal
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": settings.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def load_model(folder: str | Path) -> ViT:
    """Read a network that `save_model` wrote: the same tensors in the same precision, at budget 1, on the CPU.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or settings and tensors do not make a network.
    """
    model = _load(folder, KIND, ViTSettings, ViT)
    model.latencies = load_latencies(folder)
    return model


def load_video(folder: str | Path) -> VideoViT:
    """Read a video network that `save_model` wrote, as in `load_model`.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or settings and tensors do not make a video network.
    """
    return _load(folder, VIDEO, VideoSettings, VideoViT)


def load_adopted(folder: str | Path, model: nn.Module) -> Adopted:
    """Read an adopted network that `save_model` wrote into a copy of one of the same build.

    Args:
        folder: that was written.
        model: to which the same was done as to the one that was saved; it stays as it is.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged or newer, or its tensors are not those of this network.
    """
    stored = store.load(folder)
    where = f"{folder}/{store.CONFIG}"
    if stored.kind != ADOPTED:
        raise ValueError(f"{where} must be of kind {ADOPTED!r} to be loaded into a network; got {stored.kind!r}.")
    made = Adopted(copy.deepcopy(model), store.decode(stored.settings, AdoptedSettings, "settings", where))
    try:
        made.load_state_dict(dict(stored.tensors))
    except RuntimeError as error:
        raise ValueError(
            f"{folder}/{store.WEIGHTS} does not fit this network: {error}. Do to it what was done to the one saved."
        ) from error
    return made.eval()


def save_latencies(tables: Sequence[LatencyTable], folder: str | Path) -> None:
    """Write what was measured of a network's speed beside it; without tables, remove what stands there.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / LATENCIES
    if tables:
        store.write_text(file, json.dumps([asdict(table) for table in tables], indent=1, allow_nan=False) + "\n")
    else:
        file.unlink(missing_ok=True)


def load_latencies(folder: str | Path) -> tuple[LatencyTable, ...]:
    """Read what `save_latencies` wrote; nothing where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    file = Path(folder) / LATENCIES
    if not file.is_file():
        return ()
    try:
        return store.decode(json.loads(file.read_text(encoding="utf-8")), tuple[LatencyTable, ...], "tables", str(file))
    except ValueError as error:
        raise ValueError(f"{file} holds no latencies ({error}). Remove it and measure again: nestor clock.") from error


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
    decoded = store.decode(stored.settings, settings, "settings", where)
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
