"""Proving an adapter: it is served as it will be, asked, and compared with PEFT and with what its trainer noted.

`prove` runs before publishing. The adapter lies in `adapters_dir/.candidates` meanwhile, where an endpoint answers for it as
`ID@candidate` and lists it nowhere, until the last of those who prove it at the same time has done; without an endpoint a vLLM engine is started for it, in a Ray task with what one of the
training's workers had. A fault is a ModelError, and nothing is published. What could not be checked (no vLLM, no room) is
said in the proof and warned of, and the adapter is published. `prove_again` does the same for a published adapter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from slm_ray import adapters, parity
from slm_ray.adapters import Manifest
from slm_ray.adapters.weights import unserved
from slm_ray.config import ParityConfig, TrainConfig
from slm_ray.errors import AdapterError, ConfigError, ModelError, SlmRayError
from slm_ray.parity import CANDIDATE, Finding, Note, Record, Reference, Served
from slm_ray.remote import address, is_remote, sent
from slm_ray.reports.encoding import decode, encode
from slm_ray.serving.served_answers import NoEngine, Refused, TooLong, ask_endpoint, ask_engine, read_record
from slm_ray.serving.settings import FRONT_ONLY, read_serve_file
from slm_ray.storage import read_json, write_bytes
from slm_ray.training.base_model import base_folder, open_tokenizer, silence_libraries
from slm_ray.training.plan import CPU_THREADS, Plan
from slm_ray.training.slots import Turn

NOTE = "parity_note.json"  # in a checkpoint
NOTHING, ENGINE = "nothing", "engine"
_WITHIN_S = 900.0  # the base is loaded twice, by the engine and by PEFT
_SPARE_TOKENS = 32
_ADDRESSES = ("http://", "https://")
_VLLM_MAX_RANK = 16  # where a file sets none
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows
_OTHERS = 3  # published adapters that a wrong answer is compared with
_NO_SERVER = {"tokens as the server makes them", "the served answers", "mixed batches", "the version in responses"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What goes into the manifest, and what is kept beside the adapter; `record` is None where nothing was noted."""

    summary: dict[str, Any]
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An adapter folder and how it is to be proved.

    `engine` are the arguments of an engine to start, None for none; `unserved` says why no server takes it, DoRA for one.
    `left_out` says which prompts do not fit into the server's context: they are no longer in `record`.
    """

    base: Path
    folder: Path
    name: str
    rank: int
    record: Record
    engine: Mapping[str, Any] | None
    others: Mapping[str, Path]
    use_gpu: bool
    unserved: str = ""
    left_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a candidate: PEFT's answers, the server's where there are some, and why there are none."""

    reference: Reference
    served: Served | None
    refused: Finding | None = None
    unserved: str = ""


def prove(
    planned: Plan, checkpoint: Path, publication: Mapping[str, Any], *, key: str, turn: Turn | None = None
) -> Proof:
    """Proof of the adapter of `checkpoint`, which `publication` (arguments of `adapters.publish`) will publish.

    Joins the caller's Ray; `key` is the endpoint's; a training that has a `turn` is proved in its place, which those in
    line behind it would have taken otherwise. ModelError with every fault and nothing else.
    """
    config = planned.config
    if config.prove_on == NOTHING:
        return Proof(summary=_summary(None, None, on=NOTHING, reason="prove_on is nothing"), record=None)
    print(
        f"{config.name}: trained; it is proved on {config.prove_on} before it is published", file=sys.stderr, flush=True
    )
    note = _read_note(checkpoint)
    prompts = tuple(tuple(planned.examples[row.row].prompt.as_dicts()) for row in note.rows)
    root = Path(config.adapters_dir) / adapters.CANDIDATES
    with _among_candidates(root, checkpoint, publication) as manifest:
        candidate = _candidate(
            manifest, root, base=config.base, record=Record(prompts=prompts, note=note), prove_on=config.prove_on,
            others=Path(config.adapters_dir), use_gpu=config.workers.per_worker.get("GPU", 0) > 0,
        )  # fmt: skip
        with sent(root / manifest.id, last=adapters.MANIFEST) if candidate.engine is None else contextlib.nullcontext():
            candidate, served, refused = _from_endpoint(config.prove_on, f"{manifest.id}{CANDIDATE}", candidate, key)
        seen = _in_task(candidate, served, dict(config.workers.per_worker), turn)
    return _proof(candidate, replace(seen, refused=seen.refused or refused), on=config.prove_on)


