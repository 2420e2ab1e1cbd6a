"""The documentation as a site, built with a tiny network in the place of the real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mkdocs.commands.build import build
from mkdocs.config import load_config
from tiny_vit import tiny

from docs.hooks import pictures
from nestor.layers.nested import Nest

ROOT = Path(__file__).parent.parent


@contextmanager
def small() -> Iterator[None]:
    """A tiny network in the pictures, and in the facts about them."""
    torch.manual_seed(0)
    shape = Nest(widths=(64,), hidden=(256,), heads=(4,))
    dense = tiny(shape, patch=14, grid=(8, 8), nominal=112, depth=8)
    cached = [each for each in vars(pictures).values() if hasattr(each, "cache_clear")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "dense", lambda: dense)
        patch.setattr(pictures, "BUDGETS", (1.0, 0.8, 0.65))
        yield
    for each in cached:
        each.cache_clear()


def built(folder: Path) -> Path:
    """The site in a folder. Strict: one warning of any page, link, anchor or docstring ends it."""
    with small():
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder
