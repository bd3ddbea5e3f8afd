"""An answer as a track's scorers read it, for people to look at: the call, the number or the JSON that they find in it."""

from __future__ import annotations

import json
from collections.abc import Callable

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import hermes, numeric, toolcall
from slm_ray.scoring.strip import strip


def parsed(track: Track, text: str | None) -> str:
    """The answer in one line, with notes on what was taken off it; `unreadable` where the scorers find nothing in it."""
    value, notes = _read(track, text)
    shown = "unreadable" if value is None else str(value)
    return f"{shown} ({', '.join(notes)})" if notes else shown


def is_readable(track: Track, text: str | None) -> bool:
    """Whether the track's scorers find in the answer what they look for; of free text, whether there is any."""
    return _read(track, text)[0] is not None


def _read(track: Track, text: str | None) -> tuple[object, tuple[str, ...]]:
    stripped, notes = strip(text, track.strip)
    parse = next((_PARSERS[name] for name in track.scorers if name in _PARSERS), None)
    return (parse(stripped) if parse else stripped), notes


def _number(text: str | None) -> str | None:
    number = numeric.final_number(text)
    return None if number is None else numeric.written(number)


def _json(text: str | None) -> str | None:
    try:
        return json.dumps(json.loads(text or ""), ensure_ascii=False, sort_keys=True)
    except (json.JSONDecodeError, RecursionError):
        return None


_PARSERS: dict[str, Callable[[str | None], object]] = {
    "toolcall": toolcall.read_call, "hermes": hermes.read_call, "gsm8k": _number, "structured": _json,
}  # fmt: skip
