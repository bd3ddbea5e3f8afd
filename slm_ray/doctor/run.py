"""Looking at every node of the Ray cluster at once: a task pinned to each, the asker's own node from within.

A node that does not answer in time is a red line, not a wait. What is wrong is judged by `rules` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slm_ray import cluster, storage
from slm_ray.config import DoctorConfig
from slm_ray.doctor.facts import NodeFacts, Question, Silent, clock_s, examine
from slm_ray.doctor.rules import Expected, Finding, findings, pins_of
from slm_ray.remote import is_remote

ANSWER_S = 10.0  # what a node may take to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All nodes, and what is wrong with them."""

    nodes: tuple[NodeFacts | Silent, ...]
    findings: tuple[Finding, ...]


def doctor(config: DoctorConfig, *, within_s: float = ANSWER_S) -> Examination:
    """Everything about every node of the cluster that this process joins, `within_s` each; raises as `cluster.connect` does."""
    pins = pins_of(storage.read_text(config.lock)) if config.lock else None
    cluster.connect()
    places = [place for place in (config.run_dir, config.adapters_dir) if place]
    with _marked(places) as (folders, mark):
        stores = tuple(dict.fromkeys(place for place in places if is_remote(place)))
        question = Question(folders=folders, stores=stores, mark=mark, base=_for_all(config.base))
        nodes = ask_all(question, within_s=within_s)
    head = ray.get_runtime_context().gcs_address
    expected = Expected(
        python=platform.python_version(), pins=pins, lock=config.lock or "requirements.lock",
        without_token=cluster.answer_without_token(head),
    )  # fmt: skip
    return Examination(nodes=tuple(nodes), findings=tuple(findings(nodes, expected)))


def ask_all(question: Question, *, within_s: float) -> list[NodeFacts | Silent]:
    """What every living node says within so many seconds, in the order of their addresses."""
    mine = ray.get_runtime_context().get_node_id()
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerAddress"]))
    asked = {
        node["NodeID"]: _pinned(examine, node).remote(*_named(node), question)
        for node in alive
        if node["NodeID"] != mine
    }
    deadline = time.monotonic() + within_s
    heard: dict[str, NodeFacts | Silent] = {
        node["NodeID"]: examine(*_named(node), question) for node in alive if node["NodeID"] == mine
    }
    ray.wait(
        list(asked.values()), num_returns=len(asked), timeout=max(0.0, deadline - time.monotonic())
    ) if asked else None
    for node in alive:
        if node["NodeID"] in asked:
            heard[node["NodeID"]] = _answer(node, asked[node["NodeID"]], within_s)
    return [heard[node["NodeID"]] for node in alive]


def _named(node: Any) -> tuple[str, float]:
    """How the table calls the node, and the GPUs that Ray counts on it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", float(node["Resources"].get("GPU", 0.0))


def _pinned(function: Any, node: Any) -> Any:
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here)


def _answer(node: Any, reference: Any, within_s: float) -> NodeFacts | Silent:
    name, _ = _named(node)
    try:
        facts: NodeFacts = ray.get(reference, timeout=0)
        # Asked of a process that is there by now, so that the way there and back is short.
        late_s = cluster.ahead_s(_pinned(clock_s, node), within_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return Silent(node=name, reason=f"no answer within {within_s:g} s")
    except ray.exceptions.RayError as error:
        return Silent(node=name, reason=f"it could not be examined ({str(error).strip().splitlines()[-1][:200]})")
    return dataclasses.replace(facts, late_s=round(late_s, 3))


def _for_all(base: str | None) -> str | None:
    """The base as any process of any folder finds it."""
    return str(Path(base).absolute()) if base and Path(base).is_dir() else base


@contextlib.contextmanager
def _marked(places: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The folders, or where they would be made, with a file of ours in each, by which other nodes know them again.

    A folder that takes no file has none, and every node says what is wrong with it.
    """
    mark = f".doctor-{uuid.uuid4().hex}"
    local = [place for place in places if not is_remote(place)]  # an object store is no folder of a node
    folders = tuple(dict.fromkeys(str(_existing(Path(place).expanduser().absolute())) for place in local))
    try:
        for folder in folders:
            with contextlib.suppress(OSError):
                (Path(folder) / mark).touch()
        yield folders, mark
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                (Path(folder) / mark).unlink()


def _existing(place: Path) -> Path:
    """The nearest folder that is there; one that cannot be looked at (no right to, a stale mount) is named as it is."""
    try:
        return next(folder for folder in (place, *place.parents) if folder.is_dir())
    except OSError:
        return place
