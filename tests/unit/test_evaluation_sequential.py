"""A run under the sequential rule from its log to its files: rows up to the stop, in the order they were asked in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from log_files import log_of
from pydantic import ValidationError

from slm_ray.config import CompareConfig, Declaration, EvaluateConfig
from slm_ray.corpus.tracks import track
from slm_ray.errors import ComparisonError, ConfigError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.plan import plan
from slm_ray.evaluation.table import summary
from slm_ray.records import CandidateLook, Rest
from slm_ray.reports.compare import compare_reports
from slm_ray.reports.files import declared_rule, load_report
from slm_ray.runlog import PlannedRequest, Response
from slm_ray.storage import read_jsonl
from slm_ray.types import Completion, Failure, Usage
from slm_ray.verdict.declared import departures

LLM, SLM = "openai:llm@http://127.0.0.1:9/v1", "served:slm"
KEY = {"OPENAI_API_KEY": "none"}
TARGET = '{"a": 1}'
AHEAD = 3  # rows that were in flight behind the stop


def config(folder: Path, *, rows: int = 60, stop: str = "when_decided", **changes: Any) -> EvaluateConfig:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"r{n}", "prompt": f"q{n}", "completion": TARGET}) + "\n" for n in range(rows))
    )
    prices = folder / "prices.yaml"
    prices.write_text(
        "as_of: 2026-09-23\nmodels: {llm: {input_usd_per_mtok: 1000, cached_input_usd_per_mtok: 500, output_usd_per_mtok: 2000}}"
    )
    return EvaluateConfig.model_validate(
        {"track": "structured", "examples": str(path), "run_dir": str(folder / "run"), "models": [LLM, SLM],
         "declare": {"rule": "sequential", "stop": stop, "delta": 0.1, "candidates": 1}, "prices": str(prices),
         **changes}
    )  # fmt: skip


def completion(request: PlannedRequest, right: tuple[str, ...]) -> Completion:
    text = TARGET if request.spec in right else "{}"
    return Completion(text=text, latency_s=0.1, usage=Usage(prompt_tokens=7, completion_tokens=3))


def asked(
    settings: EvaluateConfig, rows: int, *, right: tuple[str, ...] = (LLM,), failing: Mapping[str, Completion] | None = None
) -> None:  # fmt: skip
    """The log of a run that asked the first rows of the order; `failing` rows of the SLM end otherwise."""
    planned = plan(settings, KEY)
    first = {row.id for row in planned.examples[:rows]}
    log_of(
        Path(settings.run_dir),
        [
            Response(key=one.key, spec=one.spec, example_id=one.example_id, answered_ns=10**18 + at,
                     completion=(failing or {}).get(one.example_id, completion(one, right)) if one.spec == SLM else completion(one, right))
            for at, one in enumerate(planned.requests())
            if one.example_id in first
        ],
    ).close()  # fmt: skip


def decided_at(folder: Path) -> int:
    settings = config(folder, stop="never", run_dir=str(folder / "all"))
    asked(settings, 60)
    run = evaluate(settings, environment=KEY).sequential
    assert run is not None and run.candidates[SLM].action == "fine_tune"
    return run.candidates[SLM].decided_at or 0


def test_the_report_ends_at_the_stop_and_what_was_in_flight_is_counted_and_not_scored(tmp_path: Path) -> None:
    stop = decided_at(tmp_path)
    settings = config(tmp_path)
    asked(settings, stop + AHEAD)
    report = evaluate(settings, environment=KEY)
    order = [row.id for row in plan(settings, KEY).examples]
    lines = list(read_jsonl(tmp_path / "run" / "scores.jsonl"))
    assert [line["id"] for line in lines] == order[:stop]
    assert (report.examples.n, report.models[LLM].n, report.models[SLM].n) == (stop, stop, stop)
    assert report.order_seed == settings.generation.seed == 42
    assert report.provenance is not None and report.sequential is not None
    assert (report.provenance.rows_in, report.provenance.rows_scored) == (60, stop)
    assert (report.provenance.requests, report.provenance.unscored) == (2 * stop, 2 * AHEAD)
    assert report.provenance.retries == 0
    assert report.sequential.candidates == {
        SLM: CandidateLook(level=0.05, rows=stop, action="fine_tune", decided_at=stop)
    }
    assert report.sequential.rest == {
        LLM: Rest(calls=AHEAD, tokens=10 * AHEAD, usd=round(0.013 * AHEAD, 6)),
        SLM: Rest(calls=AHEAD, tokens=10 * AHEAD, usd=None),
    }
    assert load_report(tmp_path / "run")[0] == report


def test_a_comparison_decides_what_the_run_decided_at_the_same_row_and_charges_once(tmp_path: Path) -> None:
    stop = decided_at(tmp_path)
    settings = config(tmp_path)
    asked(settings, stop + AHEAD)
    report = evaluate(settings, environment=KEY)
    ways = {"rule": "sequential", "stop": "when_decided", "delta": 0.1, "candidates": 1}
    found = compare_reports(CompareConfig(report=settings.run_dir, llm=LLM, slm=SLM, **ways))
    assert (found.decision.action, found.decision.candidate, found.decision.exploratory) == ("fine_tune", 1, None)
    seen = found.comparison.sequential
    assert seen is not None and report.sequential is not None
    look = report.sequential.candidates[SLM]
    assert (seen.decided_at, seen.rows, seen.level) == (look.decided_at, look.rows, look.level) == (stop, stop, 0.05)
    lines = read_jsonl(tmp_path / "rows.jsonl.candidates.jsonl")
    assert [(line["number"], line["action"]) for line in lines] == [(1, "inconclusive"), (1, "fine_tune")]
    with pytest.raises(ComparisonError, match="the rule paired allows one look"):  # whoever watched has looked
        compare_reports(CompareConfig(report=settings.run_dir, llm=LLM, slm=SLM, delta=0.1, candidates=1))


def test_a_candidate_for_whom_nothing_is_left_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    decided_at(tmp_path)
    another = config(tmp_path, models=[LLM, "served:other"], run_dir=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"served:other: second candidate .*nothing is left.*evaluate fresh rows"):
        evaluate(another, environment=KEY)


def test_only_the_named_slm_is_a_candidate_and_whoever_is_asked_beside_it_takes_none_of_its_error(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path, models=[LLM, "served:base", SLM], slm=SLM)
    asked(settings, 60)
    report = evaluate(settings, environment=KEY)
    assert report.sequential is not None
    assert {spec: look.level for spec, look in report.sequential.candidates.items()} == {SLM: 0.05}
    stop = report.sequential.candidates[SLM].decided_at
    assert {spec: model.n for spec, model in report.models.items()} == dict.fromkeys(settings.models, stop)
    record = read_jsonl(tmp_path / "rows.jsonl.candidates.jsonl")
    assert [line["candidate"]["slm"] for line in record] == [SLM]
    with pytest.raises(ValidationError, match=r"slm 'served:nobody' is none of models after the LLM"):
        config(tmp_path, slm="served:nobody")


def test_the_same_command_gives_the_same_bytes_however_many_calls_were_in_flight(tmp_path: Path) -> None:
    stop = decided_at(tmp_path)
    scores = set()
    for number, beyond in enumerate((0, 1, 7)):
        settings = config(tmp_path, run_dir=str(tmp_path / f"run{number}"))
        asked(settings, stop + beyond)
        files = []
        for _ in range(2):
            evaluate(settings, environment=KEY)
            files.append([(tmp_path / f"run{number}" / name).read_bytes() for name in ("report.json", "scores.jsonl")])
        assert files[0] == files[1]
        scores.add(files[0][1])
    assert len(scores) == 1


def test_a_refusal_before_the_stop_is_an_answer_and_holds_up_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path)
    second = plan(settings, KEY).examples[1].id
    asked(settings, 60, failing={second: Completion(failure=Failure(kind="refused", reason="filter"))})
    report = evaluate(settings, environment=KEY)
    assert report.sequential is not None and report.sequential.candidates[SLM].action == "fine_tune"
    assert report.models[SLM].failures == {"refused": 1}


def test_all_rows_are_scored_with_stop_never_and_the_summary_says_what_the_rest_cost(tmp_path: Path) -> None:
    settings = config(tmp_path, stop="never")
    asked(settings, 60)
    report = evaluate(settings, environment=KEY)
    assert report.sequential is not None and report.examples.n == 60
    stop = report.sequential.candidates[SLM].decided_at
    assert stop is not None and 2 < stop < 20
    lines = summary(report).splitlines()
    assert f"{SLM}: decided at row {stop}: fine_tune (of 60 rows; sequential, delta 0.1, level 5 %)" in lines
    rest = 60 - stop
    assert f"beyond that row: {2 * rest} calls, {20 * rest} tokens, {0.013 * rest:.4f} USD" in lines


def test_rows_that_do_not_decide_are_said_so(tmp_path: Path) -> None:
    settings = config(tmp_path, rows=3)
    asked(settings, 3)
    report = evaluate(settings, environment=KEY)
    assert report.examples.n == 3
    assert f"{SLM}: not decided by 3 rows" in summary(report)
    assert report.sequential is not None and all(
        one == Rest(calls=0, tokens=0, usd=one.usd) for one in report.sequential.rest.values()
    )


def test_a_run_directory_keeps_its_seed_and_its_rule(tmp_path: Path) -> None:
    settings = config(tmp_path)
    asked(settings, 60)
    evaluate(settings, environment=KEY)
    other = settings.model_copy(update={"generation": settings.generation.model_copy(update={"seed": 1})})
    with pytest.raises(ConfigError, match=r"order\.json: the order of the rows was drawn from seed 42"):
        evaluate(other, environment=KEY)
    paired = settings.model_copy(update={"run_dir": str(tmp_path / "paired"), "declare": Declaration()})
    asked(paired, 60)
    assert evaluate(paired, environment=KEY).order_seed is None
    with pytest.raises(ConfigError, match=r"declared under the rule paired, .*choose another run_dir"):
        evaluate(settings.model_copy(update={"run_dir": str(tmp_path / "paired")}), environment=KEY)
    report = (tmp_path / "run" / "report.json").read_bytes()
    for later in (Declaration(), None):  # it would take the drawn order out of a report that was decided in it
        with pytest.raises(ConfigError, match=r"declared under the rule sequential, and its rows are in a drawn order"):
            evaluate(settings.model_copy(update={"declare": later}), environment=KEY)
    assert (tmp_path / "run" / "report.json").read_bytes() == report
    wider = settings.model_copy(update={"declare": settings.declare.model_copy(update={"delta": 0.2})})
    with pytest.raises(ConfigError, match=r"served:slm: second candidate .*tested before under other settings"):
        evaluate(wider, environment=KEY)


def test_further_rows_are_scored_behind_the_first(tmp_path: Path) -> None:
    short = config(tmp_path, rows=4, stop="never")
    asked(short, 4)
    before = evaluate(short, environment=KEY)
    first = (tmp_path / "run" / "scores.jsonl").read_bytes()
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"id": f"x{n}", "prompt": f"x{n}", "completion": TARGET}) + "\n" for n in range(30))
    )
    long = short.model_copy(update={"extend": str(tmp_path / "more.jsonl")})
    asked(long, 34)
    after = evaluate(long, environment=KEY)
    assert (tmp_path / "run" / "scores.jsonl").read_bytes().startswith(first)
    assert (before.examples.n, after.examples.n) == (4, 34)
    assert before.provenance is not None and after.provenance is not None
    assert before.provenance.digests.data != after.provenance.digests.data
    assert after.sequential is not None and after.sequential.candidates[SLM].action == "fine_tune"
    assert (after.order_seed, after.order_digest) == (before.order_seed, before.order_digest)


def test_a_file_that_was_written_on_is_asked_in_another_order_and_so_is_another_candidate(tmp_path: Path) -> None:
    """The bets of the first run do not go on in it: at the same level its error would come on top, as often as one likes."""
    declare = {"rule": "sequential", "stop": "never", "delta": 0.1}
    found = []
    for rows, name in ((4, "run"), (30, "grown"), (30, "again")):  # every answer is the same throughout
        settings = config(tmp_path, rows=rows, declare=declare, run_dir=str(tmp_path / name))
        asked(settings, rows)
        evaluate(settings, environment=KEY)
        compared = {"report": settings.run_dir, "llm": LLM, "slm": SLM, "rule": "sequential", "delta": 0.1}
        found.append(compare_reports(CompareConfig.model_validate(compared)))
    assert [one.decision.candidate for one in found] == [1, 2, 2]
    levels = [one.comparison.level for one in found]
    assert levels[0] == pytest.approx(4 * levels[1]) and levels[1] == levels[2]


def test_a_stratified_run_stops_at_the_end_of_a_round_and_its_comparison_says_the_same(tmp_path: Path) -> None:
    declare = {"rule": "sequential", "stop": "when_decided", "delta": 0.1, "candidates": 1, "stratify": "kind"}
    settings = config(tmp_path, declare=declare)
    lines = [{"id": f"r{n}", "prompt": f"q{n}", "completion": TARGET, "tags": {"kind": str(n % 3)}} for n in range(60)]
    Path(settings.examples).write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked(settings, 60)
    report = evaluate(settings, environment=KEY)
    assert report.sequential is not None and report.sequential.rounds == ((10, 6),)
    stop = report.sequential.candidates[SLM].decided_at
    assert stop == 10 == report.examples.n and report.sequential.candidates[SLM].action == "fine_tune"
    kinds = Counter(line["tags"]["kind"] for line in read_jsonl(tmp_path / "run" / "scores.jsonl"))
    assert set(kinds.values()) <= {3, 4}
    compared = CompareConfig.model_validate(
        {"report": str(tmp_path / "run"), "llm": LLM, "slm": SLM, **declare, "stop": "never"}
    )
    found = compare_reports(compared)
    assert found.decision.action == "fine_tune" and found.comparison.sequential is not None
    assert found.comparison.sequential.decided_at == stop
    plain = compare_reports(compared.model_copy(update={"stratify": None}))
    assert plain.decision.exploratory and any(
        "stratify is not set and was kind" in one for one in plain.decision.because
    )
    with pytest.raises(ConfigError, match=r"stratified by 'kind', and .* drawn plainly now"):
        evaluate(
            settings.model_copy(update={"declare": settings.declare.model_copy(update={"stratify": None})}),
            environment=KEY,
        )


def test_whether_the_rest_is_asked_turns_no_verdict(tmp_path: Path) -> None:
    """A comparison need not say when the asking ended, though what was declared does."""
    rules = [
        declared_rule(
            Declaration.model_validate({"rule": "sequential", "stop": stop}),
            track("structured"),
            examples="d",
            rows=rows,
            baselines=(),
        )
        for stop, rows in (("when_decided", 60), ("never", 12))
    ]
    assert departures(*rules) == []
    other = replace(rules[1], delta=0.1)
    assert len(departures(rules[0], other)) == 1


def test_a_candidate_that_is_out_is_in_the_first_rows_only_of_every_file(tmp_path: Path) -> None:
    good = "served:good"
    declared = {"rule": "sequential", "stop": "when_decided", "delta": 0.15, "candidates": 2}
    settings = config(tmp_path, models=[LLM, SLM, good], declare=declared)
    asked(settings, 60, right=(LLM, good))
    report = evaluate(settings, environment=KEY)
    assert report.sequential is not None
    ends = {spec: look.decided_at or 0 for spec, look in report.sequential.candidates.items()}
    assert 2 < ends[SLM] < ends[good] <= 60
    assert {spec: model.n for spec, model in report.models.items()} == {**ends, LLM: ends[good]}
    rows = load_report(tmp_path / "run")[1]
    assert [SLM in row.models for row in rows] == [at < ends[SLM] for at in range(ends[good])]
    spans = [
        span["name"]
        for line in read_jsonl(tmp_path / "run" / "traces.jsonl")
        for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]
    assert spans.count(f"structured {SLM}") == ends[SLM]
    assert spans.count(f"structured {LLM}") == ends[good]
    answers = parquet.read_table(tmp_path / "run" / "answers.parquet").to_pylist()
    assert Counter(row["spec"] for row in answers) == {**ends, LLM: ends[good]}
