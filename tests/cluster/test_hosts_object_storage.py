"""Everything in object storage, submitted from the client host: nodes that share no disk prepare, evaluate, train and sweep.

Nodes and drivers are killed in the middle, and the same command goes on from the bucket. The store is a server of S3's routes on the host `llm`, which no node shares a disk with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping

import pytest
from bucket import Bucket, served
from chat_server import ChatServer, Reply, Request, answer
from hosts import await_, needs_hosts
from ray_hosts import RayHosts

pytestmark = [needs_hosts, pytest.mark.heavy]
ROWS, TRIALS = 60, 6


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})


def right(request: Request) -> Reply:
    return Reply(body=answer(reference(int(request.text.split()[-1]))).body, after_s=0.1)


@pytest.fixture(scope="module")
def bucket(cluster: RayHosts) -> Iterator[Bucket]:
    with served(cluster["llm"]) as made:
        yield made


def command(cluster: RayHosts, job: str, **settings: object) -> str:
    """The client's command."""
    parts = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return cluster.submitted(f"jobs/{job}.py", f"jobs/{job}.yaml", *parts)


def submitted(cluster: RayHosts, job: str, within_s: float = 170, **settings: object) -> str:
    """What a job says that the client submits; it must end well."""
    done = cluster["client"].run(command(cluster, job, **settings), within_s=within_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_driver(cluster: RayHosts, job: str) -> None:
    """kill -9 to the process of a job on the head."""
    head = cluster["head"]
    running = head.run(
        f"ps -eo pid,args | grep 'python jobs/{job}.py' | grep -v grep | awk '{{print $1}}'"
    ).stdout.split()
    assert running, f"no {job} runs on the head"
    head.run(f"kill -9 {' '.join(running)}", check=False)  # a shell around it may be gone by then


@pytest.fixture(scope="module")
def prepared(cluster: RayHosts, bucket: Bucket) -> Mapping[str, str]:
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n)} for n in range(ROWS + 48)]
    clone = cluster["client"].tmp / "home/slm_ray"
    (clone / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    submitted(
        cluster, "prepare", track="structured", source="rows.jsonl", out_dir=bucket.uri("prepared"), test_rows=ROWS,
        validation_rows=8,
    )  # fmt: skip
    return {split: bucket.uri(f"prepared/{split}.jsonl") for split in ("train", "validation", "test")}


def test_an_evaluation_over_nodes_ends_with_its_report_in_the_bucket_and_asks_nothing_twice(
    cluster: RayHosts, bucket: Bucket, prepared: Mapping[str, str]
) -> None:
    with cluster["llm"].listen(cluster["llm"].address) as door, ChatServer(right, listener=door) as server:
        settings = {
            "track": "structured", "examples": prepared["test"], "train": "null", "models": '["served:m"]',
            "run_dir": bucket.uri("run"), "endpoint": server.url, "shards": 3, "shard_resources": "{CPU: 0.5}",
            "generation": "{concurrency: 9, timeout_s: 20}", "declare": "null",
        }  # fmt: skip
        said = submitted(cluster, "evaluate", **settings)
        assert len(server.requests) == len(set(server.texts)) == ROWS
        again = submitted(cluster, "evaluate", **settings)
        assert len(server.requests) == ROWS
    assert "report: s3://bucket/run/report.json" in said and "report: s3://bucket/run/report.json" in again
    assert json.loads(bucket.read("run/report.json"))["provenance"]["rows_scored"] == ROWS
    assert b"/tmp/" not in bucket.read("run/config.yaml")


def test_a_group_over_two_nodes_whose_driver_is_killed_goes_on_from_the_bucket_and_publishes_there(
    cluster: RayHosts, bucket: Bucket, prepared: Mapping[str, str]
) -> None:
    settings = {
        "track": "structured", "train": prepared["train"], "run_dir": bucket.uri("training"),
        "adapters_dir": bucket.uri("adapters"), "workers": "{count: 2, per_worker: {CPU: 0.5, slot: 1}}", "epochs": 8,
        "checkpoint_steps": 5, "max_length": 256, "prove_on": "nothing",
    }  # fmt: skip

    def checkpoints() -> set[str]:
        names = [name for name in bucket.names("training/.checkpoints/") if name.endswith("/trainer_state.json")]
        return {name for name in names if "checkpoint_" in name}

    began = time.monotonic()
    job = cluster["client"].start(command(cluster, "train", **settings))
    await_(lambda: len(checkpoints()) > 1, 200, every_s=0.2, ended=job.poll)
    kill_driver(cluster, "train")
    cut_s = time.monotonic() - began
    assert job.wait(120) != 0
    assert not [name for name in bucket.names("adapters/") if name.endswith("manifest.json")]
    began = time.monotonic()
    said = submitted(cluster, "train", within_s=280, **settings)
    adapter = next(line.split()[1] for line in said.splitlines() if line.startswith("adapter "))
    manifest = json.loads(bucket.read(f"adapters/{adapter}/manifest.json"))
    metrics = manifest["metrics"]
    assert manifest["id"] == adapter and bucket.read(f"adapters/{adapter}/adapter_model.safetensors")
    assert metrics["resumed_from"] >= 5 and metrics["steps"] == metrics["resumed_from"] + metrics["steps_run"]
    print(
        f"a training over two nodes in a bucket, its driver killed after {cut_s:.0f} s: the same command went on from step"
        f" {metrics['resumed_from']} of {metrics['steps']} and published {time.monotonic() - began:.0f} s later"
    )


def test_a_sweep_that_loses_a_node_and_then_its_driver_trains_no_finished_trial_again(
    cluster: RayHosts, bucket: Bucket, prepared: Mapping[str, str]
) -> None:
    settings = {
        "validation": prepared["validation"], "training.train": prepared["train"], "training.run_dir": bucket.uri("swept"),
        "training.adapters_dir": bucket.uri("adapters"), "training.workers": "{count: 1, per_worker: {CPU: 0.5, slot: 1}}",
        "training.max_length": 256, "search.trials": TRIALS, "search.learning_rates": "[1.0e-3, 1.5e-3, 3.0e-3]", "search.epochs": 4, "search.reduction_factor": 1,
        "search.validation_rows": 4, "search.train_rows": "null",
    }  # fmt: skip

    def finished() -> dict[str, bytes]:
        return {name: bucket.read(name) for name in bucket.names("swept/sweep/") if name.endswith("/trial.json")}

    job = cluster["client"].start(command(cluster, "sweep", **settings))
    began = time.monotonic()
    await_(lambda: len(finished()) > 0, 200, every_s=0.5, ended=job.poll)  # it is in the bucket within 10 s of its end
    cluster["worker-2"].off()
    before = finished()
    lost = time.monotonic()
    await_(lambda: len(finished()) > len(before), 240, every_s=0.5, ended=job.poll)
    went_on_s = time.monotonic() - lost
    kill_driver(cluster, "sweep")
    job.kill()
    job.wait()
    kept = finished()
    assert len(kept) < TRIALS, "nothing was left to do for the second command"
    assert {name: kept[name] for name in before} == before
    resumed = time.monotonic()
    said = submitted(cluster, "sweep", within_s=280, **settings)  # on the node that is left
    after = finished()
    assert len(after) == TRIALS and {name: after[name] for name in kept} == kept, said
    assert "best: lr" in said and len(json.loads(bucket.read("swept/sweep.json"))["trials"]) == TRIALS
    print(
        f"a sweep of {TRIALS} trials by two nodes: {len(before)} finished when one was lost ({lost - began:.0f} s), the next {went_on_s:.0f} s"
        f" later; its driver killed with {len(kept)} finished: the same command trained the others in"
        f" {time.monotonic() - resumed:.0f} s and left those as they were"
    )
    cluster.join("worker-2")
