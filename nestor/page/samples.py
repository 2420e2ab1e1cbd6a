"""Pictures that the page offers: the user's own, or real ones that are on this machine anyway."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nestor.api import prepare
from nestor.data import open_picture
from nestor.data.named import FASHION_FOLDER, elpv, fashion_mnist
from nestor.data.photographs import photographs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nestor.data.decode import Item
    from nestor.data.listing import Listing
    from nestor.models.vit import ViT

COUNT = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture to try: path, bytes or PIL picture, its name, and its true class where that is known."""

    item: Item
    name: str
    label: str | None = None


def from_data(source: str, model: ViT, size: int) -> tuple[Sample, ...]:
    """Some held-out pictures of a source of data, of every class alike.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: a package that this source needs is missing.
        ValueError: there are no pictures, or the source cannot be understood.
    """
    _, held_out = prepare.parts(model, source, size)
    few = held_out.limit(COUNT)
    labels = [few.classes[label] if label >= 0 else None for label in few.labels]
    rows = zip(few.rows, few.names, labels, strict=True)
    return tuple(Sample(item=few.items[row], name=Path(name).name, label=label) for row, name, label in rows)


def bundled(classes: Sequence[str] = ()) -> tuple[Sample, ...]:
    """Pictures of the first set that is on this machine, one with these classes before all others; nothing is fetched.

    Photographs, solar cells and clothes come in packages of their own; photographs in gradio's are always there.
    """
    found = [listing for listing in map(_tried, (_photographs, elpv, _clothes)) if listing is not None]
    # False comes before True, and what is equal stays in order.
    found.sort(key=lambda listing: not classes or set(listing.classes or ()) != set(classes))
    return _spread(found[0]) if found else tuple(_travelling())


def _tried(listed: Callable[[], Listing]) -> Listing | None:
    try:
        return listed()
    except (ImportError, OSError, ValueError):
        return None


def _photographs() -> Listing:
    return photographs("test")


def _clothes() -> Listing:
    # Where its files are missing, it would be asked of the hub.
    if not FASHION_FOLDER.is_dir():
        raise FileNotFoundError(FASHION_FOLDER)
    return fashion_mnist("test")


def _spread(listing: Listing) -> tuple[Sample, ...]:
    """Pictures from all over a listing, the classes in turns."""
    count, labels = len(listing.items), listing.labels
    if labels:
        names = listing.classes or sorted({label for label in labels if label})
        each = [[row for row in range(count) if labels[row] == name] for name in names]
        each = [rows for rows in each if rows]
        turns = -(-COUNT // len(each))
        rows = [of[turn * len(of) // turns] for turn in range(turns) for of in each][:COUNT]
    else:
        rows = sorted({place * count // COUNT for place in range(COUNT)})
    return tuple(
        Sample(item=listing.items[row], name=Path(listing.names[row]).name, label=labels[row] if labels else None)
        for row in rows
    )


def _travelling() -> Iterator[Sample]:
    """Photographs that travel with gradio."""
    package = find_spec("gradio")
    for place in (package and package.submodule_search_locations) or ():
        for name in ("cheetah.jpg", "tower.jpg", "lion.jpg"):
            file = Path(place) / "media_assets" / "images" / name
            try:
                open_picture(file, at_least=1)
            except (OSError, ValueError):
                continue
            yield Sample(item=file, name=name)
