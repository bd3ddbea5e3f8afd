"""Several training runs side by side, each scored on validation rows at its end: what a sweep and a learning curve share.

Each trial is a Ray Train run under Ray Tune, named after its content. A finished one is never trained again: on other
validation rows its last checkpoint is scored anew. An interrupted one continues from its checkpoint. No adapter is
published.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from slm_ray import cluster
from slm_ray.config import Workers
from slm_ray.corpus.render import digest
from slm_ray.storage import read_json, write_json
from slm_ray.training import progress
from slm_ray.training.launch import fit
from slm_ray.training.plan import Plan
from slm_ray.types import Example

_RESULT = "trial.json"
_DRIVER = {"CPU": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training run and what it scored: `score` is the track's primary metric, None where the run failed (`error`).

    `rows` are the primary metric by validation row (None where it is undefined), `loss` is the mean cross-entropy of a
    token of their targets.
    """

    plan: Plan
    score: float | None
    metrics: dict[str, Any]
    loss: float = math.inf
    rows: tuple[float | None, ...] = ()
    error: str | None = None


def run_trials(plans: Sequence[Plan], validation: Sequence[Example], folder: Path) -> list[Trial]:
    """Train every plan, as many at once as the cluster has room for, and score it; in order. `folder` is Tune's own.

    Joins Ray. ResourceError when the cluster could never hold one; a trial that fails does not stop the others.
    """
    cluster.connect()
    workers = plans[0].config.workers
    cluster.require([dict(workers.per_worker)] * workers.count, setting="training.workers")
    rows_digest = digest(validation)
    trial = tune.with_resources(
        tune.with_parameters(_trial, plans=list(plans), validation=tuple(validation), rows_digest=rows_digest), _DRIVER
    )
    tuner = tune.Tuner(
        trial,
        param_space={"number": tune.grid_search(list(range(len(plans))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=_concurrent(workers)),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    )
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints its own table in spite of verbose=0
    for planned in plans:
        if _scored(planned, rows_digest) is None:  # what an interrupted run has left is not how far this one is
            planned.progress_path.unlink(missing_ok=True)
    with progress.shown([planned.progress_path for planned in plans]):
        grid = tuner.fit()
    errors = {outcome.config["number"]: str(outcome.error).splitlines()[-1] for outcome in grid if outcome.error}
    return outcomes(plans, rows_digest, errors)


def outcomes(plans: Sequence[Plan], rows_digest: str, errors: Mapping[int, str]) -> list[Trial]:
    """What became of each plan: its score on the validation rows of that digest, or its error, by place.

    KeyboardInterrupt when one has neither: Tune ends without a word at Ctrl-C, and half of the trials are no result.
    """
    trials = []
    for number, planned in enumerate(plans):
        metrics = _scored(planned, rows_digest)
        if number in errors:
            trials.append(Trial(plan=planned, score=None, metrics={}, error=errors[number]))
        elif metrics is None:
            raise KeyboardInterrupt
        else:
            score, loss, by_row = (metrics.pop(f"validation_{name}") for name in ("score", "loss", "rows"))
            trials.append(Trial(plan=planned, score=score, metrics=metrics, loss=loss, rows=tuple(by_row)))
    return trials


def _trial(config: dict[str, Any], plans: Sequence[Plan], validation: Sequence[Example], rows_digest: str) -> None:
    """One trial, in a driver of its own: a Ray Train run named after its content, so that a repeat continues it."""
    planned = plans[config["number"]]
    if (metrics := _scored(planned, rows_digest)) is not None:
        tune.report(metrics)
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    outcome = fit(planned, validation=validation, callbacks=[TuneReportCallback()])
    write_json(planned.folder / _RESULT, {"validation": rows_digest, "metrics": outcome["metrics"]})
    tune.report(outcome["metrics"])


def _scored(planned: Plan, rows_digest: str) -> dict[str, Any] | None:
    """The figures of a trial that has been scored on these validation rows."""
    path = planned.folder / _RESULT
    done = read_json(path) if path.is_file() else {}
    return dict(done["metrics"]) if done.get("validation") == rows_digest else None


def _concurrent(workers: Workers) -> int:
    """As many trials as fit beside what runs now: one that waits for what an endpoint holds would wait for ever."""
    free = ray.available_resources()
    fits = [free.get(name, 0.0) / (amount * workers.count) for name, amount in workers.per_worker.items() if amount]
    return max(1, int(min(fits, default=1) + 1e-6))
