"""A flywheel that is killed before each of its steps and started again: nothing is done or paid twice, the ending is the same."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Request, answer
from traffic_rows import asked, log_of, said

from slm_ray.adapters import adapter_ids
from slm_ray.config import FlywheelConfig, load
from slm_ray.rollout.store import RouteStore
from slm_ray.storage import read_json, read_jsonl
from slm_ray.traffic import TrafficLog

ROOT = Path(__file__).parents[2]
STEPS = ("deploy", "evaluate structured (validation rows)", "train", "evaluate structured (test rows)", "routes")
WHOLE = "none"


def script(request: Request) -> Reply:
    """The LLM and the adapter know the answer; the base does not."""
    if request.body["model"] == "tiny-base":
        return answer("{}")
    found = re.search(r"how many of (\w+)", request.text)
    assert found is not None
    return answer(said(found[1]))


def settings(folder: Path, url: str) -> Path:
    """A flywheel over a log of sixty requests, which the LLM is asked again."""
    log = log_of(folder / "traffic", *(asked(f"q{n}", said("old")) for n in range(60)))
    track = {
        "track": "structured",
        "source": log,
        "live": {"route": "r"},
        "validation_rows": 10,
        "test_rows": 30,
    }
    changes = {
        "tracks": [track], "run_dir": str(folder / "run"), "routes_dir": str(folder / "routes"), "relabel": True,
        "llm": f"openai:large@{url}/v1", "serving.adapters_dir": str(folder / "adapters"),
    }  # fmt: skip
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    file = folder / "settings.json"
    file.write_text(load(FlywheelConfig, ROOT / "jobs/flywheel.yaml", overrides).model_dump_json())
    return file


@pytest.fixture
def run() -> Iterator[Callable[[Path, str, str], int]]:
    """Runs the flywheel of a settings file until it begins a step; its exit status."""
    path = f"{ROOT / 'tests'}:{ROOT / 'tests/unit'}:{ROOT}"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests/cut_flywheel.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    ) as driver:  # fmt: skip
        assert driver.stdin is not None and driver.stdout is not None
        asked, answered = driver.stdin, driver.stdout

        def one(file: Path, url: str, step: str) -> int:
            asked.write(json.dumps([str(file), url, step]) + "\n")
            asked.flush()
            ended = next((line for line in answered if line.startswith("ended ")), "the driver died")
            return int(ended.removeprefix("ended "))

        yield one
        asked.close()


def calls(server: ChatServer) -> Counter[tuple[str, str]]:
    return Counter((request.body["model"], request.text) for request in server.requests)


def answers(scores: Path) -> list[object]:
    """Rows, answers and scores, in their order."""
    return [
        (row["id"], row["target"], sorted((spec, it["text"], str(it["scores"])) for spec, it in row["models"].items()))
        for row in read_jsonl(scores)
    ]


def ending(folder: Path) -> list[object]:
    """What a run leaves behind, but for when."""
    track, store = folder / "run/structured", RouteStore(folder / "routes")
    history = [
        (now.state, now.adapter, now.granted.most, now.granted.because, now.action) for now in store.history("r")
    ]
    return [
        [answers(track / stage / "scores.jsonl") for stage in ("validation", "test")],
        [read_json(track / stage / "comparison.json")["decision"] for stage in ("validation", "test")],
        (track / "examples/train.jsonl").read_bytes(), adapter_ids(folder / "adapters"), history,
        read_json(track / "route.json")["state"],
    ]  # fmt: skip


def test_a_run_that_is_killed_before_each_step_pays_and_ends_as_one_that_is_not(
    tmp_path: Path, run: Callable[[Path, str, str], int]
) -> None:
    at_once, cut = tmp_path / "at_once", tmp_path / "cut"
    with ChatServer(script) as server:
        assert run(settings(at_once, server.url), server.url, WHOLE) == 0
        paid = calls(server)
        server.requests.clear()
        file = settings(cut, server.url)
        assert [run(file, server.url, step) for step in (*STEPS, WHOLE)] == [-9] * len(STEPS) + [0]
        assert calls(server) == paid and ending(cut) == ending(at_once)
        with TrafficLog(str(cut / "traffic")) as log:
            log.append(asked("later", said("later")))
        server.requests.clear()
        assert run(file, server.url, WHOLE) == 0
        assert not server.requests and ending(cut) == ending(at_once)
    (shadow,) = [now for now in RouteStore(cut / "routes").history("r") if now.state == "shadow"]
    assert shadow.by == "flywheel" and sum(paid.values()) > 100
