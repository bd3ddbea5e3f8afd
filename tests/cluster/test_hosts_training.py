"""A training that a client host submits: a folder that not all nodes see is refused, and a lost node is said and replaced."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from hosts import await_, needs_hosts
from ray_hosts import RayHosts

pytestmark = [needs_hosts, pytest.mark.heavy]
EPOCHS, STEPS = 6, 36


def command(cluster: RayHosts, folder: str, **changes: object) -> str:
    """The client's command: a group of two workers with a slot each, so one on each worker node."""
    rows = [
        {
            "prompt": f"question {n}",
            "completion": json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"}),
        }
        for n in range(48)
    ]
    clone = cluster["client"].tmp / "home/slm_ray"
    (clone / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "track": "structured", "train": "train.jsonl", "run_dir": f"{folder}/run", "adapters_dir": f"{folder}/adapters",
        "workers": "{count: 2, per_worker: {CPU: 0.5, slot: 1}}", "epochs": EPOCHS, "checkpoint_steps": 5, "max_length": 256,
        "prove_on": "nothing", **changes,
    }  # fmt: skip
    return cluster.submitted(
        "jobs/train.py",
        "jobs/train.yaml",
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    )


def test_a_folder_that_the_workers_do_not_see_is_refused_and_each_of_them_is_named(cluster: RayHosts) -> None:
    for name in ("worker-1", "worker-2"):
        cluster[name].run("mkdir -p /tmp/mine/run")  # a folder of that name is not enough
    job = cluster["client"].run(command(cluster, "/tmp/mine"), within_s=170, check=False)
    told, *_ = [line for line in job.stdout.splitlines() if "is not seen by" in line]  # which Ray repeats at the end
    assert job.returncode != 0
    assert "run_dir /tmp/mine/run" in told
    assert f"worker-1 ({cluster['worker-1'].address})" in told and f"worker-2 ({cluster['worker-2'].address})" in told
    assert "head" not in told  # it has no slot, so nothing is trained there
    assert not list((cluster["head"].tmp / "mine/run").glob(".seen-*"))


def checkpoints(run: Path) -> list[int]:
    """The steps of the checkpoints that lie there, as their files say."""
    found = []
    for state in run.rglob("checkpoint_*/trainer_state.json"):
        with contextlib.suppress(OSError, ValueError):  # which is written, or has been thrown away meanwhile
            found.append(int(json.loads(state.read_text())["global_step"]))
    return sorted(found)


def test_a_training_whose_node_is_lost_says_so_and_goes_on_on_the_next_node(cluster: RayHosts) -> None:
    shared = cluster.hosts.folder / "mnt"
    began = time.monotonic()
    job = cluster["client"].start(command(cluster, "/mnt"))
    said: list[str] = []

    def listen() -> None:
        assert job.stdout is not None
        said.extend(job.stdout)

    def is_said() -> bool:
        return any("a worker was lost" in line for line in said)

    threading.Thread(target=listen, daemon=True).start()
    await_(lambda: len(checkpoints(shared / "run")) > 1, 170, every_s=0.02, ended=job.poll)
    cluster["worker-2"].off()
    lost = time.monotonic()
    kept = checkpoints(shared / "run")
    await_(is_said, 240, ended=job.poll, why=lambda: "".join(said))
    said_s = time.monotonic() - lost
    cluster.join("worker-4")
    joined = time.monotonic()
    assert job.wait(300) == 0, "".join(said)
    (manifest,) = [json.loads(path.read_text()) for path in (shared / "adapters").rglob("manifest.json")]
    metrics = manifest["metrics"]
    assert any("no node has room for its group now: it waits for one" in line for line in said), "".join(said)
    assert metrics["steps"] == STEPS == metrics["resumed_from"] + metrics["steps_run"]
    assert metrics["resumed_from"] >= kept[-2], "the checkpoint before the newest was whole when the node went"
    print(
        f"a node lost in training at a checkpoint of step {kept[-1]}: said after {said_s:.0f} s, went on from step"
        f" {metrics['resumed_from']} of {STEPS}, ended {time.monotonic() - joined:.0f} s after the next node had joined,"
        f" {time.monotonic() - began:.0f} s in all"
    )
    cluster.leave("worker-4")
    cluster.join("worker-2")
