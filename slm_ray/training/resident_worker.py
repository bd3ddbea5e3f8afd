"""What a resident worker does: one base in memory, one trial after another, in step with the other ranks of its group.

A trial is what `worker` does for a run of its own: the same LoRA layers, order of rows and losses, bit for bit, since every
generator is seeded anew and the frozen base is given back as it was. Validation rows are shared out among the ranks.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.training import progress
from slm_ray.training.estimate import EAGER_TOKENS
from slm_ray.training.meter import Meter
from slm_ray.training.plan import WorkerPayload
from slm_ray.training.resident import RECORD, Work
from slm_ray.training.validation_score import row_scores, summary, target_loss
from slm_ray.training.worker import adapted, check_memory, open_model, open_trainer, quiet, run

_CHECKPOINTS = "checkpoints"
T = TypeVar("T")
GoOn = Callable[[dict[str, Any]], bool]


def serve(desk: Any, group: int) -> None:
    """Train what the desk hands to this group until there is nothing more. Runs on every rank, in lockstep."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    resident = Resident(rank=rank, ranks=ranks)
    gc.freeze()  # what was imported stays: else each collection between trials looks through half a million objects
    while (taken := _taken(desk, group, rank)) != "leave":
        if taken == "wait":
            continue
        try:
            _check_memory(taken.payload, ranks)
            record = resident.trial(taken, lambda report: bool(ray.get(desk.rung.remote(group, report))))
        except SlmRayError as error:  # on all ranks alike, and no other attempt would do better
            outcome: dict[str, Any] = {"error": str(error)}
        except Exception as error:
            trouble = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            if ranks > 1:  # the others may wait for this one
                ray.get(desk.crashed.remote(group, trouble))
                raise
            outcome = {"error": trouble}
        else:
            outcome = {"done": True, "loss": record["metrics"]["validation_loss"], "step": record["metrics"]["steps"]}
            if rank == 0:
                written = progress.keep(Path(taken.folder) / RECORD, json.dumps(record, indent=2), taken.payload.keeper)
                ray.get([] if written is None else written)
        if rank == 0:
            ray.get(desk.finish.remote(group, outcome))


