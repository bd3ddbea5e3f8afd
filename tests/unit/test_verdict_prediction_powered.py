"""A judge on all rows and people on a few: no bias of the judge moves the verdict, and small samples are not too sure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from slm_ray.verdict import prediction_powered as room
from slm_ray.verdict.prediction_powered import (
    JudgedUnit,
    PredictionPowered,
    labels_for_decision,
    labels_for_width,
    prediction_powered,
)

GRADES = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
Judge = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation asks often: coarser quantiles, a tenth of the time."""
    monkeypatch.setattr(room, "_DRAWS", 2000)


def units(people: np.ndarray, judge: np.ndarray, labels: int) -> list[JudgedUnit]:
    return [
        JudgedUnit(judge=float(said), people=float(seen) if number < labels else None)
        for number, (seen, said) in enumerate(zip(people, judge, strict=True))
    ]


def drawn(chance: np.random.Generator, shares: list[float], judge: Judge, n: int, labels: int) -> list[JudgedUnit]:
    people = chance.choice(GRADES, size=n, p=shares)
    return units(people, judge(chance, people), labels)


def overlooks_half(chance: np.random.Generator, people: np.ndarray) -> np.ndarray:
    """Says the opposite of every other loss."""
    return np.where((people < 0) & (chance.random(people.size) < 0.5), 1.0, people)


def flatters(chance: np.random.Generator, people: np.ndarray) -> np.ndarray:
    return np.clip(people + 0.5 * (chance.random(people.size) < 0.6), -1, 1)


def guesses(chance: np.random.Generator, people: np.ndarray) -> np.ndarray:
    return chance.choice(GRADES, size=people.size)


# ppi-python 0.2.3, ppi_mean_pointestimate(Y, Yhat, Yhat_unlabeled), of the rows that `recipe` makes.
ORACLE = {1: -0.3562304661226874, 2: -0.25696704069931936, 3: -0.3268522076231835}


def recipe(number: int) -> list[JudgedUnit]:
    """200 rows of which 40 are labelled, by plain arithmetic, the judge of every odd recipe too kind."""
    people = np.array([GRADES[(i * i * 7 + 3 * i * number) % 11 % 5] for i in range(200)])
    other = np.array([GRADES[(i * i * 5 + i * number) % 13 % 5] for i in range(200)])
    kind = 0.25 * (number % 2)
    return units(people, np.clip(np.where(np.arange(200) % 10 < 7, people, other) + kind, -1, 1), 40)


@pytest.mark.parametrize("number", ORACLE)
def test_the_estimate_is_that_of_the_authors_library(number: int) -> None:
    assert prediction_powered(recipe(number)).interval.estimate == pytest.approx(ORACLE[number], abs=1e-12)


@pytest.mark.parametrize("judge", [flatters, overlooks_half, guesses])
def test_a_biased_judge_moves_no_estimate(few_draws: None, judge: Judge) -> None:
    shares = [0.2, 0.1, 0.4, 0.1, 0.2]
    chance = np.random.default_rng(3)
    seen = [prediction_powered(drawn(chance, shares, judge, 300, 60)) for _ in range(120)]
    estimates = np.array([one.interval.estimate for one in seen])
    assert abs(estimates.mean()) < 3 * estimates.std() / np.sqrt(len(estimates))
    if judge is not guesses:
        assert np.mean([one.judge_all for one in seen]) > 0.1
        assert np.mean([one.bias for one in seen]) > 0.1


@pytest.mark.parametrize("sign", [1, -1], ids=["lower", "upper"])
@pytest.mark.parametrize(("labels", "losses"), [(30, 0.05), (30, 0.12), (100, 0.05)])
def test_rare_losses_that_the_judge_overlooks_pass_no_more_often_than_stated(
    few_draws: None, labels: int, losses: float, sign: int
) -> None:
    """Normal bounds, and Student's, are wrong here in 17 to 45 % of runs."""
    shares, chance = [losses, 0.0, 1 - losses, 0.0, 0.0], np.random.default_rng(5)
    wrong, runs = 0, 150
    for _ in range(runs):
        people = chance.choice(GRADES, size=300, p=shares)
        found = prediction_powered(units(sign * people, sign * overlooks_half(chance, people), labels)).interval
        wrong += found.lower > -losses if sign == 1 else found.upper < losses
    assert wrong / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_the_judge_helps_as_much_as_it_is_right_and_a_useless_one_costs_nothing() -> None:
    chance = np.random.default_rng(11)
    people = chance.choice(GRADES, size=600, p=[0.3, 0.1, 0.2, 0.1, 0.3])

    def width(judge: np.ndarray) -> float:
        found = prediction_powered(units(people, judge, 100)).interval
        return found.upper - found.lower

    alone = width(np.zeros(600))
    assert width(guesses(chance, people)) < 1.05 * alone
    assert width(-people) < 1.001 * alone
    assert width(np.where(chance.random(600) < 0.9, people, 0.0)) < 0.75 * alone
    good = prediction_powered(units(people, np.where(chance.random(600) < 0.9, people, 0.0), 100))
    assert good.effective_labels > 250 and good.weight > 0.7


