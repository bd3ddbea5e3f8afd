"""Many candidates on one set of rows: levels that never sum to more than alpha, the same test once, one look under paired."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.errors import ComparisonError
from slm_ray.types import CandidateFigures, Comparison, Decision, Interval
from slm_ray.verdict.candidates import (
    Candidate,
    CandidateTest,
    ScoredRow,
    SlmScores,
    Turn,
    counted,
    earlier_than,
    fewest_rows,
    percent,
    turn_of,
    turn_text,
    turns_of,
)
from slm_ray.verdict.non_inferiority import shows

ROWS = tuple(f"{i:08x}" for i in range(100))
FIRST = Candidate(llm="azure:big", slm="served:a", rule="paired", settings="s", rows=ROWS, answers=("x",) * 100)


def other(name: str) -> Candidate:
    return replace(FIRST, slm=f"served:{name}", answers=(name,) * 100)


def made(candidate: Candidate, record: list[CandidateTest], planned: int | None = None) -> CandidateTest:
    turn = turn_of(candidate, record, planned=planned)
    test = CandidateTest(
        candidate=candidate, number=turn.number, level=turn.level, action="inconclusive", date="2026-01-01"
    )
    record.append(test)
    return test


def test_levels_fall_with_every_candidate_and_never_sum_to_more_than_five_percent() -> None:
    record: list[CandidateTest] = []
    for k in range(1, 170):
        assert made(other(str(k)), record).level == pytest.approx(0.05 * 6 / (math.pi * k) ** 2)
    assert record[2].number == 3 and percent(record[2].level) == "0.34 %"
    assert 0.0497 < math.fsum(test.level for test in record) <= 0.05


def test_a_planned_number_shares_in_equal_parts_and_then_nothing_is_left() -> None:
    record: list[CandidateTest] = []
    assert [made(other(str(k)), record, planned=4).level for k in range(5)] == pytest.approx([0.0125] * 4 + [0.0])
    assert made(FIRST, [], planned=1).level == 0.05


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=12))
def test_whatever_plans_are_mixed_the_sum_stays(plans: list[int | None]) -> None:
    """Who changes the plan half-way gets what is left, not a second five percent."""
    record: list[CandidateTest] = []
    for k, planned in enumerate(plans):
        made(other(str(k)), record, planned=planned)
    assert math.fsum(test.level for test in record) <= 0.05 + 1e-12


def test_the_same_test_again_is_no_new_one_and_all_else_is() -> None:
    record: list[CandidateTest] = []
    first = made(FIRST, record)
    made(other("b"), record)
    assert turn_of(FIRST, record, planned=None) == Turn(number=1, level=first.level, again=True)
    assert (
        turn_of(replace(FIRST, answers=("", *["x"] * 99)), record, planned=None).number == 1
    )  # a failed row was asked again
    for change in (
        {"answers": ("x", *["trained anew"] * 99)},
        {"settings": "t"},
        {"llm": "azure:other"},
        {"rule": "sequential"},
    ):
        assert turn_of(replace(FIRST, **change), record, planned=None).number == 3  # type: ignore[arg-type]


def test_fresh_rows_begin_anew() -> None:
    record: list[CandidateTest] = []
    made(FIRST, record)
    fresh = tuple(f"{i:08x}" for i in range(100, 200))
    assert turn_of(replace(FIRST, rows=fresh), record, planned=None).number == 1


def test_a_second_look_at_grown_rows_is_refused_under_paired_and_free_under_sequential() -> None:
    grown = (*ROWS, *(f"{i:08x}" for i in range(100, 150)))
    record: list[CandidateTest] = []
    made(FIRST, record)
    for rows in (grown, ROWS[:50]):
        with pytest.raises(ComparisonError, match=r"rows were already compared for served:a .*fresh rows.*sequential"):
            turn_of(replace(FIRST, rows=rows, answers=("x",) * len(rows)), record, planned=None)
    assert (
        turn_of(replace(other("b"), rows=grown, answers=("b",) * 150), record, planned=None).number == 2
    )  # not looked at yet
    running = replace(FIRST, rule="sequential")
    record = []
    first = made(running, record)
    more = replace(running, rows=grown, answers=(*["x"] * 100, *["more"] * 50))
    assert turn_of(more, record, planned=None) == Turn(number=1, level=first.level, again=True)


@pytest.mark.parametrize("rows", [100, 60])
def test_a_model_that_was_trained_anew_under_its_old_name_is_another_candidate_wherever_it_stopped(rows: int) -> None:
    """It stops at another row than before, so that neither its rows nor its answers are those of the first test."""
    record: list[CandidateTest] = []
    running = replace(FIRST, rule="sequential")
    made(replace(running, answers=("",) * 100), record)  # reserved before it was asked
    assert made(replace(running, rows=ROWS[:80], answers=("x",) * 80), record).number == 1
    anew = replace(running, rows=ROWS[:rows], answers=("", *["other"] * (rows - 1)))
    assert made(replace(anew, answers=("",) * rows), record).number == 2
    assert [
        made(one, record).number for one in (anew, anew, replace(running, rows=ROWS[:50], answers=("x",) * 50))
    ] == [2, 2, 1]


def test_a_call_that_fails_makes_no_model_of_the_same_name_the_same() -> None:
    record: list[CandidateTest] = []
    made(FIRST, record)
    made(replace(FIRST, answers=("", *["trained anew"] * 99)), record)
    assert made(replace(FIRST, answers=("", *["once more"] * 99)), record).number == 3


@pytest.mark.parametrize("level", [0.05, 0.0304, 0.0034, 1e-5])
@pytest.mark.parametrize("delta", [0.02, 0.05, 0.2])
def test_the_fewest_rows_are_those_that_show_two_equal_models_to_be_so(level: float, delta: float) -> None:
    fewest = fewest_rows(level, delta)
    assert fewest is not None
    lost = 0
    assert 1 - level ** (1 / fewest) < delta + 1e-9 and 1 - level ** (1 / (fewest - 1)) > delta - 1e-9
    assert not shows(0, lost, fewest - 1, delta, one_sided=level)


def test_the_words_name_candidate_and_level_and_ask_for_fresh_rows_when_too_little_is_left() -> None:
    assert turn_text(Turn(number=1, level=0.025), planned=1).endswith("tested at 2.5 % (only one was planned).")
    assert turn_text(Turn(number=1, level=0.05), planned=1).endswith("5 % (the only one that was planned).")
    assert "second candidate on these rows (only one was planned): nothing is left" in turn_text(
        Turn(number=2, level=0.0), planned=1
    )
    assert turn_text(Turn(number=3, level=0.05 * 6 / (9 * math.pi**2)), planned=None).startswith(
        "third candidate on these rows: tested at 0.34 %"
    )
    interval = Interval(estimate=0.0, lower=-0.06, upper=0.06, method="score")
    comparison = Comparison(
        track="t", llm="a", slm="b", n=100, digest="d", primary="p", llm_metrics={"p": 0.9}, slm_metrics={"p": 0.9},
        gaps={}, interval=interval, slm_only_right=2, llm_only_right=2, level=0.05,
    )  # fmt: skip
    undecided = Decision(action="inconclusive", rule="paired", delta=0.02, because=("x",), advice="add rows")
    said = counted(undecided, Turn(number=4, level=0.0019), comparison, planned=None)
    assert said.candidate == 4 and said.because[1].startswith("fourth candidate on these rows: tested at 0.19 %")
    assert "100 rows are too few even for two models that never differ; evaluate " in (said.advice or "")
    swap = replace(undecided, action="swap")
    assert counted(swap, Turn(number=1, level=0.03), comparison, planned=None).action == "swap"
    used_up = counted(swap, Turn(number=3, level=0.0), comparison, planned=2)
    assert used_up.action == "inconclusive" and "nothing is left" in used_up.because[1]
    assert "fresh rows, none of these 100 among them" in (used_up.advice or "")
    assert "add rows" not in used_up.sentences, "two pieces of advice that contradict each other"


def test_a_reservation_becomes_the_test_that_was_reserved_and_no_other() -> None:
    """The answers are not known when it is made; once they are, the same name with other answers is another candidate."""
    record: list[CandidateTest] = []
    made(replace(FIRST, answers=("",) * 100), record)
    assert made(FIRST, record).number == 1
    assert turn_of(replace(FIRST, answers=("trained anew",) * 100), record, planned=None).number == 2


@pytest.mark.parametrize("name", ["a", "b"])
def test_rows_that_join_two_sets_are_charged_for_both(name: str) -> None:
    """Whether two models were tried on one set each, or one model on both."""
    fresh = tuple(f"{i:08x}" for i in range(100, 200))
    record: list[CandidateTest] = []
    made(FIRST, record, planned=2)
    made(replace(other(name), rows=fresh), record, planned=2)
    assert [test.number for test in record] == [1, 1]
    both = replace(other("c"), rows=(*ROWS, *fresh), answers=("c",) * 200)
    assert turn_of(both, record, planned=None).level == 0


def test_candidates_that_were_seen_at_once_share_equally_and_no_more_than_is_left() -> None:
    record: list[CandidateTest] = []
    made(other("z"), record)
    turns = turns_of([FIRST, other("b"), other("z"), other("c")], record, planned=None)
    assert [turn.number for turn in turns] == [2, 3, 1, 4] and turns[2].again
    assert len({turn.level for turn in turns if not turn.again}) == 1
    assert record[0].level + math.fsum(turn.level for turn in turns if not turn.again) == pytest.approx(
        0.05 * 6 / math.pi**2 * (1 + 1 / 4 + 1 / 9 + 1 / 16)
    )
    assert [turn.level for turn in turns_of([FIRST, other("b")], [], planned=1)] == [0.025, 0.025]


FIGURES = CandidateFigures(
    llm="azure:big", primary="exact_match", n=100, llm_metric=0.6, slm_metric=0.5,
    interval=Interval(estimate=-0.1, lower=-0.2, upper=0.0),
)  # fmt: skip


def scores(values: list[float | None], *, primary: str = "exact_match", name: str = "row-{}") -> SlmScores:
    rows = tuple(
        ScoredRow(prompt_hash=f"{i:08x}" + "f" * 24, id=name.format(i), score=value) for i, value in enumerate(values)
    )
    return SlmScores(primary=primary, rows=rows)


def test_a_candidate_is_held_row_by_row_against_the_last_one_whose_scores_were_kept() -> None:
    record: list[CandidateTest] = []
    oldest = made(other("a"), record)
    record.append(replace(oldest, figures=FIGURES, scores=(1.0,) * 100, action="fine_tune"))
    before = made(other("b"), record)
    then = tuple([None, 1.0, 0.0, 1.0, 0.0, 0.5] + [1.0] * 94)
    record.append(replace(before, figures=FIGURES, scores=then))
    made(other("c"), record)  # noted beside another one
    turn = turn_of(other("d"), record, planned=None)
    found = earlier_than(turn, other("d"), record, scores([1.0, 0.0, 1.0, 1.0, None, 0.25, *[1.0] * 94]))
    assert [(one.number, one.action, one.figures) for one in found] == [
        (1, "fine_tune", FIGURES), (2, "inconclusive", FIGURES), (3, "inconclusive", None)
    ]  # fmt: skip
    assert found[0].changes is None and found[2].changes is None
    changes = found[1].changes
    assert changes is not None and (changes.rows, changes.lower, changes.higher) == (98, 2, 1)
    assert (changes.lower_ids, changes.higher_ids) == (("row-1", "row-5"), ("row-2",))


def test_rows_that_were_scored_by_another_metric_or_cannot_be_told_apart_are_not_held_against_each_other() -> None:
    record: list[CandidateTest] = []
    before = made(other("a"), record)
    record.append(replace(before, figures=FIGURES, scores=(0.0,) * 100))
    turn, now = turn_of(other("b"), record, planned=None), scores([1.0] * 100)
    (one,) = earlier_than(turn, other("b"), record, replace(now, primary="field_f1"))
    assert one.figures == FIGURES and one.changes is None
    (one,) = earlier_than(turn, other("b"), record, replace(now, rows=(*now.rows, now.rows[0])))  # asked twice
    assert one.changes is not None and one.changes.rows == 99
    (one,) = earlier_than(turn, other("b"), record, scores([None] * 100))
    assert one.changes is None


def test_a_candidate_by_another_metric_in_between_does_not_hide_the_rows_that_changed() -> None:
    record: list[CandidateTest] = []
    for name, primary in (("a", "exact_match"), ("b", "field_f1")):
        before = made(other(name), record)
        record.append(replace(before, figures=replace(FIGURES, primary=primary), scores=(0.0,) * 100))
    turn = turn_of(other("c"), record, planned=None)
    first, second = earlier_than(turn, other("c"), record, scores([1.0] * 100))
    assert second.figures is not None and second.figures.primary == "field_f1" and second.changes is None
    assert first.changes is not None and first.changes.higher == 100


@pytest.mark.parametrize(("name", "listed"), [("row-{}", 50), ("é" * 999 + "{}", 4), ("x" * 10_000 + "{}", 0)])
def test_of_rows_that_changed_all_are_counted_and_few_are_named(name: str, listed: int) -> None:
    record: list[CandidateTest] = []
    before = made(other("a"), record)
    record.append(replace(before, figures=FIGURES, scores=(0.0,) * 100))
    turn = turn_of(other("b"), record, planned=None)
    (one,) = earlier_than(turn, other("b"), record, scores([1.0] * 100, name=name))
    assert one.changes is not None and one.changes.higher == 100 and len(one.changes.higher_ids) == listed
