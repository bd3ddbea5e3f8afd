"""The sequential rule decides what is clear, keeps its decision, and does not care when it is looked at."""

from collections.abc import Iterable
from typing import Any

import pytest

from slm_ray.verdict.sequential import PairedRow, SequentialTest


def rows(
    differences: Iterable[float | None],
    *,
    group: str | None = None,
    reached: bool = True,
    answered: bool = True,
    **guardrails: float,
) -> list[PairedRow]:
    return [
        PairedRow(
            group=group, differences={"exact": value, **guardrails}, reached=reached, answered=reached and answered
        )
        for value in differences
    ]


def played(
    differences: Iterable[float | None], *, delta: float = 0.05, level: float = 0.05, **settings: Any
) -> SequentialTest:
    test = SequentialTest(primary="exact", delta=delta, level=level, **settings)
    for value in differences:
        test.add(rows([value]))
    return test


def test_clear_differences_are_decided_within_a_few_rows_and_stay_decided() -> None:
    worse, better = played([-1] * 12 + [1] * 60), played([1] * 12 + [-1] * 60)
    assert worse.action == "fine_tune" and better.action == "swap"
    assert 0 < (worse.result.decided_at or 0) <= 12 and 0 < (better.result.decided_at or 0) <= 12
    assert worse.result.rows == 72


def test_equal_answers_are_a_swap_and_the_confidence_sequence_clears_the_margin_at_that_row() -> None:
    test = played([0.0] * 200)
    at = test.result.decided_at or 0
    assert test.action == "swap"
    assert played([0.0] * (at - 1)).result.interval.lower <= -0.05 < played([0.0] * at).result.interval.lower
    assert test.result.interval.lower < 0 < test.result.interval.upper
    assert test.result.e_not_worse > 20 and test.result.e_worse < 1


def test_a_row_that_nobody_scored_bets_nothing() -> None:
    plain, padded = played([1, 0, -1, 1]).result, played([None, 1, None, 0, -1, None, 1, None]).result
    assert padded.e_not_worse == plain.e_not_worse and padded.interval == plain.interval
    assert (padded.rows, plain.rows) == (8, 4)
    assert played([None]).result.interval.estimate == 0 and played([None]).result.path == ()


def test_a_swap_needs_the_guardrails_and_the_rows_without_failures_too() -> None:
    def swap_at(**row: Any) -> str | None:
        test = SequentialTest(primary="exact", delta=0.05, level=0.05, guardrails=["args"])
        for _ in range(300):
            test.add(rows([1.0], **row))
        return test.action

    assert swap_at(args=0.0) == "swap"
    assert swap_at(args=-0.1) is None
    assert swap_at(args=0.0, reached=False) is None
    assert swap_at(args=0.0, answered=False) is None


def test_an_outage_of_the_slm_is_no_fine_tune() -> None:
    test = SequentialTest(primary="exact", delta=0.05, level=0.05)
    for _ in range(100):
        test.add(rows([-1.0], reached=False))
    assert test.action is None
    for _ in range(100):
        test.add(rows([-1.0], answered=False))  # refused and cut answers are wrong answers
    assert test.action == "fine_tune"


def test_the_path_is_thin_and_ends_now() -> None:
    result = played([0, 1, -1] * 300).result
    assert len(result.path) <= 200
    last = result.path[-1]
    assert (last.rows, last.estimate, last.lower) == (900, result.interval.estimate, result.interval.lower)
    assert [one.lower for one in result.path] == sorted(one.lower for one in result.path)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (rows([1.5]), "not 1.5"),
        (rows([float("nan")]), "not nan"),
        (rows([1, 1]), "rows of one group at a time"),
        (rows([1, 1, 1], group="a"), "more than largest_group=2"),
        (rows([1], group="seen"), "bet on before"),
    ],
)
def test_what_would_break_the_bets_is_refused_and_changes_nothing(bad: list[PairedRow], words: str) -> None:
    test = SequentialTest(primary="exact", delta=0.05, level=0.05, largest_group=2)
    test.add(rows([1, 0], group="seen"))
    before = test.result
    with pytest.raises(ValueError, match=words):
        test.add(bad)
    assert test.result == before


@pytest.mark.parametrize("settings", [{"delta": 1.0}, {"delta": -0.1}, {"level": 0.0}, {"largest_group": 0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sequential rule"):
        played([], **settings)
