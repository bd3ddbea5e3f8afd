"""A row of any format in one shape: the turns that ask, the answer, and what the row is called.

A pair knows nothing of a track's system prompt or prefix: those are added when an example is made of it, so the same
prepared rows serve a track whose wording changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_ray.corpus.problems import BadRow
from slm_ray.corpus.render import chat, content_id
from slm_ray.corpus.tracks import Track
from slm_ray.corpus.values import filled, kind_of
from slm_ray.types import Example, Message

_LARGEST = 2**63
_NO_TAGS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The last of `turns` is the user's; the first may be a system turn of the row's own. `group` ties pairs that must
    stand in one split; `split` is the one the row itself names."""

    turns: tuple[Message, ...]
    answer: str
    id: str | int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    group: str | int | None = None
    split: str | None = None

    def example(self, track: Track, *, name: str | None = None) -> Example:
        """The example that every model is shown; its id is the row's own, or a hash of its content (`name`, if known)."""
        prompt = chat(track, self.turns)
        if name is None:
            name = str(self.id) if self.id is not None else content_id(prompt, self.answer)
        return Example(id=name, prompt=prompt, target=self.answer, tags=self.tags)

    def as_row(self) -> dict[str, Any]:
        """The pair as a prepared row: `prompt` is a text when the user's turn is all there is."""
        alone = len(self.turns) == 1
        prompt = self.turns[0].content if alone else [{"role": t.role, "content": t.content} for t in self.turns]
        row: dict[str, Any] = {"prompt": prompt, "completion": self.answer}
        given = {"tags": dict(self.tags), "group": self.group, "id": self.id, "split": self.split}
        return row | {key: value for key, value in given.items() if value not in (None, {})}


def asked(text: str) -> tuple[Message, ...]:
    """`text` as the only turn."""
    return (Message(role="user", content=text),)


def identity(row: Mapping[str, Any]) -> dict[str, Any]:
    """What every format may carry besides question and answer: `id`, `tags`, `group` and `split`, as Pair's fields."""
    split = row.get("split")
    return {
        "id": _name(row, "id"), "tags": _tags(row), "group": _name(row, "group"),
        "split": None if split is None else filled(split, "split"),
    }  # fmt: skip


def _name(row: Mapping[str, Any], key: str) -> str | int | None:
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


def _tags(row: Mapping[str, Any]) -> Mapping[str, str]:
    tags = row.get("tags")
    if tags is None:
        return _NO_TAGS
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise BadRow("bad_tags", "'tags' is not an object of texts", 'write {"name": "value"}')
    return tags
