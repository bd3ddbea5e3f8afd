"""The templates of this folder and what every page made of them keeps to: texts are escaped, a missing name is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from slm_ray.page import formatting


def environment(
    *, finalize: Callable[..., Any] | None = formatting.visible, **filters: Callable[..., Any]
) -> jinja2.Environment:  # fmt: skip
    """The templates with these filters. `finalize` sees every value: by default it marks characters that do not show."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("slm_ray", "page"), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=finalize, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters.update(filters)
    return templates


def encodable(html: str) -> str:
    """The page as any UTF-8 file can hold it: a text from outside may hold half of a surrogate pair."""
    return html.encode("utf-8", "replace").decode("utf-8")
