"""What is kept of one live request: who asked what of which route, what each arm answered, what people said of it.

One line of JSON is the encoding of a record; `schema_version` says which one. A record holds what was seen and decides
nothing. `TrafficRow.user` is whatever the client gave when a row is handed to the log, and a salted hash in every row
that is read back: the log hashes it before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from slm_ray.types import State

SCHEMA_VERSION = 1
_YEAR_9999 = 253_370_764_800

Arm = Literal["llm", "slm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmAnswer:
    """What one arm said to one request.

    `model` is the exact version that answered. `text` is None where the call failed (`reason` says how) or where no text
    is kept; then `digest` (a keyed hash: equal answers have equal ones) and `chars` are all there is. A tool call is the
    text of its JSON. `redacted`: something was taken out of the text. `status` is the HTTP status, 0 where no answer came. `valid` says whether the answer has the right
    form, `logprob` is the mean of its tokens, `score` that of the route's track against the other arm's answer.
    """

    arm: Arm
    model: str
    text: str | None
    status: int
    latency_s: float
    reason: str | None = None
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    valid: bool | None = None
    logprob: float | None = None
    cost_usd: float | None = None
    score: float | None = None
    digest: str | None = None
    chars: int | None = None
    redacted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user said of the answer to request `id`: a score in [0, 1] of the answer that was served, a better answer, or both.

    `label`: the answer is what was expected, asked of people whatever the models had said, and no correction of one that
    they disliked. `at` is in Unix seconds; `redacted`: something was taken out of the answer.
    """

    id: str
    at: float
    score: float | None = None
    answer: str | None = None
    label: bool = False
    redacted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRow:
    """One request to a route, with the answers of the arms that were asked.

    `at` is in Unix seconds, `serial` the number of the route's state when it was asked, `arm` the one that the route chose
    for the client and `served` the one whose answer the client got (None: neither). `fallback` says why they differ.
    `audited`: drawn, by the id alone, to be asked of both sides (in shadow every one is), and not left out for lack of
    room; what became of that, `answers` say.
    The LLM's answers to audited rows are a fair sample of what it would have answered to all, and so are those in record.
    `request` is the body as the client sent it: `messages`, `response_format`, `max_tokens` and so on. `feedback` is
    joined when rows are read.
    """

    id: str
    at: float
    route: str
    serial: int
    state: State
    arm: Arm
    request: Mapping[str, Any]
    answers: tuple[ArmAnswer, ...] = ()
    user: str | None = None
    served: Arm | None = None
    fallback: str | None = None
    audited: bool = False
    feedback: tuple[Feedback, ...] = ()

    def answer_of(self, arm: Arm) -> ArmAnswer | None:
        """The arm's first answer; None where it was not asked."""
        return next((answer for answer in self.answers if answer.arm == arm), None)


Entry = TrafficRow | Feedback
_KINDS: Mapping[str, type[Entry]] = {"request": TrafficRow, "feedback": Feedback}


def kind_of(entry: Entry) -> str:
    """What the entry is called on disk."""
    return "request" if isinstance(entry, TrafficRow) else "feedback"


def plain(entry: Entry) -> dict[str, Any]:
    """The entry as what JSON holds, with its version and kind."""
    return {"schema_version": SCHEMA_VERSION, "kind": kind_of(entry), **msgspec.to_builtins(entry)}


def encoded(entry: Entry) -> bytes:
    """The entry as one line. ValueError for a time that is none, TypeError for what JSON has no word for.

    NaN and infinity are written as null.
    """
    _check_time(entry)
    return msgspec.json.encode(plain(entry)) + b"\n"


def entry_of(fields: Mapping[str, Any]) -> Entry:
    """The entry that `plain` made; ValueError, in words, for another version, kind or type."""
    if (version := fields.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version!r} and not {SCHEMA_VERSION}")
    kind = _KINDS.get(str(fields.get("kind")))
    if kind is None:
        raise ValueError(f"kind is {fields.get('kind')!r} and neither request nor feedback")
    entry = msgspec.convert(
        {name: value for name, value in fields.items() if name not in ("schema_version", "kind")}, kind
    )
    _check_time(entry)
    return entry


def decoded(line: bytes) -> Entry:
    """The entry in a line; ValueError for one that holds none."""
    fields = msgspec.json.decode(line)
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__} and no object")
    return entry_of(fields)


def _check_time(entry: Entry) -> None:
    """A row's time names the day that it is kept under."""
    if not 0 <= entry.at < _YEAR_9999:
        raise ValueError(f"at is {entry.at!r} and no time in Unix seconds")
