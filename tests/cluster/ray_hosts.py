"""A Ray on hosts of `hosts`, started by the commands of cluster.yaml, and a client that has the repository and the token.

The commands are run as they stand, with small sizes behind them: one CPU a worker and a small object store. What is left
out is `--autoscaling-config`, whose file only `ray up` writes. What the head knows lies in a Redis on a host of its own.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import yaml
from hosts import ROOT, Host, Hosts, environment, forwarded, hosts

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
DASHBOARD = 8265
TOKEN_FILE, REDIS_FILE = ".ray/auth_token", ".ray/redis"
REDIS = "redis-server --bind {0} --port 6379 --requirepass {1} --save '' --appendonly yes --dir /tmp --daemonize yes"
_PORTS = {"dashboard_agent_listen": 52365, "metrics_agent": 52366, "metrics_export": 52367, "runtime_env_agent": 52368}
_OPTIONS = "--dashboard-agent-listen-port={} --dashboard-agent-grpc-port={} --metrics-export-port={} --runtime-env-agent-port={}"
_SIZES = " --object-store-memory=100000000 --num-cpus="
_HEAD_CPUS, _WORKER_CPUS = 2, 1


def patient(start: str) -> str:
    """A command that ends with `ray start`, for a busy machine.

    A raylet ends itself where one of its agents has not written its port within 15 s. So ports and the node's id are chosen
    here, and what the agents will write is there before.
    """
    node = "node=$(od -An -tx1 -N28 /dev/urandom | tr -d ' \\n')"
    files = "; ".join(f"echo -n {port} > ${{session}}{name}_port_$node" for name, port in _PORTS.items())
    write = f"while :; do for session in $(ls -d /tmp/ray/session_2*/ 2>/dev/null); do {files}; done; sleep 0.2; done"
    known = "export RAY_OVERRIDE_NODE_ID_FOR_TESTING=$node RAY_raylet_start_wait_time_s=500"
    started = f"{start} {_OPTIONS.format(*_PORTS.values())}"
    return f"{node}; {known}; ({write}) & writing=$!; {started}; status=$?; kill $writing; (exit $status)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayHosts:
    """`head`, `worker-1` …, `client` (token, repository), `stranger` (repository, no token), `llm` and `redis` (hosts of others)."""

    hosts: Hosts
    token: str
    redis: str

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def start(self, name: str, *, known: Mapping[str, str] | None = None) -> Host:
        """Start Ray on a host, as the head or as a worker, by the commands of cluster.yaml; `known` is its environment."""
        role = "head" if name == "head" else "worker"
        host = self[name]
        for command in CLUSTER[f"{role}_start_ray_commands"]:
            if "ray start" in command:
                command = command.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
                command = patient(command + _SIZES + str(_HEAD_CPUS if role == "head" else _WORKER_CPUS))
            settings = {"RAY_HEAD_IP": self["head"].address, **(known or {})}
            host.run(environment(settings) + command, within_s=600)
        return host

    def join(self, name: str, *, before: str = "true", known: Mapping[str, str] | None = None) -> Host:
        """A host that is off, or was never on, becomes a worker of the cluster, once the script `before` has run there."""
        if name in self.hosts.on and self[name].is_on:
            self[name].off()
        host = self.hosts.power_on(name)
        settle(host, self.token, redis=self.redis)
        host.run(before)
        return self.start(name, known=known)

    def leave(self, name: str) -> None:
        """Take a worker out of the cluster, which hears of it, and switch its host off."""
        self[name].run("cd ~/slm_ray && .venv/bin/ray stop", within_s=60)
        self[name].off()

    def mend(self) -> None:
        """What a failed test has left ends, and head and workers are as they were: one fault is to be one failure."""
        if not self["head"].is_on:
            self.restart_head()
        self["head"].run("pkill -KILL -f 'python jobs/'", check=False)
        there = {node["NodeManagerAddress"] for node in self.nodes()}
        for name in ("worker-1", "worker-2"):
            if self[name].address not in there or not self[name].is_on:
                self.join(name)

    def restart_head(self) -> None:
        """Switch the head on again, with its disk, and start Ray there."""
        self.hosts.power_on("head", disk_kept=True)
        self.start("head")

    def submitted(self, *arguments: str, known: Mapping[str, str] | None = None) -> str:
        """The shell command that submits a job of the repository from the client, to which the dashboard is forwarded.

        `known` is what is in the job's environment.
        """
        client = environment(
            {"RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}", "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"}
        )
        options = f"--runtime-env-json {shlex.quote(json.dumps({'env_vars': known}))} " if known else ""
        return f"cd ~/slm_ray && {client}ray job submit {options}--working-dir . -- python {shlex.join(arguments)}"

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


def settle(host: Host, token: str | None, *, is_clone: bool = False, redis: str | None = None) -> None:
    """Give a host what every host has: the repository (with its .venv, or as a clone), and the token unless it is a stranger's.

    `redis` is the line by which a node finds the head's memory.
    """
    home = host.tmp / "home"
    if is_clone:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            (home / "slm_ray" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / "slm_ray" / name)
    else:
        (home / "slm_ray").symlink_to(ROOT)
    for file, content in ((TOKEN_FILE, token), (REDIS_FILE, redis)):
        if content is not None:
            (home / file).parent.mkdir(exist_ok=True)
            (home / file).write_text(content)
            (home / file).chmod(0o600)


@contextlib.contextmanager
def ray_hosts(workers: int) -> Iterator[RayHosts]:
    """The cluster with so many workers on, one of two more names that may join later, and its client."""
    names = ["head", *(f"worker-{number}" for number in range(1, workers + 3)), "client", "stranger", "llm", "redis"]
    nodes, later = names[: workers + 3], names[workers + 1 : workers + 3]
    with hosts(*names, on=[name for name in names if name not in later], sharing=nodes) as made:
        password = secrets.token_hex(32)
        made["redis"].run(REDIS.format(made["redis"].address, password))
        line = f"redis://:{password}@{made['redis'].address}:6379"
        found = RayHosts(hosts=made, token=secrets.token_hex(32), redis=line)
        for name, host in made.on.items():
            token = None if name in ("stranger", "llm", "redis") else found.token
            settle(host, token, is_clone=name == "client", redis=line if name in nodes else None)
        found.start("head")
        with ThreadPoolExecutor(workers) as several:
            list(several.map(found.start, names[1 : workers + 1]))
        with forwarded(found["client"], DASHBOARD, lambda: made["head"]):
            yield found
