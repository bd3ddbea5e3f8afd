"""Folders that only some nodes see are refused with the names of the others. The nodes are folders here, and no Ray is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from slm_ray import cluster
from slm_ray.errors import ResourceError


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head without a slot, where this process is, and two workers; what lies in `shared` all of them see."""

    def node(name: str, **resources: float) -> dict[str, Any]:
        return {
            "NodeID": name,
            "NodeManagerHostname": name,
            "NodeManagerAddress": f"of {name}",
            "Alive": True,
            "Resources": resources,
        }

    def seen_from(name: str, path: Path) -> Path:
        return path if path.is_relative_to(tmp_path / "shared") else tmp_path / name / path.relative_to(tmp_path)

    def asked(name: str, folder: Path, wanted: Any) -> bool:
        there = seen_from(name, wanted) if isinstance(wanted, Path) else wanted
        return cluster._sees(seen_from(name, folder), there)

    known = [node("head", CPU=2), node("w1", CPU=1, slot=1), node("w2", CPU=1, slot=1)]
    monkeypatch.setattr(cluster, "_asked", asked)
    monkeypatch.setattr(ray, "nodes", lambda: known)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers, []))
    monkeypatch.setattr(ray, "get", lambda answer, **_: answer)
    return tmp_path


def test_a_folder_that_all_see_is_made_and_left_empty(nodes: Path) -> None:
    cluster.require_seen(
        {"slot": 1}, shared={"run_dir": nodes / "shared" / "run", "adapters_dir": "s3://bucket/adapters"}
    )
    assert list((nodes / "shared" / "run").iterdir()) == []


def test_a_folder_of_the_same_name_elsewhere_is_another_folder(nodes: Path) -> None:
    (nodes / "w1" / "run").mkdir(parents=True)
    with pytest.raises(ResourceError) as told:
        cluster.require_seen({"slot": 1}, shared={"run_dir": nodes / "run"})
    assert f"run_dir {nodes / 'run'} is not seen by nodes w1 (of w1), w2 (of w2)" in str(told.value)
    assert "NFS" in str(told.value) and list((nodes / "run").iterdir()) == []
    cluster.require_seen({"slot": 2}, shared={"run_dir": nodes / "run"})  # which no node could hold: none is asked


def test_a_base_may_lie_on_each_node_and_has_to_be_the_same(nodes: Path) -> None:
    for name in ("", "w1", "w2"):
        (nodes / name / "base").mkdir(parents=True)
        (nodes / name / "base" / "model.safetensors").write_text("weights")
        (nodes / name / "base" / ".cache").write_text(name)
    cluster.require_seen({"slot": 1}, shared={}, copies={"base": nodes / "base"})
    (nodes / "w2" / "base" / "model.safetensors").write_text("other weights")
    with pytest.raises(ResourceError, match=r"base .* is missing on node w2 \(of w2\), or has other files there"):
        cluster.require_seen({"slot": 1}, shared={}, copies={"base": nodes / "base"})


def test_a_node_on_which_nothing_starts_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        {
            "NodeID": f"{n:056x}",
            "NodeManagerHostname": name,
            "NodeManagerAddress": f"of {name}",
            "Alive": name != "gone",
        }
        for n, name in enumerate(("head", "w1", "gone", "w2"), start=1)
    ]

    class Pinned:
        def options(self, *, scheduling_strategy: Any, **_: Any) -> Pinned:
            self.node = scheduling_strategy.node_id
            return self

        def remote(self) -> str:
            return next(str(node["NodeManagerHostname"]) for node in known if node["NodeID"] == self.node)

    def get(answer: str, **_: Any) -> None:
        if answer == "w1":
            raise ray.exceptions.RuntimeEnvSetupError("it failed:\n[Errno 28] No space left on device")
        if answer == "w2":
            raise ray.exceptions.GetTimeoutError("Get timed out")

    monkeypatch.setattr(ray, "nodes", lambda: known)
    monkeypatch.setattr(ray, "remote", lambda _: Pinned())
    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers, []))
    monkeypatch.setattr(ray, "get", get)
    said = str(cluster.not_started("shards", ray.exceptions.RayError("odd")))
    assert said.startswith(
        "shards cannot be started on w1 (of w1): [Errno 28] No space left on device; w2 (of w2): Get timed out. Look at"
    )
    known = known[:1]
    assert str(cluster.not_started("shards", ray.exceptions.RayError("a\nb"))).startswith(
        "shards cannot be started (b). "
    )


def test_a_clock_is_ahead_by_what_the_way_there_and_back_does_not_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]

    def asked(ahead_s: float, took_s: float) -> float:
        def clock_s() -> float:
            now[0] += took_s
            return now[0] - took_s / 2 + ahead_s

        return cluster.ahead_s(SimpleNamespace(remote=clock_s))

    monkeypatch.setattr(ray, "get", lambda told, **_: told)
    monkeypatch.setattr(cluster, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0]))
    assert asked(60.0, 0.5) == pytest.approx(60.0) and asked(-3.0, 0.5) == pytest.approx(-3.0)
    assert asked(0.2, 0.5) == 0.0 and asked(0.0, 0.0) == 0.0
