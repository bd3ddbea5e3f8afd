"""Traces are valid OTLP/JSON with ids that never change, reach Langfuse when asked, hold no secret, and break nothing."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from slm_ray.storage import read_jsonl
from slm_ray.tracing import Tracer
from slm_ray.types import Completion, Failure, Message, Prompt, Usage

PROMPT = Prompt(messages=(Message(role="user", content="hi \u2028"),))
SECRETS = {"LANGFUSE_PUBLIC_KEY": "pk-canary-1", "LANGFUSE_SECRET_KEY": "sk-canary-2", "AZURE_API_KEY": "az-canary-3"}
ANSWERED_NS = 1_700_000_000_123_456_789


def trace(run_dir: Path, environment: dict[str, str], rows: int = 2) -> None:
    with Tracer(run_dir, environment, name="evaluate", run="r1") as tracer:
        for n in range(rows):
            answer = Completion(
                text="yes", latency_s=0.5, usage=Usage(prompt_tokens=3, completion_tokens=1), served_by="m"
            )
            tracer.row(
                "served:m",
                f"row{n}",
                PROMPT,
                answer,
                scores={"exact_match": 1.0, "open": None},
                answered_ns=ANSWERED_NS,
            )
        lost = Completion(failure=Failure(kind="error", reason="HTTP 500"))
        tracer.row("azure:", "row0", PROMPT, lost, scores={}, answered_ns=ANSWERED_NS)


def spans(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_jsonl(run_dir / "traces.jsonl")
    return [
        span
        for line in lines
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_the_file_is_otlp_json(tmp_path: Path) -> None:
    trace(tmp_path, {})
    root, first, _, lost = spans(tmp_path)
    assert all(re.fullmatch("[0-9a-f]{32}", span["traceId"]) for span in (root, first, lost))
    assert all(re.fullmatch("[0-9a-f]{16}", span["spanId"]) for span in (root, first, lost))
    assert "parentSpanId" not in root
    assert first["parentSpanId"] == lost["parentSpanId"] == root["spanId"]
    assert first["endTimeUnixNano"] == str(ANSWERED_NS)  # 64-bit numbers are strings
    assert first["startTimeUnixNano"] == str(ANSWERED_NS - 500_000_000)
    attributes = {item["key"]: item["value"] for item in first["attributes"]}
    assert attributes["gen_ai.usage.input_tokens"] == {"intValue": "3"}
    assert attributes["slm_ray.score.exact_match"] == {"doubleValue": 1.0}
    assert attributes["langfuse.observation.output"] == {"stringValue": "yes"}
    assert json.loads(attributes["langfuse.observation.input"]["stringValue"]) == PROMPT.as_dicts()
    assert "slm_ray.score.open" not in attributes
    assert lost["status"] == {"message": "error: HTTP 500", "code": 2}
    assert root["startTimeUnixNano"] == first["startTimeUnixNano"]
    assert first["kind"] == 3  # CLIENT, as a number


def test_protobuf_reads_every_line_back(tmp_path: Path) -> None:
    trace(tmp_path, {}, rows=450)
    lines = read_jsonl(tmp_path / "traces.jsonl")
    assert len(lines) == 3
    for line in lines:
        for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in span:
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
        ParseDict(line, ExportTraceServiceRequest())
    ids = [span["spanId"] for span in spans(tmp_path)]
    assert len(ids) == len(set(ids)) == 452


def test_same_run_same_bytes_and_other_traces_stay(tmp_path: Path) -> None:
    with Tracer(tmp_path, {}, name="train", run="r0") as tracer, tracer.step("load"), tracer.step("load"):
        pass
    trace(tmp_path, {})
    before = (tmp_path / "traces.jsonl").read_bytes()
    trace(tmp_path, {})
    assert (tmp_path / "traces.jsonl").read_bytes() == before
    assert [span["name"] for span in spans(tmp_path)][:3] == ["train", "load", "load"]


def test_a_failed_step_says_so_without_the_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sk-"), Tracer(tmp_path, {}) as tracer, tracer.step("load", {"rows": 3}):
        raise ValueError("sk-canary-2")
    assert spans(tmp_path)[1]["status"] == {"message": "ValueError", "code": 2}
    assert "canary" not in (tmp_path / "traces.jsonl").read_text()


def test_an_empty_run_writes_nothing(tmp_path: Path) -> None:
    Tracer(tmp_path, SECRETS).close()
    assert not list(tmp_path.iterdir())


def test_langfuse_gets_the_same_spans(tmp_path: Path) -> None:
    with ChatServer(lambda _: Reply(body={})) as server:
        trace(tmp_path, {**SECRETS, "LANGFUSE_HOST": f"{server.url}/"}, rows=250)
        assert [request.path for request in server.requests] == ["/api/public/otel/v1/traces"] * 2
        assert (
            server.requests[0].headers["authorization"]
            == "Basic " + base64.b64encode(b"pk-canary-1:sk-canary-2").decode()
        )
        sent = [ExportTraceServiceRequest.FromString(request.body) for request in server.requests]
    names = [span.span_id.hex() for request in sent for span in request.resource_spans[0].scope_spans[0].spans]
    assert names == [span["spanId"] for span in spans(tmp_path)]


@pytest.mark.parametrize("off", [{"LANGFUSE_DISABLED": "1"}, {"LANGFUSE_SECRET_KEY": ""}])
def test_langfuse_is_left_alone(tmp_path: Path, off: dict[str, str]) -> None:
    with ChatServer(lambda _: Reply(body={})) as server:
        trace(tmp_path, {**SECRETS, "LANGFUSE_HOST": server.url, **off})
        assert server.requests == []
    assert len(spans(tmp_path)) == 4


@pytest.mark.parametrize("host", [None, "http://127.0.0.1:1", "not an address"])
def test_a_langfuse_that_cannot_be_reached_is_one_warning(
    tmp_path: Path, host: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(lambda _: Reply(status=401, body={})) as server:
        trace(tmp_path, {**SECRETS, "LANGFUSE_HOST": host or server.url})
    told = capfd.readouterr()
    assert told.err.startswith("warning: traces did not reach ")
    assert told.err.count("\n") == 1
    assert "canary" not in told.out + told.err + (tmp_path / "traces.jsonl").read_text()
    assert len(spans(tmp_path)) == 4
