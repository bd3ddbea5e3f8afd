"""Ray Tune over LoRA rank and learning rate: each trial is a Ray Train run, judged on validation rows it never saw.

The validation score is the track's primary metric, from answers that the trial's own model writes. The result is a table and
the best recipe in `run_dir/sweep.json`; a finished sweep is returned from there, and of an interrupted one the finished
trials are not trained again. It publishes no adapter: the best recipe is then trained on all rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_ray.config import Search, TrainConfig
from slm_ray.corpus.render import digest
from slm_ray.errors import ResourceError
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.training import rows
from slm_ray.training.plan import Plan, plan
from slm_ray.training.trials import Trial, held_out, run_trials
from slm_ray.types import Example

_RESULT = "sweep.json"


def sweep(training: TrainConfig, settings: Search, *, validation: str) -> dict[str, Any]:
    """Try recipes around `training` and return `{"digest", "metric", "best": {…}, "trials": [{…}]}`.

    `validation` is a JSONL file of examples, none of which may ask what a training row asks. Trials are ranked by score,
    then by the smaller rank and rate. Raises as `train` does; a trial that fails has no score but an `error`, and
    ResourceError is raised when every trial failed.
    """
    recipes = trials(training, settings)
    train = rows.read(training.train, training.track)
    plans = [plan(recipe, train=train.first(settings.train_rows)) for recipe in recipes]
    checked = held_out(validation, train, training.track)[: settings.validation_rows]
    folder = Path(training.run_dir).absolute()
    key = _digest(plans, checked)
    done = read_json(folder / _RESULT) if (folder / _RESULT).is_file() else {}
    if done.get("digest") == key:
        return dict(done)
    with lock(folder / "sweep"):
        table = [_row(trial) for trial in run_trials(plans, checked, folder / "sweep")]
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


def _row(trial: Trial) -> dict[str, Any]:
    config = trial.plan.config
    row = {"learning_rate": config.learning_rate, "rank": config.lora.rank, "alpha": config.lora.alpha}
    if trial.score is None:
        return {**row, "score": None, "error": trial.error}
    return {**row, "score": trial.score, "metrics": trial.metrics}


def _digest(plans: Sequence[Plan], checked: Sequence[Example]) -> str:
    parts = [planned.folder.name for planned in plans]
    return hashlib.sha256(json.dumps([parts, digest(checked)]).encode()).hexdigest()
