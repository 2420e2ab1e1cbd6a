"""CSV and Parquet files with a column of paths and a column of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestor.data.listing import Listing, find_column, label_name

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
PATHS = ("path", "file", "filename", "filepath", "image", "imagepath")
LABELS = ("label", "class", "target")


def table(file: Path, *, path_column: str | None = None, label_column: str | None = None) -> Listing:
    """List the pictures of a CSV or Parquet file, whose paths are relative to the file itself.

    Args:
        file: the table.
        path_column: the column of paths; found by its usual names when None.
        label_column: the column of labels; found by its usual names when None; '' for an unlabelled table.

    Raises:
        ImportError: pandas or pyarrow is missing.
        ValueError: the file is damaged or empty, or has no such columns.
    """
    frame = _read(file)
    columns = list(frame.columns)
    path_column = find_column(columns, path_column, PATHS, what="path", option="path_column")
    cells = _cells(frame, path_column)
    labels: list[str | None] = []
    if label_column != "":
        label_column = find_column(columns, label_column, LABELS, what="label", option="label_column")
        labels = [label_name(value) for value in _cells(frame, label_column)]
    pictures = [_item(cell, file.parent) for cell in cells]
    kept = [row for row, picture in enumerate(pictures) if picture is not None]
    return Listing(
        items=tuple(picture for picture in pictures if picture is not None),
        names=tuple(f"row {row + 1}" if isinstance(pictures[row], bytes) else str(cells[row]) for row in kept),
        labels=tuple(labels[row] for row in kept) if labels else (),
        skipped=tuple(f"row {row + 1}: no path" for row, picture in enumerate(pictures) if picture is None),
    )


def _cells(frame: pandas.DataFrame, column: str) -> list[Any]:
    values = frame[column]
    # The ways in which a table can say "missing" become one.
    return values.astype(object).where(values.notna(), None).tolist()


def _item(cell: Any, folder: Path) -> Path | bytes | None:
    if isinstance(cell, dict):
        # How data sets of the hub store a picture in Parquet.
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, bytes):
        return cell
    name = label_name(cell)
    return None if name is None else folder / name


def _read(file: Path) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"Reading {file.name} needs pandas and pyarrow. Install them: pip install 'nestor[data]'"
        ) from error
    try:
        if file.suffix.lower() in {".parquet", ".pq"}:
            frame = pandas.read_parquet(file)
        else:
            with file.open(encoding="utf-8-sig") as lines:
                heading = lines.readline()
            separator = max(",;\t", key=heading.count)
            # As text, so that a class may be called NA, 007 or 1.0.
            frame = pandas.read_csv(
                file,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
            )
    except ImportError as error:
        raise ImportError("Reading Parquet needs pyarrow. Install it: pip install 'nestor[data]'") from error
    # pandas and pyarrow raise subclasses of both.
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is no readable table: {error}") from error
    if not len(frame):
        raise ValueError(f"{file} has no rows. Give it one row a picture, below a heading such as path,label.")
    return frame
