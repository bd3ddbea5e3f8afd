"""A training run from the driver's side: check everything, start the workers, publish what they made.

All that can be known is checked before a worker starts: rows, lengths, template, base, cluster size. The same config
over the same rows and base is one run: finished, it is returned at once; interrupted, it goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from slm_ray import adapters, cluster
from slm_ray.adapters import Manifest
from slm_ray.api_key import api_key
from slm_ray.config import TrainConfig, Workers
from slm_ray.corpus.leakage import question_hash
from slm_ray.errors import AdapterError, SlmRayError
from slm_ray.remote import address, is_remote, joined, open_store, send_folder, unchanged
from slm_ray.storage import lock, read_json, write_json
from slm_ray.tasks import open_track
from slm_ray.tracing import Tracer, adapter_facts
from slm_ray.training import progress, rows
from slm_ray.training.base_model import base_folder, silence_libraries
from slm_ray.training.base_shape import BaseShape
from slm_ray.training.estimate import duration
from slm_ray.training.failures import GiveUp, run_error
from slm_ray.training.plan import CPU_THREADS, RANK, Plan, WorkerPayload, plan
from slm_ray.training.proof import check_prove_on, encoded, prove
from slm_ray.training.slots import Turn, in_line

FINISHED = "finished.json"
CHECKPOINTS = ".checkpoints"  # in object storage: nothing of a working copy, for workers write there themselves
MAX_FAILURES = 2  # how often a group may lose a worker and is started again
_NOT_RECIPE: Any = {  # said elsewhere in the manifest, or a path
    "name": True, "track": True, "train": True, "validation": True, "base": True, "run_dir": True, "adapters_dir": True,
    "prove_on": True,
    "mixture": {"__all__": {"train": True}},
}  # fmt: skip


def train(
    config: TrainConfig, *, show: bool = True, hourly_usd: float | None = None,
    make_room: Callable[[], None] = lambda: None,
) -> Manifest:  # fmt: skip
    """Train and publish one adapter; blocks. Joins Ray while the rows are tokenised; may be called inside a Ray task.

    Raises DataError (rows), ModelError (base), ConfigError (template, targets) and ResourceError (cluster, memory)
    before any weight loads; TrainingError and ResourceError when the run fails, once, unless its workers were lost;
    ModelError when what is served is not what was trained, and then nothing is published.
    `show` writes progress to stderr; `hourly_usd` is what a GPU costs; `make_room` is called before anything of the
    cluster is asked for, and not at all for a run that is finished.
    """
    planned = _planned(config, meanwhile=_join)
    if _finished(planned) is None:
        make_room()
        if show:
            _announce(planned, hourly_usd)
    manifest = _train(planned, show=show, key=api_key(os.environ))
    trace(planned.folder, manifest, os.environ)
    return manifest


def join() -> None:
    """Join Ray, or start one, and load what a driver needs of torch."""
    cluster.connect()
    import ray.train.torch  # noqa: F401


def _join(folder: Path) -> None:
    if not (folder / FINISHED).is_file():
        join()


def train_many(
    configs: Sequence[TrainConfig], *, hourly_usd: float | None = None, make_room: Callable[[], None] = lambda: None
) -> list[Manifest]:
    """Train several adapters, each in its own group of workers: as many at once as there is room for.

    They begin in their order, whatever each asks for (`slots`); a node that joins is used at once. When one fails, the
    others still run to their end, then its error is raised. `make_room` as for `train`; it may be called more than once.
    """
    if len(configs) == 1:
        return [train(config, hourly_usd=hourly_usd, make_room=make_room) for config in configs]
    plans = [_planned(config) for config in configs]
    open_plans = [planned for planned in plans if _finished(planned) is None]
    if open_plans:
        make_room()
    cluster.connect()
    for planned in open_plans:
        cluster.require(_bundles(planned.config), setting="training.workers")
        _announce(planned, hourly_usd)
        planned.progress_path.unlink(missing_ok=True)  # of a run that was cut off: it waits for its turn again
    key = api_key(os.environ)
    with progress.shown([planned.progress_path for planned in open_plans]):
        ended = in_line(
            [_bundles(planned.config) for planned in open_plans],
            lambda turn: _in_task.options(scheduling_strategy=cluster.this_node()).remote(
                open_plans[turn.number], key, turn
            ),
        )
    trained = {planned.folder: _result(one) for planned, one in zip(open_plans, ended, strict=True)}
    manifests = [trained.get(planned.folder) or _train(planned, show=False, key=key) for planned in plans]
    for planned, manifest in zip(plans, manifests, strict=True):
        trace(planned.folder, manifest, os.environ)
    return manifests


def fit(planned: Plan, turn: Turn | None = None) -> dict[str, Any]:
    """Run the workers to the end: rank 0's figures, and `adapter`, the folder of the last checkpoint, or of the best one.

    In the place of a `turn`, or else wherever Ray finds one.
    """
    from slm_ray.training.ray_trainer import RayTrainer

    config = planned.config
    cluster.require(_bundles(config), setting="training.workers")
    copies = {"training.base": config.base} if Path(config.base).is_dir() else {}
    cluster.require_seen(
        config.workers.per_worker, shared={"training.run_dir": address(planned.folder.parent)}, copies=copies
    )
    is_shared = not is_remote(address(planned.folder))
    payload = WorkerPayload(
        config=config, rows=planned.tokens, lengths=planned.lengths,
        use_gpu=on_gpus(config.workers), progress_path=str(planned.progress_path), selection=planned.validation,
        checkpoints="" if is_shared else joined(address(planned.folder.parent), f"{CHECKPOINTS}/{planned.folder.name}"),
        keeper=None if is_shared else cluster.beside_driver(progress.Keeper).remote(planned.folder.parent),
        track=open_track(config.track, beside=config.train),
    )  # fmt: skip
    progress.start(planned.progress_path)
    trainer = RayTrainer(
        _worker,
        train_loop_config=payload,
        **group_settings(config.workers),
        run_config=RunConfig(
            name=planned.folder.name,
            **checkpoint_storage(planned.folder.parent),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=RANK if planned.validation else None
            ),
            callbacks=[GiveUp(config, str(planned.folder), planned.progress_path)],
            worker_runtime_env={"env_vars": worker_environment(config.workers, config.seed)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.turn = turn
    started_ns = time.time_ns()
    try:
        result = trainer.fit()
    except (TrainingFailedError, RayError) as error:  # the second where the controller or its node is gone
        raise run_error(error, config, str(planned.folder), MAX_FAILURES + 1) from None
    outcome: dict[str, Any] = result.return_value
    chosen = _chosen(result, planned)
    adapter = chosen.path if is_shared else chosen.to_directory(str(planned.folder / ".chosen"))
    return {**outcome, "adapter": adapter, "bounds_ns": [started_ns, time.time_ns()]}


def checkpoint_storage(folder: Path) -> dict[str, Any]:
    """Where Ray keeps checkpoints of the runs in a folder: there, or in the store that it is a working copy of."""
    where = address(folder)
    if not is_remote(where):
        return {"storage_path": str(folder)}
    store = open_store(joined(where, CHECKPOINTS), setting="training.run_dir")
    return {"storage_path": store.path, "storage_filesystem": store.system}


def _train(planned: Plan, *, show: bool, key: str, turn: Turn | None = None) -> Manifest:
    if (finished := _finished(planned)) is not None:
        return finished
    cluster.connect()
    with lock(planned.folder), progress.shown([planned.progress_path] if show else []):
        return _publish(planned, fit(planned, turn), key, turn)


# Its workers hold their place by then: of CPUs that they all hold not even a part would be left for it.
@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _in_task(planned: Plan, key: str, turn: Turn) -> Manifest:
    """A training's own task, on the driver's node: the working copy is there, and an endpoint on loopback that proves it."""
    return _train(planned, show=False, key=key, turn=turn)


def _planned(config: TrainConfig, meanwhile: Callable[[Path], None] | None = None) -> Plan:
    check_prove_on(config)
    return plan(config, meanwhile=meanwhile)


def _announce(planned: Plan, hourly_usd: float | None) -> None:
    try:
        earlier = adapters.list_adapters(planned.config.adapters_dir)
    except AdapterError:
        earlier = []  # a damaged record is no reason not to train
    expected = duration(
        BaseShape.read(base_folder(planned.config.base)), planned.config, lengths=planned.lengths,
        fingerprint=planned.base_fingerprint, earlier=earlier, hourly_usd=hourly_usd,
    )  # fmt: skip
    print(f"{planned.config.name}: {expected}", file=sys.stderr, flush=True)


def _worker(payload: WorkerPayload) -> dict[str, Any]:
    silence_libraries()
    # Only a worker pays for importing torch, PEFT and TRL.
    from slm_ray.training.worker import worker

    try:
        return worker(payload)
    except Exception as error:
        if not isinstance(error, SlmRayError):
            _keep_trace(payload)
        raise


def _chosen(result: Any, planned: Plan) -> Any:
    """The best checkpoint where validation rows chose, else the last."""
    return result.get_best_checkpoint(RANK, "max") if planned.validation else result.checkpoint


def _keep_trace(payload: WorkerPayload) -> None:
    rank = ray.train.get_context().get_world_rank()
    path, text = Path(payload.progress_path).with_name(f"failure-{rank}.txt"), traceback.format_exc()
    with contextlib.suppress(SlmRayError):  # the disk may be what is full
        written = progress.keep(path, text, payload.keeper)
        ray.get([] if written is None else written)


def _result(reference: Any) -> Manifest:
    try:
        manifest: Manifest = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SlmRayError):
            raise error.cause from None
        raise
    return manifest


def _finished(planned: Plan) -> Manifest | None:
    path = planned.folder / FINISHED
    if not path.is_file():
        return None
    try:
        return adapters.load_manifest(planned.config.adapters_dir, read_json(path)["adapter"])
    except AdapterError:
        return None  # it was deleted: the last checkpoint is still there, and is published again


def _publish(planned: Plan, outcome: dict[str, Any], key: str, turn: Turn | None) -> Manifest:
    config = planned.config
    publication: dict[str, Any] = {
        "name": config.name, "track": rows.track_name(config), "base": config.base,
        "base_fingerprint": planned.base_fingerprint, "config_digest": planned.config_digest,
        "data_digest": planned.data_digest,
        "metrics": {**outcome["metrics"], "chat_template": planned.chat_template},
        "train_prompts": [question_hash(example) for example in planned.examples],
        "recipe": config.model_dump(mode="json", exclude=_NOT_RECIPE),
        "base_shapes": adapters.base_shapes(base_folder(config.base)),
    }  # fmt: skip
    proof = prove(planned, Path(outcome["adapter"]), publication, key=key, turn=turn)
    with unchanged(config.adapters_dir):
        manifest = adapters.publish(
            outcome["adapter"], config.adapters_dir, **publication, proof=proof.summary, parity=encoded(proof.record)
        )
        send_folder(Path(config.adapters_dir) / manifest.id, last=adapters.MANIFEST)
    figures = {name: outcome[name] for name in ("metrics", "curve", "bounds_ns")}
    write_json(planned.folder / FINISHED, {"adapter": manifest.id, **figures})
    return manifest


def trace(folder: Path, manifest: Manifest, environment: Mapping[str, str]) -> None:
    """Write the trace beside the run's files and offer it to Langfuse; nothing for a run that kept no curve."""
    if not (folder / FINISHED).is_file():
        return
    finished = read_json(folder / FINISHED)
    if "curve" not in finished:
        return
    began_ns, ended_ns = finished["bounds_ns"]
    Tracer(folder, environment).training(
        manifest.name, origin=adapter_facts(manifest), metrics=finished["metrics"], curve=finished["curve"],
        bounds_ns=(began_ns, ended_ns),
    )  # fmt: skip


