"""A run's trace is valid OTLP/JSON with ids that never change; offering it to Langfuse takes no time and breaks nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from langfuse_server import PUBLIC, SECRET, SPANS, Fault, LangfuseServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from plain_records import facts
from traced_run import LLM, SLM, finished

from slm_ray.adapters import Manifest
from slm_ray.storage import read_jsonl, write_json
from slm_ray.tracing import Tracer, offer_all
from slm_ray.tracing import spans as traced_spans
from slm_ray.tracing.delivery_log import DeliveryLog
from slm_ray.tracing.otlp import protobuf, spans_of, values
from slm_ray.tracing.replay import lineage
from slm_ray.tracing.truncate import batches, truncate, truncate_prompt
from slm_ray.training.launch import trace as trace_training
from slm_ray.training.progress import curve
from slm_ray.types import Comparison, Decision, Interval

ROOT = Path(__file__).parents[2]
KEYS = {"LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_SECRET_KEY": SECRET}


def trace(run_dir: Path, environment: dict[str, str], rows: int = 3, *, took_s: float = 0.0) -> None:
    """Trace an evaluation that seems to have taken `took_s`."""
    tracer = Tracer(run_dir, environment)
    tracer._began_s -= took_s
    made = finished(run_dir, rows)
    tracer.evaluation(made["report"], made["rows"], made["answers"])


def spans(run_dir: Path) -> list[dict[str, Any]]:
    return [span for line in read_jsonl(run_dir / "traces.jsonl") for span in spans_of(line)]


def comparison(upper: float = 0.1) -> tuple[Comparison, Decision]:
    found = Comparison(
        track="structured", llm=LLM, slm="served:tiny", n=100, digest="d" * 64, primary="exact_match",
        llm_metrics={"exact_match": 0.5}, slm_metrics={"exact_match": 0.55}, gaps={"exact_match": 0.05},
        interval=Interval(estimate=0.05, lower=0.0, upper=upper, method="Tango"), slm_only_right=6, llm_only_right=1, level=0.05,
    )  # fmt: skip
    return found, Decision(action="swap", rule="paired", delta=0.02, because=("the lower bound is above -0.02",))


def training(run_dir: Path, environment: dict[str, str], steps: int = 1000) -> None:
    curve = [{"step": step, "loss": 2.0 / step} for step in range(1, steps + 1)]
    metrics = {"loss_last": 0.1, "tokens_per_s": 4000, "optimizer": "adamw_torch", "peak_bytes": None}
    Tracer(run_dir, environment).training(
        "structured", origin={"adapter": "structured-0123456789ab", "base_fingerprint": "f" * 32}, metrics=metrics,
        curve=curve, bounds_ns=(10**18, 10**18 + 10**12),
    )  # fmt: skip


def test_the_file_is_otlp_json(tmp_path: Path) -> None:
    trace(tmp_path, {})
    root, first_model, *_ = spans(tmp_path)
    answers = [span for span in spans(tmp_path) if "langfuse.experiment.item.id" in values(span)]
    assert len(spans(tmp_path)) == 1 + 2 + 6
    assert len(answers) == 6
    for span in spans(tmp_path):
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert ("parentSpanId" in span) == (span["traceId"] == root["traceId"] and span is not root and span != root)
    assert first_model["parentSpanId"] == root["spanId"]
    assert len({span["traceId"] for span in answers} | {root["traceId"]}) == 7
    assert int(answers[0]["endTimeUnixNano"]) - int(answers[0]["startTimeUnixNano"]) == 250_000_000
    attributes = {item["key"]: item["value"] for item in answers[0]["attributes"]}
    assert attributes["gen_ai.usage.input_tokens"] == {"intValue": "20"}  # 64-bit numbers are strings
    assert attributes["slm_ray.score.exact_match"] == {"doubleValue": 1.0}
    assert json.loads(attributes["langfuse.observation.input"]["stringValue"])[-1]["content"].endswith("0 \u2028")
    assert answers[1]["status"] == {"message": "error: HTTP 500", "code": 2}
    assert root["startTimeUnixNano"] == min(span["startTimeUnixNano"] for span in answers)
    assert answers[0]["kind"] == 3  # CLIENT, as a number


def test_protobuf_reads_every_line_and_is_what_is_sent(tmp_path: Path) -> None:
    trace(tmp_path, {}, rows=150)
    lines = read_jsonl(tmp_path / "traces.jsonl")
    assert len(lines) == 2
    ids = [span["spanId"] for span in spans(tmp_path)]
    assert len(ids) == len(set(ids)) == 303
    for line in lines:
        sent = ExportTraceServiceRequest.FromString(protobuf(spans_of(line), {}))
        for span in spans_of(line):
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in span:
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
        parsed = ParseDict(line, ExportTraceServiceRequest())
        assert sent.resource_spans[0].scope_spans[0].spans == parsed.resource_spans[0].scope_spans[0].spans


def test_same_run_same_bytes_and_runs_of_other_kinds_stay(tmp_path: Path) -> None:
    training(tmp_path, {})
    Tracer(tmp_path, {}).comparison(*comparison())
    trace(tmp_path, {})
    before = (tmp_path / "traces.jsonl").read_bytes()
    trace(tmp_path, {})
    Tracer(tmp_path, {}).comparison(*comparison())
    training(tmp_path, {})
    assert (tmp_path / "traces.jsonl").read_bytes() == before
    assert [span["name"] for span in spans(tmp_path) if span["name"].startswith(("train ", "compare ", "evaluate "))] == [
        "train structured", "compare structured", "evaluate structured",
    ]  # fmt: skip
    Tracer(tmp_path, {}).comparison(*comparison(upper=0.2))
    assert sum(span["name"] == "compare structured" for span in spans(tmp_path)) == 1


def test_a_training_run_carries_its_curve_its_figures_and_its_origin(tmp_path: Path) -> None:
    training(tmp_path, {}, steps=1001)
    root, *points = spans(tmp_path)
    found = values(root)
    assert found["langfuse.observation.metadata.adapter"] == "structured-0123456789ab"
    assert found["langfuse.observation.metadata.optimizer"] == "adamw_torch"
    assert (found["slm_ray.score.loss_last"], found["slm_ray.score.tokens_per_s"]) == (0.1, 4000.0)
    assert [point["name"] for point in (points[0], points[-1])] == ["step 1", "step 1001"]
    assert 100 <= len(points) <= 201
    assert {values(point)["langfuse.observation.type"] for point in points} == {"event"}
    assert values(points[-1])["langfuse.observation.metadata.loss"] == pytest.approx(2 / 1001)
    assert points[-1]["endTimeUnixNano"] == root["endTimeUnixNano"]


def test_a_comparison_carries_its_bounds_and_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.tracing.tracer._MOMENT_S", 30.0)  # a busy machine is no fault of the trace's
    with LangfuseServer() as server:
        Tracer(tmp_path, server.environment).comparison(*comparison())
    (span,) = server.spans
    assert span["langfuse.observation.metadata.action"] == "swap"
    assert (span["langfuse.observation.metadata.lower"], span["langfuse.observation.metadata.delta"]) == (0.0, 0.02)
    assert json.loads(span["langfuse.observation.output"])["because"] == ["the lower bound is above -0.02"]
    scores = {score["name"]: (score["dataType"], score["value"]) for score in server.scores.values()}
    assert scores == {
        "verdict": ("CATEGORICAL", "swap"), "difference": ("NUMERIC", 0.05), "lower": ("NUMERIC", 0.0), "upper": ("NUMERIC", 0.1),
    }  # fmt: skip


def test_a_finished_training_run_traces_itself_from_its_files(tmp_path: Path) -> None:
    manifest = Manifest(
        id="structured-0123456789ab", name="structured", track="structured", base="tiny", base_fingerprint="f" * 32,
        config_digest="c" * 64, data_digest="d" * 64, metrics={}, created="2026", rank=8, alpha=16, hidden_size=4,
        train_prompts=3, files={},
    )  # fmt: skip
    logged: list[dict[str, Any]] = [
        {"loss": 2.0, "grad_norm": float("nan"), "step": 1},
        {"loss": 1.0, "grad_norm": 3.0, "step": 2},
        {"x": 1},
    ]
    trace_training(tmp_path, manifest, {})
    assert not list(tmp_path.iterdir())  # not finished, nothing to tell
    told = {"metrics": {"loss_last": 1.0}, "curve": curve(logged), "bounds_ns": [10**18, 10**18 + 5]}
    write_json(tmp_path / "finished.json", {"adapter": manifest.id, **told})
    trace_training(tmp_path, manifest, {})
    root, first, second = spans(tmp_path)
    known = {key.rpartition(".")[2]: value for key, value in values(root).items() if "metadata" in key}
    assert known == {
        "adapter": manifest.id, "base": "tiny", "base_fingerprint": "f" * 32, "training_data_digest": "d" * 64,
        "recipe_digest": "c" * 64, "rank": 8,
    }  # fmt: skip
    assert "langfuse.observation.metadata.grad_norm" not in values(first)
    assert values(second)["langfuse.observation.metadata.grad_norm"] == 3.0


def test_the_compare_job_traces_its_verdict_beside_the_report(tmp_path: Path) -> None:
    finished(tmp_path, 50)
    command = [
        sys.executable, str(ROOT / "jobs/compare.py"), str(ROOT / "jobs/compare.yaml"), "--set", f"report={tmp_path}/report.json",
        "--set", f"llm={LLM}", "--set", f"slm={SLM}",
    ]  # fmt: skip
    with LangfuseServer() as server:
        for _ in range(2):
            found = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | server.environment, check=False
            )
            assert found.returncode == 10, found.stderr
        assert found.stderr == "", "on a busy machine the first may not be done in its time; the second sends the rest"
        assert [span["name"] for span in server.spans] == ["compare structured"]
        assert server.spans[0]["langfuse.observation.metadata.action"] == "fine_tune"
        assert {score["value"] for score in server.scores.values() if score["name"] == "verdict"} == {"fine_tune"}
    assert len(spans(tmp_path)) == 1


def test_a_served_adapter_brings_its_origin_where_its_manifest_is(tmp_path: Path) -> None:
    assert lineage([facts("azure:gpt"), facts("served:tiny"), facts("recorded:a:b")], str(tmp_path)) == {}
    assert lineage([facts("served:tiny:x-0123456789ab+3shot", adapter="x-0123456789ab")], None) == {
        "served:tiny:x-0123456789ab+3shot": {"adapter": "x-0123456789ab"}
    }
    home = tmp_path / "x-0123456789ab"
    home.mkdir()
    manifest_facts = {"base": "tiny", "base_fingerprint": "f", "data_digest": "d", "config_digest": "c", "rank": 8}
    others = {
        "name": "x",
        "track": "t",
        "metrics": {},
        "created": "2026",
        "alpha": 16,
        "hidden_size": 4,
        "train_prompts": 3,
    }
    write_json(home / "manifest.json", {"id": home.name, **manifest_facts, **others, "files": {}})
    assert lineage([facts("served:tiny:x-0123456789ab")], str(tmp_path)) == {
        "served:tiny:x-0123456789ab": {
            "adapter": "x-0123456789ab", "base": "tiny", "base_fingerprint": "f", "training_data_digest": "d",
            "recipe_digest": "c", "rank": 8,
        }
    }  # fmt: skip


def test_a_long_run_is_sent_when_it_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LangfuseServer() as server:
        trace(tmp_path, server.environment, rows=30, took_s=600)
        assert set(server.span_counts().values()) == {1}
        assert len(server.span_counts()) == len(spans(tmp_path)) == 63
        assert len(server.items) == 30
    assert capfd.readouterr().err == ""


def test_a_loop_offers_everything_below_its_directory_at_its_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("structured/test", 4), ("toolcall/test", 7)):
        trace(tmp_path / name, {"LANGFUSE_DISABLED": "1"}, rows=rows)
        Tracer(tmp_path / name, {}).comparison(*comparison(upper=rows / 10))
    training(tmp_path / "structured/training/structured-1", {}, steps=5)
    with LangfuseServer() as server:
        offer_all(tmp_path, {**server.environment, "LANGFUSE_DISABLED": "1"}, took_s=600)
        assert server.requests == {}
        offer_all(tmp_path, server.environment, took_s=0.5)
        assert capfd.readouterr().err == (
            f"warning: {server.url} does not have all traces of {tmp_path} (not done within 0.02 s); nothing is lost, and "
            f"this sends the rest: slm-ray trace {tmp_path}\n"
        )
        time.sleep(0.3)  # what was left behind ends after its request
        offer_all(tmp_path, server.environment, took_s=600)
        offer_all(tmp_path, server.environment, took_s=600)
        names = Counter(span["name"].partition(" ")[0] for span in server.spans)
        assert names["evaluate"] == names["compare"] == 2
        assert (names["train"], names["step"], len(server.items)) == (1, 5, 4 + 7)
        assert set(server.span_counts().values()) == {1}
        assert len(server.run_items()) == 2 * (4 + 7)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("off", [{"LANGFUSE_DISABLED": "1"}, {"LANGFUSE_SECRET_KEY": ""}])
def test_langfuse_is_left_alone(tmp_path: Path, off: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    with LangfuseServer() as server:
        trace(tmp_path, server.environment | off, took_s=600)
        assert server.requests == {}
    assert len(spans(tmp_path)) == 9
    assert capfd.readouterr().err == ""


FAULTS = {
    "401": (Fault(status=401), "HTTP 401"),
    "429": (Fault(status=429, headers={"Retry-After": "60"}), "HTTP 429"),
    "413": (Fault(status=413), "HTTP 413"),
    "507": (Fault(status=507), "HTTP 507"),
    "500": (Fault(status=500), "HTTP 500"),
    "slow": (Fault(after_s=5), "not done within 1 s"),
    "dropped": (Fault(drop="before"), "the connection broke"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", ["/api/public/projects", SPANS])
def test_a_langfuse_that_misbehaves_is_one_warning_in_bounded_time(
    tmp_path: Path, name: str, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fault, said = FAULTS[name]
    with LangfuseServer(lambda asked, nth: fault if asked == path else None) as server:
        started = time.monotonic()
        budget_s = {"slow": 1, "500": 6, "dropped": 6}.get(name, 20)  # of these all is spent
        trace(tmp_path, server.environment, took_s=budget_s / 0.04)
        assert time.monotonic() - started < budget_s + 15  # a hang, not a busy machine
    told = capfd.readouterr()
    prefix = f"warning: {server.url} does not have all traces of {tmp_path} ("
    # Where all of the time is spent, a busy machine is cut off in the middle of the last try.
    reasons = (said, f"not done within {budget_s:g} s") if budget_s < 20 else (said,)
    assert told.err.startswith(tuple(prefix + reason for reason in reasons)), told.err
    assert told.err.endswith(f"and this sends the rest: slm-ray trace {tmp_path}\n")
    assert told.err.count("\n") == 1
    for secret in KEYS.values():
        assert secret not in told.out + told.err
    assert len(spans(tmp_path)) == 9


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "not an address", "http://no-such-host.invalid"])
def test_a_langfuse_that_is_not_there_is_one_warning(
    tmp_path: Path, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    trace(tmp_path, {**KEYS, "LANGFUSE_HOST": host}, took_s=25)
    assert time.monotonic() - started < 15
    err = capfd.readouterr().err
    assert err.startswith(f"warning: {host} does not have all traces of {tmp_path} (")
    assert err.count("\n") == 1


def test_a_server_that_drips_cannot_hold_a_run(tmp_path: Path) -> None:
    """Time-outs of single reads do not help against a byte now and then; the clock does."""
    code = (
        "import socket, sys, time\n"
        "server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen()\n"
        "print(server.getsockname()[1], flush=True)\n"
        "peer, _ = server.accept()\n"
        "peer.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\n')\n"
        "while True:\n    peer.sendall(b' '); time.sleep(0.1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as dripping:
        assert dripping.stdout is not None
        port = int(dripping.stdout.readline())
        started = time.monotonic()
        trace(tmp_path, {**KEYS, "LANGFUSE_HOST": f"http://127.0.0.1:{port}"}, took_s=25)
        assert 0.9 < time.monotonic() - started < 15
        dripping.kill()


def test_a_trace_file_that_cannot_be_used_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "traces.jsonl").write_text("not JSON\n")
    trace(tmp_path, {})
    assert capfd.readouterr().err.startswith(f"warning: the trace is not kept: {tmp_path}/traces.jsonl:1: not JSON")


def test_the_package_is_imported_when_it_sends_and_starts_nothing() -> None:
    code = (
        "import atexit, logging, sys, threading\n"
        "import slm_ray.tracing\n"
        "print('langfuse' in sys.modules, 'opentelemetry' in sys.modules)\n"
        "before, known = threading.active_count(), []\n"
        "atexit.register = lambda call, *rest, **more: known.append(call.__module__)\n"
        "from slm_ray.tracing.langfuse import Langfuse\n"
        "Langfuse(host='http://127.0.0.1:1', public_key='a', secret_key='b')._api.scores\n"
        "print('langfuse' in sys.modules, threading.active_count() - before, [name for name in known if not name.startswith('certifi')])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\nTrue 0 []\n"


def test_a_delivery_log_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    log = DeliveryLog(tmp_path, "here")
    log.note("sent", ["a", "b"])
    log.note("acknowledged", ["a"])
    log.note("sent", ["c"])
    log.note("refused", ["c"])
    DeliveryLog(tmp_path, "elsewhere").note("acknowledged", ["b"])
    with (tmp_path / "langfuse.jsonl").open("ab") as file:
        file.write(b'{"to": "here", "event": "ke')
    again = DeliveryLog(tmp_path, "here")
    again.note("acknowledged", ["d"])
    last = DeliveryLog(tmp_path, "here")
    assert last.acknowledged == {"a", "d"}
    assert set(last.in_doubt) == {"b"}
    assert 0 < last.in_doubt_until_s(["b"], 5) - time.time() <= 5.001  # a line's time is rounded to milliseconds
    assert last.in_doubt_until_s(["a", "c", "d"], 5) == 0


def test_values_are_cut_to_a_size_with_a_mark() -> None:
    assert truncate("short") == "short"
    for text in ("x" * 1000, "\u2028ü" * 500, '"\\\n' * 400):
        short = truncate(text, 100)
        kept, _, mark = short.partition("… [cut here: ")
        assert text.startswith(kept)
        assert 30 < len(json.dumps(kept, ensure_ascii=False).encode()) <= 100
        assert mark == f"{len(text) - len(kept)} of {len(text)} characters are in traces.jsonl only]"
    prompt = json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": "y" * 50_000}])
    system, user = json.loads(truncate_prompt(prompt, 10_000))
    assert system == {"role": "system", "content": "s"}
    assert user["content"].startswith("yyy")
    assert "cut here" in user["content"]
    assert "cut here" in truncate_prompt("y" * 50_000, 10_000)
    groups = list(batches([5, 5, 20, 1, 1, 1], size=lambda size: size, limit_bytes=10, most=2))
    assert groups == [[5, 5], [20], [1, 1], [1]]


def test_ids_depend_on_the_answers_and_nothing_else(tmp_path: Path) -> None:
    made = finished(tmp_path, 4)
    one = traced_spans.evaluation(made["report"], made["rows"], made["answers"])
    other = traced_spans.evaluation(made["report"], made["rows"], made["answers"], {LLM: {"adapter": "x"}})
    changed = finished(tmp_path / "b", 4, failing=False)
    third = traced_spans.evaluation(changed["report"], changed["rows"], changed["answers"])
    ids = [{span["spanId"] for span in run.spans} for run in (one, other, third)]
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]
