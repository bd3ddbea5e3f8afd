"""A training run from the driver's side: check everything, start the workers, publish what they made.

All that can be known is checked before a worker starts: rows, lengths, template, base, cluster size. The same config
over the same rows and base is one run: finished, it is returned at once; interrupted, it goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from slm_ray import adapters, cluster
from slm_ray.adapters import Manifest
from slm_ray.config import TrainConfig
from slm_ray.corpus.leakage import question_hash
from slm_ray.corpus.render import digest
from slm_ray.errors import AdapterError, ResourceError, SlmRayError
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.training import progress, rows
from slm_ray.training.quiet import quiet
from slm_ray.training.traces import FINISHED, trace
from slm_ray.training.work import Work
from slm_ray.types import Example

# Not part of what is learned: where files lie, how often a run may fail, how often it saves.
_INCIDENTAL: Any = {
    "run_dir": True, "adapters_dir": True, "train": True, "base": True, "checkpoint_steps": True, "workers": {"max_failures"},
}  # fmt: skip
_DRIVER = {"num_cpus": 0.01, "max_retries": 0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked run: what will be trained on what, under a name that follows from the content."""

    config: TrainConfig
    folder: Path
    examples: tuple[Example, ...]
    lengths: tuple[int, ...]
    base_fingerprint: str
    config_digest: str
    data_digest: str

    @property
    def progress_path(self) -> Path:
        return self.folder / f"{self.config.name}.json"


def train(config: TrainConfig, *, show: bool = True) -> Manifest:
    """Train and publish one adapter; blocks. Call it in a driver or inside a Ray task; needs `cluster.connect()`.

    Raises DataError (rows), ModelError (base), ConfigError (template, targets) and ResourceError (cluster, memory)
    before any weight loads. `show` writes progress to stderr.
    """
    made = plan(config)
    manifest = _train(made, show=show)
    trace(made.folder, manifest, os.environ)
    return manifest


def train_many(configs: Sequence[TrainConfig], *, parallel: bool) -> list[Manifest]:
    """Train several adapters, all at once (each in its own group of workers) or one after the other; in order.

    When one fails, the others still run to their end, then its error is raised.
    """
    if not parallel or len(configs) == 1:
        return [train(config) for config in configs]
    plans = [plan(config) for config in configs]
    open_plans = [made for made in plans if _finished(made) is None]
    cluster.require(
        [bundle for made in open_plans for bundle in _bundles(made.config)], setting="training.workers × tracks"
    )
    with progress.shown([made.progress_path for made in open_plans]):
        running = [_in_task.options(**_DRIVER).remote(made) for made in plans]
        ray.wait(running, num_returns=len(running))
    manifests = [_result(reference) for reference in running]
    for made, manifest in zip(plans, manifests, strict=True):
        trace(made.folder, manifest, os.environ)
    return manifests


def plan(config: TrainConfig, *, limit: int | None = None) -> Plan:
    """Read and check everything that needs no worker; `limit` takes the first rows only."""
    # transformers takes seconds to import, which a job that only prints its help should not pay.
    quiet()
    from slm_ray.training.pretrained import base_folder, open_tokenizer

    folder = base_folder(config.base)
    read = rows.read(config.train, config.track).first(limit)
    rows.refuse_leaks(read, config.track)
    lengths = rows.lengths(read, open_tokenizer(folder), max_length=config.max_length)
    fingerprint = adapters.base_fingerprint(folder)
    data_digest = digest(read.examples)
    settings = json.dumps(config.model_dump(mode="json", exclude=_INCIDENTAL), sort_keys=True)
    config_digest = hashlib.sha256(settings.encode()).hexdigest()
    run = hashlib.sha256(f"{config_digest}{data_digest}{fingerprint}".encode()).hexdigest()[:12]
    base = str(folder) if Path(config.base).expanduser().is_dir() else config.base
    return Plan(
        config=config.model_copy(update={"base": base}), folder=Path(config.run_dir).absolute() / f"{config.name}-{run}",
        examples=read.examples, lengths=tuple(lengths), base_fingerprint=fingerprint, config_digest=config_digest,
        data_digest=data_digest,
    )  # fmt: skip


