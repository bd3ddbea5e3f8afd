"""The `openai` package's client of one endpoint, and what a connection that failed says about the call.

The client is the package's own over aiohttp, with retries off: whoever calls counts every attempt. Any number of connections
may be open: how many calls are in flight is decided elsewhere. A proxy of the environment is used for other machines and
never for this one. Keys come from the address alone and go to no other host that a redirect names, which the package sees
to; of the package's environment variables only OPENAI_CUSTOM_HEADERS is obeyed, and not for a key.

What the package makes of aiohttp's errors is not enough to count what may have been billed (a reset in the middle of a call
comes out as a failure to connect), so they are told apart by what aiohttp said.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import aiohttp
import httpx2
import openai

from slm_ray.costs.data_residency import is_loopback
from slm_ray.providers.provider import ChatAddress

CONNECTION_ERRORS = (TimeoutError, openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError)
Break = Literal["unconnected", "late", "lost"]

_CONNECT_TIMEOUT_S = 10.0
_KEPT_ALIVE_S = 5.0  # an idle connection: less than servers keep theirs
_CONNECTIONS = 65_535  # as many as there are ports; no number at all would be aiohttp's hundred
_OPEN_FILES = _CONNECTIONS + 1_024  # and what else a process holds
_NO_KEY = "none"  # the package insists on a key; our endpoint without one ignores it
_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.ProxyError)


def open_client(address: ChatAddress, *, timeout_s: float) -> tuple[openai.AsyncOpenAI, httpx2.AsyncClient]:
    """The client of an Azure resource's deployment or of an OpenAI-compatible endpoint, and what it sends by.

    `timeout_s` is per read.
    """
    _allow_open_files()
    transport = openai.DefaultAioHttpClient(
        timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
        limits=httpx2.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=None, keepalive_expiry=_KEPT_ALIVE_S
        ),
        trust_env=not is_loopback(urlsplit(address.url).hostname or ""),
        verify=httpx2.create_ssl_context(),  # SSL_CERT_FILE is of this machine too
    )
    key = address.secret or _NO_KEY
    # Said outright, so that no header of OPENAI_CUSTOM_HEADERS stands in for it.
    authorization: Any = openai.omit if address.deployment else f"Bearer {key}"
    headers = {"Authorization": authorization}
    if address.deployment is None:
        client = openai.AsyncOpenAI(
            base_url=address.url, api_key=key, default_headers=headers, max_retries=0, http_client=transport
        )
    else:
        client = openai.AsyncAzureOpenAI(
            azure_endpoint=address.url, azure_deployment=quote(address.deployment, safe=""), api_key=key,
            api_version=address.api_version, default_headers=headers, max_retries=0,
            http_client=transport,
        )  # fmt: skip
    client.organization = client.project = None  # OPENAI_ORG_ID, OPENAI_PROJECT_ID: of an account that may be another
    return client, transport


def broken(error: BaseException) -> tuple[Break, str]:
    """What became of a call that ended in one of `CONNECTION_ERRORS`, and the innermost words for it.

    `unconnected`: it was never sent. `late`: no answer in time. `lost`: the connection broke after it was made, and the
    call may have been worked on, as it may when it is late.
    """
    chain = list(_causes(error))
    words = next((text for cause in reversed(chain) if (text := str(cause))), type(chain[-1]).__name__)
    if any(isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE) for cause in chain):
        words = f"{words}: lower generation.concurrency, or raise the hard limit of open files (ulimit -Hn)"
    if any(isinstance(cause, _UNCONNECTED) for cause in chain):
        return "unconnected", words
    return ("late" if any(isinstance(cause, TimeoutError) for cause in chain) else "lost"), words


def _allow_open_files() -> None:
    """Raise the soft limit of open files, 1,024 on many systems, as far as it may be: every call in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than their hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
