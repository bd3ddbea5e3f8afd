"""Which failure of a training is worth another attempt, and the one line that is said of every other.

Ray Train starts a group of workers again whatever ended it. Only what took a worker or its node away can go otherwise the
second time: a setting, a loss that is not a number or a full disk fails again, minutes later. `GiveUp` ends such a run at
its first failure. It recovers nothing: what another attempt goes on from is the last checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from slm_ray import cluster
from slm_ray.config import TrainConfig
from slm_ray.errors import ResourceError, SlmRayError, TrainingError
from slm_ray.training import progress

AGAIN = "the same command continues from the last checkpoint"
# What the ranks that live on see of one that went: their connection breaks, in the words of gloo, NCCL and CUDA.
_BROKEN = re.compile(
    r"gloo|nccl|cuda error|connection (closed|reset|refused)|broken pipe|socket|health ?check|died", re.IGNORECASE
)
_NO_SPACE = re.compile(
    r"no space left|disk quota|file too large|PytorchStreamWriter failed writing|unexpected pos", re.IGNORECASE
)
_NO_SPACE_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


class GiveUp(UserCallback):  # type: ignore[misc]
    """Ends the run at once when its workers failed by themselves, and says that some were lost; runs in Ray Train's controller."""

    def __init__(self, config: TrainConfig, folder: str, progress_path: Path) -> None:
        self._config, self._folder, self._progress_path = config, folder, progress_path

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raise the reason of a failure that would come again; what a callback raises is never retried."""
        errors = list(worker_exceptions.values())
        certain = [error for error in errors if _fails_again(error)]
        if certain or not any(is_lost(error) for error in errors):
            raise explained((certain or errors)[0], self._config, self._folder)
        rank, lost = min(worker_exceptions.items())
        with contextlib.suppress(SlmRayError):  # a line that cannot be said is no reason to end the run
            progress.start(self._progress_path, lost=f"rank {rank}: {type(lost).__name__}", waits=self._waits())

    def _waits(self) -> bool:
        """Whether what is left of the cluster is too small for the group."""
        workers = self._config.workers
        return ray.is_initialized() and not cluster.fits([workers.per_worker] * workers.count)


def is_lost(error: BaseException) -> bool:
    """Whether a worker's error says that it, its node or another rank went away."""
    if _fails_again(error):
        return False
    return isinstance(error, RayError | ConnectionError) or bool(_BROKEN.search(f"{type(error).__name__} {error}"))


def explained(error: BaseException, config: TrainConfig, folder: str) -> SlmRayError:
    """The failure of one worker in one line, with what to do. `folder` is the run's, where traces are kept."""
    if isinstance(error, SlmRayError):
        return error
    if _is_full(error):
        return ResourceError(f"no space left for the checkpoints of {folder}: free some, then {AGAIN}")
    if _NO_MEMORY.search(str(error)):
        return ResourceError(
            f"a worker ran out of memory: lower per_device_batch (now {config.per_device_batch}) and raise "
            f"gradient_accumulation (now {config.gradient_accumulation}), or shorten the rows"
        )
    reason = (str(error).strip().splitlines() or ["no text"])[0]
    return TrainingError(
        f"a training worker failed: {type(error).__name__}: {reason}; its trace stands in {folder}/failure-*.txt. "
        f"It is not tried again by itself; once the cause is gone, {AGAIN}"
    )


def full_disk(error: BaseException, places: Sequence[str]) -> ResourceError | None:
    """On the node that an error comes from: the line that names it and the fullest of `places`; None for any other error."""
    if not _is_full(error):
        return None
    free = {place: _free_bytes(place) for place in places}
    fullest = min(places, key=lambda place: free[place])
    return ResourceError(
        f"no space left at {fullest} on {socket.gethostname()} ({free[fullest] / 1e6:,.0f} MB are free): free some, then {AGAIN}"
    )


def _free_bytes(place: str) -> float:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return float("inf")


def run_error(error: TrainingFailedError | RayError, config: TrainConfig, folder: str, attempts: int) -> SlmRayError:
    """What Ray Train raised at the end of a run, or Ray when the run's controller went away, as one line."""
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
        if own := [cause for cause in causes if not is_lost(cause)]:
            return explained(own[0], config, folder)
        return ResourceError(
            f"training workers were lost {attempts} times (memory, a lost node, or someone killed them): {AGAIN}"
        )
    cause = error.controller_failure if isinstance(error, ControllerError) else getattr(error, "cause", None) or error
    if isinstance(cause, SlmRayError):
        return cause
    reason = (str(cause).strip().splitlines() or ["no text"])[0]
    return ResourceError(
        f"Ray could not run the training: {type(cause).__name__}: {reason}; see `ray status`, then {AGAIN}, or remove "
        f"{folder} to start from its beginning"
    )


def _fails_again(error: BaseException) -> bool:
    """Whether the error has a cause of its own, whatever else went away at the same time."""
    return isinstance(error, SlmRayError) or _is_full(error) or bool(_NO_MEMORY.search(str(error)))


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _NO_SPACE_CODES or bool(_NO_SPACE.search(str(error)))
