"""Rows of any format into examples, one by one: each row is an example, or an error with file, line, reason and fix.

No row is dropped or repaired silently. Only blank lines, a byte-order mark and CRLF are tolerated. Knows nothing of
disks: it is given the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slm_ray.corpus import formats
from slm_ray.corpus.fields import checked_object, json_object
from slm_ray.corpus.jsonl import numbered
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.row_errors import BadRow, RowError, refuse
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError
from slm_ray.types import Example

RawRow = tuple[str, int, "str | dict[str, Any] | BadRow"]  # file, line, and a JSON text, an object, or what is wrong
_LINE_BITS = 40


@dataclass(slots=True, kw_only=True)
class Reader:
    """Parses raw rows and remembers the ids it has seen; one reader per set of rows.

    `skipped` counts the rows that their format leaves out, which are neither good nor bad: xLAM rows whose tool is not in their
    own tool list, what Langfuse saw that is no generation.
    """

    track: Track
    format_name: str = formats.AUTO
    skipped: int = 0
    _files: list[str] = field(default_factory=list)
    _place_of: dict[str, int] = field(default_factory=dict)

    def rows(self, raw: Iterable[RawRow]) -> Iterator[ParsedRow | RowError]:
        """One ParsedRow or RowError per raw row, in order.

        A row's id is its own or a hash of its content. Holds an id and an integer per row in memory, nothing else.
        """
        return self.told_apart(parsed(raw, self.track, self.format_name))

    def told_apart(self, rows: Iterable[ParsedRow | RowError | None]) -> Iterator[ParsedRow | RowError]:
        """As `rows`, of rows that are parsed already: what is left is to find ids that occur twice."""
        for row in rows:
            if row is None:
                self.skipped += 1
            elif isinstance(row, ParsedRow):
                yield self._repeated(row) or row
            else:
                yield row

    def _repeated(self, row: ParsedRow) -> RowError | None:
        if not self._files or self._files[-1] != row.file:
            self._files.append(row.file)
        # File and line in one integer: two million tuples would take more memory than the ids.
        here = (len(self._files) - 1) << _LINE_BITS | row.line
        earlier = self._place_of.setdefault(row.id, here)
        if earlier == here:
            return None
        first = self._files[earlier >> _LINE_BITS]
        where = f"line {earlier & (1 << _LINE_BITS) - 1}" + ("" if first == row.file else f" of {first}")
        reason = f"the id {row.id!r} is already used in {where}"
        if row.own_id is not None:
            return BadRow("duplicate_id", reason, "give each row its own").at(row.file, row.line)
        fix = "the rows are equal and have no 'id': delete one"
        return BadRow("duplicate_content", reason, fix).at(row.file, row.line)


def parsed(raw: Iterable[RawRow], track: Track, format_name: str) -> Iterator[ParsedRow | RowError | None]:
    """Each raw row parsed, in order, whatever the rows around it are; None for one that its format leaves out."""
    for file, line, value in raw:
        try:
            if isinstance(value, BadRow):
                raise value
            row = json_object(value) if isinstance(value, str) else checked_object(value)
            yield formats.parse(row, track, format_name, file=file, line=line)
        except BadRow as bad:
            yield bad.at(file, line)


def examples(lines: Iterable[str], *, name: str, track: Track, format_name: str = formats.AUTO) -> list[Example]:
    """Read JSONL `lines` of the file called `name`, in order.

    The track's system prompt goes in front of a prompt that has none. Raises one DataError that names every bad row's
    line (the first five spelled out).
    """
    return list(_examples(lines, name, track, format_name))


def check(lines: Iterable[str], *, name: str, track: Track) -> None:
    """Raise what `examples` would, and hold no row of them."""
    deque(_examples(lines, name, track, formats.AUTO), maxlen=0)


def _examples(lines: Iterable[str], name: str, track: Track, format_name: str) -> Iterator[Example]:
    found = 0
    errors: list[RowError] = []
    reader = Reader(track=track, format_name=format_name)
    for row in reader.rows((name, number, text) for number, text in numbered(lines)):
        if isinstance(row, RowError):
            errors.append(row)
        else:
            found += 1
            yield row.example()
    refuse(errors)
    if reader.skipped:
        raise DataError(
            f"{name}: {reader.skipped} rows answer with a tool that is not in their own tool list, or are no generation;"
            " slm-ray prepare leaves them out and counts them"
        )
    if not found:
        raise DataError(f"{name}: there are no rows in it; give a JSONL file with one example per line")
