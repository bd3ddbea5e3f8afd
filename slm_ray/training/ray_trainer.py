"""Ray Train's TorchTrainer, started in processes that are there already.

Ray Train gives its controller an environment of its own, which its helpers (three or four actors) inherit: each is a fresh
Python process, started twice over, while Ray's idle ones wait unused. On two cores that was a third of what a short run
costs around its training. The settings that the environment carries stand in `ray_environment` instead. Imports torch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class RayTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose controller is an ordinary actor beside the driver. Ctrl-C is left to the driver."""

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        controller = _controller(settings)
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


def _controller(settings: dict[str, Any]) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(TrainController).remote(**settings)
