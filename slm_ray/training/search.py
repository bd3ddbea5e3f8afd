"""Which recipes a sweep tries, and for how long: Optuna picks, ASHA ends those whose validation loss lags, under Ray Tune.

Lists of values are a grid, cut by seed to the number of trials; in a range Optuna's TPE picks. A trial of Tune's is light:
it hands a recipe to the resident groups and hears of it at each rung and at its end. Finished trials of an earlier run
with the same rows are told to Optuna and ASHA again and not trained again. The loss at a rung is cheap; the answers that
the task metric needs are generated for those alone that are trained to their end.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from slm_ray import cluster
from slm_ray.config import Range, Search, TrainConfig
from slm_ray.corpus.render import digest
from slm_ray.errors import ResourceError
from slm_ray.storage import read_json
from slm_ray.training import progress, resident
from slm_ray.training.launch import checkpoint_storage
from slm_ray.training.plan import Plan, WorkerPayload, varied
from slm_ray.training.trials import Trial, outcomes
from slm_ray.types import Example

Point = dict[str, Any]
_RUNGS = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What all trials of a sweep share: the run as planned (`Plan.without_rows`), where to look, and how to judge."""

    planned: Plan
    settings: Search
    validation: tuple[Example, ...]

    @property
    def validation_digest(self) -> str:
        return digest(self.validation)

    @property
    def steps(self) -> int:
        """Optimizer steps of a trial that is trained to its end."""
        return WorkerPayload(
            config=self.at({"learning_rate": 1.0, "rank": 1}).config, rows=None, lengths=self.planned.lengths,
            use_gpu=False, progress_path="",
        ).steps  # fmt: skip

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which a trial may end early, as ASHA counts them."""
        factor = self.settings.reduction_factor
        if factor == 1:
            return ()
        first = max(1, self.steps // factor**_RUNGS)
        return tuple(step for step in (first * factor**rung for rung in range(_RUNGS)) if step < self.steps)

    def at(self, point: Point) -> Plan:
        """The run that a learning rate and a rank name; alpha keeps its ratio to the rank."""
        return varied(self.planned, recipe(self.planned.config, self.settings, point))

    def finished(self, planned: Plan) -> dict[str, Any] | None:
        """The record of a trial that was trained to its end, or ended early where this sweep would have asked too."""
        record = resident.recorded(planned.folder, self.validation_digest)
        if record is None or record["metrics"].get("stopped_at", planned) in (planned, *self.rungs):
            return record
        return None


def recipe(training: TrainConfig, settings: Search, point: Point) -> TrainConfig:
    """The recipe at a point of the search."""
    rate, rank = float(point["learning_rate"]), int(point["rank"])
    lora = training.lora.model_copy(
        update={"rank": rank, "alpha": max(1, round(rank * training.lora.alpha / training.lora.rank))}
    )
    return training.model_copy(
        update={
            "learning_rate": rate, "lora": lora, "epochs": settings.epochs, "name": f"lr{rate:.6g}-r{rank}",
            "run_dir": str(Path(training.run_dir) / "sweep"),
        }
    )  # fmt: skip


def grid(settings: Search, seed: int) -> list[Point] | None:
    """All pairs of two lists, or `trials` of them, in an order drawn by seed; None where one of the two is a range.

    ASHA holds a trial against those before it: from the smallest rate to the largest, each would look better than the last.
    """
    rates, ranks = settings.learning_rates, settings.ranks
    if isinstance(rates, Range) or isinstance(ranks, Range):
        return None
    pairs = list(itertools.product(rates, ranks))
    pairs = random.Random(seed).sample(pairs, min(len(pairs), settings.trials))
    return [{"learning_rate": rate, "rank": rank} for rate, rank in pairs]


def search(searched: Searched, rows_of: Plan, folder: Path) -> list[Trial]:
    """Try the recipes and return what became of each, in no order. `rows_of` has the rows; `folder` is Tune's own.

    Joins Ray. ResourceError when the cluster could never hold one group; a trial that fails does not stop the others.
    """
    cluster.connect()
    workers, seed = searched.planned.config.workers, searched.planned.config.seed
    resident.require(workers)
    before = known(searched, folder)
    points = grid(searched.settings, seed)
    wanted = searched.settings.trials if points is None else len(points)
    points = before if points is None else points
    todo = wanted - sum(searched.finished(searched.at(point)) is not None for point in points)
    if todo <= 0:
        return outcomes([searched.at(point) for point in points], searched.validation_digest, {})
    groups = resident.concurrent(workers, todo)
    with (
        progress.shown(lambda: sorted(folder.glob("lr*/lr*.json"))),
        resident.desk(workers, groups, seed=seed, folder=folder / "groups") as desk,
    ):
        watch = _Watch(searched, desk)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_Recipe, searched=searched, rows=(resident.put_rows(rows_of),), desk=desk), _driver()
            ),
            param_space=space(searched.settings),
            tune_config=tune.TuneConfig(
                metric="loss", mode="min", num_samples=wanted, reuse_actors=True,
                max_concurrent_trials=groups,
                search_alg=optuna_search(points, wanted=wanted, seed=seed + len(before)), scheduler=asha(searched),
            ),
            run_config=tune.RunConfig(
                name="tune", **checkpoint_storage(folder), verbose=0, callbacks=[watch],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial of Tune's has nothing to keep
            ),
        )  # fmt: skip
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints its own table in spite of verbose=0
        tuner.fit()
        if watch.ended < wanted:  # Tune ends without a word at Ctrl-C
            raise KeyboardInterrupt
        errors = ray.get(desk.errors.remote())
    plans = {planned.folder: planned for planned in map(searched.at, watch.points)}
    return outcomes(list(plans.values()), searched.validation_digest, errors)


def _driver() -> dict[str, float]:
    """What a trial's own process asks for: the driver's node, which is not lost alone and has the folder, and nothing else."""
    return {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}


def space(settings: Search) -> dict[str, Any]:
    """The search space in Tune's words."""
    rates, ranks = settings.learning_rates, settings.ranks
    return {
        "learning_rate": tune.loguniform(rates.low, rates.high) if isinstance(rates, Range) else tune.choice(rates),
        "rank": tune.lograndint(int(ranks.low), int(ranks.high) + 1)
        if isinstance(ranks, Range)
        else tune.choice(ranks),
    }


