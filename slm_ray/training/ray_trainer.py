"""Ray Train's TorchTrainer, started in processes that are there already.

Ray Train gives its controller an environment of its own, which its helpers (three or four actors) inherit: each is a fresh
Python process, started twice over, while Ray's idle ones wait unused. On two cores that was a third of what a short run
costs around its training. The settings that the environment carries stand in `ray_environment` instead. A training that
waited in line (`slots`) has its place when it starts: its workers go there, and not to one of Ray Train's. Imports torch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import PlacementGroupHandle, WorkerGroup

from slm_ray.cluster import beside_driver
from slm_ray.training.slots import Turn


class RayTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose controller is an ordinary actor beside the driver. Ctrl-C is left to the driver.

    With a `turn` its workers take that turn's place.
    """

    turn: Turn | None = None

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        controller = _controller(settings, self.turn)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class StartedTrainer(RayTrainer):
    """A trainer whose `fit` returns at once: `end` is ready when the run has ended, and its `controller` says how.

    It lives as long as `controller`, and no longer than the process that called `fit`.
    """

    controller: Any
    end: Any

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        self.controller = _controller(settings)
        self.end = self.controller.run.remote()
        return SimpleNamespace(error=None)


class PlacedController(TrainController):  # type: ignore[misc]
    """A controller whose groups of workers, the first and those that follow a lost one, take the place of a turn."""

    def __init__(self, *, turn: Turn, **settings: Any) -> None:
        self.worker_group_cls = type("TurnsGroup", (_PlacedGroup,), {"turn": turn})
        super().__init__(**settings)


class _PlacedGroup(WorkerGroup):  # type: ignore[misc]
    turn: Turn

    def _create_placement_group(self, *_: Any) -> PlacementGroupHandle:
        return _Place(self.turn)


class _Place(PlacementGroupHandle):  # type: ignore[misc]
    """What a group asks its placement group. It is given back by who queued the training, not by a group that ends."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._taken: Any = None

    @property
    def placement_group(self) -> Any:
        return self._taken

    def ready(self) -> Any:
        return self._taken.ready()

    def wait(self, timeout_seconds: float = 30) -> bool:
        self._taken = self._turn.taken(timeout_seconds)
        return self._taken is not None

    def shutdown(self) -> None:
        pass


def _controller(settings: dict[str, Any], turn: Turn | None = None) -> Any:
    if turn is not None:
        return beside_driver(PlacedController).remote(turn=turn, **settings)
    return beside_driver(TrainController).remote(**settings)
