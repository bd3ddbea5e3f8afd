"""What a ledger holds: the questions of a plan, the answers to them, and the key that makes two calls the same call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slm_ray.types import Completion, Failure, Usage

ENTRY = "key, spec, example_id, completion, answered_ns, repeat"  # the columns of an Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer to keep, under its key; `answered_ns` is the wall time at which it arrived, `repeat` counts from 0."""

    key: str
    spec: str
    example_id: str
    completion: Completion
    answered_ns: int
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One question of a plan."""

    key: str
    spec: str
    example_id: str
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One time that a plan was run: what it says of itself, and how it ended (None while nobody has said so).

    `speeds` is the last note of how fast it may ask; empty where there is none.

    What it has started and answered has higher numbers in the ledger than `last_start` and `last_answer`.
    """

    plan: str
    facts: Mapping[str, Any]
    last_start: int
    last_answer: int
    ended: str | None
    speeds: Mapping[str, Any] = field(default_factory=dict)


def key(data_digest: str, example_id: str, identity: str, request: Mapping[str, Any], repeat: int = 0) -> str:
    """What makes two calls the same call: SHA-256 over the data, the row, the model, the body that is sent, the repeat."""
    parts = [data_digest, example_id, identity, request, repeat]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def finished(completion: Completion) -> bool:
    """True when asking again cannot help: an answer, a refusal, a cut or unusable answer; False for a failed call."""
    return completion.failure is None or completion.failure.kind != "error"


def outcome(completion: Completion) -> str:
    """How a row ended: `ok` or the kind of its failure."""
    return completion.failure.kind if completion.failure else "ok"


def text_of(completion: Completion) -> str:
    """The completion as the JSON that is kept."""
    return json.dumps(asdict(completion), ensure_ascii=False, allow_nan=False)


def completion_of(text: str) -> Completion:
    """What `text_of` wrote."""
    return completion_in(json.loads(text))


def completion_in(fields: dict[str, Any]) -> Completion:
    """A completion from its plain fields, which are used up."""
    failure, usage = fields.pop("failure"), fields.pop("usage")
    return Completion(
        **fields, failure=Failure(**failure) if failure else None, usage=Usage(**usage) if usage else None
    )


def entry_of(row: Any) -> Entry:
    """An `Entry` from the columns that ENTRY names."""
    return Entry(
        key=row[0], spec=row[1], example_id=row[2], completion=completion_of(row[3]), answered_ns=row[4],
        repeat=row[5],
    )  # fmt: skip
