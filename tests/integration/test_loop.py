"""The whole loop: submitted to a Ray head as a person does, stopped in the middle, continued on another Ray, finished.

One track is trained and the other is not, since its LLM is no better than the base. To go on, the endpoint has to make room.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from serving_fixtures import engines, free_port

from slm_ray import cluster
from slm_ray.adapters import list_adapters, train_prompts
from slm_ray.config import LoopConfig, PrepareConfig, load
from slm_ray.corpus.render import prompt_hash
from slm_ray.loop import loop
from slm_ray.prepare import prepare
from slm_ray.runlog import RunLog
from slm_ray.tasks import open_dataset

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
TRACKS = ("structured", "toolcall")
TRAINED, LEFT = TRACKS
ROWS = 160  # enough steps for a signal to arrive in the middle of training


def recorded_llm(folder: Path) -> Path:
    """A log of perfect answers for the track that the loop has to train then, and of useless ones for the other."""
    answers = {}
    for track in TRACKS:
        out = folder / "all" / track
        prepare(load(PrepareConfig, "jobs/prepare.yaml", [f"track={track}", f"out_dir={out}"]))
        for split in ("train", "validation", "test"):
            for example in open_dataset(out / f"{split}.jsonl", track).examples:
                answers[example.prompt.messages[-1].content] = example.target if track == TRAINED else "no"
    path = folder / "llm.jsonl"
    lines = [json.dumps({"prompt": prompt, "prediction": answer}) for prompt, answer in answers.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scarce(folder: Path) -> Path:
    """The demo's serving file, with an engine that holds all slots, of which training wants two."""
    serving = yaml.safe_load((ROOT / "serve_configs/cpu_tiny.yaml").read_text(encoding="utf-8"))
    serving["applications"][0]["args"]["llm_configs"][0]["placement_group_config"] = {
        "bundles": [{"CPU": 0.2, "slot": 4}]
    }
    path = folder / "scarce.yaml"
    path.write_text(yaml.safe_dump(serving), encoding="utf-8")
    return path


def settings(run: Path, llm: Path, port: int, **more: object) -> list[str]:
    values = {
        "run_dir": run, "serving.adapters_dir": run / "adapters", "serving.port": port, "llm": f"recorded:{llm}",
        "tracks.0.validation_rows": 8, "tracks.0.test_rows": 8, "tracks.0.train_rows": ROWS,
        "tracks.1.validation_rows": 8, "tracks.1.test_rows": 8, "tracks.1.train_rows": ROWS,
        "training.epochs": 1, "training.checkpoint_steps": 2, "evaluation.generation.max_tokens": 120, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def started(run: Path, asked: list[str]) -> subprocess.Popen[str]:
    overrides = [part for setting in asked for part in ("--set", setting)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AZURE_", "LANGFUSE_"))}
    return subprocess.Popen(
        ["bash", "jobs/on_local_ray.sh", "jobs/loop.py", "jobs/loop.yaml", *overrides],
        cwd=ROOT, env=kept | {"PATH": path, "RUN": str(run)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def descendants(run: Path) -> list[str]:
    """Every living process that was started for this run: they all inherit its RUN."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUN") == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def left_behind(run: Path, within_s: float = 20) -> list[str]:
    """What still lives `within_s` after the command has ended; workers notice the end of their node a moment later."""
    deadline = time.monotonic() + within_s
    while (found := descendants(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def leads_to_a_living_ray() -> bool:
    """Whether Ray's note of the cluster on this machine is gone, or is of a cluster that answers."""
    return not Path("/tmp/ray/ray_current_cluster").exists() or cluster.noted_address() is not None


def calls(run: Path, stage: str) -> dict[str, int]:
    """Answers in each track's log of one stage."""
    counts = {}
    for track in TRACKS:
        with RunLog(run / track / stage) as log:
            counts[track] = sum(1 for _ in log.responses())
    return counts


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen[str], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not list(run.glob(f"{TRAINED}/training/*/checkpoint_manager_snapshot.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint within {limit_s} s"
        time.sleep(0.1)


def test_a_stopped_loop_leaves_nothing_behind_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    run, port = tmp_path / "run", free_port()
    llm, before = recorded_llm(tmp_path), engines()
    first = started(run, settings(run, llm, port))
    wait_for_a_checkpoint(run, first, 420)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=90)
    assert first.returncode != 0, output
    assert left_behind(run) == []
    assert leads_to_a_living_ray(), "the next job on this machine would wait for the Ray that has ended"
    assert calls(run, "validation") == {TRAINED: 16, LEFT: 16}
    assert not (run / "adapters").exists()

    again = load(LoopConfig, "jobs/loop.yaml", settings(run, llm, port, **{"serving.config": scarce(tmp_path)}))
    decided = loop(again, {})
    output = capsys.readouterr().out
    assert set(decided) == set(TRACKS)
    deadline = time.monotonic() + 15  # the engine's processes end a moment after the replica that started them
    while (left := engines() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert calls(run, "validation") == {TRAINED: 24, LEFT: 16}, (
        "the adapter answers the validation rows too, and nobody else again"
    )
    assert output.count("taken down for the training") == 1
    assert output.count("answers at http://") == 2

    page = (run / "report.html").read_text(encoding="utf-8")
    result = json.loads((run / "report.json").read_text(encoding="utf-8"))
    tracks = {track["track"]: track for track in result["tracks"]}
    assert set(tracks) == set(TRACKS)
    for track in tracks.values():
        assert [decision["stage"] for decision in track["decisions"]] == ["validation", "test"]
        models = track["reports"]["test"]["models"]
        assert {model["n"] for model in models.values()} == {8}
        assert {model["trained_on"] for model in models.values()} <= {0, None}
        arms = track["cost"]["arms"]
        assert (
            arms[f"recorded:{llm}"]["per_request_usd"] is None
            and "nothing was asked" in track["cost"]["break_even"]["because"]
        )
        assert any(
            "declared before the first call: rule sequential" in said
            for said in track["decisions"][1]["decision"]["because"]
        )
    assert tracks[LEFT]["adapter"] is None
    assert tracks[LEFT]["decisions"][0]["decision"]["action"] != "fine_tune"

    track, manifest = tracks[TRAINED], tracks[TRAINED]["adapter"]
    assert track["decisions"][0]["decision"]["action"] == "fine_tune"
    assert manifest["id"] in page
    adapter = f"served:tiny-base:{manifest['id']}"
    assert track["reports"]["test"]["models"][adapter]["trained_on"] == 0
    assert adapter in track["reports"]["validation"]["models"]
    arm = track["cost"]["arms"][adapter]
    assert arm["per_request_usd"] > 0 and arm["goes_to"]["on_premise"]
    assert (
        track["partial_replacement"]["line"].startswith("SLM can take ")
        and track["partial_replacement"]["validation_rows"] == 8
    )

    (published,) = list_adapters(run / "adapters")
    assert (published.id, published.track) == (manifest["id"], TRAINED)
    assert published.metrics["resumed_from"] >= 2, "what the stopped run had learned was learned again"
    assert published.proof is not None
    assert published.proof["not_checked"] == [], "no endpoint was up: an engine like it had to be started"
    far = published.proof["alternatives"]["no adapter"]
    assert published.proof["adapter"]["mean"] < published.proof["tolerance"] < far
    trained = train_prompts(run / "adapters", published.id)
    tested = open_dataset(run / TRAINED / "examples" / "test.jsonl", TRAINED).examples
    assert len(trained) == ROWS
    assert not trained & {prompt_hash(example.prompt) for example in tested}
