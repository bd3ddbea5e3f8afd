"""Several training runs scored on validation rows at their end: what a sweep and a learning curve share.

Resident groups train them, as many at once as there is room for (`resident`). Each is named after its content and is
never trained again once it is finished: on other validation rows its last checkpoint is scored anew. An interrupted one
continues from its checkpoint. No adapter is published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from slm_ray import cluster
from slm_ray.corpus.render import digest
from slm_ray.training import progress, resident
from slm_ray.training.plan import Plan
from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training run and what it scored: `score` is the track's primary metric.

    `rows` are the primary metric by validation row (None where it is undefined), `loss` is the mean cross-entropy of a
    token of their targets. There is no score where the run failed (`error`), or was ended early, after `stopped_at` steps.
    """

    plan: Plan
    score: float | None
    metrics: dict[str, Any]
    loss: float = math.inf
    rows: tuple[float | None, ...] = ()
    error: str | None = None
    stopped_at: int | None = None


def run_trials(plans: Sequence[Plan], validation: Sequence[Example], folder: Path) -> list[Trial]:
    """Train every plan to its end and score it; in order. `folder` is for Ray Train's own files.

    Joins Ray. ResourceError when the cluster could never hold one; a trial that fails does not stop the others.
    """
    cluster.connect()
    workers = plans[0].config.workers
    resident.require(workers)
    rows_digest = digest(validation)
    todo = [planned for planned in plans if resident.recorded(planned.folder, rows_digest) is None]
    for planned in todo:  # what an interrupted run has left is not how far this one is
        planned.progress_path.unlink(missing_ok=True)
    errors: dict[str, str] = {}
    with progress.shown([planned.progress_path for planned in plans]):
        for precision in dict.fromkeys(planned.config.precision for planned in todo):
            # New workers for each: what one takes of memory is measured, and must be its own.
            errors |= _train([planned for planned in todo if planned.config.precision == precision], validation, folder)
    return outcomes(plans, rows_digest, errors)


def _train(plans: Sequence[Plan], validation: Sequence[Example], folder: Path) -> dict[str, str]:
    """Train these by groups of their own; why some failed, by the folder's name."""
    first = plans[0].config
    groups = resident.concurrent(first.workers, len(plans))
    with resident.desk(first.workers, groups, seed=first.seed, folder=folder / first.precision) as desk:
        ray.get([desk.submit.remote(resident.work(planned, validation, desk=desk)) for planned in plans])
        ray.get([desk.hear.remote(planned.folder.name) for planned in plans])
        errors: dict[str, str] = ray.get(desk.errors.remote())
    return errors


def outcomes(plans: Sequence[Plan], rows_digest: str, errors: Mapping[str, str]) -> list[Trial]:
    """What became of each plan: its record on the validation rows of that digest, or its error, by the folder's name.

    KeyboardInterrupt when one has neither: Tune ends without a word at Ctrl-C, and half of the trials are no result.
    """
    trials = []
    for planned in plans:
        record = resident.recorded(planned.folder, rows_digest)
        if planned.folder.name in errors:
            trials.append(Trial(plan=planned, score=None, metrics={}, error=errors[planned.folder.name]))
        elif record is None:
            raise KeyboardInterrupt
        else:
            metrics = record["metrics"]
            loss, by_row = metrics.pop("validation_loss"), metrics.pop("validation_rows", ())
            score, stopped_at = metrics.pop("validation_score", None), metrics.pop("stopped_at", None)
            trials.append(
                Trial(
                    plan=planned, score=score, metrics=metrics, loss=loss, rows=tuple(by_row), stopped_at=stopped_at
                )
            )  # fmt: skip
    return trials
