"""Resident workers: groups that load the base once and train one trial after another, and the desk that hands trials out.

A group is one long-lived Ray Train run whose workers ask the desk for the next trial. The base stays in memory, each
trial gets LoRA layers of its own, and the rows are tokenised once. A worker that is lost takes the trial in hand with it:
the group is started again and the trial goes on from its checkpoint, up to `MAX_FAILURES` times; where no node has room for
the group, another one takes the trial. What a trial was worth is written into its folder by the worker, so that a killed
driver loses no finished one. Loads no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig

from slm_ray import cluster
from slm_ray.config import Workers
from slm_ray.corpus.render import digest
from slm_ray.remote import address, is_remote
from slm_ray.storage import read_json, write_text
from slm_ray.tasks import open_track
from slm_ray.training.launch import (
    MAX_FAILURES,
    checkpoint_storage,
    group_settings,
    on_gpus,
    worker_environment,
)
from slm_ray.training.plan import Plan, WorkerPayload
from slm_ray.types import Example

RECORD = "trial.json"
_TAKE_S = 20.0  # a group that waits for work asks again: its other ranks wait for rank 0 and must not time out
_END_S = 30.0  # for workers to leave once there is nothing more to do


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One trial as a group gets it. `rows` holds a reference to the rows, which `rows_digest` names.

    At each of the steps `rungs` the loss on the validation rows is told, and whether to go on is asked.
    """

    name: str
    folder: str
    payload: WorkerPayload
    rows: tuple[Any, ...]
    rows_digest: str
    validation_digest: str
    rungs: tuple[int, ...] = ()


@dataclasses.dataclass(slots=True, kw_only=True)
class _Trial:
    work: Work
    reports: asyncio.Queue[dict[str, Any]] = dataclasses.field(default_factory=asyncio.Queue)
    verdicts: asyncio.Queue[bool] = dataclasses.field(default_factory=asyncio.Queue)
    passed: set[int] = dataclasses.field(default_factory=set)
    asked: bool = False  # its last report was heard, and a worker waits for the verdict on it
    stopped: bool = False
    failures: int = 0
    trouble: str = ""


class Desk:
    """Who trains what: trials wait here for a group, and whoever started a trial hears of it here. One asyncio Ray actor.

    It is the trials' `progress.Keeper` too, where their workers do not see the driver's disk.
    """

    def __init__(self, groups: int) -> None:
        self._trials: dict[str, _Trial] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._held: dict[int, str] = {}
        self._proven: set[int] = set()  # groups that have brought a trial to its end
        self._groups = set(range(groups))
        self._closed = False
        self._lost = ""
        self._errors: dict[str, str] = {}

    async def write(self, name: str, text: str) -> None:
        """Replace the file `TRIAL/NAME` beside the driver."""
        trial, _, file = name.partition("/")
        write_text(Path(self._trials[trial].work.folder) / file, text)

    async def submit(self, work: Work) -> None:
        """Queue a trial."""
        self._trials[work.name] = _Trial(work=work)
        self._waiting.put_nowait(work.name)
        self._refuse_where_nobody_is_left()

    async def hear(self, name: str) -> dict[str, Any]:
        """The next report of a trial: `{"step", "loss"}` at a rung, and last `{"done": True}` or `{"error"}`.

        To listen on is to let a trial that waits at a rung go on.
        """
        trial = self._trials[name]
        if trial.asked:
            trial.asked = False
            trial.verdicts.put_nowait(True)
        report = await trial.reports.get()
        trial.asked = "done" not in report and "error" not in report
        return report

    async def stop(self, name: str) -> None:
        """End a trial at the rung where it waits, or else at its next one; nothing for one that has ended or is not known."""
        if (trial := self._trials.get(name)) is None:
            return
        trial.stopped = True
        if trial.asked:
            trial.asked = False
            trial.verdicts.put_nowait(False)

    async def take(self, group: int) -> Work | str:
        """The next trial for a group, the one that it already has if its workers were lost; else `wait` or `leave`."""
        if (name := self._held.get(group)) is not None:
            trial = self._trials[name]
            trial.failures += 1
            if trial.failures <= MAX_FAILURES:
                return trial.work
            await self.finish(group, {"error": trial.trouble or _KILLED}, proven=False)
            if group not in self._proven:  # what it cannot do once it cannot do at all
                return "leave"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0 if self._closed else _TAKE_S):
                name = await self._waiting.get()
                self._held[group] = name
                return self._trials[name].work
        return "leave" if self._closed else "wait"

    async def release(self, group: int) -> None:
        """No node has room for this group now: the trial in its hands waits for another one, where there is one."""
        if len(self._groups) > 1 and (name := self._held.pop(group, None)) is not None:
            self._waiting.put_nowait(name)

    async def rung(self, group: int, report: dict[str, Any]) -> bool:
        """Tell how far a trial is and wait for whether it goes on; a rung that it has passed before is no question."""
        trial = self._trials[self._held[group]]
        if trial.stopped or report["step"] in trial.passed:
            return not trial.stopped
        trial.reports.put_nowait(report)
        goes_on = await trial.verdicts.get()
        trial.passed |= {report["step"]} if goes_on else set()
        return goes_on

    async def crashed(self, group: int, trouble: str) -> None:
        """What made a worker of the group fail, should its trial be given up."""
        if (name := self._held.get(group)) is not None:
            self._trials[name].trouble = trouble

    async def finish(self, group: int, outcome: dict[str, Any], *, proven: bool = True) -> None:
        """The trial of this group has come to its end."""
        self._tell(self._held.pop(group), outcome)
        self._proven |= {group} if proven else set()

    async def lose(self, group: int, trouble: str) -> None:
        """A group has ended. Its trial fails, and with the last group all that wait do."""
        self._groups.discard(group)
        self._lost = trouble
        if group in self._held:
            await self.finish(group, {"error": trouble})
        self._refuse_where_nobody_is_left()

    async def errors(self) -> dict[str, str]:
        """Why trials failed, by name."""
        return self._errors

    def _tell(self, name: str, outcome: dict[str, Any]) -> None:
        if "error" in outcome:
            self._errors[name] = outcome["error"]
        self._trials[name].reports.put_nowait(outcome)

    def _refuse_where_nobody_is_left(self) -> None:
        while not self._groups and not self._waiting.empty():
            self._tell(self._waiting.get_nowait(), {"error": self._lost})

    async def close(self) -> None:
        """No further trial: groups leave once those that wait are done."""
        self._closed = True


