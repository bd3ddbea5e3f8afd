"""Runs that end when they are decided, against a server that counts: what is billed, kill -9, and rows added later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from chat_server import ChatServer, Reply, Request, answer
from driver import start
from test_evaluation import quiet_after, workers_of

from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.table import summary
from slm_ray.records import Report
from slm_ray.reports.files import load_report
from slm_ray.storage import read_jsonl

pytestmark = pytest.mark.heavy
LLM, SLM, BAD = "served:llm", "served:slm", "served:bad"
TARGET = '{"a": 1}'
IN_FLIGHT = 4
PROGRAM = """
import sys
import ray
from slm_ray.command import run
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.table import summary

def main(config):
    ray.init(address=ADDRESS, log_to_driver=False, logging_level="ERROR")
    print(summary(evaluate(config, environment={})))

run(main, EvaluateConfig, "test", sys.argv[1:])
"""


def rows_file(path: Path, name: str, count: int) -> str:
    rows = [
        {"id": f"{name}{n}", "prompt": f"{name} {n}", "completion": TARGET, "tags": {"kind": "abc"[n % 5 // 2]}}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(tmp_path: Path, server: ChatServer, *, rows: int = 300, **changes: Any) -> EvaluateConfig:
    settings = {
        "track": "structured", "examples": rows_file(tmp_path / "rows.jsonl", "r", rows), "models": [LLM, SLM],
        "run_dir": str(tmp_path / "run"), "endpoint": server.url, "shard_resources": {"CPU": 0.1},
        "declare": {"rule": "sequential", "stop": "when_decided", "delta": 0.1, "candidates": 1},
        "generation": {"concurrency": IN_FLIGHT, "max_attempts": 2, "timeout_s": 10}, **changes,
    }  # fmt: skip
    return EvaluateConfig.model_validate(settings)


def models(
    after_s: float = 0.0, *, slm_wrong_every: int = 4, slm_after_s: float | None = None
) -> Callable[[Request], Reply]:
    """The LLM is right; `slm` is wrong on some rows and its bad sister on all; the same for the same row at any time."""

    def script(request: Request) -> Reply:
        model, n = request.body["model"], int(request.text.split()[-1])
        wrong = model == "bad" or (model == "slm" and n % slm_wrong_every == 0)
        wait_s = after_s if model == "llm" or slm_after_s is None else slm_after_s
        return Reply(body=answer("{}" if wrong else TARGET).body, after_s=wait_s)

    return script


def calls(server: ChatServer) -> Counter[str]:
    return Counter(f"served:{request.body['model']}" for request in server.requests)


def stop_of(report: Report, spec: str = SLM) -> int:
    assert report.sequential is not None
    stop = report.sequential.candidates[spec].decided_at
    assert stop is not None
    return stop


def figures(folder: Path) -> list[Any]:
    """What the rows say, without the times and the calls that it took."""
    return [
        [row["id"], {spec: (one["text"], one["scores"]) for spec, one in row["models"].items()}]
        for row in read_jsonl(folder / "scores.jsonl")
    ]


def test_the_calls_billed_are_the_rows_up_to_the_stop_and_those_in_flight(ray_cluster: None, tmp_path: Path) -> None:
    """With an SLM ten times as fast as the LLM, which must not run away from it."""
    with ChatServer(models(0.02, slm_after_s=0.002)) as server:
        settings = config(tmp_path, server, shards=3)
        report = evaluate(settings, environment={})
        stop, billed = stop_of(report), calls(server)
        assert 8 < stop < 290
        assert all(stop <= count < stop + IN_FLIGHT for count in billed.values()), (stop, billed)
        files = {name: (tmp_path / "run" / name).read_bytes() for name in ("report.json", "scores.jsonl")}
        assert evaluate(settings, environment={}) == report
        assert calls(server) == billed
    assert files == {name: (tmp_path / "run" / name).read_bytes() for name in files}
    assert report.examples.n == len(files["scores.jsonl"].splitlines()) == stop
    assert report.provenance is not None
    assert report.provenance.unscored == sum(billed.values()) - 2 * stop


def test_killed_three_times_it_stops_at_the_same_row_with_the_same_rows(ray_cluster: None, tmp_path: Path) -> None:
    """The driver twice and the evaluation actor once, each with SIGKILL."""
    calm = tmp_path / "calm"
    calm.mkdir()
    with ChatServer(models(0.1)) as server:
        undisturbed = evaluate(config(calm, server), environment={})
        stop = stop_of(undisturbed)
    with ChatServer(models(0.1)) as server:
        settings = config(tmp_path, server)
        for share in (0.3, 0.6):
            running = start(settings, tmp_path, PROGRAM)
            wait_for(partial(at_least, server, share * 2 * stop), running)
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=60)
            quiet_after(server)
        last = start(settings, tmp_path, PROGRAM)
        wait_for(partial(at_least, server, 0.8 * 2 * stop), last)
        shards = workers_of("Shard")
        assert len(shards) == 1
        os.kill(shards[0], signal.SIGKILL)
        out, said = last.communicate(timeout=60)
        assert last.returncode == 0, said
        billed = calls(server)
        assert f"{SLM}: decided at row {stop}: " in out
        assert all(stop <= count < stop + (1 + 3) * IN_FLIGHT for count in billed.values()), (stop, billed)
        report = load_report(tmp_path / "run")[0]
        files = {name: (tmp_path / "run" / name).read_bytes() for name in ("report.json", "scores.jsonl")}
        evaluate(settings, environment={})
        assert calls(server) == billed
    assert files == {name: (tmp_path / "run" / name).read_bytes() for name in files}
    assert stop_of(report) == stop
    assert figures(tmp_path / "run") == figures(calm / "run")
    assert report.provenance is not None and undisturbed.provenance is not None
    assert report.provenance.digests.answers == undisturbed.provenance.digests.answers
    assert report.provenance.in_doubt > 0


def test_a_candidate_that_is_out_is_dropped_while_the_other_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    """In a stratified order, which is looked at after every ten rows."""
    with ChatServer(models(0.01, slm_wrong_every=1000)) as server:
        declared = {
            "rule": "sequential", "stop": "when_decided", "delta": 0.1, "candidates": 2, "stratify": "kind",
        }  # fmt: skip
        report = evaluate(config(tmp_path, server, models=[LLM, BAD, SLM], declare=declared), environment={})
        billed = calls(server)
    out, swap = stop_of(report, BAD), stop_of(report, SLM)
    assert out < swap and out % 10 == swap % 10 == 0
    assert out <= billed[BAD] < out + IN_FLIGHT
    assert all(swap <= billed[spec] < swap + IN_FLIGHT for spec in (LLM, SLM)), billed
    assert (report.models[BAD].n, report.models[LLM].n, report.examples.n) == (out, swap, swap)
    rows = list(read_jsonl(tmp_path / "run" / "scores.jsonl"))
    assert [BAD in row["models"] for row in rows] == [True] * out + [False] * (swap - out)
    assert Counter(row["tags"]["kind"] for row in rows[:out]) == {"a": out * 4 // 10, "b": out * 4 // 10, "c": out // 5}


def test_failed_rows_are_asked_again_before_it_is_decided(ray_cluster: None, tmp_path: Path) -> None:
    """Calls that fail for good are looked at in their run; the next run asks them again, and decides anew."""
    broken = True

    def script(request: Request) -> Reply:
        if broken and request.body["model"] == "slm" and request.text.endswith("3"):
            return Reply(status=500, body={"error": {"message": "no"}})
        return models(0.005, slm_wrong_every=1000)(request)

    with ChatServer(script) as server:
        once = {"concurrency": IN_FLIGHT, "max_attempts": 1, "timeout_s": 10}
        settings = config(tmp_path, server, rows=120, generation=once)
        first = evaluate(settings, environment={})
        assert first.models[SLM].failures["error"] == 12 and first.examples.n == 120
        broken, asked = False, len(server.requests)
        again = evaluate(settings, environment={})
        assert again.models[SLM].failures == {}
        renewed = [request.text for request in server.requests[asked:]]
    order = [row["id"] for row in read_jsonl(tmp_path / "run" / "scores.jsonl")]
    assert all(text.endswith("3") for text in renewed)
    needed = {row.replace("r", "r ") for row in order if row.endswith("3")}
    assert needed <= set(renewed) and len(renewed) == len(set(renewed)) < len(needed) + IN_FLIGHT
    assert stop_of(again) < 120
    assert again.sequential is not None and again.sequential.candidates[SLM].action == "swap"


def test_more_rows_go_on_where_it_was_and_ask_nothing_twice(ray_cluster: None, tmp_path: Path) -> None:
    with ChatServer(models(slm_wrong_every=25)) as server:
        settings = config(tmp_path, server, rows=30)
        before = evaluate(settings, environment={})
        assert before.sequential is not None and before.sequential.candidates[SLM].action is None
        assert calls(server) == {LLM: 30, SLM: 30}
        further = rows_file(tmp_path / "more.jsonl", "x", 400)
        after = evaluate(settings.model_copy(update={"extend": further}), environment={})
        texts = Counter((request.body["model"], request.text) for request in server.requests)
        assert set(texts.values()) == {1}
        stop, billed = stop_of(after), calls(server)
    assert 30 < stop < 420
    assert all(stop <= count < stop + IN_FLIGHT for count in billed.values()), (stop, billed)
    ids = [row["id"] for row in read_jsonl(tmp_path / "run" / "scores.jsonl")]
    assert sorted(ids[:30]) == sorted(f"r{n}" for n in range(30))
    assert all(row.startswith("x") for row in ids[30:])


def test_a_run_that_never_stops_says_what_the_rest_cost(ray_cluster: None, tmp_path: Path) -> None:
    with ChatServer(models(slm_wrong_every=1)) as server:
        declared = {"rule": "sequential", "delta": 0.1, "candidates": 1}
        report = evaluate(config(tmp_path, server, rows=60, declare=declared, shards=2), environment={})
        assert calls(server) == {LLM: 60, SLM: 60}
    stop, out = stop_of(report), summary(report)
    assert f"{SLM}: decided at row {stop}: fine_tune (of 60 rows" in out
    assert f"beyond that row: {2 * (60 - stop)} calls, {20 * (60 - stop)} tokens" in out


def at_least(server: ChatServer, requests: float) -> bool:
    return len(server.requests) >= requests


def wait_for(reached: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 60
    while not reached():
        assert running.poll() is None and psutil.pid_exists(running.pid), "the run ended before it could be killed"
        assert time.monotonic() < until_s
        time.sleep(0.005)
