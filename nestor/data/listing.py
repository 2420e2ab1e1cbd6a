"""What every source of pictures gives: items with names and labels, before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nestor.data.decode import Items


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Pictures as a source names them.

    Attributes:
        items: paths, encoded bytes or PIL pictures.
        names: one for each item.
        labels: the name of each item's class, None where it is missing; () for an unlabelled source.
        groups: one for each item, or ().
        classes: all classes in the source's own order; None to take those that occur, sorted.
        skipped: lines on what was left out already.
        trusted: whether the pictures are known to be whole, so that none needs to be decoded for a check.
    """

    items: Items
    names: tuple[str, ...]
    labels: tuple[str | None, ...] = ()
    groups: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    trusted: bool = False


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort the different names: by value when all are whole numbers, else by letters."""
    distinct = set(names)
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def find_column(columns: Sequence[str], wanted: str | None, usual: Sequence[str], *, what: str, option: str) -> str:
    """Find a column by the name that is asked for, else by its usual names, whatever their case and underscores.

    Raises:
        ValueError: there is no such column; the message lists the columns.
    """
    listed = ", ".join(map(str, columns))
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise ValueError(f"there is no {what} column {wanted!r}; the columns are: {listed}.")
    plain = {str(column).lower().replace("_", "").replace(" ", ""): column for column in columns}
    for name in usual:
        if name in plain:
            return plain[name]
    raise ValueError(
        f"no {what} column found: it should be called {', '.join(usual)}; the columns are: {listed}. "
        f"Name the right one with {option}."
    )


def label_name(value: object) -> str | None:
    """Turn a table's label into the name of a class: None where it is missing, '1' for 1, 1.0 and ' 1 '."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
