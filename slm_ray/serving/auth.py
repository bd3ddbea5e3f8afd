"""Who may use the endpoint. Plain ASGI; knows nothing of models.

The deployer's key itself stays where it was set: only its SHA-256 travels to the replicas. An endpoint without a key is for
this machine, and a page in this machine's browser is not: it reaches loopback under a name of its own (DNS rebinding) or
posts from its own origin, and both show in the request's headers.
"""

from __future__ import annotations

import logging
import math
import time
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from slm_ray.costs.data_residency import is_loopback
from slm_ray.errors import ConfigError, DataError
from slm_ray.serving.failures import refusal
from slm_ray.serving.keys import Key, KeyRing

OPEN_PATHS = ("/health",)
_KEY = "slm_ray.key"
_SAID_EVERY_S = 60.0


def key_of(scope: Scope) -> Key | None:
    """Whose request it is; None where no key is asked for."""
    key: Key | None = scope.get(_KEY)
    return key


class RequireKey:
    """ASGI middleware: 401 unless `Authorization: Bearer KEY` or `api-key: KEY` shows a key of the ring.

    503 where the file of keys cannot be believed, but for the deployer's own.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing) -> None:
        self.app = app
        self._ring = ring
        self._said, self._said_at = "", -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        shown = [request.headers.get("api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        try:
            key = self._ring.whose(shown)
        except (DataError, ConfigError) as error:
            self._say(str(error))
            response = refusal(
                503, "unavailable", "the keys cannot be read; ask whoever runs this endpoint", "server_error"
            )
            await response(scope, receive, send)
            return
        if key is None:
            response = refusal(
                401, "invalid_api_key", "this endpoint needs its key, as 'Authorization: Bearer KEY' or 'api-key: KEY'",
                "authentication_error",
            )  # fmt: skip
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        scope[_KEY] = key
        await self.app(scope, receive, send)

    def _say(self, problem: str) -> None:
        """One line a minute in the log for one problem, however many requests meet it."""
        if problem == self._said and time.monotonic() - self._said_at < _SAID_EVERY_S:
            return
        self._said, self._said_at = problem, time.monotonic()
        logging.getLogger("ray.serve").error("no key is taken but the deployer's: %s", problem)


class ThisMachineOnly:
    """ASGI middleware for an endpoint without a key: 403 for a client, a Host or an Origin that is not this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Request(scope).headers
            origin = headers.get("origin")
            named = [f"//{headers.get('host', '')}", *([origin] if origin is not None else [])]
            # Of Ray's proxy, when it listens on more than loopback after all; behind HAProxy that is in a header.
            clients = [client[0] for client in (scope.get("client"),) if client]
            for told in headers.getlist("x-forwarded-for"):
                clients += [one.strip() for one in told.split(",")]
            if not all(_is_here(url) for url in named) or not all(map(is_loopback, clients)):
                response = refusal(
                    403, "host_not_allowed", "without a key this endpoint answers requests to localhost from this machine only;"
                    " set SLM_RAY_API_KEY where it is started", "permission_error",
                )  # fmt: skip
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
