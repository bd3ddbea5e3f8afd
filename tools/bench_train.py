"""What a training costs around its training, what a killed worker costs it, and how many adapters an hour makes.

`torchrun`: `slm-ray train` against torchrun with plain TRL, in turn, on the same rows. Both load the same base in NF4, train
the same LoRA layers over the same rows for the same steps in as many processes, and save. `around_s` is the whole command
less what its trainer says it trained; `cpu_s` is what all its processes computed, which a busy machine changes less.

`recovery`: one worker is killed (-9) between two checkpoints. Steps that are done twice, and the seconds from the kill until
the step at which it came is reached again.

`chain`: the same command three times over one run: it is stopped (SIGTERM), loses a worker (-9) and then its driver (-9), and
finishes. The loss of every step beside that of a run which nothing disturbed.

`per_hour`: as many trainings as `adapters`, by one worker each, in line for the machine's slots.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from slm_ray import cluster
from slm_ray.command import run
from slm_ray.config import TrainConfig
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.storage import read_json, write_json
from slm_ray.training import progress, rows, train, train_many
from tools.config import TrainBenchConfig

_CHAIN_STEPS, _CHAIN_SAVES = 48, 4  # below 50 steps every one is logged


def main(config: TrainBenchConfig) -> None:
    """Measure what `parts` names, and print."""
    parts = {"torchrun": race, "recovery": recovery, "chain": chain, "per_hour": per_hour}
    for part in config.parts:
        parts[part](config)


def race(config: TrainBenchConfig) -> None:
    """Run the laps in turn and print the medians."""
    laps: dict[str, list[dict[str, float]]] = {"slm-ray": [], "torchrun": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(config.laps):
            for name, lap in laps.items():
                folder = Path(scratch) / f"{name}-{number}"
                lap.append(one_lap(name, config.training, folder))
                print(f"{name}: {said(lap[-1])}", flush=True)
    for name, measured in laps.items():
        medians = {figure: statistics.median(lap[figure] for lap in measured) for figure in measured[0]}
        print(f"median of {config.laps}, {name}: {said(medians)}")


def said(lap: dict[str, float]) -> str:
    return ", ".join(f"{figure} {seconds:.1f}" for figure, seconds in lap.items())


def one_lap(name: str, training: TrainConfig, folder: Path) -> dict[str, float]:
    """The seconds of one whole command in a fresh folder."""
    folder.mkdir()
    asked = training.model_copy(update={"run_dir": str(folder / "run"), "adapters_dir": str(folder / "adapters")})
    write_json(folder / "train.yaml", asked.model_dump(mode="json"))  # JSON is YAML
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "jobs" / "train.py"), str(folder / "train.yaml")]
    if name == "torchrun":
        ranks = f"--nproc-per-node={asked.workers.count}"
        command = [sys.executable, "-m", "torch.distributed.run", ranks, "-m", "tools.bench_train", str(folder)]
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (folder / "output.log").open("wb") as output:
        done = subprocess.run(command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    whole_s, after = time.perf_counter() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        end = (folder / "output.log").read_text(encoding="utf-8", errors="replace")[-800:]
        raise ResourceError(f"{name} ended with status {done.returncode}: {end}")
    manifest = next(folder.glob("adapters/*/manifest.json"), folder / "manifest.json")
    train_s = float(read_json(manifest)["metrics"]["train_s"])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"whole_s": whole_s, "train_s": train_s, "around_s": whole_s - train_s, "cpu_s": cpu_s}


def recovery(config: TrainBenchConfig) -> None:
    """A training whose worker is killed once."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = _own(config, folder, checkpoint_steps=config.checkpoint_steps)
        seen: list[tuple[float, int | None]] = []
        killed: list[tuple[float, int]] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                step = _step(folder)
                if not seen or step != seen[-1][1]:
                    seen.append((time.perf_counter(), step))
                saved = any(folder.rglob("checkpoint_*/trainer_state.json"))
                if not killed and saved and step is not None and step % config.checkpoint_steps >= 5:
                    _workers()[-1].kill()
                    killed.append((time.perf_counter(), step))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            manifest = train(asked, show=False)
        finally:
            ended.set()
            watcher.join()
    if not killed:
        raise ResourceError("the training ended before a worker could be killed; train more steps")
    print(f"recovery: {recovered(seen, killed[0], int(manifest.metrics['resumed_from']))}", flush=True)


