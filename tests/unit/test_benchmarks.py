"""The race's endpoint and bookkeeping: it counts what it answers, takes its time, and a failed entrant says why."""

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request

import pytest
from chat_server import DONE, ChatServer, Reply, answer, chunk, error

from slm_ray.config import load
from slm_ray.errors import ResourceError
from tools import bench_scale, bench_serve, bench_sweep, bench_train, race
from tools.config import RaceConfig, ScaleBenchConfig, ServeBenchConfig, TrainBenchConfig

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


def test_two_curves_are_compared_step_by_step() -> None:
    alone = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.5}]
    assert bench_train.compared(alone, alone).endswith("apart by 0 at most")
    assert bench_train.compared(alone, [alone[0], {"step": 2.0, "loss": 1.25}]).endswith("apart by 0.25 at most")
    with pytest.raises(ResourceError, match="have not logged the same steps"):
        bench_train.compared(alone, alone[:1])


def test_bare_vllm_is_given_the_settings_of_the_serve_file() -> None:
    words = bench_serve.flags(
        {"dtype": "bfloat16", "enforce_eager": True, "enable_x": False, "max_loras": 4, "c": {"a": 1}}
    )
    assert words[-8:] == [
        "--dtype",
        "bfloat16",
        "--enforce-eager",
        "--no-enable-x",
        "--max-loras",
        "4",
        "--c",
        '{"a": 1}',
    ]
    assert "--load-format" in words  # as training reads the base


@pytest.mark.parametrize("stream", [False, True])
def test_clients_wait_for_their_answers_and_ask_every_model(stream: bool) -> None:
    parts = (chunk(""), chunk("a"), chunk("b", finish="stop"), DONE)
    with ChatServer(lambda request: Reply(parts=parts, after_s=0.02) if stream else answer("ab")) as server:
        config = ServeBenchConfig(seconds=0.5, tokens=2)
        cell = bench_serve.Cell(models="two", clients=3, stream=stream)
        lap = asyncio.run(bench_serve.lap(server.url, ["a", "b"], cell, config))
        assert server.most_in_flight <= 3
        assert {request.body["model"] for request in server.requests} == {"a", "b"}
        assert all(request.body["stream"] is stream for request in server.requests)
        assert lap.per_s > 0
        assert not stream or lap.first_ms >= 40  # the second part is the first that holds text
        with pytest.raises(ResourceError, match="answers HTTP 400"):
            server.script = lambda request: error(400)
            asyncio.run(bench_serve.lap(server.url, ["a"], cell, config))


def test_ratios_are_of_laps_that_were_run_one_after_the_other() -> None:
    cell = bench_serve.Cell(models="base", clients=8, stream=True)
    sides = {"ours": [bench_serve.Lap(per_s=per_s, first_ms=12.0) for per_s in (8.0, 4.0, 9.0)],
             "bare": [bench_serve.Lap(per_s=per_s, first_ms=10.0) for per_s in (10.0, 5.0, 9.0)]}  # fmt: skip
    head, line = bench_serve.told({cell: sides})
    assert dict(zip(head.replace("least ratio", "least").replace("first, ms", "first").replace("bare, ms", "b").replace("more, ms", "more").split(), line.split(), strict=True)) == {
        "models": "base", "clients": "8", "streamed": "yes", "ours/s": "8.00", "bare/s": "9.00", "ratio": "0.80", "least": "0.80",
        "first": "12.00", "b": "10.00", "more": "2.00",
    }  # fmt: skip


def test_a_delay_counts_from_when_all_before_had_begun_and_enough_slots_were_free() -> None:
    line = [
        bench_scale.Training(slots=slots, began_s=began_s, ended_s=ended_s)
        for slots, began_s, ended_s in [
            (1, 0.25, 4.0),  # could have begun at once
            (3, 0.5, 2.0),  # 0.25 after the first
            (2, 2.5, 9.0),  # three slots are free from 2.0 on
            (4, 9.0, 9.5),  # at the moment when the third ended
            (1, 9.75, 9.9),  # the fourth ended at 9.5
        ]
    ]
    assert bench_scale.delays_s(line, 4) == pytest.approx([0.25, 0.25, 0.5, 0.0, 0.25])


def test_the_trainings_of_the_scale_benchmark_all_fit_into_its_slots() -> None:
    config = load(ScaleBenchConfig, bench_scale.__file__.replace(".py", ".yaml"))
    assert len(bench_scale.sizes(config)) == config.trainings
    assert set(bench_scale.sizes(config)) == set(config.wants)
    assert config.slots % config.raylets == 0 and max(config.wants) <= config.slots


def test_what_a_lost_worker_cost_is_told_from_the_steps_that_were_seen() -> None:
    seen: list[tuple[float, int | None]] = [
        (0.0, None),
        (1.0, 20),
        (2.0, 47),
        (3.5, None),
        (9.0, 44),
        (10.0, 52),
        (11.0, 60),
    ]
    assert bench_train.recovered(seen, (2.5, 47), 40) == (
        "killed at step 47 (as told), went on from 40: 7 steps twice; noticed after 1.0 s, told of a step again after 6.5 s,"
        " at step 47 again after 7.5 s"
    )
