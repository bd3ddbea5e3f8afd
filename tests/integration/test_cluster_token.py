"""Real heads, one as cluster.yaml starts it: strangers are refused, and a head that refuses nobody is refused by us."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from slm_ray.cluster import answer_without_token
from slm_ray.ray_environment import CLUSTER_SETTINGS

pytestmark = pytest.mark.heavy
TOKEN = "0123456789abcdef" * 4
JOIN = """
from slm_ray.cluster import connect
from slm_ray.errors import SlmRayError
try:
    connect()
except SlmRayError as error:
    print(error)
    raise SystemExit(2)
import ray
assert ray.get(ray.remote(num_cpus=0)(lambda: 41 + 1).remote(), timeout=60) == 42
print("ran")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a head is reached: `gcs` as host:port, `dashboard` as a URL."""

    gcs: str
    dashboard: str


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def without_ray() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@contextmanager
def head(folder: Path, environment: dict[str, str]) -> Iterator[Head]:
    """A head in processes of its own, all of which end with the block."""
    gcs, dashboard, agent, client = (free_port() for _ in range(4))
    log = (folder / "head.log").open("w")
    temporary = Path("/tmp") / f"slm-ray-{os.getpid()}-{gcs}"  # socket paths have to be short
    temporary.mkdir()
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=1",
            "--object-store-memory=100000000",
        ],
        env=without_ray() | environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    found = Head(gcs=f"127.0.0.1:{gcs}", dashboard=f"http://127.0.0.1:{dashboard}")
    try:
        deadline = time.monotonic() + 60
        while status(found, "GET", "/api/version") is None:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.3)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            subprocess.run(["pkill", "-KILL", "-f", str(temporary)], check=False)
            subprocess.run(["rm", "-rf", str(temporary)], check=False)


def status(found: Head, method: str, path: str, body: object = None, token: str | None = None) -> int | None:
    """The HTTP status of one call; None while nothing listens."""
    request = urllib.request.Request(
        found.dashboard + path, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}),
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Head]]:
    """One that asks for the token and one that does not, started at the same time."""
    environments = (CLUSTER_SETTINGS | {"RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_MODE": "disabled"})
    with ExitStack() as ends, ThreadPoolExecutor() as pool:
        folders = [tmp_path_factory.mktemp("head") for _ in environments]
        starting = [
            pool.submit(ends.enter_context, head(folder, {"HOME": str(folder)} | environment))
            for folder, environment in zip(folders, environments, strict=True)
        ]
        closed, open_to_all = (one.result() for one in starting)
        yield closed, open_to_all


def join_all(found: Head, *environments: dict[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """What each of them, all at once, hears from that head."""

    def join(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", JOIN], env=without_ray() | {"RAY_ADDRESS": found.gcs} | environment, text=True,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor() as pool:
        return list(pool.map(join, environments))


def test_a_head_of_cluster_yaml_refuses_whoever_has_no_token(heads: tuple[Head, Head], tmp_path: Path) -> None:
    found, _ = heads
    marks = {name: tmp_path / name for name in ("posted", "wrong")}
    for name, token in (("posted", None), ("wrong", "f" * 64)):
        body = {"entrypoint": f"touch {marks[name]}"}
        assert status(found, "POST", "/api/jobs/", body, token) in (401, 403)
    assert status(found, "GET", "/api/version", token=TOKEN) == 200
    assert answer_without_token(found.gcs) == "refusal"
    *strangers, ours = join_all(
        found,
        {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64, "HOME": str(tmp_path)},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
    )
    for stranger in strangers:
        assert stranger.returncode == 2 and "ran" not in stranger.stdout
        assert "refuses the token" in stranger.stdout and "~/.ray/auth_token" in stranger.stdout
    assert ours.stdout.splitlines()[-1:] == ["ran"], ours.stderr
    assert not [mark for mark in marks.values() if mark.exists()]


def test_a_cluster_that_asks_for_no_token_is_refused_unless_that_is_meant(
    heads: tuple[Head, Head], tmp_path: Path
) -> None:
    _, found = heads
    assert answer_without_token(found.gcs) == "service"
    home = {"HOME": str(tmp_path)}
    refused, meant = join_all(found, home, {"RAY_AUTH_MODE": "disabled"} | home)
    assert refused.returncode == 2
    assert "asks for no token" in refused.stdout and "ray get-auth-token --generate" in refused.stdout
    assert meant.stdout.splitlines()[-1:] == ["ran"], meant.stderr
    assert "warning: the Ray cluster at" in meant.stderr
