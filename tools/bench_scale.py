"""What more nodes bring an evaluation, and what a line of many trainings costs the head. Several nodes on one machine.

Nodes are Ray's own processes (raylets), each with its share of this machine and no network between them: what is shown is
the work of Ray and of this program, and neither a network nor a disk.

Evaluation: on each number of nodes one shard a node, `in_flight` calls each, an endpoint that takes `latency_s` for every
answer. The rate is the endpoint's: from the first request to the last reply. It is linear until the machine's cores or the
endpoint's thousand connections are used up, so choose a latency that keeps them idle.

Trainings: `slots` of a made-up resource in `raylets` parts, and as many trainings that hold theirs for a moment and do
nothing; they are Ray's placement groups and our line, without a process of their own. `delay` is the time from when a
training could have begun (those before it had begun, and enough slots were free) until it had its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from slm_ray.command import output_folder, run
from slm_ray.tables import format_table
from tools.config import ScaleBenchConfig
from tools.race import Lap, endpoint, get, write_rows

_OBJECT_STORE_BYTES = 80_000_000
_IDLE_S = 10.0
NODE, SLOT = "node_of_its_own", "slot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One of the line: the slots it wanted, when it had them and when it gave them back, in seconds from the first."""

    slots: int
    began_s: float
    ended_s: float


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A Ray whose head has no slots, behind a token; nodes are added by whoever uses it."""
    from ray.cluster_utils import Cluster

    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES},
    )
    os.environ["RAY_ADDRESS"] = started.address
    try:
        yield started
    finally:
        import ray

        ray.shutdown()
        started.shutdown()
        del os.environ["RAY_ADDRESS"]


def evaluated(config: ScaleBenchConfig, nodes: int, folder: Path) -> Lap:
    """An evaluation by a shard on each of `nodes` nodes, as the endpoint saw it."""
    import json

    import ray

    from slm_ray.config import EvaluateConfig
    from slm_ray.evaluation import evaluate

    rows = write_rows(folder, config.rows_per_node * nodes)
    with endpoint(config.latency_s, ray.util.get_node_ip_address()) as url:  # of loopback each node has its own
        asked = EvaluateConfig(
            track="chat", examples=str(rows), models=("served:bench",), run_dir=str(folder / "run"), endpoint=url,
            generation={"concurrency": config.in_flight * nodes}, shards=nodes, shard_resources={NODE: 1},
        )  # fmt: skip
        began_s = time.perf_counter()
        evaluate(asked)
        whole_s = time.perf_counter() - began_s
        return Lap(name=str(nodes), whole_s=whole_s, **json.loads(get(f"{url}/span")))


def evaluations(config: ScaleBenchConfig, folder: Path) -> list[str]:
    """The table of evaluations, the fewest nodes first."""
    lines = [["nodes", "rows", "asking, s", "rows/s", "of linear", "most in flight", "reply, s", "CPU of the machine"]]
    first = 0.0
    with cluster() as started:
        for nodes in config.nodes:
            while len(started.worker_nodes) < nodes:
                started.add_node(num_cpus=1, resources={NODE: 1}, object_store_memory=_OBJECT_STORE_BYTES)
            print(f"evaluation on {nodes} nodes", file=sys.stderr, flush=True)
            psutil.cpu_percent()
            lap = evaluated(config, nodes, folder / str(nodes))
            busy = psutil.cpu_percent()
            rate = lap.calls / lap.span_s
            first = first or rate / nodes
            print(f"{rate:.1f} rows/s", file=sys.stderr, flush=True)
            lines.append(
                [
                    str(nodes), str(lap.calls), f"{lap.span_s:.1f}", f"{rate:.1f}", f"{rate / (first * nodes):.2f}",
                    str(lap.most_in_flight), f"{lap.reply_s:.2f}", f"{busy:.0f} %",
                ]
            )  # fmt: skip
    return format_table(lines, left=())


def sizes(config: ScaleBenchConfig) -> list[int]:
    """What each training of the line wants, drawn by seed."""
    draw = random.Random(config.seed)
    return [draw.choice(config.wants) for _ in range(config.trainings)]


def delays_s(line: Sequence[Training], slots: int) -> list[float]:
    """For each training, the seconds from when all before it had begun and enough slots were free until it began."""
    found, before_s = [], 0.0
    for place, one in enumerate(line):
        running = sorted(line[:place], key=lambda other: other.ended_s)
        free = slots - sum(other.slots for other in running if other.ended_s > before_s)
        could_s = before_s
        for other in (other for other in running if other.ended_s > before_s):
            if free >= one.slots:
                break
            free, could_s = free + other.slots, other.ended_s
        found.append(max(0.0, one.began_s - could_s))
        before_s = max(before_s, one.began_s)
    return found


def trained(config: ScaleBenchConfig) -> tuple[list[Training], float]:
    """The whole line through `in_line`, in the order of the line, and the seconds until the last one had begun."""
    import ray

    from slm_ray.training.slots import Turn, in_line

    class Nothing:
        """Trainings of no work: each call is one."""

        async def hold(self, seconds: float) -> None:
            """A training."""
            await asyncio.sleep(seconds)

    wants, draw = sizes(config), random.Random(config.seed + 1)
    holds = [draw.uniform(0.5, 1.5) * config.hold_s for _ in wants]
    nothing = ray.remote(num_cpus=0, max_concurrency=config.trainings)(Nothing).remote()
    ray.get(nothing.hold.remote(0.0))
    began_s: list[float] = []
    order: list[int] = []

    def start(turn: Turn) -> Any:
        began_s.append(time.perf_counter())
        order.append(turn.number)
        return nothing.hold.remote(holds[turn.number])

    zero_s = time.perf_counter()
    in_line([[{SLOT: 1.0}] * want for want in wants], start)
    assert order == sorted(order), "somebody was overtaken"
    line = [
        Training(slots=want, began_s=began - zero_s, ended_s=began - zero_s + hold)
        for want, began, hold in zip(wants, began_s, holds, strict=True)
    ]
    return line, began_s[-1] - zero_s


def controller() -> psutil.Process:
    """Ray's controller (GCS) among this process's own."""
    return next(one for one in psutil.Process().children(recursive=True) if one.name().startswith("gcs_server"))


def busy_s(process: psutil.Process) -> float:
    """Seconds of processor time that it has taken so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def trainings(config: ScaleBenchConfig) -> list[str]:
    """What the line cost, as lines."""
    from slm_ray import cluster as connected

    with cluster() as started:
        for number in range(config.raylets):
            print(f"raylet {number + 1} of {config.raylets}", file=sys.stderr, flush=True)
            own = config.slots // config.raylets
            started.add_node(num_cpus=0, resources={SLOT: own}, object_store_memory=_OBJECT_STORE_BYTES)
        connected.connect()
        driver, head = psutil.Process(), controller()
        before_s = busy_s(head)
        time.sleep(_IDLE_S)
        idle = (busy_s(head) - before_s) / _IDLE_S
        before_s, before_bytes, began_s = busy_s(head), driver.memory_info().rss, time.perf_counter()
        print(f"{config.trainings} trainings", file=sys.stderr, flush=True)
        line, until_last_s = trained(config)
        took_s = time.perf_counter() - began_s
        spent_s, grown = busy_s(head) - before_s, driver.memory_info().rss - before_bytes
        head_bytes = head.memory_info().rss
    late = sorted(delays_s(line, config.slots // config.raylets * config.raylets))
    return [
        f"{config.trainings} trainings that want {', '.join(map(str, config.wants))} of {config.slots} slots and hold them "
        f"{config.hold_s:g} s on average, {config.raylets} raylets on one machine (simulated: slots and work)",
        f"all began in their order, the last after {until_last_s:.1f} s; {took_s:.1f} s in all",
        f"delay of a training: median {late[len(late) // 2] * 1000:.0f} ms, 95 % {late[int(0.95 * len(late))] * 1000:.0f} ms, "
        f"most {late[-1] * 1000:.0f} ms",
        f"driver: {before_bytes / 2**20:.0f} MiB, {grown / 2**20:+.1f} MiB for the line",
        f"controller: {head_bytes / 2**20:.0f} MiB, {100 * idle:.1f} % of a core idle, {100 * spent_s / took_s:.1f} % with "
        f"the line ({1000 * spent_s / config.trainings:.1f} ms a training)",
    ]


def main(config: ScaleBenchConfig) -> None:
    """Measure what `parts` names, and print."""
    os.environ |= {  # before Ray is imported, which reads them once
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "150",
    }  # fmt: skip
    folder = Path(output_folder(config.out_dir)).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    if "evaluation" in config.parts:
        print("\n".join(evaluations(config, folder)), flush=True)
    if "trainings" in config.parts:
        print("\n".join(trainings(config)), flush=True)


if __name__ == "__main__":
    run(main, ScaleBenchConfig, __doc__)
