"""Reports on disk into a decision: read one or two evaluations, pair them, decide.

Two evaluations of different rows, or of rows that a model was trained on, are refused with the counts. Reading is all
this does with the disk; the same reports give the same decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import CompareConfig
from slm_ray.corpus import read
from slm_ray.corpus.retrieve import question_hash
from slm_ray.errors import DataError
from slm_ray.trackfile import open_track
from slm_ray.types import Comparison, Decision
from slm_ray.verdict.compare import compare
from slm_ray.verdict.decide import decide

REPORT = "report.json"
SCORES = "scores.jsonl"


def compare_reports(config: CompareConfig) -> tuple[Comparison, Decision]:
    """Compare `config.slm` with `config.llm` by `config.rule`.

    Raises ComparisonError where the two cannot be paired, DataError where a file is missing or damaged.
    """
    report, rows = load_report(config.report)
    other_report, other_rows = load_report(config.other_report) if config.other_report else (report, rows)
    trained = training_prompts(config.train, report["track"]) if config.train else None
    comparison = compare(
        report, rows, other_report, other_rows, llm=config.llm, slm=config.slm, min_paired=config.min_paired,
        resamples=config.resamples, seed=config.seed, train_prompts=trained, gates=config.gates,
        slice_rows=config.slice_rows,
    )  # fmt: skip
    return comparison, decide(comparison, rule=config.rule, delta=config.delta)


def load_report(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A report and its score rows; `path` is the run directory or its report.json."""
    file = Path(path)
    file = file / REPORT if file.is_dir() else file
    report = storage.read_json(file)
    missing = {"track", "examples", "models"} - set(report if isinstance(report, dict) else ())
    if missing:
        raise DataError(
            f"{file}: not an evaluation report (no {', '.join(sorted(missing))}); give a report.json that jobs/evaluate.py wrote"
        )
    return report, storage.read_jsonl(file.with_name(SCORES))


def training_prompts(path: str | Path, track_name: str) -> set[str]:
    """The prompt hashes of a training file, to find evaluation rows that were trained on."""
    examples = read.examples(storage.read_lines(path), name=str(path), track=open_track(track_name, beside=path))
    return {question_hash(example) for example in examples}
