"""A training that a client host submits: a folder that not all nodes see is refused, and a lost node is said and replaced."""

from __future__ import annotations

import json
import time

import pytest
from hosts import needs_hosts
from ray_hosts import RayHosts

pytestmark = [needs_hosts, pytest.mark.heavy]


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
        "workers": "{count: 2, per_worker: {CPU: 0.5, slot: 1}}", "epochs": 20, "checkpoint_steps": 5, "max_length": 256,
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


def test_a_training_whose_node_is_lost_says_so_and_goes_on_on_the_next_node(cluster: RayHosts) -> None:
    shared = cluster.hosts.folder / "mnt"
    job = cluster["client"].start(command(cluster, "/mnt"))
    assert job.stdout is not None
    said: list[str] = []
    began = time.monotonic()
    lost = joined = 0.0
    for line in job.stdout:
        said.append(line)
        if not lost and list((shared / "run").rglob("checkpoint_*/adapter_model.safetensors")):
            cluster["worker-2"].off()
            lost = time.monotonic()
        if lost and not joined and "a worker was lost" in line:
            cluster.join("worker-4")
            joined = time.monotonic()
    assert job.wait(30) == 0, "".join(said)
    assert joined, "".join(said)
    assert list((shared / "adapters").rglob("adapter_model.safetensors"))
    print(
        f"a node lost in training: said after {joined - lost:.0f} s, ended {time.monotonic() - joined:.0f} s after the next"
        f" node had joined, {time.monotonic() - began:.0f} s in all"
    )
    cluster["worker-4"].off()
    cluster.join("worker-2")
