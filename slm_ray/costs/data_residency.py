"""Where the rows of an evaluation go: the host that reads them, and whether it is one's own.

Told from model specs and URLs alone; nothing is resolved or contacted. A host that is neither loopback, private nor
known to be a vendor's is said to be unknown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from slm_ray.records import DataResidency

_VENDORS = (".azure.com", ".microsoft.com", ".openai.com", ".azure.us", ".azure.cn")
_NO_CALL = ("recorded", "fake", "trivial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A host; `on_premise` is None where that cannot be told from its name."""

    host: str | None
    on_premise: bool | None


def place(spec: str, urls: Mapping[str, str]) -> Place:
    """Where the model answers; `urls` are by kind (`served`, `azure`)."""
    kind, _, rest = spec.partition(":")
    if kind in _NO_CALL:
        return Place(host=None, on_premise=True)
    url = urls.get(kind)
    if kind == "openai":
        url = rest.partition("@")[2] or "https://api.openai.com/v1"
    if url is None:
        return Place(host=None, on_premise=False if kind == "azure" else None)
    host = host_of(url)
    return Place(host=host, on_premise=_on_premise(host))


def goes_to(spec: str, where: Place, *, stand_in: bool) -> DataResidency:
    """The privacy row of one arm: host, on-premise or not, and both in words."""
    kind = spec.partition(":")[0]
    if kind in _NO_CALL:
        words = "nowhere: no endpoint is asked"
    elif stand_in:
        words = "a local stand-in; the model it stands for would read them elsewhere"
    else:
        own = {True: "your own machine or network", False: "a vendor", None: "unknown whose"}[where.on_premise]
        named = where.host or {"azure": "Azure OpenAI"}.get(kind, "an endpoint that the report does not name")
        words = f"{named} ({own})"
    return DataResidency(host=where.host, on_premise=where.on_premise, words=words)


def host_of(url: str) -> str:
    """The host of a URL, without user, port and path, in lower case."""
    rest = url.partition("://")[2] or url
    for end in "/?#":
        rest = rest.partition(end)[0]
    rest = rest.rpartition("@")[2]
    if rest.startswith("["):
        return rest[1:].partition("]")[0].lower()
    return rest.partition(":")[0].lower()


def _on_premise(host: str) -> bool | None:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    if host.endswith(_VENDORS):
        return False
    return True if "." not in host or host.endswith((".local", ".internal", ".lan")) else None
