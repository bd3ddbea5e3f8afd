"""Training under real Ray: two workers, killed workers, a killed driver, two groups at once, requests that cannot be met."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from slm_ray import adapters
from slm_ray.config import TrainConfig
from slm_ray.errors import DataError, ResourceError, TrainingError
from slm_ray.storage import read_jsonl
from slm_ray.tracing.otlp import spans_of, values
from slm_ray.training import launch, train, train_many

pytestmark = pytest.mark.heavy
BASE = Path(__file__).parents[2] / "data" / "tiny_base"
ONE = {"count": 1, "per_worker": {"slot": 1, "CPU": 0.5}}


def config(folder: Path, *, rows: int = 48, **changed: Any) -> TrainConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    lines = [{"prompt": f"Number {n} " * (1 + n % 4), "completion": json.dumps({"n": n % 3})} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return TrainConfig(
        **{
            "track": "structured", "train": str(path), "base": str(BASE), "run_dir": str(folder / "run"),
            "adapters_dir": str(folder / "adapters"), "name": "structured", "prove_on": "nothing", "epochs": 4, "per_device_batch": 4,
            "gradient_accumulation": 1, "learning_rate": 2e-3, "warmup_steps": 2, "optimizer": "adamw_torch",
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "checkpoint_steps": 4, "max_length": 512,
            "workers": {"count": 2, "per_worker": {"slot": 1, "CPU": 0.5}}, **changed,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, adapters.Manifest]:
    asked = config(tmp_path_factory.mktemp("undisturbed"))
    return asked, train(asked, show=False)


def trainers() -> list[psutil.Process]:
    """Training workers of this process's own Ray, and of no other on the machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def seen_trainers() -> Iterator[list[set[int]]]:
    """The process ids of the training workers, five times a second while the block runs."""
    seen: list[set[int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            seen.append({process.pid for process in trainers()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


class KillWorker(threading.Thread):
    """Kills one of the training `workers` as soon as `run_dir` holds a checkpoint of `step` or later."""

    def __init__(self, run_dir: str, step: int, *, workers: int = 2) -> None:
        super().__init__(daemon=True)
        self._run_dir, self._step, self._workers = run_dir, step, workers
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        limit = time.monotonic() + 240
        known: list[psutil.Process] = []
        while time.monotonic() < limit and len(known) < self._workers:
            known = trainers()
            time.sleep(0.2)
        while time.monotonic() < limit and not checkpoints(self._run_dir, step=self._step):
            time.sleep(0.01)
        with contextlib.suppress(psutil.Error):
            known[-1].kill()
            self.killed = known[-1].pid


def checkpoints(run_dir: str, *, step: int = 4) -> list[Path]:
    """Checkpoints of `step` or later that Ray Train has committed. An epoch has six steps: 8 is inside the second one."""
    found = []
    for snapshot in Path(run_dir).glob("*/checkpoint_manager_snapshot.json"):
        for path in snapshot.parent.glob("checkpoint_*/trainer_state.json"):
            with contextlib.suppress(OSError, ValueError):
                if path.parent.name in snapshot.read_text() and json.loads(path.read_text())["global_step"] >= step:
                    found.append(path)
    return found


def test_two_workers_train_one_adapter_over_the_whole_data(
    undisturbed: tuple[TrainConfig, adapters.Manifest],
) -> None:
    asked, manifest = undisturbed
    figures = manifest.metrics
    assert (figures["workers"], figures["optimizer"], figures["steps"]) == (2, "torch.AdamW", 24)
    assert figures["loss_last"] < figures["loss_first"]
    assert figures["resumed_from"] == 0
    assert adapters.verify(asked.adapters_dir, manifest.id, BASE) == manifest
    assert (manifest.rank, manifest.alpha, manifest.train_prompts) == (4, 8, 48)
    (trace,) = Path(asked.run_dir).glob("structured-*/traces.jsonl")
    root, *points = [span for line in read_jsonl(trace) for span in spans_of(line)]
    assert values(root)["langfuse.observation.metadata.adapter"] == manifest.id
    assert values(root)["slm_ray.score.loss_last"] == figures["loss_last"]
    assert [point["name"] for point in points][-1] == "step 24"
    assert values(points[-1])["langfuse.observation.metadata.loss"] == figures["loss_last"]
    weights = adapters.tensors(Path(asked.adapters_dir) / manifest.id / "adapter_model.safetensors")
    assert len(weights) == 4 * 7 * 2


def test_a_finished_run_is_returned_at_once(undisturbed: tuple[TrainConfig, adapters.Manifest]) -> None:
    asked, manifest = undisturbed
    started = time.monotonic()
    assert train(asked, show=False) == manifest
    assert time.monotonic() - started < 2


def test_a_killed_worker_costs_no_finished_checkpoint_and_changes_nothing(
    undisturbed: tuple[TrainConfig, adapters.Manifest], tmp_path: Path
) -> None:
    asked, step = config(tmp_path), 8
    killer = KillWorker(asked.run_dir, step)
    _, manifest = train_many([undisturbed[0], asked])  # in line: its place stays its own
    killer.join()
    assert killer.killed
    figures = manifest.metrics
    assert figures["resumed_from"] >= step
    assert figures["steps_run"] == 24 - figures["resumed_from"]
    assert manifest.id == undisturbed[1].id, "the resumed run learned something else than the undisturbed one"
    assert len(curve(asked)) == 24
    assert curve(asked) == curve(undisturbed[0])


def curve(asked: TrainConfig) -> list[dict[str, float]]:
    """Loss, rate and gradient norm of every step."""
    (finished,) = Path(asked.run_dir).glob("*/finished.json")
    return json.loads(finished.read_text())["curve"]


def test_a_killed_driver_is_continued_by_the_same_command(
    undisturbed: tuple[TrainConfig, adapters.Manifest], tmp_path: Path
) -> None:
    asked = config(tmp_path)
    script = (
        "import ray, sys\nfrom slm_ray.config import TrainConfig\nfrom slm_ray.training import train\n"
        f"ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)\n"
        "train(TrainConfig.model_validate_json(sys.argv[1]), show=False)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, asked.model_dump_json()], start_new_session=True)
    limit = time.monotonic() + 120
    while not checkpoints(asked.run_dir) and time.monotonic() < limit and driver.poll() is None:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert checkpoints(asked.run_dir)
    assert not adapters.list_adapters(asked.adapters_dir)
    manifest = continued(asked)
    assert manifest.metrics["resumed_from"] >= 4
    assert manifest.id == undisturbed[1].id


def continued(asked: TrainConfig) -> adapters.Manifest:
    """The same training again, once the killed driver's cluster has let go of the run folder."""
    for _ in range(60):
        try:
            return train(asked, show=False)
        except ResourceError as error:
            assert "in use" in str(error)
            time.sleep(0.5)
    raise AssertionError("the killed driver still holds the run folder")


def test_two_groups_train_at_the_same_time_and_validation_rows_choose_a_checkpoint(tmp_path: Path) -> None:
    chosen_by = tmp_path / "chosen_by.jsonl"
    rows = [{"prompt": f"Numeral {n}", "completion": json.dumps({"n": n % 3})} for n in range(3)]
    chosen_by.write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = [
        config(tmp_path / "structured", epochs=2, validation=str(chosen_by), early_stopping=1),
        config(tmp_path / "toolcall", track="toolcall", name="toolcall", epochs=1, workers=ONE),
    ]
    with seen_trainers() as seen:
        manifests = train_many(configs)
    assert [manifest.track for manifest in manifests] == ["structured", "toolcall"]
    assert [manifest.metrics["workers"] for manifest in manifests] == [2, 1]
    assert max(len(pids) for pids in seen) == 3
    figures = manifests[0].metrics
    assert [one["step"] for one in figures["evaluations"]] == [4, 8, 12][: len(figures["evaluations"])]
    assert figures["stopped_early"] is (figures["steps"] < 12)
    (chosen,) = [
        path.parent
        for path in checkpoints(configs[0].run_dir, step=0)
        if json.loads(path.read_text())["global_step"] == figures["best_step"]
    ]
    weights = [
        folder / "adapter_model.safetensors" for folder in (chosen, tmp_path / "structured/adapters" / manifests[0].id)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes(), "another checkpoint than the best one was published"
    assert [manifest.id for manifest in train_many(configs)] == [manifest.id for manifest in manifests]


def test_a_group_that_diverges_ends_at_once_publishes_nothing_and_lets_the_one_behind_it_finish(tmp_path: Path) -> None:
    room_for_one = {"count": 1, "per_worker": {"slot": 3, "CPU": 0.5}}
    good = config(tmp_path / "good", rows=8, epochs=1, workers=room_for_one)
    wild = config(
        tmp_path / "wild", rows=24, epochs=1, name="wild", learning_rate=1e36, warmup_steps=0, workers=room_for_one
    )
    with seen_trainers() as seen, pytest.raises(TrainingError, match=r"^training diverged at step \d of 6: loss nan"):
        train_many([wild, good])
    assert len(adapters.list_adapters(good.adapters_dir)) == 1
    assert not adapters.list_adapters(wild.adapters_dir)
    assert len(set().union(*seen)) == 2, "a group that diverged was started again"
    assert max(len(pids) for pids in seen) == 1, "two groups trained where there was room for one"


@pytest.mark.parametrize("workers", [{"count": 5, "per_worker": {"slot": 1}}, {"count": 1, "per_worker": {"GPU": 64}}])
def test_workers_that_can_never_be_had_are_refused_at_once(tmp_path: Path, workers: dict[str, Any]) -> None:
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"training.workers asks for \d+ (slot|GPU), the cluster has"):
        train(config(tmp_path, workers=workers), show=False)
    assert time.monotonic() - started < 10


def test_a_long_row_stops_everything_before_a_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.jsonl:1: \d+ tokens, more than max_length 16"):
        train(config(tmp_path, max_length=16), show=False)
    assert not trainers()


def test_workers_killed_too_often_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_FAILURES", 0)
    asked = config(tmp_path, workers=ONE)
    killer = KillWorker(asked.run_dir, 4, workers=1)
    with pytest.raises(ResourceError, match=r"were lost 1 times.*continues from the last checkpoint"):
        train(asked, show=False)
    killer.join()
