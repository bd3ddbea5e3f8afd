"""Shards where something is missing: the run directory on their node, their driver, their process."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from driver import start
from endpoint import Endpoint
from test_faults import quiet_after, settings

from slm_ray.config import EvaluateConfig
from slm_ray.costs.prices import Price
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.local import ShardResult
from slm_ray.evaluation.plan import plan
from slm_ray.evaluation.shards import LogKeeper, Shard, Work, _split
from slm_ray.runlog import RUN_FILE, LogWriter, RunLog, begin_note, encoded

pytestmark = pytest.mark.heavy


def distant(tmp_path: Path, config: EvaluateConfig) -> Work:
    """All of a plan, for a shard that sees no run directory."""
    planned = plan(config, {})
    (arm,) = planned.arms
    requests = arm.pending(planned.examples, RunLog(tmp_path / "none"))
    return Work(
        run="abcd0123", number=0, folder=Path("/no/such/folder"), config=config, arms=(arm,), requests=tuple(requests),
        slots={arm.spec: 8}, budget=Budget(config, {}), driver_node="another",
    )  # fmt: skip


def test_a_shard_that_does_not_see_the_run_directory_writes_beside_the_driver(
    ray_cluster: None, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "log"
    writer = LogWriter(folder / RUN_FILE)
    writer.append(encoded([begin_note("abcd0123", "p", {})]))
    writer.close()
    keeper: Any = ray.remote(LogKeeper).remote(folder)
    with Endpoint("fine", latency_s=0.01) as endpoint:
        work = distant(tmp_path, settings(tmp_path, 40, endpoint))
        results: list[ShardResult] = []
        for _ in range(2):  # the second one is the first, started again after a crash at its very end
            shard: Any = ray.remote(Shard).remote()
            assert not ray.get(shard.sees.remote(work.mark))
            results.append(ray.get(shard.run.remote(work, None, keeper)))
            ray.kill(shard)
        counts = endpoint.counts()
    ray.kill(keeper)
    assert [result.left for result in results] == [0, 0]
    assert set(counts["asked"].values()) == {1}
    with RunLog(tmp_path / "run") as log:
        assert log.count() == 40
        assert log.in_doubt(request.key for request in work.requests) == {}


def test_shards_that_go_on_show_earlier_spending_once(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("fine") as endpoint:
        config = settings(tmp_path, 12, endpoint).model_copy(update={"shards": 3})
        planned = plan(config, {})
    (arm,) = planned.arms
    requests = arm.pending(planned.examples, RunLog(tmp_path / "none"))
    price = Price(name="m", input_usd_per_mtok=1.0, cached_input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
    budget = Budget(config, {arm.spec: price})
    budget.charge_worst_case(arm.spec, requests[0].prompt)
    works = _split(requests, [arm], config, budget, "abcd0123", None)
    assert len(works) == 3
    assert sum(work.budget.usd(arm.spec) or 0.0 for work in works) == budget.usd(arm.spec) != 0.0


def test_after_the_driver_is_killed_no_more_calls_begin_than_may_be_in_flight(
    ray_cluster: None, tmp_path: Path
) -> None:
    with Endpoint("fine", latency_s=0.05) as endpoint:
        config = settings(tmp_path, 3000, endpoint, generation={"concurrency": 8})
        running = start(config, tmp_path)
        while sum(endpoint.counts()["billed"].values()) < 100 and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        at_its_death = sum(endpoint.counts()["asked"].values())
        quiet_after(endpoint)
        assert 100 <= at_its_death < 3000
        assert sum(endpoint.counts()["asked"].values()) - at_its_death <= 8


def test_ten_thousand_rows_with_a_thousand_calls_in_flight_from_one_shard(ray_cluster: None, tmp_path: Path) -> None:
    with Endpoint("fine", latency_s=1.8) as endpoint:  # a slow machine, too, begins so many calls meanwhile
        config = settings(tmp_path, 10_000, endpoint, generation={"concurrency": 1000, "timeout_s": 60})
        report = evaluate(config, environment={})
        counts = endpoint.counts()
    assert report.models["served:m"].metrics["exact_match"] == 1.0
    assert set(counts["billed"].values()) == {1}
    assert len(counts["billed"]) == 10_000
    assert 600 < counts["most_in_flight"] <= 1000
