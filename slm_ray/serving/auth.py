"""Who may use the endpoint, and the shape of its refusals. Plain ASGI; knows nothing of models.

The deployer's key itself stays where it was set: only its SHA-256 travels to the replicas.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ("/health",)


def key_digest(key: str) -> str:
    """What stands for an API key outside the process that was given it."""
    return hashlib.sha256(key.encode()).hexdigest()


def refusal(
    status: int, code: str, message: str, kind: str = "invalid_request_error", *, param: str | None = None
) -> JSONResponse:
    """An error body that both the OpenAI and the Azure client read; `param` is the field at fault."""
    error: dict[str, Any] = {"code": code, "message": message, "type": kind, "param": param}
    return JSONResponse({"error": error}, status_code=status)


class RequireKey:
    """ASGI middleware: 401 unless `Authorization: Bearer KEY` or `api-key: KEY` has the right digest."""

    def __init__(self, app: ASGIApp, *, digest: str) -> None:
        self.app = app
        self._digest = digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._right(Request(scope)):
            response = refusal(
                401, "invalid_api_key", "this endpoint needs its key, as 'Authorization: Bearer KEY' or 'api-key: KEY'",
                "authentication_error",
            )  # fmt: skip
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _right(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = [request.headers.get("api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        right = [hmac.compare_digest(key_digest(key), self._digest) for key in given]
        return any(right)
