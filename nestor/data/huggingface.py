"""Data sets of the `datasets` library: objects, saved folders, and names of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from nestor.data.folder import HELD_OUT
from nestor.data.listing import Listing, find_column, label_name
from nestor.data.table import LABELS, PATHS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from nestor.data.decode import Item


class Rows:
    """The pictures of a data set's column as a sequence of items, read when asked for."""

    def __init__(self, column: Dataset, name: str):
        self.column, self.name = column, name

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> Item:
        value: Any = self.column[index][self.name]
        if isinstance(value, dict):
            value = value["path"] if value.get("bytes") is None else value["bytes"]
        if isinstance(value, (str, bytes, Path, Image.Image)):
            return value
        raise ValueError(f"column {self.name!r} holds no picture here but {type(value).__name__}")


def is_saved(folder: Path) -> bool:
    """Say whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def saved(folder: Path) -> Dataset | DatasetDict:
    """Open a folder that `save_to_disk` wrote.

    Raises:
        ImportError: datasets is missing.
        ValueError: the folder is damaged.
    """
    library = _library(f"Reading {folder}")
    try:
        return library.load_from_disk(str(folder))
    # Damage shows as errors of json, pyarrow or the file system, depending on the file.
    except Exception as error:
        raise ValueError(f"{folder} is no readable saved data set: {error}. Save it again.") from error


def from_hub(name: str) -> Dataset | DatasetDict:
    """Fetch a data set of the hub, or find it in the local cache.

    Raises:
        ImportError: datasets is missing.
        ValueError: there is no such data set, or the hub cannot be reached.
    """
    library = _library(f"Fetching the data set {name!r}")
    try:
        return library.load_dataset(name)
    # What goes wrong on the way to the hub comes as errors of several libraries.
    except Exception as error:
        raise ValueError(f"the hub gives no data set {name!r}: {error}") from error


def parts(data: Dataset | DatasetDict) -> tuple[Dataset, Dataset | None]:
    """Give the training part and, where there is one, the held-out part.

    Raises:
        ValueError: there are several parts and none is called train, or the object is no map-style data set.
    """
    library = _library("Reading a data set")
    if isinstance(data, library.Dataset):
        return data, None
    if not isinstance(data, library.DatasetDict):
        raise ValueError(
            f"a source must be a path, a name or a map-style data set; got {type(data).__name__}. "
            "A streamed data set can be saved with save_to_disk first."
        )
    names = {str(name).lower(): name for name in data}
    if "train" not in names:
        if len(names) == 1:
            return next(iter(data.values())), None
        raise ValueError(f"one part must be called train; got {', '.join(map(str, data))}. Pass the one you want.")
    held_out = [data[names[name]] for name in HELD_OUT if name in names]
    return data[names["train"]], held_out[0] if held_out else None


def dataset(data: Dataset, *, path_column: str | None = None, label_column: str | None = None) -> Listing:
    """List the pictures of a `datasets` data set, by the types of its columns and else by their usual names.

    Args:
        data: the data set.
        path_column: the column of pictures; None to find it.
        label_column: the column of labels; None to find it; '' for an unlabelled set.

    Raises:
        ValueError: there are no such columns, or no rows.
    """
    library = _library("Reading a data set")
    if not len(data):
        raise ValueError("the data set has no rows.")
    data = data.with_format(None)
    if path_column is None:
        path_column = _typed(data, library.Image)
    usual = ("image", "img", "picture", *PATHS)
    image = find_column(data.column_names, path_column, usual, what="picture", option="path_column")
    column = data.select_columns([image])
    if isinstance(data.features[image], library.Image):
        # Undecoded, so that one damaged picture cannot stop the library's own reading.
        column = column.cast_column(image, library.Image(decode=False))
    names = tuple(str(row) for row in range(len(data)))
    if label_column == "":
        return Listing(items=Rows(column, image), names=names)
    if label_column is None:
        label_column = _typed(data, library.ClassLabel)
    label = find_column(data.column_names, label_column, LABELS, what="label", option="label_column")
    values, feature = data[label][:], data.features[label]
    if isinstance(feature, library.ClassLabel):
        classes = tuple(feature.names)
        labels = tuple(None if value is None or value < 0 else classes[value] for value in values)
    else:
        classes, labels = None, tuple(label_name(value) for value in values)
    return Listing(items=Rows(column, image), names=names, labels=labels, classes=classes)


def _typed(data: Dataset, kind: type) -> str | None:
    return next((name for name, feature in data.features.items() if isinstance(feature, kind)), None)


def _library(purpose: str):
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{purpose} needs datasets. Install it: pip install 'nestor[data]'") from error
    return datasets