@contextlib.contextmanager
def _among_candidates(root: Path, checkpoint: Path, publication: Mapping[str, Any]) -> Iterator[Manifest]:
    """The adapter published in `root` while the block runs, and for as long as another proof of the same content does."""
    while True:
        manifest = adapters.publish(checkpoint, root, **publication)
        with contextlib.suppress(FileNotFoundError):  # the last proof before this one has just withdrawn it
            handle = os.open(root / manifest.id, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(root / manifest.id)):
                    break
            os.close(handle)
    try:
        yield manifest
    finally:
        with contextlib.suppress(BlockingIOError):  # whoever still proves it withdraws it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _withdraw(root, manifest.id)
        os.close(handle)


def _withdraw(root: Path, adapter_id: str) -> None:
    """Remove a candidate in one step: half of one, left by a killed process, would be in the way of the next proof."""
    # Under the prefix of publications that were killed, which the next one sweeps.
    with contextlib.suppress(OSError):  # a full disk: what the proof has found matters more
        hidden = tempfile.mkdtemp(dir=root, prefix=".publishing-")
        os.rename(root / adapter_id, Path(hidden) / adapter_id)
        shutil.rmtree(hidden, ignore_errors=True)


def prove_again(config: ParityConfig, *, key: str) -> Proof:
    """Proof of a published adapter, in this process, on its GPU if it has one; AdapterError where it holds no note."""
    import torch

    use_gpu = torch.cuda.is_available()
    base = base_folder(config.base)
    manifest = adapters.verify(config.adapters_dir, config.adapter, base)
    record = read_record(config.adapters_dir, manifest.id)
    if record is None:
        raise AdapterError(
            f"{manifest.id} holds no {adapters.PARITY}: it was published without a proof, and its training prompts are kept as"
            " hashes only; delete it and run its training again with prove_on other than nothing, which proves the last checkpoint"
        )
    candidate = _candidate(
        manifest, Path(config.adapters_dir), base=config.base, record=record, prove_on=config.prove_on,
        others=Path(config.adapters_dir), use_gpu=use_gpu,
    )  # fmt: skip
    candidate, served, refused = _from_endpoint(config.prove_on, manifest.id, candidate, key)
    seen = look(candidate, served)
    return _proof(candidate, replace(seen, refused=seen.refused or refused), on=config.prove_on)


def check_prove_on(config: TrainConfig) -> None:
    """ConfigError, before anything is trained, for a `prove_on` that is nothing of the kind or takes no such rank."""
    if config.prove_on in (NOTHING, ENGINE) or config.prove_on.startswith(_ADDRESSES):
        return
    check_rank(config.prove_on, config.lora.rank, setting="prove_on")


def check_rank(serving_file: str, rank: int, *, setting: str) -> None:
    """ConfigError when the engine of a Ray Serve LLM file would refuse an adapter of that rank."""
    highest = engine_arguments(serving_file).get("max_lora_rank", _VLLM_MAX_RANK)
    if rank > highest:
        raise ConfigError(
            f"lora.rank {rank} is above max_lora_rank {highest} of {serving_file} ({setting}): the adapter could not be served; "
            f"set max_lora_rank there to {rank} or more, or train a lower rank"
        )


def look(candidate: Candidate, served: Served | None) -> Seen:
    """PEFT's answers beside the server's; the engine's first, where one is to be started. Needs torch; blocks."""
    silence_libraries()
    refused, reason = None, candidate.unserved
    if candidate.engine is not None and candidate.rank > (
        highest := candidate.engine.get("max_lora_rank", _VLLM_MAX_RANK)
    ):
        refused = parity.refusal(f"max_lora_rank is {highest}", rank=candidate.rank)
    elif candidate.engine is not None:
        try:
            served = ask_engine(
                candidate.base, candidate.folder, candidate.name, candidate.record.prompts, candidate.engine
            )
        except Refused as error:
            refused = parity.refusal(str(error), rank=candidate.rank)
        except NoEngine as error:
            reason = str(error)
    from slm_ray.training.parity import reference

    def answers(others: Mapping[str, Path]) -> Reference:
        return reference(
            candidate.base, candidate.folder, note=candidate.record.note, served=served, others=others,
            use_gpu=candidate.use_gpu,
        )  # fmt: skip

    found = answers({})
    if candidate.others and any(
        finding.fault == "other answers" for finding in parity.check(candidate.record.note, found, served, str)
    ):
        found = answers(candidate.others)
    return Seen(reference=found, served=served, refused=refused, unserved=reason)


