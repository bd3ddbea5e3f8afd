"""Connections to one endpoint, in several small pools: a pool looks at all of its connections for every call.

With 64 calls in flight over one pool that search costs more than sending the request does.
"""

from __future__ import annotations

import httpx2

_POOLS = 16


class SpreadTransport(httpx2.AsyncBaseTransport):
    """Each call over the pool that has the fewest calls in flight."""

    def __init__(self, *, trust_env: bool) -> None:
        verify = httpx2.create_ssl_context(trust_env=trust_env)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self._pools = [httpx2.AsyncHTTPTransport(verify=verify, limits=limits) for _ in range(_POOLS)]
        self._in_flight = [0] * _POOLS

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        at = self._in_flight.index(min(self._in_flight))
        self._in_flight[at] += 1
        try:
            return await self._pools[at].handle_async_request(request)
        finally:
            self._in_flight[at] -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()
