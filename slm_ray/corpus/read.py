"""JSONL rows into examples: `prompt`/`completion` (texts or message lists), `messages`, or ShareGPT `conversations`.

Every bad row is named by file and line with what to do, all of them in one DataError; no row is dropped or repaired
silently. Only blank lines, a byte-order mark and CRLF are tolerated. Knows nothing of disks: it is given the lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from slm_ray.corpus.render import content_id
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError
from slm_ray.types import Example, Message, Prompt, Role

_SHOWN = 5
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_SHAPES = ("prompt", "messages", "conversations")


class BadRow(ValueError):
    """Why one row cannot be used, and the fix; the reader adds where."""


def examples(lines: Iterable[str], *, name: str, track: Track) -> list[Example]:
    """Read JSONL `lines` of the file called `name`, in order.

    A row's id is its `id` or, without one, a hash of its content. The track's system prompt goes in front of a prompt
    that has none. Raises one DataError that names every bad row's line (the first five spelled out).
    """
    found: list[Example] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff") if number == 1 else line
        if not text.strip():
            continue
        try:
            example = _example(json_object(text), track)
            earlier = line_of.setdefault(example.id, number)
            if earlier != number:
                raise BadRow(f"the id {example.id!r} is already used in line {earlier}; {_unique(text)}")
            found.append(example)
        except BadRow as problem:
            problems.append(f"{name}:{number}: {problem}")
    refuse(problems)
    if not found:
        raise DataError(f"{name}: there are no rows in it; give a JSONL file with one example per line")
    return found


def refuse(problems: Sequence[str]) -> None:
    """Raise one DataError for all `problems` (each `FILE:LINE: reason; fix`); nothing when there are none."""
    if problems:
        more = len(problems) - _SHOWN
        tail = f" | and {more} more bad row{'s' * (more > 1)}" if more > 0 else ""
        raise DataError(" | ".join(problems[:_SHOWN]) + tail)


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that `text` is, free of lone surrogates; BadRow otherwise."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"this is not JSON ({_first(error)}); write one JSON object per line") from None
    return checked_object(value)


def checked_object(value: object) -> dict[str, Any]:
    """`value` if it is an object whose texts can all be written as UTF-8; BadRow otherwise."""
    if not isinstance(value, dict):
        raise BadRow(f"a row is a JSON object, not {_kind(value)}; write {{…}} with a prompt and a completion")
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow("it holds half of a surrogate pair (\\ud800 to \\udfff alone); remove or complete it") from None
    return value


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The non-empty text under `key`; BadRow otherwise."""
    if key not in row:
        raise BadRow(f"there is no {key!r} (keys: {', '.join(map(repr, row)) or 'none'}); add it")
    return _filled(row[key], key)


def _example(row: Mapping[str, Any], track: Track) -> Example:
    turns, reference = _prompt_and_reference(row)
    if turns[-1].role != "user":
        raise BadRow(f"the prompt ends with the {turns[-1].role}'s turn; end it with the user's")
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRow("a system turn stands after the first turn; keep one, in front")
    if turns[0].role != "system":
        turns = [Message(role="system", content=track.system), *turns]
    prompt = Prompt(messages=tuple(turns))
    return Example(id=_id(row) or content_id(prompt, reference), prompt=prompt, reference=reference, tags=_tags(row))


def _prompt_and_reference(row: Mapping[str, Any]) -> tuple[list[Message], str]:
    match [shape for shape in _SHAPES if shape in row]:
        case ["prompt"]:
            return _turns(row["prompt"], "prompt", "user"), _reference(row)
        case ["messages"]:
            return _final_answer(_turns(row["messages"], "messages"), "messages")
        case ["conversations"]:
            return _final_answer(_turns(row["conversations"], "conversations"), "conversations")
        case []:
            text_of(row, "prompt")
    raise BadRow("it has more than one of 'prompt', 'messages' and 'conversations'; keep one")


def _reference(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("completion"), list):
        return text_of(row, "completion")
    turns = _turns(row["completion"], "completion")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow("'completion' is not a single assistant turn; move the other turns into 'prompt'")
    return turns[0].content


def _final_answer(turns: list[Message], key: str) -> tuple[list[Message], str]:
    if all(turn.role != "assistant" for turn in turns):
        raise BadRow(f"{key!r} has no assistant turn; add the expected answer as the last turn")
    if turns[-1].role != "assistant":
        raise BadRow(f"{key!r} ends with the {turns[-1].role}'s turn; end it with the assistant's expected answer")
    if len(turns) == 1:
        raise BadRow(f"{key!r} has nothing before the answer; add the user's turn")
    return turns[:-1], turns[-1].content


def _turns(value: object, key: str, text_role: Role | None = None) -> list[Message]:
    """Chat turns; a bare text is one turn of `text_role` where that is given."""
    if text_role is not None and not isinstance(value, list):
        return [Message(role=text_role, content=_filled(value, key))]
    if not isinstance(value, list):
        raise BadRow(f"{key!r} is {_kind(value)}; write a list of turns")
    if not value:
        raise BadRow(f"{key!r} is an empty list; add the turns")
    sharegpt = key == "conversations"
    return [_turn(turn, f"{key}[{position}]", sharegpt) for position, turn in enumerate(value)]


def _turn(turn: object, where: str, sharegpt: bool) -> Message:
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    roles = _SHAREGPT_ROLES if sharegpt else _ROLES
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        raise BadRow(f"{where!r} is no turn; write an object with {role_key!r} and {content_key!r}")
    role = turn[role_key]
    if not isinstance(role, str) or role not in roles:
        raise BadRow(f"{where!r} has the unknown role {role!r}; use {', '.join(roles)}")
    return Message(role=cast(Role, roles[role]), content=_filled(turn[content_key], f"{where}.{content_key}"))


def _filled(value: object, where: str) -> str:
    if value is None:
        raise BadRow(f"{where!r} is null; write its text or delete the row")
    if not isinstance(value, str):
        raise BadRow(f"{where!r} is {_kind(value)}; write a text")
    if not value.strip():
        raise BadRow(f"{where!r} is empty; write its text or delete the row")
    return value


def _id(row: Mapping[str, Any]) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"'id' is {_kind(value)}; write a text or a whole number")
    return _filled(str(value), "id")


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    tags = row.get("tags")
    if tags is None:
        return {}
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise BadRow('\'tags\' is not an object of texts; write {"name": "value"}')
    return dict(tags)


def _unique(text: str) -> str:
    return "give each row its own" if '"id"' in text else "the rows are equal and have no 'id': delete one"


def _kind(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "bool": "true or false", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if not isinstance(error, RecursionError) else "nested too deeply"
