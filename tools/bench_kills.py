"""What clients see when a part of the endpoint is killed under them: calls lost, calls asked again, seconds without an answer.

Two engines and two fronts on one machine; `clients` clients of the `openai` package ask all the time, each again when it has
its answer. One after the other a front, the proxy, the controller, an engine's replica and an engine's core get a SIGKILL; the
next comes when all are back. With RAY_SERVE_ENABLE_HA_PROXY=1 the proxy is HAProxy, and the actor that starts it is killed too;
where engines answer clients themselves there are no fronts.
A call is lost when the client itself gives up, after `retries`. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import ray
import yaml

from slm_ray import cluster
from slm_ray.command import run
from slm_ray.config import Serving
from slm_ray.ray_environment import HAPROXY
from slm_ray.serving import Endpoint, deploy, shutdown
from slm_ray.serving.health import healthy
from slm_ray.serving.settings import is_direct
from slm_ray.tables import format_table
from tools.config import KillsBenchConfig

_HAPROXY, _HAPROXYS_ACTOR = "/haproxy -db", "ray::HAProxyManager"
_PROXIES = {"the proxy": "ray::ProxyActor"}
_HAPROXIES = {"HAProxy": _HAPROXY, "the actor of HAProxy": _HAPROXYS_ACTOR}
_BACK_WITHIN_S = 180.0
_DEFAULT_RETRIES = 2  # of the openai package; who has more loses less
_HEAD = (
    "killed",
    "calls",
    "asked again",
    "oftener than twice",
    "lost",
    "longest without an answer, s",
    "all back after, s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: when it ended, how often the client asked again, and why it gave up, or nothing."""

    ended: float
    retries: int
    lost: str


def main(config: KillsBenchConfig) -> None:
    """Start, kill one after the other, and print what the clients saw."""
    cluster.start_local(log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            endpoint = deploy(doubled(config.serving, Path(scratch)))
            rows = asyncio.run(kills(endpoint, config))
    finally:
        shutdown()
        ray.shutdown()
    print("\n".join(format_table([_HEAD, *rows])))


def behind_haproxy() -> bool:
    return os.environ.get(HAPROXY) == "1"


def victims() -> dict[str, str]:
    """Who is killed, by how its process calls itself."""
    fronts = {} if is_direct(os.environ) else {"a front": ":AdapterIngress"}
    return {
        **fronts, **(_HAPROXIES if behind_haproxy() else _PROXIES), "the controller": "ray::ServeController",
        "an engine's replica": ":AdapterServer", "an engine's core": "VLLM::EngineCore",
    }  # fmt: skip


def doubled(serving: Serving, scratch: Path) -> Serving:
    """The same endpoint with two engines and two fronts."""
    tree: dict[str, Any] = yaml.safe_load(Path(serving.config).read_text(encoding="utf-8"))
    arguments = tree["applications"][0]["args"]
    for deployment in (arguments["llm_configs"][0]["deployment_config"], arguments["ingress_deployment_config"]):
        deployment["num_replicas"] = 2
    path = scratch / "two.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return serving.model_copy(update={"config": str(path)})


async def kills(endpoint: Endpoint, config: KillsBenchConfig) -> list[Sequence[str]]:
    """A row for each victim."""
    calls: list[Call] = []
    await whole(endpoint, since=time.perf_counter())
    client = openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=config.retries, timeout=60)
    asking = [asyncio.create_task(ask(client, config, calls)) for _ in range(config.clients)]
    rows = []
    for victim, title in victims().items():
        await asyncio.sleep(config.steady_s)
        calls.clear()
        killed = time.perf_counter()
        os.kill(
            (max if title == _HAPROXY else min)(titled(title)), signal.SIGKILL
        )  # an older HAProxy only ends its calls
        back_s = await whole(endpoint, since=killed)
        await asyncio.sleep(config.steady_s)
        rows.append(row(victim, calls, killed, back_s))
        print(*rows[-1], dict(Counter(call.lost for call in calls if call.lost)), flush=True)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return rows


async def ask(client: openai.AsyncOpenAI, config: KillsBenchConfig, calls: list[Call]) -> None:
    turns: Any = [{"role": "user", "content": "what is the weather in Oslo?"}]
    while True:
        retries, lost = config.retries, ""
        try:
            reply = await client.chat.completions.with_raw_response.create(
                model=config.serving.name, messages=turns, max_tokens=config.tokens, temperature=0,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            retries = reply.retries_taken
        except openai.OpenAIError as error:
            lost = f"{type(error).__name__} {getattr(error, 'status_code', '')}".strip()
        calls.append(Call(ended=time.perf_counter(), retries=retries, lost=lost))


async def whole(endpoint: Endpoint, *, since: float) -> float:
    """Seconds until every part runs as often as it should, and the endpoint is well."""
    proxy = _HAPROXYS_ACTOR if behind_haproxy() else "ray::ProxyActor"
    wanted = {
        "VLLM::EngineCore": 2,
        ":AdapterServer": 2,
        ":AdapterIngress": 0 if is_direct(os.environ) else 2,
        proxy: 1,
        "ray::ServeController": 1,
    }
    await asyncio.sleep(1)
    while not all(len(titled(title)) == count for title, count in wanted.items()) or not await asyncio.to_thread(
        healthy, endpoint.url
    ):
        if time.perf_counter() - since > _BACK_WITHIN_S:
            return float("inf")
        await asyncio.sleep(0.2)
    return time.perf_counter() - since


def titled(title: str) -> list[int]:
    """Processes of this Ray by what they call themselves."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def row(victim: str, calls: Sequence[Call], killed: float, back_s: float) -> Sequence[str]:
    """What the clients saw from the kill on."""
    answered = sorted(call.ended for call in calls if not call.lost)
    gaps = [later - earlier for earlier, later in zip([killed, *answered], answered, strict=False)]
    again = [call.retries for call in calls if call.retries and not call.lost]
    lost = sum(bool(call.lost) for call in calls)
    often = sum(retries > _DEFAULT_RETRIES for retries in again)
    counts = (len(calls), len(again), often, lost)
    return victim, *map(str, counts), f"{max(gaps, default=0):.1f}", f"{back_s:.1f}"


if __name__ == "__main__":
    run(main, KillsBenchConfig, __doc__)
