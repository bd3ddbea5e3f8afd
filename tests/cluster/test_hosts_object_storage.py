"""Everything in object storage, submitted from the client host: nodes that share no disk prepare, evaluate and train.

The store is a server of S3's routes on the host `llm`, which no node shares a disk with.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Request, answer
from hosts import needs_hosts
from ray_hosts import RayHosts

pytestmark = [needs_hosts, pytest.mark.heavy]
SERVER = Path(__file__).parents[1] / "unit" / "s3_server.py"
ROWS = 60


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})


def right(request: Request) -> Reply:
    return Reply(body=answer(reference(int(request.text.split()[-1]))).body, after_s=0.1)


class Bucket:
    """The bucket, as the nodes name it and as this process looks into it."""

    def __init__(self, cluster: RayHosts, port: int) -> None:
        self._cluster, self._port = cluster, port

    def uri(self, name: str) -> str:
        host = self._cluster["llm"].address
        return f"s3://anonymous@bucket/{name}?scheme=http&region=us-east-1&endpoint_override={host}:{self._port}"

    def read(self, name: str) -> bytes:
        with self._cluster["llm"].connect(self._cluster["llm"].address, self._port) as connection:
            connection.sendall(f"GET /bucket/{name} HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return body if b" 200 " in head.partition(b"\r\n")[0] else b""


@pytest.fixture(scope="module")
def bucket(cluster: RayHosts) -> Iterator[Bucket]:
    host = cluster["llm"]
    server: subprocess.Popen[str] = host.start(f"python3 {SERVER} {host.address}")
    assert server.stdout is not None
    yield Bucket(cluster, int(server.stdout.readline()))
    server.kill()
    server.wait()


def submitted(cluster: RayHosts, job: str, within_s: float = 170, **settings: object) -> str:
    """What a job says that the client submits; it must end well."""
    parts = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = cluster["client"].run(
        cluster.submitted(f"jobs/{job}.py", f"jobs/{job}.yaml", *parts), within_s=within_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prepared(cluster: RayHosts, bucket: Bucket) -> Mapping[str, str]:
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n)} for n in range(ROWS + 48)]
    clone = cluster["client"].tmp / "home/slm_ray"
    (clone / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    submitted(
        cluster, "prepare", track="structured", source="rows.jsonl", out_dir=bucket.uri("prepared"), test_rows=ROWS,
        validation_rows=8,
    )  # fmt: skip
    return {split: bucket.uri(f"prepared/{split}.jsonl") for split in ("train", "test")}


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


def test_a_group_over_two_nodes_trains_and_publishes_in_the_bucket(
    cluster: RayHosts, bucket: Bucket, prepared: Mapping[str, str]
) -> None:
    began = time.monotonic()
    said = submitted(
        cluster, "train", within_s=280, track="structured", train=prepared["train"], run_dir=bucket.uri("training"),
        adapters_dir=bucket.uri("adapters"), workers="{count: 2, per_worker: {CPU: 0.5, slot: 1}}", epochs=1,
        checkpoint_steps=5, max_length=256, prove_on="nothing",
    )  # fmt: skip
    adapter = next(line.split()[1] for line in said.splitlines() if line.startswith("adapter "))
    manifest = json.loads(bucket.read(f"adapters/{adapter}/manifest.json"))
    assert manifest["id"] == adapter and bucket.read(f"adapters/{adapter}/adapter_model.safetensors")
    print(f"trained over two nodes that share no disk in {time.monotonic() - began:.0f} s")


def test_a_loop_ends_with_a_verdict_and_a_page_in_the_bucket(
    cluster: RayHosts, bucket: Bucket, prepared: Mapping[str, str]
) -> None:
    began = time.monotonic()
    track = "{track: structured, source: rows.jsonl, validation_rows: 4, test_rows: 8, train_rows: 24}"
    said = submitted(
        cluster, "loop", within_s=440, run_dir=bucket.uri("loop"), tracks=f"[{track}]",
        **{
            "serving.adapters_dir": bucket.uri("published"), "training.epochs": 1, "training.max_length": 256,
            "evaluation.generation.max_tokens": 24, "training.workers": "{count: 1, per_worker: {CPU: 0.2, slot: 1}}",
        },
    )  # fmt: skip
    assert "page: s3://bucket/loop/report.html" in said
    assert b"<html" in bucket.read("loop/report.html") and b"structured" in bucket.read("loop/report.json")
    print(f"a loop from the client to the page in the bucket in {time.monotonic() - began:.0f} s")
