"""What one training worker does: fit in memory, load, resume, train, checkpoint through Ray Train, hand back figures.

Runs on every rank under Ray Train, in lockstep: each rank reports the same number of times, rank 0 attaches the files.
What it raises of itself ends the run; what takes it away does not (see `failures`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import transformers
from transformers import TrainerCallback

from slm_ray.tasks import open_track
from slm_ray.training import estimate, progress
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.base_shape import BaseShape
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.parity import NoteParity
from slm_ray.training.plan import WorkerPayload
from slm_ray.training.trainer import AdapterTrainer, build, deterministic, optimizer_name


def worker(payload: WorkerPayload) -> dict[str, Any]:
    """Train this rank's share. Rank 0's figures come back from `fit()`."""
    quiet(payload)
    check_memory(payload)
    base, tokenizer = open_model(payload)
    model = adapted(base, payload)
    report = Report(payload, rank=ray.train.get_context().get_world_rank())
    with tempfile.TemporaryDirectory() as local, _checkpoint() as resumed:
        trainer = open_trainer(model, tokenizer, payload, folder=local)
        if ray.train.get_context().get_world_rank() == 0 and not payload.validation:  # no trial is published
            trainer.add_callback(NoteParity(trainer, precision=payload.config.precision))
        outcome = run(trainer, report, resume=resumed)
    scores = _scored(trainer, tokenizer, payload) if payload.validation else {}
    return {**outcome, "metrics": {**outcome["metrics"], **scores}}


def quiet(payload: WorkerPayload) -> None:
    """This process's libraries silent, its random generators seeded; before anything is loaded."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    deterministic(payload.config.seed, payload.use_gpu)


def open_model(payload: WorkerPayload) -> tuple[Any, Any]:
    """The frozen base, which `add_lora` makes trainable, and its tokenizer. One base serves run after run."""
    folder = base_folder(payload.config.base)
    base = open_base(folder, payload.config, use_gpu=payload.use_gpu, longest=max(payload.lengths))
    return base, open_tokenizer(folder)


def adapted(base: Any, payload: WorkerPayload) -> Any:
    """The base with fresh LoRA layers, the same whatever this process has drawn before."""
    deterministic(payload.config.seed, payload.use_gpu)
    return add_lora(base, payload.config.lora)


def open_trainer(
    model: Any, tokenizer: Any, payload: WorkerPayload, *, folder: str, dataset: Any | None = None
) -> AdapterTrainer:
    """The trainer of this rank over the rows of `payload`; it checkpoints to `folder`, which must outlive it.

    `dataset` are the same rows as an earlier trainer's `train_dataset` has them: they are not tokenised again.
    """
    rows = payload.rows if dataset is None else dataset
    trainer = build(model, tokenizer, rows, payload.config, folder=folder, use_gpu=payload.use_gpu, steps=payload.steps)
    if trainer.args.world_size != payload.config.workers.count:
        raise RuntimeError(
            f"each rank would train alone: world size {trainer.args.world_size} of {payload.config.workers.count}"
        )
    return trainer


def run(trainer: AdapterTrainer, report: Report, *, resume: str | None = None) -> dict[str, Any]:
    """Train to the end, from the checkpoint folder `resume` if there is one: `{"metrics", "curve"}` of this rank."""
    trainer.add_callback(report)
    trainer.train(resume_from_checkpoint=resume)
    return {"metrics": report.figures(trainer), "curve": progress.curve(trainer.state.log_history)}


