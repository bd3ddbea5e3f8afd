"""What the endpoint costs to start and to change: seconds, CPU and memory of each process, and what clients see meanwhile.

It deploys the endpoint of `serving` to a Ray of its own, sums the memory of that Ray's processes at rest (PSS: a page that
several share is counted once), then deploys it three times more, each time with something else changed, under a client that
asks all the time and one that waits for a long answer. Linux only.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import yaml

from slm_ray import cluster
from slm_ray.command import run
from slm_ray.config import Serving
from slm_ray.serving import Endpoint, deploy, shutdown
from tools.config import DeployBenchConfig

_PAUSE_S = 0.1


def main(config: DeployBenchConfig) -> None:
    """Start, look, change, and print what was seen."""
    cluster.start_local(log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measure(config, Path(scratch))
    finally:
        shutdown()
        ray.shutdown()


def measure(config: DeployBenchConfig, scratch: Path) -> None:
    began = time.perf_counter()
    endpoint = deploy(config.serving)
    print(f"deployed and answering after {time.perf_counter() - began:.1f} s", flush=True)
    time.sleep(3)
    at_rest()
    (scratch / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    stand_in = {"deployment": "stand-in", "demonstrations": 1, "pools": {"structured": str(scratch / "rows.jsonl")}}
    with_surge = changed(config.serving, scratch, max_num_seqs=32, max_surge_percent=100)
    without = changed(config.serving, scratch, max_num_seqs=16, max_surge_percent=0)
    for what, serving, options in (
        ("nothing changed", config.serving, {}), ("a stand-in", config.serving, {"stand_in": stand_in}),
        ("the engine, the next one beside the old one", with_surge, {}),
        ("the engine, one after the other", without, {}),
    ):  # fmt: skip
        print(f"{what}: {under_load(endpoint, serving, options, config.answer_tokens)}", flush=True)


def changed(serving: Serving, scratch: Path, *, max_num_seqs: int, max_surge_percent: int) -> Serving:
    """The same endpoint with another engine setting, so that its engine has to start anew."""
    tree: dict[str, Any] = yaml.safe_load(Path(serving.config).read_text(encoding="utf-8"))
    model = tree["applications"][0]["args"]["llm_configs"][0]
    model["engine_kwargs"]["max_num_seqs"] = max_num_seqs
    model["deployment_config"]["max_surge_percent"] = max_surge_percent
    path = scratch / f"{max_num_seqs}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return serving.model_copy(update={"config": str(path)})


def at_rest() -> None:
    """Memory and CPU of this process and of every process of its Ray, the largest first."""
    total, rows = 0.0, []
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline())
            times = process.cpu_times()
            rows.append((process.memory_full_info().pss / 2**20, times.user + times.system, name))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    for pss, cpu_s, name in sorted(rows, reverse=True):
        total += pss
        print(f"  {pss:5.0f} MiB  {cpu_s:5.1f} s of CPU  {name.strip()[:90]}")
    print(f"  {total:5.0f} MiB in {len(rows)} processes, {sum(row[1] for row in rows):.0f} s of CPU", flush=True)


def under_load(endpoint: Endpoint, serving: Serving, options: Mapping[str, Any], tokens: int) -> str:
    """What two clients see while the endpoint is deployed with `serving`, and how long that takes."""
    seen: list[tuple[float, str, float]] = []
    long: list[str] = []
    done = threading.Event()

    def asks() -> None:
        while not done.is_set():
            began = time.perf_counter()
            seen.append((began, ask(endpoint, 4), time.perf_counter() - began))
            time.sleep(_PAUSE_S)

    clients = [threading.Thread(target=asks), threading.Thread(target=lambda: long.append(ask(endpoint, tokens)))]
    for client in clients:
        client.start()
    time.sleep(1)
    began = time.perf_counter()
    try:
        deploy(serving, **options)
    finally:
        took_s = time.perf_counter() - began
        done.set()
        for client in clients:
            client.join()
    statuses = Counter(status for _, status, _ in seen)
    bad = [at for at, status, _ in seen if status != "200"]
    refused_s = bad[-1] - bad[0] if bad else 0.0
    return (
        f"{took_s:.1f} s; answers {dict(statuses)}, the slowest {max(wait for *_, wait in seen):.1f} s, refused for"
        f" {refused_s:.1f} s; the long answer of {tokens} tokens: {long[0]}"
    )


def ask(endpoint: Endpoint, tokens: int) -> str:
    """The status of one answer, with Retry-After where there is one, or what kept it from coming."""
    body = {"messages": [{"role": "user", "content": "tell me"}], "max_tokens": tokens, "ignore_eos": True}
    try:
        reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=300, trust_env=False)
    except httpx.HTTPError as error:
        return type(error).__name__
    wanted = reply.headers.get("retry-after")
    return f"{reply.status_code}, Retry-After {wanted}" if wanted else str(reply.status_code)


if __name__ == "__main__":
    run(main, DeployBenchConfig, __doc__)
