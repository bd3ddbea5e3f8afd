"""The sequential rule over a finished report: the drawn order, whole groups, what blocks a swap, and the words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import plain_records
import pytest

from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ComparisonError
from slm_ray.page.formatting import in_points
from slm_ray.records import Report, RowResult
from slm_ray.types import Comparison, Completion, Example, Failure, Interval, Slice
from slm_ray.verdict.compare import compare
from slm_ray.verdict.decide import decide
from slm_ray.verdict.words import verdict_text

LLM, SLM = "azure:big", "served:small"
TRACK = TRACKS["structured"]
Right = Callable[[int], bool]


def report(
    n: int, llm: Right, slm: Right, *, groups_of: int = 1, failed: set[int] | None = None, until: int | None = None
) -> tuple[Report, list[RowResult]]:
    """Rows in their asking order; the SLM was asked `until` some row."""
    rows = [
        Example(id=f"e{i:04}", prompt=prompt_of(TRACK, f"question {i}"), target=f'{{"a": {i}}}',
                group=f"g{i // groups_of}" if groups_of > 1 else None)
        for i in range(n)
    ]  # fmt: skip
    random.Random(5).shuffle(rows)
    rows.sort(key=lambda row: row.group or "")
    answers = {
        spec: {
            row.id: Completion(failure=Failure(kind="error", reason="x"))
            if spec == LLM and at in (failed or set())
            else Completion(text=row.target if right(at) else "{}")
            for at, row in enumerate(rows)
        }
        for spec, right in ((LLM, llm), (SLM, slm))
    }
    found, scored = plain_records.build(TRACK, rows, answers)
    kept = [
        row if until is None or at < until else replace(row, models={LLM: row.models[LLM]})
        for at, row in enumerate(scored)
    ]
    return replace(found, order_seed=42), kept


def run(built: tuple[Report, list[RowResult]], *, delta: float = 0.1, level: float = 0.05) -> Comparison:
    return compare(
        *built, llm=LLM, slm=SLM, min_paired=0.95, resamples=99, seed=0, level=level, sequential_delta=delta
    )  # fmt: skip


def test_a_better_model_is_decided_on_at_a_row_and_the_rest_was_not_needed() -> None:
    found = run(report(120, lambda at: at % 2 == 0, lambda at: True))
    decision = decide(found, rule="sequential", delta=0.1)
    assert decision.action == "swap" and found.sequential is not None
    at = found.sequential.decided_at
    assert at is not None and at < 60
    said = [s for s in decision.because if s.startswith(f"decided at row {at}: the SLM is not worse by 0.1 or more")]
    assert said and f"the {120 - at} rows after it were not needed" in said[0]
    assert "the confidence sequence is" in decision.because[0] and "20 decide" in decision.because[1]
    assert in_points(decision.because[1]).endswith("against its opposite.") and "%" not in in_points(
        decision.because[1]
    )
    assert "verdict: swap" in verdict_text(found, decision)


def test_what_was_asked_until_the_stop_gives_the_same_decision() -> None:
    """The SLM was not asked beyond the row at which it was out; the LLM went on for another candidate."""
    whole = run(report(120, lambda at: True, lambda at: at % 3 == 0)).sequential
    assert whole is not None and whole.action == "fine_tune" and whole.decided_at is not None
    stopped = run(report(120, lambda at: True, lambda at: at % 3 == 0, until=whole.decided_at))
    assert decide(stopped, rule="sequential", delta=0.1).action == "fine_tune"
    assert (
        stopped.sequential is not None and stopped.sequential.rows == whole.decided_at == stopped.sequential.decided_at
    )


def test_undecided_is_inconclusive_with_the_rows_it_may_take() -> None:
    found = run(report(60, lambda at: at % 5 > 0, lambda at: at % 5 > 0 and at % 7 > 0))
    decision = decide(found, rule="sequential", delta=0.1)
    assert decision.action == "inconclusive"
    assert any("not decided yet after 60 rows; were the difference seen" in s for s in decision.sentences)
    assert any("more rows" in s and "extend" in s for s in decision.sentences)
    grouped = decide(replace(found, groups=30, largest_group=2), rule="sequential", delta=0.1)
    said = [any("rows in groups take more than that" in s for s in one.sentences) for one in (decision, grouped)]
    assert said == [False, True]


def test_rows_in_no_drawn_order_are_refused() -> None:
    built, rows = report(40, lambda at: True, lambda at: True)
    with pytest.raises(
        ComparisonError, match=r"order that was drawn before the first call.*or compare by the rule paired"
    ):
        run((replace(built, order_seed=None), rows))
    with pytest.raises(ComparisonError, match="drawn from 42, those of served:small in one from 7"):
        compare(
            replace(built, models={LLM: built.models[LLM]}), rows, replace(built, models={SLM: built.models[SLM]}, order_seed=7),
            rows, llm=LLM, slm=SLM, min_paired=0.95, resamples=99, seed=0, sequential_delta=0.1,
        )  # fmt: skip
    with pytest.raises(ComparisonError, match="not made by the rule sequential"):
        decide(replace(run((built, rows)), sequential=None), rule="sequential", delta=0.1)


def test_a_group_is_one_bet() -> None:
    alone = run(report(120, lambda at: True, lambda at: at % 4 > 0)).sequential
    grouped = run(report(120, lambda at: True, lambda at: at % 4 > 0, groups_of=4)).sequential
    assert alone is not None and grouped is not None
    assert (alone.groups, grouped.groups, grouped.rows) == (120, 30, 120)
    assert grouped.e_worse < alone.e_worse  # fewer bets have been won


def test_a_group_of_which_a_row_is_missing_is_not_looked_at() -> None:
    """Which of its rows has an answer may depend on the answer."""
    cut = run(report(120, lambda at: True, lambda at: at % 4 > 0, groups_of=4, until=42)).sequential
    whole = run(report(120, lambda at: True, lambda at: at % 4 > 0, groups_of=4, until=40)).sequential
    assert cut is not None and cut == whole and cut.rows == 40


def test_a_smaller_level_takes_more_rows() -> None:
    built = report(200, lambda at: at % 2 == 0, lambda at: True)
    first, third = (run(built, level=level).sequential for level in (0.05, 0.0034))
    assert first is not None and third is not None
    assert first.decided_at is not None and third.decided_at is not None and first.decided_at < third.decided_at


def test_a_slice_that_is_clearly_worse_and_an_outage_block_a_swap_and_make_no_fine_tune() -> None:
    found = run(report(120, lambda at: at % 2 == 0, lambda at: True))
    bad = Slice(tag="tool", value="pay", n=40, interval=Interval(estimate=-0.4, lower=-0.5, upper=-0.3))
    blocked = decide(replace(found, slices=(bad,)), rule="sequential", delta=0.1)
    assert blocked.action == "inconclusive" and any("tool is 'pay'" in s for s in blocked.because)
    out = decide(replace(found, llm_failed=30), rule="sequential", delta=0.1)
    assert out.action == "inconclusive" and "no verdict" in out.because[0]


def test_failed_calls_of_the_llm_do_not_win_bets_for_the_slm() -> None:
    """Counted as wrong they would: the swap has to hold over the rows that both were reached on, too."""
    failed = set(range(0, 120, 2))
    found = run(report(120, lambda at: True, lambda at: at % 2 == 0, failed=failed))
    assert found.sequential is not None and found.sequential.action is None


def test_a_floor_holds_here_too() -> None:
    found = run(report(120, lambda at: at % 2 == 0, lambda at: True))
    low = {"baseline:majority": Interval(estimate=0.0, lower=-0.1, upper=0.1)}
    assert decide(replace(found, floors=low), rule="sequential", delta=0.1).action == "inconclusive"


@pytest.mark.parametrize("until", [None, 40])
def test_rows_without_a_value_are_no_more_left_out_than_under_paired(until: int | None) -> None:
    """Else an SLM whose worst answers have no score would swap on the others; rows that were not asked are no such rows."""
    built, rows = report(120, lambda at: at % 2 == 0, lambda at: True, until=until)
    cut = [
        replace(row, models={**row.models, SLM: replace(row.models[SLM], scores={**row.models[SLM].scores, TRACK.primary: None})})
        if at % 10 == 0 and SLM in row.models
        else row
        for at, row in enumerate(rows)
    ]  # fmt: skip
    assert run((built, rows)).sequential is not None
    with pytest.raises(
        ComparisonError, match=rf"defined for both models on {(until or 120) * 9 // 10} of {until or 120}"
    ):
        run((built, cut))


def test_an_undecided_run_names_the_guardrail_that_keeps_a_swap_away() -> None:
    found = run(report(60, lambda at: at % 5 > 0, lambda at: at % 5 > 0 and at % 7 > 0))
    low = {
        "valid": Interval(estimate=-0.4, lower=-0.5, upper=-0.3),
        "other": Interval(estimate=0.0, lower=-0.2, upper=0.2),
    }
    said = decide(replace(found, guardrails=low), rule="sequential", delta=0.1).sentences
    assert [s.split(":")[0] for s in said if "keeps a swap away" in s] == ["the guardrail valid"]
