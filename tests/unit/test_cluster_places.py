"""Where work may be placed: what the cluster or this node lacks, in words, and who may be asked from where. No Ray is started."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state

from slm_ray import cluster
from slm_ray.config import EvaluateConfig, Serving
from slm_ray.errors import ResourceError
from slm_ray.evaluation.plan import asked_on_loopback, plan
from slm_ray.serving import endpoint

HEAD = "node:__internal_head__"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A head with CPUs, two workers with a slot each, and where this process is."""

    def node(name: str, **resources: float) -> dict[str, Any]:
        return {
            "NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": f"10.0.0.{len(name)}", "Alive": True,
            "Resources": resources,
        }  # fmt: skip

    known = [node("w1", CPU=1, slot=1), node("head", CPU=2, **{HEAD: 1.0}), node("w-2", CPU=1, slot=1, GPU=1)]
    place = SimpleNamespace(node="head")
    monkeypatch.setattr(ray, "nodes", lambda: known)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4, "slot": 2, "GPU": 1, HEAD: 1.0})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: place.node))
    return place


def test_what_a_cluster_lacks_is_said_with_what_it_has(here: SimpleNamespace) -> None:
    assert cluster.shortage([{"slot": 1}, {"slot": 1}]) == ""
    assert cluster.shortage([{"slot": 1}] * 3) == "asks for 3 slot, the cluster has 2 slot"
    assert cluster.shortage([{"slot": 2}]) == "asks for 2 slot on one node, and none has that"
    with pytest.raises(ResourceError, match=r"training\.workers asks for 2 slot on one node"):
        cluster.require([{"slot": 2}], setting="training.workers")


def test_what_has_to_be_on_this_node_is_measured_by_this_node(here: SimpleNamespace) -> None:
    cluster.require_here([{"CPU": 1}, {"CPU": 1}], setting="shards", why="it is asked here")
    with pytest.raises(ResourceError, match="shards asks for 1 slot, this node has 0 slot, and it is asked here"):
        cluster.require_here([{"slot": 1}], setting="shards", why="it is asked here")


@pytest.mark.parametrize(
    ("url", "stays"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000", True),
        ("http://10.0.0.4:8000", False),
        ("http://head.example.internal:8000", False),
    ],
)
def test_an_endpoint_on_loopback_is_asked_from_the_driver_s_node_alone(tmp_path: Path, url: str, stays: bool) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    config = EvaluateConfig(
        track="chat", examples=str(tmp_path / "rows.jsonl"), models=("fake:x", "served:m"), run_dir=str(tmp_path / "run"),
        endpoint=url,
    )  # fmt: skip
    arms = plan(config, {}).arms
    assert bool(why := asked_on_loopback(arms)) is stays
    assert not stays or "served:m is asked at" in why
    assert asked_on_loopback([arm for arm in arms if arm.spec == "fake:x"]) == ""


def test_a_stand_in_for_the_llm_on_loopback_keeps_the_shards_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    config = EvaluateConfig(
        track="chat", examples=str(tmp_path / "rows.jsonl"), models=("azure:",), run_dir=str(tmp_path / "run")
    )
    known = {"AZURE_ENDPOINT": "http://127.0.0.1:8000", "AZURE_DEPLOYMENT": "stand-in", "AZURE_API_KEY": "local"}
    assert "127.0.0.1" in asked_on_loopback(plan(config, known).arms)


def test_an_endpoint_on_loopback_is_refused_to_a_job_that_is_not_on_the_head(here: SimpleNamespace) -> None:
    here.node = "w1"
    with pytest.raises(
        ResourceError, match=r"the head alone \(head\).* or set SLM_RAY_API_KEY and serving.host to 0.0.0.0"
    ):
        endpoint._check_seen_from_here(Serving())
    endpoint._check_seen_from_here(Serving(host="0.0.0.0"))
    assert endpoint.address(Serving(host="0.0.0.0")) == "http://10.0.0.4:8000", "the head's, where the proxy is"
    here.node = "head"
    endpoint._check_seen_from_here(Serving())


@pytest.fixture
def closed_head() -> Iterator[str]:
    """The address of what answers as a head does that asks for the token `right`; Ray reads this process's anew after it."""

    def answer(handled: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        shown = dict(handled.invocation_metadata).get("authorization")

        def alive(_: bytes, context: grpc.ServicerContext) -> bytes:
            if shown != "Bearer right":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(alive)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[SimpleNamespace(service=answer)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)
    reset_auth_token_state()


@pytest.mark.parametrize("token", ["", "wrong", "right"])
def test_another_ray_on_this_machine_lets_in_who_has_its_token_and_is_named_to_all_others(
    closed_head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(closed_head, encoding="utf-8")
    given = {"RAY_TMPDIR": str(tmp_path), "HOME": str(tmp_path), "RAY_AUTH_MODE": "token" if token else "disabled"}
    for name, value in {**given, "RAY_AUTH_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    reset_auth_token_state()
    joined: list[str] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    if token == "right":
        cluster.connect()
        assert joined == [closed_head]
        return
    with pytest.raises(ResourceError, match="refuses the token") as error:
        cluster.connect()
    assert closed_head in str(error.value) and "RAY_ADDRESS=local" in str(error.value)
    assert not joined  # it would ask for 15 s


def test_a_ray_of_its_own_is_started_for_a_run_that_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", lambda address, **_: started.append(address))
    cluster.connect()
    assert started == ["local"]
