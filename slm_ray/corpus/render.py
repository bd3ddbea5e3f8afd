"""How text becomes a prompt, and how prompts and examples are named by their content.

The one place where the shape of a chat lives on our side; a model's own chat template is its tokenizer's business.
Hashes are SHA-256 cut to 16 hex digits, over UTF-8; a data set's digest is whole.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from slm_ray.corpus.tracks import Track
from slm_ray.types import Example, Message, Prompt

TOOL_RESPONSE = "<tool_response>"
_SHORT = 16
_LISTED_LABELS = 100  # more would fill the prompt and help nobody


def prompt_of(track: Track, text: str) -> Prompt:
    """`text` as the user's turn, under the track's system prompt."""
    return chat(track, (Message(role="user", content=text),))


def chat(track: Track, turns: Sequence[Message]) -> Prompt:
    """`turns` as the model is shown them: the track's system prompt in front where they have none, its prefix in
    front of every user's turn."""
    shown = tuple(turns)
    if track.prefix:
        shown = tuple(
            Message(role="user", content=prefixed(track, turn.content)) if turn.role == "user" else turn
            for turn in shown
        )
    if shown[0].role != "system":
        shown = (_system_turn(system_prompt(track)), *shown)
    return Prompt(messages=shown)


@functools.lru_cache(maxsize=16)
def _system_turn(text: str) -> Message:
    """One for all rows of a track: two million of them would be 200 MB."""
    return Message(role="system", content=text)


def system_prompt(track: Track) -> str:
    """The track's system prompt, its labels listed below it where they are known and few enough to read."""
    if not 0 < len(track.labels) <= _LISTED_LABELS:
        return track.system
    return f"{track.system}\nLabels: {', '.join(track.labels)}"


def prefixed(track: Track, text: str) -> str:
    """A user's turn with the track's prefix in front, once; what a tool gave back is nobody's request and has none."""
    prefix = track.prefix.rstrip()  # YAML ends a block with a line end
    has_it = text.startswith((prefix, TOOL_RESPONSE))
    return text if has_it else f"{prefix}\n\n{text}"


def normalised(text: str) -> str:
    """`text` as leak checks compare it: runs of white space are one space, case is folded."""
    return " ".join(text.split()).casefold()


def prompt_hash(prompt: Prompt) -> str:
    """16 hex digits that two prompts share when they ask the same thing, whatever the system prompt or spacing."""
    turns = [[turn.role, normalised(turn.content)] for turn in prompt.messages if turn.role != "system"]
    return _sha256(turns)[:_SHORT]


def content_id(prompt: Prompt, target: str) -> str:
    """16 hex digits that name an example by its exact content; the id of a row that has none."""
    turns = [{"role": turn.role, "content": _passing(turn.content)} for turn in prompt.messages]
    return _sha256([turns, _passing(target)])[:_SHORT]


def digest(examples: Iterable[Example]) -> str:
    """64 hex digits that name a data set by ids, prompts and targets, in any order. Tags do not count."""
    return _sha256(sorted(_sha256([row.id, row.prompt.as_dicts(), row.target]) for row in examples))


def _passing(text: str) -> str:
    """A text to be encoded and forgotten: one that is not ASCII keeps the UTF-8 that is made of it as long as it lives."""
    return text if text.isascii() else text[:1] + text[1:]


def _sha256(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()
