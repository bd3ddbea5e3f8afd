"""The one way to write a table as plain text: columns aligned by what a terminal shows, two spaces apart."""

from __future__ import annotations

from collections.abc import Container, Sequence

from rich.cells import cell_len


def format_table(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """The rows as lines without trailing blanks; columns in `left` start at the left, the others end at the right."""
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(_cell(cell, widths[at], at in left) for at, cell in enumerate(row)).rstrip() for row in rows]


def _cell(text: str, width: int, to_the_left: bool) -> str:
    room = " " * (width - cell_len(text))
    return text + room if to_the_left else room + text
