"""Pairing two models: what is counted, and every refusal with its counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plain_records
import pytest
from plain_records import changed, plain, record

from slm_ray.corpus.render import prompt_hash, prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ComparisonError
from slm_ray.records import Report, RowResult
from slm_ray.types import Comparison, Completion, Example, Failure, FailureKind
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.compare import compare
from slm_ray.verdict.decide import decide

Built = tuple[Report, list[RowResult]]
LLM, SLM = "azure:big", "served:small"


def build(*given: Any, **settings: Any) -> Built:
    """A report and its rows, held so that a test may break one."""
    report, rows = plain_records.build(*given, **settings)
    return report, list(rows)


def examples(start: int, stop: int, *, track: str = "structured", wording: str = "question") -> list[Example]:
    call = track == "toolcall"
    return [
        Example(
            id=f"e{i:03}",
            prompt=prompt_of(TRACKS[track], f"{wording} {i}"),
            target=f'<tool_call name="f">{{"a":{i}}}</tool_call>' if call else f'{{"a": {i}}}',
        )
        for i in range(start, stop)
    ]


def answered(
    rows: Sequence[Example], *, right: set[int], served_by: str = "m", failed: set[int] | None = None
) -> dict[str, Completion]:
    found = {}
    for i, row in enumerate(rows):
        if failed and i in failed:
            found[row.id] = Completion(failure=Failure(kind="error", reason="timeout"))
        else:
            found[row.id] = Completion(text=row.target if i in right else '{"a": -1}', served_by=served_by)
    return found


def built(
    rows: Sequence[Example], *, track: str = "structured", trained_on: dict[str, int] | None = None, **right: set[int]
) -> Built:
    answers = {{"llm": LLM, "slm": SLM}[role]: answered(rows, right=which) for role, which in right.items()}
    return build(TRACKS[track], rows, answers, trained_on=trained_on or {})


def without_slm(row: RowResult) -> RowResult:
    return replace(row, models={spec: answer for spec, answer in row.models.items() if spec != SLM})


def run(a: Built, b: Built | None = None, **changes: Any) -> Comparison:
    options = {"llm": LLM, "slm": SLM, "min_paired": 0.95, "resamples": 199, "seed": 0, **changes}
    report_b, rows_b = b or (None, None)
    return compare(*a, report_b, rows_b, **options)


ROWS = examples(0, 40)
BOTH = built(ROWS, llm=set(range(20)), slm=set(range(10, 36)))


def test_one_report_by_hand() -> None:
    found = run(BOTH)
    assert (found.track, found.llm, found.slm, found.n, found.primary) == ("structured", LLM, SLM, 40, "exact_match")
    assert found.digest == BOTH[0].examples.digest
    assert (found.llm_only_right, found.slm_only_right) == (10, 16)
    assert found.interval.estimate == pytest.approx(6 / 40)
    assert found.interval.lower < 6 / 40 < found.interval.upper
    assert found.llm_metrics == BOTH[0].models[LLM].metrics
    assert set(found.gaps) == set(TRACKS["structured"].core)
    assert found.gaps["exact_match"] == pytest.approx(6 / 40) and found.gaps["json_valid"] == 0
    assert found.stand_ins == ()


def test_two_reports_pair_like_one_whatever_their_row_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    right = {i for i, row in enumerate(shuffled) if row in ROWS[10:36]}
    assert run(built(ROWS, llm=set(range(20))), built(shuffled, slm=right)) == run(BOTH)


def test_llm_comes_from_the_first_report_and_slm_from_the_second() -> None:
    before = built(ROWS, llm=set(range(20)), slm=set())
    after = built(ROWS, llm=set(), slm=set(range(40)))
    found = run(before, after)
    assert (found.llm_metrics["exact_match"], found.slm_metrics["exact_match"]) == (0.5, 1.0)
    assert run(built(ROWS, slm=set(range(40))), built(ROWS, llm=set(range(20)))).gaps == found.gaps


def test_swapping_the_roles_turns_the_gaps_round() -> None:
    found, turned = run(BOTH), run(BOTH, llm=SLM, slm=LLM)
    assert turned.gaps == {name: -gap for name, gap in found.gaps.items()}
    assert (turned.llm_only_right, turned.slm_only_right) == (found.slm_only_right, found.llm_only_right)


def test_a_failed_call_is_a_row_and_an_undefined_metric_has_no_gap() -> None:
    answers = {LLM: answered(ROWS, right=set(range(20))), SLM: answered(ROWS, right=set(), failed=set(range(40)))}
    found = run(build(TRACKS["structured"], ROWS, answers, trained_on={}))
    assert found.n == 40
    assert found.slm_metrics["field_precision"] == 0.0
    assert found.gaps["json_valid"] == -1.0 and found.gaps["field_recall"] == -0.5
    bare = changed(BOTH[1], lambda row, _: row["models"][SLM].update(counts=[0, 0, 0]))
    nothing = run((BOTH[0], bare))
    assert nothing.slm_metrics["field_precision"] is None and "field_precision" not in nothing.gaps


def test_stand_ins_are_labelled() -> None:
    answers = {LLM: answered(ROWS, right=set(), served_by="stand-in:tiny"), SLM: answered(ROWS, right=set())}
    assert run(build(TRACKS["structured"], ROWS, answers, trained_on={})).stand_ins == (LLM,)


def test_refuses_other_rows_with_counts() -> None:
    with pytest.raises(ComparisonError, match=r"15 shared, 25 only in the LLM's .*, 10 only in the SLM's"):
        run(built(ROWS, llm=set()), built(examples(25, 50), slm=set()))
    with pytest.raises(ComparisonError, match=r"0 shared, 39 only .* 50 only"):
        run(built(examples(0, 39), llm=set()), built(examples(100, 150), slm=set()))
    with pytest.raises(ComparisonError, match=r"30 shared, 10 only .* 0 only"):
        run(built(ROWS, llm=set()), built(ROWS[:30], slm=set()))


def test_refuses_other_prompts_or_references_under_the_same_id() -> None:
    with pytest.raises(ComparisonError, match=r"prompts differ under the same id in 40 of 40 .*e000, e001, e002\)"):
        run(built(ROWS, llm=set()), built(examples(0, 40, wording="another"), slm=set()))
    changed = [Example(id=row.id, prompt=row.prompt, target='{"a": 0}') for row in ROWS]
    with pytest.raises(ComparisonError, match="targets differ under the same id in 39 of 40"):
        run(built(ROWS, llm=set()), built(changed, slm=set()))


def test_other_rows_that_are_training_rows_are_said_to_be() -> None:
    """What the earlier system compared: 39 training rows of the LLM, 50 test rows of the SLM."""
    llm, slm = examples(0, 39), examples(300, 350)
    trained = {prompt_hash(row.prompt) for row in examples(0, 300)}
    with pytest.raises(
        ComparisonError,
        match=r"0 shared, 39 only in the LLM's .*, 50 only .* and 39 of the LLM's 39 rows and 0 of the SLM's 50 are training rows",
    ):
        run(built(llm, llm=set(range(8))), built(slm, slm=set(range(20))), train_prompts=trained)


def test_another_template_is_named_with_the_counts() -> None:
    track = replace(TRACKS["structured"], prefix="Rules.", system="Other.")
    told = [Example(id=f"t{i}", prompt=prompt_of(track, f"question {i}"), target=f'{{"a": {i}}}') for i in range(40)]
    other = build(track, told, {SLM: answered(told, right=set())}, trained_on={})
    with pytest.raises(ComparisonError, match=r"0 shared, 40 only .*, 40 only .*told by another system and prefix"):
        run(built(ROWS, llm=set()), other)
    same_ids = [replace(row, id=name.id) for row, name in zip(told, ROWS, strict=True)]
    with pytest.raises(
        ComparisonError, match=r"prompts differ under the same id in 40 of 40 .*another system and prefix"
    ):
        run(built(ROWS, llm=set()), build(track, same_ids, {SLM: answered(same_ids, right=set())}, trained_on={}))


def test_an_undefined_row_is_left_out_and_not_counted_as_wrong() -> None:
    def undefine(row: dict[str, Any], position: int) -> None:
        if position < 20:
            row["models"][SLM]["scores"]["exact_match"] = None

    half = (BOTH[0], changed(BOTH[1], undefine))
    found = run(half, min_paired=0.5)
    assert found.interval.estimate == pytest.approx(16 / 20)  # of the 20 rows that both are defined on
    assert (found.n, found.undefined) == (20, 20)
    with pytest.raises(ComparisonError, match=r"defined for both models on 20 of 40 .* lower min_paired_share"):
        run(half, min_paired=0.51)
    assert "20 paired rows" in decide(found, rule="paired", delta=0.02).because[0]
    with pytest.raises(ComparisonError, match="exact_match is undefined on all 20 shared rows"):
        run((BOTH[0], changed(BOTH[1][:20], undefine)), min_paired=0.1)


def test_refuses_other_tracks() -> None:
    calls = built(examples(0, 40, track="toolcall"), track="toolcall", slm=set())
    with pytest.raises(ComparisonError, match=r"different tracks: structured \(azure:big\), toolcall"):
        run(built(ROWS, llm=set()), calls)


def test_refuses_an_unknown_model_with_choices() -> None:
    with pytest.raises(ComparisonError, match=r"SLM 'served:smal' .*did you mean 'served:small'\? known: azure:big"):
        run(BOTH, slm="served:smal")
    with pytest.raises(ComparisonError, match=r"LLM 'x'"):
        run(BOTH, llm="x")


def test_refuses_one_model_on_both_sides() -> None:
    with pytest.raises(ComparisonError, match=r"'azure:big' is both the LLM and the SLM.*; name two models"):
        run(BOTH, slm=LLM)


def test_refuses_training_rows() -> None:
    seen = {prompt_hash(row.prompt) for row in ROWS[:8]} | {"0" * 16}
    with pytest.raises(ComparisonError, match=r"8 of 40 evaluation rows are training rows \(e000, e001, e002, …\)"):
        run(BOTH, train_prompts=seen)
    assert run(BOTH, train_prompts={"0" * 16}) == run(BOTH)


@pytest.mark.parametrize("spec", [LLM, SLM])
def test_refuses_a_model_trained_on_the_rows(spec: str) -> None:
    with pytest.raises(ComparisonError, match=rf"{spec} was trained on 39 of the 40 rows"):
        run(built(ROWS, llm=set(), slm=set(), trained_on={spec: 39}))


def test_refuses_a_report_that_lacks_rows() -> None:
    report, rows = built(ROWS, slm=set(range(40)))
    with pytest.raises(ComparisonError, match=r"only 37 of 40 .*40 of azure:big, 37 of served:small\), fewer than 95%"):
        run(built(ROWS, llm=set()), (report, rows[3:]))
    assert run(built(ROWS, llm=set()), (report, rows[2:])).n == 38
    holes = [without_slm(row) for row in BOTH[1][:5]] + BOTH[1][5:]
    with pytest.raises(ComparisonError, match="only 35 of 40"):
        run((BOTH[0], holes))
    with pytest.raises(ComparisonError, match="only 0 of 40"):
        run((BOTH[0], []), min_paired=0.001)


def test_metrics_are_summed_over_the_pairs_only() -> None:
    report, rows = built(ROWS, llm=set(range(38)), slm=set(range(2)))
    found = run((report, rows[:38] + [without_slm(row) for row in rows[38:]]))
    assert (found.n, found.llm_metrics["exact_match"]) == (38, 1.0)


def test_refuses_repeated_rows() -> None:
    with pytest.raises(ComparisonError, match="report A: 40 score rows repeat an id"):
        run((BOTH[0], BOTH[1] * 2))


def test_the_earlier_headline_would_have_been_refused() -> None:
    """39 training rows for the LLM against 50 test rows for the SLM: no shared row, no verdict."""
    with pytest.raises(ComparisonError, match="0 shared"):
        run(built(examples(0, 39), llm=set(range(8))), built(examples(300, 350), slm=set(range(20))))


def test_toolcall_track() -> None:
    rows = examples(0, 30, track="toolcall")
    found = run(built(rows, track="toolcall", llm=set(range(30)), slm=set(range(15))))
    assert (found.primary, found.gaps["args_exact"], found.llm_only_right) == ("args_exact", -0.5, 15)


def tagged(rows: Sequence[Example]) -> list[Example]:
    return [replace(row, tags={"tool": "odd" if i % 4 == 3 else "even", "all": "same"}) for i, row in enumerate(rows)]


def test_slices_are_tag_values_on_enough_rows() -> None:
    rows = tagged(examples(0, 80))
    lost = {i for i in range(80) if i % 4 == 3}
    found = run(built(rows, llm=set(range(80)), slm=set(range(80)) - lost), slice_rows=20)
    assert [(part.tag, part.value, part.n) for part in found.slices] == [("tool", "even", 60), ("tool", "odd", 20)]
    even, odd = (part.interval for part in found.slices)
    assert (even.estimate, odd.estimate) == (0.0, -1.0)
    assert even.lower < -0.05 < 0.05 < even.upper  # 60 equal rows, an error of 2.5 % each: 1 - 0.025^(1/60)
    assert even.upper == pytest.approx(1 - 0.025 ** (1 / 60))
    assert run(built(rows, llm=set(), slm=set()), slice_rows=21).slices[0].value == "even"
    assert run(BOTH).slices == ()


def test_guardrails_have_intervals_of_their_own() -> None:
    found = run(BOTH, guardrails=["json_valid", "field_f1"])
    assert list(found.guardrails) == ["json_valid", "field_f1"]
    assert found.guardrails["json_valid"].estimate == 0.0
    assert found.guardrails["field_f1"].estimate == pytest.approx(6 / 40)
    with pytest.raises(ComparisonError, match=r"'name_match' is no metric of a row.*json_valid"):
        run(BOTH, guardrails=["name_match"])


def test_the_guardrails_of_the_track_come_first_and_none_twice() -> None:
    report, rows = BOTH
    gated = replace(report, track_definition={**report.track_definition, "guardrails": ["json_valid"]})
    assert list(run((gated, rows)).guardrails) == ["json_valid"]
    assert list(run((gated, rows), guardrails=["field_f1", "json_valid"]).guardrails) == ["json_valid", "field_f1"]


def test_failed_calls_count_and_both_readings_are_there() -> None:
    answers = {
        LLM: answered(ROWS, right=set(range(40))),
        SLM: answered(ROWS, right=set(range(40)), failed={1, 2, 3, 4}),
    }
    found = run(build(TRACKS["structured"], ROWS, answers, trained_on={}))
    assert found.interval.estimate == pytest.approx(-0.1)
    assert found.answered is not None
    assert (found.answered.estimate, found.answered_n) == (0.0, 36)
    assert (run(BOTH).answered, run(BOTH).answered_n) == (None, 40)


def failing(kind: FailureKind, rows: set[int], right: set[int]) -> dict[str, Completion]:
    given = answered(ROWS, right=right)
    return given | {ROWS[i].id: Completion(failure=Failure(kind=kind, reason="so")) for i in rows}


def test_a_call_that_failed_is_told_from_an_answer_that_is_none() -> None:
    everything = set(range(40))
    answers = {LLM: failing("error", set(range(10)), everything), SLM: failing("refused", {10, 11}, set(range(12)))}
    found = run(build(TRACKS["structured"], ROWS, answers, trained_on={}))
    assert (found.llm_failed, found.slm_failed) == (10, 0)
    reached, both = found.readings["reached"], found.readings["answered"]
    assert reached is not None and both is not None
    assert (reached.n, both.n) == (30, 28)
    assert found.gaps["exact_match"] == pytest.approx(10 / 40 - 30 / 40)
    assert reached.gaps["exact_match"] == reached.interval.estimate == -1.0
    assert set(found.readings) == {"reached", "answered"} and not run(BOTH).readings
    assert (run(BOTH).llm_failed, run(BOTH).slm_failed) == (0, 0)


@pytest.mark.parametrize("rule", ["paired", "point"])
def test_an_endpoint_that_was_down_throughout_is_no_swap(rule: str) -> None:
    answers = {LLM: failing("error", set(range(40)), set()), SLM: answered(ROWS, right=set())}
    found = run(build(TRACKS["structured"], ROWS, answers, trained_on={}))
    assert found.readings == {"reached": None, "answered": None}
    decision = decide(found, rule=rule, delta=0.02)
    assert decision.action == "inconclusive"
    assert "LLM (azure:big) failed on 40 of 40 rows (100.0%" in decision.because[0]


OWN = replace(TRACKS["structured"], name="mine", primary="field_f1", core=("field_f1",), prefix="Rules.")


def test_a_report_carries_its_track_so_that_comparing_needs_no_file() -> None:
    answers = {LLM: answered(ROWS, right=set(range(20))), SLM: answered(ROWS, right=set(range(30)))}
    report, rows = build(OWN, ROWS, answers, trained_on={})
    report = record(Report, plain(report))
    assert track_of(report) == OWN
    found = run((report, rows))
    assert (found.track, found.primary, set(found.gaps)) == ("mine", "field_f1", {"field_f1"})


def test_two_reports_that_judge_by_other_metrics_are_refused() -> None:
    other = replace(TRACKS["structured"], strip=("fences",))
    report, rows = build(other, ROWS, {SLM: answered(ROWS, right=set())}, trained_on={})
    with pytest.raises(ComparisonError, match="judge structured by other strip"):
        run(built(ROWS, llm=set()), (report, rows))


def test_the_floors_are_the_baselines_that_were_asked_and_the_declared_number() -> None:
    answers = {
        LLM: answered(ROWS, right=set(range(30))),
        SLM: answered(ROWS, right=set(range(28))),
        "baseline:majority": answered(ROWS, right=set(range(25))),
    }
    both = build(TRACKS["structured"], ROWS, answers)
    assert run(BOTH).floors == {}
    found = run(both, quality_floor=0.5).floors
    assert found.keys() == {"baseline:majority", "the declared floor 0.5"}
    assert found["baseline:majority"].estimate == pytest.approx(3 / 40)
    assert found["the declared floor 0.5"].estimate == pytest.approx(0.2)
    assert run(both, slm="baseline:majority").floors == {}  # it is not its own floor
    apart = run(build(TRACKS["structured"], ROWS, {LLM: answers[LLM], "baseline:majority": answers["baseline:majority"]}),
                build(TRACKS["structured"], ROWS, {SLM: answers[SLM]}))  # fmt: skip
    assert apart.floors["baseline:majority"] == found["baseline:majority"]


def test_equally_useless_models_are_no_swap() -> None:
    """Both answer the commonest label, and so does the baseline: right on 38 of 40 rows, and nobody has learnt anything."""
    same = answered(ROWS, right=set(range(38)))
    found = run(build(TRACKS["structured"], ROWS, {LLM: same, SLM: same, "baseline:majority": same}))
    assert decide(found, rule="paired", delta=0.1).action == "inconclusive"
    assert decide(replace(found, floors={}), rule="paired", delta=0.1).action == "swap"


def in_groups(found: Built, size: int) -> Built:
    return found[0], [replace(row, group=f"g{at // size}") for at, row in enumerate(found[1])]


def test_groups_of_one_are_rows_and_larger_ones_say_less() -> None:
    """Ten answers to one question say what one answer to it says: here every group is alike throughout."""
    rows = examples(0, 400)
    right, wrong = {i for i in range(400) if i // 4 % 5}, {i for i in range(400) if i // 4 % 5 != 1}
    both = built(rows, llm=right, slm=wrong)
    alone, ones, fours = run(both), run(in_groups(both, 1)), run(in_groups(both, 4))
    assert replace(ones, groups=0, effective_n=None) == alone
    assert (alone.groups, alone.largest_group, alone.effective_n) == (0, 1, None)
    assert (ones.groups, ones.largest_group, ones.effective_n) == (400, 1, 400)
    assert (fours.n, fours.groups, fours.largest_group) == (400, 100, 4)
    assert fours.effective_n == pytest.approx(100, rel=0.02)
    assert fours.interval.lower < alone.interval.lower < alone.interval.upper < fours.interval.upper
    assert fours.interval.estimate == alone.interval.estimate


def test_slices_guardrails_floors_and_readings_stand_on_groups_too() -> None:
    rows = [replace(row, tags={"kind": "ab"[i % 8 > 3]}) for i, row in enumerate(examples(0, 400))]
    right, other = {i for i in range(400) if i // 4 % 5}, {i for i in range(400) if i // 4 % 5 != 1}
    failed = {i for i in range(400) if i // 4 == 7}
    answers = {LLM: answered(rows, right=right, failed=failed), SLM: answered(rows, right=other)}
    both = build(TRACKS["structured"], rows, answers, trained_on={})
    alone, fours = (
        run(found, guardrails=["json_valid"], quality_floor=0.5, resamples=999) for found in (both, in_groups(both, 4))
    )
    reached = [found.readings["reached"] for found in (alone, fours)]
    assert reached[0] is not None and reached[1] is not None
    for narrow, wide in (
        *zip([part.interval for part in alone.slices], [part.interval for part in fours.slices], strict=True),
        (alone.floors["the declared floor 0.5"], fours.floors["the declared floor 0.5"]),
        (alone.guardrails["json_valid"], fours.guardrails["json_valid"]),
        (reached[0].interval, reached[1].interval),
    ):
        assert wide.upper - wide.lower > 1.3 * (narrow.upper - narrow.lower)


def test_bounds_are_those_of_the_level() -> None:
    found = [run(BOTH, level=level) for level in (0.05, 0.005)]
    assert [one.level for one in found] == [0.05, 0.005]
    assert found[1].interval.lower < found[0].interval.lower < found[0].interval.upper < found[1].interval.upper
