"""Scoring what the earlier system recorded gives its numbers: per row, per run, and the issues, by `==` on floats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_ray.corpus.tracks import TRACKS
from slm_ray.scoring import summarise
from slm_ray.scoring.structured import score

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "slm_swap" / "recorded"
ROW_METRICS = ("json_valid", "exact_match", "field_precision", "field_recall", "field_f1")
RUN_NAMES = {"json_valid_rate": "json_valid", "exact_match_rate": "exact_match"}

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the earlier system's recorded predictions are not here")


@pytest.mark.parametrize(("name", "count"), [("structured_llm", 39), ("structured_slm_base", 50)])
def test_recorded_rows_and_run(name: str, count: int) -> None:
    recorded = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(recorded) == count
    rows = [score(str(i), row["prediction"], row["reference"]) for i, row in enumerate(recorded)]
    for row, was in zip(rows, recorded, strict=True):
        assert {metric: row.value(metric) for metric in ROW_METRICS} == was["metrics"]
        assert list(row.issues) == was["issues"]
    run = json.loads((RECORDED / f"{name}_metrics.json").read_text(encoding="utf-8"))
    ours = summarise(TRACKS["structured"], rows)
    assert {key: ours[RUN_NAMES.get(key, key)] for key in run} == run


def test_recorded_runs_have_the_reported_counts() -> None:
    """The headline figures of the earlier report: 8 of 39 exact for the LLM, 44 of 50 valid for the untuned SLM."""
    exact, valid = 0.0, 0.0
    for line in (RECORDED / "structured_llm.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        exact += score("x", row["prediction"], row["reference"]).value("exact_match") or 0
    for line in (RECORDED / "structured_slm_base.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        valid += score("x", row["prediction"], row["reference"]).value("json_valid") or 0
    assert (exact, valid) == (8, 44)
