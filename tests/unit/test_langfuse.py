"""Traces reach a Langfuse exactly once, whatever it does in between; it is a real server that keeps every span it is sent."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from langfuse_server import DATASETS, ITEMS, OBSERVATIONS, PUBLIC, SCORES, SECRET, SPANS, Fault, LangfuseServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from traced_run import LLM, SLM, finished
from traffic_rows import NOW, asked, log_of, said

from slm_ray.config import TraceConfig
from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.tracing import replay
from slm_ray.tracing.collector import Collector
from slm_ray.tracing.file import read_runs
from slm_ray.tracing.otlp import values
from slm_ray.tracing.spans import SCORE
from slm_ray.traffic import Feedback

ROOT = Path(__file__).parents[2]
ROWS = 20
SPANS_TOTAL = 1 + 2 + 2 * ROWS


def send(folder: Path, server: LangfuseServer, *, patience_s: float = 60, settle_s: float = 0.5, **changes: str) -> str:
    config = TraceConfig(run_dir=str(folder))
    return replay(config, server.environment | changes, settle_s=settle_s, patience_s=patience_s)


def score_count(folder: Path) -> int:
    return sum(key.startswith(SCORE) for run in read_runs(folder) for one in run.spans for key in values(one))


def whole(folder: Path, server: LangfuseServer, rows: int = ROWS) -> None:
    """Everything is there, and everything is there once."""
    assert set(server.span_counts().values()) == {1}
    assert len(server.span_counts()) == 1 + 2 + 2 * rows
    assert len(server.run_items()) == 2 * rows
    assert set(server.run_items().values()) == {1}
    assert len(server.items) == rows
    assert len(server.datasets) == 1
    assert len(server.scores) == score_count(folder) > 5 * rows
    assert len({key for key, _ in server.scores}) == len(server.scores)
    assert server.bad == []


def test_a_run_becomes_a_dataset_two_experiments_and_scores(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer() as server:
        said = send(tmp_path, server)
        whole(tmp_path, server)
    assert said == (
        f"{server.url} has the traces of 1 run; sent now: {SPANS_TOTAL} spans, {ROWS} dataset items, "
        f"{len(server.scores)} scores"
    )
    ((name, dataset),) = server.datasets.items()
    assert name.startswith("structured-")
    answers = [span for span in server.spans if "langfuse.experiment.item.id" in span]
    assert {span["langfuse.experiment.dataset.id"] for span in answers} == {dataset["id"]}
    assert {span["langfuse.experiment.item.id"] for span in answers} == set(server.items)
    assert {span["langfuse.experiment.item.root_observation_id"] == span["id"] for span in answers} == {True}
    assert len({span["trace"] for span in answers}) == 2 * ROWS
    assert len({span["langfuse.experiment.id"] for span in answers}) == 2
    by_example = {(span["gen_ai.request.model"], span["slm_ray.example_id"]): span for span in answers}
    failed, fine = by_example[LLM, "r1"], by_example[LLM, "r3"]
    assert failed["status"] == 2
    assert failed["langfuse.observation.level"] == "ERROR"
    assert "langfuse.observation.output" not in failed
    assert json.loads(fine["langfuse.observation.usage_details"]) == {
        "input": 16,
        "input_cached_tokens": 4,
        "output": 7,
    }
    item = server.items[fine["langfuse.experiment.item.id"]]
    assert (
        item["expectedOutput"]
        == fine["langfuse.observation.output"]
        == fine["langfuse.experiment.item.expected_output"]
    )
    assert item["input"] == json.loads(fine["langfuse.observation.input"])
    assert item["metadata"] == {"example_id": "r3", "tool": "t0"}
    about = [score for score in server.scores.values() if score.get("observationId") == fine["id"]]
    assert {score["traceId"] for score in about} == {fine["trace"]}
    assert {score["name"]: score["value"] for score in about}["exact_match"] == 1.0
    summed = [score for score in server.scores.values() if score.get("datasetRunId") == fine["langfuse.experiment.id"]]
    assert {score["name"]: score["value"] for score in summed}["exact_match"] == pytest.approx(1 - 1 / ROWS)
    assert json.loads(by_example[SLM, "r0"]["langfuse.experiment.metadata"])["adapter"] == "structured-0123456789ab"


def test_a_second_replay_asks_for_nothing_but_the_keys(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer() as server:
        send(tmp_path, server)
        before = server.requests.copy()
        assert "sent now: 0 spans, 0 dataset items, 0 scores" in send(tmp_path, server)
        assert server.requests - before == Counter({"/api/public/projects": 1})
        whole(tmp_path, server)


def test_a_replay_that_knows_of_no_earlier_one_finds_every_span_there(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer(page=7) as server:
        send(tmp_path, server)
        (tmp_path / "langfuse.jsonl").unlink()
        (tmp_path / "traces.jsonl").unlink()
        assert "sent now: 0 spans" in send(tmp_path, server)
        assert server.requests[OBSERVATIONS] == 1 + -(-SPANS_TOTAL // 7)
        whole(tmp_path, server)


@pytest.mark.parametrize("path", [SPANS, SCORES, ITEMS, DATASETS, OBSERVATIONS])
@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_lost_connection_loses_and_doubles_nothing(tmp_path: Path, path: str, drop: str) -> None:
    finished(tmp_path, ROWS)

    def script(asked: str, nth: int) -> Fault | None:
        return Fault(drop=drop) if asked == path and nth == 0 else None  # type: ignore[arg-type]

    with LangfuseServer(script, lag_s=0.3) as server:
        send(tmp_path, server, settle_s=1.0)
        whole(tmp_path, server)
        once = path == SPANS and drop == "after"  # they were found there, and not sent again
        assert server.requests[path] == 1 if once else server.requests[path] >= 2


def test_a_429_is_waited_for_as_long_as_it_asks(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)

    def script(path: str, nth: int) -> Fault | None:
        if path == SPANS and nth < 2:
            return Fault(status=429, headers={"Retry-After": "1"})
        if path == SCORES and nth == 0:
            later = datetime.now(UTC) + timedelta(seconds=2)
            return Fault(status=429, headers={"Retry-After": format_datetime(later, usegmt=True)})
        return Fault(status=429, headers={"Retry-After": "0"}) if path == ITEMS and nth % 3 == 0 else None

    with LangfuseServer(script) as server:
        send(tmp_path, server)
        whole(tmp_path, server)
    at = [moment for path, moment in server.times if path == SPANS]
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(at))
    scored = [moment for path, moment in server.times if path == SCORES]
    assert scored[1] - scored[0] >= 0.9


def test_a_wait_beyond_the_deadline_ends_at_once_and_the_rest_is_sent_later(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    asked = Fault(status=429, headers={"Retry-After": "300"})
    with LangfuseServer(lambda path, nth: asked if path == SCORES and nth == 0 else None) as server:
        started = time.monotonic()
        with pytest.raises(ResourceError, match="HTTP 429: it asks for fewer requests"):
            send(tmp_path, server)
        assert time.monotonic() - started < 60  # 300 s were asked for
        assert "sent now: 0 spans, 0 dataset items" in send(tmp_path, server)
        whole(tmp_path, server)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not know these keys"), (403, "may not write"), (404, "check LANGFUSE_HOST"), (507, "full")]
)  # fmt: skip
def test_what_waiting_cannot_cure_is_said_after_one_request(tmp_path: Path, status: int, said: str) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer(lambda path, nth: Fault(status=status) if path == SPANS else None) as server:
        with pytest.raises(ResourceError, match=said) as error:
            send(tmp_path, server)
        assert server.requests[SPANS] == 1
        assert server.requests[SCORES] == 0
        assert "canary" not in str(error.value)
        server.script = lambda path, nth: None
        send(tmp_path, server)
        whole(tmp_path, server)


def test_wrong_keys_are_found_before_anything_is_sent(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer() as server:
        with pytest.raises(ResourceError, match="HTTP 401"):
            send(tmp_path, server, LANGFUSE_SECRET_KEY="sk-other")
        assert server.requests == {"/api/public/projects": 1}


def test_a_server_error_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer(lambda path, nth: Fault(status=503) if path == SPANS and nth < 2 else None) as server:
        send(tmp_path, server, settle_s=0)
        whole(tmp_path, server)
    with LangfuseServer(lambda path, nth: Fault(status=500) if path == SCORES else None) as server:
        with pytest.raises(ResourceError, match="HTTP 500"):
            send(tmp_path, server, patience_s=6)
        assert 2 <= server.requests[SCORES] <= 6


def test_a_request_that_is_too_large_for_this_server_goes_in_parts(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)

    with LangfuseServer(lambda path, nth: Fault(status=413) if path == SPANS and nth in (0, 1, 3) else None) as server:
        send(tmp_path, server)
        whole(tmp_path, server)
        assert server.requests[SPANS] > 4


def test_a_ten_megabyte_answer_is_cut_in_what_is_sent_and_whole_on_disk(tmp_path: Path) -> None:
    answer = '"\u2028ü' * 3_500_000
    finished(tmp_path, ROWS, long_text=answer)
    with LangfuseServer() as server:
        send(tmp_path, server)
        whole(tmp_path, server)
    (sent,) = [
        span["langfuse.observation.output"] for span in server.spans
        if span.get("slm_ray.example_id") == "r2" and span["gen_ai.request.model"] == SLM
    ]  # fmt: skip
    assert server.largest[SPANS] < 4_000_000
    assert answer.startswith(sent.partition("… [cut here: ")[0])
    assert sent.endswith(f" of {len(answer)} characters are in traces.jsonl only]")
    assert answer in [
        values(one).get("langfuse.observation.output") for run in read_runs(tmp_path) for one in run.spans
    ]


@pytest.mark.parametrize("at", [SPANS, SCORES, ITEMS])
def test_a_replay_that_is_killed_in_the_middle_is_finished_by_the_next(tmp_path: Path, at: str) -> None:
    finished(tmp_path, ROWS)
    reached = threading.Event()

    def script(path: str, nth: int) -> Fault | None:
        if path == at and nth == (5 if at == ITEMS else 0) and not reached.is_set():
            reached.set()
            return Fault(after_s=1.0)
        return None

    with LangfuseServer(script) as server:
        job = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/trace.py"), str(tmp_path)],
            env=os.environ | server.environment, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        assert reached.wait(60)
        time.sleep(0.2)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        send(tmp_path, server, settle_s=2.0)
        whole(tmp_path, server)
        send(tmp_path, server)
        whole(tmp_path, server)


def test_answers_that_changed_are_another_run(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer() as server:
        send(tmp_path, server)
        finished(tmp_path, ROWS, failing=False)
        send(tmp_path, server)
        assert set(server.span_counts().values()) == {1}
        assert len(server.span_counts()) == 2 * SPANS_TOTAL
        assert len({span["session.id"] for span in server.spans}) == 2
        assert len(server.run_items()) == 2 * 2 * ROWS
        assert len(server.items) == ROWS


def test_two_servers_each_get_everything(tmp_path: Path) -> None:
    finished(tmp_path, ROWS)
    with LangfuseServer() as first, LangfuseServer() as second:
        send(tmp_path, first)
        send(tmp_path, second)
        whole(tmp_path, first)
        whole(tmp_path, second)


def test_no_key_is_ever_written_or_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, ROWS)
    said = ""
    with LangfuseServer(lambda path, nth: Fault(status=400) if path == SCORES and nth == 0 else None) as server:
        try:
            send(tmp_path, server)
        except ResourceError as error:
            said += str(error)
        said += send(tmp_path, server)
        whole(tmp_path, server)
        assert {headers["Authorization"] for headers in server.headers} != {None}
    told = capfd.readouterr()
    assert "HTTP 400" in said
    for secret in (PUBLIC, SECRET):
        assert secret not in said + told.out + told.err
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_refusals_in_one_line(tmp_path: Path) -> None:
    config = TraceConfig(run_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"neither a report.json nor a traces.jsonl"):
        replay(config, {})
    finished(tmp_path, 3)
    with pytest.raises(ConfigError, match="LANGFUSE_PUBLIC_KEY or LANGFUSE_SECRET_KEY is not set"):
        replay(config, {"LANGFUSE_PUBLIC_KEY": "pk"})
    keys = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk", "LANGFUSE_DISABLED": "1"}
    assert replay(config, keys) == "nothing is sent: LANGFUSE_DISABLED is set"
    (tmp_path / "log" / "run.jsonl").unlink()
    with LangfuseServer() as server, pytest.raises(DataError, match="give the directory of a finished run"):
        send(tmp_path, server)


def test_a_collector_of_opentelemetry_gets_the_spans_of_a_traffic_log(tmp_path: Path) -> None:
    folder = Path(log_of(tmp_path / "log", asked("a", said(1), said(2)), Feedback(id="a", at=NOW, score=1.0)))
    with LangfuseServer(lambda path, nth: Fault(status=503) if nth == 4 else None) as server:
        credentials = base64.b64encode(f"{PUBLIC}:{SECRET}".encode()).decode()
        given = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{server.url}{SPANS}?key=hidden-0123",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Basic%20{credentials},x-scope=a%2Cb",
        }
        told = replay(TraceConfig(run_dir=str(folder)), given)
        assert "sent now: 3 spans" in told and "hidden" not in told and server.headers[-1]["x-scope"] == "a,b"
        assert "sent now: 0 spans" in replay(TraceConfig(run_dir=str(folder)), given), "what it took is not sent again"
        assert set(server.span_counts().values()) == {1} and not server.scores
        log_of(folder, asked("b", said(3)))
        assert "sent now: 2 spans" in replay(TraceConfig(run_dir=str(folder)), given), "a 503 is waited out"
        assert any(key.startswith(SCORE) for one in server.spans for key in one)
        with pytest.raises(ResourceError, match="wants other credentials; check OTEL_EXPORTER_OTLP_HEADERS"):
            replay(TraceConfig(run_dir=str(folder)), {**given, "OTEL_EXPORTER_OTLP_HEADERS": ""})
    assert "hidden" not in (folder / "langfuse.jsonl").read_text()


def test_spans_that_a_collector_turns_down_are_said_and_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(log_of(tmp_path / "log", *(asked(name, said(1), said(2), route=name) for name in ("a", "b"))))
    turned_down = ExportTraceServiceResponse()
    turned_down.partial_success.rejected_spans = 2
    answers = iter([b"", turned_down.SerializeToString(), b"{}", b""])  # to the check, the two runs, the next check
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, content=next(answers))

    def collector(environment: object) -> Collector:
        made = Collector(url="http://collector/v1/traces", headers={})
        vars(made)["_http"] = httpx.Client(transport=httpx.MockTransport(answer))
        return made

    monkeypatch.setattr(Collector, "from_environment", collector)
    with pytest.raises(ResourceError, match="has turned down 2 of 6 spans"):
        replay(TraceConfig(run_dir=str(folder)), {})
    assert "sent now: 0 spans" in replay(TraceConfig(run_dir=str(folder)), {}), "what it took would be there twice"
    assert [bool(body) for body in sent] == [False, True, True, False], "and the second run is sent all the same"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, "no http"),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:hidden@x"}, "without credentials"),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_HEADERS": "a=b,hidden"}, "its pair 2 is no header"),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_HEADERS": "a=hidden%0d%0ax: y"}, "its pair 1"),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_HEADERS": "x y=hidden"}, "its pair 1")],
)  # fmt: skip
def test_a_collector_that_cannot_be_meant_is_refused_without_its_secrets(
    given: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        replay(TraceConfig(run_dir=log_of(tmp_path, asked("a", "1"))), given)
    assert "hidden" not in str(refused.value)


def test_a_traffic_log_is_sent_once_however_often_and_what_is_new_is_added(tmp_path: Path) -> None:
    folder = log_of(tmp_path / "log", asked("a", said(1), said(2)), asked("b", said(1), route="other"))
    with LangfuseServer() as server:
        assert "sent now: 5 spans" in send(Path(folder), server)
        assert "sent now: 0 spans" in send(Path(folder), server)
        log_of(tmp_path / "log", asked("c", said(3)), Feedback(id="a", at=NOW, score=1.0))
        assert "sent now: 2 spans, 0 dataset items, 1 scores" in send(Path(folder), server)
        assert set(server.span_counts().values()) == {1} and server.bad == []
        assert [score["value"] for score in server.scores.values()] == [1.0]
    assert not (tmp_path / "log" / "traces.jsonl").exists()
