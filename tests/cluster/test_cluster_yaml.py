"""From `ray up` to `ray down` with the cluster.yaml that ships, over ssh, by the commands of the tutorial.

Addresses, user and sizes are replaced, and no package is installed. Every host has an sshd, and only the client has the key
and the token. Needs Debian's openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hosts import Host, Hosts, await_, hosts, needs_hosts
from ray_hosts import CLUSTER, DASHBOARD, TOKEN_FILE, settle

MISSING = [program for program in ("sshd", "ssh", "rsync") if shutil.which(program) is None]
pytestmark = [
    needs_hosts,
    pytest.mark.heavy,
    pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}: apt-get install openssh-server openssh-client rsync"),
]
TOKEN = "0123456789abcdef" * 4
SSHD = """
Port 22
HostKey /tmp/home/host_key
AuthorizedKeysFile /tmp/home/.ssh/authorized_keys
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""
NODES = """
import json, ray
from slm_ray import cluster
cluster.connect()
print("nodes:", json.dumps([node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]))
"""
ALL = ["head", "worker-1", "worker-2"]


def sshd(host: Host, public_key: str) -> None:
    """An sshd that lets the owner of the key in."""
    home = host.tmp / "home"
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh/authorized_keys").write_text(public_key)
    (home / "sshd_config").write_text(SSHD)
    host.run("ssh-keygen -q -t ed25519 -N '' -f ~/host_key && $(command -v sshd) -f ~/sshd_config")


def small(command: str) -> str:
    """A start command for a busy machine whose nodes miss their head for 15 s, not for a minute."""
    if "ray start" not in command:
        return command
    known = "env RAY_raylet_start_wait_time_s=150 RAY_gcs_rpc_server_reconnect_timeout_s=15"
    return (
        command.replace(".venv/bin/ray start", f"{known} .venv/bin/ray start")
        + " --num-cpus=1 --object-store-memory=100000000"
    )


def shipped(workers: list[str]) -> dict[str, Any]:
    """cluster.yaml with what every user replaces, and without what installs packages."""
    install = [command for command in CLUSTER["setup_commands"] if "pip install" in command]
    assert len(install) == 1
    return {
        **CLUSTER,
        "provider": {**CLUSTER["provider"], "head_ip": "head", "worker_ips": workers},
        "auth": {**CLUSTER["auth"], "ssh_user": "root"},
        "min_workers": len(workers), "max_workers": len(workers),
        "setup_commands": [command for command in CLUSTER["setup_commands"] if command not in install],
        "head_start_ray_commands": [small(command) for command in CLUSTER["head_start_ray_commands"]],
        "worker_start_ray_commands": [small(command) for command in CLUSTER["worker_start_ray_commands"]],
    }  # fmt: skip


@contextlib.contextmanager
def reachable() -> Iterator[Hosts]:
    """A client with a clone, a key and a token, and three hosts with an sshd and neither."""
    with hosts("client", *ALL) as made:
        client = made["client"]
        settle(client, TOKEN, is_clone=True)
        client.run("mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
        key = (client.tmp / "home/.ssh/id_ed25519.pub").read_text()
        for name in ALL:
            settle(made[name], None)
            sshd(made[name], key)
        (client.tmp / "home/nodes.py").write_text(NODES)
        (client.tmp / "home/cluster.yaml").write_text(yaml.safe_dump(shipped(ALL[1:])))
        yield made


def raylets(host: Host) -> int:
    return host.run("ps ax").stdout.count("raylet/raylet")


def nodes(client: Host) -> list[str]:
    """What `ray submit` of a small program finds."""
    said = client.run("ray submit ~/cluster.yaml ~/nodes.py", within_s=120, check=False)
    told = [line.partition("nodes: ")[2] for line in said.stdout.splitlines() if line.startswith("nodes: ")]
    assert told, said.stdout[-4000:] + said.stderr[-4000:]
    return sorted(json.loads(told[-1].strip()))


@contextlib.contextmanager
def dashboard(client: Host) -> Iterator[str]:
    """`ray dashboard`, which forwards the port while it runs: the settings for `ray job`."""
    forwarding = client.start("exec setsid bash -c 'echo $$ > ~/group; exec ray dashboard ~/cluster.yaml'")

    def is_forwarded() -> bool:
        try:
            client.connect("127.0.0.1", DASHBOARD, within_s=1.0).close()
        except OSError:
            return False
        return True

    try:
        await_(is_forwarded, 40, every_s=0.5, ended=forwarding.poll)
        yield f"export RAY_ADDRESS=http://127.0.0.1:{DASHBOARD} RAY_AUTH_MODE=token"
    finally:
        client.run("kill -- -$(cat ~/group)", check=False)
        forwarding.communicate()


def test_the_tutorial_s_commands_start_a_cluster_use_it_and_stop_it() -> None:
    with reachable() as made:
        client, began = made["client"], time.monotonic()
        up = client.run("ray up -y ~/cluster.yaml", within_s=240, check=False)
        assert up.returncode == 0, up.stdout[-4000:] + up.stderr[-4000:]
        await_(
            lambda: all(raylets(made[name]) for name in ALL), 240, every_s=1.0,
            why=lambda: made["head"].run("tail -n 60 /tmp/ray/session_latest/logs/monitor.*", check=False).stdout,
        )  # fmt: skip
        started_s = time.monotonic() - began
        for name in ALL:
            file = made[name].tmp / "home" / TOKEN_FILE
            assert (file.read_text(), file.stat().st_mode & 0o777) == (TOKEN, 0o600)
        await_(lambda: nodes(client) == ALL, 60)  # a raylet that runs joins a moment later
        with dashboard(client) as known:
            examined = client.run(
                f"cd ~/slm_ray && {known} && ray job submit --working-dir . -- python jobs/doctor.py jobs/doctor.yaml"
                " --set run_dir=/tmp --set adapters_dir=/tmp",
                within_s=170, check=False,
            )  # fmt: skip
            strange = client.run(f"{known} && export RAY_AUTH_TOKEN=wrong && ray job list", check=False)
        assert all(f"{name} ({made[name].address})" in examined.stdout for name in ALL), (
            examined.stdout + examined.stderr
        )
        assert strange.returncode != 0
        began = time.monotonic()
        down = client.run("ray down -y ~/cluster.yaml", within_s=120, check=False)
        assert down.returncode == 0, down.stdout[-2000:] + down.stderr[-2000:]
        assert raylets(made["head"]) == 0, down.stdout[-2000:] + down.stderr[-2000:]
        await_(lambda: not any(raylets(made[name]) for name in ALL), 100, every_s=1.0)
    print(
        f"ray up: three hosts in one cluster after {started_s:.0f} s; ray down: none after {time.monotonic() - began:.0f} s"
    )
