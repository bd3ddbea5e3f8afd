"""`slm-ray rollout` on a Ray of its own, in front of two plain chat servers, under load: what its clients see, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from chat_server import ChatServer, Reply, Request, answer
from serving_fixtures import free_port

from slm_ray.rollout.bets import read_bets
from slm_ray.rollout.states import Grant, Route
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.watched import WATCH
from slm_ray.traffic import read_traffic
from tests.waiting import wait_for

pytestmark = pytest.mark.heavy
LLM_KEY, FRONT_KEY = "sk-llm-6f1ec0d1e5b24a8f", "front-9b2d77c04e51"
GOOD, OTHER = '{"city": "Oslo"}', '{"city": "Rome"}'


class Load:
    """Calls at a steady rate from several threads, until it is stopped; `failed` are those that were no answer."""

    def __init__(self, url: str, threads: int = 4, pause_s: float = 0.1) -> None:
        self._url, self._pause_s = url, pause_s
        self._stop = threading.Event()
        self.answered: list[str] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=30, trust_env=False, headers={"Authorization": f"Bearer {FRONT_KEY}"}) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    reply = ask(client, self._url)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                good = reply.status_code == 200
                (self.answered if good else self.failed).append(reply.headers["x-slm-ray-arm"] if good else reply.text)


def ask(client: httpx.Client, url: str) -> httpx.Response:
    body = {"model": "cities", "messages": [{"role": "user", "content": "Oslo?"}]}
    return client.post(f"{url}/v1/chat/completions", json=body)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, since Ray's sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="ro"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, ray_folder: Path, port: int) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "TMPDIR"}
    keys = {"OPENAI_API_KEY": LLM_KEY, "SLM_RAY_API_KEY": FRONT_KEY, "RAY_TMPDIR": str(ray_folder)}
    settings = {
        "routes_dir": str(folder / "routes"),
        "serving": {"port": port},
        "traffic": {"folder": str(folder / "traffic")},
    }
    (folder / "rollout.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "slm_ray.cli.app", "rollout", str(folder / "rollout.yaml")]
    with (folder / "out.txt").open("w") as out:
        return subprocess.Popen(command, env=kept | keys, text=True, stdout=out, stderr=out, start_new_session=True)


def replica(running: subprocess.Popen[str]) -> psutil.Process:
    names = [
        one for one in psutil.Process(running.pid).children(recursive=True) if "rollout" in " ".join(one.cmdline())
    ]
    (found,) = [one for one in names if "ServeReplica" in " ".join(one.cmdline())]
    return found


def test_what_clients_see(tmp_path: Path, ray_folder: Path) -> None:
    drifting, dead = threading.Event(), threading.Event()

    def slm(request: Request) -> Reply:
        if dead.is_set():
            return Reply(reset=True)
        return answer(OTHER if drifting.is_set() else GOOD)

    with ChatServer(lambda _: answer(GOOD)) as large:
        small = ChatServer(slm).__enter__()
        store = RouteStore(tmp_path / "routes")
        route = Route(
            name="cities", llm=f"openai:l@{large.url}/v1", slm=f"openai:s@{small.url}/v1", track="structured", base="b"
        )
        grant = Grant(
            most="live", because="a test", llm=route.llm, slm=route.slm, comparison="c.json", digest="d" * 64,
            agreement_lower=0.9, agreement_level=0.01,
        )  # fmt: skip
        store.create(route, adapter=None, grant=grant, reason="test", audit_share=0.5, timeout_s=2.0)
        port = free_port()
        running = start(tmp_path, ray_folder, port)
        url = f"http://127.0.0.1:{port}/rollout"
        try:
            wait_for(
                lambda: "the routes answer" in (tmp_path / "out.txt").read_text() or running.poll() is not None, 90
            )
            assert running.poll() is None, (tmp_path / "out.txt").read_text()
            states_move_under_load(store, url)
            drift_is_taken_back(store, url, drifting)
            the_replica_dies(store, url, drifting, running, tmp_path)
            the_slm_dies(store, url, small, dead)
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 130
            small.__exit__()
    nothing_is_left(tmp_path, ray_folder, port)


def live_again(store: RouteStore) -> None:
    """An alarm has overturned the verdict, so a new one is given first."""
    now = store.route("cities")
    grant = replace(now.granted, most="live", because="fresh rows", digest=f"{now.serial:064d}")
    store.appoint(now.route, adapter=None, grant=grant, reason="test")
    store.move("cities", "live", reason="test")


def states_move_under_load(store: RouteStore, url: str) -> None:
    with Load(url) as load:
        for state in ("shadow", "canary", "live", "record", "live"):
            store.move("cities", state, share=0.5 if state == "canary" else None, reason="test")  # type: ignore[arg-type]
            time.sleep(0.9)
    assert not load.failed and {"llm", "slm"} <= set(load.answered)


def drift_is_taken_back(store: RouteStore, url: str, drifting: threading.Event) -> None:
    with Load(url) as load:
        drifting.set()
        wait_for(lambda: store.route("cities").state == "record", within_s=30)
        time.sleep(0.5)
    assert not load.failed and store.route("cities").by == "watch"
    assert store.disagreements("cities")
    drifting.clear()


def the_replica_dies(
    store: RouteStore, url: str, drifting: threading.Event, running: subprocess.Popen[str], folder: Path
) -> None:
    """What it had counted when it was killed counts for the next one: one watch, from its start to its alarm.

    A request that came together with the one that rang is written down with it, and counts for nothing.
    """
    drifting.set()
    live_again(store)
    serial = store.route("cities").serial
    path = folder / "routes" / "cities" / WATCH
    with httpx.Client(timeout=30, trust_env=False, headers={"api-key": FRONT_KEY}) as client:
        wait_for(lambda: ask(client, url) and len(observed(path, serial)) >= 3, within_s=30)
    before = observed(path, serial)
    replica(running).kill()
    with Load(url) as load:
        wait_for(lambda: store.route("cities").state == "record", 60)
    seen = observed(path, serial)
    assert seen[: len(before)] == before and load.answered
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    since = [row for row in rows if row["serial"] >= serial]
    (once,), _ = read_bets(enumerate((row for row in since if "alarm" not in row), 1), path=path)
    (alarm,) = [row["alarm"] for row in since if "alarm" in row]
    assert once.alarm == "agreement" and len(before) < alarm == once.observations <= len(seen)
    drifting.clear()


def observed(path: Path, serial: int) -> list[str]:
    """The requests that the watch has counted since the route was changed so often."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["id"] for row in rows if "score" in row and row["serial"] >= serial]


def the_slm_dies(store: RouteStore, url: str, small: ChatServer, dead: threading.Event) -> None:
    live_again(store)
    with Load(url) as load:
        wait_for(lambda: load.answered[-1:] == ["slm"], within_s=30)
        dead.set()  # connections that are open
        small.__exit__()  # and new ones
        time.sleep(2.0)
    assert not load.failed and load.answered[-3:] == ["llm"] * 3


def nothing_is_left(folder: Path, ray_folder: Path, port: int) -> None:
    """No port, no key in a file, and a row of every call."""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/rollout/health", trust_env=False)
    rows = list(read_traffic(str(folder / "traffic")))
    assert {row.state for row in rows} >= {"record", "shadow", "canary", "live"}
    assert any(row.fallback for row in rows)
    for path in (path for place in (folder, ray_folder) for path in place.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        assert LLM_KEY.encode() not in raw and FRONT_KEY.encode() not in raw, path
