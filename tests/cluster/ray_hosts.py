"""A Ray on hosts of `hosts`, started by the commands of cluster.yaml, and a client that has the repository and the token.

The commands are run as they stand, with small sizes behind them: one CPU a worker and a small object store. What is left
out is `--autoscaling-config`, whose file only `ray up` writes.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from hosts import ROOT, Host, Hosts, environment, forwarded, hosts

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
DASHBOARD = 8265
TOKEN_FILE = ".ray/auth_token"
_SIZES = " --object-store-memory=100000000 --num-cpus="
_HEAD_CPUS, _WORKER_CPUS = 2, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RayHosts:
    """`head`, `worker-1` …, `client` (token, repository), `stranger` (repository, no token) and `llm` (a host of others)."""

    hosts: Hosts
    token: str

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def start(self, name: str) -> Host:
        """Start Ray on a host, as the head or as a worker, by the commands of cluster.yaml."""
        role = "head" if name == "head" else "worker"
        host = self[name]
        for command in CLUSTER[f"{role}_start_ray_commands"]:
            if "ray start" in command:
                command = command.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
                command += _SIZES + str(_HEAD_CPUS if role == "head" else _WORKER_CPUS)
            known = {
                "RAY_HEAD_IP": self["head"].address,
                "RAY_raylet_start_wait_time_s": "150",
            }  # the machine may be busy
            host.run(environment(known) + command, within_s=200)
        return host

    def join(self, name: str) -> Host:
        """A host that is off, or was never on, becomes a worker of the cluster."""
        self.hosts.power_on(name)
        settle(self[name], self.token)
        return self.start(name)

    def submitted(self, *arguments: str) -> str:
        """The shell command that submits a job of the repository from the client, to which the dashboard is forwarded."""
        known = environment({"RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}", "RAY_AUTH_MODE": "token"})
        return f"cd ~/slm_ray && {known}ray job submit --working-dir . -- python {shlex.join(arguments)}"

    def python(self, program: str, name: str = "head", *, within_s: float = 120) -> str:
        """What a program prints that joins the cluster as a driver, on a node of it."""
        known = environment({"RAY_ADDRESS": f"{self['head'].address}:6379", "RAY_AUTH_MODE": "token"})
        script = f"cd ~/slm_ray && {known}.venv/bin/python -W ignore -c {shlex.quote(program)}"
        return self[name].run(script, within_s=within_s).stdout

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's own list of its living nodes."""
        program = (
            "import json, ray; ray.init(log_to_driver=False); print(json.dumps([n for n in ray.nodes() if n['Alive']]))"
        )
        found: list[dict[str, Any]] = json.loads(self.python(program).splitlines()[-1])
        return found


def settle(host: Host, token: str | None, *, is_clone: bool = False) -> None:
    """Give a host what every host has: the repository (with its .venv, or as a clone), and the token unless it is a stranger's."""
    home = host.tmp / "home"
    if is_clone:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            (home / "slm_ray" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / "slm_ray" / name)
    else:
        (home / "slm_ray").symlink_to(ROOT)
    if token is not None:
        (home / TOKEN_FILE).parent.mkdir()
        (home / TOKEN_FILE).write_text(token)
        (home / TOKEN_FILE).chmod(0o600)


@contextlib.contextmanager
def ray_hosts(workers: int) -> Iterator[RayHosts]:
    """The cluster with so many workers on, one of two more names that may join later, and its client."""
    names = ["head", *(f"worker-{number}" for number in range(1, workers + 3)), "client", "stranger", "llm"]
    nodes, later = names[: workers + 3], names[workers + 1 : workers + 3]
    with hosts(*names, on=[name for name in names if name not in later], sharing=nodes) as made:
        found = RayHosts(hosts=made, token=secrets.token_hex(32))
        for name, host in made.on.items():
            settle(host, None if name in ("stranger", "llm") else found.token, is_clone=name == "client")
        for name in names[: workers + 1]:
            found.start(name)
        with forwarded(found["client"], DASHBOARD, found["head"]):
            yield found
