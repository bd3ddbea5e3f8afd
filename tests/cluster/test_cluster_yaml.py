"""`ray up` with the cluster.yaml that ships, over ssh: addresses, user and sizes replaced, and no package is installed.

Every host has an sshd, and only the client has the key and the token. Needs Debian's openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hosts import Host, Hosts, environment, hosts, needs_hosts
from ray_hosts import CLUSTER, TOKEN_FILE, settle

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
NODES = "import json, ray; ray.init(log_to_driver=False); print(json.dumps([n['NodeManagerHostname'] for n in ray.nodes() if n['Alive']]))"


def sshd(host: Host, public_key: str) -> None:
    """An sshd that lets the owner of the key in."""
    home = host.tmp / "home"
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh/authorized_keys").write_text(public_key)
    (home / "sshd_config").write_text(SSHD)
    host.run("ssh-keygen -q -t ed25519 -N '' -f ~/host_key && $(command -v sshd) -f ~/sshd_config")


def small(command: str) -> str:
    if "ray start" not in command:
        return command
    patient = command.replace(".venv/bin/ray start", "env RAY_raylet_start_wait_time_s=150 .venv/bin/ray start")
    return patient + " --num-cpus=1 --object-store-memory=100000000"


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
    """A client with a key and a token, and three hosts with an sshd and neither."""
    with hosts("client", "head", "worker-1", "worker-2") as made:
        settle(made["client"], TOKEN)
        made["client"].run("mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
        key = (made["client"].tmp / "home/.ssh/id_ed25519.pub").read_text()
        for name in ("head", "worker-1", "worker-2"):
            settle(made[name], None)
            sshd(made[name], key)
        yield made


def test_ray_up_starts_all_hosts_with_the_token_and_ray_down_stops_them() -> None:
    with reachable() as made:
        client, head = made["client"], made["head"]
        (client.tmp / "home/cluster.yaml").write_text(yaml.safe_dump(shipped(["worker-1", "worker-2"])))
        began = time.monotonic()
        up = client.run("ray up -y --no-config-cache ~/cluster.yaml", within_s=240, check=False)
        assert up.returncode == 0, up.stdout[-4000:] + up.stderr[-4000:]
        said: list[str] = []
        while len(said) < 3 and time.monotonic() - began < 300:
            known = environment({"RAY_ADDRESS": f"{head.address}:6379", "RAY_AUTH_MODE": "token"})
            asked = head.run(
                f"{known} cd ~/slm_ray && timeout 60 python -W ignore -c {shlex.quote(NODES)}", check=False
            )
            said = json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else said
            time.sleep(2)
        log = head.run("tail -n 60 /tmp/ray/session_latest/logs/monitor.*", check=False).stdout
        assert sorted(said) == ["head", "worker-1", "worker-2"], log
        print(f"ray up: three hosts in one cluster after {time.monotonic() - began:.0f} s")
        for name in ("head", "worker-1", "worker-2"):
            file = made[name].tmp / "home" / TOKEN_FILE
            assert (file.read_text(), file.stat().st_mode & 0o777) == (TOKEN, 0o600)
        down = client.run("ray down -y ~/cluster.yaml", within_s=120, check=False)
        assert down.returncode == 0, down.stdout[-2000:] + down.stderr[-2000:]
        left = {
            name: made[name].run("ps ax").stdout.count("raylet/raylet") for name in ("head", "worker-1", "worker-2")
        }
        assert left == {"head": 0, "worker-1": 0, "worker-2": 0}
