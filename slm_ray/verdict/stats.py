"""How sure a mean difference is: two one-sided 95 % bounds from a paired bootstrap.

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

_ONE_SIDED = 0.05  # per bound: together they are a 90 % two-sided interval
_Z = 1.6448536269514722  # normal quantile of 1 - _ONE_SIDED
_BCA_PAIRS = 20
_SPARSE = 10
_BATCH_VALUES = 2_000_000

_Values = NDArray[np.float64]


def paired_interval(differences: Sequence[float], *, resamples: int, seed: int) -> Interval:
    """Mean of the paired differences with two one-sided 95 % bounds, all in [-1, 1].

    Bootstrap: BCa (Efron 1987) from 20 pairs on, percentile below. Two cases in which a bootstrap claims more than the
    rows can show:
    - *All differences equal* (say no row where the two models differ): resampling gives no spread at all. With n
      pairs and none departing, departures are rarer than u = 1 - 0.05^(1/n) at 95 % (about 3/n); each could be worth
      the whole range, so the bounds on the mean are c(1 - u) - u and c(1 - u) + u.
    - *Fewer than 10 rows depart* from the usual difference: the bootstrap is widened to the plus-two bounds (one
      pair at +1 and one at -1 added, normal bounds; Bonett & Price 2012), since departures of the sign not seen yet
      do exist. Without it one lucky row would shrink the risk from 3/n to nothing.
    ValueError without differences or outside [-1, 1].
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not bool(np.all(np.abs(values) <= 1.0)):
        raise ValueError(f"differences are one or more numbers in [-1, 1], not {values.size} of {values[:3].tolist()}…")
    mean = math.fsum(differences) / values.size
    usual, counts = np.unique(values, return_counts=True)
    departing = int(values.size - counts.max())
    if departing == 0:
        lower, upper = _unseen(float(usual[0]), int(values.size))
    else:
        lower, upper = _bootstrap(values, resamples=resamples, seed=seed)
        if departing < _SPARSE:
            low, high = _plus_two(values)
            lower, upper = min(lower, low), max(upper, high)
    # The estimate lies between its bounds: an extreme skew may otherwise put a BCa bound a hair beyond it.
    return Interval(estimate=mean, lower=max(-1.0, min(lower, mean)), upper=min(1.0, max(upper, mean)))


def _unseen(value: float, n: int) -> tuple[float, float]:
    rate = 1.0 - float(_ONE_SIDED ** (1.0 / n))
    return value * (1.0 - rate) - rate, value * (1.0 - rate) + rate


def _plus_two(values: _Values) -> tuple[float, float]:
    padded = np.append(values, (1.0, -1.0))
    half = _Z * float(padded.std()) / math.sqrt(padded.size)
    return float(padded.mean()) - half, float(padded.mean()) + half


def _bootstrap(values: _Values, *, resamples: int, seed: int) -> tuple[float, float]:
    if values.size >= _BCA_PAIRS:
        low, high = _bounds(values, "BCa", resamples, seed)
        # BCa has no answer when every resampled mean lies on one side of the estimate.
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    return _bounds(values, "percentile", resamples, seed)


def _bounds(values: _Values, method: str, resamples: int, seed: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found: Any = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, _BATCH_VALUES // values.size),
            confidence_level=1.0 - 2.0 * _ONE_SIDED,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
