"""Any collector of OpenTelemetry over HTTP, by the variables that OpenTelemetry names for it; it takes spans and nothing else.

It cannot be asked what it has. So a span whose answer was lost is sent again and may be there twice, and what is said of a
request after its span was sent does not reach it. Where it turns down some spans of a request it does not say which, and
OpenTelemetry's protocol forbids to send that request again: they are counted. Scores are attributes of the spans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import httpx

from slm_ray.errors import ConfigError
from slm_ray.tracing.http import client, explained, raise_for
from slm_ray.tracing.otlp import digest, rejected

_VARIABLE = "OTEL_EXPORTER_OTLP"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # of a header
_ADVICE = dict.fromkeys((401, 403), f"it wants other credentials; check {_VARIABLE}_HEADERS") | {
    404: f"it takes no traces there; check {_VARIABLE}_ENDPOINT"
}


class Collector:
    """One collector; `turned_down` counts the spans that it would not have. `close()` it."""

    def __init__(self, *, url: str, headers: Mapping[str, str]) -> None:
        self.url = url.partition("?")[0]  # what follows may be a secret
        self.destination = digest("otlp", url, length=16)
        self._url = url
        self._headers = headers
        self.turned_down = 0

    def __repr__(self) -> str:
        return f"Collector({self.url!r})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Collector | None:
        """None where no endpoint is named. ConfigError, without their values, for headers that are none."""
        base = environment.get(f"{_VARIABLE}_ENDPOINT", "").strip().rstrip("/")
        url = environment.get(f"{_VARIABLE}_TRACES_ENDPOINT", "").strip() or (f"{base}/v1/traces" if base else "")
        if not url:
            return None
        if not url.startswith(("http://", "https://")) or "@" in url:
            raise ConfigError(
                f"{_VARIABLE}_ENDPOINT is no http(s):// address without credentials; traces go by OTLP over HTTP, such as"
                " http://localhost:4318"
            )
        return cls(url=url, headers=_headers(environment))

    def check(self, timeout_s: float) -> None:
        """An export of nothing: finds a wrong address, wrong credentials and a dead host in one small request."""
        self.spans(b"", timeout_s)

    def spans(self, body: bytes, timeout_s: float) -> None:
        """Send spans: an ExportTraceServiceRequest as protobuf."""
        headers = {**self._headers, "Content-Type": "application/x-protobuf"}
        with explained("a collector of traces"):
            response = self._http.post(self._url, content=body, headers=headers, timeout=timeout_s)
            raise_for(response.status_code, response.headers, _ADVICE)
        self.turned_down += rejected(response.content)

    def present(self, session: str, since_ns: int, cursor: str | None, timeout_s: float) -> tuple[set[str], str | None]:
        """Nothing that anybody could know of."""
        return set(), None

    def dataset(self, name: str, metadata: Mapping[str, Any], timeout_s: float) -> str:
        """It has none; the span names it."""
        return name

    def item(self, fields: Mapping[str, Any], timeout_s: float) -> None:
        """It has none."""

    def scores(self, scores: Sequence[Mapping[str, Any]], timeout_s: float) -> None:
        """They are on the spans."""

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    @cached_property
    def _http(self) -> httpx.Client:
        return client(self.url)


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    """`name=value,name=value`, values with percent signs decoded, those for traces alone before the others."""
    found: dict[str, str] = {}
    for name in (f"{_VARIABLE}_HEADERS", f"{_VARIABLE}_TRACES_HEADERS"):
        for number, pair in enumerate(filter(None, environment.get(name, "").split(",")), start=1):
            key, equals, value = pair.partition("=")
            key, value = key.strip(), unquote(value).strip()
            if not equals or not _NAME.fullmatch(key) or not value.isascii() or not value.isprintable():
                raise ConfigError(f"{name}: its pair {number} is no header; write NAME=VALUE,NAME=VALUE")
            found[key] = value
    return found
