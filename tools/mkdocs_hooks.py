"""What mkdocs is told besides mkdocs.yml: the generated pages, and that nothing in the site is loaded from elsewhere.

mkdocs calls these functions by their names while `make docs` runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs loads this file by its path

from tools import reference

_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(https?:)?//|<link\b[^>]*rel=["']?(?:stylesheet|preload)[^>]*href=["']?(https?:)?//"""
)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are generated from the code."""
    for path, page in reference.PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of routes where a page asks for it."""
    return markdown.replace(reference.ROUTES, reference.routes_page()) if reference.ROUTES in markdown else markdown


def on_post_build(*, config: Any) -> None:
    """Fail when a page would load something from the network: the site is read offline."""
    for page in Path(config.site_dir).rglob("*.html"):
        found = _LOADED.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page} loads from elsewhere: {found.group(0)}")
