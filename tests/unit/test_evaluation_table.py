"""The summary of a report on a terminal."""

from __future__ import annotations

from slm_ray.evaluation.table import summary


def test_the_summary_marks_stand_ins_and_gaps() -> None:
    model = {"metrics": {"exact_match": 0.5}, "latency_s": {"p50": 0.25, "p95": None}, "usage": {"prompt_tokens": 10, "completion_tokens": 2},
             "failures": {"error": 1}, "stand_in": True, "trained_on": 0}  # fmt: skip
    report = {
        "track": "structured",
        "examples": {"n": 4},
        "models": {"azure:": model, "served:m": {**model, "stand_in": False, "failures": {}}},
    }
    lines = summary(report).splitlines()
    assert lines[0].split() == ["structured,", "4", "rows", "azure:", "[STAND-IN]", "served:m"]
    assert lines[1].split() == ["exact_match", "0.500", "0.500"]
    assert lines[-1].split() == ["failures", "1", "error", "0"]
    noisy = {**model, "noise": {"agreement": 0.9}, "first_token_s": {"p50": 0.05, "p95": 0.1}}
    trust = {"rows_in": 4, "rows_scored": 4, "retries": 3, "refused": 2, "ambiguous": 1}
    told = summary({**report, "models": {"azure:": noisy, "served:m": model}, "trust": trust}).splitlines()
    assert told[-1].startswith("4 of 4 rows scored, 3 retries, 2 refused; calls that may have been paid for")
    assert ["agrees", "with", "itself", "0.900", "-"] in [line.split() for line in told]
    assert ["first", "token", "p50,", "s", "0.050", "-"] in [line.split() for line in told]