def recovered(seen: Sequence[tuple[float, int | None]], killed: tuple[float, int], resumed_from: int) -> str:
    """What was lost: `seen` are the steps that the run told, None while it had none, each with when it was first seen."""
    killed_s, step = killed
    told = iter([one for one in seen if one[0] > killed_s])
    noticed_s = next(when for when, reached in told if reached is None)
    steps = [(when, reached) for when, reached in told if reached is not None]
    return (
        f"killed at step {step} (as told), went on from {resumed_from}: {max(0, step - resumed_from)} steps twice; noticed after "
        f"{noticed_s - killed_s:.1f} s, told of a step again after {steps[0][0] - killed_s:.1f} s, at step {step} again after "
        f"{next(when for when, reached in steps if reached >= step) - killed_s:.1f} s"
    )


def chain(config: TrainBenchConfig) -> None:
    """A training that is disturbed in three ways, beside one that is not."""
    cluster.connect()
    rows_in_all = len(rows.read(config.training.train, config.training.track).examples)
    epochs = _CHAIN_STEPS * config.training.per_device_batch * config.training.workers.count / rows_in_all
    with tempfile.TemporaryDirectory() as scratch:
        alone, disturbed = (
            _own(config, Path(scratch) / name, epochs=epochs, checkpoint_steps=_CHAIN_SAVES, gradient_accumulation=1)
            for name in ("alone", "disturbed")
        )
        _finish(alone)
        first = _command(disturbed)
        _wait(lambda: _saved(disturbed) > 0, first, disturbed)
        first.send_signal(signal.SIGTERM)  # what `ray job stop` and a service manager send
        status = first.wait()
        while _workers():
            time.sleep(0.1)
        stopped = _saved(disturbed)
        second = _command(disturbed)
        _wait(lambda: len(_workers()) == config.training.workers.count, second, disturbed)
        _wait(lambda: _saved(disturbed) > stopped, second, disturbed)
        _workers()[-1].kill()
        lost = _saved(disturbed)
        _wait(lambda: _saved(disturbed) >= lost + 2 * _CHAIN_SAVES, second, disturbed)
        second.kill()
        second.wait()
        told = (
            f"stopped (status {status}) behind checkpoint {stopped}, lost a worker behind {lost} and its driver behind "
            f"{_saved(disturbed)}"
        )
        _finish(disturbed)
        curves = [_curve(asked) for asked in (alone, disturbed)]
    print(f"chain: {told}; {compared(*curves)}", flush=True)


def compared(alone: Sequence[Mapping[str, float]], disturbed: Sequence[Mapping[str, float]]) -> str:
    """How far two curves of loss, rate and gradient norm by step lie apart."""
    if [step["step"] for step in alone] != [step["step"] for step in disturbed]:
        raise ResourceError("the two runs have not logged the same steps")
    apart = [abs(one[name] - other[name]) for one, other in zip(alone, disturbed, strict=True) for name in one]
    return f"{len(alone)} steps beside an undisturbed run: loss, rate and gradient norm apart by {max(apart):g} at most"


def per_hour(config: TrainBenchConfig) -> None:
    """Trainings in line, each with a seed of its own."""
    cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        workers = config.training.workers.model_copy(update={"count": 1})
        asked = [
            _own(config, Path(scratch), name=f"bench{number}", seed=number, workers=workers)
            for number in range(config.adapters)
        ]
        started_s = time.perf_counter()
        manifests = train_many(asked)
        took_s = time.perf_counter() - started_s
    trained_s = sum(float(manifest.metrics["train_s"]) for manifest in manifests)
    print(
        f"per hour: {len(manifests)} adapters in {took_s:.1f} s, {3600 * len(manifests) / took_s:.0f} an hour; of {trained_s:.1f} s"
        " of training"
    )


