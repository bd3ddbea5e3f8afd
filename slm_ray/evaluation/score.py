"""From a ledger to a report, without calling any model: what every evaluation ends with, and what can be done again.

The report depends on the examples and the ledger alone, so doing it twice gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from slm_ray.corpus.render import prompt_hash
from slm_ray.errors import DataError
from slm_ray.evaluation.plan import Plan
from slm_ray.ledger import Entry, Ledger
from slm_ray.scoring.similarity import Encode
from slm_ray.storage import write_json, write_jsonl
from slm_ray.tracing import Tracer
from slm_ray.types import Example
from slm_ray.verdict.report import build

REPORT = "report.json"
SCORES = "scores.jsonl"

Entries = Mapping[str, Mapping[str, Entry]]


def entries(plan: Plan, ledger: Ledger) -> dict[str, dict[str, Entry]]:
    """Every arm's answers by spec and example id; DataError when one is missing."""
    return {
        arm.spec: {row.id: _entry(ledger, arm.keys[row.id], arm.spec, row.id) for row in plan.examples}
        for arm in plan.arms
    }


def trained_on(examples: tuple[Example, ...], train_prompts: Mapping[str, Set[str]]) -> dict[str, int]:
    """How many of the examples each model was trained on; `train_prompts` holds prompt hashes by spec."""
    hashes = [prompt_hash(row.prompt) for row in examples]
    return {spec: sum(value in seen for value in hashes) for spec, seen in train_prompts.items()}


def write_report(
    plan: Plan,
    answers: Entries,
    run_dir: Path,
    train_prompts: Mapping[str, Set[str]],
    tracer: Tracer,
    *,
    encode: Encode | None = None,
) -> dict[str, Any]:
    """Score everything, write report.json and scores.jsonl, and trace it."""
    completions = {spec: {key: entry.completion for key, entry in given.items()} for spec, given in answers.items()}
    seen = trained_on(plan.examples, train_prompts)
    report, rows = build(plan.track, plan.examples, completions, trained_on=seen, encode=encode)
    write_jsonl(run_dir / SCORES, rows)
    write_json(run_dir / REPORT, report)  # last: a report on disk has its rows beside it
    tracer.evaluation(report, rows, answers)
    return report


def _entry(ledger: Ledger, key: str, spec: str, example_id: str) -> Entry:
    entry = ledger.entry(key)
    if entry is None:
        raise DataError(f"{spec} has no answer to example {example_id!r} in the ledger; run the same command again")
    return entry
