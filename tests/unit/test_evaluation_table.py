"""The summary of a report on a terminal."""

from __future__ import annotations

from dataclasses import replace

from plain_records import facts

from slm_ray.evaluation.table import summary
from slm_ray.records import Commands, Digests, ExampleSet, ModelReport, Noise, Provenance, Report, TrainingRowCheck
from slm_ray.types import Percentiles, Usage


def reported(*models: ModelReport, provenance: Provenance | None = None) -> Report:
    return Report(
        track="structured",
        track_definition={},
        examples=ExampleSet(n=4, digest="d"),
        models=dict(zip(("azure:", "served:m"), models, strict=True)),
        provenance=provenance,
    )


ASKED = ModelReport(
    facts=facts("azure:", stand_in=True),
    n=4, metrics={"exact_match": 0.5}, latency_s=Percentiles(p50=0.25), usage=Usage(prompt_tokens=10, completion_tokens=2),
    failures={"error": 1}, served_by=(), trained_on=0,
)  # fmt: skip
ORIGIN = Provenance(
    rows_in=4, rows_scored=4, requests=8, retries=3, possibly_billed=89, in_doubt=1, refused=2, concurrency=8,
    training_rows=TrainingRowCheck(checked=(), left_out_of_demonstrations=0),
    digests=Digests(data="", prompts="", config="", answers=""), versions={}, commands=Commands(reproduce="", resume=""),
)  # fmt: skip


def test_the_summary_marks_stand_ins_and_gaps() -> None:
    lines = summary(reported(ASKED, replace(ASKED, facts=facts("served:m"), failures={}))).splitlines()
    assert lines[0].split() == ["structured,", "4", "rows", "azure:", "[STAND-IN]", "served:m"]
    assert lines[1].split() == ["exact_match", "0.500", "0.500"]
    assert lines[-1].split() == ["failures", "1", "error", "0"]
    noise = Noise(repeats=2, agreement=0.9, same_text=0.9, primary=(0.5, 0.5))
    noisy = replace(ASKED, noise=noise, first_token_s=Percentiles(p50=0.05, p95=0.1))
    said = summary(reported(noisy, ASKED, provenance=ORIGIN)).splitlines()
    assert said[-1].startswith("4 of 4 rows scored, 3 retries, 2 refused; calls that may have been paid for")
    assert ["agrees", "with", "itself", "0.900", "-"] in [line.split() for line in said]
    assert ["first", "token", "p50,", "s", "0.050", "-"] in [line.split() for line in said]


def test_the_summary_counts_both_kinds_of_calls_that_may_have_been_paid_for() -> None:
    """89 calls that were sent and never answered are not nothing, though no run was cut off."""
    said = summary(reported(ASKED, ASKED, provenance=replace(ORIGIN, in_doubt=0))).splitlines()[-1]
    assert said.endswith("without an answer: 89 (89 sent and never answered, 0 under way when a run was cut off)")
    assert "without an answer: 90 (89 sent" in summary(reported(ASKED, ASKED, provenance=ORIGIN))
