"""Whole evaluations on a local Ray, against real HTTP servers: concurrency, faults, stopping, resuming, secrets."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from chat_server import ChatServer, Reply, Request, answer, error
from driver import start

from slm_ray.config import EvaluateConfig
from slm_ray.corpus.render import prompt_hash, prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ModelError, ResourceError
from slm_ray.evaluation import evaluate
from slm_ray.records import Attempts
from slm_ray.reports.files import load_report
from slm_ray.runlog import RunLog
from slm_ray.storage import lock, read_jsonl

pytestmark = pytest.mark.heavy
CANARY = "canary-7c1-never-on-disk"


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})


def rows_file(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def right(request: Request) -> Reply:
    return answer(reference(int(request.text.split()[-1])))


def slowly(after_s: float) -> Any:
    return lambda request: Reply(body=right(request).body, after_s=after_s)


def config(tmp_path: Path, count: int, **changes: Any) -> EvaluateConfig:
    settings = {
        "track": "structured", "examples": str(rows_file(tmp_path, count)), "run_dir": str(tmp_path / "run"),
        "generation": {"max_attempts": 2, "timeout_s": 10, "concurrency": 8}, "shard_resources": {"CPU": 0.1}, **changes,
    }  # fmt: skip
    return EvaluateConfig.model_validate(settings)


def azure(url: str) -> dict[str, str]:
    return {"AZURE_ENDPOINT": url, "AZURE_API_KEY": CANARY, "AZURE_DEPLOYMENT": "gpt", "SLM_RAY_API_KEY": CANARY,
            "LANGFUSE_SECRET_KEY": CANARY, "LANGFUSE_PUBLIC_KEY": CANARY, "LANGFUSE_DISABLED": "1"}  # fmt: skip


def test_two_models_at_once_and_nothing_to_do_the_second_time(ray_cluster: None, tmp_path: Path) -> None:
    def flaky(request: Request) -> Reply:
        if request.nth in (3, 4):
            return error(429 if request.nth == 3 else 500)
        if request.text == "question 7":
            return error(400, "content_filter", f"filtered for {CANARY}")
        return Reply(body=right(request).body, after_s=0.1)

    with ChatServer(flaky) as llm, ChatServer(slowly(0.1)) as slm:
        settings = config(tmp_path, 24, models=["azure:", "served:tiny"], endpoint=slm.url, shards=2)
        seen = {prompt_hash(prompt_of(track("structured"), f"question {n}")) for n in (98, 99)}
        report = evaluate(settings, environment=azure(llm.url), train_prompts={"served:tiny": seen})
        assert 2 <= llm.most_in_flight <= 8
        assert 2 <= slm.most_in_flight <= 8
        assert max(llm.spans[0][0], slm.spans[0][0]) < min(llm.spans[-1][1], slm.spans[-1][1])  # they overlap in time
        assert (len(llm.requests), len(slm.requests)) == (26, 24)

        run = tmp_path / "run"
        first = {name: (run / name).read_bytes() for name in ("report.json", "scores.jsonl", "answers.parquet")}
        again = evaluate(settings, environment=azure(llm.url), train_prompts={"served:tiny": seen})
        assert (len(llm.requests), len(slm.requests)) == (26, 24)
    assert again == report == load_report(run)[0]
    assert first == {name: (run / name).read_bytes() for name in first}
    assert report.models["served:tiny"].metrics["exact_match"] == 1.0
    assert report.models["azure:"].metrics["exact_match"] == pytest.approx(23 / 24)
    assert report.models["azure:"].failures == {"refused": 1}
    assert report.models["served:tiny"].trained_on == 0
    assert report.models["azure:"].attempts == Attempts(calls=26, retried=2, possibly_billed=0)
    origin = report.provenance
    assert origin is not None
    assert (origin.rows_in, origin.rows_scored, origin.requests) == (24, 24, 48)
    assert (origin.retries, origin.in_doubt, origin.refused) == (2, 0, 1)
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "log", "report.json", "scores.jsonl", "answers.parquet", "traces.jsonl"} <= names
    lines = read_jsonl(run / "traces.jsonl")
    spans = [span for line in lines for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    assert len(spans) == 1 + 2 + 48
    for path in run.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_shipped_models_take_the_same_path_and_leave_no_actor(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "recorded.jsonl").write_text(
        "".join(json.dumps({"prompt": f"question {n}", "prediction": reference(n)}) + "\n" for n in range(4))
    )
    spec = f"recorded:{tmp_path / 'recorded.jsonl'}"
    report = evaluate(config(tmp_path, 5, models=[spec, "fake:{}", "fake:echo"]), environment={})
    metrics = {name: model.metrics["exact_match"] for name, model in report.models.items()}
    assert metrics == {spec: 0.8, "fake:{}": 0.0, "fake:echo": 0.0}
    assert report.models[spec].failures == {"error": 1}
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == pytest.approx(4)


def test_failed_rows_alone_are_asked_again(ray_cluster: None, tmp_path: Path) -> None:
    broken = True

    def script(request: Request) -> Reply:
        return error(503) if broken and request.text.endswith(("1", "2")) else right(request)

    with ChatServer(script) as server:
        settings = config(tmp_path, 6, models=["served:m"], endpoint=server.url)
        report = evaluate(settings, environment={})
        assert report.models["served:m"].failures == {"error": 2}
        asked = len(server.requests)
        broken = False
        report = evaluate(settings, environment={})
        assert sorted(request.text for request in server.requests[asked:]) == ["question 1", "question 2"]
    assert report.models["served:m"].metrics["exact_match"] == 1.0


def test_a_fatal_answer_ends_the_run_and_keeps_what_is_finished(ray_cluster: None, tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return error(404, "DeploymentNotFound") if request.nth >= 4 else right(request)

    with ChatServer(script) as server:
        settings = config(tmp_path, 12, models=["azure:"], generation={"concurrency": 1, "max_attempts": 1})
        with pytest.raises(ModelError, match="names no deployment of AZURE_ENDPOINT") as caught:
            evaluate(settings, environment=azure(server.url))
    assert CANARY not in str(caught.value)
    with RunLog(tmp_path / "run") as log:
        assert log.count() == 4
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_lost_actor_is_replaced_and_nothing_is_asked_twice(ray_cluster: None, tmp_path: Path) -> None:
    with ChatServer(slowly(0.2)) as server:
        killed = threading.Event()

        def kill_one() -> None:
            while len(server.requests) < 12:
                time.sleep(0.02)
            worker = next(iter(workers_of("Shard")))
            os.kill(worker, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill_one, daemon=True).start()
        settings = config(
            tmp_path, 30, models=["served:m"], endpoint=server.url, generation={"concurrency": 4, "max_attempts": 2}
        )
        report = evaluate(settings, environment={})
        assert killed.is_set()
        assert report.models["served:m"].metrics["exact_match"] == 1.0
        assert len(server.requests) <= 30 + 4 + 4  # in flight, and answered but not yet heard of


def workers_of(name: str) -> list[int]:
    """Of this process's own Ray alone: other people's evaluations are left in peace."""
    mine = psutil.Process().children(recursive=True)
    return [process.pid for process in mine if f"ray::{name}" in " ".join(process.cmdline())]


def test_too_large_a_request_and_a_busy_folder_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="shard_resources"):
        evaluate(config(tmp_path, 2, models=["fake:x"], shard_resources={"CPU": 64}), environment={})
    with lock(tmp_path / "run"), pytest.raises(ResourceError, match="in use by process"):
        evaluate(config(tmp_path, 2, models=["fake:x"]), environment={})


def test_stopped_twice_in_the_middle_and_resumed_nothing_finished_is_asked_again(tmp_path: Path) -> None:
    with ChatServer(slowly(0.25)) as server:
        settings = config(
            tmp_path, 48, models=["served:m"], endpoint=server.url, generation={"concurrency": 4, "max_attempts": 2}
        )
        finished = asked = 0
        for how in (signal.SIGTERM, signal.SIGINT):
            running = start(settings, tmp_path)
            while len(server.requests) < asked + 12 and running.poll() is None:
                time.sleep(0.02)
            running.send_signal(how)
            stopped_at = time.monotonic()
            _, told = running.communicate(timeout=60)
            assert (running.returncode, told.splitlines()[-1]) == (
                130,
                "stopped; the same command continues where this one ended",
            )
            assert "Traceback" not in told
            assert time.monotonic() - stopped_at < 30
            quiet_after(server)
            before, asked = (finished, asked), len(server.requests)
            with RunLog(tmp_path / "run") as log:
                finished = log.count()
            assert finished - before[0] >= 4
            newly_asked, newly_finished = asked - before[1], finished - before[0]
            assert newly_asked - newly_finished <= 2 * 4 + 2  # what was in flight, and one batch that nobody heard
        assert finished < 48
        again = start(settings, tmp_path)
        out, told = again.communicate(timeout=120)
        assert (again.returncode, out.strip()) == (0, "exact_match 1.0"), told
        assert len(server.requests) - asked == 48 - finished


def quiet_after(server: ChatServer) -> None:
    """Wait until no process asks any more."""
    seen = -1
    while seen != len(server.requests):
        seen = len(server.requests)
        time.sleep(1.0)
