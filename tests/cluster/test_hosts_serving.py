"""Our endpoint on several nodes, asked from other hosts while nodes are lost: that of an engine and a front, and the head.

An engine of the tiny base and a front on each worker. The client is the openai library with retries, on the host `client`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hosts import ROOT, await_, needs_hosts
from ray_hosts import RayHosts
from test_hosts_evaluation import IN_FLIGHT, command, ended, endpoint, rows_scored, twice

pytestmark = [needs_hosts, pytest.mark.heavy]
FRONT_PORT = 30000  # of a node's first front; Serve's proxy, at 8000, is on the head alone
KEY, KEY_FILE = "0123456789abcdef" * 4, "/tmp/home/key"
BASE = "/tmp/home/slm_ray/data/tiny_base"
DEPLOY = """
import os
from slm_ray.config import Serving
from slm_ray.serving import deploy
os.environ["SLM_RAY_API_KEY_FILE"] = {key!r}
made = Serving(config="/tmp/home/two.yaml", base={base!r}, adapters_dir="/tmp/none", host="0.0.0.0", keep_alive=True)
print(deploy(made).url)
"""
STOP = "from slm_ray import cluster, serving; cluster.connect(); serving.shutdown()"
STATUS = """
import json, ray
from ray import serve
ray.init(log_to_driver=False)
found = serve.status().applications["slm-ray-8000"]
print(json.dumps([found.status, {name: each.replica_states for name, each in found.deployments.items()}]))
"""
CLIENT = """
import json, os, sys, threading, time, openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], timeout=20, max_retries=6)
said = open("calls.jsonl", "w")

def call():
    while not os.path.exists("stop"):
        began, note = time.time(), {}
        try:
            raw = client.chat.completions.with_raw_response.create(
                model="tiny-base", messages=[{"role": "user", "content": "?"}], max_tokens=4, temperature=0
            )
            note = {"text": raw.parse().choices[0].message.content, "retries": raw.retries_taken}
        except openai.OpenAIError as error:
            note = {"failed": repr(error)}
        said.write(json.dumps({"at": began, "took_s": time.time() - began, **note}) + "\\n")
        said.flush()
        time.sleep(0.5)

threads = [threading.Thread(target=call) for _ in range(4)]
[each.start() for each in threads]
[each.join() for each in threads]
"""


def two_engines() -> str:
    """The demo's serve file with two engines and two fronts, of each one on either worker."""
    file = yaml.safe_load((ROOT / "serve_configs/cpu_tiny.yaml").read_text(encoding="utf-8"))
    arguments = file["applications"][0]["args"]
    engine, front = arguments["llm_configs"][0]["deployment_config"], arguments["ingress_deployment_config"]
    engine |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1, "resources": {"slot": 0.6}}}
    front |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1, "resources": {"slot": 0.3}}}
    return yaml.safe_dump(file)


@pytest.fixture(scope="module")
def serving(cluster: RayHosts) -> Iterator[RayHosts]:
    """The cluster with our endpoint, open to all with a key: an engine and a front on each worker."""
    (cluster["head"].tmp / "home/two.yaml").write_text(two_engines())
    for name in ("head", "worker-1", "worker-2"):  # the endpoint's, and of the shards that ask it
        cluster[name].run(f"umask 077; echo {KEY} > {KEY_FILE}; mkdir -p /tmp/none")
    began = time.monotonic()
    said = cluster.python(DEPLOY.format(key=KEY_FILE, base=BASE), within_s=300)
    assert f"http://{cluster['head'].address}:8000" in said
    print(f"two engines and two fronts on two nodes answered after {time.monotonic() - began:.0f} s")
    yield cluster
    cluster.python(STOP)


def is_whole(cluster: RayHosts) -> bool:
    """Whether the application and all of its replicas run."""
    status, deployments = json.loads(cluster.python(STATUS).splitlines()[-1])
    return status == "RUNNING" and all(states == {"RUNNING": 2} for states in deployments.values())


@contextlib.contextmanager
def calling(cluster: RayHosts, node: str, port: int) -> Iterator[None]:
    """Four clients that ask one address all the time; what they got is in `answers`."""
    client = cluster["client"]
    client.run("rm -f ~/stop ~/calls.jsonl")
    asker = client.start(f"cd && python -c {shlex.quote(CLIENT)} http://{cluster[node].address}:{port} {KEY}")
    try:
        await_(lambda: sum("text" in call for call in answers(cluster)) > 7, 60, ended=asker.poll)
        yield
    finally:
        client.run("touch ~/stop")
        said, _ = asker.communicate(timeout=150)
    assert asker.returncode == 0, said


