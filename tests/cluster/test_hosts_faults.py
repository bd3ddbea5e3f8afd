"""What is wrong with a node or its line, and the work goes on or says which node it is: a full disk, a wrong clock, a bad line."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterator

import pytest
from hosts import Host, await_, needs_hosts
from ray_hosts import RayHosts
from test_hosts_evaluation import IN_FLIGHT, command, ended, endpoint, rows_scored, twice

from slm_ray.runlog import Response, records

pytestmark = [needs_hosts, pytest.mark.heavy]
# libfaketime moves the clock of C++ too, and with it Python's `sleep`, which fails then (EINVAL).
AHEAD = """
import time

shown, shown_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: shown() + 60, lambda: shown_ns() + 60 * 10**9
"""
ON_EACH_WORKER = {"shards": 3, "shard_resources": "{slot: 1}"}
SMALL = "mkdir -p {0} && mount -t tmpfs -o size={1}m tmpfs {0}"


@contextlib.contextmanager
def full(host: Host, folder: str) -> Iterator[None]:
    """Meanwhile there is no room in a small file system of a host's."""
    host.run(f"cat /dev/zero > {folder}/filling", check=False)
    try:
        yield
    finally:
        host.run(f"rm {folder}/filling")


@pytest.fixture(scope="module")
def odd(cluster: RayHosts) -> Iterator[str]:
    """A further worker whose `/tmp/ray` is small, and in whose Python processes the clock is a minute ahead."""
    known = {
        "BAD_RUNTIME_ENV_CACHE_TTL_SECONDS": "1",
        "PYTHONPATH": "/tmp/ahead",
    }  # else a failure of the disk is remembered
    ahead = f"mkdir /tmp/ahead && echo {shlex.quote(AHEAD)} > /tmp/ahead/sitecustomize.py"
    cluster.join("worker-3", before=f"{SMALL.format('/tmp/ray', 300)} && {ahead}", known=known)
    yield "worker-3"
    cluster.leave("worker-3")


def test_a_clock_that_is_a_minute_off_changes_nothing_and_the_doctor_shows_it(cluster: RayHosts, odd: str) -> None:
    with endpoint(cluster, 0.3) as server:
        ended(cluster["client"].start(command(cluster, server, 60, "/tmp/clock", **ON_EACH_WORKER)))
        by_odd = sum(request.peer == cluster[odd].address for request in server.requests)
    assert (len(server.requests), rows_scored(cluster, "/tmp/clock")) == (60, 60) and by_odd > 0
    report = json.loads((cluster["head"].tmp / "clock/report.json").read_text())
    assert 0.3 <= report["models"]["served:m"]["latency_s"]["p50"] < 10, "a minute has come in between two clocks"
    logs = (cluster["head"].tmp / "clock/log").glob("shard-*.jsonl")
    lines = [line for path in logs for line in records(path.read_bytes(), str(path))]
    dated_s = [line.answered_ns / 1e9 for line in lines if isinstance(line, Response)]
    assert len(dated_s) == 60 and max(dated_s) - min(dated_s) < 45, "answers of one node are dated by another clock"
    examined = cluster["client"].run(
        cluster.submitted("jobs/doctor.py", "jobs/doctor.yaml", "--set", "run_dir=/tmp", "--set", "adapters_dir=/tmp"),
        within_s=120, check=False,
    ).stdout  # fmt: skip
    wrong = re.findall(r"(worker-\d|head) \(\S+\): clock: (\S+) s from the job's node", examined)
    # Ray says the end of a failed job's log twice.
    assert {name for name, _ in wrong} == {odd} and 55 < float(wrong[0][1]) < 65, examined
    assert not re.search(r"\): (token|answer):", examined), examined
    print(f"a clock a minute ahead: 60 rows once each, {by_odd} by that node; doctor: {wrong[0][1]} s")


def test_a_disk_that_is_full_on_one_node_stops_no_running_work_and_new_work_names_the_node(
    cluster: RayHosts, odd: str
) -> None:
    with endpoint(cluster, 0.3) as server:
        job = cluster["client"].start(command(cluster, server, 60, "/tmp/filled", **ON_EACH_WORKER))
        await_(lambda: any(request.peer == cluster[odd].address for request in server.requests), ended=job.poll)
        with full(cluster[odd], "/tmp/ray"):
            ended(job)
            assert (len(server.requests), rows_scored(cluster, "/tmp/filled")) == (60, 60)
            further = command(cluster, server, 20, "/tmp/refused", **ON_EACH_WORKER)  # other rows: a package to unpack
            refused = cluster["client"].run(further, within_s=120, check=False)
            (line, *_) = [each for each in refused.stdout.splitlines() if "cannot be started on" in each] or [""]
            assert refused.returncode != 0 and len(server.requests) == 60
            assert f"{odd} ({cluster[odd].address})" in line and "No space left" in line, refused.stdout
            assert "worker-1 (" not in line and "worker-2 (" not in line
        ended(cluster["client"].start(further))
    assert (len(server.requests), rows_scored(cluster, "/tmp/refused")) == (80, 20)
    print(f"full disk on {odd}: running work ended; new work: {line.strip()}; freed, the same command ended")


def test_a_full_run_folder_ends_the_run_in_a_line_that_names_the_node_and_the_same_command_goes_on(
    cluster: RayHosts,
) -> None:
    head, run_dir = cluster["head"], "/tmp/small/run"
    head.run(SMALL.format("/tmp/small", 20))
    with endpoint(cluster, 0.3) as server:
        job = cluster["client"].start(command(cluster, server, 150, run_dir))
        await_(lambda: len(server.requests) >= 30, ended=job.poll)
        with full(head, "/tmp/small"):
            said, _ = job.communicate(timeout=90)
            asked = len(server.requests)
        assert job.returncode != 0 and "cannot be written on head (No space left on device)" in said, said
        ended(cluster["client"].start(command(cluster, server, 150, run_dir)))
    report = json.loads(head.run(f"cat {run_dir}/report.json").stdout)
    assert report["provenance"]["rows_scored"] == 150 and twice(server) <= IN_FLIGHT
    print(
        f"full run folder: ended after {asked} of 150 calls; the same command ended it, {twice(server)} calls asked twice"
    )


def test_a_line_that_is_late_and_loses_packets_costs_no_call(cluster: RayHosts) -> None:
    with contextlib.ExitStack() as lines, endpoint(cluster, 0.2) as server:
        for name in ("worker-1", "worker-2"):
            lines.enter_context(cluster.hosts.poor_line(name, delay_s=0.02, lost_share=0.01))
        began = time.monotonic()
        ended(cluster["client"].start(command(cluster, server, 90, "/tmp/poor")))
        took_s = time.monotonic() - began
    assert (len(server.requests), twice(server), rows_scored(cluster, "/tmp/poor")) == (90, 0, 90)
    print(
        f"20 ms each way and 1 % of packets lost on two of three nodes' lines: 90 rows once each, {took_s:.0f} s in all"
    )
