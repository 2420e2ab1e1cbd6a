"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Pictures: a folder (one sub-folder a class), a CSV or Parquet file, a data set of the hub, "
        "'elpv', 'fashion-mnist' or 'photographs'.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(help="A folder saved by Nestor, or any MODEL.", show_default=False)]
Size = Annotated[
    int | None,
    typer.Option("--size", help="Side of the pictures in pixels; by default the network's own.", show_default=False),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        "--budgets",
        help="Fractions of the full network's multiply-accumulates, like .3,.5,.7,1 (the default, as far as it can).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