_KILLED = (
    f"training workers were killed more than {MAX_FAILURES} times (memory, a lost node, or someone stopped them): the same "
    "command trains this trial again"
)


@contextlib.contextmanager
def desk(workers: Workers, groups: int, *, seed: int, folder: Path) -> Iterator[Any]:
    """The handle of a desk with so many groups (`concurrent`), which end with the block; `folder` is for Ray Train's files."""
    cluster.require_seen(workers.per_worker, shared={"run_dir": address(folder)})
    handle = cluster.beside_driver(Desk).remote(groups)
    started = [_started(number, handle, workers, seed, folder / f"group{number}") for number in range(groups)]
    watcher = threading.Thread(target=_watch, args=(handle, started), daemon=True)
    watcher.start()
    try:
        yield handle
        ray.get(handle.close.remote())
        ray.wait([group.end for group in started], num_returns=groups, timeout=_END_S)
    finally:
        for group in started:
            group.stop()
        ray.kill(handle)
        watcher.join(timeout=_END_S)


def concurrent(workers: Workers, trials: int) -> int:
    """As many groups as fit beside what runs now, at most `trials`: one that waits for what an endpoint holds waits for ever."""
    free = {name: amount - (0.05 if name == "CPU" else 0.0) for name, amount in ray.available_resources().items()}
    fits = [free.get(name, 0.0) / (amount * workers.count) for name, amount in workers.per_worker.items() if amount]
    return min(trials, max(1, int(min(fits, default=1) + 1e-6)))


def work(
    planned: Plan, validation: Sequence[Example], *, desk: Any, rungs: Sequence[int] = (), rows_ref: Any = None
) -> Work:
    """A planned run as a trial for a desk; `rows_ref` are its rows, already in Ray's store."""
    keeper = desk if is_remote(address(planned.folder)) else None
    config = planned.config
    payload = WorkerPayload(
        config=config, rows=None, lengths=planned.lengths, use_gpu=on_gpus(config.workers),
        progress_path=str(planned.progress_path), validation=tuple(validation),
        track=open_track(config.track, beside=config.train), keeper=keeper,
    )  # fmt: skip
    return Work(
        name=planned.folder.name, folder=str(planned.folder), payload=payload, rows=(rows_ref or put_rows(planned),),
        rows_digest=planned.data_digest, validation_digest=digest(validation), rungs=tuple(rungs),
    )  # fmt: skip


def put_rows(planned: Plan) -> Any:
    """The rows of a run, as its workers want them, in Ray's store."""
    return ray.put(planned.tokens)


def recorded(folder: Path, validation_digest: str) -> dict[str, Any] | None:
    """What a trial's folder says of it on these validation rows: `{"rungs": [[step, loss], …], "metrics": {…}}`."""
    path = folder / RECORD
    found = read_json(path) if path.is_file() else {}
    return dict(found) if found.get("validation") == validation_digest else None


def _started(number: int, handle: Any, workers: Workers, seed: int, folder: Path) -> Any:
    """A group that has been started: a `StartedTrainer`."""
    from slm_ray.training.ray_trainer import StartedTrainer

    group = StartedTrainer(
        _worker,
        train_loop_config={"group": number, "desk": handle},
        **group_settings(workers),
        run_config=RunConfig(
            name=folder.name,
            **checkpoint_storage(folder.parent),
            failure_config=FailureConfig(max_failures=-1),  # the desk counts them, by trial
            worker_runtime_env={"env_vars": worker_environment(workers, seed)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    group.homeless = functools.partial(_released, handle, number)
    group.fit()
    return group


def _released(handle: Any, group: int) -> None:
    handle.release.remote(group)


def _worker(config: Mapping[str, Any]) -> None:
    from slm_ray.training.base_model import silence_libraries

    silence_libraries()
    # Only a worker pays for importing torch, PEFT and TRL.
    from slm_ray.training.resident_worker import serve

    serve(config["desk"], config["group"])


def _watch(handle: Any, started: Sequence[Any]) -> None:
    """Tell the desk of groups that end, whichever way: nobody must wait for them."""
    numbers = {group.end: number for number, group in enumerate(started)}
    running = list(numbers)
    while running:
        ended, running = ray.wait(running)
        for reference in ended:
            trouble = "its group of workers has left"
            try:
                ray.get(reference)
                failed = ray.get(started[numbers[reference]].controller.get_training_failed_error.remote())
                trouble = trouble if failed is None else str(failed).strip().splitlines()[-1]
            except ray.exceptions.RayError as error:  # whatever ended it, it has ended
                trouble = (str(error).strip() or type(error).__name__).splitlines()[-1]
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(handle.lose.remote(numbers[reference], trouble))


def require(workers: Workers) -> None:
    """ResourceError when the cluster could never hold one group."""
    cluster.require([dict(workers.per_worker)] * workers.count, setting="training.workers")