def answers(cluster: RayHosts) -> list[dict[str, Any]]:
    path = cluster["client"].tmp / "home/calls.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def told(calls: list[dict[str, Any]], began: float, until: float) -> str:
    """What is said of the calls that were under way within a time."""
    meanwhile = [call for call in calls if call["at"] <= until and call["at"] + call["took_s"] >= began]
    return (
        f"{len(meanwhile)} calls, 0 failed, {sum(call['retries'] > 0 for call in meanwhile)} of them tried again, slowest"
        f" {max(call['took_s'] for call in meanwhile):.1f} s"
    )


def same_and_none_failed(cluster: RayHosts) -> list[dict[str, Any]]:
    """The calls: all answered, and alike, since both engines decode greedily."""
    calls = answers(cluster)
    assert not [call for call in calls if "failed" in call]
    assert len({call["text"] for call in calls}) == 1
    return calls


def test_shards_on_every_node_get_answers_from_an_endpoint_with_a_key(serving: RayHosts) -> None:
    head, run_dir = serving["head"], "/tmp/ours"
    settings = {
        "models": '["served:tiny-base"]', "endpoint": f"http://{head.address}:8000", "shard_resources": "{CPU: 0.1}",
        "generation": "{concurrency: 9, timeout_s: 60, max_tokens: 8}",
    }  # fmt: skip
    known = {"SLM_RAY_API_KEY_FILE": KEY_FILE}
    job = serving["client"].start(command(serving, None, 150, run_dir, known=known, **settings))
    asked_from: set[str] = set()
    while job.poll() is None:
        lines = head.run("ss -tnH state established '( sport = :8000 )'").stdout.splitlines()
        asked_from |= {line.split()[-1].rpartition(":")[0].removeprefix("[::ffff:").rstrip("]") for line in lines}
        time.sleep(0.2)
    ended(job)
    report = json.loads((head.tmp / "ours/report.json").read_text())
    assert report["provenance"]["rows_scored"] == 150
    assert not report["models"]["served:tiny-base"].get("error_reasons")
    nodes = {serving[name].address: name for name in ("head", "worker-1", "worker-2")}
    asked = {nodes[address] for address in asked_from & nodes.keys()}
    assert len(asked) > 1 and asked - {"head"}, asked_from
    print(f"150 rows by our endpoint, asked by shards on {', '.join(sorted(asked))}")


def test_a_node_that_holds_an_engine_and_a_front_is_lost_and_no_call_fails(serving: RayHosts) -> None:
    with calling(serving, "head", 8000):
        began = time.time()
        serving["worker-2"].off()
        time.sleep(40)  # in which Ray gives the node up
        lost_until = time.time()
        serving.join("worker-2")
        back_s = await_(lambda: is_whole(serving), 240, every_s=1.0)
    calls = same_and_none_failed(serving)
    print(f"in the 40 s after the node of an engine and a front was lost: {told(calls, began, lost_until)}")
    print(f"{back_s:.0f} s after the node had joined again both were back")


def test_a_head_is_killed_and_started_again_and_the_endpoint_answers_meanwhile(serving: RayHosts) -> None:
    run_dir = "/tmp/headless"
    with endpoint(serving, 0.5) as server, calling(serving, "worker-1", FRONT_PORT):
        job = serving["client"].start(command(serving, server, 150, run_dir))
        await_(lambda: len(server.requests) >= 40, ended=job.poll)
        serving["head"].off()
        began = time.time()
        time.sleep(5)
        serving.restart_head()
        up = time.time()
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.communicate(timeout=20)
        job.kill()
        asked = len(server.requests)
        ended(serving["client"].start(command(serving, server, 150, run_dir)))
        resumed_s = time.time() - up
        assert rows_scored(serving, run_dir) == 150
        assert twice(server) <= IN_FLIGHT
        back_s = await_(lambda: is_whole(serving), 120, every_s=1.0)
        until = time.time()
    calls = same_and_none_failed(serving)
    assert [call for call in calls if began < call["at"] < up], "nobody asked while the head was away"
    print(f"head away for {up - began:.0f} s: {told(calls, began, up)}; afterwards {told(calls, up, until)}")
    print(
        f"evaluation: {asked} of 150 calls before, the same command ended {resumed_s:.0f} s after the head was back,"
        f" {twice(server)} calls asked twice; both engines and fronts run as before after {back_s:.0f} s more"
    )
