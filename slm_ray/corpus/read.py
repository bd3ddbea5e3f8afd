"""Rows of any format into examples, one by one: each row is an example, or a problem with file, line, reason and fix.

No row is dropped or repaired silently. Only blank lines, a byte-order mark and CRLF are tolerated. Knows nothing of
disks: it is given the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slm_ray.corpus import formats
from slm_ray.corpus.lines import numbered
from slm_ray.corpus.pair import Pair
from slm_ray.corpus.problems import BadRow, Problem, refuse
from slm_ray.corpus.tracks import Track
from slm_ray.corpus.values import checked_object, json_object
from slm_ray.errors import DataError
from slm_ray.types import Example

Raw = tuple[str, int, "str | dict[str, Any] | BadRow"]
Converted = tuple[str, int, "Pair | BadRow | None", "Example | None"]
_LINE_BITS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A good row: where it stands, what it says, and the example that models are shown."""

    file: str
    line: int
    pair: Pair
    example: Example


@dataclass(slots=True, kw_only=True)
class Reader:
    """Turns raw rows into good ones and problems, and remembers the ids it has seen; one reader per set of rows.

    `skipped` counts xLAM rows whose tool is not in their own tool list, which are neither good nor bad.
    """

    track: Track
    format_name: str = formats.AUTO
    skipped: int = 0
    _files: list[str] = field(default_factory=list)
    _place_of: dict[str, int] = field(default_factory=dict)

    def rows(self, raw: Iterable[Raw]) -> Iterator[Row | Problem]:
        """One Row or Problem per raw row (file, line, and a JSON text, an object, or what is wrong with it), in order.

        A row's id is its own or a hash of its content. Holds an id and an integer per row in memory, nothing else.
        """
        return self.told_apart(converted(raw, self.track, self.format_name))

    def told_apart(self, rows: Iterable[Converted]) -> Iterator[Row | Problem]:
        """As `rows`, of rows that are converted already: what is left is to find ids that occur twice."""
        for file, line, made, example in rows:
            if isinstance(made, BadRow):
                yield made.at(file, line)
            elif made is None or example is None:
                self.skipped += 1
            elif (problem := self._repeated(example.id, made.id is not None, file, line)) is not None:
                yield problem.at(file, line)
            else:
                yield Row(file=file, line=line, pair=made, example=example)

    def _repeated(self, example_id: str, own: bool, file: str, line: int) -> BadRow | None:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        # File and line in one integer: two million tuples would take more memory than the ids.
        here = (len(self._files) - 1) << _LINE_BITS | line
        earlier = self._place_of.setdefault(example_id, here)
        if earlier == here:
            return None
        first = self._files[earlier >> _LINE_BITS]
        where = f"line {earlier & (1 << _LINE_BITS) - 1}" + ("" if first == file else f" of {first}")
        reason = f"the id {example_id!r} is already used in {where}"
        if own:
            return BadRow("duplicate_id", reason, "give each row its own")
        return BadRow("duplicate_content", reason, "the rows are equal and have no 'id': delete one")


def converted(raw: Iterable[Raw], track: Track, format_name: str) -> Iterator[Converted]:
    """Each raw row as (file, line, what it is, its example), in order, whatever the rows around it are.

    A row is a pair with its example, what is wrong with it, or None: an xLAM row whose tool is not in its own list.
    """
    for file, line, value in raw:
        made: Pair | BadRow | None
        example = None
        try:
            if isinstance(value, BadRow):
                raise value
            row = json_object(value) if isinstance(value, str) else checked_object(value)
            made = formats.pair(row, track, format_name)
            example = made.example(track) if made is not None else None
        except BadRow as problem:
            made = problem
        yield file, line, made, example


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
    problems: list[Problem] = []
    reader = Reader(track=track, format_name=format_name)
    for row in reader.rows((name, number, text) for number, text in numbered(lines)):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            found += 1
            yield row.example
    refuse(problems)
    if reader.skipped:
        raise DataError(
            f"{name}: {reader.skipped} rows answer with a tool that is not in their own tool list; jobs/prepare.py leaves"
            " them out and counts them"
        )
    if not found:
        raise DataError(f"{name}: there are no rows in it; give a JSONL file with one example per line")
