"""The sequential rule decides what is clear, keeps its decision, and does not care when it is looked at."""

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from plain_records import build

from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ComparisonError
from slm_ray.records import Report, RowResult
from slm_ray.types import Comparison, Completion, Example, Interval, Slice
from slm_ray.verdict.compare import compare
from slm_ray.verdict.decide import decide
from slm_ray.verdict.sequential import PairedRow, SequentialTest, rounds_of, rows_at_this_pace
from slm_ray.verdict.sequential_runs import Play
from slm_ray.verdict.sequential_runs import played as played_at_once


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


# An implementation as plain as can be, without logs, arrays or increments: the definition, for one row a group.
def by_definition(differences: list[float], mean: float, side: int, delta: float) -> float:
    experts = []
    for expert, weight in enumerate((0.6, 0.1, 0.1, 0.06, 0.06, 0.08)):
        capital = weight
        for at, value in enumerate(differences):
            spread = (1 + sum(past**2 for past in differences[:at])) / (2 + at)
            target = (1, 3, 9, 0, 0, 0)[expert] * delta
            if target:
                bet = (-spread + math.sqrt(spread**2 + 4 * target**2)) / (2 * target)
            else:
                bet = (0, 0, 0, 0.5, 0.95, math.sqrt(2 * math.log(20) / (spread * (at + 1) * math.log(at + 2))))[expert]
            capital *= 1 + min(bet, 0.95) * side * (value - mean) / (1 + side * mean)
        experts.append(capital)
    return sum(experts)


GRADED = [0.5, -0.25, 0.0, 1.0, -1.0, 0.125, 0.0, 0.75, 0.0, -0.5, 0.25, 1.0, 1.0, 0.5, 0.0, 1.0, 0.75, 0.5, 1.0, 0.25]


@pytest.mark.parametrize("differences", [GRADED, [1.0, 0, 0, -1, 0, 0, 1, 1, 0, 0, 1, 0], [-1.0] * 9 + [0.0]])
@pytest.mark.parametrize("delta", [0.02, 0.1])
def test_the_capital_is_that_of_the_definition(differences: list[float], delta: float) -> None:
    for rows in (1, 2, len(differences)):
        result = played(differences[:rows], delta=delta).result
        assert result.e_not_worse == pytest.approx(by_definition(differences[:rows], -delta, 1, delta), rel=1e-9)
        assert result.e_worse == pytest.approx(by_definition(differences[:rows], -delta, -1, delta), rel=1e-9)


@pytest.mark.parametrize("differences", [GRADED * 2, [0.0] * 60, [1.0, 0, 0, -1, 0] * 20])
def test_the_bounds_are_the_means_that_the_definition_never_rejected(differences: list[float]) -> None:
    """Between the last mean that the bets reject and the first that they do not, to a quarter of a point, on the safe side."""
    interval = played(differences).result.interval

    def rejected(mean: float, side: int) -> bool:
        looks = range(1, len(differences) + 1)
        return any(by_definition(differences[:look], mean, side, 0.05) >= 20 for look in looks)

    assert rejected(interval.lower - 1e-9, 1) and not rejected(interval.lower + 0.0026, 1)
    assert rejected(interval.upper + 1e-9, -1) and not rejected(interval.upper - 0.0026, -1)


# confseq 0.0.11 on GRADED as shares ((1 + difference) / 2) with these six bets: betting.diversified_betting_mart against
# -delta (theta 1 and 0, trunc_scale 1), and betting.cs_from_martingale on 800 means, alpha 0.05, running intersection, which
# puts each bound outwards by one mean. By delta and row: the capitals against "not worse" and its mirror, lower, upper.
CONFSEQ = {
    (0.02, 4): (1.38047, 0.697119, -0.6375, 0.83),
    (0.02, 10): (0.938105, 0.718408, -0.535, 0.615),
    (0.02, 20): (4.23609, 0.432619, -0.1425, 0.59),
    (0.1, 4): (2.05683, 0.417345, -0.585, 0.795),
    (0.1, 10): (1.2362, 0.392839, -0.475, 0.5725),
    (0.1, 20): (28.2245, 0.0571593, -0.0775, 0.55),
}