def optuna_search(points: Sequence[Point], *, wanted: int, seed: int) -> OptunaSearch:
    """Optuna in this process: `points` first, then TPE, whose first third is drawn at random."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, wanted // 3))
    return OptunaSearch(metric="loss", mode="min", points_to_evaluate=list(points) or None, sampler=sampler)


def asha(searched: Searched) -> ASHAScheduler | None:
    """The scheduler that ends trials at the rungs; None where there are none."""
    if not searched.rungs:
        return None
    return ASHAScheduler(
        time_attr="step", max_t=searched.steps, grace_period=searched.rungs[0],
        reduction_factor=searched.settings.reduction_factor,
    )  # fmt: skip


class _Recipe(tune.Trainable):  # type: ignore[misc]
    """One trial as Tune sees it: each step is a report of a resident group. To take the next step is to let it go on."""

    def setup(self, config: Point, *, searched: Searched, rows: tuple[Any, ...], desk: Any) -> None:
        self._searched, self._rows, self._desk = searched, rows, desk
        self._reports = self._heard(config)

    def reset_config(self, new_config: Point) -> bool:
        self._reports = self._heard(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return next(self._reports)

    def _heard(self, point: Point) -> Iterator[dict[str, Any]]:
        planned = self._searched.at(point)
        record = self._searched.finished(planned)
        if record is not None:
            yield from replayed(record)
            return
        work = resident.work(
            planned, self._searched.validation, desk=self._desk, rungs=self._searched.rungs, rows_ref=self._rows[0]
        )
        ray.get(self._desk.submit.remote(work))
        while True:
            report = ray.get(self._desk.hear.remote(work.name))
            if "error" in report:
                raise ResourceError(report["error"])
            yield report


def replayed(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The reports of a finished trial, as they were made."""
    metrics = record["metrics"]
    reports = [{"step": step, "loss": loss} for step, loss in record["rungs"]]
    if "stopped_at" not in metrics:
        reports.append({"step": metrics["steps"], "loss": metrics["validation_loss"]})
    return [*reports[:-1], {**reports[-1], "done": True}]


class _Watch(tune.Callback):  # type: ignore[misc]
    """Which points were tried; tells the desk at once that a trial is not to go on."""

    def __init__(self, searched: Searched, desk: Any) -> None:
        self._searched, self._desk = searched, desk
        self.points: list[Point] = []
        self.ended = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.points.append(dict(trial.config))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended += 1
        ray.get(self._desk.stop.remote(self._searched.at(trial.config).folder.name))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)  # whatever ended it, no worker may wait for it


def known(searched: Searched, folder: Path) -> list[Point]:
    """The points within the search that were finished before; the progress files of all others are removed."""
    points, finished = [], set()
    for path in sorted(folder.glob(f"lr*/{resident.RECORD}")):
        record = read_json(path)
        point = {name: record[name] for name in ("learning_rate", "rank")}
        planned = searched.at(point)
        inside = _within(searched.settings.learning_rates, point["learning_rate"]) and _within(
            searched.settings.ranks, point["rank"]
        )
        if inside and planned.folder == path.parent and searched.finished(planned) is not None:
            points.append(point)
            finished.add(path.parent)
    for path in folder.glob("lr*/lr*.json"):
        if path.parent not in finished:
            path.unlink()
    return points


def _within(values: tuple[float, ...] | Range, value: float) -> bool:
    return values.low <= value <= values.high if isinstance(values, Range) else value in values
