"""Training beside an endpoint on a full cluster: beside it, in line, or in its place; and nothing is held by who is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray import serve
from ray.util.placement_group import placement_group_table
from serving_fixtures import free_port

from slm_ray.config import LoopConfig, load
from slm_ray.loop import session
from slm_ray.loop.run import Loop
from slm_ray.loop.train import placement
from slm_ray.serving import shutdown
from slm_ray.training.slots import Turn, in_line

SLOTS = 4


@ray.remote(num_cpus=0)  # a decorator: a worker does not find this file, so the class must travel by value
class Holder:
    def ready(self) -> bool:
        return True


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def passed(self) -> None:
        await self.opened.wait()

    async def open(self) -> None:
        self.opened.set()


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def trained(seconds: float = 0.0) -> bool:
    time.sleep(seconds)
    return True


@contextmanager
def held(slots: int) -> Iterator[None]:
    holders: list[Any] = [cast(Any, Holder).options(resources={"slot": 1}).remote() for _ in range(slots)]
    ray.get([holder.ready.remote() for holder in holders])
    try:
        yield
    finally:
        for holder in holders:
            ray.kill(holder)


def loop_config(count: int = 2, **changes: str) -> LoopConfig:
    settings = [
        f"training.workers={{count: {count}, per_worker: {{slot: 1}}}}",
        *(f"{name}={value}" for name, value in changes.items()),
    ]
    return load(LoopConfig, Path(__file__).parents[2] / "jobs/loop.yaml", settings)


def free_slots() -> float:
    return float(ray.available_resources().get("slot", 0.0))


def all_free(within_s: float = 60.0) -> bool:
    limit = time.monotonic() + within_s
    while free_slots() < SLOTS and time.monotonic() < limit:
        time.sleep(0.1)
    return free_slots() == SLOTS


def bundles(slots: int) -> list[dict[str, float]]:
    return [{"slot": 1.0}] * slots


@pytest.mark.parametrize(
    ("used", "tracks", "beside", "told"),
    [(0, 2, True, ""), (1, 2, True, "wait in line"), (3, 2, False, "taken down"), (2, 1, True, "")],
)
def test_placement_beside_what_runs(used: int, tracks: int, beside: bool, told: str) -> None:
    assert all_free()
    with held(used):
        place = placement(loop_config(), tracks)
    assert place.beside_endpoint is beside
    assert told in place.note and bool(place.note) == bool(told)


def test_trainings_of_any_size_begin_in_their_order_and_leave_nothing_behind() -> None:
    assert all_free()
    began: list[tuple[int, float]] = []

    def start(turn: Turn) -> Any:
        began.append((turn.number, free_slots()))
        return trained.remote(0.3)

    ended = in_line(list(map(bundles, [1, 1, 4, 1, 2, 1])), start)
    assert [number for number, _ in began] == [0, 1, 2, 3, 4, 5]
    assert ray.get(ended) == [True] * 6
    assert all_free(5)


@contextmanager
def endpoint_of(slots: int) -> Iterator[Callable[..., Any]]:
    """What brings a stand-in endpoint up: an application of ours by name that holds a slot and answers anything."""
    port = free_port()

    @serve.deployment(ray_actor_options={"num_cpus": 0, "resources": {"slot": slots}})
    class Engine:
        def __call__(self) -> str:
            return "ok"

    def deployed(*_: Any, **__: Any) -> Any:
        if f"slm-ray-{port}" not in serve.status().applications:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(cast(Any, Engine).bind(), name=f"slm-ray-{port}", route_prefix="/")
        return SimpleNamespace(url=f"http://127.0.0.1:{port}", model_name="tiny-base", app=f"slm-ray-{port}")

    try:
        yield deployed
    finally:
        shutdown()


def test_endpoint_and_training_share_the_slots_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint holds one of four slots; groups of 1, 2 and 4 train, and it answers again after each."""
    assert all_free()
    monkeypatch.setattr(session, "check_template", lambda *_: None)
    monkeypatch.setattr(session, "check_deployed", lambda *_: {})
    up_while_training: dict[int, bool] = {}

    def train(size: int, tracks: int) -> Callable[[Callable[[], None]], None]:
        def job(make_room: Callable[[], None]) -> None:
            make_room()

            def start(_: Turn) -> Any:
                up_while_training[size] = any(name.startswith("slm-ray-") for name in serve.status().applications)
                return trained.remote(0.2)

            in_line([bundles(size)] * tracks, start)

        return job

    with endpoint_of(1) as deployed:
        monkeypatch.setattr(session, "deploy", deployed)
        for size in (1, 2, 4):
            loop = Loop(loop_config(size, run_dir=str(tmp_path / str(size)), stand_in="false"), {})
            with loop.log:
                loop.deploy({})
                loop.train([cast(Any, SimpleNamespace(adapter=None))] * 2, train(size, tracks=2))
            assert serve.get_app_handle(loop.endpoint.app).remote().result(timeout_s=30) == "ok"
            assert ("taken down" in (tmp_path / str(size) / "log.txt").read_text()) is (size == SLOTS)
    assert up_while_training == {1: True, 2: True, 4: False}
    assert all_free()


