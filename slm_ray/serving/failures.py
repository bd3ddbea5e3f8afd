"""What a client is told when there is no answer: one shape, the words of whoever found the fault, nothing of our inside.

Ray's own handler says an exception three times over, with class names, request ids and paths of the node; Starlette says
`Internal Server Error` in plain text. Here a fault of the request keeps its sentence, and a fault of ours is one sentence
that says nothing: the rest is in the replica's log. Plain ASGI; knows exceptions by what they carry, not by whose they are.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LONGEST = 500
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+[\w.@+-]+")
_ROUTES = ("/v1/", "/openai/", "/rollout/")
_REQUEST_ID = re.compile(r"\s*\(Request ID: [^)]*\)")
_CODES = {401: "invalid_api_key", 404: "model_not_found", 405: "method_not_allowed", 408: "timeout",
          413: "request_too_large", 429: "rate_limit_exceeded", 503: "unavailable"}  # fmt: skip
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# As vLLM words it. Clients shorten a conversation by this code.
_CONTEXT = re.compile(r"maximum (?:model|context) length|max_model_len|maximum context|context length", re.IGNORECASE)


def refusal(
    status: int,
    code: str,
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    retry_after_s: int | None = None,
) -> JSONResponse:
    """An error body that both the OpenAI and the Azure client read; `param` is the field at fault."""
    error: dict[str, Any] = {"code": code, "message": message, "type": kind, "param": param}
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def failure(status: int, message: str = "") -> JSONResponse:
    """The refusal for a status and what was said with it. Of a fault of ours (500 and up, but 503) nothing is passed on."""
    if status >= 500 and status != 503:
        return refusal(
            status, "internal_error", "the endpoint failed at this request; its log says why", "server_error"
        )
    kind = "server_error" if status == 503 else _KINDS.get(status, "invalid_request_error")
    if status == 400 and _CONTEXT.search(message):
        return refusal(status, "context_length_exceeded", presentable(message), kind, param="messages")
    code = "not_found" if message == "Not Found" else _CODES.get(status, "bad_request")  # the router's words
    return refusal(status, code, presentable(message), kind)


def presentable(message: str) -> str:
    """What may be said to a client: one paragraph, without request ids, and of a path on this machine only its name."""
    text = " ".join(_REQUEST_ID.sub("", message).split())
    text = _PATH.sub(lambda path: path[0] if path[0].startswith(_ROUTES) else path[0].rpartition("/")[2], text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def failure_of(error: Exception) -> JSONResponse:
    """The refusal for an exception: those that name a status and what to say (FastAPI's, Ray's) are believed."""
    if callable(problems := getattr(error, "errors", None)):  # a body that FastAPI or pydantic could not read
        return _unreadable(problems())
    status = getattr(error, "status_code", None)
    said = getattr(error, "detail", None) or getattr(error, "message", None)
    if not isinstance(status, int) or not 400 <= status <= 599:
        return failure(500)
    return failure(status, said if isinstance(said, str) else "")


def _unreadable(problems: Any) -> JSONResponse:
    first = problems[0] if problems else {}
    steps = [str(step) for step in first.get("loc", ()) if step != "body"]
    place = ".".join(
        step for step in steps if step.isidentifier() or step.isdigit()
    )  # of validators vLLM names its functions
    words = presentable(f"{place or 'body'}: {first.get('msg', 'it cannot be read')}")
    return refusal(400, "invalid_value", words, param=place or None)


class OneErrorShape:
    """ASGI middleware, outermost: whatever is raised before an answer began is answered in the one shape, and logged.

    An answer that has begun is broken off: that is all HTTP can say then.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            response = failure_of(error)
            if begun:
                raise
            if response.status_code >= 500:
                logging.getLogger("ray.serve").error("a request failed: %s", type(error).__name__, exc_info=error)
            await response(scope, receive, send)
