"""What a chat endpoint sent back, read into text or a failure.

A body that is not what the API promises is data too: it becomes an `invalid` failure, never an exception.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from slm_ray.types import Completion, Failure, FailureKind, Usage

_KEPT = 300  # characters of a server's message
_FILTERED = frozenset({"content_filter", "content_policy_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A completion before its latency and number of attempts are known."""

    text: str | None = None
    failure: Failure | None = None
    usage: Usage | None = None
    served_by: str | None = None

    def completion(self, *, latency_s: float, attempts: int) -> Completion:
        """The finished record."""
        return Completion(
            text=self.text, failure=self.failure, usage=self.usage, served_by=self.served_by,
            latency_s=round(latency_s, 6), attempts=attempts,
        )  # fmt: skip


def one_line(text: str) -> str:
    """A server's message, fit for a log line and a UTF-8 file."""
    return " ".join(text.split())[:_KEPT].encode("utf-8", "replace").decode()


def read_answer(body: str) -> Outcome:
    """The body of an HTTP 200: its first choice as text, or why there is none."""
    try:
        answer = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return _failed("invalid", f"the answer is not JSON: {body[:80]!r}")
    if not isinstance(answer, dict):
        return _failed("invalid", f"the answer is a JSON {type(answer).__name__}, not an object")
    served_by = answer.get("model")
    usage = _usage(answer.get("usage"))
    text, failure = _first_choice(answer.get("choices"))
    name = one_line(served_by) if isinstance(served_by, str) and served_by else None
    return Outcome(text=text, failure=failure, usage=usage, served_by=name)


def error_outcome(status: int, code: str | None, message: str) -> Outcome:
    """A call that the endpoint refuses for this prompt alone: filtered content is a refusal, the rest an error."""
    if code in _FILTERED:
        return _failed("refused", f"content filter: {message}", status)
    return _failed("error", f"HTTP {status}: {message}", status)


def _first_choice(choices: Any) -> tuple[str | None, Failure | None]:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None, Failure(kind="invalid", reason="the answer has no choices")
    choice = choices[0]
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        return None, Failure(kind="refused", reason="the content filter stopped the answer")
    if reason == "length":
        return None, Failure(kind="truncated", reason="the answer reached generation.max_tokens")
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if message.get("refusal"):
        return None, Failure(kind="refused", reason=f"the model refused: {one_line(str(message['refusal']))}")
    text = message.get("content")
    if not isinstance(text, str):
        return None, Failure(kind="invalid", reason="the answer has no text")
    if _unstorable(text):
        return None, Failure(kind="invalid", reason="the answer holds half a surrogate pair, which is not text")
    return text, None


def _unstorable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(prompt_tokens=counts[0] or 0, completion_tokens=counts[1] or 0)


def _failed(kind: FailureKind, reason: str, status: int | None = None) -> Outcome:
    return Outcome(failure=Failure(kind=kind, reason=reason, status=status))
