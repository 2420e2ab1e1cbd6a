"""From the name of a source to pictures that are known to be readable."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nestor.data.decode import MAX_PIXELS
from nestor.data.folder import image_folder, is_picture, ready_splits
from nestor.data.huggingface import dataset, from_hub, is_saved, parts, saved
from nestor.data.listing import Listing, in_order
from nestor.data.named import elpv, fashion_mnist
from nestor.data.photographs import photographs
from nestor.data.pictures import IMAGENET_MEAN, IMAGENET_STD, Pictures
from nestor.data.scan import reasons
from nestor.data.strata import split
from nestor.data.table import SUFFIXES as TABLES
from nestor.data.table import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset, DatasetDict

    Source = str | Path | Dataset | DatasetDict
    # Listed only when asked for, since listing a large part takes time.
    Part = Callable[[], Listing]


def load(
    source: Source,
    *,
    size: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    path_column: str | None = None,
    label_column: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Pictures:
    """Load pictures; of a source with ready-made splits, the training part.

    Every picture is decoded once, so that none fails later; those that cannot be read are left out and
    listed in `Pictures.skipped`.

    Args:
        source: an image folder (one sub-folder a class, or pictures without labels), one picture, a CSV or Parquet
            file, a `datasets` object or a folder that its `save_to_disk` wrote, 'elpv', 'fashion-mnist', 'photographs'
            (unlabelled), or the name of a data set of the hub: 'user/name' or 'hub:name'.
        size: side of the square that each picture is scaled and cropped to, in pixels.
        mean: of the three channels, for normalising.
        std: of the three channels, for normalising.
        path_column: the column of paths or pictures, where a table has an unusual one.
        label_column: the column of labels, where a table has an unusual one; '' for none.
        max_pixels: larger pictures are left out before they are decoded.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: a package that this source needs is missing.
        ValueError: there are no pictures, none can be read, or the source cannot be understood.
    """
    train, _ = _find(source, path_column, label_column)
    return _checked(train(), source, size=size, mean=mean, std=std, max_pixels=max_pixels)


def load_splits(
    source: Source,
    *,
    size: int,
    fraction: float = 0.25,
    seed: int = 0,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    path_column: str | None = None,
    label_column: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Pictures, Pictures]:
    """Load pictures for training and for testing: the source's own parts where it has them, else a stratified split.

    Own parts are sub-folders or splits called train and one of val, validation, valid, test (the first of these).
    `fraction` and `seed` play a role only where there are none; all else is as in `load`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: a package that this source needs is missing.
        ValueError: as in `load`; or a class has one picture only; or the held-out part has classes that the training
            part lacks, or no labels.
    """
    train, test = _find(source, path_column, label_column)
    check = partial(_checked, source=source, size=size, mean=mean, std=std, max_pixels=max_pixels)
    if test is None:
        return split(check(train()), fraction=fraction, seed=seed)
    training, held_out = check(train()), test()
    if training.classes and not held_out.labels:
        raise ValueError(
            f"the held-out part of {source} has no labels although the training part has. "
            "Sort its pictures into class folders, or name the training part alone to have it split."
        )
    return training, check(held_out, classes=training.classes if held_out.labels else ())


def _find(source: Source, path_column: str | None, label_column: str | None) -> tuple[Part, Part | None]:
    """Say how to list the training part and, where the source has one, the held-out part."""
    columns = {"path_column": path_column, "label_column": label_column}
    if not isinstance(source, (str, Path)):
        return _parts(source, columns)
    if source == "elpv":
        return elpv, None
    if source == "fashion-mnist":
        return partial(fashion_mnist, "train"), partial(fashion_mnist, "test")
    if source == "photographs":
        return partial(photographs, "train"), partial(photographs, "test")
    if str(source).startswith("hub:"):
        return _parts(from_hub(str(source).removeprefix("hub:")), columns)
    path = Path(source).expanduser()
    if path.is_dir():
        if is_saved(path):
            return _parts(saved(path), columns)
        if ready := ready_splits(path):
            return partial(image_folder, ready[0]), partial(image_folder, ready[1])
        return partial(image_folder, path), None
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return partial(table, path, **columns), None
        if is_picture(path.name):
            return partial(Listing, items=(path,), names=(path.name,)), None
        raise ValueError(f"{path} is neither a picture nor a table ({', '.join(sorted(TABLES))}). Name a folder.")
    # Where the outer folder exists, a mistyped inner one is likelier than a name, and asking the hub takes long.
    if isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and not path.parent.is_dir():
        try:
            return _parts(from_hub(source), columns)
        except (ImportError, ValueError) as error:
            raise FileNotFoundError(f"there is no folder {source}, and as a name of the hub: {error}") from error
    raise FileNotFoundError(
        f"there is no file or folder {source}. Name a folder of pictures, a table, elpv, fashion-mnist or photographs."
    )


def _parts(data: Dataset | DatasetDict, columns: dict[str, str | None]) -> tuple[Part, Part | None]:
    train, test = parts(data)
    return partial(dataset, train, **columns), None if test is None else partial(dataset, test, **columns)


def _checked(
    listing: Listing,
    source: Source,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    max_pixels: int,
    classes: tuple[str, ...] | None = None,
) -> Pictures:
    """Leave out what cannot be read or has no label, and number the classes."""
    count = len(listing.items)
    labelled = any(label is not None for label in listing.labels)
    broken = [None] * count if listing.trusted else reasons(listing.items, max_pixels=max_pixels)
    if labelled:
        broken = [why or (None if listing.labels[row] else "no label") for row, why in enumerate(broken)]
    rows = tuple(row for row in range(count) if broken[row] is None)
    skipped = [f"{listing.names[row]}: {why}" for row, why in enumerate(broken) if why is not None]
    if not rows:
        # A source may be a whole data set, whose description is no help here.
        name = source if isinstance(source, (str, Path)) else "the data set"
        first = "; ".join((skipped or list(listing.skipped))[:3])
        raise ValueError(f"none of the {count} pictures of {name} can be used. {first}")
    names = [str(listing.labels[row]) for row in rows] if labelled else []
    if classes is None:
        classes = (listing.classes or in_order(names)) if labelled else ()
    if extra := sorted(set(names) - set(classes)):
        raise ValueError(
            f"the held-out part has classes that the training part lacks: {', '.join(extra)}; "
            f"known are {', '.join(classes) or 'none'}. Both parts need the same class names."
        )
    number = {name: position for position, name in enumerate(classes)}
    return Pictures(
        items=listing.items,
        rows=rows,
        size=size,
        classes=classes,
        labels=tuple(number[name] for name in names) if labelled else (-1,) * len(rows),
        names=tuple(listing.names[row] for row in rows),
        groups=tuple(listing.groups[row] for row in rows) if listing.groups else (),
        skipped=listing.skipped + tuple(skipped),
        mean=tuple(mean),
        std=tuple(std),
        max_pixels=max_pixels,
    )
