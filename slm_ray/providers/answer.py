"""What a chat endpoint sent back, read into text or a failure.

A body that is not what the API promises is data too: it becomes an `invalid` failure, never an exception.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from slm_ray.types import Completion, Failure, FailureKind, Usage

_KEPT = 300  # characters of a server's message
FILTERED = frozenset({"content_filter", "content_policy_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A completion before its latency and number of attempts are known."""

    text: str | None = None
    failure: Failure | None = None
    usage: Usage | None = None
    served_by: str | None = None
    logprob: float | None = None
    first_token_s: float | None = None

    def completion(self, *, latency_s: float, attempts: int, possibly_billed: int) -> Completion:
        """The finished record."""
        return Completion(
            text=self.text, failure=self.failure, usage=self.usage, served_by=self.served_by,
            latency_s=round(latency_s, 6), attempts=attempts, possibly_billed=possibly_billed, logprob=self.logprob,
            first_token_s=None if self.first_token_s is None else round(self.first_token_s, 6),
        )  # fmt: skip


def one_line(text: str) -> str:
    """A server's message, fit for a log line and a UTF-8 file."""
    return " ".join(text.split())[:_KEPT].encode("utf-8", "replace").decode()


def read_answer(body: str) -> Outcome:
    """The body of an HTTP 200: its first choice as text, or why there is none."""
    try:
        answer = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return failed("invalid", f"the answer is not JSON: {body[:80]!r}")
    return read_object(answer)


def read_object(answer: Any) -> Outcome:
    """The same, of a body that is parsed already."""
    if not isinstance(answer, dict):
        return failed("invalid", f"the answer is a JSON {type(answer).__name__}, not an object")
    served_by = answer.get("model")
    usage = _usage(answer.get("usage"))
    choices: Any = answer.get("choices")
    text, failure = _first_choice(choices)
    logprob = None if text is None else _mean_logprob(choices[0].get("logprobs"))
    name = one_line(served_by) if isinstance(served_by, str) and served_by else None
    return Outcome(text=text, failure=failure, usage=usage, served_by=name, logprob=logprob)


def error_outcome(status: int, code: str | None, message: str) -> Outcome:
    """A call that the endpoint refuses for this prompt alone: filtered content is a refusal, the rest an error."""
    if code in FILTERED:
        return failed("refused", f"content filter: {message}", status)
    return failed("error", f"HTTP {status}: {message}", status)


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
    prompt, completion = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=min(cached or 0, prompt))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _mean_logprob(logprobs: Any) -> float | None:
    """Mean over the answer's tokens, in nats; None where there are none, never 0 for "unknown"."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    values: list[Any] = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    return round(math.fsum(values) / len(values), 6)


def failed(kind: FailureKind, reason: str, status: int | None = None) -> Outcome:
    """An answer without text."""
    return Outcome(failure=Failure(kind=kind, reason=reason, status=status))