@pytest.mark.parametrize(("delta", "count"), CONFSEQ)
def test_capitals_and_bounds_are_those_of_the_authors_library(delta: float, count: int) -> None:
    not_worse, worse, lower, upper = CONFSEQ[delta, count]
    result = played(GRADED[:count], delta=delta).result
    assert (result.e_not_worse, result.e_worse) == pytest.approx((not_worse, worse), rel=1e-5)
    assert 0 <= result.interval.lower - lower <= 0.0025 + 1e-9
    assert 0 <= upper - result.interval.upper <= 0.0025 + 1e-9


VALUES = {"right or wrong": (1.0, 0.0, -1.0), "graded": (0.5, 0.0, -1.0)}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("discordance", "delta"), [(0.1, 0.1), (0.3, 0.02), (1.0, 0.2)])
def test_on_the_boundary_capital_does_not_grow_and_seldom_passes_the_level(
    kind: str, discordance: float, delta: float
) -> None:
    """Every outcome of up to 12 rows, each with its probability: exact, but for rounding."""
    values = np.array(VALUES[kind])
    gain = (discordance - delta) / (1 + values[0])  # so that the mean is exactly -delta
    chances = np.array([gain, 1 - discordance, discordance - gain])
    play, weights, peaks = Play(1, delta=delta), np.ones(1), np.ones((2, 1))
    for _ in range(12):
        paths = np.arange(len(weights)).repeat(3)  # each goes on in three ways
        play.keep(paths)
        now = play.add(np.tile(values, len(weights)))
        weights = np.outer(weights, chances).ravel()
        peaks = np.maximum(peaks[:, paths], now)
        assert weights.sum() == pytest.approx(1)
        assert now @ weights == pytest.approx([1, 1], abs=1e-9)
    for peak in peaks:
        for level in (0.2, 0.05, 0.01):
            assert weights @ (peak >= 1 / level - 1e-9) <= level


@pytest.mark.parametrize("apart", [0.0, 0.3, 0.9])
def test_rounds_of_unlike_parts_do_not_make_the_capital_grow_and_seldom_pass_the_level(apart: float) -> None:
    """Every outcome of six rounds of two rows, the first better than the second by 2 x `apart`, the mean exactly -delta."""
    delta = 0.1
    better, worse = ((1 - delta + side * apart) / 2 for side in (1, -1))
    outcomes = np.array([(one, other) for one in (1.0, -1.0) for other in (1.0, -1.0)])
    chances = np.outer((better, 1 - better), (worse, 1 - worse)).ravel()
    play, weights, peaks = Play(1, delta=delta), np.ones(1), np.ones((2, 1))
    for _ in range(6):
        paths = np.arange(len(weights)).repeat(4)
        play.keep(paths)
        now = play.add(np.tile(outcomes, (len(weights), 1)))
        weights = np.outer(weights, chances).ravel()
        peaks = np.maximum(peaks[:, paths], now)
        assert weights.sum() == pytest.approx(1)
        assert (now @ weights <= 1 + 1e-9).all()
    for peak in peaks:
        for level in (0.2, 0.05, 0.01):
            assert weights @ (peak >= 1 / level - 1e-9) <= level
    alone = Play(2, delta=delta).add(np.array([1.0, -1.0]))[0] @ (better, 1 - better)
    assert alone == pytest.approx(1) if not apart else alone > 1, "after the better part alone nobody may look"


@pytest.mark.parametrize("in_round", [1, 10])
def test_simulated_rounds_are_those_of_the_test(in_round: int) -> None:
    signs = np.random.default_rng(6).choice([-1.0, 0.0, 0.0, 0.0, 1.0, 1.0], size=(4, 60))
    runs = played_at_once(signs, delta=0.05, level=0.2, in_round=in_round)
    for at, values in enumerate(signs):
        test = SequentialTest(primary="exact", delta=0.05, level=0.2)
        for start in range(0, 60, in_round):
            test.add_round([rows([value]) for value in values[start : start + in_round].tolist()])
        assert test.result.e_not_worse == pytest.approx(math.exp(runs.not_worse[at]))
        assert test.result.e_worse == pytest.approx(math.exp(runs.worse[at]))
        first = min((int(one[at]) for one in (runs.swap, runs.fine_tune) if one[at]), default=0)
        assert (test.result.decided_at or 0) == first and first % in_round == 0
        assert (test.result.interval.lower > -0.05) == bool(runs.swap[at])


