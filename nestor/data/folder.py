"""Image folders: one sub-folder a class, or pictures without labels."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from nestor.data.decode import SUFFIXES
from nestor.data.listing import Listing

HELD_OUT = ("val", "validation", "valid", "test")


def pictures_below(folder: Path, root: Path) -> list[Path]:
    """Give the picture files of a class folder and below, sorted, without hidden ones and without following circles."""
    found: list[Path] = []
    # A link upwards would bring in the pictures of other classes.
    seen = {str(above) for place in (folder, root) for above in Path(os.path.realpath(place)).parents}
    seen.add(os.path.realpath(root))
    for place, inner, files in os.walk(folder, followlinks=True):
        # A folder reached a second time, through a link, would repeat its pictures or never end.
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if _visible(name))
        found += [Path(place, name) for name in sorted(files) if is_picture(name)]
    return found


def is_picture(name: str) -> bool:
    """Say whether a file name is that of a picture."""
    return _visible(name) and Path(name).suffix.lower() in SUFFIXES


def class_folders(folder: Path) -> list[Path]:
    """Give the visible sub-folders, sorted."""
    return sorted(child for child in folder.iterdir() if _visible(child.name) and child.is_dir())


def ready_splits(folder: Path) -> tuple[Path, Path] | None:
    """Give the folders of a ready-made training and held-out part; None unless there is nothing but such parts."""
    parts = {child.name.lower(): child for child in class_folders(folder)}
    held_out = [parts[name] for name in HELD_OUT if name in parts]
    if "train" not in parts or not held_out or parts.keys() - {"train", *HELD_OUT}:
        return None
    return parts["train"], held_out[0]


def image_folder(folder: Path) -> Listing:
    """List an image folder: each sub-folder with pictures is a class; pictures without sub-folders are unlabelled.

    Raises:
        ValueError: there are no pictures, or two classes whose names look the same.
    """
    loose = sorted(child for child in folder.iterdir() if is_picture(child.name) and not child.is_dir())
    classes = {child: pictures_below(child, folder) for child in class_folders(folder)}
    filled = {child: files for child, files in classes.items() if files}
    if not filled:
        if not loose:
            raise ValueError(
                f"{folder} has no pictures. Put them into one sub-folder a class; "
                f"files with these endings count: {' '.join(sorted(SUFFIXES))}."
            )
        return Listing(items=tuple(loose), names=tuple(path.name for path in loose))
    labels = {child: unicodedata.normalize("NFC", child.name).strip() for child in filled}
    for name in set(labels.values()):
        same = [child.name for child in labels if labels[child] == name]
        if len(same) > 1:
            raise ValueError(f"classes must have different names; {same} look the same. Rename or merge the folders.")
    skipped = [f"{path.name}: lies beside the class folders, so it has no class" for path in loose]
    skipped += [f"{child.name}: a folder without pictures" for child in classes if child not in filled]
    pairs = [(path, labels[child]) for child, files in filled.items() for path in files]
    return Listing(
        items=tuple(path for path, _ in pairs),
        names=tuple(path.relative_to(folder).as_posix() for path, _ in pairs),
        labels=tuple(label for _, label in pairs),
        skipped=tuple(skipped),
    )


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))