@ray.remote  # type: ignore[untyped-decorator]
def _look(candidate: Candidate, served: Served | None, files: Mapping[str, bytes] | None) -> Seen:
    """`files` are the candidate's, where its folder is a copy of object storage, which this node may not have."""
    if files is None:
        return look(candidate, served)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / candidate.name
        for name, data in files.items():
            write_bytes(folder / name, data)
        return look(replace(candidate, folder=folder, others={}), served)


def _in_task(candidate: Candidate, served: Served | None, resources: dict[str, float], turn: Turn | None) -> Seen:
    environment = {"OMP_NUM_THREADS": str(CPU_THREADS), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not candidate.use_gpu:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    task = _look.options(
        num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), resources=resources, max_retries=0,
        runtime_env={"env_vars": environment},
        scheduling_strategy="DEFAULT" if turn is None else PlacementGroupSchedulingStrategy(turn.taken()),
    )  # fmt: skip
    files = None
    if is_remote(address(candidate.folder)):
        files = {path.name: path.read_bytes() for path in candidate.folder.iterdir() if path.is_file()}
    waiting = task.remote(candidate, served, files)
    try:
        seen: Seen = ray.get(waiting, timeout=_WITHIN_S)
    except GetTimeoutError:
        ray.cancel(waiting, force=True)
        raise _unproved(candidate, f"nothing came of it within {_WITHIN_S:g} s: is a worker's place free?") from None
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SlmRayError):
            raise cause from None
        lines = str(cause or error).strip().splitlines()
        raise _unproved(candidate, lines[-1] if lines else type(error).__name__) from error
    return seen


def _unproved(candidate: Candidate, reason: str) -> ModelError:
    return ModelError(
        f"{candidate.name} could not be proved and is not published: {reason}; the same command tries again and trains nothing "
        "twice, prove_on: nothing publishes it without a proof"
    )


def _candidate(
    manifest: Manifest, root: Path, *, base: str, record: Record, prove_on: str, others: Path, use_gpu: bool
) -> Candidate:
    same_base = []
    with contextlib.suppress(AdapterError):  # somebody else's damaged folder
        same_base = [
            other.id
            for other in adapters.list_adapters(others)
            if other.id != manifest.id and other.base_fingerprint == manifest.base_fingerprint
        ]
    reasons, folder = unserved(read_json(root / manifest.id / adapters.SETTINGS)), base_folder(base)
    engine = None if reasons else _engine(prove_on, manifest.rank, record.note, folder, use_gpu=use_gpu)
    candidate = Candidate(
        base=folder, folder=root / manifest.id, name=manifest.id, rank=manifest.rank, record=record, engine=engine,
        others={name: others / name for name in same_base[-_OTHERS:]}, use_gpu=use_gpu, unserved="; ".join(reasons),
    )  # fmt: skip
    context = (engine or {}).get("max_model_len")
    return _fitting(candidate, context) if isinstance(context, int) else candidate


def _fitting(candidate: Candidate, context: int) -> Candidate:
    """The same with the prompts that leave room for an answer in a server's context; ModelError when none does."""
    record = candidate.record
    kept = [at for at, row in enumerate(record.note.rows) if len(row.prompt) + parity.POSITIONS <= context]
    if not kept:
        raise ModelError(
            f"{candidate.name} could not be proved and is not published: none of its training prompts leaves room for "
            f"{parity.POSITIONS} tokens in the server's context of {context}, so clients would be refused too; raise "
            "max_model_len in its serving file"
        )
    if len(kept) == len(record.note.rows):
        return candidate
    note = replace(record.note, rows=tuple(record.note.rows[at] for at in kept))
    left_out = (
        f"{len(record.note.rows) - len(kept)} of {len(record.note.rows)} prompts, which with {parity.POSITIONS} tokens more "
        f"exceed the server's context of {context}"
    )
    return replace(
        candidate, left_out=left_out, record=replace(record, note=note, prompts=tuple(record.prompts[at] for at in kept))
    )  # fmt: skip