DRIVER = """
import sys, time, ray
from slm_ray.serving.lifetime import ends_with_driver
from slm_ray.training.slots import in_line
ray.init(address=sys.argv[1], log_to_driver=False)
pulse = ends_with_driver(sys.argv[2])

@ray.remote(num_cpus=0)
def train():
    time.sleep(600)

def start(turn):
    print("has its place", flush=True)
    return train.remote()

in_line([[{"slot": 1.0}] * 2, [{"slot": 1.0}] * 4], start)
"""


def test_a_killed_driver_leaves_no_slot_held_neither_by_its_training_nor_by_its_endpoint() -> None:
    assert all_free()
    address = ray.get_runtime_context().gcs_address
    with endpoint_of(1) as deployed:
        app = deployed().app
        command = [sys.executable, "-c", DRIVER, address, app]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "has its place\n"
            assert free_slots() == 1
            os.kill(driver.pid, signal.SIGKILL)
        assert all_free()
        assert app not in serve.status().applications
    assert len(in_line([bundles(SLOTS)], lambda _: trained.remote())) == 1


@contextmanager
def node(resources: str) -> Iterator[None]:
    """One more node of this session's cluster, on this machine."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", f"--address={ray.get_runtime_context().gcs_address}",
        "--num-cpus=0", f"--resources={resources}", "--object-store-memory=80000000", "--block",
    ]  # fmt: skip
    joining = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        joining.terminate()
        joining.wait(30)


def test_a_node_that_joins_while_trainings_wait_is_used_at_once() -> None:
    """Two slots and four trainings; the first two end when the last one has begun, so a node has to bring two more."""
    assert all_free()
    gate = cast(Any, Gate).remote()
    too_late = threading.Event()

    def give_up() -> None:
        too_late.set()
        gate.open.remote()

    timer = threading.Timer(200, give_up)
    with ExitStack() as joined, held(2):

        def start(turn: Turn) -> Any:
            if turn.number == 1:
                timer.start()
                joined.enter_context(node('{"slot": 2}'))
            if turn.number == 3:
                gate.open.remote()
            return gate.passed.remote()

        in_line(list(map(bundles, [1, 1, 1, 1])), start)
        timer.cancel()
        on: list[set[str]] = []

        def placed(turn: Turn) -> Any:
            on.append(set(placement_group_table(turn.taken())["bundles_to_node_id"].values()))
            return trained.remote(1.0)

        in_line([bundles(2), bundles(2)], placed)
    assert [len(nodes) for nodes in on] == [1, 1] and on[0] != on[1], "a group is packed, and groups are spread"
    assert not too_late.is_set(), "those in line waited for the first two to end"
    assert all_free()
