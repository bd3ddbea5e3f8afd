"""Texts cut into rows, each with the line it stands on: JSON Lines, and the elements of one JSON array.

Lines end at line feeds only, since JSON strings may hold other Unicode separators; blank ones are no rows. Nothing is
parsed here but the array's own brackets and commas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from slm_ray.corpus.fields import no_object
from slm_ray.corpus.row_errors import BadRow
from slm_ray.errors import DataError

_DECODER = json.JSONDecoder()


def numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that hold something, counted from 1; a byte-order mark in front of the first is dropped."""
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff") if number == 1 else line
        if text and not text.isspace():
            yield number, text


def rows_in(text: str, name: str) -> Iterator[tuple[int, str | dict[str, Any] | BadRow]]:
    """The rows of a whole file's `text`: the objects in the JSON array that it is, or else its lines as they are."""
    text = text.removeprefix("\ufeff")
    if not text.lstrip().startswith("["):
        yield from numbered(text.split("\n"))
        return
    for line, value in json_elements(text, name):
        yield line, value if isinstance(value, dict) else no_object(value)


def json_elements(text: str, name: str) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array with their line numbers, which `json.loads` would lose."""
    position, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply or a number too long")
            at = text.count("\n", 0, getattr(error, "pos", position)) + 1
            raise DataError(f"{name}:{at}: this is not JSON ({reason}); fix the syntax") from None
        yield line, value
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            at = text.count("\n", 0, position) + 1
            raise DataError(f"{name}:{at}: the JSON array breaks off here; put a comma between rows and ] at the end")
    if text[position + 1 :].strip():
        at = text.count("\n", 0, position) + 1
        raise DataError(f"{name}:{at}: text follows the end of the JSON array; keep one array per file")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position
