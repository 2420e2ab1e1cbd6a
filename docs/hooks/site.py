"""What the site shows beyond its written pages: generated pages, pictures, and facts in place of `{{ name }}`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

from docs.hooks import facts, notebook, pictures, reference, serving, systems

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

FACT = re.compile(r"\{\{ (\w+) \}\}")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give generated pages their place in the navigation."""
    nav = [*(config.nav or [])]
    for title, pages in (("Systems", systems.pages()), ("Reference", reference.pages())):
        nav.append({title: list(pages)})
    config.nav = nav
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add generated pages and pictures."""
    pages = systems.pages() | reference.pages() | {"how-to/notebook.md": notebook.page()}
    for path, content in (pages | pictures.all_pictures() | systems.figures() | serving.figures()).items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put facts in place of their names.

    Raises:
        ValueError: there is no such fact.
    """
    return FACT.sub(lambda found: facts.fact(found[1]), markdown) if page.file.generated_by is None else markdown