def test_a_round_is_looked_at_once_and_refused_as_a_whole() -> None:
    def gone_down(*signs: float) -> SequentialTest:
        test = SequentialTest(primary="exact", delta=0.05, level=0.05)
        test.add_round([rows([value]) for value in signs])
        return test

    up_and_down = [1.0] * 12 + [-1.0] * 12
    assert played(up_and_down).action == "swap" and gone_down(*up_and_down).action is None
    assert gone_down(*[1.0] * 40).result.decided_at == 40
    test = gone_down(1.0, 0.0)
    before = test.result
    with pytest.raises(ValueError, match=r"not 1\.5"):
        test.add_round([rows([1.0]), rows([1.5])])
    with pytest.raises(ValueError, match="bet on before"):
        test.add_round([rows([1.0], group="a"), rows([0.0], group="a")])
    assert test.result == before
    test.add_round([rows([1.0], group="a")])
    assert test.result.rows == 3


def test_groups_are_cut_into_the_rounds_that_they_were_asked_in() -> None:
    groups = [[n] for n in range(9)]
    assert rounds_of(groups, ()) == [[[n]] for n in range(9)]
    assert rounds_of(groups, ((3, 2), (1, 3))) == [groups[:3], groups[3:6], groups[6:7], groups[7:8], groups[8:]]
    assert rounds_of(groups[:5], ((3, 2), (1, 3))) == [groups[:3]], "a round that is not whole is not looked at"
    assert rounds_of([], ()) == []


