"""What one training worker does: fit in memory, load, resume, train, checkpoint through Ray Train, hand back figures.

Runs on every rank under Ray Train, in lockstep: each rank reports the same number of times, rank 0 attaches the files.
What it raises of itself ends the run; what takes it away does not (see `failures`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import transformers

from slm_ray.remote import open_store
from slm_ray.training import estimate, progress, selection
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.base_shape import BaseShape
from slm_ray.training.failures import full_disk
from slm_ray.training.meter import Meter
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.parity import NoteParity
from slm_ray.training.plan import RANK, WorkerPayload
from slm_ray.training.selection import Selection
from slm_ray.training.trainer import AdapterTrainer, build, deterministic
from slm_ray.training.validation_score import longest_prompt

_STORE_AWAY_S = 300.0


def worker(payload: WorkerPayload) -> dict[str, Any]:
    """Train this rank's share. Rank 0's figures come back from `fit()`."""
    quiet(payload)
    check_memory(payload)
    base, tokenizer = open_model(payload)
    model = adapted(base, payload)
    with tempfile.TemporaryDirectory() as local, _checkpoint() as resumed:
        trainer = open_trainer(model, tokenizer, payload, folder=local)
        if ray.train.get_context().get_world_rank() == 0:
            trainer.add_callback(NoteParity(trainer, precision=payload.config.precision))
        try:
            return run(trainer, Report(payload), resume=resumed)
        except (OSError, RuntimeError) as error:
            if (full := full_disk(error, (local, str(Path(payload.progress_path).parent)))) is not None:
                raise full from None
            raise


def quiet(payload: WorkerPayload) -> None:
    """This process's libraries silent, its random generators seeded; before anything is loaded."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(payload.progress_path).with_name("tensorboard")))
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
    """The trainer of this rank over the rows of `payload`, or else over `dataset`, an earlier trainer's `train_dataset`.

    It checkpoints to `folder`, which must outlive it.
    """
    config = payload.config
    recipe = config.model_copy(update={"checkpoint_steps": payload.checkpoint_steps})
    rows = payload.rows if dataset is None else dataset
    assert rows is not None
    trainer = build(
        model, tokenizer, rows, recipe, folder=folder, use_gpu=payload.use_gpu, steps=payload.steps,
        report_to=config.report_to,
    )  # fmt: skip
    if payload.selection:
        assert payload.track is not None  # rows that are scored have one
        trainer.selection = Selection(payload.selection, payload.track, tokenizer, patience=config.early_stopping)
    if trainer.args.world_size != payload.config.workers.count:
        raise RuntimeError(
            f"each rank would train alone: world size {trainer.args.world_size} of {payload.config.workers.count}"
        )
    return trainer


def run(trainer: AdapterTrainer, meter: Meter, *, resume: str | None = None) -> dict[str, Any]:
    """Train to the end, from the checkpoint folder `resume` if there is one: `{"metrics", "curve"}` of this rank."""
    meter.attach(trainer)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        meter.end()
    return {"metrics": meter.figures(), "curve": progress.curve(trainer.state.log_history)}


class Report(Meter):
    """A meter that hands every checkpoint to Ray Train: all ranks report, rank 0 carries the files."""

    def __init__(self, payload: WorkerPayload) -> None:
        super().__init__(payload, rank=ray.train.get_context().get_world_rank())

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _gather_generators(folder, self.rank)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if self.rank == 0 else None
        metrics = {"step": state.global_step, RANK: selection.rank(state.log_history, state.global_step)}
        send = partial(_send, self.payload.checkpoints) if self.payload.checkpoints else None
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=send)


def _send(uri: str, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """A checkpoint into the run's folder of a store. Ray's own way takes an upload that failed at its end for a good one."""
    store = open_store(uri, setting="training.run_dir")
    store.send_all(Path(checkpoint.path), name, within_s=_STORE_AWAY_S)
    storage = ray.train.get_context().get_storage()
    return ray.train.Checkpoint(f"{storage.experiment_fs_path}/{name}", filesystem=storage.storage_filesystem)


def check_memory(payload: WorkerPayload) -> None:
    """ResourceError where this rank would not fit into the memory that is left."""
    folder, answered = base_folder(payload.config.base), payload.selection or payload.validation
    estimate.check(
        BaseShape.read(folder), payload.config, _available_bytes(payload.use_gpu), row_tokens=max(payload.lengths),
        use_gpu=payload.use_gpu, asked_tokens=longest_prompt(open_tokenizer(folder), answered) if answered else 0,
    )  # fmt: skip


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
