"""What a server that takes traces does to a request, as a `Problem`: refusals, lost connections, waits that it asks for.

What a server answers is never shown, because it may repeat what it was sent.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx

from slm_ray.costs.data_residency import is_loopback
from slm_ray.tracing.retry_policy import Problem

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_FULL = 507
_ADVICE = {413: "a request is larger than it takes", 429: "it asks for fewer requests", _FULL: "it is full"}


def client(url: str) -> httpx.Client:
    """Connections to the server at `url`, past any proxy where it is on this machine. Close it."""
    return httpx.Client(trust_env=not is_loopback(urlsplit(url).hostname or ""))


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Failures of the connection as Problems; an answer or an address that cannot be read is none of `what`."""
    try:
        yield
    except httpx.TransportError as error:
        in_doubt = not isinstance(error, _NEVER_SENT)
        raise Problem(_words(error), transient=True, in_doubt=in_doubt) from None
    except (httpx.InvalidURL, ValueError) as error:
        raise Problem(f"{type(error).__name__}: not {what}") from None


def raise_for(status: int, headers: Mapping[str, str], advice: Mapping[int, str]) -> None:
    """Problem for any status but success; `advice` says what to do about those that this server has reasons of its own for."""
    if 200 <= status < 300:
        return
    given = {name.lower(): value for name, value in headers.items()}
    broken = status >= 500 and status != _FULL
    said = {**_ADVICE, **advice}.get(status, "its own fault" if broken else "the request was refused")
    raise Problem(
        f"HTTP {status}: {said}", status=status, retry_after_s=_retry_after_s(given.get("retry-after", "")),
        transient=broken or status in (408, 429), in_doubt=broken or status == 408,
    )  # fmt: skip


def _retry_after_s(text: str) -> float | None:
    """Seconds or an HTTP date, as seconds from now."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except ValueError:
        return None


def _words(error: httpx.TransportError) -> str:
    match error:
        case httpx.ConnectError():
            return "nothing listens there"
        case httpx.TimeoutException():
            return "no answer in time"
    return f"the connection broke ({type(error).__name__})"
