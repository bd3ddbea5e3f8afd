"""A streamed answer, put together again: server-sent events in, the body of an unstreamed answer out.

So that both are read by the same code. A stream that is not what the API promises is data, as any other body; one that
says in the middle that it failed hands that over as the status and code it names.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from slm_ray.providers.answer import Outcome, failed, read_answer, read_object


class StreamError(Exception):
    """The endpoint reported an error in place of the next part."""

    def __init__(self, message: str, *, status: int | None, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Parts:
    """What has come so far."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.tokens: list[Any] = []
        self.finish: Any = None
        self.chunks = 0

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take one chunk; True when it carries text."""
        self.chunks += 1
        for name in ("model", "usage"):
            if chunk.get(name):
                self.answer[name] = chunk[name]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        self.finish = choice.get("finish_reason") or self.finish
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
            self.tokens += logprobs["content"]
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if isinstance(delta.get("refusal"), str):
            self.refusals.append(delta["refusal"])
        if isinstance(delta.get("content"), str):
            self.texts.append(delta["content"])
        return bool(delta.get("content"))

    def outcome(self) -> Outcome:
        if self.finish is None:
            return failed("invalid", "the stream ended before the answer did")
        message = {"content": "".join(self.texts), "refusal": "".join(self.refusals)}
        choice = {"finish_reason": self.finish, "message": message, "logprobs": {"content": self.tokens}}
        return read_object({**self.answer, "choices": [choice]})


async def read_stream(lines: AsyncIterator[str], *, started_s: float) -> tuple[Outcome, float | None]:
    """The outcome and the seconds from `started_s` (`time.perf_counter`) to the first text; raises StreamError."""
    parts, first_s, plain = _Parts(), None, []
    async for line in lines:
        if not line.startswith("data:"):
            plain.append(line)
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        try:
            chunk = json.loads(data)
        except (json.JSONDecodeError, RecursionError):
            return failed("invalid", f"the stream holds a part that is not JSON: {data[:80]!r}"), first_s
        if not isinstance(chunk, dict):
            return failed("invalid", f"the stream holds a JSON {type(chunk).__name__}, not an object"), first_s
        if chunk.get("error"):
            raise _error(chunk["error"])
        if parts.add(chunk) and first_s is None:
            first_s = time.perf_counter() - started_s
    if not parts.chunks:
        return read_answer("\n".join(plain)), None  # an endpoint that does not stream answers as ever
    return parts.outcome(), first_s


def _error(error: Any) -> StreamError:
    fields = error if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code")
    status = code if isinstance(code, int) else None
    return StreamError(str(fields.get("message") or error), status=status, code=code if isinstance(code, str) else None)