class Report(TrainerCallback):  # type: ignore[misc]
    """Progress at every log, a checkpoint at every save: in both, all ranks report and rank 0 carries the payload."""

    def __init__(self, payload: WorkerPayload, *, rank: int) -> None:
        self._payload = payload
        self._rank = rank
        self._path = Path(payload.progress_path)
        self._started = 0.0
        self._first_step = 0
        self._train_s = 0.0
        self._last: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # Every rank drops other units; which rows it sees does not depend on this generator.
        torch.manual_seed(self._payload.config.seed + self._rank)
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self._last = logs
        elapsed = max(time.monotonic() - self._started, 1e-6)
        done = state.global_step - self._first_step
        per_step = (
            len(self._payload.lengths) * self._payload.config.epochs * _mean(self._payload.lengths) / state.max_steps
        )
        now = progress.Progress(
            step=state.global_step, steps=state.max_steps, loss=logs["loss"], tokens_per_s=done * per_step / elapsed,
            eta_s=elapsed / max(done, 1) * (state.max_steps - state.global_step),
            gpu_bytes=torch.cuda.max_memory_reserved() if self._payload.use_gpu else None,
        )  # fmt: skip
        if self._rank == 0:
            progress.write(self._path, now)
        self.publish({"step": now.step, "loss": now.loss, "tokens_per_s": now.tokens_per_s, "eta_s": now.eta_s})

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _gather_generators(folder, self._rank)
        metrics = {"step": state.global_step, "loss": self._last.get("loss")}
        checkpoint = ray.train.Checkpoint.from_directory(folder) if self._rank == 0 else None
        ray.train.report(metrics, checkpoint=checkpoint)

    def publish(self, metrics: dict[str, Any]) -> None:
        """To Ray Train's controller, which waits for the same number of reports of every rank."""
        ray.train.report(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._train_s = time.monotonic() - self._started

    def figures(self, trainer: Any) -> dict[str, Any]:
        """What the manifest says about the run; times are of the last attempt."""
        state, lengths, config = trainer.state, self._payload.lengths, self._payload.config
        logged = [entry for entry in state.log_history if "loss" in entry]
        steps_run = state.global_step - self._first_step
        tokens = sum(lengths) * config.epochs
        return {
            "steps": state.global_step, "steps_run": steps_run, "resumed_from": self._first_step, "rows": len(lengths),
            "epochs": config.epochs, "tokens": round(tokens), "longest_row_tokens": max(lengths),
            "loss_first": logged[0]["loss"] if logged else None, "loss_last": logged[-1]["loss"] if logged else None,
            "token_accuracy": logged[-1].get("mean_token_accuracy") if logged else None,
            "train_s": round(self._train_s, 2),
            "tokens_per_s": round(tokens * steps_run / state.global_step / max(self._train_s, 1e-6)),
            "workers": trainer.args.world_size,
            "gpus": config.workers.count * config.workers.per_worker.get("GPU", 0), "optimizer": optimizer_name(trainer),
            "peak_bytes": _peak_bytes(self._payload.use_gpu),
        }  # fmt: skip


def check_memory(payload: WorkerPayload) -> None:
    """ResourceError where this rank would not fit into the memory that is left."""
    folder, longest = base_folder(payload.config.base), max(payload.lengths)
    estimate.check(
        BaseShape.read(folder),
        payload.config,
        _available_bytes(payload.use_gpu),
        row_tokens=longest,
        use_gpu=payload.use_gpu,
    )


def _available_bytes(use_gpu: bool) -> float:
    if use_gpu:
        return float(torch.cuda.mem_get_info()[0])
    # The part of this process that the estimate counts is already in use, here and in the other workers of the node.
    own = psutil.Process().memory_info().rss
    return float(psutil.virtual_memory().available / ray.train.get_context().get_local_world_size() + own)


@contextlib.contextmanager
def _checkpoint() -> Iterator[str | None]:
    latest = ray.train.get_checkpoint()
    if latest is None:
        yield None
        return
    with latest.as_directory() as folder:
        yield folder


def _gather_generators(folder: Path, rank: int) -> None:
    """Every rank's random generators into rank 0's checkpoint, which is the only one that is kept."""
    name = f"rng_state_{rank}.pth" if torch.distributed.get_world_size() > 1 else "rng_state.pth"
    states: list[tuple[str, bytes] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, (name, (folder / name).read_bytes()))
    if rank == 0:
        for state in states:
            if state is not None:
                (folder / state[0]).write_bytes(state[1])


def score(trainer: AdapterTrainer, tokenizer: Any, payload: WorkerPayload) -> dict[str, Any]:
    """What the trained model is worth on the validation rows; one rank suffices, it needs nothing of the others."""
    from slm_ray.training.validation_score import validate  # only trials answer rows

    track = open_track(payload.config.track, beside=payload.config.train)
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {**validate(model, tokenizer, payload.validation, track), "trainable_parameters": trainable}


def _scored(trainer: AdapterTrainer, tokenizer: Any, payload: WorkerPayload) -> dict[str, Any]:
    result = score(trainer, tokenizer, payload) if ray.train.get_context().get_world_rank() == 0 else {}
    ray.train.report(dict(result))
    return result


def _peak_bytes(use_gpu: bool) -> int:
    return int(torch.cuda.max_memory_reserved() if use_gpu else psutil.Process().memory_info().rss)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
