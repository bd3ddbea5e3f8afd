"""An application of Ray Serve on several nodes, asked from another host while nodes are lost: a replica's, and the head's.

The application is a plain one that answers as a chat endpoint does, with a replica on each worker: an engine on each would
take the machine's two cores for minutes. The client is the openai library with retries, on the host `client`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hosts import await_, needs_hosts
from ray_hosts import RayHosts
from test_hosts_evaluation import IN_FLIGHT, command, ended, endpoint, rows_scored, twice

pytestmark = [needs_hosts, pytest.mark.heavy]
REPLICA_PORT = 30000  # of a node's first replica; Serve's proxy, at 8000, is on the head alone
APP = """
import asyncio, socket, ray
from fastapi import FastAPI
from ray import serve

api = FastAPI()

@serve.deployment(num_replicas=2, max_ongoing_requests=20, ray_actor_options={"num_cpus": 0, "resources": {"slot": 0.6}})
@serve.ingress(api)
class Answers:
    @api.post("/v1/chat/completions")
    async def answer(self, request: dict) -> dict:
        await asyncio.sleep(0.1)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": socket.gethostname()}}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "plain", "choices": [choice]}

ray.init(log_to_driver=False)
serve.start(http_options={"host": "0.0.0.0", "port": 8000})
serve.run(Answers.bind(), name="answers")
"""
STOP = "import ray; from ray import serve; ray.init(log_to_driver=False); serve.shutdown()"
STATUS = "import ray; from ray import serve; ray.init(log_to_driver=False); print(serve.status().applications['answers'].status)"
CLIENT = """
import json, os, sys, threading, time, openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", timeout=8, max_retries=6)
said = open("calls.jsonl", "w")

def call():
    while not os.path.exists("stop"):
        began, note = time.time(), {}
        try:
            raw = client.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "?"}])
            note = {"by": raw.parse().choices[0].message.content, "retries": raw.retries_taken}
        except openai.OpenAIError as error:
            note = {"failed": repr(error)}
        said.write(json.dumps({"at": began, "took_s": time.time() - began, **note}) + "\\n")
        said.flush()
        time.sleep(0.2)

threads = [threading.Thread(target=call) for _ in range(4)]
[each.start() for each in threads]
[each.join() for each in threads]
"""


@pytest.fixture(scope="module")
def serving(cluster: RayHosts) -> Iterator[RayHosts]:
    """The cluster with the application, which has a replica on each worker."""
    cluster.python(APP)
    yield cluster
    cluster.python(STOP)


@contextlib.contextmanager
def calling(cluster: RayHosts, node: str, port: int) -> Iterator[None]:
    """Four clients that ask one address all the time; what they got is in `answers`."""
    client = cluster["client"]
    client.run("rm -f ~/stop ~/calls.jsonl")
    asker = client.start(f"cd && python -c {shlex.quote(CLIENT)} http://{cluster[node].address}:{port}")
    try:
        await_(lambda: sum("by" in call for call in answers(cluster)) > 7, 60, ended=asker.poll)
        yield
    finally:
        client.run("touch ~/stop")
        said, _ = asker.communicate(timeout=90)
    assert asker.returncode == 0, said


def answers(cluster: RayHosts) -> list[dict[str, Any]]:
    path = cluster["client"].tmp / "home/calls.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def told(calls: list[dict[str, Any]], began: float, until: float) -> str:
    meanwhile = [call for call in calls if began <= call["at"] <= until]
    return (
        f"{len(meanwhile)} calls, 0 failed, {sum(call['retries'] > 0 for call in meanwhile)} of them tried again, slowest"
        f" {max(call['took_s'] for call in meanwhile):.1f} s, answered by {dict(Counter(call['by'] for call in meanwhile))}"
    )


def test_a_node_that_holds_a_replica_is_lost_and_no_call_fails(serving: RayHosts) -> None:
    with calling(serving, "head", 8000):
        await_(lambda: {call.get("by") for call in answers(serving)} == {"worker-1", "worker-2"})
        serving["worker-2"].off()
        began = time.time()
        time.sleep(40)  # in which Ray gives the node up
        lost_until = time.time()
        serving.join("worker-2")
        joined = time.time()

        def is_back() -> bool:
            return any(call.get("by") == "worker-2" and call["at"] > joined for call in answers(serving))

        back_s = await_(is_back, 120, every_s=0.5)
    calls = answers(serving)
    assert not [call for call in calls if "failed" in call]
    assert {call["by"] for call in calls if began + 15 < call["at"] < lost_until} == {"worker-1"}
    print(f"in the 40 s after a replica's node was lost: {told(calls, began, lost_until)}")
    print(f"{back_s:.0f} s after the node had joined again its replica answered")


def test_a_head_is_killed_and_started_again_and_the_endpoint_answers_meanwhile(serving: RayHosts) -> None:
    run_dir = "/tmp/headless"
    with endpoint(serving, 0.5) as server, calling(serving, "worker-1", REPLICA_PORT):
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
        back_s = await_(lambda: "RUNNING" in serving.python(STATUS), 90, every_s=1.0)
        until = time.time()
    calls = answers(serving)
    assert not [call for call in calls if "failed" in call]
    assert [call for call in calls if began < call["at"] < up], "nobody asked while the head was away"
    print(f"head away for {up - began:.0f} s: {told(calls, began, up)}; afterwards {told(calls, up, until)}")
    print(
        f"evaluation: {asked} of 150 calls before, the same command ended {resumed_s:.0f} s after the head was back,"
        f" {twice(server)} calls asked twice; Serve says RUNNING again after {back_s:.0f} s more"
    )
