"""Looking again, sharing and grouping, simulated; and the rows that a plan promises. Small runs, three standard errors."""

import numpy as np
import pytest

from slm_ray.verdict.non_inferiority import rows_for_power
from slm_ray.verdict.operating_characteristics.looking import (
    coverage,
    draws,
    families,
    grouped,
    grouped_looks,
    looks,
)
from slm_ray.verdict.operating_characteristics.stratified import differences, ordered, populations
from slm_ray.verdict.sample_size import plan, plan_text, rows_for_one_look
from slm_ray.verdict.sequential_runs import played, rows_to_decision

RUNS = 400
MOST = 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
SIGNS = draws(RUNS, 400, 0.3, -0.1, 1)
BETS = played(SIGNS, delta=0.1)


def test_drawn_rows_have_the_difference_and_the_discordance_that_were_asked_for() -> None:
    signs = draws(2000, 100, 0.3, -0.1, 5).astype(float)
    assert signs.mean() == pytest.approx(-0.1, abs=0.006) and np.abs(signs).mean() == pytest.approx(0.3, abs=0.006)
    rows = grouped(200, 50, 4, 1.0, 0.3, 0.1, 5)
    assert (rows == rows[:, :, :1]).all() and rows.mean() == pytest.approx(-0.1, abs=0.02)


def test_looking_after_every_row_keeps_the_sequential_rule_within_its_error_and_not_the_paired_one() -> None:
    wrong = looks(SIGNS, BETS, 0.3, 0.1)
    sequential = [one for one in wrong if one.rule == "sequential"]
    assert sequential and all(max(one.false_swap, one.false_fine_tune) <= MOST for one in sequential)
    watched = next(one for one in wrong if "every 10 rows" in one.how)
    assert watched.false_swap > 0.12 and watched.false_fine_tune > 0.12


def test_rows_in_groups_are_held_by_bounds_over_groups_and_by_a_bet_on_each() -> None:
    row_wise, over_groups, bets = grouped_looks(grouped(RUNS, 40, 10, 1.0, 0.3, 0.1, 2), 0.1, "all alike")
    assert row_wise.false_swap > 0.15
    assert max(over_groups.false_swap, bets.false_swap, bets.false_fine_tune) <= MOST


def test_a_shared_error_holds_for_ten_candidates() -> None:
    first, last = families(SIGNS, BETS, 0.1, (1, 10))
    assert last.unshared > 0.25
    assert max(last.paired, last.sequential) <= MOST and first.sequential <= last.sequential
    assert max(last.paired_fine_tune, last.sequential_fine_tune) <= MOST and first.paired_fine_tune > 0


@pytest.mark.parametrize("difference", [-0.1, 0.0, 0.2])
def test_the_confidence_sequence_holds_the_truth_at_every_row(difference: float) -> None:
    held = coverage(draws(RUNS, 300, 0.3, difference, 3), difference, 0.1)
    assert min(held.lower, held.upper, held.both) >= 1 - MOST


@pytest.mark.parametrize("name", populations(0.1))
def test_a_stratified_order_keeps_the_sequential_rule_within_its_error(name: str) -> None:
    strata = populations(0.1)[name]
    for shares in ("plain", "given", "chance"):
        signs = differences(strata, shares, 50, 200, 10, np.random.default_rng(1)).astype(float)
        assert signs.mean() == pytest.approx(-0.1, abs=0.04)
        rounds = signs.reshape(50, 20, 10).mean(axis=2)
        if shares == "given" and name == "one right throughout, one wrong":
            assert rounds.std() < 0.15, "each round has the shares of the file"
    plain, given, chance, by_stratum = ordered(name, 0.1, runs=RUNS, rows=200, in_round=10, seed=1)
    for one in (plain, given, chance):
        assert max(one.false_swap, one.false_fine_tune) <= MOST, one
    assert given.false_swap <= plain.false_swap + 0.02
    assert (by_stratum.false_swap > 0.5) == (name != "three alike"), "an order that tells what comes next"


def test_a_plan_has_the_rows_of_one_look_and_of_the_stop_for_each_difference() -> None:
    equal, better, worse, edge = plan((0.0, 0.3, -0.4, -0.1), 0.2, 0.1)
    assert equal.paired_80 == rows_for_power(0.2, 0.1) and equal.paired_90 and equal.median and equal.mean
    assert equal.paired_80 < equal.paired_90 and equal.median < equal.mean < (equal.ninety or 0)
    assert (equal.action, better.action, worse.action) == ("swap", "swap", "fine_tune")
    assert better.discordance == 0.3 and (better.ninety or 99) < equal.median
    assert edge.paired_80 is None and edge.median is None
    text = plan_text((equal, better, worse, edge), 0.1)
    assert "a true difference of exactly -10.0% is never decided" in text
    assert "never decided" not in plan_text((equal, better, worse), 0.1)
    assert f"{equal.mean:,} rows on average" in text and text.count("-10.0%") == 2


def test_the_rows_of_one_look_have_their_power() -> None:
    rows = rows_for_one_look(0.3, -0.3, 0.1, power=0.8, level=0.05)
    assert rows and 20 <= rows <= 60
    fewer = rows_for_one_look(0.3, -0.3, 0.1, power=0.5, level=0.05)
    assert fewer and fewer < rows


def test_stopping_rows_are_the_same_with_the_same_seed_and_capped() -> None:
    stops = [rows_to_decision(0.2, 0.0, 0.05, runs=50, most=300, seed=seed) for seed in (1, 1, 2)]
    assert (stops[0] == stops[1]).all() and (stops[0] != stops[2]).any()
    assert stops[0].max() == 301 and stops[0].min() < 300
