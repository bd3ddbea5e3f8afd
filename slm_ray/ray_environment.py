"""How every Ray of ours is started: one table of settings, and the token without which no cluster starts.

Whoever reaches a Ray that asks for no token runs code on it: a job posted to its dashboard, a pickle sent to one of its
ports. So `python -m slm_ray.ray_environment cluster` prints the settings as `export` lines for `cluster.yaml`, token
authentication among them, and refuses where this host has no token; `… local` prints those of a Ray that lives as long as
one job, for `jobs/on_local_ray.sh`. `cluster.connect` takes the same table, and refuses a cluster that asks for no token.
Loads no Ray.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm_ray.errors import ResourceError

# Workers as important as everything else (Ray nices them to 15, which starves the engine beside a trainer) and started
# several at a time; Serve's quicker request path, without its event log; no usage report.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
# A Ray of one job: no wait for replicas that the job has already stopped.
LOCAL_SETTINGS = SETTINGS | {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
}
# A Ray that other hosts can reach.
CLUSTER_SETTINGS = SETTINGS | {"RAY_AUTH_MODE": "token"}

MAKE_A_TOKEN = (
    "on the machine that calls `ray up`: `ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token`, "
    "then `ray up cluster.yaml` again, which copies it to every host"
)


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


def main(arguments: Sequence[str]) -> int:
    """Print the settings of `cluster` or `local` for a shell to evaluate; the exit status."""
    tables = {"cluster": CLUSTER_SETTINGS, "local": LOCAL_SETTINGS}
    if len(arguments) != 1 or arguments[0] not in tables:
        print(f"usage: python -m slm_ray.ray_environment {'|'.join(tables)}", file=sys.stderr)
        return 2
    try:
        if arguments[0] == "cluster":
            check_token(os.environ)
    except ResourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in tables[arguments[0]].items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
