"""How far a run is, measured where it runs: steps, tokens, time left, and what the GPUs do meanwhile.

A `Meter` watches one rank's trainer. Rank 0's writes the progress file at every step, and every two seconds of a step
that takes longer, so that a long run is never silent. It knows nothing of Ray and changes nothing of what is learned: it
asks for the loss in the log, and for the validation rows if there are any, whenever a checkpoint is due.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from slm_ray.errors import SlmRayError
from slm_ray.training import progress, selection
from slm_ray.training.plan import WorkerPayload
from slm_ray.training.progress import Gpu, Progress
from slm_ray.training.trainer import AdapterTrainer, optimizer_name

_EVERY_S = 2.0


class Meter(TrainerCallback):  # type: ignore[misc]
    """Progress while the trainer trains, figures when it has. One per rank; `attach` it before training."""

    def __init__(self, payload: WorkerPayload, *, rank: int) -> None:
        self.payload, self.rank = payload, rank
        self.train_s = 0.0
        self._path = Path(payload.progress_path)
        self._trainer: AdapterTrainer | None = None
        self._started_s = 0.0
        self._first_step = self._step = self._steps = 0
        self._gpus: tuple[Gpu, ...] = ()
        self._written_s = 0.0
        self._writing = threading.Lock()
        self._ended = threading.Event()

    def attach(self, trainer: AdapterTrainer) -> None:
        """Watch this trainer."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # Every rank drops other units; which rows it sees does not depend on this generator.
        torch.manual_seed(self.payload.config.seed + self.rank)
        self._started_s, self._first_step = time.monotonic(), state.global_step
        self._step, self._steps = state.global_step, state.max_steps
        if self.rank == 0:
            threading.Thread(target=self._fill_silence, daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self.is_over():  # it was interrupted between its last evaluation and its end: this step counts for nothing
            control.should_training_stop, control.should_save, control.should_log = True, False, False
        # Logged with every checkpoint, a resumed run averages the loss over the same steps as an undisturbed one.
        control.should_log = control.should_log or control.should_save
        control.should_evaluate = control.should_save and bool(self.payload.selection)
        self._step = state.global_step
        if self.payload.use_gpu:
            self._gpus = _gather(self.rank)
        if self.rank == 0 and (self._due() or self._step == self._steps):
            self._write()

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.train_s = time.monotonic() - self._started_s

    def end(self) -> None:
        """Watch no longer, however the training has ended."""
        self._ended.set()

    def is_over(self) -> bool:
        """Whether validation rows have ended the run."""
        assert self._trainer is not None
        chooser = self._trainer.selection
        return chooser is not None and chooser.is_over(self._trainer.state.log_history)

    def now(self) -> Progress | None:
        """Where the run is; None before its first step. `tokens_per_s` counts all ranks, padding left out."""
        assert self._trainer is not None
        done = self._step - self._first_step
        if not done:
            return None
        elapsed_s = max(time.monotonic() - self._started_s, 1e-6)
        lengths, epochs = self.payload.lengths, self.payload.config.epochs
        return Progress(
            step=self._step, steps=self._steps, loss=self._trainer.latest.loss,
            tokens_per_s=done * sum(lengths) * epochs / self._steps / elapsed_s,
            eta_s=elapsed_s / done * (self._steps - self._step), gpus=self._gpus,
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """What the manifest says about the run; times are of the last attempt."""
        assert self._trainer is not None
        state, lengths, config = self._trainer.state, self.payload.lengths, self.payload.config
        logged = [entry for entry in state.log_history if "loss" in entry]
        steps_run = state.global_step - self._first_step
        tokens = sum(lengths) * config.epochs * state.global_step / state.max_steps
        return {
            "steps": state.global_step, "steps_run": steps_run, "resumed_from": self._first_step, "rows": len(lengths),
            "epochs": config.epochs, "tokens": round(tokens), "longest_row_tokens": max(lengths),
            "loss_first": logged[0]["loss"] if logged else None, "loss_last": logged[-1]["loss"] if logged else None,
            "token_accuracy": logged[-1].get("mean_token_accuracy") if logged else None,
            "train_s": round(self.train_s, 2),
            "tokens_per_s": round(tokens * steps_run / state.global_step / max(self.train_s, 1e-6)),
            "workers": self._trainer.args.world_size,
            "gpus": config.workers.count * config.workers.per_worker.get("GPU", 0),
            "optimizer": optimizer_name(self._trainer), "peak_bytes": _peak_bytes(self.payload.use_gpu),
            **selection.figures(state.log_history, steps=state.max_steps),
        }  # fmt: skip

    def _due(self) -> bool:
        return time.monotonic() - self._written_s >= _EVERY_S

    def _fill_silence(self) -> None:
        while not self._ended.wait(_EVERY_S):
            if self._due():
                with contextlib.suppress(SlmRayError):  # the trainer's own writes say that the disk is full
                    self._write()

    def _write(self) -> None:
        with self._writing:
            if (now := self.now()) is not None:
                progress.write(self._path, now, self.payload.keeper)
                self._written_s = time.monotonic()


def gpu_of(rank: int, uuid: str, nvml: Any) -> Gpu | None:
    """Load and memory of one NVIDIA card, as the driver library `nvml` (the module pynvml) has it; None where it has none."""
    try:
        nvml.nvmlInit()
        card = nvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = nvml.nvmlDeviceGetMemoryInfo(card)
        load = nvml.nvmlDeviceGetUtilizationRates(card)
    except nvml.NVMLError:  # no driver, or a slice of a card (MIG), which has no load of its own
        return None
    return Gpu(rank=rank, load_percent=int(load.gpu), used_bytes=int(memory.used), total_bytes=int(memory.total))


def _gather(rank: int) -> tuple[Gpu, ...]:
    """Every rank's card, on every rank: all ranks call it after the same step."""
    import pynvml  # only where there is a GPU

    mine = gpu_of(rank, f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", pynvml)
    if not torch.distributed.is_initialized():
        return (mine,) if mine else ()
    everyone: list[Gpu | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return tuple(gpu for gpu in everyone if gpu is not None)


def _peak_bytes(use_gpu: bool) -> int:
    return int(torch.cuda.max_memory_reserved() if use_gpu else psutil.Process().memory_info().rss)
