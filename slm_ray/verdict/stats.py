"""How sure a mean difference is: two one-sided bounds, by a score test where rows are right or wrong, else by bootstrap.

Seeded: the same differences in the same order give the same bounds. Assumes rows drawn independently from the task and
differences in [-1, 1]. It says nothing about rows of another kind than those measured.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from slm_ray.types import Interval
from slm_ray.verdict.non_inferiority import ONE_SIDED, bounds

_BCA_PAIRS = 20
_SPARSE = 10
_BATCH_VALUES = 2_000_000

_Values = NDArray[np.float64]


def paired_interval(
    differences: Sequence[float], *, resamples: int, seed: int, one_sided: float = ONE_SIDED
) -> Interval:
    """Mean of the paired differences with two bounds in [-1, 1], each wrong with probability `one_sided` at most.

    - Differences of right and wrong answers (-1, 0, 1): score bounds, see `binary`.
    - Others: studentised paired bootstrap. (BCa, in simulations of skewed differences, is wrong in up to 7 % of runs; see
      `simulate_graded`.) With fewer than 20 pairs, or *fewer than 10 rows that depart* from the usual difference, the
      standard errors of resamples say little: then BCa (Efron 1987) from 20 pairs on and percentiles below, and where
      few rows depart widened to the plus-two bounds (one pair at +1 and one at -1 added, normal bounds; Bonett & Price
      2012), since departures of the sign not seen yet do exist.
    - *All differences equal* to some c: with n pairs and none departing, departures are rarer than
      u = 1 - one_sided^(1/n) (about 3/n at 5 %); each could be worth the whole range, so the bounds on the mean are
      c(1 - u) - u and c(1 - u) + u.
    ValueError without differences or outside [-1, 1].
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not bool(np.all(np.abs(values) <= 1.0)):
        raise ValueError(f"differences are one or more numbers in [-1, 1], not {values.size} of {values[:3].tolist()}…")
    mean = math.fsum(differences) / values.size
    usual, counts = np.unique(values, return_counts=True)
    departing = int(values.size - counts.max())
    if departing == 0:
        method, (lower, upper) = "no departure", _unseen(float(usual[0]), int(values.size), one_sided)
    elif bool(np.isin(values, (-1.0, 0.0, 1.0)).all()):
        gained, lost = int((values > 0).sum()), int((values < 0).sum())
        method, (lower, upper) = "score", bounds(gained, lost, values.size, one_sided=one_sided)
    else:
        sparse = departing < _SPARSE or values.size < _BCA_PAIRS
        method = "bootstrap" if sparse else "studentised bootstrap"
        lower, upper = _bootstrap(values, resamples=resamples, seed=seed, one_sided=one_sided, studentised=not sparse)
        if departing < _SPARSE:
            low, high = _plus_two(values, one_sided)
            lower, upper = min(lower, low), max(upper, high)
    # The estimate lies between its bounds: an extreme skew may otherwise put a BCa bound a hair beyond it.
    return Interval(estimate=mean, lower=max(-1.0, min(lower, mean)), upper=min(1.0, max(upper, mean)), method=method)


def _unseen(value: float, n: int, one_sided: float) -> tuple[float, float]:
    rate = 1.0 - float(one_sided ** (1.0 / n))
    return value * (1.0 - rate) - rate, value * (1.0 - rate) + rate


def _plus_two(values: _Values, one_sided: float) -> tuple[float, float]:
    padded = np.append(values, (1.0, -1.0))
    half = float(stats.norm.ppf(1 - one_sided)) * float(padded.std()) / math.sqrt(padded.size)
    return float(padded.mean()) - half, float(padded.mean()) + half


def _bootstrap(
    values: _Values, *, resamples: int, seed: int, one_sided: float, studentised: bool
) -> tuple[float, float]:
    if studentised:
        return _studentised(values, resamples, seed, one_sided)
    if values.size >= _BCA_PAIRS:
        low, high = _bounds(values, "BCa", resamples, seed, one_sided)
        # BCa has no answer when every resampled mean lies on one side of the estimate.
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    return _bounds(values, "percentile", resamples, seed, one_sided)


def _studentised(values: _Values, resamples: int, seed: int, one_sided: float) -> tuple[float, float]:
    """Bounds from the resampled distribution of (mean - estimate) / standard error (Efron & Tibshirani 1993, ch. 12)."""
    n, chance, batch = values.size, np.random.default_rng(seed), max(1, _BATCH_VALUES // values.size)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    found = []
    for start in range(0, resamples, batch):
        drawn = values[chance.integers(0, n, (min(batch, resamples - start), n))]
        away, errors = drawn.mean(axis=1) - mean, drawn.std(axis=1, ddof=1) / math.sqrt(n)
        # A resample of equal values says nothing of its error: it counts as far away, on its own side.
        found.append(
            np.where(errors > 0, away / np.where(errors > 0, errors, 1.0), np.where(away >= 0, np.inf, -np.inf))
        )
    low, high = np.quantile(np.concatenate(found), [1 - one_sided, one_sided], method="higher")
    return mean - float(low) * error, mean - float(high) * error


def _bounds(values: _Values, method: str, resamples: int, seed: int, one_sided: float) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found: Any = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, _BATCH_VALUES // values.size),
            confidence_level=1.0 - 2.0 * one_sided,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
