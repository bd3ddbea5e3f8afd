"""A real HTTP server that speaks the routes of Langfuse that the `langfuse` package of the lock file uses.

It keeps what Langfuse keeps, as Langfuse keeps it: datasets by name, dataset items and scores upserted by id, spans
appended and never deduplicated, so that a span that was sent twice is there twice. Basic auth is checked, bodies above
Langfuse's limits get 413, and `script` makes any request slow, fail, or lose its connection before or after its work.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PUBLIC, SECRET = "pk-canary-61f", "sk-canary-d20"
SPANS = "/api/public/otel/v1/traces"
SCORES, ITEMS, DATASETS = "/api/public/scores", "/api/public/dataset-items", "/api/public/v2/datasets"
OBSERVATIONS = "/api/public/v2/observations"
_LIMIT_BYTES = {SPANS: 5_000_000}
_OTHER_LIMIT_BYTES = 1_000_000
_NOW = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with a request; `drop` loses the connection before or after the work was done."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drop: Literal["before", "after"] | None = None


Script = Callable[[str, int], Fault | None]
FINE = Fault()


class LangfuseServer:
    """`with LangfuseServer() as server:`; `script(path, nth request of that path)` may return a fault.

    `lag_s` is how long a stored span takes to show in what is read.
    """

    def __init__(self, script: Script = lambda path, nth: None, *, lag_s: float = 0.0, page: int = 1000) -> None:
        self.script = script
        self.datasets: dict[str, dict[str, Any]] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.scores: dict[tuple[str, str], dict[str, Any]] = {}
        self.spans: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.times: list[tuple[str, float]] = []
        self.largest: Counter[str] = Counter()
        self.bad: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self._lag_s, self._page = lag_s, page
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                outer._serve(self, b"")

            def do_POST(self) -> None:
                outer._serve(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LangfuseServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The keys that it takes."""
        return {"LANGFUSE_HOST": self.url, "LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_SECRET_KEY": SECRET}

    def span_counts(self) -> Counter[str]:
        """How often each span is there."""
        with self._lock:
            return Counter(span["id"] for span in self.spans)

    def run_items(self) -> Counter[tuple[str, str]]:
        """How often each (experiment, dataset item) is there."""
        with self._lock:
            return Counter(
                (span["langfuse.experiment.id"], span["langfuse.experiment.item.id"])
                for span in self.spans
                if "langfuse.experiment.item.id" in span
            )

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        where = urlsplit(handler.path)
        with self._lock:
            nth = self.requests[where.path]
            self.requests[where.path] += 1
            self.times.append((where.path, time.monotonic()))
            self.largest[where.path] = max(self.largest[where.path], len(body))
            self.headers.append(dict(handler.headers))
        fault = self.script(where.path, nth) or FINE
        if fault.drop == "before":
            _drop(handler)
            return
        if fault.status is None:
            status, answer = self._work(handler, where.path, parse_qs(where.query), body)
        else:
            status, answer = fault.status, {"message": f"no: {handler.headers.get('Authorization')}"}
        time.sleep(fault.after_s)
        if fault.drop == "after":
            _drop(handler)
        else:
            _answer(handler, status, answer, fault.headers)

    def _work(
        self, handler: BaseHTTPRequestHandler, path: str, query: Mapping[str, list[str]], body: bytes
    ) -> tuple[int, Any]:
        expected = base64.b64encode(f"{PUBLIC}:{SECRET}".encode()).decode()
        if handler.headers.get("Authorization") != f"Basic {expected}":
            return 401, {"message": "Invalid credentials"}
        if len(body) > _LIMIT_BYTES.get(path, _OTHER_LIMIT_BYTES):
            return 413, {"message": "Body exceeded the limit"}
        with self._lock:
            match path:
                case "/api/public/projects":
                    return 200, {"data": [{"id": "p", "name": "p"}]}
                case _ if path == DATASETS:
                    return 200, self._dataset(json.loads(body))
                case _ if path == ITEMS:
                    return self._item(json.loads(body))
                case _ if path == SCORES:
                    return self._scores(json.loads(body))
                case _ if path == SPANS:
                    return self._spans(handler, body)
                case _ if path == OBSERVATIONS:
                    return 200, self._observations({name: values[0] for name, values in query.items()})
        return 404, {"message": "no such route"}

    def _dataset(self, fields: dict[str, Any]) -> dict[str, Any]:
        known = self.datasets.setdefault(fields["name"], {"id": f"dataset-{len(self.datasets)}"})
        known |= {**fields, "projectId": "p", "createdAt": _NOW, "updatedAt": _NOW}
        return known

    def _item(self, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if fields["datasetName"] not in self.datasets or len(fields["id"]) > 255:
            self.bad.append(f"item {fields['id']}")
            return 404, {"message": "no such dataset"}
        dataset = self.datasets[fields["datasetName"]]["id"]
        item = {
            "status": "ACTIVE", "sourceTraceId": None, "sourceObservationId": None, "metadata": None, **fields,
            "datasetId": dataset, "createdAt": _NOW, "updatedAt": _NOW, "mediaReferences": [],
        }  # fmt: skip
        self.items[fields["id"]] = item
        return 200, item

    def _scores(self, scores: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        rejected = []
        for score in scores:
            numeric = score["dataType"] == "NUMERIC"
            subject = bool(score.get("datasetRunId")) != bool(score.get("traceId") and score.get("observationId"))
            if not subject or isinstance(score["value"], str) == numeric:
                rejected.append({"message": f"score {score['name']}"})
                continue
            self.scores[score["id"], score["timestamp"]] = score
        if rejected:
            self.bad += [one["message"] for one in rejected]
            return 207, {"accepted": len(scores) - len(rejected), "rejected": len(rejected), "errors": rejected}
        return 202, {"message": "Accepted"}

    def _spans(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        if handler.headers.get("x-langfuse-ingestion-version") != "4":
            self.bad.append("no ingestion version")
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [_stored(span) for span in scope.spans]
        return 200, {}

    def _observations(self, query: Mapping[str, str]) -> dict[str, Any]:
        since_ns = _nanoseconds(query["fromStartTime"])
        shown = time.monotonic() - self._lag_s
        found = [
            span for span in self.spans
            if span["session.id"] == query["sessionId"] and span["start_ns"] >= since_ns and span["at_s"] <= shown
        ]  # fmt: skip
        at = int(query.get("cursor", "0"))
        page = min(self._page, int(query["limit"]))
        data = [
            {"id": span["id"], "traceId": span["trace"], "startTime": _NOW, "projectId": "p", "type": "SPAN"}
            for span in found[at : at + page]
        ]
        return {"data": data, "meta": {"cursor": str(at + page)} if at + page < len(found) else {}}


def _stored(span: Any) -> dict[str, Any]:
    attributes = {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}
    return {
        "id": span.span_id.hex(), "trace": span.trace_id.hex(), "parent": span.parent_span_id.hex(), "name": span.name,
        "start_ns": span.start_time_unix_nano, "at_s": time.monotonic(), "status": span.status.code, **attributes,
    }  # fmt: skip


def _nanoseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1e9)


def _drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    os.close(handler.connection.detach())


def _answer(handler: BaseHTTPRequestHandler, status: int, answer: Any, headers: Mapping[str, str]) -> None:
    raw = json.dumps(answer).encode()
    try:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True  # the client was killed, which some tests do
