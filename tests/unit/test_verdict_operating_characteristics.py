"""The simulations themselves: their populations are what they say, and small runs of them keep the promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm_ray.verdict.operating_characteristics.graded import POPULATIONS, graded
from slm_ray.verdict.operating_characteristics.partial_replacement import CASES, Population, partials

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_population_has_the_mean_that_it_is_judged_by(name: str) -> None:
    draw, mean = POPULATIONS[name]
    values = draw(np.random.default_rng(3), 200_000)
    assert values.mean() == pytest.approx(mean, abs=4 * values.std() / np.sqrt(values.size))
    assert np.abs(values).max() <= 1


@pytest.mark.parametrize("name", CASES)
def test_the_true_difference_of_a_mixture_is_that_of_many_rows(name: str) -> None:
    case = CASES[name]
    rows = case.draw(np.random.default_rng(5), 100_000)
    for threshold in (0.0, 0.4, 0.8):
        found = sum(
            row.slm - row.llm for row in rows if row.confidence is not None and row.confidence >= threshold
        ) / len(rows)
        assert case.difference(threshold) == pytest.approx(found, abs=0.008)
    edge = case.possible(0.05)
    assert case.difference(1 - edge) > -0.05 >= case.difference(1 - edge - 0.001)


def test_the_tool_shows_a_line_per_population() -> None:
    settings = ("parts=[graded]", "rows=[50, 1000]", "runs=2000")
    found = subprocess.run(
        [sys.executable, "-m", "tools.operating_characteristics"]
        + [part for setting in settings for part in ("--set", setting)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "140"}, timeout=100, check=True,
    )  # fmt: skip
    assert all(name in found.stdout for name in POPULATIONS)
    assert "lower bound wrong" in found.stdout and "100 per graded and partial one" in found.stdout


def test_graded_bounds_are_wrong_about_as_often_as_promised() -> None:
    """Each one-sided bound in 5 % of 300 runs at most, give or take three standard errors."""
    for name in ("a fifth of rows lose much", "most rows gain a little, few lose all"):
        found = graded(name, 100, runs=300, resamples=199, seed=1)
        assert max(found.lower_wrong, found.upper_wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
        assert found.coverage >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 300)


def test_a_share_that_is_truly_worse_is_accepted_in_few_runs() -> None:
    """In 5 % of runs at most (three standard errors), however many thresholds were tested, and on the very edge as well."""
    found = partials(CASES["something"], (100, 200), 0.05, runs=80, seed=1)
    assert max(found.wrongly_accepted, found.at_the_edge) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)
    assert found.mean_share > 0.45


def test_a_confidence_that_says_nothing_gives_about_nothing() -> None:
    """An SLM that is right on a third fewer rows: at random 0.05 / 0.35 of the traffic is all that could be right."""
    found = partials(Population(llm=0.9, worst=0.55, best=0.55), (100, 200), 0.05, runs=50, seed=2)
    assert found.possible == pytest.approx(0.142)
    assert found.mean_share < 0.08 and found.wrongly_accepted <= 0.03
