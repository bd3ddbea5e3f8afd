"""The race's endpoint and bookkeeping: it counts what it answers, takes its time, and a failed entrant says why."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request

import pytest

from slm_ray.config.load import load
from slm_ray.errors import ResourceError
from tools import bench_sweep, bench_train, race
from tools.config import RaceConfig, TrainBenchConfig

ASK = (
    "import json, sys; from urllib.request import Request, build_opener, ProxyHandler\n"
    "for n in range(int(sys.argv[2])):\n"
    "    call = Request(sys.argv[1] + '/v1/chat/completions', data=json.dumps({'n': 'x' * 9000}).encode())\n"
    "    reply = json.load(build_opener(ProxyHandler({})).open(call))\n"
    "    assert reply['choices'][0]['message']['content'] == 'ok'\n"
)


def test_the_endpoint_takes_its_time_and_counts() -> None:
    with race.endpoint(0.05) as url:

        def call(_: int) -> None:
            with race.OPENER.open(Request(f"{url}/v1/chat/completions", data=b"{}"), timeout=10) as reply:
                assert json.load(reply)["choices"][0]["finish_reason"] == "stop"

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, range(24)))
        seen = json.loads(race.get(f"{url}/span"))
        assert seen["calls"] == 24
        assert 1 < seen["most_in_flight"] <= 8
        assert 3 * 0.05 <= seen["span_s"] < 5
        race.get(f"{url}/reset")
        assert json.loads(race.get(f"{url}/span"))["calls"] == 0


def test_a_lap_is_what_the_endpoint_saw(tmp_path: Path) -> None:
    with race.endpoint(0.0) as url:
        entrant = race.Entrant(name="asker", command=(sys.executable, "-c", ASK, url, "7"))
        started = time.perf_counter()
        lap = race.run(entrant, url, tmp_path / "0" / "asker")
        assert (lap.calls, lap.most_in_flight) == (7, 1)
        assert 0 < lap.span_s < lap.whole_s < time.perf_counter() - started + 1e-3
        broken = race.Entrant(name="broken", command=(sys.executable, "-c", "raise SystemExit('no such model')"))
        with pytest.raises(ResourceError, match="broken ended with status 1: no such model"):
            race.run(broken, url, tmp_path / "0" / "broken")


def test_every_entrant_gets_the_same_rows_and_concurrency(tmp_path: Path) -> None:
    rows = race.write_rows(tmp_path, 3)
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 3
    config = RaceConfig(concurrency=17, lm_eval="lm_eval", inspect="inspect")
    field = race.entrants(config, "http://127.0.0.1:1", rows)
    assert [entrant.name for entrant in field] == ["slm_ray", "lm-evaluation-harness", "inspect-ai"]
    assert all("17" in " ".join(entrant.command) for entrant in field)
    assert [entrant.name for entrant in race.entrants(RaceConfig(), "http://127.0.0.1:1", rows)] == ["slm_ray"]


def test_ways_to_sweep_are_compared_with_the_first_recipe_by_recipe() -> None:
    first = bench_sweep.Lap(name="a run for each", seconds=100, one_bytes=2**20, peak_bytes=2**21)
    first.losses = {(1e-3, 8): 0.5, (3e-3, 8): 0.4}
    second = bench_sweep.Lap(name="resident", seconds=25, one_bytes=2**20, peak_bytes=2**20, ended_early=1)
    second.losses = {(3e-3, 8): 0.41}
    _, one, other, best, *_ = bench_sweep.told([first, second], 8)
    assert one.split()[-6:] == ["100.0", "1.00", "2", "0.25", "0", "0"]
    assert other.split()[-6:] == ["25.0", "0.25", "1", "0.12", "1", "0.01"]
    assert best == "lowest loss: lr 0.003, rank 8 (0.4000)"


def test_the_training_benchmark_compares_like_with_like_and_a_failed_lap_says_why(tmp_path: Path) -> None:
    config = load(TrainBenchConfig, bench_train.__file__.replace(".py", ".yaml"))
    assert config.training.lora.dropout == 0.0
    assert config.training.prove_on == "nothing", "torchrun starts no engine to prove its adapter"
    with pytest.raises(ResourceError, match=r"slm-ray ended with status 2: .*error: cannot read .*nowhere.jsonl"):
        bench_train.one_lap(
            "slm-ray", config.training.model_copy(update={"train": "nowhere.jsonl"}), tmp_path / "slm-ray"
        )