def test_right_and_wrong_by_people_alone_is_clopper_and_pearson() -> None:
    for lost in (0, 2, 7):
        found = prediction_powered(units(np.array([-1.0] * lost + [0.0] * (50 - lost)), np.zeros(50), 50)).interval
        assert found.lower == pytest.approx(-stats.beta.ppf(0.95, lost + 1, 50 - lost), abs=0.004)


def test_all_rows_labelled_leaves_the_judge_no_say() -> None:
    people = np.random.default_rng(2).choice(GRADES, size=80)
    found = prediction_powered(units(people, -people, 80))
    assert found.weight == 0 and found.interval.estimate == pytest.approx(people.mean())


def test_rows_of_a_group_count_as_one(few_draws: None) -> None:
    people = np.random.default_rng(4).choice(GRADES, size=300)
    rows = prediction_powered(units(people, np.zeros(300), 60)).interval
    tenfold = [
        JudgedUnit(judge=0.0, people=None if one.people is None else 10 * one.people, rows=10)
        for one in units(people, np.zeros(300), 60)
    ]
    grouped = prediction_powered(tenfold).interval
    assert (grouped.estimate, grouped.lower, grouped.upper) == pytest.approx((rows.estimate, rows.lower, rows.upper))


def test_groups_of_unequal_size_are_covered_and_weigh_by_their_rows(few_draws: None) -> None:
    """Large groups are worse: the mean over rows is below the mean over groups."""
    chance, wrong, runs = np.random.default_rng(8), 0, 200
    truth = (1 * 0.2 + 6 * -0.4) / 7  # half of the groups have one row, half six; each alike within
    for _ in range(runs):
        sizes = np.where(chance.random(200) < 0.5, 1, 6)
        values = np.where(chance.random(200) < np.where(sizes == 1, 0.6, 0.3), 1.0, -1.0)
        marked = [
            JudgedUnit(judge=float(value * size), people=float(value * size) if number < 30 else None, rows=int(size))
            for number, (value, size) in enumerate(zip(values, sizes, strict=True))
        ]
        wrong += prediction_powered(marked).interval.lower > truth
    assert wrong / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def seen_with(labels: int) -> PredictionPowered:
    chance = np.random.default_rng(6)
    people = chance.choice(GRADES, size=1000, p=[0.15, 0.1, 0.5, 0.1, 0.15])
    return prediction_powered(units(people, np.where(chance.random(1000) < 0.7, people, 0.5), labels))


def test_the_labels_that_a_width_needs_are_about_those_that_give_it() -> None:
    needed = labels_for_width(seen_with(60), 0.08)
    assert needed is not None and 100 < needed < 500
    found = seen_with(needed).interval
    assert (found.upper - found.lower) / 2 == pytest.approx(0.08, rel=0.2)
    assert labels_for_width(seen_with(60), 0.01) is None


def test_the_labels_that_a_decision_needs_depend_on_how_far_the_estimate_is_from_the_margin() -> None:
    seen = seen_with(60)
    at = -seen.interval.estimate
    above_near, above_far, below = (labels_for_decision(seen, at + away) for away in (0.08, 0.16, -0.16))
    assert above_near is not None and above_far is not None and below is not None
    assert above_far < above_near and below < above_near
    assert labels_for_decision(seen, -seen.interval.estimate) is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 units are labelled"):
        prediction_powered([JudgedUnit(judge=0.0, people=0.0), JudgedUnit(judge=0.0)])
    with pytest.raises(ValueError, match=r"of 2 rows in \[-1, 1\] do not sum to 3.0"):
        prediction_powered([JudgedUnit(judge=3.0, people=0.0, rows=2), JudgedUnit(judge=0.0, people=0.0)])
