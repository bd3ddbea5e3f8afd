"""A Langfuse project over HTTP: the generated client of the `langfuse` package, and its OTLP endpoint for spans.

Only the package's API client is used: no client object with queues, threads or an exit handler. It is imported when
something is sent. Keys come from the environment handed in, go into a header and nowhere else; what a server answers is
never shown, because it may repeat what it was sent. Every failure is a `Problem`; nothing is retried here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx

from slm_ray.tracing.http import client, explained, raise_for
from slm_ray.tracing.otlp import digest
from slm_ray.tracing.retry_policy import Problem

CLOUD = "https://cloud.langfuse.com"
_PAGE = 1000
_SPOKEN = "a Langfuse of the version that this program speaks to"
_ADVICE = {
    401: "it does not know these keys; check LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_HOST",
    403: "these keys may not write; check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY",
    404: "no Langfuse answers there; check LANGFUSE_HOST",
}


class Langfuse:
    """One project. `close()` it."""

    def __init__(self, *, host: str, public_key: str, secret_key: str) -> None:
        self.url = host.rstrip("/")
        self.destination = digest(self.url, public_key, length=16)
        self._keys = (public_key, secret_key)

    def __repr__(self) -> str:
        return f"Langfuse({self.url!r})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Langfuse | None:
        """None when LANGFUSE_DISABLED is set or a key is missing."""
        public_key, secret_key = (environment.get(f"LANGFUSE_{kind}_KEY", "").strip() for kind in ("PUBLIC", "SECRET"))
        if disabled(environment) or not (public_key and secret_key):
            return None
        host = environment.get("LANGFUSE_HOST") or environment.get("LANGFUSE_BASE_URL") or CLOUD
        return cls(host=host.strip(), public_key=public_key, secret_key=secret_key)

    def check(self, timeout_s: float) -> None:
        """Ask whose keys these are: finds a wrong address, wrong keys and a dead host in one small request."""
        with explained(_SPOKEN):
            response = self._http.get(f"{self.url}/api/public/projects", timeout=timeout_s, auth=self._keys)
            self._raise_for(response.status_code, response.headers)

    def dataset(self, name: str, metadata: Mapping[str, Any], timeout_s: float) -> str:
        """Make a dataset, or find the one of that name; its id."""
        made = self._generated(
            lambda api: api.datasets.create(name=name, metadata=dict(metadata), request_options=_once(timeout_s))
        )
        return str(made.id)

    def item(self, fields: Mapping[str, Any], timeout_s: float) -> None:
        """Make or replace a dataset item; `fields` has its id."""
        self._generated(lambda api: api.dataset_items.create(**fields, request_options=_once(timeout_s)))

    def scores(self, scores: Sequence[Mapping[str, Any]], timeout_s: float) -> None:
        """Make or replace scores; Problem when one of them was turned down."""
        from langfuse.api.scores import CreateScoreRequest

        requests = [CreateScoreRequest(**score) for score in scores]
        answer = self._generated(lambda api: api.scores.create(request=requests, request_options=_once(timeout_s)))
        if rejected := getattr(answer, "rejected", 0):
            raise Problem(f"it turned down {rejected} of {len(scores)} scores", status=207)

    def spans(self, body: bytes, timeout_s: float) -> None:
        """Store spans: an ExportTraceServiceRequest as protobuf. Sent twice, they are there twice."""
        headers = {"Content-Type": "application/x-protobuf", "x-langfuse-ingestion-version": "4"}
        with explained(_SPOKEN):
            response = self._http.post(
                f"{self.url}/api/public/otel/v1/traces",
                content=body,
                headers=headers,
                timeout=timeout_s,
                auth=self._keys,
            )
            self._raise_for(response.status_code, response.headers)

    def present(self, session: str, since_ns: int, cursor: str | None, timeout_s: float) -> tuple[set[str], str | None]:
        """One page of the span ids that it has of a session, and where the next one begins."""
        since = datetime.fromtimestamp(since_ns // 10**9 - 1, UTC)
        page = self._generated(
            lambda api: api.observations.get_many(
                session_id=session, from_start_time=since, fields="core", limit=_PAGE, cursor=cursor,
                request_options=_once(timeout_s),
            )
        )  # fmt: skip
        return {found.id for found in page.data}, page.meta.cursor

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    @cached_property
    def _http(self) -> httpx.Client:
        return client(self.url)

    @cached_property
    def _api(self) -> Any:
        from langfuse.api import LangfuseAPI  # takes most of a second to import

        public_key, secret_key = self._keys
        return LangfuseAPI(
            base_url=self.url, username=public_key, password=secret_key, x_langfuse_public_key=public_key,
            httpx_client=self._http,
        )  # fmt: skip

    def _generated(self, call: Callable[[Any], Any]) -> Any:
        from langfuse.api.core import ApiError

        with explained(_SPOKEN):
            try:
                return call(self._api)
            except ApiError as error:
                self._raise_for(error.status_code or 0, error.headers or {})
                raise Problem("an answer that is not Langfuse's", status=error.status_code) from None

    def _raise_for(self, status: int, headers: Mapping[str, str]) -> None:
        raise_for(status, headers, _ADVICE)


def disabled(environment: Mapping[str, str]) -> bool:
    """Whether LANGFUSE_DISABLED asks for a dry run."""
    return environment.get("LANGFUSE_DISABLED", "").strip().lower() in ("1", "true", "yes")


def _once(timeout_s: float) -> Any:
    return {"timeout_in_seconds": timeout_s, "max_retries": 0}
