"""Requests that Langfuse takes: long values cut with a mark, many objects packed into requests of bounded size.

Only what is sent is cut; the trace file keeps everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from slm_ray.tracing.otlp import Span
from slm_ray.tracing.spans import INPUT

# Langfuse takes 5 MB of spans a request, and 1 MB (the limit of its web framework) of anything else.
SPANS_BYTES, SCORES_BYTES, VALUE_BYTES = 3_000_000, 900_000, 300_000
_SMALLEST_BYTES = 1_000

Thing = TypeVar("Thing")


def truncate(text: str, limit_bytes: int = VALUE_BYTES) -> str:
    """`text`, or as much of its start as is `limit_bytes` of JSON, with a mark that says how much is missing."""
    if len(text) * 6 <= limit_bytes or _bytes(text) <= limit_bytes:  # a character is at most six bytes of JSON
        return text
    length = len(text)
    keep = length * limit_bytes // _bytes(text)
    while _bytes(text[:keep]) > limit_bytes:
        keep = keep * 9 // 10
    return f"{text[:keep]}… [cut here: {length - keep} of {length} characters are in traces.jsonl only]"


def truncate_prompt(text: str, limit_bytes: int = VALUE_BYTES) -> str:
    """A prompt as JSON messages with each message's content cut, so that it stays JSON; any other text is just cut."""
    if len(text) * 6 <= limit_bytes or _bytes(text) <= limit_bytes:
        return text
    messages = _messages(text)
    if not messages:
        return truncate(text, limit_bytes)
    share = max(_SMALLEST_BYTES, limit_bytes // (2 * len(messages)))  # as JSON in JSON, quotes are escaped once more
    short = [{**message, "content": truncate(message["content"], share)} for message in messages]
    return truncate(json.dumps(short, ensure_ascii=False), limit_bytes)


def truncated(span: Span, limit_bytes: int = VALUE_BYTES) -> Span:
    """The span with every long text cut."""
    attributes = [_truncated(item, limit_bytes) for item in span["attributes"]]
    status = span["status"]
    if "message" in status:
        status = {**status, "message": truncate(status["message"], limit_bytes)}
    return {**span, "attributes": attributes, "status": status}


def size_bytes(value: Any) -> int:
    """About what `value` takes in a request."""
    return len(json.dumps(value, ensure_ascii=False).encode())


def batches(
    things: Iterable[Thing], *, size: Callable[[Thing], int], limit_bytes: int, most: int
) -> Iterator[list[Thing]]:
    """The things in order, in groups of at most `most` and, unless one alone is larger, `limit_bytes`."""
    group: list[Thing] = []
    total = 0
    for thing in things:
        needed = size(thing)
        if group and (total + needed > limit_bytes or len(group) == most):
            yield group
            group, total = [], 0
        group.append(thing)
        total += needed
    if group:
        yield group


def _truncated(item: dict[str, Any], limit_bytes: int) -> dict[str, Any]:
    text = item["value"].get("stringValue")
    if text is None:
        return item
    short = truncate_prompt(text, limit_bytes) if item["key"] == INPUT else truncate(text, limit_bytes)
    return item if short is text else {"key": item["key"], "value": {"stringValue": short}}


def _messages(text: str) -> list[dict[str, str]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return []
    fine = isinstance(found, list) and all(
        isinstance(one, dict) and isinstance(one.get("content"), str) for one in found
    )
    return found if fine else []


def _bytes(text: str) -> int:
    return size_bytes(text)
