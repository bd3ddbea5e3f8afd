"""The files of a run directory that hold a report: where they are, how they are written and how they are read.

`report.json` has one line of `scores.jsonl` per row beside it. The rule and the margin of a run are declared in a file of
their own before its first call; what was declared first stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.config import DeclareConfig
from slm_ray.corpus import read
from slm_ray.corpus.retrieve import question_hash
from slm_ray.errors import DataError
from slm_ray.trackfile import open_track

REPORT = "report.json"
SCORES = "scores.jsonl"
DECLARED = "declared.json"
COMPARISON = "comparison.json"
CONFIG = "config.yaml"


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


def declare(run_dir: str | Path, declared: DeclareConfig | None, *, primary: str, answers_before: int) -> None:
    """Write down rule, margin and metric of a run before its first call; what was declared first stays."""
    path = Path(run_dir) / DECLARED
    if declared is not None and not path.exists():
        storage.write_json(
            path, {"rule": declared.rule, "delta": declared.delta, "primary": primary, "answers_before": answers_before}
        )


def declared_in(path: str) -> dict[str, Any] | None:
    """What was declared before the first call of the run; None when nothing was."""
    file = folder_of(path) / DECLARED
    found: dict[str, Any] | None = storage.read_json(file) if file.is_file() else None
    return found


def folder_of(path: str) -> Path:
    """The run directory of a report."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def training_prompts(path: str | Path, track_name: str) -> set[str]:
    """The prompt hashes of a training file, to find evaluation rows that were trained on."""
    examples = read.examples(storage.read_lines(path), name=str(path), track=open_track(track_name, beside=path))
    return {question_hash(example) for example in examples}
