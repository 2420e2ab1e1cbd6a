"""Finding the source that a name or path stands for."""

import re
from pathlib import Path

from nestor.models.plain import Plain
from nestor.models.pretrained import timm
from nestor.models.pretrained.files import CONFIG, read_json, read_safetensors, read_weights
from nestor.models.pretrained.packaged import NAME, read_packaged
from nestor.models.pretrained.transformers import from_transformers

_FORMS = f"'{NAME}', 'timm:NAME', a folder with config.json, a .safetensors file, or a hub name 'user/name'"
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def read(name: str | Path) -> Plain:
    """Read a pretrained vision transformer from wherever `name` says it is, into the one plain description.

    `name`: `dinov2-small` (packaged), `timm:NAME`, a folder of transformers or timm, a `.safetensors` file under timm's
    names, or a hub name `user/name`. A folder or file of that name goes before the hub. Raises ValueError when the
    source is not one of these, broken or unsupported; FileNotFoundError when it cannot be found; ImportError when
    a package is missing.
    """
    text = str(name)
    path = Path(name)
    if text == NAME and not path.exists():
        return read_packaged()
    if text.startswith("timm:"):
        return timm.from_name(text.removeprefix("timm:"))
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    if is_hub_name(text):
        return _read_folder(download(text))
    raise FileNotFoundError(f"A network must be {_FORMS}; got {text!r}, which is nothing here. Check the spelling.")


def is_hub_name(name: str) -> bool:
    """Whether a name that is no file or folder may be one of the hub, `user/name`."""
    path = Path(name)
    weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth")
    return not path.exists() and not weights and not name.startswith("timm:") and bool(_HUB_NAME.fullmatch(name))


def _read_folder(folder: Path) -> Plain:
    config = read_json(folder / CONFIG)
    if config.get("format") == "nestor":
        raise ValueError(
            f"A folder to read here must hold foreign weights; {folder} was saved by Nestor. Use nestor.load(folder)."
        )
    if "architecture" in config:
        return timm.from_folder(config, read_weights(folder))
    processor = {}
    if (folder / "preprocessor_config.json").is_file():
        processor = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        processor = read_json(folder / "processor_config.json").get("image_processor") or {}
    return from_transformers(config, processor, read_weights(folder))


def _read_file(path: Path) -> Plain:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"A file of weights must be .safetensors, because unpickling runs what code a file contains; got {path}. "
            "Load it where you trust it and save its state dict with safetensors.torch.save_file."
        )
    return timm.from_tensors(read_safetensors(path), source=f"timm:{path.name}")


def download(name: str) -> Path:
    """The folder with a network of the hub, `user/name`, fetched unless it is here already.

    Raises ImportError when huggingface_hub is missing, FileNotFoundError when the hub does not give the network.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            "Reading from the hub needs huggingface_hub. Install it: pip install 'nestor[pretrained]'"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} must be a folder here or a name on the hub; no such folder is here, and the hub did not give it "
            f"({type(error).__name__}). Check the spelling and the connection, or give a folder."
        ) from error
