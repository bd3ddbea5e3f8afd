"""Bounds for right-or-wrong rows: equations, symmetry, errors by enumeration of every outcome, and power by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slm_ray.verdict.non_inferiority import (
    ONE_SIDED,
    bounds,
    rows_by_width,
    rows_for_power,
    shows,
    swap_power,
    tango_score,
)


def false_swaps(n: int, discordance: float, delta: float) -> float:
    """The exact probability that `n` rows show "not worse by delta" when the SLM is worse by exactly delta."""
    gain, loss = (discordance - delta) / 2, (discordance + delta) / 2
    total = 0.0
    for gained in range(n + 1):
        chance = stats.binom.pmf(gained, n, gain)
        if chance > 1e-9:
            lost = np.arange(n - gained + 1)
            weights = stats.binom.pmf(lost, n - gained, loss / (1 - gain))
            total += float(chance * weights[shows(np.full_like(lost, gained), lost, n, delta)].sum())
    return total


@pytest.mark.parametrize("delta", [0.02, 0.05])
@pytest.mark.parametrize("n", [50, 90, 139, 200])
def test_a_false_swap_is_as_rare_as_promised(n: int, delta: float) -> None:
    for discordance in (delta, delta * 1.1, delta * 1.7, 0.125, 0.3, 0.6):
        assert false_swaps(n, discordance, delta) <= 0.053, discordance


def test_plain_tango_would_not_keep_the_promise() -> None:
    lost = np.arange(140)
    chance = stats.binom.pmf(lost, 139, 0.02)
    alone = tango_score(np.zeros(140), lost, 139, -0.02) > stats.norm.ppf(1 - ONE_SIDED)
    assert chance[alone].sum() > 0.06
    assert chance[shows(np.zeros(140), lost, 139, 0.02)].sum() <= 0.05


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_bounds_are_ordered_symmetric_and_agree_with_shows(gained: int, lost: int, more: int) -> None:
    n = gained + lost + more
    lower, upper = bounds(gained, lost, n)
    assert -1 <= lower <= (gained - lost) / n <= upper <= 1
    assert bounds(lost, gained, n) == pytest.approx((-upper, -lower))
    for delta in (0.01, 0.02, 0.05, 0.3):
        if abs(lower + delta) > 1e-9:
            assert bool(shows(gained, lost, n, delta)) == (lower > -delta)


def test_many_discordant_rows_give_tango_s_own_bounds() -> None:
    lower, upper = bounds(30, 12, 200)
    z = stats.norm.ppf(0.95)
    assert float(tango_score(30, 12, 200, lower)) == pytest.approx(z)
    assert float(tango_score(30, 12, 200, upper)) == pytest.approx(-z)


def test_coverage_of_the_two_sided_95_percent_interval() -> None:
    chance = np.random.default_rng(5)
    inside = 0
    for gained, lost, _ in chance.multinomial(300, [0.12, 0.08, 0.8], size=1500):
        lower, upper = bounds(int(gained), int(lost), 300, one_sided=0.025)
        inside += lower <= 0.04 <= upper
    assert 0.935 <= inside / 1500 <= 0.965


@pytest.mark.parametrize(("discordance", "delta"), [(0.1, 0.05), (0.05, 0.02), (0.3, 0.05), (0.3, 0.03)])
def test_the_advised_rows_have_the_promised_power(discordance: float, delta: float) -> None:
    rows = rows_for_power(discordance, delta)
    assert rows is not None
    assert rows_for_power(discordance, delta, power=0.9) > rows  # type: ignore[operator]
    drawn = np.random.default_rng(11).multinomial(rows, [discordance / 2, discordance / 2, 1 - discordance], size=20000)
    assert shows(drawn[:, 0], drawn[:, 1], rows, delta).mean() == pytest.approx(0.8, abs=0.03)
    assert swap_power(rows, discordance, delta) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("discordance", "delta"), [(0.06, 0.05), (0.1, 0.05), (0.1, 0.08), (0.05, 0.02), (0.01, 0.02)])
def test_no_number_above_the_advice_has_less_power(discordance: float, delta: float) -> None:
    """Whole counts make power a saw: at discordance 0.1 and delta 0.05 it reaches 80 % at 263 rows and not at 267."""
    rows = rows_for_power(discordance, delta)
    assert rows is not None
    larger = [rows + 1, *range(rows, rows * 7 // 4, max(1, rows // 100))]
    assert min(swap_power(n, discordance, delta) for n in larger) >= 0.8


def test_rows_by_width_are_those_of_the_normal_bounds() -> None:
    """Bounds of 400 rows 0.1 apart: half the width is the margin of 0.05, and power takes ((1.645 + 0.842) / 1.645)^2 as many."""
    z, power = 1.6448536, 0.8416212
    assert rows_by_width(0.1, 400, 0.05) == math.ceil(400 * ((z + power) / z) ** 2)
    assert rows_by_width(0.1, 400, 0.0125) == pytest.approx(16 * rows_by_width(0.1, 400, 0.05), abs=16)


def test_no_advice_where_none_can_be_paid() -> None:
    assert rows_for_power(0.3, 1e-5) is None


def test_fresh_rows_round_after_round_err_more_than_once() -> None:
    """Why the advice of fresh rows is for one more round: on the boundary, 375 rows and then the advised number each time."""
    chance, delta = np.random.default_rng(1), 0.05
    swap, open_ = np.zeros(4000, dtype=bool), np.ones(4000, dtype=bool)
    shares = []
    for n in (375, 501, 501):
        gained, lost, _ = chance.multinomial(n, [0.075, 0.125, 0.8], size=4000).T
        swap |= open_ & shows(gained, lost, n, delta)
        open_ &= ~swap & ~shows(lost, gained, n, -delta)
        shares.append(swap.mean())
    assert shares == pytest.approx([0.049, 0.095, 0.135], abs=0.015)
    assert rows_for_power(0.2, delta) == 501