def _bundles(config: TrainConfig) -> list[dict[str, float]]:
    return [dict(config.workers.per_worker)] * config.workers.count


def on_gpus(workers: Workers) -> bool:
    """Whether each worker holds a GPU, or a part of one."""
    return workers.per_worker.get("GPU", 0) > 0


def group_settings(workers: Workers) -> dict[str, Any]:
    """How a trainer of Ray Train starts a group of workers: how many, with what, and how they talk to each other."""
    from ray.train.torch import TorchConfig

    return {
        "torch_config": TorchConfig(backend="nccl" if on_gpus(workers) else "gloo"),
        "scaling_config": ScalingConfig(
            num_workers=workers.count, use_gpu=on_gpus(workers), resources_per_worker=dict(workers.per_worker)
        ),
    }


def worker_environment(workers: Workers, seed: int) -> dict[str, str]:
    """The environment of a training worker: what makes its kernels repeat themselves, and its share of the cores.

    bitsandbytes gets torch's compiler ready when it is imported, a tenth of all that a worker imports; on a CPU nothing
    here is compiled.
    """
    uncompiled = {} if on_gpus(workers) else {"TORCHDYNAMO_DISABLE": "1"}
    return {
        "PYTHONHASHSEED": str(seed), "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": str(CPU_THREADS), **uncompiled,
    }  # fmt: skip
