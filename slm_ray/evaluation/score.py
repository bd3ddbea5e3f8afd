"""From a log to a report, without calling any model: what every evaluation ends with, and what can be done again.

Beside report.json and scores.jsonl the run's answers come as answers.parquet, one row per question. All of it depends on
the examples, the config and the log alone, so doing it twice gives the same bytes. Where the asking ended with a decision,
the files hold the rows up to it, and what was in flight then stays in the log. Nothing is held of an answer but
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
from slm_ray.evaluation.budget import Budget, Spent
from slm_ray.evaluation.plan import Arm, Plan
from slm_ray.evaluation.provenance import provenance
from slm_ray.evaluation.stopping import Stopping
from slm_ray.records import CandidateLook, ModelReport, Report, Rest, SequentialRun, TrainingEffort
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
    sequential: SequentialRun | None = None,
    rows: Mapping[str, int] | None = None,
) -> Report:
    """Score everything, write the three files, and trace it. Answers are read from the log as they are needed.

    `rows` are how many of each model's rows count, by spec: all where it is None.
    """
    run_dir = Path(config.run_dir)
    scored = plan if rows is None else plan.upto(rows)
    origin = provenance(plan, log, config, scored)
    answers = entries(scored, log)
    repeats = [completions(scored, log, repeat) for repeat in range(1, config.repeats)]
    seen = trained_on(scored.examples, train_prompts)
    report, lines = build(
        scored.track, scored.examples, completions(scored, log), facts={arm.spec: arm.facts for arm in plan.arms},
        trained_on=seen, similar=similar, score_all=score_all, asked=rows,
        again={arm.spec: [given[arm.spec] for given in repeats] for arm in plan.arms},
    )  # fmt: skip
    models = {
        spec: replace(model, busy_s=_busy_s(answers[spec]), training=training_of(model, config.adapters_dir))
        for spec, model in report.models.items()
    }
    seed, first = (plan.order.seed, plan.order.files[0]) if plan.order else (None, None)
    report = replace(
        report, models=models, order_seed=seed, order_digest=first, sequential=sequential, provenance=origin
    )
    write_parquet(run_dir / ANSWERS, COLUMNS, _table(scored, log))
    reports.write_report(run_dir, report, lines)
    tracer.evaluation(report, lines, answers)
    return report


def sequential_run(
    plan: Plan, log: RunLog, config: EvaluateConfig, stopping: Stopping, budget: Budget
) -> SequentialRun:
    """What the rule saw, and what was asked beyond its decisions; `budget` knows what an answer was billed for."""
    assert config.declare is not None
    return SequentialRun(
        delta=stopping.settings.delta,
        stop=config.declare.stop,
        rows=len(plan.examples),
        largest_group=stopping.settings.largest_group,
        rounds=stopping.settings.rounds,
        candidates={
            spec: CandidateLook(level=look.level, rows=look.rows, action=look.action, decided_at=look.decided_at)
            for spec, look in stopping.results.items()
        },
        rest={arm.spec: _rest(arm, plan.examples[stopping.rows_of(arm.spec) :], log, budget) for arm in plan.arms},
    )


def _rest(arm: Arm, examples: tuple[Example, ...], log: RunLog, budget: Budget) -> Rest:
    spent = Spent()
    for row in examples:
        for keys in arm.repeats:
            if (response := log.response(keys[row.id])) is not None:
                spent += budget.billed(arm.spec, arm.prompts.get(row.id, row.prompt), response.completion)
    return Rest(calls=spent.calls, tokens=spent.tokens, usd=spent.usd if budget.usd(arm.spec) is not None else None)


def _busy_s(answers: Mapping[str, Response]) -> float | None:
    return busy_s((entry.answered_ns, entry.completion.latency_s) for entry in answers.values())


def training_of(model: ModelReport, adapters_dir: str) -> TrainingEffort | None:
    """What the training of a served adapter took; None where its record is not at hand."""
    if model.facts.adapter is None or not adapters_dir:
        return None
    try:
        return training_effort(load_manifest(adapters_dir, model.facts.adapter))
    except AdapterError:
        return None


def _table(plan: Plan, log: RunLog) -> Iterator[tuple[Any, ...]]:
    for arm in plan.arms:
        for repeat in range(len(arm.repeats)):
            found = entries(plan, log, repeat)[arm.spec]
            yield from (_columns(entry, repeat) for entry in found.values())


def _columns(entry: Response, repeat: int) -> tuple[Any, ...]:
    answer = entry.completion
    failure, usage = answer.failure, answer.usage
    tokens = usage and (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return (
        entry.spec, repeat, entry.example_id, entry.key, outcome(answer), answer.text, failure and failure.reason,
        failure and failure.status, answer.latency_s, answer.first_token_s, answer.logprob,
        *(tokens or (None, None, None)), answer.attempts, answer.possibly_billed, answer.served_by, entry.answered_ns,
    )  # fmt: skip