def _engine(prove_on: str, rank: int, note: Note, base: Path, *, use_gpu: bool) -> dict[str, Any] | None:
    """Arguments of the engine that is to be started; None where an endpoint is asked."""
    if prove_on.startswith(_ADDRESSES):
        return None
    if prove_on == ENGINE:
        longest = max(len(row.prompt) for row in note.rows) + parity.POSITIONS + _SPARE_TOKENS
        context = read_json(base / "config.json").get("max_position_embeddings") or longest  # vLLM takes no more
        room: dict[str, Any] = {"gpu_memory_utilization": 0.85} if use_gpu else {"kv_cache_memory_bytes": 64 << 20}
        arguments: dict[str, Any] = {
            "dtype": "bfloat16", "enforce_eager": True, "max_model_len": min(longest, context),
            "max_num_seqs": 2 * parity.ROWS, "max_lora_rank": min((one for one in _RANKS if one >= rank), default=rank), **room,
        }  # fmt: skip
    else:
        arguments = engine_arguments(prove_on)
    arguments = {
        name: value for name, value in arguments.items() if name not in ("enable_lora", "max_loras", *FRONT_ONLY)
    }
    return arguments if use_gpu else {**arguments, "distributed_executor_backend": "uni"}


def engine_arguments(serving_file: str) -> dict[str, Any]:
    """The `engine_kwargs` of a Ray Serve file; ConfigError when it is none."""
    return {**(read_serve_file(serving_file)["llm_configs"][0].get("engine_kwargs") or {})}


def _from_endpoint(
    prove_on: str, adapter: str, candidate: Candidate, key: str
) -> tuple[Candidate, Served | None, Finding | None]:
    """The candidate with the prompts that the endpoint has room for, and its answers or its refusal; neither where none
    is to be asked."""
    if candidate.unserved or candidate.engine is not None:
        return candidate, None, None
    try:
        return candidate, ask_endpoint(prove_on, adapter, candidate.record.prompts, key=key), None
    except TooLong as error:
        shorter = _fitting(candidate, error.context)
        if shorter is candidate:  # the server counts other tokens than training did
            raise
        return _from_endpoint(prove_on, adapter, shorter, key)
    except Refused as error:
        return candidate, None, parity.refusal(str(error), rank=candidate.rank)


def _proof(candidate: Candidate, seen: Seen, *, on: str) -> Proof:
    tokenizer = open_tokenizer(candidate.base)
    note = candidate.record.note
    findings = parity.check(note, seen.reference, seen.served, tokenizer.decode)
    if seen.refused is not None:
        findings = (seen.refused, *findings)
    if findings:
        raise ModelError(
            f"{candidate.name} is not served as it was trained, so it is not published or should not be: "
            + " | ".join(f"{finding.fault}: {finding.message}" for finding in findings)
        )
    summary = _summary(note, seen, on=on, reason=seen.unserved, left_out=candidate.left_out)
    return Proof(summary=summary, record=replace(candidate.record, served=seen.served))


def _summary(note: Note | None, seen: Seen | None, *, on: str, reason: str, left_out: str = "") -> dict[str, Any]:
    checked: Sequence[str] = []
    missing = f"everything ({reason})"
    if seen is not None:
        checked = ["files are what was trained", "the adapter changes the base's answers"]
        missing = f"{', '.join(sorted(_NO_SERVER))} ({reason})"
        if seen.served is not None:
            checked, missing = [*checked, *sorted(_NO_SERVER)], ""
    not_checked = [text for text in (missing, left_out) if text]
    if not_checked:
        print(
            f"warning: an adapter is published without a whole proof; not checked: {'; '.join(not_checked)}",
            file=sys.stderr,
            flush=True,
        )
    measured = parity.figures(note, seen.reference, seen.served) if seen is not None else {}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "on": on, "rows": len(note.rows) if note else 0,
        "checked": checked, "not_checked": not_checked, **measured,
    }  # fmt: skip


def _read_note(checkpoint: Path) -> Note:
    path = checkpoint / NOTE
    return decode(read_json(path), Note, where=str(path), fix="train again")


def encoded(record: Record | None) -> Any:
    """A record as it is kept beside the adapter."""
    return None if record is None else encode(record)
