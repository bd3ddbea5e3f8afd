"""An evaluation that a client host submits, over nodes that share no disk: spread, a lost node, a cut cable, a new node.

The endpoint is a real HTTP server on a host of its own that counts what it would have billed and who asked.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from chat_server import ChatServer, Reply, Request, answer
from hosts import await_, environment, needs_hosts
from ray_hosts import RayHosts

pytestmark = [needs_hosts, pytest.mark.heavy]
IN_FLIGHT, SHARDS = 9, 3
HOLD = """
import os, time, ray
ray.init(log_to_driver=False)

class Holder:
    def held(self):
        return True

holders = [ray.remote(Holder).options(num_cpus=0, resources={"slot": 1}).remote() for _ in range(2)]
ray.get([holder.held.remote() for holder in holders])
print("held", flush=True)
while not os.path.exists("/tmp/release"):
    time.sleep(0.1)
"""


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})


@contextmanager
def endpoint(cluster: RayHosts, after_s: float, *, on_head: bool = False) -> Iterator[ChatServer]:
    """A server on the host `llm`, or on the loopback of the head, that answers every row rightly after a while."""

    def right(request: Request) -> Reply:
        return Reply(body=answer(reference(int(request.text.split()[-1]))).body, after_s=after_s)

    host, address = (cluster["head"], "127.0.0.1") if on_head else (cluster["llm"], cluster["llm"].address)
    with host.listen(address) as door, ChatServer(right, listener=door) as server:
        yield server


def command(
    cluster: RayHosts, server: ChatServer | None, rows: int, run_dir: str, *, known: Mapping[str, str] | None = None, **changes: object
) -> str:  # fmt: skip
    """The client's command; its rows lie in its own clone, which Ray copies. `known` is in the job's environment."""
    lines = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n)} for n in range(rows)]
    (cluster["client"].tmp / "home/slm_ray/rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "track": "structured", "examples": "rows.jsonl", "train": "", "models": '["served:m"]', "run_dir": run_dir,
        "endpoint": server.url if server else "", "shards": SHARDS, "shard_resources": "{CPU: 0.5}",
        "generation": f"{{concurrency: {IN_FLIGHT}, timeout_s: 20}}", "declare": "null", **changes,
    }  # fmt: skip
    return cluster.submitted(
        "jobs/evaluate.py",
        "jobs/evaluate.yaml",
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
        known=known,
    )


def ended(job: subprocess.Popen[str], within_s: float = 170) -> str:
    said, _ = job.communicate(timeout=within_s)
    assert job.returncode == 0, said
    return said


def asking(cluster: RayHosts, server: ChatServer, calls: int) -> str:
    """A worker that asks, once so many calls were made in all."""
    workers = {cluster[name].address: name for name in ("worker-1", "worker-2")}
    await_(lambda: len(server.requests) >= calls and any(request.peer in workers for request in server.requests[-9:]))
    return next(workers[request.peer] for request in reversed(server.requests) if request.peer in workers)


def twice(server: ChatServer) -> int:
    """How many calls were asked beyond one for each row."""
    return len(server.requests) - len(set(server.texts))


def rows_scored(cluster: RayHosts, run_dir: str) -> int:
    (report,) = [
        json.loads((cluster[name].tmp / run_dir.removeprefix("/tmp/") / "report.json").read_text())
        for name in ("head", "worker-1", "worker-2")
        if cluster[name].is_on and (cluster[name].tmp / run_dir.removeprefix("/tmp/") / "report.json").exists()
    ]
    assert report["models"]["served:m"]["metrics"]["exact_match"] == 1.0
    return int(report["provenance"]["rows_scored"])


def test_shards_on_nodes_that_see_no_run_folder_ask_every_row_once(cluster: RayHosts) -> None:
    with endpoint(cluster, 0.2) as server:
        ended(cluster["client"].start(command(cluster, server, 60, "/tmp/spread")))
        asked = Counter(request.peer for request in server.requests)
    assert (len(server.requests), twice(server)) == (60, 0)
    assert rows_scored(cluster, "/tmp/spread") == 60
    nodes = {cluster[name].address for name in ("head", "worker-1", "worker-2")}
    assert set(asked) <= nodes and len(asked) > 1, "Ray spreads shards as well as it can, and promises no more"
    print(f"60 rows, asked once each, by node {dict(asked)}")


def test_shards_of_an_endpoint_on_loopback_are_on_the_driver_s_node_or_are_refused(cluster: RayHosts) -> None:
    with endpoint(cluster, 0.1, on_head=True) as server:
        ended(cluster["client"].start(command(cluster, server, 60, "/tmp/loopback")))
        assert (len(server.requests), twice(server)) == (60, 0)
        elsewhere = command(cluster, server, 60, "/tmp/elsewhere", shard_resources="{slot: 0.3}")
        refused = cluster["client"].run(elsewhere, within_s=120, check=False)
        assert refused.returncode != 0 and len(server.requests) == 60
    assert rows_scored(cluster, "/tmp/loopback") == 60
    assert "this node has 0 slot, and served:m is asked at 127.0.0.1" in refused.stdout, refused.stdout


def test_a_node_that_loses_its_power_costs_at_most_what_it_had_in_flight(cluster: RayHosts) -> None:
    with endpoint(cluster, 0.5) as server:
        job = cluster["client"].start(command(cluster, server, 150, "/tmp/power"))
        victim = asking(cluster, server, 40)
        cluster[victim].off()
        began = time.monotonic()
        ended(job)
    print(
        f"power cut after 40 of 150 calls: ended {time.monotonic() - began:.0f} s later, {twice(server)} calls asked twice"
    )
    assert rows_scored(cluster, "/tmp/power") == 150
    assert twice(server) <= IN_FLIGHT
    cluster.join(victim)


def test_a_cable_that_is_out_for_half_a_minute_costs_at_most_what_was_in_flight(cluster: RayHosts) -> None:
    with endpoint(cluster, 0.5) as server:
        job = cluster["client"].start(command(cluster, server, 150, "/tmp/cable"))
        victim = asking(cluster, server, 40)
        cluster.hosts.cable(victim, plugged=False)
        time.sleep(30)
        still = job.poll() is None
        cluster.hosts.cable(victim, plugged=True)
        began = time.monotonic()
        ended(job)
    print(f"cable out for 30 s: ended {time.monotonic() - began:.0f} s after, {twice(server)} calls asked twice")
    assert still and rows_scored(cluster, "/tmp/cable") == 150
    assert twice(server) <= IN_FLIGHT
    assert cluster[victim].address in {node["NodeManagerAddress"] for node in cluster.nodes()}, "Ray gave the node up"


def test_a_node_that_joins_while_work_waits_is_used_at_once(cluster: RayHosts) -> None:
    known = environment({"RAY_ADDRESS": f"{cluster['head'].address}:6379", "RAY_AUTH_MODE": "token"})
    holder = cluster["head"].start(f"{known} cd ~/slm_ray && python -c {shlex.quote(HOLD)}")
    assert holder.stdout is not None
    try:
        assert any(line == "held\n" for line in holder.stdout)
        with endpoint(cluster, 0.1) as server:
            asks = command(cluster, server, 20, "/tmp/joined", shards=1, shard_resources="{slot: 1}")
            job = cluster["client"].start(asks)
            time.sleep(15)
            assert not server.requests
            cluster.join("worker-3")
            waited = await_(lambda: len(server.requests) > 0, 60)
            ended(job)
    finally:  # else every later test would wait for these slots
        cluster["head"].run("touch /tmp/release")
    assert holder.wait(30) == 0
    assert {request.peer for request in server.requests} == {cluster["worker-3"].address}
    print(f"the first call came {waited:.1f} s after the node had joined")
    cluster.leave("worker-3")
