"""The bounds: determinism, honesty where a bootstrap has nothing to say, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.verdict.stats import effective_rows, paired_interval


def test_no_departure_is_bounded_by_what_n_rows_can_show() -> None:
    for n in (1, 10, 50, 300):
        unseen = 1 - 0.05 ** (1 / n)
        interval = paired_interval([0.0] * n, resamples=99, seed=0)
        assert interval.estimate == 0.0
        assert [interval.lower, interval.upper] == pytest.approx([-unseen, unseen])
    assert paired_interval([0.0] * 300, resamples=99, seed=0).lower == pytest.approx(-3 / 300, rel=0.01)
    always = paired_interval([-1.0] * 50, resamples=99, seed=0)
    assert [always.lower, always.upper] == pytest.approx([-1.0, -1 + 2 * (1 - 0.05 ** (1 / 50))])


def test_one_lucky_row_does_not_remove_the_risk() -> None:
    one = paired_interval([1.0] + [0.0] * 49, resamples=999, seed=0)
    assert one.lower < 0 < one.estimate == 0.02 < one.upper
    mirrored = paired_interval([-1.0] + [0.0] * 49, resamples=999, seed=0)
    assert mirrored.lower < -0.02 and mirrored.upper > 0


def test_close_to_the_normal_bounds_when_rows_are_many() -> None:
    values = np.random.default_rng(3).uniform(-0.5, 0.7, size=800)
    interval = paired_interval(values.tolist(), resamples=4999, seed=1)
    half = 1.645 * values.std(ddof=1) / math.sqrt(values.size)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.lower == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.upper == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_studentised_bounds_follow_the_skew() -> None:
    """Few rows lose much: the standard error is least where the mean is highest, so the lower bound is the farther one."""
    values = (-np.random.default_rng(2).beta(0.3, 3, size=60)).tolist()
    interval = paired_interval(values, resamples=4999, seed=0)
    assert interval.method == "studentised bootstrap"
    assert interval.estimate - interval.lower > 1.2 * (interval.upper - interval.estimate)
    mirrored = paired_interval([-value for value in values], resamples=4999, seed=0)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-interval.upper, -interval.lower), abs=1e-3)


@pytest.mark.parametrize("values", [[0.5] * 9 + [0.0] * 60, [0.1, -0.3, 0.2, 0.7] * 4])
def test_few_rows_or_few_departures_are_not_studentised(values: list[float]) -> None:
    assert paired_interval(values, resamples=499, seed=0).method == "worst-case bootstrap"


def test_resamples_of_equal_values_widen_and_never_break() -> None:
    """Ten rows in 2,000 depart: some resamples may hold none, and the bounds are finite whatever they say."""
    interval = paired_interval([-0.5] * 10 + [0.0] * 1990, resamples=999, seed=0)
    assert interval.method == "studentised bootstrap"
    assert -1 <= interval.lower < -10 * 0.5 / 2000 < interval.upper < 0


def test_seeded() -> None:
    values = [0.5, -0.5, 1.0, 0.0, 0.25] * 12
    first = paired_interval(values, resamples=499, seed=7)
    assert first == paired_interval(values, resamples=499, seed=7)
    assert first != paired_interval(values, resamples=499, seed=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(-1, 1), min_size=1, max_size=60))
def test_bounds_are_finite_ordered_and_in_range(values: list[float]) -> None:
    interval = paired_interval(values, resamples=99, seed=0)
    assert -1 <= interval.lower <= interval.estimate <= interval.upper <= 1


@pytest.mark.parametrize("values", [[], [1.5], [math.nan]])
def test_refuses_what_is_no_difference(values: list[float]) -> None:
    with pytest.raises(ValueError, match="differences"):
        paired_interval(values, resamples=99, seed=0)


@pytest.mark.parametrize(("n", "better", "worse"), [(50, 0.0, 0.02), (50, 0.05, 0.05), (60, 0.1, 0.3), (100, 0.0, 0.1)])
def test_coverage(n: int, better: float, worse: float) -> None:
    """Each one-sided bound holds in about 95 % of 300 draws (0.95 - 3.3 standard errors is 0.908)."""
    rng = np.random.default_rng(11)
    below = above = 0
    for seed in range(300):
        values = rng.choice([1.0, -1.0, 0.0], p=[better, worse, 1 - better - worse], size=n).tolist()
        interval = paired_interval(values, resamples=299, seed=seed)
        # Bounds fall on the lattice of k/n, where the true mean lies too: equal up to rounding is covered.
        below += interval.lower <= better - worse + 1e-9
        above += interval.upper >= better - worse - 1e-9
    assert min(below, above) / 300 >= 0.908


@pytest.mark.parametrize("n", [11, 15, 19, 29, 35])
def test_few_skewed_graded_rows_do_not_pretend_to_know(n: int) -> None:
    """Few rows lose all, and most samples hold none of them: percentiles were wrong in up to 31 % of runs.

    400 draws: a bound that is wrong in 5 % of runs passes 8.6 % (3.3 standard errors) once in two thousand tests.
    """
    rng = np.random.default_rng(n)
    truth, below, above = 0.9 * 0.1 - 0.1 * 5 / 6, 0, 0
    for seed in range(400):
        values = np.where(rng.random(n) < 0.9, rng.beta(1, 9, n), -rng.beta(5, 1, n)).tolist()
        interval = paired_interval(values, resamples=299, seed=seed)
        below += interval.lower > truth
        above += interval.upper < truth
    assert max(below, above) / 400 <= 0.086


def test_the_worst_case_agrees_with_the_bound_on_what_was_not_seen() -> None:
    """Rows that all but agree are bounded like rows that agree."""
    alike = paired_interval([0.5] * 20, resamples=9999, seed=0)
    nearly = paired_interval([0.5] * 19 + [0.5 + 1e-9], resamples=9999, seed=0)
    assert (alike.method, nearly.method) == ("no departure", "worst-case bootstrap")
    assert (nearly.lower, nearly.upper) == pytest.approx((alike.lower, alike.upper), abs=0.01)


def test_groups_of_one_are_rows_in_every_method() -> None:
    rng = np.random.default_rng(4)
    cases = [
        [0.0] * 50, [1.0, -1.0, 0.0, 0.0] * 20, rng.uniform(-0.5, 0.5, 80).tolist(), rng.uniform(-0.5, 0.5, 20).tolist(),
    ]  # fmt: skip
    for values in cases:
        alone = paired_interval(values, resamples=499, seed=0)
        names: list[str | None] = [None if at % 2 else f"g{at}" for at in range(len(values))]
        assert paired_interval(values, resamples=499, seed=0, groups=names) == alone


@pytest.mark.parametrize(
    ("values", "methods"),
    [
        ([0.0] * 60, "no departure"),
        ([1.0, -1.0, 0.0, 0.0, 0.0] * 12, "score"),
        (np.random.default_rng(6).uniform(-0.6, 0.4, 60).tolist(), "studentised bootstrap"),
        ([0.5] * 5 + [0.0] * 55, "worst-case bootstrap"),
    ],
)
def test_equal_groups_that_are_alike_throughout_say_what_one_row_of_each_says(
    values: list[float], methods: str
) -> None:
    alone = paired_interval(values, resamples=2999, seed=0)
    copies, names = [v for v in values for _ in range(6)], [f"g{at}" for at in range(60) for _ in range(6)]
    grouped = paired_interval(copies, resamples=2999, seed=0, groups=names)
    assert (alone.method, grouped.method) == (methods, f"{methods} over groups")
    assert grouped.estimate == pytest.approx(alone.estimate)
    # Student's quantile and the jackknife widen the score bounds by about a twentieth.
    assert grouped.upper - grouped.lower == pytest.approx(alone.upper - alone.lower, rel=0.08)
    assert effective_rows(copies, names) == pytest.approx(60, rel=0.02)


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("unequal", [False, True])
def test_coverage_over_groups(alike: float, unequal: bool) -> None:
    """40 groups of rows that are alike in a share of pairs: each bound is wrong in 5 % of 400 draws at most (+3.3 s.e.)."""
    rng = np.random.default_rng((17, round(10 * alike), unequal))
    truth, below, above = -0.05, 0, 0
    for seed in range(400):
        sizes = np.minimum(rng.geometric(0.25, 40), 40) if unequal else np.full(40, 4)
        of = np.repeat(np.arange(40), sizes)
        common, own = (rng.choice([1.0, -1.0, 0.0], p=[0.125, 0.175, 0.7], size=n) for n in (40, of.size))
        values = np.where(rng.random(of.size) < math.sqrt(alike), common[of], own).tolist()
        interval = paired_interval(values, resamples=99, seed=seed, groups=[str(at) for at in of])
        below += interval.lower > truth + 1e-9
        above += interval.upper < truth - 1e-9
    assert max(below, above) / 400 <= 0.086


def test_one_group_alone_bounds_nothing_and_breaks_nothing() -> None:
    interval = paired_interval([1.0, 0.0, -1.0, 1.0] * 5, resamples=99, seed=0, groups=["all"] * 20)
    assert interval.lower < -0.9 and interval.upper > 0.9


@pytest.mark.parametrize("n", [20, 200])
def test_an_error_rarer_than_one_in_the_resamples_is_not_taken_from_their_extremes(n: int) -> None:
    """As that of a hundredth candidate is: the lowest of 999 resampled means is wrong once in a thousand, not in a million."""
    values = [0.5, 1.0, 0.25, 0.0] * (n // 4)
    wide = [paired_interval(values, resamples=999, seed=1, one_sided=level) for level in (1e-4, 1e-6, 1e-8)]
    halves = [math.sqrt(2 * math.log(1 / level) / n) for level in (1e-4, 1e-6, 1e-8)]
    for found, half in zip(wide, halves, strict=True):
        assert found.lower <= max(-1.0, found.estimate - half) and found.upper >= min(1.0, found.estimate + half)
    assert wide[0].lower > wide[1].lower > wide[2].lower or wide[2].lower == -1.0
    assert paired_interval(values, resamples=999, seed=1, one_sided=0.01).lower > wide[0].lower
