"""What a cluster of cluster.yaml shows to its network: the ports of the document and no other, and nothing without the token."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hosts import ROOT, Host, needs_hosts
from ray_hosts import DASHBOARD, RayHosts
from stranger import METHODS

pytestmark = [needs_hosts, pytest.mark.heavy]
PAGE = ROOT / "docs/how-to/cluster-security.md"
SERVE = """
import ray
from ray import serve

@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0, "resources": {"slot": 0.01}})
class Echo:
    async def __call__(self, request):
        return "said"

ray.init(log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": 8000})
serve.run(Echo.bind(), name="echo")
"""
PICKLE = """
import os, pickle, sys, grpc
from ray.serve.generated.serve_pb2 import ASGIRequest

class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/owned",)

request = ASGIRequest(pickled_request_metadata=pickle.dumps(Bomb())).SerializeToString()
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest", request_serializer=bytes, response_deserializer=bytes)
    shown = [("authorization", f"Bearer {sys.argv[2]}")] if len(sys.argv) > 2 else None
    try:
        call(request, timeout=10, metadata=shown)
    except grpc.RpcError as error:
        print(error.code().name)
"""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Door:
    """A listening socket of a host, or a row of the document's table (with `*` for a port that the system chooses)."""

    process: str
    listens: str
    port: str


def nodes(cluster: RayHosts) -> list[str]:
    return [
        name for name, host in cluster.hosts.on.items() if host.is_on and (name == "head" or name.startswith("worker-"))
    ]


def doors(host: Host) -> list[Door]:
    """Every TCP socket that listens on a host."""
    scopes = {"*": "every address", "0.0.0.0": "every address", "[::]": "every address"}
    found = []
    for line in host.run("ss -ltnpH").stdout.splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        address = address.removeprefix("[::ffff:").rstrip("]") if address.startswith("[::ffff:") else address
        scope = scopes.get(
            address, "loopback" if address.startswith("127.") or address == "[::1]" else "the node's address"
        )
        found.append(Door(process=line.split('users:(("')[1].split('"')[0], listens=scope, port=port))
    return found


def documented() -> list[Door]:
    """The rows of the table in the document."""
    cells = [
        [cell.strip().strip("`") for cell in line.strip("|\n ").split("|")]
        for line in PAGE.read_text(encoding="utf-8").partition("## Ports")[2].splitlines()
        if line.startswith("| ") and not line.startswith(("| port", "|---"))
    ]
    return [
        Door(process=process, listens=scope, port=port if port.isdecimal() else "*")
        for port, process, listens, *_ in cells
        for scope in listens.split(", ")
    ]


def is_documented(door: Door, rows: list[Door]) -> bool:
    return any(
        row.port in ("*", door.port)
        and row.listens == door.listens
        and (door.process == row.process[:15] or (row.process == "ray::…" and door.process.startswith("ray::")))
        for row in rows
    )


def reached(host: Host, near: Host) -> list[str]:
    """The addresses of a host's ports that another host gets a connection to."""
    found = []
    for port in sorted({door.port for door in doors(host)}, key=int):
        try:
            near.connect(host.address, int(port)).close()
        except OSError:
            continue
        found.append(f"{host.address}:{port}")
    return found


def asked(host: Host, addresses: list[str], token: str = "") -> dict[str, dict[str, Any]]:
    program = f"python {ROOT}/tests/cluster/stranger.py {shlex.join(addresses)} {f'--token {token}' if token else ''}"
    said: dict[str, dict[str, Any]] = json.loads(host.run(program, within_s=150).stdout)
    return said


@pytest.fixture(scope="module")
def serving(cluster: RayHosts) -> RayHosts:
    """The cluster with a Serve application, whose only replica is on a worker."""
    cluster.python(SERVE)
    return cluster


def test_no_node_listens_where_the_document_does_not_say_so(serving: RayHosts) -> None:
    rows = documented()
    assert len(rows) > 8
    for name in nodes(serving):
        unknown = sorted(door for door in doors(serving[name]) if not is_documented(door, rows))
        assert unknown == [], f"{name} listens on ports that {PAGE.name} does not list: {unknown}"
    seen = [door for name in nodes(serving) for door in doors(serving[name])]
    assert {"gcs_server", "raylet", "ray::ServeRepli"} <= {door.process for door in seen}
    unseen = [row for row in rows if not any(is_documented(door, [row]) for door in seen)]
    assert unseen == [], f"{PAGE.name} lists ports that nobody opens: {unseen}"


def test_from_another_host_the_dashboard_and_the_endpoint_are_not_there(serving: RayHosts) -> None:
    there = [address for name in nodes(serving) for address in reached(serving[name], serving["stranger"])]
    ports = {address.rpartition(":")[2] for address in there}
    assert "6379" in ports  # what has to be reached is
    assert not {str(DASHBOARD), "8000"} & ports


def test_a_stranger_is_refused_by_every_port_but_those_of_the_metrics(serving: RayHosts) -> None:
    there = [address for name in nodes(serving) for address in reached(serving[name], serving["stranger"])]
    said = asked(serving["stranger"], there)
    for address, each in said.items():
        answered = {what for what, how in each.items() if how in ("OK", 200)}
        if each.get("GET /metrics") == 200:  # a server of figures, which it gives whatever the path
            assert answered == {"GET /", "GET /metrics", "GET /api/version"}, (address, each)
        else:
            assert not answered and {"UNAUTHENTICATED", 401} & set(each.values()), (address, each)
    assert not any("posted" in serving[name].run("ls /tmp").stdout for name in nodes(serving))
    with_token = asked(serving["client"], there, serving.token)
    for method in METHODS:  # else the refusals would say nothing
        assert any(
            each.get(method) not in ("UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", None)
            for each in with_token.values()
        ), method


def test_a_pickle_runs_in_a_replica_only_with_the_token(serving: RayHosts) -> None:
    (worker,) = [each for each in nodes(serving) if any(d.process == "ray::ServeRepli" for d in doors(serving[each]))]
    ports = [door.port for door in doors(serving[worker]) if door.process == "ray::ServeRepli"]
    owned = serving[worker].tmp / "owned"
    for shown, runs in (("", False), ("f" * 64, False), (serving.token, True)):
        owned.unlink(missing_ok=True)
        for port in ports:
            address = f"{serving[worker].address}:{port}"
            serving["stranger"].run(f"python -c {shlex.quote(PICKLE)} {address} {shown}", within_s=60)
        assert owned.exists() is runs, (shown[:4], ports)


def test_a_stranger_can_neither_submit_nor_join(serving: RayHosts) -> None:
    stranger, marked = serving["stranger"], serving["head"].tmp / "owned"
    posted = stranger.run(
        f"RAY_ADDRESS=http://{serving['head'].address}:{DASHBOARD} timeout 60 ray job submit -- touch /tmp/owned",
        check=False,
    )
    assert posted.returncode != 0
    # from the head itself, where the dashboard listens, as another user of that host
    local = f"HOME=/tmp RAY_ADDRESS=http://127.0.0.1:{DASHBOARD} RAY_AUTH_MODE=disabled timeout 60"
    posted = serving["head"].run(f"{local} ray job submit -- touch /tmp/owned", check=False)
    assert posted.returncode != 0 and not marked.exists()
    nodes = len(serving.nodes())
    for mode in ("disabled", "token"):
        joined = stranger.run(
            f"RAY_AUTH_MODE={mode} timeout 60 ray start --address={serving['head'].address}:6379 --num-cpus=1",
            check=False,
        )
        assert joined.returncode != 0, joined.stdout + joined.stderr
    driver = "import ray; ray.init(address='auto', log_to_driver=False); ray.get(ray.remote(lambda: 1).remote()); print('ran')"
    joined = serving["worker-2"].run(
        f"HOME=/tmp RAY_AUTH_MODE=disabled timeout 60 python -c {shlex.quote(driver)}", check=False
    )
    assert joined.returncode != 0 and "ran" not in joined.stdout
    time.sleep(1.0)
    assert len(serving.nodes()) == nodes
