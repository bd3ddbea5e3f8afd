"""Where the rows of an evaluation go: the host that reads them, and whether it is one's own.

Told from the names of hosts alone; nothing is resolved or contacted. A host that is neither loopback, private nor known
to be a vendor's is said to be unknown.
"""

from __future__ import annotations

import ipaddress

from slm_ray.cost_records import DataResidency
from slm_ray.types import ModelFacts

_VENDORS = (".azure.com", ".microsoft.com", ".openai.com", ".azure.us", ".azure.cn")


def goes_to(facts: ModelFacts) -> DataResidency:
    """The privacy row of one arm: host, on-premise or not, and both in words."""
    if facts.host is None:
        return DataResidency(host=None, on_premise=True, words="nowhere: no endpoint is asked")
    on_site = on_premise(facts.host)
    if facts.stand_in:
        words = "a local stand-in; the model it stands for would read them elsewhere"
    else:
        owner = {True: "your own machine or network", False: "a vendor", None: "unknown whose"}[on_site]
        words = f"{facts.host} ({owner})"
    return DataResidency(host=facts.host, on_premise=on_site, words=words)


def host_of(url: str) -> str:
    """The host of a URL, without user, port and path, in lower case."""
    rest = url.partition("://")[2] or url
    for end in "/?#":
        rest = rest.partition(end)[0]
    rest = rest.rpartition("@")[2]
    if rest.startswith("["):
        return rest[1:].partition("]")[0].lower()
    return rest.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; a name other than localhost may lead anywhere."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def on_premise(host: str) -> bool | None:
    """Whether the host is this machine or of this network; None where its name does not tell."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    if host.endswith(_VENDORS):
        return False
    return True if "." not in host or host.endswith((".local", ".internal", ".lan")) else None
