"""Whole evaluations against an endpoint that fails in every way it can and counts what it bills; it is a real process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from driver import start
from endpoint import BROKEN, SETTLED, Endpoint

from slm_ray.config import EvaluateConfig
from slm_ray.errors import ModelError
from slm_ray.evaluation import evaluate
from slm_ray.records import ModelReport, Report
from slm_ray.reports.files import load_report
from slm_ray.runlog import RunLog, finished

pytestmark = pytest.mark.heavy


def settings(folder: Path, rows: int, endpoint: Endpoint, **changes: Any) -> EvaluateConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in map(example, range(rows))))
    generation = {"concurrency": 64, "timeout_s": 20, **changes.pop("generation", {})}
    return EvaluateConfig.model_validate(
        {
            "track": "structured", "examples": str(path), "run_dir": str(folder / "run"), "models": ["served:m"],
            "endpoint": endpoint.url, "generation": generation, "shard_resources": {"CPU": 0.1}, **changes,
        }
    )  # fmt: skip


def example(n: int) -> dict[str, str]:
    return {
        "id": f"r{n}", "prompt": f"question {n}",
        "completion": json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"}),
    }  # fmt: skip


def model(report: Report) -> ModelReport:
    return report.models["served:m"]


def rows_digest(folder: Path) -> str:
    """Of the scored rows without what a clock or a fault may change."""
    rows = [json.loads(line) for line in (folder / "run" / "scores.jsonl").read_text().splitlines()]
    kept = [
        [row["id"], [[spec, found["text"], found["scores"]] for spec, found in row["models"].items()]] for row in rows
    ]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def test_30_percent_turned_away_and_every_row_is_answered_and_billed_once(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("busy", 0.3, 1.0) as endpoint:
        report = evaluate(settings(tmp_path, 1000, endpoint), environment={})
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert set(counts["billed"].values()) == {1}
    assert len(counts["billed"]) == 1000
    assert counts["statuses"]["429"] > 300
    assert counts["early"] == 0


def test_a_long_wait_is_waited_for(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("busy", 0.4, 3.0) as endpoint:
        started_s = time.monotonic()
        report = evaluate(settings(tmp_path, 8, endpoint), environment={})
        took_s = time.monotonic() - started_s
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert counts["early"] == 0
    assert counts["statuses"]["429"] >= 2
    assert took_s > 3


def test_server_errors_and_resets_lose_nothing_and_slow_nothing_down(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("shaky", latency_s=0.25) as endpoint:
        report = evaluate(settings(tmp_path, 1000, endpoint), environment={})
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert (counts["statuses"]["503"], counts["statuses"]["0"]) == (200, 50)
    assert set(counts["billed"].values()) == {1}
    assert counts["most_in_flight"] > 48
    with RunLog(tmp_path / "run") as log:
        assert log.count() == 1000


def test_an_answer_that_comes_too_late_counts_as_possibly_billed(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("fine", slow_first_s=5.0) as endpoint:
        config = settings(tmp_path, 100, endpoint, generation={"timeout_s": 3.0})
        report = evaluate(config, environment={})
        time.sleep(2.5)
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert {number for number, times in counts["billed"].items() if times == 2} == {"0", "50"}
    possibly_billed = told(tmp_path, config, "possibly_billed")
    assert {row: times for row, times in possibly_billed.items() if times} == {"r0": 1, "r50": 1}
    assert sum(told(tmp_path, config, "attempts").values()) == sum(counts["billed"].values()) == 102


def told(folder: Path, config: EvaluateConfig, name: str) -> dict[str, int]:
    """One field of every finished answer in the log."""
    from slm_ray.evaluation.plan import plan

    arm = plan(config, {}).arms[0]
    with RunLog(folder / "run") as log:
        return {row: getattr(log.response(key).completion, name) for row, key in arm.keys.items()}


def test_the_content_filter_is_an_answer(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("filtered") as endpoint:
        report = evaluate(settings(tmp_path, 100, endpoint), environment={})
        assert set(endpoint.counts()["asked"].values()) == {1}
    assert model(report).failures == {"refused": 20}
    assert model(report).metrics["exact_match"] == 0.8


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "set SLM_RAY_API_KEY"), (403, "set SLM_RAY_API_KEY"), (404, "serves no model 'm'"), (429, "the quota is used up")],
)  # fmt: skip
def test_what_would_fail_every_call_costs_three_calls(
    ray_cluster: None, tmp_path: Path, status: int, says: str
) -> None:
    with Endpoint("refusing", status, latency_s=0.05) as endpoint:
        with pytest.raises(ModelError, match=says):
            evaluate(settings(tmp_path, 200, endpoint, shards=2), environment={})
        asked = sum(endpoint.counts()["asked"].values())
    assert 1 <= asked <= 3


@pytest.mark.parametrize(("status", "shards"), [(401, 2), (404, 1)])
def test_a_key_that_dies_in_mid_run_costs_no_more_than_the_calls_in_flight(
    ray_cluster: None, tmp_path: Path, status: int, shards: int
) -> None:
    with Endpoint("dying", status, 200, 0.15, latency_s=0.1) as endpoint:
        config = settings(tmp_path, 2000, endpoint, shards=shards)
        with pytest.raises(ModelError, match=r"SLM_RAY_API_KEY|serves no model"):
            evaluate(config, environment={})
        time.sleep(1.5)  # who waits for a limit to pass would be back by then
        counts = endpoint.counts()
    refused = counts["statuses"][str(status)]
    assert 1 <= refused <= 64
    assert counts["late"]["arrived"] <= 64
    assert counts["late"]["long after"] == 0
    assert sum(counts["billed"].values()) == 200
    with RunLog(tmp_path / "run") as log:
        assert log.count() >= 200 - 64


def test_no_broken_body_stops_the_run(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("broken") as endpoint:
        report = evaluate(settings(tmp_path, 40, endpoint), environment={})
        assert set(endpoint.counts()["asked"].values()) == {1}
    assert len(BROKEN) == 10
    assert model(report).failures == {"invalid": 20}
    assert model(report).metrics["exact_match"] == 0.5


def test_a_hidden_cap_is_found_and_kept_to(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("capped", 40, 10, latency_s=0.05) as endpoint:
        report = evaluate(settings(tmp_path, 500, endpoint, shards=2), environment={})
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert 0.8 * 40 <= (500 - SETTLED) / (counts["last_s"] - counts["settled_s"]) <= 1.1 * 40
    assert counts["late"].get("limited", 0) <= 0.02 * (500 - SETTLED)
    assert counts["statuses"]["429"] <= 64 + 0.02 * 500, "every place in flight finds out once"


def finished_rows(folder: Path) -> list[str]:
    with RunLog(folder / "run") as log:
        return [response.example_id for response in log.responses() if finished(response.completion)]


def test_killed_twice_at_full_load_and_resumed(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("fine", latency_s=0.15) as endpoint:
        config = settings(tmp_path, 1000, endpoint)
        asked_again: dict[str, int] = {}
        for share in (0.35, 0.7):
            running = start(config, tmp_path)
            while sum(endpoint.counts()["billed"].values()) < share * 1000 and running.poll() is None:
                time.sleep(0.02)
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=60)
            quiet_after(endpoint)
            before = endpoint.counts()
            assert before["most_in_flight"] == 64
            asked_again |= {row: before["asked"][row.removeprefix("r")] for row in finished_rows(tmp_path)}
        with RunLog(tmp_path / "run") as log:
            assert log.begun().ended is None
            lost = sum(log.in_doubt(request.key for request in log.planned()).values())
            assert 1 <= lost <= 2 * 64
            assert sum(before["asked"].values()) <= log.count() + lost  # every call is known as started
        last = start(config, tmp_path)
        out, said = last.communicate(timeout=120)
        assert (last.returncode, out.strip()) == (0, "exact_match 1.0"), said
        counts = endpoint.counts()
    assert len(counts["billed"]) == 1000
    assert sum(counts["billed"].values()) <= 1000 + 2 * 64
    assert {row: counts["asked"][row.removeprefix("r")] for row in asked_again} == asked_again
    killed, origin = rows_digest(tmp_path), load_report(tmp_path / "run")[0].provenance
    assert origin is not None
    assert (origin.in_doubt, origin.rows_in, origin.rows_scored) == (lost, 1000, 1000)
    calm = tmp_path / "calm"
    calm.mkdir()
    with Endpoint("fine") as endpoint:
        undisturbed = evaluate(settings(calm, 1000, endpoint), environment={}).provenance
    assert killed == rows_digest(calm)
    assert undisturbed is not None and undisturbed.in_doubt == 0
    assert undisturbed.digests.answers == origin.digests.answers
    assert undisturbed.digests.data == origin.digests.data


def quiet_after(endpoint: Endpoint) -> None:
    """Wait until no process asks any more."""
    seen = -1
    while seen != (seen := sum(endpoint.counts()["asked"].values())):
        time.sleep(1.0)


def test_an_actor_is_killed_and_no_row_is_lost_or_doubled(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("fine", latency_s=0.1) as endpoint:

        def kill_one() -> None:
            while sum(endpoint.counts()["billed"].values()) < 100:
                time.sleep(0.02)
            mine = psutil.Process().children(recursive=True)
            os.kill(next(one.pid for one in mine if "ray::Shard" in " ".join(one.cmdline())), signal.SIGKILL)

        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        report = evaluate(settings(tmp_path, 600, endpoint, shards=2), environment={})
        killer.join(timeout=1)
        assert not killer.is_alive()
        counts = endpoint.counts()
    assert model(report).metrics["exact_match"] == 1.0
    assert len(finished_rows(tmp_path)) == len(counts["billed"]) == 600
    assert 600 < sum(counts["billed"].values()) <= 600 + 32
