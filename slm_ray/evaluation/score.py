"""From a log to a report, without calling any model: what every evaluation ends with, and what can be done again.

Beside report.json and scores.jsonl the run's answers come as answers.parquet, one row per question. All of it depends on
the examples, the config and the log alone, so doing it twice gives the same bytes. Nothing is held of an answer but
its scores: texts are read again for each file that wants them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_ray.adapters import load_manifest, training_effort
from slm_ray.config import EvaluateConfig
from slm_ray.corpus.leakage import leaked_examples
from slm_ray.costs.cost import busy_s
from slm_ray.errors import AdapterError
from slm_ray.evaluation.answers import Answers
from slm_ray.evaluation.plan import Plan
from slm_ray.evaluation.provenance import provenance
from slm_ray.records import ModelReport, Report, TrainingEffort
from slm_ray.reports import files as reports
from slm_ray.reports.build import ScoreAll, Similar, build
from slm_ray.runlog import Response, RunLog, outcome
from slm_ray.scoring import score_rows
from slm_ray.storage import write_parquet
from slm_ray.tracing import Tracer
from slm_ray.types import Completion, Example

ANSWERS = "answers.parquet"
COLUMNS = {
    "spec": "string", "repeat": "int32", "example_id": "string", "key": "string", "outcome": "string", "text": "string",
    "reason": "string", "status": "int32", "latency_s": "double", "first_token_s": "double", "logprob": "double",
    "prompt_tokens": "int64", "completion_tokens": "int64", "cached_tokens": "int64", "attempts": "int32",
    "possibly_billed": "int32", "served_by": "string", "answered_ns": "int64",
}  # fmt: skip


def entries(plan: Plan, log: RunLog, repeat: int = 0) -> dict[str, Answers[Response]]:
    """Every arm's answers of one repeat, by spec and example id; DataError when one that is missing is asked for."""
    return {arm.spec: Answers(log, arm.spec, arm.repeats[repeat], lambda entry: entry) for arm in plan.arms}


def completions(plan: Plan, log: RunLog, repeat: int = 0) -> dict[str, Answers[Completion]]:
    """The same, without key and time."""
    return {arm.spec: Answers(log, arm.spec, arm.repeats[repeat], lambda entry: entry.completion) for arm in plan.arms}


def trained_on(examples: tuple[Example, ...], train_prompts: Mapping[str, Set[str]]) -> dict[str, int]:
    """How many of the examples each model was trained on; `train_prompts` holds question hashes by spec."""
    return {spec: len(leaked_examples(examples, seen)) for spec, seen in train_prompts.items()}


def write_report(
    plan: Plan,
    log: RunLog,
    config: EvaluateConfig,
    train_prompts: Mapping[str, Set[str]],
    tracer: Tracer,
    *,
    similar: Similar | None = None,
    score_all: ScoreAll = score_rows,
) -> Report:
    """Score everything, write the three files, and trace it. Answers are read from the log as they are needed."""
    run_dir = Path(config.run_dir)
    origin = provenance(plan, log, config)
    answers = entries(plan, log)
    repeats = [completions(plan, log, repeat) for repeat in range(1, config.repeats)]
    seen = trained_on(plan.examples, train_prompts)
    report, rows = build(
        plan.track, plan.examples, completions(plan, log), facts={arm.spec: arm.facts for arm in plan.arms}, trained_on=seen, similar=similar, score_all=score_all,
        again={arm.spec: [given[arm.spec] for given in repeats] for arm in plan.arms},
    )  # fmt: skip
    models = {
        spec: replace(model, busy_s=_busy_s(answers[spec]), training=training_of(model, config.adapters_dir))
        for spec, model in report.models.items()
    }
    report = replace(report, models=models, provenance=origin)
    write_parquet(run_dir / ANSWERS, COLUMNS, _table(plan, log))
    reports.write_report(run_dir, report, rows)
    tracer.evaluation(report, rows, answers)
    return report


def _busy_s(answers: Mapping[str, Response]) -> float | None:
    return busy_s((entry.answered_ns, entry.completion.latency_s) for entry in answers.values())


def training_of(model: ModelReport, adapters_dir: str | None) -> TrainingEffort | None:
    """What the training of a served adapter took; None where its record is not at hand."""
    if model.facts.adapter is None or adapters_dir is None:
        return None
    try:
        return training_effort(load_manifest(adapters_dir, model.facts.adapter))
    except AdapterError:
        return None


def _table(plan: Plan, log: RunLog) -> Iterator[tuple[Any, ...]]:
    for arm in plan.arms:
        for repeat in range(len(arm.repeats)):
            found = entries(plan, log, repeat)[arm.spec]
            yield from (_columns(found[row.id], repeat) for row in plan.examples)


def _columns(entry: Response, repeat: int) -> tuple[Any, ...]:
    answer = entry.completion
    failure, usage = answer.failure, answer.usage
    tokens = usage and (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return (
        entry.spec, repeat, entry.example_id, entry.key, outcome(answer), answer.text, failure and failure.reason,
        failure and failure.status, answer.latency_s, answer.first_token_s, answer.logprob,
        *(tokens or (None, None, None)), answer.attempts, answer.possibly_billed, answer.served_by, entry.answered_ns,
    )  # fmt: skip
