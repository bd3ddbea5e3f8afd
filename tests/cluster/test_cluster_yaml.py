"""The tutorial "on a cluster", word by word: its commands are taken from the document and run on the client host.

In cluster.yaml addresses, user and sizes are replaced, as a reader does, and no package is installed; the loop is a small one.
Every host has an sshd and a bucket's credentials in its environment, and only the client has the key and, once the first
command has made it, the token. Needs Debian's openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from bucket import Bucket, served
from hosts import ROOT, Host, Hosts, await_, environment, hosts, needs_hosts
from ray_hosts import CLUSTER, DASHBOARD, TOKEN_FILE, patient, settle

MISSING = [program for program in ("sshd", "ssh", "rsync", "script") if shutil.which(program) is None]
pytestmark = [
    needs_hosts,
    pytest.mark.heavy,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {MISSING}: apt-get install openssh-server openssh-client rsync bsdutils"
    ),
]
TUTORIAL = ROOT / "docs/tutorials/cluster.md"
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
# Behind the tutorial's command: a loop of minutes on two cores, not of a quarter of an hour.
SMALL = {
    "tracks": "[{track: structured, source: data/tools/rows.json, validation_rows: 8, test_rows: 8, train_rows: 48}]",
    "training.epochs": 1, "training.workers": "{count: 1, per_worker: {CPU: 0.2, slot: 1}}",
}  # fmt: skip


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
    known = "export RAY_gcs_rpc_server_reconnect_timeout_s=15"
    return f"{known}; {patient(f'{command} --num-cpus=1 --object-store-memory=100000000')}"


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


def tutorial(heading: str) -> list[str]:
    """The commands below a heading of the tutorial."""
    section = TUTORIAL.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [line for line in block.splitlines() if line.strip()]


@contextlib.contextmanager
def reachable() -> Iterator[tuple[Hosts, Bucket]]:
    """A client with a clone and a key, three hosts with an sshd and no key, and a bucket that they have the credentials of."""
    with hosts("client", "store", *ALL) as made, served(made["store"], "mine") as bucket:
        client = made["client"]
        settle(client, None, is_clone=True)
        client.run("mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
        key = (client.tmp / "home/.ssh/id_ed25519.pub").read_text()
        known = {
            "AWS_ENDPOINT_URL": f"http://{bucket.address}", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "known",
            "AWS_SECRET_ACCESS_KEY": "unchecked",
        }  # fmt: skip
        for name in ALL:
            settle(made[name], None)
            (made[name].tmp / "home/.bashrc").write_text(f"{environment(known)}\n")
            sshd(made[name], key)
        clone = client.tmp / "home/slm_ray"
        (client.tmp / "home/nodes.py").write_text(NODES)
        (clone / "cluster.yaml").write_text(yaml.safe_dump(shipped(ALL[1:])))
        yield made, bucket


def run(client: Host, command: str, within_s: float = 120) -> str:
    """What a command of the tutorial says on the client, in its clone; it must end well."""
    done = client.run(f"cd ~/slm_ray && {command}", within_s=within_s, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def agreed(client: Host, command: str, within_s: float = 120) -> str:
    """What a command says that asks at a terminal, and no pipe will do, whether to go on."""
    return run(client, f"echo y | {shlex.join(['script', '-qec', command, '/dev/null'])}", within_s)


def raylets(host: Host) -> int:
    return host.run("ps ax").stdout.count("raylet/raylet")


def nodes(client: Host) -> list[str]:
    """What `ray submit` of a small program finds."""
    said = run(client, "ray submit cluster.yaml ~/nodes.py")
    told = [line.partition("nodes: ")[2] for line in said.splitlines() if line.startswith("nodes: ")]
    return sorted(json.loads(told[-1].strip()))


@contextlib.contextmanager
def dashboard(client: Host, command: str) -> Iterator[None]:
    """The command that forwards the port while it runs."""
    forwarding = client.start(f"cd ~/slm_ray && exec setsid bash -c 'echo $$ > ~/group; {command}'")

    def is_forwarded() -> bool:
        try:
            client.connect("127.0.0.1", DASHBOARD, within_s=1.0).close()
        except OSError:
            return False
        return True

    try:
        await_(is_forwarded, 40, every_s=0.5, ended=forwarding.poll)
        yield
    finally:
        client.run("kill -- -$(cat ~/group)", check=False)
        forwarding.communicate()


def test_the_tutorial_s_commands_start_a_cluster_use_it_and_stop_it() -> None:
    make_token, up, forward = tutorial("Start it")
    known, submit = tutorial("Submit")
    (down,) = re.findall(r"`(ray down [^`]*)`", TUTORIAL.read_text(encoding="utf-8"))
    with reachable() as (made, bucket):
        client, began = made["client"], time.monotonic()
        run(client, make_token)
        token = (client.tmp / "home" / TOKEN_FILE).read_text()
        agreed(client, up, within_s=240)
        await_(
            lambda: all(raylets(made[name]) for name in ALL), 240, every_s=1.0,
            why=lambda: made["head"].run("tail -n 60 /tmp/ray/session_latest/logs/monitor.*", check=False).stdout,
        )  # fmt: skip
        started_s = time.monotonic() - began
        for name in ALL:
            file = made[name].tmp / "home" / TOKEN_FILE
            assert (file.read_text(), file.stat().st_mode & 0o777) == (token, 0o600)
        await_(lambda: nodes(client) == ALL, 60)  # a raylet that runs joins a moment later
        assert "Active:" in run(client, "ray exec cluster.yaml 'ray status'")
        with dashboard(client, forward):
            examined = client.run(
                f"cd ~/slm_ray && {known} && ray job submit --working-dir . -- python jobs/doctor.py jobs/doctor.yaml"
                " --set run_dir=s3://mine/runs/first --set adapters_dir=s3://mine/adapters",
                within_s=170, check=False,
            )  # fmt: skip
            strange = client.run(f"{known} && export RAY_AUTH_TOKEN=wrong && ray job list", check=False)
            began = time.monotonic()
            smaller = shlex.join(part for name, value in SMALL.items() for part in ("--set", f"{name}={value}"))
            said = run(client, f"{known} && {submit} {smaller}", within_s=440)
            loop_s = time.monotonic() - began
        assert all(f"{name} ({made[name].address})" in examined.stdout for name in ALL), (
            examined.stdout + examined.stderr
        )
        assert not re.search("red: .*s3://", examined.stdout), "every node writes to the bucket"
        assert strange.returncode != 0
        assert "page: s3://mine/runs/first/report.html" in said and "(test rows)" in said and "verdict: " in said, said
        assert b"<html" in bucket.read("runs/first/report.html")
        assert b"structured" in bucket.read("runs/first/report.json")
        assert [name for name in bucket.names("adapters/") if name.endswith("/manifest.json")], said
        began = time.monotonic()
        agreed(client, down)
        assert raylets(made["head"]) == 0
        await_(lambda: not any(raylets(made[name]) for name in ALL), 100, every_s=1.0)
    print(
        f"ray up: three hosts in one cluster after {started_s:.0f} s; the loop's page was in the bucket {loop_s:.0f} s after its"
        f" command; ray down: no Ray left after {time.monotonic() - began:.0f} s"
    )
