"""Ray Train's TorchTrainer, started in processes that are there already.

Ray Train gives its controller an environment of its own, which its helpers (three or four actors) inherit: each is a fresh
Python process, started twice over, while Ray's idle ones wait unused. On two cores that was a third of what a short run
costs around its training. The settings that the environment carries stand in `ray_environment` instead. A training that
waited in line (`slots`) has its place when it starts: its workers go there, and not to one of Ray Train's. A group that lost
a node waits for another one, and not for ever. Imports torch.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import PlacementGroupHandle, WorkerGroup
from ray.util import placement_group_table
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

from slm_ray.cluster import beside_driver
from slm_ray.training.slots import Bundles, Shortage, Turn


class RayTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose controller is an ordinary actor beside the driver. Ctrl-C is left to the driver.

    With a `turn` its workers take that turn's place.
    """

    turn: Turn | None = None

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        controller = beside_driver(PlacedController).remote(turn=self.turn, **settings)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class StartedTrainer(RayTrainer):
    """A trainer whose `fit` returns at once: `end` is ready when the run has ended, and its `controller` says how.

    It lives until `stop`, and no longer than the process that called `fit`. `homeless`, which travels to the controller, is
    called each half minute in which no node has room for its workers.
    """

    controller: Any
    end: Any
    homeless: Callable[[], None] | None = None
    _places: str

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        self._places = f"slm-ray-{uuid.uuid4().hex}"
        self.controller = beside_driver(PlacedController).remote(
            places=self._places, homeless=self.homeless, **settings
        )
        self.end = self.controller.run.remote()
        return SimpleNamespace(error=None)

    def stop(self) -> None:
        """End it, with the place that it has or still waits for: Ray would keep that for it until the driver ends."""
        ray.kill(self.controller)
        for known in placement_group_table().values():
            if known["name"].startswith(self._places) and known["state"] != "REMOVED":
                with contextlib.suppress(ValueError):  # Ray Train's own cleaner was faster
                    remove_placement_group(get_placement_group(known["name"]))


class PlacedController(TrainController):  # type: ignore[misc]
    """A controller whose groups of workers, the first and those that follow a lost one, take the place of a turn.

    Without a turn each asks Ray for a place, whose name begins with `places`.
    """

    def __init__(
        self, *, turn: Turn | None = None, places: str = "slm-ray", homeless: Callable[[], None] | None = None, **settings: Any
    ) -> None:  # fmt: skip
        seat = _Seat(turn, places, homeless)
        self.worker_group_cls = type("SeatedGroup", (_PlacedGroup,), {"seat": seat})
        super().__init__(**settings)


class _Seat:
    """How the groups of one controller get their places, one after the other."""

    def __init__(self, turn: Turn | None, places: str, homeless: Callable[[], None] | None) -> None:
        self.turn, self.places = turn, places
        self._homeless, self._shortage = homeless, Shortage()

    def is_missed(self, bundles: Bundles) -> None:
        """There was no place in time. ResourceError where that lasts because the cluster has become too small."""
        if self._homeless is not None:
            self._homeless()
        self._shortage.look(bundles)  # what it says stands in the training's own line


class _PlacedGroup(WorkerGroup):  # type: ignore[misc]
    seat: _Seat

    def _create_placement_group(self, _: Any, context: Any) -> PlacementGroupHandle:
        bundles = [dict(context.resources_per_worker)] * context.num_workers
        return _Place(self.seat, bundles, context.placement_strategy)


class _Place(PlacementGroupHandle):  # type: ignore[misc]
    """What a group asks its placement group. That of a turn is given back by who queued the training."""

    def __init__(self, seat: _Seat, bundles: Bundles, strategy: str) -> None:
        self._seat, self._bundles = seat, bundles
        self._taken: Any = None
        if seat.turn is None:
            name = f"{seat.places}-{uuid.uuid4().hex}"
            self._taken = placement_group(list(bundles), strategy=strategy, name=name)

    @property
    def placement_group(self) -> Any:
        return self._taken

    def ready(self) -> Any:
        return self._taken.ready()

    def wait(self, timeout_seconds: float = 30) -> bool:
        if self._seat.turn is not None:
            self._taken = self._seat.turn.taken(timeout_seconds)
            has_place = self._taken is not None
        else:
            has_place = bool(self._taken.wait(timeout_seconds))
        if not has_place:
            with contextlib.ExitStack() as given_up:
                given_up.callback(self.shutdown)  # Ray Train does that where it is told, and not where this raises
                self._seat.is_missed(self._bundles)
                given_up.pop_all()
        return has_place

    def shutdown(self) -> None:
        if self._seat.turn is None:
            remove_placement_group(self._taken)
