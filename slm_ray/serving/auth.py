"""Who may use the endpoint. Plain ASGI; knows nothing of models.

The deployer's key itself stays where it was set: only its SHA-256 travels to the replicas.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from slm_ray.serving.failures import refusal

OPEN_PATHS = ("/health",)


def key_digest(key: str) -> str:
    """What stands for an API key outside the process that was given it."""
    return hashlib.sha256(key.encode()).hexdigest()


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
