"""What a run did, as OpenTelemetry spans: one trace per run, one span per row and model, one per step.

Always written to `traces.jsonl` in the run directory: OTLP/JSON, one ExportTraceServiceRequest per line. With
LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY set, and LANGFUSE_DISABLED not, the same spans also go to Langfuse's OTLP
endpoint. Ids come from the run and the row alone, so a trace that was sent twice is still one trace. A trace is a copy:
failing to send it is one warning line and never changes a result. Keys are read here, sent in a header, written nowhere.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from slm_ray.storage import read_jsonl, write_jsonl
from slm_ray.types import Completion, Prompt

FILE_NAME = "traces.jsonl"
CLOUD = "https://cloud.langfuse.com"
_SPANS_PER_REQUEST = 200  # Langfuse takes 4.5 MB a request; a row with its prompt is rarely above 10 kB
_TIMEOUT_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RESOURCE = Resource({"service.name": "slm-ray"})
_SCOPE = InstrumentationScope("slm_ray")

Attributes = Mapping[str, str | bool | int | float]


class Tracer:
    """Collects the spans of one run; `close()` (or the end of a `with` block) writes and sends them."""

    def __init__(
        self, run_dir: str | Path, environment: Mapping[str, str], *, name: str = "run", run: str | None = None
    ) -> None:
        """`name` is what the trace is called, `run` what makes it this one (by default its directory and name)."""
        self.name = name
        self._path = Path(run_dir) / FILE_NAME
        self._langfuse = Langfuse.from_environment(environment)
        identity = run if run is not None else f"{Path(run_dir).resolve()}\n{name}"
        self._trace_id = int(_digest("trace", identity)[:32], 16)
        self._root = self._context("root")
        self._spans: list[ReadableSpan] = []
        self._steps: dict[str, int] = {}

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trace_id(self) -> str:
        """32 hex digits, the same for the same run."""
        return f"{self._trace_id:032x}"

    @contextlib.contextmanager
    def step(self, name: str, attributes: Attributes | None = None) -> Iterator[None]:
        """A span around a block; an exception marks it as failed with the exception's type, not its text."""
        start_ns, error = time.time_ns(), None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self._steps[name] = nth = self._steps.get(name, 0) + 1
            self.span(f"step\n{name}\n{nth}", name, start_ns, time.time_ns(), attributes or {}, error)

    def row(
        self, spec: str, example_id: str, prompt: Prompt, completion: Completion,
        *, scores: Mapping[str, float | None], answered_ns: int,
    ) -> None:  # fmt: skip
        """The span of one model's answer to one row, with its scores."""
        usage, failure = completion.usage, completion.failure
        attributes: dict[str, Any] = {
            "langfuse.observation.type": "generation",
            "langfuse.observation.model.name": completion.served_by or spec,
            "langfuse.observation.input": json.dumps(prompt.as_dicts(), ensure_ascii=False),
            "langfuse.observation.output": completion.text,
            "gen_ai.request.model": spec,
            "gen_ai.response.model": completion.served_by,
            "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
            "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
            "slm_ray.example_id": example_id,
            "slm_ray.attempts": completion.attempts,
            "slm_ray.failure": failure.kind if failure else None,
            **{f"slm_ray.score.{name}": value for name, value in scores.items()},
        }
        start_ns = answered_ns - int((completion.latency_s or 0.0) * 1e9)
        error = f"{failure.kind}: {failure.reason}" if failure else None
        self.span(f"row\n{spec}\n{example_id}", f"{spec} {example_id}", start_ns, answered_ns, attributes, error)

    def span(
        self, ident: str, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, Any], error: str | None = None
    ) -> None:
        """One child of the run. `ident` makes its id; attributes that are None are left out; times in Unix ns."""
        self._spans.append(_span(name, self._context(ident), self._root, start_ns, end_ns, attributes, error))

    def close(self) -> None:
        """Write the file and, where asked, send; without any span nothing happens."""
        if not self._spans:
            return
        start_ns = min(span.start_time or 0 for span in self._spans)
        end_ns = max(span.end_time or 0 for span in self._spans)
        root = _span(self.name, self._root, None, start_ns, end_ns, {"langfuse.trace.name": self.name}, None)
        spans, self._spans = [root, *self._spans], []
        requests = [
            encode_spans(spans[at : at + _SPANS_PER_REQUEST]) for at in range(0, len(spans), _SPANS_PER_REQUEST)
        ]
        self._write(requests)
        if self._langfuse:
            self._langfuse.send(requests, kept_in=self._path)

    def _write(self, requests: Sequence[ExportTraceServiceRequest]) -> None:
        """Other traces of this directory stay; an earlier copy of this one is replaced."""
        lines = read_jsonl(self._path) if self._path.exists() else []
        others = [line for line in lines if _trace_id_of(line) != self.trace_id]
        write_jsonl(self._path, [*others, *map(otlp_json, requests)])

    def _context(self, ident: str) -> SpanContext:
        span_id = int(_digest("span", self.trace_id, ident)[:16], 16)
        return SpanContext(self._trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class Langfuse:
    """The OTLP endpoint of a Langfuse project."""

    def __init__(self, *, host: str, public_key: str, secret_key: str) -> None:
        self.url = f"{host.rstrip('/')}/api/public/otel/v1/traces"
        token = base64.b64encode(f"{public_key}:{secret_key}".encode()).decode()
        self._headers = {
            "Authorization": f"Basic {token}",
            "Content-Type": "application/x-protobuf",
            "x-langfuse-ingestion-version": "4",
        }

    def __repr__(self) -> str:
        return f"Langfuse({self.url!r})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Langfuse | None:
        """None when LANGFUSE_DISABLED is set or a key is missing."""
        public_key, secret_key = (environment.get(f"LANGFUSE_{kind}_KEY", "").strip() for kind in ("PUBLIC", "SECRET"))
        if environment.get("LANGFUSE_DISABLED", "").strip().lower() in ("1", "true", "yes"):
            return None
        if not (public_key and secret_key):
            return None
        host = environment.get("LANGFUSE_HOST") or environment.get("LANGFUSE_BASE_URL") or CLOUD
        return cls(host=host.strip(), public_key=public_key, secret_key=secret_key)

    def send(self, requests: Sequence[ExportTraceServiceRequest], *, kept_in: Path) -> bool:
        """Post them all; at the first that fails, one line on stderr and False."""
        problem = self._post(requests)
        if problem:
            print(f"warning: traces did not reach {self.url} ({problem}); they are in {kept_in}", file=sys.stderr)
        return not problem

    def _post(self, requests: Sequence[ExportTraceServiceRequest]) -> str | None:
        try:
            with httpx.Client(timeout=_TIMEOUT_S, trust_env=urlsplit(self.url).hostname not in _LOOPBACK) as client:
                for request in requests:
                    response = client.post(self.url, content=request.SerializeToString(), headers=self._headers)
                    if not response.is_success:
                        return f"HTTP {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return type(error).__name__
        return None


def otlp_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """The OTLP/JSON form: protobuf's JSON, except that ids are hex (not base64) and enums are numbers."""
    tree: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for span in _spans_of(tree):
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in span:
                span[name] = base64.b64decode(span[name]).hex()
    return tree


def _spans_of(tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in tree.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            yield from scope.get("spans", [])


def _trace_id_of(line: Mapping[str, Any]) -> str | None:
    span = next(_spans_of(line), None)
    return span.get("traceId") if span else None


def _span(
    name: str, context: SpanContext, parent: SpanContext | None, start_ns: int, end_ns: int,
    attributes: Mapping[str, Any], error: str | None,
) -> ReadableSpan:  # fmt: skip
    return ReadableSpan(
        name=name, context=context, parent=parent, resource=_RESOURCE, instrumentation_scope=_SCOPE,
        attributes={key: value for key, value in attributes.items() if value is not None},
        kind=SpanKind.CLIENT if "gen_ai.request.model" in attributes else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET),
        start_time=start_ns, end_time=end_ns,
    )  # fmt: skip


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
