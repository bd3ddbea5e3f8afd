"""Quantiles of latencies in which a request without an answer counts as later than any, and their intervals.

Requests that wait in one queue are not independent, so that whole blocks of neighbouring requests are resampled. Resampling
alone knows no time above the latest one that was seen, and so promises too much of a short run: a bound is never nearer than
the one that independent requests would allow. Nothing is promised for what did not happen in the run: an interval is about
its own minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from slm_ray.load_records import Quantile, Quantiles

RESAMPLES = 1000
_SHARES = (0.5, 0.95, 0.99)
_TAIL = 0.025


def quantiles(times_s: Sequence[float | None], *, seed: int) -> Quantiles:
    """p50, p95 and p99 of `times_s`, seconds in the order of arrival; None stands for no answer.

    A quantile is the smallest time that at least this share of the requests took at most (numpy's `inverted_cdf`); it needs
    a request beyond it, so 20 requests for p95 and 100 for p99. The interval is the wider, at each end, of two: the percentile
    interval of a circular block bootstrap with blocks of √n requests (Politis and Romano, 1992), and the interval between
    order statistics, which holds for independent requests of any distribution. The latter has no upper end below 72 requests
    for p95 and 368 for p99.
    """
    times = np.array([math.inf if time is None else time for time in times_s])
    known = [share for share in _SHARES if len(times) * (1 - share) >= 1 - 1e-9]
    resampled = _resampled(times, known, seed) if known else np.empty((0, 0))
    found: dict[float, Quantile | None] = dict.fromkeys(_SHARES)
    for column, share in enumerate(known):
        ends = [_at(resampled[:, column], tail) for tail in (_TAIL, 1 - _TAIL)]
        lowest, highest = _between(times, share)
        lower, upper = min(ends[0], lowest), max(ends[1], highest)
        found[share] = Quantile(value=_finite(_at(times, share)), lower=_finite(lower), upper=_finite(upper))
    return Quantiles(p50=found[0.5], p95=found[0.95], p99=found[0.99])


def _resampled(times: NDArray[np.float64], shares: Sequence[float], seed: int) -> NDArray[np.float64]:
    """One row of quantiles per resample."""
    count = len(times)
    block = max(1, round(math.sqrt(count)))
    offsets = np.arange(block)
    random = np.random.default_rng(seed)
    ranks = [_rank(count, share) for share in shares]
    found = np.empty((RESAMPLES, len(shares)))
    for row in range(RESAMPLES):
        starts = random.integers(0, count, size=-(-count // block))
        taken = times[((starts[:, None] + offsets) % count).ravel()[:count]]
        found[row] = np.partition(taken, ranks)[ranks]
    return found


def _between(times: NDArray[np.float64], share: float) -> tuple[float, float]:
    """The order statistics around the quantile, with `_TAIL` of error at each end; infinite where there is none above."""
    first, last = (int(scipy.stats.binom.ppf(tail, len(times), share)) for tail in (_TAIL, 1 - _TAIL))
    ordered = np.sort(times)
    return float(ordered[first - 1]) if first else 0.0, float(ordered[last]) if last < len(times) else math.inf


def _at(values: NDArray[np.float64], share: float) -> float:
    rank = _rank(len(values), share)
    return float(np.partition(values, rank)[rank])


def _rank(count: int, share: float) -> int:
    return max(0, math.ceil(count * share - 1e-9) - 1)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
