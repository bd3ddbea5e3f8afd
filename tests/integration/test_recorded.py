"""Any model's logged answers in an evaluation: the earlier system's recorded runs come out to the last digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_ray import cluster
from slm_ray.config import CompareConfig, Declaration, EvaluateConfig
from slm_ray.errors import ComparisonError
from slm_ray.evaluation import evaluate
from slm_ray.records import Report
from slm_ray.reports.compare import compare_reports, comparison_text

pytestmark = pytest.mark.heavy
RECORDED = Path(__file__).parents[3] / "shared/data/slm_swap/recorded"
NAMES = {"json_valid_rate": "json_valid", "exact_match_rate": "exact_match"}


@pytest.fixture(autouse=True)
def needs_recorded_runs(ray_cluster: None) -> None:
    if not RECORDED.is_dir():
        pytest.skip(f"the recorded runs are not at {RECORDED.name}/")
    cluster.connect()


def evaluated(name: str, folder: Path) -> tuple[Report, str]:
    rows = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = folder / f"{name}.jsonl"
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["reference"]}) for row in rows]
    examples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    spec = f"recorded:{RECORDED / name}.jsonl"
    config = EvaluateConfig(track="structured", examples=str(examples), models=(spec,), run_dir=str(folder / name))
    return evaluate(config, environment={}), spec


@pytest.mark.parametrize("name", ["structured_llm", "structured_slm_base"])
def test_recorded_answers_score_as_recorded(name: str, tmp_path: Path) -> None:
    report, spec = evaluated(name, tmp_path)
    expected = json.loads((RECORDED / f"{name}_metrics.json").read_text(encoding="utf-8"))
    found = report.models[spec].metrics
    assert {key: found[NAMES.get(key, key)] for key in expected} == expected
    assert report.models[spec].failures == {}


def test_the_earlier_systems_two_runs_are_refused_as_a_pair(tmp_path: Path) -> None:
    """39 rows of one run, 50 of the other, all of them training rows: said in words, with the counts."""
    _, llm = evaluated("structured_llm", tmp_path)
    _, slm = evaluated("structured_slm_base", tmp_path)
    config = CompareConfig(
        report=str(tmp_path / "structured_llm"), other_report=str(tmp_path / "structured_slm_base"), llm=llm, slm=slm,
        train=str(RECORDED.parent / "structured" / "train.jsonl"),
    )  # fmt: skip
    with pytest.raises(ComparisonError) as refused:
        compare_reports(config)
    for words in (
        "39 shared, 0 only in the LLM's",
        "11 only in the SLM's",
        "39 of the LLM's 39 rows and 50 of the SLM's 50 are training rows",
    ):
        assert words in str(refused.value)


def test_the_claim_and_the_run_it_was_held_against_share_no_row(tmp_path: Path) -> None:
    """The headline's two sides: the recorded LLM run, and the 50 test rows that the SLM's 40 % was of."""
    _, llm = evaluated("structured_llm", tmp_path)
    held_out = RECORDED.parent / "structured" / "test.jsonl"
    slm = "fake:{}"
    claim = EvaluateConfig(track="structured", examples=str(held_out), models=(slm,), run_dir=str(tmp_path / "claim"))
    evaluate(claim, environment={})
    config = CompareConfig(
        report=str(tmp_path / "structured_llm"), other_report=str(tmp_path / "claim"), llm=llm, slm=slm,
        train=str(RECORDED.parent / "structured" / "train.jsonl"),
    )  # fmt: skip
    with pytest.raises(
        ComparisonError, match=r"0 shared, 39 only .*, 50 only .*39 of the LLM's 39 rows and 0 of the SLM's 50"
    ):
        compare_reports(config)


def test_the_rows_that_both_recorded_runs_share_get_a_sound_verdict(tmp_path: Path) -> None:
    """The same 39 rows for both models, though training rows of any adapter: with the training file, refused."""
    rows = [json.loads(line) for line in (RECORDED / "structured_llm.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = tmp_path / "shared.jsonl"
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["reference"]}) for row in rows]
    examples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    llm, slm = (f"recorded:{RECORDED / name}.jsonl" for name in ("structured_llm", "structured_slm_base"))
    run_dir = str(tmp_path / "shared")
    config = EvaluateConfig(
        track="structured", examples=str(examples), models=(llm, slm), run_dir=run_dir, declare=Declaration()
    )
    evaluate(config, environment={})
    evaluate(
        config.model_copy(update={"declare": Declaration(delta=0.5, force_delta=True)}), environment={}
    )  # too late to move it
    found = compare_reports(CompareConfig(report=run_dir, llm=llm, slm=slm))
    comparison, decision = found.comparison, found.decision
    assert comparison.n == 39
    assert decision.because[-1].startswith("declared before the first call: rule paired, delta 0.02 on exact_match")
    assert any("were recorded before this evaluation" in sentence for sentence in decision.because)
    assert found.cost.arms[llm].per_request_usd is None and "nothing was asked" in comparison_text(found)
    assert comparison.llm_metrics["exact_match"] == 8 / 39
    assert decision.action == "fine_tune"
    assert comparison.interval.upper < -0.02
    with pytest.raises(ComparisonError, match="39 of 39 evaluation rows are training rows"):
        train = RECORDED.parent / "structured" / "train.jsonl"
        compare_reports(CompareConfig(report=run_dir, llm=llm, slm=slm, train=str(train)))