def test_the_pace_points_at_the_row_that_decides_and_is_silent_without_growth() -> None:
    decided = played([0.0] * 200).result.decided_at or 0
    guesses = [rows_at_this_pace(played([0.0] * rows).result) for rows in (decided // 2, 3 * decided // 4)]
    assert all(guess and abs(guess - decided) < 0.35 * decided for guess in guesses), (guesses, decided)
    worse = rows_at_this_pace(played([-1.0, 0.0, 0.0, -1.0, 0.0, 0.0, -1.0]).result)
    assert worse and 7 < worse < 30
    assert rows_at_this_pace(played([0.0, 1.0, -1.0]).result) is None
    assert rows_at_this_pace(played([0.0] * 200).result) is None, "decided"
    held = SequentialTest(primary="exact", delta=0.05, level=0.05, guardrails=("precision",))
    for _ in range(200):
        held.add([PairedRow(group=None, differences={"exact": 0.0, "precision": None}, reached=True, answered=True)])
    assert held.action is None and held.result.e_not_worse > 20
    assert rows_at_this_pace(held.result) is None, "a guardrail holds it up, and no row before this one"


def test_simulated_runs_are_those_of_the_test() -> None:
    chance = np.random.default_rng(4)
    rows = chance.choice([-1, 0, 0, 1], size=(5, 40, 3))
    runs = played_at_once(rows.sum(axis=2), delta=0.05, level=0.3, size=3)
    for at, groups in enumerate(rows):
        test = SequentialTest(primary="exact", delta=0.05, level=0.3, largest_group=3)
        for name, group in enumerate(groups):
            test.add([*rows_of(group, str(name))])
        assert test.result.e_not_worse == pytest.approx(math.exp(runs.not_worse[at]))
        assert test.result.e_worse == pytest.approx(math.exp(runs.worse[at]))
        first = min((int(one[at]) for one in (runs.swap, runs.fine_tune) if one[at]), default=0)
        assert (test.result.decided_at or 0) == 3 * first


def rows_of(group: Iterable[float], name: str) -> list[PairedRow]:
    return rows([float(value) for value in group], group=name)


def test_a_row_that_stands_ten_times_in_its_group_is_no_more_evidence_than_once() -> None:
    alike = SequentialTest(primary="exact", delta=0.05, level=0.05, largest_group=10)
    for at, value in enumerate(GRADED):
        alike.add(rows_of([value] * 10, str(at)))
    once = played(GRADED).result
    assert alike.result.e_not_worse == pytest.approx(once.e_not_worse)
    assert alike.result.interval.lower == pytest.approx(once.interval.lower)


def test_more_right_answers_are_never_less_evidence() -> None:
    chance = random.Random(3)
    for _ in range(20):
        differences = [chance.choice((-1.0, 0.0, 0.0, 1.0)) for _ in range(60)]
        better = [*differences[:-1], min(1.0, differences[-1] + 1)]
        low, high = played(differences).result, played(better).result
        assert high.e_not_worse >= low.e_not_worse and high.e_worse <= low.e_worse
        assert high.interval.lower >= low.interval.lower and high.interval.upper >= low.interval.upper


def test_looking_changes_nothing_and_a_replay_comes_to_the_same() -> None:
    watched = SequentialTest(primary="exact", delta=0.05, level=0.05)
    for value in GRADED:
        watched.add(rows([value]))
        assert watched.result.rows == watched.result.path[-1].rows
    assert watched.result == played(GRADED).result


def test_a_stricter_level_takes_longer() -> None:
    at = [played([1.0] * 30, level=level).result.decided_at or 0 for level in (0.05, 0.01, 0.0003)]
    assert 0 < at[0] < at[1] < at[2]


ROWS = [
    Example(id=f"e{at:02}", prompt=prompt_of(TRACKS["structured"], f"question {at}"), target=f'{{"a": {at}}}')
    for at in range(60)
]


def report(order_seed: int | None = 42, *, right: Iterable[int]) -> tuple[Report, list[RowResult]]:
    """A run whose LLM is right on all 60 rows, and whose SLM on those."""
    texts = {"azure:big": range(60), "served:small": right}
    answers = {
        spec: {
            row.id: Completion(text=row.target if at in which else "{}", served_by="m") for at, row in enumerate(ROWS)
        }
        for spec, which in texts.items()
    }
    found, scored = build(TRACKS["structured"], ROWS, answers)
    return replace(found, order_seed=order_seed), list(scored)


def run(evaluation: tuple[Report, list[RowResult]], **settings: Any) -> Comparison:
    return compare(*evaluation, llm="azure:big", slm="served:small", min_paired=0.95, resamples=199, seed=0, **settings)


def test_a_comparison_replays_the_rows_in_their_order_and_decides_by_it() -> None:
    late = run(report(right=set(range(20))), sequential_delta=0.05)  # the SLM fails from row 21 on
    early = run(report(right=set(range(40, 60))), sequential_delta=0.05)
    assert late.sequential and early.sequential and early.sequential.decided_at and late.sequential.decided_at
    assert early.sequential.decided_at < 20 < late.sequential.decided_at
    decision = decide(early, rule="sequential", delta=0.05)
    assert decision.action == "fine_tune"
    assert f"decided at row {early.sequential.decided_at}" in " ".join(decision.because)
    assert run(report(right=set())).sequential is None


def test_rows_that_were_asked_as_they_stood_in_the_file_are_refused() -> None:
    with pytest.raises(ComparisonError, match="not asked in an order that was drawn"):
        run(report(None, right=set()), sequential_delta=0.05)
    with pytest.raises(ComparisonError, match="not made by the rule sequential"):
        decide(run(report(None, right=set())), rule="sequential", delta=0.05)


def test_two_runs_that_asked_the_same_rows_in_different_orders_are_refused() -> None:
    """Drawn from one seed, but not of the same files, or not both by the same strata."""
    found, rows = report(right=range(60))
    settings: dict[str, Any] = {
        "llm": "azure:big", "slm": "served:small", "min_paired": 0.95, "resamples": 199, "seed": 0, "sequential_delta": 0.05,
    }  # fmt: skip
    fewer = compare(found, rows, found, rows[:40], **settings).sequential
    assert fewer and fewer.rows == 40
    with pytest.raises(
        ComparisonError, match=r"in different orders; .* examples and extend, with one declare\.stratify"
    ):
        compare(found, rows, found, rows[::-1], **settings)


def test_an_undecided_run_may_be_extended() -> None:
    found = run(report(right=set(range(60))), sequential_delta=0.01)
    decision = decide(found, rule="sequential", delta=0.01)
    assert decision.action == "inconclusive" and "extend: FILE" in " ".join(decision.sentences)


def test_a_worse_slice_takes_a_swap_back_and_is_no_fine_tune() -> None:
    found = replace(run(report(right=range(60))), sequential=played([1.0] * 30).result)
    worse = Slice(tag="tool", value="b", n=40, interval=Interval(estimate=-0.4, lower=-0.6, upper=-0.2))
    assert decide(found, rule="sequential", delta=0.05).action == "swap"
    blocked = decide(replace(found, slices=(worse,)), rule="sequential", delta=0.05)
    assert blocked.action == "inconclusive" and "tool is 'b'" in " ".join(blocked.because)
