"""The life of a row through faults: crashes, full disks, budgets; arms and repeats in one run; no secret anywhere."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as parquet
import pytest
import ray
from chat_server import ChatServer, Reply, Request
from driver import start
from test_evaluation import CANARY, azure, config, quiet_after, reference, right, workers_of

from slm_ray.errors import DataError, ResourceError
from slm_ray.evaluation import evaluate
from slm_ray.records import Noise
from slm_ray.runlog import RunLog
from slm_ray.storage import lock, read_jsonl

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("generation", [{"concurrency": 8, "max_attempts": 1}, {"concurrency": 8, "max_attempts": 4}])
def test_a_budget_ends_the_run_before_it_is_passed_and_a_higher_one_continues(
    tmp_path: Path, generation: dict[str, int]
) -> None:
    with ChatServer(right) as server:
        settings = config(tmp_path, 40, models=["served:m"], endpoint=server.url, generation=generation, max_calls=20)
        with pytest.raises(
            ResourceError, match=r"max_calls 20 does not allow another call: \d+ requests are not asked"
        ) as told:
            evaluate(settings, environment={})
        assert "no report is written" in str(told.value)
        assert "higher max_calls continues" in str(told.value)
        assert 20 - generation["max_attempts"] < len(server.requests) <= 20
        assert not (tmp_path / "run" / "report.json").exists()
        report = evaluate(settings.model_copy(update={"max_calls": 60}), environment={})
        assert len(server.requests) == 40
        assert len(set(server.texts)) == 40
    assert report.models["served:m"].metrics["exact_match"] == 1.0
    assert report.provenance.in_doubt == 0


def test_money_is_limited_by_the_price_file_and_calls_nobody_heard_count(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(
        "as_of: 2026-09-23\nmodels: {gpt: {input_usd_per_mtok: 1000, cached_input_usd_per_mtok: 500, output_usd_per_mtok: 2000}}"
    )
    generation = {"concurrency": 4, "max_attempts": 1, "max_tokens": 10}
    usd_per_call = (7 * 1000 + 3 * 2000) / 1e6  # what the server's usage states
    with ChatServer(right) as server:
        settings = config(
            tmp_path,
            60,
            models=["azure:"],
            generation=generation,
            max_cost_usd=0.5,
            prices=str(tmp_path / "prices.yaml"),
        )
        with pytest.raises(ResourceError, match=r"max_cost_usd 0\.5 does not allow another call"):
            evaluate(settings, environment=azure(server.url))
        # it ended for want of the worst case of one more call: a prompt of at most 300 tokens and 10 of answer
        assert 0.5 - (300 * 1000 + 10 * 2000) / 1e6 < len(server.requests) * usd_per_call <= 0.5


def test_a_full_disk_ends_the_run_in_one_line_and_no_further_call_is_paid_for(
    ray_cluster: None, tmp_path: Path
) -> None:
    def wordy(request: Request) -> Reply:
        if request.nth == 8:  # no file of the shard's grows beyond this: as when a disk is full
            (shard,) = workers_of("Shard")
            psutil.Process(shard).rlimit(psutil.RLIMIT_FSIZE, (400_000, psutil.RLIM_INFINITY))
        reply = right(request)
        reply.body["choices"][0]["message"]["content"] += " " * 10_000  # JSON may end in spaces
        return reply

    with ChatServer(wordy) as server:
        settings = config(
            tmp_path, 120, models=["served:m"], endpoint=server.url, generation={"concurrency": 4, "max_attempts": 1}
        )
        crowded = start(settings, tmp_path)
        _, told = crowded.communicate(timeout=120)
        assert crowded.returncode == 2, told
        assert "Traceback" not in told
        assert f".jsonl: cannot be written on {socket.gethostname()} (File too large)" in told.splitlines()[-1]
        assert told.splitlines()[-1].endswith("then the same command continues")
        quiet_after(server)
        asked = len(server.requests)
        with RunLog(tmp_path / "run") as log:
            finished = log.count()
        assert 4 <= finished < 120
        assert asked - finished <= 2 * 4
        roomy = start(settings, tmp_path)
        out, told = roomy.communicate(timeout=120)
        assert (roomy.returncode, out.strip()) == (0, "exact_match 1.0"), told
        assert len(server.requests) - asked == 120 - finished


def test_arms_with_demonstrations_baselines_and_repeats_in_one_run(ray_cluster: None, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(
        "".join(json.dumps({"prompt": f"task {n}", "completion": reference(n % 3 // 2)}) + "\n" for n in range(6))
    )

    asked: Counter[int] = Counter()

    def unsteady(request: Request) -> Reply:
        turns = len(request.body["messages"])  # the two arms interleave as they please: each has a count of its own
        asked[turns] += 1
        return right(request) if asked[turns] % 2 else Reply(body={**right(request).body, "choices": []})

    with ChatServer(unsteady) as server:
        models = ["served:m", "served:m+2shot", "baseline:majority", "baseline:nearest"]
        settings = config(
            tmp_path, 5, models=models, endpoint=server.url, demonstrations=str(train), repeats=2,
            generation={"concurrency": 1, "max_attempts": 1},
        )  # fmt: skip
        report = evaluate(settings, environment={})
        turns = sorted(len(request.body["messages"]) for request in server.requests)
    assert turns == [2] * 10 + [6] * 10
    assert list(report.models) == models
    noise = report.models["served:m"].noise
    assert noise.repeats == 2
    assert sum(noise.primary) < 2
    steady = report.models["baseline:majority"]
    assert steady.noise == Noise(repeats=2, agreement=1.0, same_text=1.0, primary=(0.2, 0.2))
    assert steady.metrics["exact_match"] == 0.2  # the commonest training answer is that of one row
    assert steady.served_by == ("baseline:majority",)
    table = parquet.read_table(tmp_path / "run" / "answers.parquet").to_pylist()
    assert len(table) == report.provenance.requests == 4 * 5 * 2
    assert {(row["spec"], row["repeat"], row["example_id"]) for row in table} == {
        (spec, repeat, f"r{n}") for spec in models for repeat in (0, 1) for n in range(5)
    }
    assert {row["outcome"] for row in table} == {"ok", "invalid"}
    for row in read_jsonl(tmp_path / "run" / "scores.jsonl"):
        answer = row["models"]["served:m"]
        assert (answer["attempts"], set(answer["usage"] or ())) in [
            (1, {"prompt_tokens", "completion_tokens", "cached_tokens"}), (1, set())
        ]  # fmt: skip


def test_a_busy_folder_is_refused_at_once_and_a_damaged_log_in_one_line(tmp_path: Path) -> None:
    settings = config(tmp_path, 2, models=["fake:x"])
    with lock(tmp_path / "run"):
        began_s = time.monotonic()
        with pytest.raises(ResourceError, match="in use by process"):
            evaluate(settings, environment={})
        assert time.monotonic() - began_s < 20  # it would wait for ever
    (tmp_path / "run" / "log").mkdir()
    (tmp_path / "run" / "log" / "run.jsonl").write_bytes(b"\0garbage" * 1000)
    with pytest.raises(
        DataError, match=r"run.jsonl \(byte 0\): cannot be used as a log .*choose another run_dir"
    ) as told:
        evaluate(settings, environment={})
    assert "\n" not in str(told.value)


def test_no_secret_is_in_any_file_of_the_run_or_of_ray(ray_cluster: None, tmp_path: Path) -> None:
    began_s = time.time()
    with ChatServer(right) as server:
        settings = config(tmp_path, 8, models=["azure:", "served:m"], endpoint=server.url)
        evaluate(settings, environment=azure(server.url))
        assert all(CANARY in str(request.headers) for request in server.requests)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    looked = 0
    for path in [*(tmp_path / "run").rglob("*"), *session.rglob("*")]:
        if path.is_file() and (path.is_relative_to(tmp_path) or path.stat().st_mtime >= began_s):
            assert CANARY.encode() not in path.read_bytes(), path
            looked += 1
    assert looked > 6


def test_memory_of_the_driver_grows_little_while_it_asks_and_while_it_writes(ray_cluster: None, tmp_path: Path) -> None:
    """A fifth of the rows of the full figure (100,000 in 150 MB beside the rows themselves, which take 100 MB)."""
    settings = config(
        tmp_path, 20_000, models=["fake:{}"], generation={"concurrency": 200, "max_attempts": 1}, limit=100
    )
    evaluate(settings, environment={})  # what is loaded once
    folder = tmp_path / "all"
    this = psutil.Process()
    before, peak, looks, whole = this.memory_info().rss, 0, 0, 0

    def look() -> None:
        nonlocal peak, looks, whole
        while not (folder / "traces.jsonl").exists():  # what a run writes last
            asking = False
            with contextlib.suppress(DataError):
                asking = RunLog(folder).begun().ended is None
            if asking:
                peak, looks = max(peak, this.memory_info().rss - before), looks + 1
            whole = max(whole, this.memory_info().rss - before)
            time.sleep(0.1)

    looking = threading.Thread(target=look)
    looking.start()
    evaluate(settings.model_copy(update={"limit": None, "run_dir": str(folder)}), environment={})
    looking.join()
    assert looks > 10
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"
    assert whole < 60e6, f"{whole / 1e6:.0f} MB"


def test_a_small_budget_is_spent_and_then_ends_the_run_with_more_actors_than_first_calls(
    ray_cluster: None, tmp_path: Path
) -> None:
    with ChatServer(right) as server:
        settings = config(
            tmp_path, 40, models=["served:a", "served:b", "served:c", "served:d"], endpoint=server.url, max_calls=20,
            generation={"concurrency": 8, "max_attempts": 8},
        )  # fmt: skip
        with pytest.raises(ResourceError, match="max_calls 20 does not allow another call"):
            evaluate(settings, environment={})
        assert 12 <= len(server.requests) <= 20
