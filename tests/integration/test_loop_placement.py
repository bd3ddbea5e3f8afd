"""Training beside an endpoint on a full cluster: it shares, takes turns or takes the endpoint's place; it never waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import ray

from slm_ray.config import LoopConfig, load
from slm_ray.loop.train import Placement, placement


@ray.remote(num_cpus=0)  # a decorator: a worker does not find this file, so the class must travel by value
class Holder:
    def ready(self) -> bool:
        return True


@contextmanager
def held(slots: int) -> Iterator[None]:
    holders: list[Any] = [cast(Any, Holder).options(resources={"slot": 1}).remote() for _ in range(slots)]
    ray.get([holder.ready.remote() for holder in holders])
    yield
    for holder in holders:
        ray.kill(holder)


def loop_config(**changes: str) -> LoopConfig:
    settings = [
        "training.workers={count: 2, per_worker: {slot: 1}}",
        *(f"{name}={value}" for name, value in changes.items()),
    ]
    return load(LoopConfig, "jobs/loop.yaml", settings)


@pytest.mark.parametrize(
    ("used", "parallel", "expected"),
    [
        (0, "true", (True, True)),
        (1, "true", (False, True)),
        (3, "true", (True, False)),
        (3, "false", (False, False)),
        (2, "false", (False, True)),
    ],
)
def test_placement_beside_what_runs(used: int, parallel: str, expected: tuple[bool, bool]) -> None:
    config = loop_config(parallel=parallel)
    with held(used):
        place = placement(config, 2)
    assert (place.parallel, place.beside_endpoint) == expected
    assert bool(place.note) == (place != Placement(parallel=config.parallel, beside_endpoint=True, note=""))


def test_a_cluster_for_one_group_trains_tracks_in_turn() -> None:
    config = loop_config(**{"training.workers.count": "4"})
    place = placement(config, 2)
    assert (place.parallel, place.beside_endpoint) == (False, True)
