"""Which failures of a training get another attempt, and the one line said of the others. No Ray is started."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from slm_ray.config import TrainConfig, Workers
from slm_ray.errors import ConfigError, ResourceError, SlmRayError, TrainingError
from slm_ray.training import progress
from slm_ray.training.failures import GiveUp, full_disk, is_lost, run_error

CONFIG = TrainConfig(track="structured", train="t.jsonl", base="b", run_dir="runs/x", adapters_dir="runs/a")
GROUP = Workers(count=2, per_worker={"slot": 1})
BROKEN = RuntimeError(
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:51234"
)  # as torch 2.13 says it
KILLED = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: …", ActorDiedError())


@pytest.mark.parametrize(
    "error", [BROKEN, KILLED, ActorDiedError(), ConnectionResetError(), RuntimeError("NCCL error")]
)
def test_a_lost_worker_and_what_the_others_see_of_it_get_another_attempt_and_are_said(
    error: Exception, tmp_path: Path
) -> None:
    assert is_lost(error)
    told = tmp_path / "structured.json"
    give_up = GiveUp(CONFIG, "runs/x", told)
    give_up.after_exception(None, {0: KILLED, 1: ValueError("an odd thing to die of")})
    give_up.after_exception(None, {1: error})
    said = progress.line("structured", progress.read(told), waited_s=600.0)
    assert said.startswith(f"structured: a worker was lost (rank 1: {type(error).__name__})")
    assert "starts again from the last checkpoint" in said and "ray status" in said
    (tmp_path / "full").touch()
    GiveUp(CONFIG, "runs/x", tmp_path / "full" / "x.json").after_exception(None, {0: error})  # which cannot be written


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ConfigError("lora.target_modules: none"), ConfigError, "^lora.target_modules: none$"),
        (TrainingError("training diverged at step 3"), TrainingError, "^training diverged at step 3$"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            ResourceError,
            r"lower per_device_batch \(now 2\)",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ResourceError, "gradient_accumulation"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ResourceError,
            "no space left for the checkpoints of runs/x",
        ),
        (OSError("[Errno 27] Error writing bytes to file. Detail: File too large"), ResourceError, "no space left"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            ResourceError,
            "no space left",
        ),
        (KeyError("o_proj"), TrainingError, r"KeyError: 'o_proj'; its trace stands in runs/x/failure-\*.txt"),
        (ValueError(), TrainingError, "ValueError: no text"),
        (RuntimeError("line one\nline two"), TrainingError, "^(?!.*line two).*line one"),
    ],
)
def test_what_would_fail_again_ends_the_run_at_once_in_one_line(
    error: Exception, kind: type[SlmRayError], says: str
) -> None:
    assert not is_lost(error)
    with pytest.raises(kind, match=says) as raised:
        GiveUp(CONFIG, "runs/x", Path("runs/x/structured.json")).after_exception(None, {1: error})
    assert "\n" not in str(raised.value)
    ended = ControllerError(raised.value)
    assert run_error(ended, CONFIG, "runs/x", 3) is raised.value


def test_whether_the_group_waits_for_a_node_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "structured.json"
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for slots, says in ((4.0, "starts again from the last checkpoint"), (1.0, "no node has room for its group now")):
        monkeypatch.setattr(ray, "cluster_resources", lambda slots=slots: {"CPU": 8.0, "GPU": 4.0, "slot": slots})
        GiveUp(CONFIG.model_copy(update={"workers": GROUP}), "runs/x", told).after_exception(None, {1: KILLED})
        assert says in progress.line("structured", progress.read(told))


def test_a_full_disk_names_the_node_and_the_fullest_of_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"/tmp/local": 2_000_000, "/mnt/run": 7_000_000_000}

    def usage(place: str) -> SimpleNamespace:
        if place not in free:
            raise FileNotFoundError(place)
        return SimpleNamespace(free=free[place])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    told = full_disk(OSError(errno.ENOSPC, "No space left on device"), ("/mnt/run", "/tmp/local", "/gone"))
    assert str(told).startswith(
        f"no space left at /tmp/local on {socket.gethostname()} (2 MB are free): free some, then"
    )
    torch_s = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert full_disk(torch_s, ("/mnt/run",)) is not None
    assert (
        full_disk(RuntimeError("CUDA out of memory"), ("/mnt/run",)) is None and full_disk(BROKEN, ("/gone",)) is None
    )


def test_a_cause_of_its_own_counts_whatever_the_other_ranks_saw_of_it() -> None:
    for error in (TrainingError("diverged"), OSError(errno.ENOSPC, "x"), RuntimeError("CUDA out of memory")):
        with pytest.raises(SlmRayError):
            GiveUp(CONFIG, "runs/x", Path("runs/x/structured.json")).after_exception(None, {0: BROKEN, 1: error})


def test_workers_lost_too_often_and_a_ray_that_fails_say_how_to_go_on() -> None:
    lost = WorkerGroupError("…", {0: KILLED, 1: BROKEN})
    assert str(run_error(lost, CONFIG, "runs/x", 3)).startswith("training workers were lost 3 times")
    broken = run_error(ControllerError(ValueError("snapshot\nof 3 lines")), CONFIG, "runs/x", 3)
    assert "ValueError: snapshot; see `ray status`" in str(broken)
    assert "remove runs/x to start from its beginning" in str(broken)
    gone = run_error(ActorDiedError(), CONFIG, "runs/x", 3)
    assert isinstance(gone, ResourceError) and "the same command continues from the last checkpoint" in str(gone)
