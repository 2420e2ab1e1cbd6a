"""Reading JSON and safetensors from disk; nothing here runs code that a file contains."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; raises FileNotFoundError, or ValueError when it is cut off or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} must exist. Check the folder, or save the model again.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must hold complete JSON; {error}. Fetch or save it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(value).__name__}. Fetch or save it again.")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one file; raises ValueError when it is empty, cut off or in another format."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} must exist. Check the path, or save the model again.") from None
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise ValueError(
            f"{path} must be a complete safetensors file; {error} ({size:,} bytes). Fetch or save it again."
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder, whole or in shards.

    Raises ValueError when there are only pickled weights, or when a shard is broken, lacks a tensor that the index
    promises or lies outside the folder; FileNotFoundError when a shard or all weights are missing.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"Weights must be safetensors, because unpickling runs whatever code a file contains; {folder} has only "
            f"{', '.join(pickled[:3])}. Load it where you trust it and save it with "
            "model.save_pretrained(folder, safe_serialization=True)."
        )
    raise FileNotFoundError(f"{folder} must hold {WEIGHTS} or {INDEX}; it has neither. Check the folder.")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index} must map tensor names to files under 'weight_map'. Fetch or save it again.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index} must name files of its own folder; got {shard!r}. Fetch or save it again.")
        tensors |= read_safetensors(folder / shard)
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise ValueError(
            f"The shards must hold every tensor of {index}; {len(absent)} are missing: {', '.join(absent[:5])}. "
            "Fetch or save the weights again."
        )
    return tensors
