"""A search over LoRA rank and learning rate: each trial is trained by resident workers and judged on validation rows it never saw.

The validation score is the track's primary metric, from answers that the trial's own model writes. Equal scores are told
apart by the loss on the validation rows, then by what a trial cost. The winner is compared with the runner-up in pairs:
where no difference is shown, the result says so. It is a table and the best recipe in `run_dir/sweep.json`; a finished
sweep is returned from there, and of an interrupted one the finished trials are not trained again. It publishes no
adapter: the best recipe is then trained on all rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray import adapters
from slm_ray.config import Search, TrainConfig
from slm_ray.errors import ResourceError
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.training import rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.launch import join
from slm_ray.training.plan import plan
from slm_ray.training.search import Searched, search
from slm_ray.training.trials import Trial
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval

_RESULT = "sweep.json"


def sweep(
    training: TrainConfig, settings: Search, *, validation: str, make_room: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Try recipes around `training` and return `{"digest", "metric", "best": {…}, "choice": {…}, "trials": [{…}]}`.

    `validation` is a JSONL file of examples, none of which may ask what a training row asks. Trials are ranked by score,
    loss, cost (`ranked`). Raises as `train` does; a trial that fails has no score but an `error`, and ResourceError is
    raised when every trial failed. `make_room` is called before workers are asked for, unless the sweep is finished.
    """
    adapters.check_base(training.base, setting="base")
    train = rows.read(training.train, training.track)
    tokenizer = open_tokenizer(base_folder(training.base))
    held_out = rows.held_out(validation, rows.mixed(train, training), training.track, tokenizer=tokenizer)
    checked = held_out[: settings.validation_rows]
    folder = Path(training.run_dir).absolute()
    begins = not (folder / _RESULT).is_file()
    planned = plan(training, train=train.first(settings.train_rows), meanwhile=lambda _: join() if begins else None)
    searched = Searched(planned=planned.without_rows, settings=settings, validation=checked)
    key = _digest(searched)
    done = read_json(folder / _RESULT) if (folder / _RESULT).is_file() else {}
    if done.get("digest") == key:
        return dict(done)
    make_room()
    with lock(folder / "sweep"):
        table = ranked(search(searched, planned, folder / "sweep"))
        if table[0].score is None:
            failed = next((trial.error for trial in table if trial.error), "none was trained to its end")
            raise ResourceError(f"no trial of the sweep has a score; the first that failed: {failed}")
        metric = open_track(training.track, beside=training.train).primary
        best = {name: value for name, value in _row(table[0]).items() if name != "metrics"}
        result = {
            "digest": key, "metric": metric, "best": best, "choice": choice(table), "trials": [_row(trial) for trial in table],
        }  # fmt: skip
        write_json(folder / _RESULT, result)
        return result


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The best first: by score, then by the loss on validation rows, then by trainable parameters and seconds.

    Those that ended early come after them, the later the better, and failed ones last.
    """
    return sorted(
        trials,
        key=lambda trial: (
            trial.score is None, trial.error is not None, -(trial.score or 0.0), -(trial.stopped_at or 0), *_tie(trial),
        ),
    )  # fmt: skip


def choice(table: Sequence[Trial]) -> dict[str, Any]:
    """Why the first of the ranked `table` is chosen, and how sure that is: the two best in pairs on the same validation rows.

    `by` is what told them apart: `score`, `loss`, `cost`, or `only` where no other trial has a score. `lower` and `upper`
    bound the difference of the mean score; the error is shared among all that the winner won against.
    `difference_shown` is whether the lower one is above 0.
    """
    winner, others = table[0], [trial for trial in table[1:] if trial.score is not None]
    if not others:
        return {"by": "only", "difference_shown": False}
    second = others[0]
    by = "score" if winner.score != second.score else "loss" if winner.loss != second.loss else "cost"
    differences = [a - b for a, b in zip(winner.rows, second.rows, strict=True) if a is not None and b is not None]
    found: dict[str, Any] = {"by": by, "runner_up": _recipe(second), "rows": len(differences)}
    if not differences:
        return {**found, "difference_shown": False}
    interval = paired_interval(differences, resamples=RESAMPLES, seed=SEED, one_sided=ONE_SIDED / len(others))
    bounds = {
        "estimate": interval.estimate,
        "lower": interval.lower,
        "upper": interval.upper,
        "method": interval.method,
    }
    return {**found, **bounds, "difference_shown": interval.lower > 0}


def summary(result: Mapping[str, Any]) -> list[str]:
    """The table of trials, the best first, and how sure the choice is, as lines of text."""
    lines = []
    for trial in result["trials"]:
        name = f"lr {trial['learning_rate']:<8g} rank {trial['rank']:<4}"
        if "error" in trial:
            lines.append(f"{name} failed: {trial['error']}")
        elif "stopped_at" in trial:
            lines.append(f"{name} ended after {trial['stopped_at']} steps  loss {trial['loss']:.4f}")
        else:
            lines.append(f"{name} {result['metric']} {trial['score']:.3f}  loss {trial['loss']:.4f}")
    best = result["best"]
    return [*lines, f"best: lr {best['learning_rate']:g}, rank {best['rank']}; {in_words(result)}"]


def in_words(result: Mapping[str, Any]) -> str:
    """How sure the choice is, in one clause."""
    made = result["choice"]
    if made["by"] == "only":
        return "no other trial was trained to its end"
    second = f"lr {made['runner_up']['learning_rate']:g}, rank {made['runner_up']['rank']}"
    if "estimate" not in made:
        return f"no difference to {second} shown: {result['metric']} is undefined on all validation rows; chosen by {made['by']}"
    figures = (
        f"{made['estimate']:+.1%} ({made['lower']:+.1%} to {made['upper']:+.1%}) on {made['rows']:,} validation rows"
    )
    if made["difference_shown"]:
        return f"better than {second}: {figures}"
    return f"no difference to {second} shown: {figures}; chosen by {made['by']}"


def _tie(trial: Trial) -> tuple[float, float, float]:
    loss = trial.loss if math.isfinite(trial.loss) else math.inf
    return loss, trial.metrics.get("trainable_parameters", 0), trial.metrics.get("train_s", 0.0)


def _recipe(trial: Trial) -> dict[str, Any]:
    config = trial.plan.config
    return {"learning_rate": config.learning_rate, "rank": config.lora.rank, "alpha": config.lora.alpha}


def _row(trial: Trial) -> dict[str, Any]:
    if trial.error is not None:
        return {**_recipe(trial), "score": None, "error": trial.error}
    if trial.stopped_at is not None:
        return {**_recipe(trial), "score": None, "loss": trial.loss, "stopped_at": trial.stopped_at}
    return {**_recipe(trial), "score": trial.score, "loss": trial.loss, "metrics": trial.metrics}


def _digest(searched: Searched) -> str:
    parts = [searched.planned.folder.name, searched.settings.model_dump_json(), searched.validation_digest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
