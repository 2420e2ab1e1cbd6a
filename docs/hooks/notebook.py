"""The notebook as a page."""

from __future__ import annotations

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "notebook.ipynb"


def page(path: Path = NOTEBOOK) -> str:
    """Markdown of a notebook's cells, with a link to the notebook itself."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    first, *rest = parts
    return "\n\n".join([first, f"[The notebook itself](../{path.name})", *rest]) + "\n"
