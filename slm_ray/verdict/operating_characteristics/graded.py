"""The bounds on graded metrics, simulated: how often each is wrong where row differences are skewed or mostly zero.

Differences are drawn from named populations whose mean is known, and judged by the code that judges a real comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.stats import paired_interval

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """Shares of runs in which a bound was wrong, and in which the two-sided 95 % interval held the true mean."""

    population: str
    n: int
    lower_wrong: float
    upper_wrong: float
    coverage: float


def _some(share: float, sign: float, a: float, b: float) -> tuple[Draw, float]:
    """A share of rows differs by `sign` times a beta variable, the others by nothing."""
    return (
        lambda chance, n: np.where(chance.random(n) < share, sign * chance.beta(a, b, n), 0.0)
    ), sign * share * a / (a + b)


POPULATIONS: dict[str, tuple[Draw, float]] = {
    "a fifth of rows lose much": _some(0.2, -1.0, 2, 2),
    "a tenth of rows lose a little": _some(0.1, -1.0, 1, 3),
    "a fifth of rows gain much": _some(0.2, 1.0, 2, 2),
    "all rows lose, most next to nothing": (lambda chance, n: -chance.beta(0.3, 3, n), -0.3 / 3.3),
    "most rows gain a little, few lose all": (
        lambda chance, n: np.where(chance.random(n) < 0.9, chance.beta(1, 9, n), -chance.beta(5, 1, n)),
        0.9 * 0.1 - 0.1 * 5 / 6,
    ),
    "both ways alike": (lambda chance, n: chance.beta(2, 3, n) - chance.beta(2, 3, n), 0.0),
}


def graded(population: str, n: int, *, runs: int, resamples: int, seed: int) -> Graded:
    """How often each one-sided 95 % bound on the mean difference is wrong, and the coverage of the two-sided interval."""
    draw, mean = POPULATIONS[population]
    chance = np.random.default_rng((seed, n, list(POPULATIONS).index(population)))
    low = high = inside = 0
    for at in range(runs):
        values = draw(chance, n).tolist()
        found = paired_interval(values, resamples=resamples, seed=at)
        low += found.lower > mean
        high += found.upper < mean
        wide = paired_interval(values, resamples=resamples, seed=at, one_sided=0.025)
        inside += wide.lower <= mean <= wide.upper
    return Graded(population=population, n=n, lower_wrong=low / runs, upper_wrong=high / runs, coverage=inside / runs)