class Resident:
    """A base that stays, and the rows of the last trial as the trainer wants them."""

    def __init__(self, *, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._base: Any = None
        self._tokenizer: Any = None
        self._opened: tuple[Any, ...] = ()
        self._dataset: tuple[str, Any] = ("", None)

    def trial(self, work: Work, go_on: GoOn) -> dict[str, Any]:
        """Train one trial from its last checkpoint, if it has one, and score it; its record, on every rank.

        One that is not to `go_on` at a rung has a validation loss and `stopped_at`, and no score.
        """
        payload = work.payload
        quiet(payload)
        if self._rank == 0:
            progress.start(Path(payload.progress_path), keeper=payload.keeper)
        base, self._base = (
            self._open(payload),
            None,
        )  # after a failure the base may not be as it was: it is loaded again
        model = adapted(base, payload)
        rungs, metrics = self._train(work, model, go_on)
        self._base = model.unload()
        del model
        gc.collect()
        if payload.use_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return {
            "validation": work.validation_digest, "learning_rate": payload.config.learning_rate,
            "rank": payload.config.lora.rank, "rungs": rungs, "metrics": metrics,
        }  # fmt: skip

    def _train(self, work: Work, model: Any, go_on: GoOn) -> tuple[list[tuple[int, float]], dict[str, Any]]:
        payload, folder = work.payload, Path(work.folder) / _CHECKPOINTS
        if payload.keeper is not None:  # a disk of this node's alone: ranks on other nodes could not go on from there
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        trainer = open_trainer(
            model, self._tokenizer, self._with_rows(work), folder=str(folder), dataset=self._known(work)
        )
        self._dataset = (work.rows_digest, trainer.train_dataset)
        rungs = _Rungs(work.rungs, lambda: self._loss(model, payload), self._agreed(go_on))
        trainer.add_callback(rungs)
        resume = _from_first(lambda: last_whole(folder, self._ranks), self._rank, self._ranks)
        outcome = run(trainer, Meter(payload, rank=self._rank), resume=resume)
        metrics = {**outcome["metrics"], "trainable_parameters": _trainable(model)}
        if rungs.stopped_at is None:
            metrics |= self._scored(model, payload)
        else:
            metrics |= {"validation_loss": rungs.losses[-1][1], "stopped_at": rungs.stopped_at}
        return rungs.losses, metrics

    def _open(self, payload: WorkerPayload) -> Any:
        """The base, as it is in memory where the recipe loads it alike."""
        config = payload.config
        wanted = (config.base, config.precision, max(payload.lengths) > EAGER_TOKENS)
        if self._base is None or wanted != self._opened:
            self._base, self._opened = None, wanted
            self._base, self._tokenizer = open_model(payload)
        return self._base

    def _with_rows(self, work: Work) -> WorkerPayload:
        if self._known(work) is not None:
            return work.payload
        shared = _from_first(lambda: ray.get(work.rows[0]), self._rank, self._ranks)
        return dataclasses.replace(work.payload, rows=shared)

    def _known(self, work: Work) -> Any:
        """The rows of this trial where the trial before had the same, tokenised."""
        digest, dataset = self._dataset
        return dataset if digest == work.rows_digest else None

    def _loss(self, model: Any, payload: WorkerPayload) -> float:
        """The mean cross-entropy of a token of the validation rows' targets: each rank takes a share of the rows."""
        own = target_loss(model, self._tokenizer, payload.validation[self._rank :: self._ranks])
        shares = self._gathered(own)
        return sum(total for total, _ in shares) / sum(tokens for _, tokens in shares)

    def _scored(self, model: Any, payload: WorkerPayload) -> dict[str, Any]:
        assert payload.track is not None  # rows that are scored have one
        own = row_scores(model, self._tokenizer, payload.validation[self._rank :: self._ranks], payload.track)
        scores = {score.example_id: score for share in self._gathered(own) for score in share}
        ordered = [scores[example.id] for example in payload.validation]
        return {**summary(payload.track, ordered), "validation_loss": self._loss(model, payload)}

    def _agreed(self, go_on: GoOn) -> GoOn:
        return lambda report: _from_first(lambda: go_on(report), self._rank, self._ranks)

    def _gathered(self, own: T) -> list[T]:
        if self._ranks == 1:
            return [own]
        everyone: list[Any] = [None] * self._ranks
        torch.distributed.all_gather_object(everyone, own)
        return everyone


class _Rungs(TrainerCallback):  # type: ignore[misc]
    """At each rung but the end: the validation loss, and whether to go on."""

    def __init__(self, rungs: tuple[int, ...], loss: Callable[[], float], go_on: GoOn) -> None:
        self._rungs, self._loss, self._go_on = rungs, loss, go_on
        self.losses: list[tuple[int, float]] = []
        self.stopped_at: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step = state.global_step
        if step not in self._rungs or step >= state.max_steps:
            return
        self.losses.append((step, self._loss()))
        if not self._go_on({"step": step, "loss": self.losses[-1][1]}):
            self.stopped_at = step
            control.should_training_stop = True


def last_whole(folder: Path, ranks: int) -> str | None:
    """The newest checkpoint that was written to its end, by all ranks; what a killed worker left half written is removed.

    One rank calls it. The trainer writes in place, its own state last, and would go on from half a checkpoint or fail at it
    every time.
    """
    whole = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2])):
        if _is_whole(path, ranks):
            whole = str(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return whole


def _is_whole(checkpoint: Path, ranks: int) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    generators = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    return all((checkpoint / name).is_file() for name in generators)


def _from_first(ask: Callable[[], T], rank: int, ranks: int | None = None) -> T:
    """What rank 0 hears, on every rank."""
    box = [ask() if rank == 0 else None]
    if (ranks or torch.distributed.get_world_size()) > 1:
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def _taken(desk: Any, group: int, rank: int) -> Any:
    """The next trial on every rank; a reference into Ray's store means something to the rank alone that was given it."""
    own: Any = ray.get(desk.take.remote(group)) if rank == 0 else None
    shared = _from_first(lambda: own if isinstance(own, str) else dataclasses.replace(own, rows=()), rank)
    return own if rank == 0 else shared


def _check_memory(payload: WorkerPayload, ranks: int) -> None:
    """The first rank's refusal, on every rank, so that none waits for one that does not train."""
    mine = None
    try:
        check_memory(payload)
    except ResourceError as error:
        mine = str(error)
    everyone: list[str | None] = [None] * ranks
    torch.distributed.all_gather_object(everyone, mine)
    if (refused := next((text for text in everyone if text is not None), None)) is not None:
        raise ResourceError(refused)


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
