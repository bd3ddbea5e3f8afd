"""A flywheel that is killed before each of its steps and started again: nothing is done or paid twice, the ending is the same."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

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
        "tracks": [track], "run_dir": str(folder / "run"), "routes": str(folder / "routes"), "relabel": True,
        "llm": f"openai:large@{url}/v1", "serving.adapters_dir": str(folder / "adapters"), "validation_rule": "point",
    }  # fmt: skip
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    file = folder / "settings.json"
    file.write_text(load(FlywheelConfig, ROOT / "jobs/flywheel.yaml", overrides).model_dump_json())
    return file


def run(folder: Path, file: Path, url: str, *steps: str) -> list[str]:
    script = str(ROOT / "tests/cut_flywheel.py")
    path = f"{ROOT / 'tests'}:{ROOT / 'tests/unit'}:{ROOT}"
    done = subprocess.run(
        [sys.executable, script, str(file), url, *steps], capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("{") or re.search(r": -?\d+$", line)]


def calls(server: ChatServer) -> Counter[tuple[str, str]]:
    return Counter((request.body["model"], request.text) for request in server.requests)


def ending(folder: Path) -> list[object]:
    """What a run leaves behind, but for when."""
    track, store = folder / "run/structured", RouteStore(folder / "routes")
    history = [
        (now.state, now.adapter, now.granted.most, now.granted.because, now.action) for now in store.history("r")
    ]
    return [
        [read_jsonl(track / stage / "scores.jsonl") for stage in ("validation", "test")],
        [read_json(track / stage / "comparison.json")["decision"] for stage in ("validation", "test")],
        (track / "examples/train.jsonl").read_bytes(), adapter_ids(folder / "adapters"), history,
        read_json(track / "route.json")["state"],
    ]  # fmt: skip


def test_a_run_that_is_killed_before_each_step_pays_and_ends_as_one_that_is_not(tmp_path: Path) -> None:
    at_once, cut = tmp_path / "at_once", tmp_path / "cut"
    at_once.mkdir()
    cut.mkdir()
    with ChatServer(script) as server:
        said_at_once = run(at_once, settings(at_once, server.url), server.url, WHOLE)
        paid = calls(server)
        server.requests.clear()
        file = settings(cut, server.url)
        said_cut = run(cut, file, server.url, *STEPS, WHOLE)
        assert said_cut == [*(f"{step}: -9" for step in STEPS), *said_at_once]
        assert calls(server) == paid and ending(cut) == ending(at_once)
        with TrafficLog(str(cut / "traffic")) as log:
            log.append(asked("later", said("later")))
        server.requests.clear()
        before = ending(cut)
        assert run(cut, file, server.url, WHOLE) == said_at_once
    assert not server.requests and ending(cut) == before
    (shadow,) = [now for now in RouteStore(cut / "routes").history("r") if now.state == "shadow"]
    assert shadow.by == "flywheel" and sum(paid.values()) > 100
