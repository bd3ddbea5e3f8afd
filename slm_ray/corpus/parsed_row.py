"""A row of any format in one shape, from the file it stands in to the file it is written to.

A format reads an `Exchange` out of a row; with the row's name, group, tags and place it is a `ParsedRow`, which is an
example that still knows where it comes from. What is written are the row's own turns, without the track's system prompt
and prefix: so the same prepared rows serve a track whose wording changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_ray.corpus.fields import filled, kind_of
from slm_ray.corpus.render import chat, content_id
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track
from slm_ray.types import Example, Message

_LARGEST = 2**63
_NO_TAGS: Mapping[str, str] = {}

RowId = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What a format reads out of a row: the turns that ask, the expected answer, and what the format knows besides.

    The last of `turns` is the user's; the first may be a system turn of the row's own. A `group` that the format makes
    comes before the row's own; its `tags` come after.
    """

    turns: tuple[Message, ...]
    target: str
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow(Example):
    """A good row and where it stands.

    `prompt` is what a model is shown of `turns`; `own_id` is the id that the row itself has, `split` the split that it
    names. `line` is the row's number in a Parquet file or a data set.
    """

    turns: tuple[Message, ...]
    own_id: RowId = None
    split: str | None = None
    file: str = ""
    line: int = 0

    def shown_by(self, track: Track) -> ParsedRow:
        """The same row as `track` shows it; one without an id of its own gets another, which names what is shown."""
        prompt = chat(track, self.turns)
        name = self.id if self.own_id is not None else content_id(prompt, self.target)
        return dataclasses.replace(self, prompt=prompt, id=name)

    def example(self) -> Example:
        """The row without its origin."""
        return Example(id=self.id, prompt=self.prompt, target=self.target, tags=self.tags, group=self.group)

    def as_row(self) -> dict[str, Any]:
        """The row as it is written; `prompt` is a text when the user's turn is all there is."""
        alone = len(self.turns) == 1
        prompt = self.turns[0].content if alone else [{"role": t.role, "content": t.content} for t in self.turns]
        row: dict[str, Any] = {"prompt": prompt, "completion": self.target}
        named = {"tags": dict(self.tags), "group": self.group, "id": self.own_id}
        return row | {key: value for key, value in named.items() if value not in (None, {})}


def parsed_row(
    track: Track, exchange: Exchange, *, own_id: RowId, split: str | None, file: str, line: int, name: str | None = None
) -> ParsedRow:
    """The row with the prompt that `track` makes of it. Its id is `name` or its own, or else a hash of its content."""
    prompt = chat(track, exchange.turns)
    if name is None:
        name = str(own_id) if own_id is not None else content_id(prompt, exchange.target)
    return ParsedRow(
        id=name, prompt=prompt, target=exchange.target, tags=exchange.tags, group=exchange.group, turns=exchange.turns,
        own_id=own_id, split=split, file=file, line=line,
    )  # fmt: skip


def asked(text: str) -> tuple[Message, ...]:
    """`text` as the only turn."""
    return (Message(role="user", content=text),)


def own_id(row: Mapping[str, Any]) -> RowId:
    """The row's `id`; BadRow for one that is neither a text nor a whole number of 64 bits."""
    return _name(row, "id")


def own_group(row: Mapping[str, Any]) -> str | None:
    """The row's `group` as a text."""
    group = _name(row, "group")
    return None if group is None else str(group)


def own_split(row: Mapping[str, Any]) -> str | None:
    """The split that the row names."""
    split = row.get("split")
    return None if split is None else filled(split, "split")


def own_tags(row: Mapping[str, Any]) -> Mapping[str, str]:
    """The row's `tags`; BadRow for what is no object of texts."""
    tags = row.get("tags")
    if tags is None:
        return _NO_TAGS
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise BadRow("bad_tags", "'tags' is not an object of texts", 'write {"name": "value"}')
    return tags


def _name(row: Mapping[str, Any], key: str) -> RowId:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow("bad_id", f"{key!r} is {kind_of(value)}", "write a text or a whole number")
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise BadRow(
            "bad_id", f"{key!r} has more than 64 bits, which other readers of JSON round", "write it as a text"
        )
    return filled(value, key) if isinstance(value, str) else value