def fit(made: Plan, *, validation: Sequence[Example] = (), callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Run the workers to the end: rank 0's figures, and `adapter`, the folder of the last checkpoint."""
    from ray.train.torch import TorchConfig, TorchTrainer

    config = made.config
    cluster.require(_bundles(config), setting="training.workers")
    use_gpu = config.workers.per_worker.get("GPU", 0) > 0
    work = Work(
        config=config, rows=tuple(rows.conversation(example) for example in made.examples), lengths=made.lengths,
        use_gpu=use_gpu, progress_path=str(made.progress_path), validation=tuple(validation),
    )  # fmt: skip
    made.progress_path.unlink(missing_ok=True)
    # A worker's report waits for the controller's next look at it: 2 s by default, many times a step of a small model.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = TorchTrainer(
        _worker,
        train_loop_config=work,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers.count, use_gpu=use_gpu, resources_per_worker=dict(config.workers.per_worker)
        ),
        run_config=RunConfig(
            name=made.folder.name,
            storage_path=str(made.folder.parent),
            failure_config=FailureConfig(max_failures=config.workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": _environment(config)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    started_ns = time.time_ns()
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _explained(error, config) from error
    outcome: dict[str, Any] = result.return_value
    if "refused" in outcome:
        raise ResourceError(outcome["refused"])
    return {**outcome, "adapter": result.checkpoint.path, "bounds_ns": [started_ns, time.time_ns()]}


def _train(made: Plan, *, show: bool) -> Manifest:
    if (finished := _finished(made)) is not None:
        return finished
    with lock(made.folder), progress.shown([made.progress_path] if show else []):
        return _publish(made, fit(made))


@ray.remote  # type: ignore[untyped-decorator]
def _in_task(made: Plan) -> Manifest:
    return _train(made, show=False)


def _worker(work: Work) -> dict[str, Any]:
    quiet()
    # Only a worker pays for importing torch, PEFT and TRL.
    from slm_ray.training.loop import worker

    return worker(work)


def _result(reference: Any) -> Manifest:
    try:
        manifest: Manifest = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SlmRayError):
            raise error.cause from None
        raise
    return manifest


def _finished(made: Plan) -> Manifest | None:
    path = made.folder / FINISHED
    if not path.is_file():
        return None
    try:
        return adapters.load_manifest(made.config.adapters_dir, read_json(path)["adapter"])
    except AdapterError:
        return None  # it was deleted: the last checkpoint is still there, and is published again


def _publish(made: Plan, outcome: dict[str, Any]) -> Manifest:
    config = made.config
    manifest = adapters.publish(
        outcome["adapter"], config.adapters_dir, name=config.name,
        track=open_track(config.track, beside=config.train).name, base=config.base,
        base_fingerprint=made.base_fingerprint, config_digest=made.config_digest, data_digest=made.data_digest,
        metrics=outcome["metrics"], train_prompts=[question_hash(example) for example in made.examples],
    )  # fmt: skip
    told = {name: outcome[name] for name in ("metrics", "curve", "bounds_ns")}
    write_json(made.folder / FINISHED, {"adapter": manifest.id, **told})
    return manifest


def _bundles(config: TrainConfig) -> list[dict[str, float]]:
    return [dict(config.workers.per_worker)] * config.workers.count


def _environment(config: TrainConfig) -> dict[str, str]:
    return {
        "PYTHONHASHSEED": str(config.seed), "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": str(config.workers.threads),
    }  # fmt: skip


def _explained(error: Exception, config: TrainConfig) -> Exception:
    causes: list[Exception] = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for cause in causes:
        if isinstance(cause, SlmRayError):
            return cause
        if "out of memory" in str(cause).lower():
            return ResourceError(
                f"a worker ran out of memory: lower per_device_batch (now {config.per_device_batch}) and raise "
                f"gradient_accumulation (now {config.gradient_accumulation}), or shorten the rows"
            )
    # The ranks that live on fail too, with a broken connection to the one that died.
    if any("died" in str(cause).lower() for cause in causes):
        return ResourceError(
            f"training workers were killed more than {config.workers.max_failures} times (memory, a lost node, or someone "
            "stopped them): the same command continues from the last checkpoint"
        )
    return error
