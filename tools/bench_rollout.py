"""What the roll-out's front adds to a call: asked through it and without it, in turn, of an upstream of fixed latency.

Open loop: calls arrive at a steady rate whether or not earlier ones have come back, and a call's time counts from when it was
due. Upstream, front and client are processes of their own, and share the cores; the front asks for a key and writes its log.
`through: serve` puts Ray Serve around the front, as `slm-ray rollout` does, and `haproxy` has Serve use HAProxy in place of
its own proxy. The CPU of every process is that of the windows in which the front is asked, and that
of as many seconds in which nobody asks.
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
KEY = "sk-of-the-benchmark-0123456789"
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
from slm_ray.serving.keys import key_digest
from slm_ray.traffic import TrafficLog
log = TrafficLog(sys.argv[3])
digest = key_digest(os.environ["SLM_RAY_API_KEY"])
front = Front(FrontSettings(folder=sys.argv[2], endpoint="", api_key_digest=digest), environment=os.environ, log=log, prices=open_prices(None))
uvicorn.run(front.app(), port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def main(config: RolloutBenchConfig) -> None:
    with TemporaryDirectory(prefix="rb") as name, contextlib.ExitStack() as stack:
        os.environ |= {
            "OPENAI_API_KEY": "none",
            "SLM_RAY_API_KEY": KEY,
            "RAY_TMPDIR": name,
        }  # a Ray of its own, whatever else runs here
        folder, upstream = Path(name), f"http://127.0.0.1:{config.port + 1}"
        stack.enter_context(process(["-c", UPSTREAM, str(config.port + 1), str(config.latency_s)]))
        make_route(folder / "routes", upstream, config.state)
        front = stack.enter_context(running_front(config, folder))
        wait_for(f"{front}/health")
        measured = asyncio.run(measure(config, f"{upstream}/v1/chat/completions", f"{front}/v1/chat/completions"))
    report(config, measured)


def busy() -> Counter[str]:
    """Milliseconds of CPU so far of the client and of the processes around the front, by what they are called."""
    found: Counter[str] = Counter({"the client": round(1000 * sum(psutil.Process().cpu_times()[:2]))})
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            name = "upstream" if "asyncio.sleep" in words else "front" if "Front" in words else called(words)
            found[name] += round(1000 * sum(child.cpu_times()[:2]))
    return found


def called(words: str) -> str:
    first = words.split()[0]
    return first.partition(".")[0] if first.startswith("ray::") else Path(first).name


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
    if config.through == "haproxy":
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    settings = {
        "routes_dir": str(folder / "routes"),
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


@dataclass(frozen=True)
class Measured:
    """Latencies in seconds of calls without the front and with it; milliseconds of CPU by process while it was asked, and while nobody was."""

    direct: list[float]
    through: list[float]
    asked: Counter[str]
    idle: Counter[str]


async def measure(config: RolloutBenchConfig, direct: str, through: str) -> Measured:
    """A window of each in turn, then as long without any."""
    found: dict[str, list[float]] = {direct: [], through: []}
    asked: Counter[str] = Counter()
    keyed = {"authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), headers=keyed
    ) as session:
        for url in (direct, through):
            await window(session, url, config.rate, WARM_UP_S)
        for _ in range(config.windows):
            found[direct] += await window(session, direct, config.rate, config.window_s)
            before = busy()
            found[through] += await window(session, through, config.rate, config.window_s)
            asked += busy() - before
    before = busy()
    await asyncio.sleep(config.window_s)
    idle = Counter({name: config.windows * spent for name, spent in (busy() - before).items()})
    return Measured(found[direct], found[through], asked, idle)


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


def report(config: RolloutBenchConfig, measured: Measured) -> None:
    calls = len(measured.through)
    print(
        f"{config.rate:g} requests/s, upstream {1000 * config.latency_s:g} ms, state {config.state}, through {config.through}, "
        f"{calls} calls each, load average {os.getloadavg()[0]:.1f}"
    )
    for share in (0.5, 0.95, 0.99):
        plain, ours = (1000 * percentile(values, share) for values in (measured.direct, measured.through))
        print(f"p{100 * share:g}: {plain:.1f} ms without, {ours:.1f} ms with, overhead {ours - plain:+.1f} ms")
    for name, spent in measured.asked.most_common():
        if spent >= 0.1 * calls:
            print(
                f"{spent / calls:.1f} ms of CPU a call, {measured.idle[name] / calls:.1f} of them without one: {name}"
            )


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


if __name__ == "__main__":
    run_job(main, RolloutBenchConfig, __doc__ or "")
