"""Ray Tune over LoRA rank and learning rate: each trial is a Ray Train run, judged on validation rows it never saw.

The validation score is the track's primary metric, from answers that the trial's own model writes. The result is a table and
the best recipe in `run_dir/sweep.json`; a finished sweep is returned from there, and of an interrupted one the finished
trials are not trained again. It publishes no adapter: the best recipe is then trained on all rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from slm_ray import cluster
from slm_ray.config import Search, TrainConfig
from slm_ray.corpus.leakage import question_hashes, refuse_leakage
from slm_ray.corpus.render import digest
from slm_ray.errors import ResourceError
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.training import progress, rows
from slm_ray.training.launch import fit
from slm_ray.training.plan import Plan, plan
from slm_ray.types import Example

_RESULT = "sweep.json"
_DRIVER = {"CPU": 0.01}


def sweep(training: TrainConfig, settings: Search, *, validation: str) -> dict[str, Any]:
    """Try recipes around `training` and return `{"digest", "metric", "best": {…}, "trials": [{…}]}`.

    `validation` is a JSONL file of examples, none of which may ask what a training row asks. Trials are ranked by score,
    then by the smaller rank and rate. Raises as `train` does; a trial that fails has no score but an `error`, and
    ResourceError is raised when every trial failed.
    """
    recipes = trials(training, settings)
    plans = [plan(recipe, limit=settings.train_rows) for recipe in recipes]
    checked = rows.read(validation, training.track).examples[: settings.validation_rows]
    trained = question_hashes(rows.read(training.train, training.track).examples)
    refuse_leakage(checked, trained, rows=f"rows of {validation}", trained_name=training.train, fix=rows.SPLIT_AGAIN)
    folder = Path(training.run_dir).absolute()
    key = _digest(plans, checked)
    done = read_json(folder / _RESULT) if (folder / _RESULT).is_file() else {}
    if done.get("digest") == key:
        return dict(done)
    with lock(folder / "sweep"):
        table = _run(plans, checked, folder, settings)
        table.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0.0), row["rank"], row["learning_rate"]))
        if table[0]["score"] is None:
            raise ResourceError(f"every trial of the sweep failed; the first: {table[0]['error']}")
        best = {name: table[0][name] for name in ("learning_rate", "rank", "alpha", "score")}
        metric = open_track(training.track, beside=training.train).primary
        result = {"digest": key, "metric": metric, "best": best, "trials": table}
        write_json(folder / _RESULT, result)
        return result


def trials(training: TrainConfig, settings: Search) -> list[TrainConfig]:
    """The recipes to try: the whole grid, or `trials` of it drawn by seed. Alpha keeps its ratio to the rank."""
    grid = list(itertools.product(settings.learning_rates, settings.ranks))
    if len(grid) > settings.trials:
        grid = sorted(random.Random(training.seed).sample(grid, settings.trials))
    ratio = training.lora.alpha / training.lora.rank
    recipes = []
    for rate, rank in grid:
        lora = training.lora.model_copy(update={"rank": rank, "alpha": max(1, round(rank * ratio))})
        recipes.append(
            training.model_copy(
                update={
                    "learning_rate": rate, "lora": lora, "epochs": settings.epochs,
                    "name": f"lr{rate:g}-r{rank}", "run_dir": str(Path(training.run_dir) / "sweep"),
                }
            )
        )  # fmt: skip
    return recipes


def _run(plans: Sequence[Plan], checked: Sequence[Example], folder: Path, settings: Search) -> list[dict[str, Any]]:
    workers = plans[0].config.workers
    cluster.require([dict(workers.per_worker)] * workers.count, setting="training.workers")
    trial = tune.with_resources(tune.with_parameters(_trial, plans=list(plans), checked=tuple(checked)), _DRIVER)
    tuner = tune.Tuner(
        trial,
        param_space={"number": tune.grid_search(list(range(len(plans))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=_concurrent(workers)),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder / "sweep"), verbose=0),
    )
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints its own table in spite of verbose=0
    for planned in plans:
        if not (
            planned.folder / "trial.json"
        ).is_file():  # what an interrupted sweep has left is not how far this one is
            planned.progress_path.unlink(missing_ok=True)
    with progress.shown([planned.progress_path for planned in plans]):
        grid = tuner.fit()
    errors = {outcome.config["number"]: str(outcome.error).splitlines()[-1] for outcome in grid if outcome.error}
    return [_row(planned, errors.get(number)) for number, planned in enumerate(plans)]


def _trial(config: dict[str, Any], plans: Sequence[Plan], checked: Sequence[Example]) -> None:
    """One trial, in a driver of its own: a Ray Train run named after the recipe, so that a repeat continues it."""
    planned = plans[config["number"]]
    path = planned.folder / "trial.json"
    if path.is_file():
        tune.report(read_json(path))
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    outcome = fit(planned, validation=checked, callbacks=[TuneReportCallback()])
    write_json(path, outcome["metrics"])
    tune.report(outcome["metrics"])


def _row(planned: Plan, error: str | None) -> dict[str, Any]:
    config = planned.config
    row = {"learning_rate": config.learning_rate, "rank": config.lora.rank, "alpha": config.lora.alpha}
    if error is not None or not (planned.folder / "trial.json").is_file():
        return {**row, "score": None, "error": error or "the trial did not finish"}
    metrics = read_json(planned.folder / "trial.json")
    return {**row, "score": metrics.pop("validation_score"), "metrics": metrics}


def _concurrent(workers: Any) -> int:
    """As many trials as fit beside what runs now: one that waits for what an endpoint holds would wait for ever."""
    free = ray.available_resources()
    fits = [free.get(name, 0.0) / (amount * workers.count) for name, amount in workers.per_worker.items() if amount]
    return max(1, int(min(fits, default=1) + 1e-6))


def _digest(plans: Sequence[Plan], checked: Sequence[Example]) -> str:
    parts = [planned.folder.name for planned in plans]
    return hashlib.sha256(json.dumps([parts, digest(checked)]).encode()).hexdigest()
