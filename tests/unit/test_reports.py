"""From run directories to a whole comparison: cost, partial replacement, what was declared, and the same bytes again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from plain_records import build

from slm_ray import storage
from slm_ray.config import CompareConfig, Cost, Declaration, LoopConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ComparisonError, ConfigError, DataError
from slm_ray.records import Commands, ComparisonReport, Digests, Provenance, TrainingRowCheck
from slm_ray.reports.compare import compare_reports, comparison_text, load_prices, write_comparison
from slm_ray.reports.files import declare, declared_rule, load_report, write_report
from slm_ray.types import Completion, DeclaredRule, Example, Usage

ROOT = Path(__file__).parents[2]
LLM, SLM = "azure:big", "served:small"
TRACK = TRACKS["structured"]
ORIGIN = Provenance(
    rows_in=200, rows_scored=200, requests=400, retries=0, possibly_billed=0, in_doubt=0, refused=0, concurrency=8,
    training_rows=TrainingRowCheck(checked=(), left_out_of_demonstrations=0),
    digests=Digests(data="", prompts="", config="", answers=""), versions={}, commands=Commands(reproduce="", resume=""),
)  # fmt: skip


def written(
    folder: Path, start: int, n: int = 200, *, logprobs: bool = True, served_by: str = "gpt-4o-2024-08-06",
    trained_on: int = 0,
) -> Path:  # fmt: skip
    """A finished evaluation: the LLM always right, the SLM right where it is sure, on three rows of four."""
    rows = [
        Example(id=f"e{i:04}", prompt=prompt_of(TRACK, f"question {i}"), target=f'{{"a": {i}}}')
        for i in range(start, start + n)
    ]
    usage = Usage(prompt_tokens=1000, completion_tokens=50, cached_tokens=400)
    large, small = {}, {}
    for i, row in enumerate(rows):
        sure = i % 4 != 3
        large[row.id] = Completion(text=row.target, usage=usage, latency_s=1.0, served_by=served_by)
        small[row.id] = Completion(
            text=row.target if sure else '{"a": -1}', usage=usage, latency_s=2.0, served_by="small",
            logprob=(-0.1 if sure else -2.0) - i / 10_000 if logprobs else None,
        )  # fmt: skip
    report, scores = build(TRACK, rows, {LLM: large, SLM: small}, trained_on={SLM: trained_on})
    write_report(folder, replace(report, provenance=ORIGIN), scores)
    return folder


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    return written(tmp_path / "validation", 0)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return written(tmp_path / "test", 1000)


def config(report: Path, **changes: Any) -> CompareConfig:
    cost = changes.pop("cost", {})
    return CompareConfig(report=str(report), llm=LLM, slm=SLM, cost=Cost(**cost), **changes)


def run(report: Path, **changes: Any) -> ComparisonReport:
    return compare_reports(config(report, **changes))


def test_cost_comes_from_the_usage_and_from_what_providers_said(held_out: Path) -> None:
    found = run(held_out, cost={"hourly_usd": 0.36, "utilisation": 0.5, "requests_per_day": 2000})
    llm, slm = found.cost.arms[LLM], found.cost.arms[SLM]
    # 600 fresh tokens at 2.50, 400 cached at 1.25, 50 of answer at 10, per million
    assert llm.per_request_usd == pytest.approx((600 * 2.5 + 400 * 1.25 + 50 * 10) / 1e6)
    assert (llm.priced_as, llm.goes_to.host, llm.goes_to.on_premise) == ("gpt-4o", "name.openai.azure.com", False)
    assert slm.per_request_usd == pytest.approx(24 * 0.36 / 2000)
    assert slm.per_correct_usd == pytest.approx(slm.per_request_usd / 0.75)
    assert slm.goes_to.host == "127.0.0.1" and slm.goes_to.on_premise
    assert found.cost.break_even.requests_per_day == pytest.approx(0.36 * 24 / llm.per_request_usd)
    assert found.partial_replacement is None


def test_the_share_is_chosen_on_validation_rows_and_checked_on_test_rows(validation: Path, held_out: Path) -> None:
    found = run(held_out, validation_report=str(validation))
    assert found.decision.action == "fine_tune"
    partial = found.partial_replacement
    assert partial is not None and partial.test is not None
    assert partial.share == pytest.approx(0.75, abs=0.02) and partial.validation_share == pytest.approx(0.75, abs=0.02)
    assert partial.ranked_by == "json_valid, then mean token log-probability"
    arms = found.cost.arms
    assert partial.test.per_request_usd == pytest.approx(
        arms[SLM].per_request_usd + (1 - partial.share) * arms[LLM].per_request_usd
    )
    cascade = found.cost.cascade
    assert cascade is not None and cascade.share == partial.share and cascade.rows == 200
    # Three rows of four stay with the SLM (2 s), the fourth goes on to the LLM (1 s).
    assert (cascade.latency_s.p50, cascade.latency_s.p95) == (2.0, 3.0)
    assert cascade.mean_latency_s == pytest.approx(2.0 + (1 - partial.share))
    assert found.cost.by_volume[0].cascade is not None
    lines = comparison_text(found).splitlines()
    assert lines[-1] == "FINE_TUNE=1"
    assert any(line.startswith(f"partial: SLM can take {100 * partial.share:.0f} % at delta 0.02") for line in lines)
    assert any(line.startswith("cost ") for line in lines) and "each tested on 200 test rows" in comparison_text(found)


def test_validation_rows_that_check_themselves_are_refused(validation: Path, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="200 of 200 validation rows are also in the report that checks"):
        run(held_out, validation_report=str(held_out))
    overlapping = written(tmp_path / "overlapping", 1150)
    with pytest.raises(ComparisonError, match="50 of 200 validation rows"):
        run(held_out, validation_report=str(overlapping))
    trained = written(tmp_path / "trained", 5000, trained_on=7)
    with pytest.raises(ComparisonError, match="served:small was trained on 7 of the validation rows"):
        run(held_out, validation_report=str(trained))
    report = storage.read_json(validation / "report.json")
    storage.write_json(validation / "report.json", {**report, "models": {LLM: report["models"][LLM]}})
    with pytest.raises(ComparisonError, match="'served:small' is not in the validation report"):
        run(held_out, validation_report=str(validation))


def test_the_two_models_may_come_from_two_reports(validation: Path, held_out: Path, tmp_path: Path) -> None:
    whole = run(held_out, validation_report=str(validation))
    for spec, name in ((LLM, "llm"), (SLM, "slm")):
        report = storage.read_json(held_out / "report.json")
        rows = storage.read_jsonl(held_out / "scores.jsonl")
        storage.write_json(tmp_path / name / "report.json", {**report, "models": {spec: report["models"][spec]}})
        storage.write_jsonl(
            tmp_path / name / "scores.jsonl", [{**row, "models": {spec: row["models"][spec]}} for row in rows]
        )
    apart = run(tmp_path / "llm", other_report=str(tmp_path / "slm"), validation_report=str(validation))
    assert apart == whole


def test_stages_ranked_by_other_things_give_no_share(held_out: Path, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", 5000, logprobs=False)
    found = run(held_out, validation_report=str(plain))
    assert found.partial_replacement is not None and "evaluate both alike" in found.partial_replacement.line


def test_a_stand_in_has_no_price_unless_one_is_named_and_then_it_is_hypothetical(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", 0, served_by="stand-in:tiny")
    plain = run(folder)
    assert plain.cost.arms[LLM].per_request_usd is None and "a stand-in has no price" in comparison_text(plain)
    named = run(folder, cost={"llm_price_as": "gpt-4o"})
    assert named.cost.arms[LLM].hypothetical and "hypothetical, as if gpt-4o" in comparison_text(named)
    assert "azure:big [hypothetical]" in comparison_text(named) and "- hypothetically, from " in comparison_text(named)
    assert named.cost.break_even.hypothetical and not plain.cost.break_even.hypothetical
    with pytest.raises(ConfigError, match=r"no price for 'gpt-4' in .*did you mean 'gpt-4o'"):
        run(folder, cost={"llm_price_as": "gpt-4"})


def test_prices_of_one_s_own(held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "as_of: 2026-02-03\nmodels:\n  gpt-4o: {input_usd_per_mtok: 1, cached_input_usd_per_mtok: null,"
        " output_usd_per_mtok: 2, source: our contract of 2026}\n"
    )
    found = compare_reports(config(held_out, prices=str(mine)))
    assert found.cost.arms[LLM].per_request_usd == pytest.approx((1000 * 1 + 50 * 2) / 1e6)
    assert "prices as of 2026-02-03" in comparison_text(found) and "our contract of 2026" in comparison_text(found)
    mine.write_text("models: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml:1: not YAML"):
        load_prices(config(held_out, prices=str(mine)))
    monkeypatch.chdir(tmp_path)
    elsewhere = run(held_out)
    assert elsewhere.cost.arms[LLM].priced_as == "gpt-4o", "the shipped prices are there in every folder"


def declared(folder: Path, *, answers_before: int = 0, rows: int = 200, examples: str = "", **settings: Any) -> None:
    """What the evaluation would have written before its first call."""
    rule = declared_rule(
        Declaration(**settings), TRACK, examples=examples, rows=rows, baselines=(), answers_before=answers_before
    )
    declare(folder, rule)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "garbage",
        "[]",
        "{}",
        '"delta": NaN',
        '"delta": 7',
        '"rule": "magic"',
        '"candidates": 0',
        '"min_paired_share": "x"',
    ],
)
def test_a_damaged_declaration_is_named_with_a_way_on(held_out: Path, damaged: str) -> None:
    declared(held_out, delta=0.05)
    file = held_out / "declared.json"
    whole = json.loads(file.read_text())
    if damaged.startswith('"'):
        damaged = json.dumps(whole | json.loads("{" + damaged + "}"))
    file.write_text(damaged)
    with pytest.raises(
        DataError, match=r"declared\.json: .*; what was declared is lost: evaluate into a folder of its own"
    ):
        run(held_out, delta=0.05)


def test_a_comparison_says_whether_it_kept_to_what_was_declared(held_out: Path) -> None:
    assert "no rule was declared before the first call" in run(held_out).decision.because[-1]
    declared(held_out, delta=0.05)
    kept = run(held_out, delta=0.05)
    assert kept.decision.because[-1] == (
        "declared before the first call: rule paired, delta 0.05 on exact_match, min_paired_share 0.95."
    )
    assert (kept.decision.action, kept.decision.exploratory) == ("fine_tune", None)
    assert kept.declared is not None and (kept.declared.delta, kept.declared.answers_before) == (0.05, 0)
    declared(held_out, delta=0.3, force_delta=True)
    assert run(held_out, delta=0.05).declared == kept.declared  # what was declared first stays


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta": 0.03}, "delta is 0.03 and was 0.02"),
        ({"rule": "point"}, "rule is point and was paired"),
        ({"candidates": 3}, "candidates is 3 and was not set"),
        ({"guardrails": ("field_f1",)}, "guardrails is field_f1 and was not set"),
        ({"min_paired_share": 0.5}, "min_paired_share is 0.5 and was 0.95"),
        ({"quality_floor": 0.1}, "quality_floor is 0.1 and was not set"),
    ],
)
def test_any_setting_that_can_turn_the_verdict_makes_it_exploratory(
    changes: dict[str, Any], said: str, held_out: Path
) -> None:
    declared(held_out)
    assert run(held_out).decision.action == "fine_tune"
    found = run(held_out, **changes)
    assert (found.decision.action, found.decision.exploratory) == ("inconclusive", "fine_tune")
    assert found.decision.because[-1].startswith(f"exploratory: {said}. Under these settings the rows say fine_tune")
    text = comparison_text(found)
    assert "verdict: inconclusive (exploratory: fine_tune under settings that were not declared" in text
    assert text.splitlines()[-1] == "FINE_TUNE=0"


def test_every_setting_of_a_declaration_is_written_down() -> None:
    """A setting that is added to the config and not to the record would be free to move after the answers are in."""
    names = {field.name for field in fields(DeclaredRule)}
    assert set(Declaration.model_fields) - {"force_delta"} <= names


def test_another_definition_of_the_track_and_other_rows_are_not_what_was_declared(held_out: Path) -> None:
    declared(held_out, rows=300)
    assert "rows is 200 and was 300" in run(held_out).decision.because[-1]
    (held_out / "declared.json").unlink()
    declared(held_out, examples="a file that was replaced")
    assert "the file of rows is another" in run(held_out).decision.because[-1]
    (held_out / "declared.json").unlink()
    declared(held_out)
    report = storage.read_json(held_out / "report.json")
    report["track_definition"]["guardrails"] = ["field_f1"]
    storage.write_json(held_out / "report.json", report)
    found = run(held_out)
    assert "the track's definition is another" in found.decision.because[-1] and found.decision.exploratory


def test_a_smoke_test_is_the_start_of_the_run_but_the_run_is_not_cut_to_its_first_rows(held_out: Path) -> None:
    declared(held_out, rows=20)
    assert run(held_out).decision.action == "fine_tune"
    declared(held_out, rows=400)  # the same file: the whole of it is asked now
    assert "rows is 200 and was 400" in run(held_out).decision.because[-1]


def test_a_margin_declared_after_answers_were_in_is_told_apart(held_out: Path) -> None:
    assert not (held_out / "declared.json").exists()
    declared(held_out, answers_before=12)
    assert "were declared when 12 answers were already there" in run(held_out).decision.because[-1]


def test_recorded_answers_are_older_than_any_declaration(held_out: Path) -> None:
    declared(held_out)
    assert "recorded" not in comparison_text(run(held_out))
    report = storage.read_json(held_out / "report.json")
    report["models"][SLM]["facts"]["kind"] = "recorded"
    storage.write_json(held_out / "report.json", report)
    assert any(
        s.startswith("the answers of served:small were recorded before this") for s in run(held_out).decision.because
    )


def test_a_declaration_that_is_damaged_is_refused(held_out: Path) -> None:
    declared(held_out)
    plain = storage.read_json(held_out / "declared.json")
    storage.write_json(held_out / "declared.json", {name: v for name, v in plain.items() if name != "min_paired_share"})
    with pytest.raises(
        DataError,
        match=r"declared\.json: .*min_paired_share.*; what was declared is lost: evaluate into a folder of its own",
    ):
        run(held_out)


def job(*settings: str) -> subprocess.CompletedProcess[bytes]:
    arguments = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/compare.py"), str(ROOT / "jobs/compare.yaml"), *arguments],
        capture_output=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip


def test_the_job_writes_the_same_bytes_again(validation: Path, held_out: Path, tmp_path: Path) -> None:
    settings = [
        f"report={held_out}", f"llm={LLM}", f"slm={SLM}", f"validation_report={validation}",
        "guardrails=[field_f1]",
    ]  # fmt: skip
    first = job(*settings)
    assert first.returncode == 10, first.stderr
    assert first.stdout.rstrip().endswith(b"FINE_TUNE=1")
    beside = (held_out / "comparison.json").read_bytes()
    again = job(*settings, f"out={tmp_path}/elsewhere.json")
    assert (again.stdout, (tmp_path / "elsewhere.json").read_bytes()) == (first.stdout, beside)
    data = json.loads(beside)
    assert data.keys() == {
        "comparison", "decision", "declared", "cost", "partial_replacement", "schema_version",
    }  # fmt: skip
    assert data["decision"]["action"] == "fine_tune" and data["cost"]["unit"] == "USD"
    assert data["partial_replacement"]["line"].startswith("SLM can take 7")


def broken(folder: Path, spec: str, kind: str, count: int) -> Path:
    """The same evaluation with the first `count` answers of one model failed."""
    rows = storage.read_jsonl(folder / "scores.jsonl")
    for row in rows[:count]:
        answer = row["models"][spec]
        answer["text"], answer["failure"] = None, {"kind": kind, "reason": "HTTP 500", "status": 500}
        answer["scores"] = {name: None if value is None else 0.0 for name, value in answer["scores"].items()}
    storage.write_jsonl(folder / "scores.jsonl", rows)
    return folder


def test_an_outage_ends_as_inconclusive_and_gives_no_share(validation: Path, held_out: Path, tmp_path: Path) -> None:
    broken(held_out, LLM, "error", 70)
    found = job(f"report={held_out}", f"llm={LLM}", f"slm={SLM}", f"validation_report={validation}")
    said = found.stdout.decode()
    assert found.returncode == 20, found.stderr
    assert "verdict: inconclusive" in said and "LLM (azure:big) failed on 70 of 200 rows (35.0%" in said
    assert "partial: SLM can take 0 % at delta 0.02: calls of azure:big failed on 70 of 200 test rows" in said
    data = json.loads((held_out / "comparison.json").read_text())["comparison"]
    assert (data["llm_failed"], data["slm_failed"], data["readings"]["reached"]["n"]) == (70, 0, 130)
    out = broken(written(tmp_path / "out", 3000), SLM, "error", 5)
    partial = run(written(tmp_path / "fine", 6000), validation_report=str(out)).partial_replacement
    assert partial is not None and "failed on 5 of 200 validation rows" in partial.line


def test_four_failed_calls_of_200_still_decide(held_out: Path) -> None:
    assert run(broken(held_out, LLM, "error", 4)).decision.action == "fine_tune"


def test_another_setting_does_not_turn_the_exit_status(held_out: Path) -> None:
    declared(held_out)
    assert run(held_out).decision.exploratory is None
    found = job(f"report={held_out}", f"llm={LLM}", f"slm={SLM}", "min_paired_share=0.5")
    assert found.returncode == 20 and b"exploratory" in found.stdout, found.stderr
    assert json.loads((held_out / "comparison.json").read_text())["decision"]["exploratory"] == "fine_tune"


def test_a_margin_wider_than_a_fifth_has_to_be_meant(held_out: Path) -> None:
    found = job(f"report={held_out}", f"llm={LLM}", f"slm={SLM}", "delta=0.3")
    assert found.returncode == 2 and b"force_delta: true" in found.stderr and found.stderr.count(b"\n") == 1
    meant = job(f"report={held_out}", f"llm={LLM}", f"slm={SLM}", "delta=0.3", "force_delta=true")
    assert meant.returncode in (0, 20) and b"rule paired, delta 0.3" in meant.stdout, meant.stderr
    assert run(held_out, delta=0.2).decision.delta == 0.2
    with pytest.raises(ValueError, match=r"the widest is 0\.2"):
        Declaration(delta=0.21)
    with pytest.raises(ValueError, match=r"the widest is 0\.2"):
        LoopConfig.model_validate(
            {"run_dir": "r", "tracks": [{"track": "structured", "source": "rows.json"}], "comparison": {"delta": 0.21}}
        )


def test_a_moved_run_gives_the_same_comparison(held_out: Path, tmp_path: Path) -> None:
    before = write_comparison(run(held_out), config(held_out)).read_bytes()
    shutil.move(held_out, tmp_path / "moved")
    after = write_comparison(run(tmp_path / "moved"), config(tmp_path / "moved"))
    assert after == tmp_path / "moved/comparison.json" and after.read_bytes() == before


def test_a_report_is_read_as_it_was_written(held_out: Path, tmp_path: Path) -> None:
    report, rows = load_report(held_out)
    write_report(tmp_path / "again", report, rows)
    for name in ("report.json", "scores.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (held_out / name).read_bytes()
    assert load_report(held_out / "report.json") == (report, rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 0}, "schema_version is 0 and not 1"),
        ({"schema_version": None}, "schema_version is None and not 1"),
        ({"track_definition": {"name": "x", "wording": "y"}}, r"track_definition is no track \(.*'wording'.*\)"),
        ({"examples": {"n": "200", "digest": "x"}}, r"examples\.n: Expected `int`, got `str`"),
        ({"models": {LLM: {"n": 1}}}, r"models\[\.\.\.\]: Object missing required field `facts`"),
    ],
)
def test_a_report_that_is_none_names_file_key_and_fix(held_out: Path, change: dict[str, Any], said: str) -> None:
    report = storage.read_json(held_out / "report.json")
    storage.write_json(held_out / "report.json", {**report, **change})
    with pytest.raises(
        DataError, match=rf"report\.json: {said}; give a report\.json .* or run the evaluation's command"
    ):
        load_report(held_out)


def test_a_comparison_without_its_report_is_refused(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "report.json", ["no report"])
    with pytest.raises(
        DataError, match=r"report\.json: schema_version is None and not 1; give a report\.json that slm-ray evaluate"
    ):
        load_report(tmp_path)


@pytest.mark.parametrize("bad", ["1.0", float("nan"), float("inf"), 1.5, -1.0, True, [1]])
def test_a_score_that_is_no_score_is_refused_with_its_line_and_never_0(held_out: Path, bad: Any) -> None:
    lines = (held_out / "scores.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    row["models"][SLM]["scores"]["exact_match"] = bad
    lines[3] = json.dumps(row)
    (held_out / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"scores\.jsonl:4: .*score.*; run the evaluation's command again"):
        run(held_out)


def test_a_row_without_a_key_is_refused_with_its_line(held_out: Path) -> None:
    rows = storage.read_jsonl(held_out / "scores.jsonl")
    del rows[1]["target"]
    storage.write_jsonl(held_out / "scores.jsonl", rows)
    with pytest.raises(DataError, match=r"scores\.jsonl:2: Object missing required field `target`; run"):
        run(held_out)


def test_a_score_that_rounding_put_outside_is_put_back(held_out: Path) -> None:
    """The mean of equal scores may come out as 1 + 5e-10; the difference to a score of 0 would be no difference."""
    before = run(held_out)
    rows = storage.read_jsonl(held_out / "scores.jsonl")
    for row in rows:
        for answer in row["models"].values():
            answer["scores"] = {
                name: None if value is None else value + (5e-10 if value else -5e-10)
                for name, value in answer["scores"].items()
            }
    storage.write_jsonl(held_out / "scores.jsonl", rows)
    assert run(held_out) == before


@pytest.mark.parametrize(("chosen", "level"), [(True, 0.025), (False, 0.05)])
def test_choosing_among_slms_that_were_asked_side_by_side_is_paid_for(
    held_out: Path, chosen: bool, level: float
) -> None:
    """A report shows all of them, so that whoever compares one may have taken the best; the loop names its own before."""
    report, rows = load_report(held_out)
    more = replace(report, models={**report.models, "served:other": report.models[SLM]})
    write_report(held_out, more, [replace(row, models={**row.models, "served:other": row.models[SLM]}) for row in rows])
    found = compare_reports(config(held_out, candidates=1), chosen=chosen)
    assert found.comparison.level == level
    assert any("2 SLMs were asked on these rows" in sentence for sentence in found.decision.because) == chosen


def test_the_next_slm_on_the_same_rows_is_shown_beside_the_one_before(tmp_path: Path, held_out: Path) -> None:
    """Its figures, bounds included, and the rows that it lost: from the record beside the rows, whatever became of the run."""
    examples = tmp_path / "examples.jsonl"
    storage.write_text(examples, "{}\n")
    storage.write_text(held_out / "config.yaml", f"examples: {examples}\n")
    first = run(held_out)
    report, rows = load_report(held_out)
    another = "served:another"

    def renamed(models: Any) -> Any:
        return {another if spec == SLM else spec: model for spec, model in models.items()}

    shutil.rmtree(held_out)
    wrong = dict.fromkeys(rows[0].models[SLM].scores, 0.0)
    rows = [replace(row, models=renamed(row.models)) for row in rows]
    right = replace(rows[0].models[another])  # the fourth row becomes right, the first two become wrong
    for place, answer in ((0, replace(right, scores=wrong)), (1, replace(right, scores=wrong)), (3, right)):
        rows[place] = replace(rows[place], models={**rows[place].models, another: answer})
    write_report(held_out, replace(report, models=renamed(report.models)), rows)
    storage.write_text(held_out / "config.yaml", f"examples: {examples}\n")
    found = compare_reports(config(held_out).model_copy(update={"slm": another}))
    (before,) = found.decision.earlier
    assert before.figures is not None and before.changes is not None
    assert before.figures.interval == first.comparison.interval
    assert (before.figures.llm_metric, before.figures.slm_metric, before.figures.n) == (1.0, 0.75, 200)
    assert (before.changes.rows, before.changes.lower, before.changes.higher) == (200, 2, 1)
    assert (before.changes.lower_ids, before.changes.higher_ids) == (("e1000", "e1001"), ("e1003",))
    said = " ".join(comparison_text(found).split())
    assert f"candidate 1, {SLM}: fine_tune (paired at 3 %" in said
    assert "exact_match 0.7500 against 1.0000 of azure:big, SLM minus LLM -0.2500" in said
    assert "of 200 rows scored both times this SLM is lower on 2, higher on 1" in said