def _own(config: TrainBenchConfig, folder: Path, **changes: Any) -> TrainConfig:
    folders = {"run_dir": str(folder / "run"), "adapters_dir": str(folder / "adapters")}
    return config.training.model_copy(update={**folders, **changes})


def _step(folder: Path) -> int | None:
    for path in folder.glob("run/*/*.json"):
        found = progress.read(path)
        if isinstance(found, progress.Progress):
            return found.step
    return None


def _command(asked: TrainConfig) -> subprocess.Popen[bytes]:
    """`slm-ray train` in a process of its own, on the Ray of this one."""
    folder = Path(asked.run_dir).parent
    folder.mkdir(exist_ok=True)
    write_json(folder / "train.yaml", asked.model_dump(mode="json"))
    job = Path(__file__).parents[1] / "jobs" / "train.py"
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (folder / "output.log").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(job), str(folder / "train.yaml")], env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _finish(asked: TrainConfig) -> None:
    while status := _command(asked).wait():
        if "in use" not in _output(asked):
            raise ResourceError(f"the command ended with status {status}: {_output(asked)[-800:]}")
        time.sleep(1.0)  # what is left of a killed driver lets go of the run's folder


def _output(asked: TrainConfig) -> str:
    return (Path(asked.run_dir).parent / "output.log").read_text(encoding="utf-8", errors="replace")


def _saved(asked: TrainConfig) -> int:
    """The step of the newest checkpoint that Ray Train has noted; 0 where there is none."""
    steps = [0]
    for noted in Path(asked.run_dir).glob("*/checkpoint_manager_snapshot.json"):
        for path in noted.parent.glob("checkpoint_*/trainer_state.json"):
            with contextlib.suppress(OSError, SlmRayError):  # it is being written, or removed
                if path.parent.name in noted.read_text(encoding="utf-8"):
                    steps.append(int(read_json(path)["global_step"]))
    return max(steps)


def _wait(until: Callable[[], bool], command: subprocess.Popen[bytes], asked: TrainConfig) -> None:
    while not until():
        if command.poll() is not None:
            raise ResourceError(f"it ended too soon, with status {command.returncode}: {_output(asked)[-800:]}")
        time.sleep(0.02)


def _curve(asked: TrainConfig) -> list[dict[str, float]]:
    (finished,) = Path(asked.run_dir).glob("*/finished.json")
    return list(read_json(finished)["curve"])


def _workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found += [process] if "RayTrainWorker" in " ".join(process.cmdline()) else []
    return found


def rank(folder: Path) -> None:
    """One rank of the plain training, as TRL's own example has it; writes an adapter and `manifest.json` into `folder`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    config = TrainConfig.model_validate(read_json(folder / "train.yaml"))
    torch.set_num_threads(1)
    examples = rows.read(config.train, config.track).examples
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        config.base, dtype=torch.bfloat16, quantization_config=quantization, attn_implementation="eager"
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "out"), num_train_epochs=config.epochs, use_cpu=True, bf16=True, report_to="none",
            per_device_train_batch_size=config.per_device_batch, learning_rate=config.learning_rate,
            gradient_accumulation_steps=config.gradient_accumulation, warmup_steps=config.warmup_steps,
            optim=config.optimizer, max_length=None, ddp_find_unused_parameters=False, disable_tqdm=True,
            gradient_checkpointing=False, save_strategy="no", dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list([rows.conversation(example) for example in examples]),
        processing_class=AutoTokenizer.from_pretrained(config.base),
        peft_config=LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=config.lora.dropout,
            target_modules="all-linear", task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    started_s = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - started_s
    if trainer.is_world_process_zero():
        trainer.save_model(str(folder / "adapter"))
        figures: dict[str, Any] = {"train_s": train_s}
        (folder / "manifest.json").write_text(json.dumps({"metrics": figures}), encoding="utf-8")


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]))
    else:
        run(main, TrainBenchConfig, __doc__)
