"""What the roll-out's front adds to a call: asked through it and without it, in turn, of an upstream of fixed latency.

Open loop: calls arrive at a steady rate whether or not earlier ones have come back, and a call's time counts from when it was
due. Upstream, front and client are processes of their own; `through: serve` puts Ray Serve around the front, as `slm-ray
rollout` does.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import httpx
import psutil

from slm_ray.command import run as run_job
from slm_ray.rollout.states import Grant, Route
from slm_ray.rollout.store import RouteStore
from tools.config import RolloutBenchConfig

WARM_UP_S = 2.0
UPSTREAM = """
import asyncio, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
BODY = b'{"id":"x","object":"chat.completion","model":"m-1","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"{}"}}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'
async def chat(request):
    await request.body()
    await asyncio.sleep(float(sys.argv[2]))
    return Response(BODY, media_type="application/json")
uvicorn.run(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])]), port=int(sys.argv[1]), log_level="error", access_log=False)
"""
FRONT = """
import os, sys
import uvicorn
from slm_ray.reports.prices import open_prices
from slm_ray.rollout.front import Front, FrontSettings
from slm_ray.traffic import TrafficLog
log = TrafficLog(sys.argv[3])
front = Front(FrontSettings(folder=sys.argv[2], endpoint=""), environment=os.environ, log=log, prices=open_prices(None))
uvicorn.run(front.app(), port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def main(config: RolloutBenchConfig) -> None:
    with TemporaryDirectory(prefix="rb") as name, contextlib.ExitStack() as stack:
        os.environ |= {"OPENAI_API_KEY": "none", "RAY_TMPDIR": name}  # a Ray of its own, whatever else runs here
        folder, upstream = Path(name), f"http://127.0.0.1:{config.port + 1}"
        stack.enter_context(process(["-c", UPSTREAM, str(config.port + 1), str(config.latency_s)]))
        make_route(folder / "routes", upstream, config.state)
        front = stack.enter_context(running_front(config, folder))
        wait_for(f"{front}/health")
        before = busy()
        direct, through = asyncio.run(
            measure(config, f"{upstream}/v1/chat/completions", f"{front}/v1/chat/completions")
        )
        after = busy()
    report(config, direct, through)
    calls = len(through) + config.rate * WARM_UP_S
    for name, total_s in sorted(after.items()):
        if (each_ms := 1000 * (total_s - before.get(name, 0.0)) / calls) >= 0.5:
            print(f"{each_ms:.1f} ms of CPU a call: {name}")


def busy() -> dict[str, float]:
    """CPU seconds so far of the processes around the front, by what they are called."""
    found: dict[str, float] = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            name = "upstream" if "asyncio.sleep" in words else "front" if "Front" in words else words.split()[0][-40:]
            found[name] = found.get(name, 0.0) + sum(child.cpu_times()[:2])
    return found


@contextlib.contextmanager
def process(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, *arguments])
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()


@contextlib.contextmanager
def running_front(config: RolloutBenchConfig, folder: Path) -> Iterator[str]:
    """Its address, with Ray Serve around it or on its own."""
    if config.through == "asgi":
        with process(["-c", FRONT, str(config.port), str(folder / "routes"), str(folder / "traffic")]):
            yield f"http://127.0.0.1:{config.port}"
        return
    settings = {
        "folder": str(folder / "routes"),
        "traffic": {"folder": str(folder / "traffic")},
        "serving": {"port": config.port},
    }
    (folder / "rollout.json").write_text(json.dumps(settings))
    with process(["-m", "slm_ray.cli.app", "rollout", str(folder / "rollout.json")]):
        yield f"http://127.0.0.1:{config.port}/rollout"


def make_route(folder: Path, upstream: str, state: str) -> None:
    store = RouteStore(folder)
    route = Route(name="r", llm=f"openai:l@{upstream}/v1", slm=f"openai:s@{upstream}/v1", track="structured", base="b")
    grant = Grant(
        most="live", because="a benchmark", llm=route.llm, slm=route.slm, comparison="c", digest="d", agreement_lower=0.9,
        agreement_level=0.01,
    )  # fmt: skip
    store.create(route, adapter=None, grant=grant, reason="a benchmark")
    if state != "record":
        store.move("r", state, reason="a benchmark")  # type: ignore[arg-type]


def wait_for(url: str, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing answers at {url}")
        time.sleep(0.2)


async def measure(config: RolloutBenchConfig, direct: str, through: str) -> tuple[list[float], list[float]]:
    """Latencies in seconds, of calls without the front and with it; a window of each in turn."""
    found: dict[str, list[float]] = {direct: [], through: []}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for url in (direct, through):
            await window(session, url, config.rate, WARM_UP_S)
        for _ in range(config.windows):
            for url in (direct, through):
                found[url] += await window(session, url, config.rate, config.window_s)
    return found[direct], found[through]


async def window(session: aiohttp.ClientSession, url: str, rate: float, seconds: float) -> list[float]:
    start = time.perf_counter()

    async def call(due_s: float) -> float:
        await asyncio.sleep(max(0.0, start + due_s - time.perf_counter()))
        async with session.post(
            url, json={"model": "r", "messages": [{"role": "user", "content": "x" * 200}]}
        ) as reply:
            await reply.read()
            if reply.status != 200:
                raise SystemExit(f"{url} answers {reply.status}")
        return time.perf_counter() - start - due_s

    return await asyncio.gather(*(call(number / rate) for number in range(round(rate * seconds))))


def report(config: RolloutBenchConfig, direct: list[float], through: list[float]) -> None:
    print(
        f"{config.rate:g} requests/s, upstream {1000 * config.latency_s:g} ms, state {config.state}, through {config.through}, "
        f"{len(through)} calls each, load average {os.getloadavg()[0]:.1f}"
    )
    for share in (0.5, 0.95, 0.99):
        plain, ours = (1000 * percentile(values, share) for values in (direct, through))
        print(f"p{100 * share:g}: {plain:.1f} ms without, {ours:.1f} ms with, overhead {ours - plain:+.1f} ms")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


if __name__ == "__main__":
    run_job(main, RolloutBenchConfig, __doc__ or "")
