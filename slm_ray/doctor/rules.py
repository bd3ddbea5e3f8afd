"""From what nodes say of themselves to red lines: what is wrong, on which node, and what to do. Reads no disk and no clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slm_ray.doctor.facts import NodeFacts, Silent, plain_name
from slm_ray.remote import is_remote

LEAST_FREE_BYTES = 5 * 10**9
HOTTEST_CELSIUS = 85
MOST_SKEW_S = 2.0
_NAMED = 3  # packages in one line
_ANY = ("0.0.0.0", "::")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One red line."""

    node: str
    about: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.node}: {self.about}: {self.problem}; {self.fix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What nodes are held to: the job's own Python, the pins of a lock (None: the first node's packages) and its file.

    `without_token` is what the head answers to a call that carries none.
    """

    python: str
    pins: Mapping[str, str] | None = None
    lock: str = "requirements.lock"
    without_token: Literal["service", "refusal", "none"] = "refusal"


def pins_of(lock: str) -> dict[str, str]:
    """Version by name, as the text of a lock pins them."""
    return {plain_name(name): version for name, version in _PIN.findall(lock)}


def findings(nodes: Sequence[NodeFacts | Silent], expected: Expected) -> list[Finding]:
    """Every red line: of the cluster, then node by node."""
    found = list(_cluster(expected))
    heard = [node for node in nodes if isinstance(node, NodeFacts)]
    pins = expected.pins if expected.pins is not None else next((node.packages for node in heard), {})
    base = Counter(node.base for node in heard if node.base).most_common(1)
    for node in nodes:
        if isinstance(node, Silent):
            found.append(
                _finding(
                    node, "answer", node.reason, "look at the node, or take it out of the cluster (`ray stop` there)"
                )
            )
            continue
        found += _software(node, expected, pins)
        found += _gpus(node)
        found += _places(node, base[0][0] if base else "")
        found += _doors(node)
        if node.late_s is not None and abs(node.late_s) > MOST_SKEW_S:
            fix = "let it keep time (`timedatectl set-ntp true`, or chrony): logs, leases and certificates go by it"
            found.append(_finding(node, "clock", f"{node.late_s:+.1f} s from the job's node", fix))
    return found


def _finding(node: NodeFacts | Silent, about: str, problem: str, fix: str) -> Finding:
    return Finding(node=node.node, about=about, problem=problem, fix=fix)


def _cluster(expected: Expected) -> Iterator[Finding]:
    if expected.without_token == "service":
        yield Finding(
            node="cluster", about="token", problem="the head serves calls without a token, so whoever reaches it runs code on it",
            fix="start every node with RAY_AUTH_MODE=token and the token's file, as cluster.yaml does",
        )  # fmt: skip


def _software(node: NodeFacts, expected: Expected, pins: Mapping[str, str]) -> Iterator[Finding]:
    if node.python != expected.python:
        fix = f"make its environment with Python {expected.python}: Ray's nodes must have the very same one"
        yield _finding(node, "python", f"{node.python}, and the job has {expected.python}", fix)
    wrong = [
        f"{name} {node.packages.get(name, 'missing')} instead of {version}"
        for name, version in pins.items()
        if node.packages.get(name) != version
    ]
    if wrong and node.packages:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        fix = f"on that node: pip install --require-hashes --no-deps -r {expected.lock}, then start its Ray again"
        yield _finding(node, "packages", ", ".join(wrong[:_NAMED]) + more, fix)


def _gpus(node: NodeFacts) -> Iterator[Finding]:
    if node.ray_gpus and not node.gpus and not node.gpu_problem:
        fix = "install NVIDIA's driver there, or start its Ray with --num-gpus=0"
        yield _finding(node, "gpu", f"Ray counts {node.ray_gpus:g} GPUs, and no driver shows one", fix)
    if node.gpu_problem:
        fix = "look at `nvidia-smi` and `dmesg` there and restart the host; until then start its Ray without that card"
        yield _finding(node, "gpu", node.gpu_problem, fix)
    torch = node.packages.get("torch", "")
    if node.gpus and "+cpu" in torch:
        fix = "on that node: pip install --require-hashes --no-deps -r requirements.cuda.lock"
        yield _finding(node, "gpu", f"torch {torch} is the build without CUDA", fix)
    for number, gpu in enumerate(node.gpus):
        if gpu.celsius is not None and gpu.celsius >= HOTTEST_CELSIUS:
            fix = "look after its air, or lower its power limit (`nvidia-smi -pl`): it slows itself down"
            yield _finding(node, "gpu", f"card {number} ({gpu.name}) has {gpu.celsius} °C", fix)


def _places(node: NodeFacts, base: str) -> Iterator[Finding]:
    for place, free in node.free_bytes.items():
        if free < LEAST_FREE_BYTES:
            fix = "remove old runs and Ray sessions (/tmp/ray), or give it another disk"
            yield _finding(
                node, "disk", f"{free / 1e9:.1f} GB are free at {place}, {LEAST_FREE_BYTES / 1e9:g} are wanted", fix
            )
    for folder, problem in node.folders.items():
        if problem:
            fix = "mount the same folder there, writable for the user that runs Ray, or choose one that all nodes share"
            if is_remote(folder):
                fix = "every node needs a way to the store, and its credentials set before Ray is started there"
            yield _finding(node, "folder", f"{folder}: {problem}", fix)
    if node.base_problem:
        yield _finding(node, "base", node.base_problem, "copy the same base to the same path on every node")
    elif node.base != base:
        fix = "copy the base anew from a node that has the right one"
        yield _finding(
            node, "base", f"its files are others than elsewhere ({node.base[:8]} instead of {base[:8]})", fix
        )


def _doors(node: NodeFacts) -> Iterator[Finding]:
    if node.token_is_open:
        yield _finding(node, "token", "other users of the node can read its file", "chmod 600 ~/.ray/auth_token")
    for one in node.listeners:
        at = "every address" if one.address in _ANY else one.address
        where = f"{one.process} (process {one.pid}) listens on {at} at port {one.port}"
        match one.kind:
            case "dashboard":
                yield _finding(
                    node, "port", where, "start the head with --dashboard-host=127.0.0.1, as cluster.yaml does"
                )
            case "client" if (
                one.address in _ANY
            ):  # on the node's own address every head has it, and the token guards it
                fix = "start the head with --node-ip-address=ITS_ADDRESS, on which alone it then listens, or keep the port behind a firewall"
                yield _finding(node, "port", where, fix)
            case "other" if one.process != "sshd":
                fix = (
                    "stop it, or let it listen on 127.0.0.1: docs/how-to/cluster-security.md lists what has to be open"
                )
                yield _finding(node, "port", f"{where}, and it is no part of Ray", fix)
            case _:
                pass
