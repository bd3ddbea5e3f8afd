"""What the endpoint does with ten times the requests that it carries: who is refused, how soon, and what the others wait.

Three measurements on one endpoint: one client alone, then as many as the engines batch, each asking again when it has its
answer, which gives the rate that it carries; then requests at random moments (a Poisson process) at `times` that rate, which
wait for nobody. Every answer has the same number of tokens. The client shares the machine with what it measures, and says
how late it was itself.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from slm_ray.command import run
from slm_ray.serving import deploy, shutdown
from slm_ray.tables import format_table
from tools.config import OverloadBenchConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: what it was answered, the seconds from when it was due, how late it was sent, and what is wrong with a refusal."""

    status: int
    took_s: float
    late_s: float
    fault: str = ""


class Client:
    """Asks one endpoint; every question is another one."""

    def __init__(self, url: str, config: OverloadBenchConfig) -> None:
        self._url, self._config, self._turn = f"{url}/v1/chat/completions", config, itertools.count()
        connector = aiohttp.TCPConnector(limit=0)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))

    async def ask(self, due: float | None = None) -> Call:
        """Ask once. `due` is when it was to be sent."""
        sent = time.perf_counter()
        due = sent if due is None else due
        content = f"{next(self._turn)}: what is the weather in Oslo?"
        body = {
            "model": self._config.serving.name, "temperature": 0, "max_tokens": self._config.tokens, "ignore_eos": True,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        try:
            async with self.session.post(self._url, json=body) as reply:
                raw = await reply.read()
                fault = "" if reply.status == 200 else _fault(reply, raw)
                return Call(status=reply.status, took_s=time.perf_counter() - due, late_s=sent - due, fault=fault)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Call(status=0, took_s=time.perf_counter() - due, late_s=sent - due, fault=type(error).__name__)


def _fault(reply: aiohttp.ClientResponse, raw: bytes) -> str:
    if reply.status != 429:
        return f"HTTP {reply.status}"
    if "retry-after" not in reply.headers:
        return "no Retry-After"
    return "" if raw.startswith(b'{"error"') else "no JSON"


async def closed(client: Client, clients: int, seconds: float) -> tuple[list[Call], float]:
    """As many clients, each asking again when it has its answer; the calls, and answers per second."""
    calls: list[Call] = []
    began = time.perf_counter()

    async def ask() -> None:
        while time.perf_counter() < began + seconds:
            calls.append(await client.ask())

    await asyncio.gather(*(ask() for _ in range(clients)))
    return calls, sum(call.status == 200 for call in calls) / (time.perf_counter() - began)


async def open_loop(client: Client, rate: float, seconds: float, seed: int) -> list[Call]:
    """Requests at random moments, `rate` a second."""
    draw = random.Random(seed)
    began = time.perf_counter()
    due, tasks = began, []
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.ask(due)))
        due += draw.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def at(calls: Sequence[float], share: float) -> float:
    """A quantile; 0 of none."""
    ordered = sorted(calls)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def line(name: str, calls: Sequence[Call], per_s: float) -> list[str]:
    """A row of the table."""
    answered = [call.took_s for call in calls if call.status == 200]
    refused = [call.took_s for call in calls if call.status == 429]
    return [
        name, str(len(calls)), f"{per_s:.1f}", str(len(answered)), f"{at(answered, 0.5):.2f}", f"{at(answered, 0.95):.2f}",
        str(len(refused)), f"{at(refused, 0.5):.3f}", f"{at(refused, 0.95):.3f}", f"{at(refused, 1.0):.3f}",
        f"{at([call.late_s for call in calls], 0.95):.3f}",
    ]  # fmt: skip


async def measured(url: str, config: OverloadBenchConfig) -> list[str]:
    """All of it, as lines."""
    client = Client(url, config)
    async with client.session:
        await closed(client, 4, 2.0)  # whoever is asked first compiles
        alone, slow = await closed(client, 1, config.seconds)
        full, carried = await closed(client, config.clients, config.seconds)
        rows = [line("one client", alone, slow), line(f"{config.clients} clients", full, carried)]
        calls = await open_loop(client, config.times * carried, config.seconds, config.seed)
        rows.append(line(f"{config.times:g} × the rate", calls, config.times * carried))
    names = [
        "load",
        "requests",
        "per s",
        "answered",
        "p50 s",
        "p95 s",
        "429",
        "p50 s",
        "p95 s",
        "most s",
        "client late, p95 s",
    ]
    faults = sorted({call.fault for call in [*alone, *full, *calls] if call.fault})
    counted = ", ".join(
        f"{fault} {sum(call.fault == fault for call in [*alone, *full, *calls])} times" for fault in faults
    )
    return [*format_table([names, *rows], left=(0,)), f"faults: {counted or 'none'}"]


def main(config: OverloadBenchConfig) -> None:
    """Bring the endpoint up, measure, print."""
    print("an endpoint is started", file=sys.stderr, flush=True)
    try:
        endpoint = deploy(config.serving)
        print("\n".join(asyncio.run(measured(endpoint.url, config))))
    finally:
        shutdown()


if __name__ == "__main__":
    run(main, OverloadBenchConfig, __doc__)
