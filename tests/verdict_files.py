"""Finished comparisons on disk, as `evaluate` and `compare` leave them, for what reads a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plain_records import build

from slm_ray.config import CompareConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.reports.compare import compare_reports, write_comparison
from slm_ray.reports.files import write_report
from slm_ray.types import Completion, Example

TRACK = TRACKS["structured"]
LLM, OLD = "azure:big", "structured-000000000001"


def slm(adapter: str) -> str:
    """The spec of an adapter."""
    return f"served:tiny:{adapter}"


def compared(
    folder: Path, *, wrong: int, n: int = 200, adapter: str = OLD, served_by: str = "gpt", **settings: Any
) -> Path:
    """A run with its comparison: the LLM always right, the SLM on all but the last `wrong` of every hundred rows."""
    rows = [Example(id=f"e{i}", prompt=prompt_of(TRACK, f"question {i}"), target=f'{{"a": {i}}}') for i in range(n)]
    large = {row.id: Completion(text=row.target, served_by=served_by) for row in rows}
    small = {
        row.id: Completion(text=row.target if i % 100 < 100 - wrong else '{"a": -1}', logprob=-0.1 if i % 100 < 100 - wrong else -2.0)
        for i, row in enumerate(rows)
    }  # fmt: skip
    report, scores = build(TRACK, rows, {LLM: large, slm(adapter): small})
    write_report(folder, report, scores)
    config = CompareConfig(report=str(folder), llm=LLM, slm=slm(adapter), **settings)
    write_comparison(compare_reports(config), config)
    return folder


def other_rows(folder: Path) -> Path:
    rows = [Example(id=f"v{i}", prompt=prompt_of(TRACK, f"other {i}"), target=f'{{"a": {i}}}') for i in range(200)]
    large = {row.id: Completion(text=row.target) for row in rows}
    small = {
        row.id: Completion(text=row.target if i % 4 else '{"a": -1}', logprob=-0.1 if i % 4 else -2.0)
        for i, row in enumerate(rows)
    }
    write_report(folder, *build(TRACK, rows, {LLM: large, slm(OLD): small}))
    return folder
