"""How much a sweep saves by resident workers: the same recipes, one Ray Train run each, resident, and resident with rungs.

All three train on the same rows, as many at once, and are scored on the same validation rows; the losses are compared.
Memory is that of the processes that train (PSS: shared pages are counted once), looked at twice a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from slm_ray import cluster
from slm_ray.command import output_folder, run
from slm_ray.config import TrainConfig
from slm_ray.training import resident, rows
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.plan import Plan, plan
from slm_ray.training.search import Searched, grid, search
from slm_ray.training.trials import Trial, run_trials
from slm_ray.types import Example
from tools.config import SweepBenchConfig

MIB = 2**20


@dataclasses.dataclass(kw_only=True)
class Lap:
    """One way of doing it. `one_bytes` is the largest process that trained, `peak_bytes` all that were there at once."""

    name: str
    seconds: float = 0.0
    one_bytes: int = 0
    peak_bytes: int = 0
    losses: dict[tuple[float, int], float] = dataclasses.field(default_factory=dict)
    ended_early: int = 0


@contextlib.contextmanager
def measured(name: str) -> Iterator[Lap]:
    lap, done = Lap(name=name), threading.Event()
    watcher = threading.Thread(target=_watch, args=(lap, done), daemon=True)
    started = time.monotonic()
    watcher.start()
    try:
        yield lap
    finally:
        lap.seconds = time.monotonic() - started
        done.set()
        watcher.join()


def _watch(lap: Lap, done: threading.Event) -> None:
    while not done.wait(0.5):
        sizes = []
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    sizes.append(process.memory_full_info().pss)
        lap.one_bytes, lap.peak_bytes = max([lap.one_bytes, *sizes]), max(lap.peak_bytes, sum(sizes))


def apart(plans: Sequence[Plan], validation: Sequence[Example], folder: Path) -> dict[tuple[float, int], float]:
    """The losses of one Ray Train run per recipe, each with workers of its own, as many at once as there is room for."""
    at_once = resident.concurrent(plans[0].config.workers, len(plans))
    task = ray.remote(num_cpus=0, max_retries=0)(alone)
    waiting, running, losses = list(plans), dict[Any, Plan](), dict[tuple[float, int], float]()
    while waiting or running:
        while waiting and len(running) < at_once:
            planned = waiting.pop(0)
            running[task.remote(planned, validation, folder / planned.folder.name)] = planned
        (ended,), _ = ray.wait(list(running))
        losses[key(running.pop(ended).config)] = ray.get(ended)
    return losses


def alone(planned: Plan, validation: Sequence[Example], folder: Path) -> float:
    """The loss of one trial that a group of workers was started for; SystemExit where it has none."""
    (trial,) = run_trials([planned], validation, folder)
    if trial.error is not None:
        raise SystemExit(f"a trial failed: {trial.error}")
    return trial.loss


def key(config: TrainConfig) -> tuple[float, int]:
    return config.learning_rate, config.lora.rank


def told(laps: Sequence[Lap], trials: int) -> list[str]:
    """The table, every way beside the first."""
    first = laps[0]
    lines = [
        f"{'way':28}{'s':>8}{'ratio':>7}{'MiB':>7}{'of ' + str(trials) + ' processes':>16}{'ended early':>13}{'largest difference of loss':>28}"
    ]
    for lap in laps:
        apart = [abs(lap.losses[at] - first.losses[at]) for at in lap.losses]
        lines.append(
            f"{lap.name:28}{lap.seconds:8.1f}{lap.seconds / first.seconds:7.2f}{lap.peak_bytes / MIB:7.0f}"
            f"{lap.peak_bytes / (trials * first.one_bytes):16.2f}{lap.ended_early:13}{max(apart):28.2g}"
        )
    best = min(first.losses, key=first.losses.__getitem__)
    lines.append(f"lowest loss: lr {best[0]:g}, rank {best[1]} ({first.losses[best]:.4f})")
    lines += [
        f"  {lap.name}: {min(lap.losses.values()):.4f} at {min(lap.losses, key=lap.losses.__getitem__)}" for lap in laps
    ]
    return lines


def main(config: SweepBenchConfig) -> None:
    folder = Path(output_folder(config.training.run_dir)).absolute() / "ways"  # which is all that a repeat removes
    shutil.rmtree(folder, ignore_errors=True)
    cluster.connect()
    train = rows.read(config.training.train, config.training.track)
    validation = rows.held_out(
        config.validation, train, config.training.track, tokenizer=open_tokenizer(base_folder(config.training.base))
    )[: config.search.validation_rows]
    points = grid(config.search, config.training.seed)
    if points is None:
        raise SystemExit("search: lists, not ranges, so that every way trains the same recipes")
    laps = []
    for name, factor in (
        ("a run for each", 0),
        ("resident", 1),
        ("resident, with rungs", config.search.reduction_factor),
    ):
        training = config.training.model_copy(update={"run_dir": str(folder / name.replace(" ", "_"))})
        planned = plan(training, train=train.first(config.search.train_rows))
        settings = config.search.model_copy(update={"reduction_factor": max(1, factor)})
        searched = Searched(planned=planned, settings=settings, validation=validation)
        with measured(name) as lap:
            if factor == 0:
                lap.losses = apart(
                    [searched.at(point) for point in points], validation, Path(training.run_dir) / "groups"
                )
            else:
                light = dataclasses.replace(searched, planned=planned.without_rows)
                trials: list[Trial] = search(light, planned, Path(training.run_dir) / "sweep")
                lap.losses = {key(trial.plan.config): trial.loss for trial in trials if trial.score is not None}
                lap.ended_early = sum(trial.stopped_at is not None for trial in trials)
        laps.append(lap)
    print("\n".join(told(laps, len(points))))


if __name__ == "__main__":
    run(main, SweepBenchConfig, __doc__)
