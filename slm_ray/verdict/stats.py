"""How sure a mean difference is: two one-sided bounds, by a score test where rows are right or wrong, else by bootstrap.

Rows of one group (a customer, a dialogue) say the same thing several times over: the unit of inference is the group, and
the mean stays that of the rows. Rows without a group are groups of one, and nothing but such groups gives what the rows
alone give. Seeded: the same differences in the same order give the same bounds. Assumes groups drawn independently from
the task and differences in [-1, 1]. It says nothing about rows of another kind than those measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from slm_ray.types import Interval
from slm_ray.verdict.non_inferiority import ONE_SIDED, bounds

RESAMPLES, SEED = 9999, 42  # of the bootstrap: fixed, so that nobody draws until an interval suits
FEWEST_GROUPS = 10  # of several rows; below it nothing is decided: so few do not show how they differ
_FEW = 30  # groups below which the spread of graded differences is not to be trusted
_FEW_FOR_SKEW = 50  # and below which a few rows that lose all may not have been seen
_SPARSE = 10  # groups that depart from the usual difference, below which likewise
_BATCH_VALUES = 2_000_000

_Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Sums of the differences and numbers of rows by group; `departing` groups hold a row that is not as usual."""

    totals: _Values
    sizes: _Values
    departing: int

    @property
    def effective(self) -> float:
        """Kish's number of groups: as many as there are where all are of one size, fewer where some are much larger."""
        return float(self.sizes.sum() ** 2 / (self.sizes**2).sum())


def clustered(values: _Values, groups: Sequence[str | None]) -> Clusters:
    """`values` by their group, in the order of first appearance; every value is one of its own where `groups` is empty."""
    place: dict[str | int, int] = {}
    at = np.arange(values.size)
    if groups:
        at = np.array([place.setdefault(row if name is None else name, len(place)) for row, name in enumerate(groups)])
    usual, counts = np.unique(values, return_counts=True)
    departs = values != usual[counts.argmax()]
    return Clusters(
        totals=np.bincount(at, weights=values).astype(np.float64),
        sizes=np.bincount(at).astype(np.float64),
        departing=int(np.unique(at[departs]).size),
    )


def effective_rows(differences: Sequence[float], groups: Sequence[str | None]) -> float:
    """How many independent rows would say as much: their number by the design effect of the groups (Kish 1965)."""
    values = np.asarray(differences, dtype=np.float64)
    return values.size / _design_effect(values, clustered(values, groups))


def paired_interval(
    differences: Sequence[float],
    *,
    resamples: int,
    seed: int,
    one_sided: float = ONE_SIDED,
    groups: Sequence[str | None] = (),
) -> Interval:
    """Mean of the paired differences with two bounds in [-1, 1], each wrong with probability `one_sided` at most.

    `groups` names the group of each difference (None: one of its own); left out, all are of their own.
    - Differences of right and wrong answers (-1, 0, 1): score bounds, see `non_inferiority.bounds`. Of groups: the counts
      are divided by the design effect, and the quantile is Student's (Korn & Graubard 1998 do so for one share).
    - Others: studentised bootstrap over groups. Where it cannot be trusted, with fewer than 30 groups (in Kish's count) or fewer than *10
      that depart* from the usual difference: a Bayesian bootstrap in which one further group, the largest, is at the
      worst (Gaffke 2005; no distribution is known for which it is too narrow). With fewer than 50 groups the bounds are
      at least the plus-two bounds (two of the largest added, at +1 and at -1, normal bounds; Bonett & Price 2012).
    - *All differences equal* to some c: with n groups and none departing, departures are rarer than
      u = 1 - one_sided^(1/n) (about 3/n at 5 %); each could be worth the whole range, so the bounds on the mean are
      c(1 - u) - u and c(1 - u) + u.
    An error rarer than one in `resamples` is none that a bootstrap can show: the bounds are at least Hoeffding's then.
    ValueError without differences or outside [-1, 1].
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not bool(np.all(np.abs(values) <= 1.0)):
        raise ValueError(f"differences are one or more numbers in [-1, 1], not {values.size} of {values[:3].tolist()}…")
    mean = math.fsum(differences) / values.size
    clusters = clustered(values, groups)
    grouped = bool((clusters.sizes > 1).any())
    if clusters.departing == 0:
        method, (lower, upper) = "no departure", _unseen(float(values[0]), clusters.effective, one_sided)
    elif bool(np.isin(values, (-1.0, 0.0, 1.0)).all()):
        method, (lower, upper) = "score", _score(values, clusters if grouped else None, one_sided)
    elif clusters.departing < _SPARSE or clusters.effective < _FEW:
        method, (lower, upper) = "worst-case bootstrap", _worst_case(clusters, resamples, seed, one_sided)
    else:
        method, (lower, upper) = "studentised bootstrap", _studentised(clusters, resamples, seed, one_sided)
        if clusters.effective < _FEW_FOR_SKEW:
            low, high = _plus_two(clusters, one_sided)
            lower, upper = min(lower, low), max(upper, high)
    if "bootstrap" in method and one_sided * resamples < 1:
        # No quantile of so few resamples is as rare; what bounds any differences in [-1, 1] does (Hoeffding 1963).
        half = math.sqrt(2 * math.log(1 / one_sided) / clusters.effective)
        lower, upper = min(lower, mean - half), max(upper, mean + half)
    return Interval(
        estimate=mean,
        lower=max(-1.0, min(lower, mean)),
        upper=min(1.0, max(upper, mean)),
        method=f"{method} over groups" if grouped else method,
    )


def _unseen(value: float, n: float, one_sided: float) -> tuple[float, float]:
    rate = 1.0 - float(one_sided ** (1.0 / n))
    return value * (1.0 - rate) - rate, value * (1.0 - rate) + rate


def _score(values: _Values, clusters: Clusters | None, one_sided: float) -> tuple[float, float]:
    gained, lost = int((values > 0).sum()), int((values < 0).sum())
    if clusters is None:
        return bounds(gained, lost, values.size, one_sided=one_sided)
    effect = _design_effect(values, clusters)
    freedom = max(clusters.effective - 1.0, 1.0)
    return bounds(gained / effect, lost / effect, values.size / effect, one_sided=one_sided, freedom=freedom)


def _design_effect(values: _Values, clusters: Clusters) -> float:
    """The variance of the mean over groups by that over rows, at least 1: by the jackknife, which unequal sizes need.

    Where few groups depart, whether a group is alike throughout is not to be seen, and it is taken to be.
    """
    n, groups, alike = values.size, clusters.sizes.size, values.size / clusters.effective
    squares = float(((values - values.mean()) ** 2).sum())
    if groups == n:
        return 1.0
    if groups == 1 or clusters.departing == 0:
        return alike
    away = (clusters.totals - clusters.sizes * values.mean()) / (1.0 - clusters.sizes / n)
    effect = max(1.0, (groups - 1) / groups * float((away**2).sum()) / squares)
    return max(effect, alike) if clusters.departing < _SPARSE else effect


def _plus_two(clusters: Clusters, one_sided: float) -> tuple[float, float]:
    size = float(clusters.sizes.max())
    totals, sizes = np.append(clusters.totals, (size, -size)), np.append(clusters.sizes, (size, size))
    mean = float(totals.sum() / sizes.sum())
    error = math.sqrt(float(((totals - mean * sizes) ** 2).sum())) / float(sizes.sum())
    half = float(scipy.stats.norm.ppf(1 - one_sided)) * error
    return mean - half, mean + half


def _worst_case(clusters: Clusters, resamples: int, seed: int, one_sided: float) -> tuple[float, float]:
    """Quantiles of the mean under random weights of the groups and of one more, the largest, at -1 and at +1."""
    size = float(clusters.sizes.max())
    # Equal groups share one weight: rows are many and most of them are as usual.
    kinds, counts = np.unique(np.stack([clusters.totals, clusters.sizes]), axis=1, return_counts=True)
    weights = np.random.default_rng(seed).gamma(np.append(counts, 1), size=(resamples, counts.size + 1))
    totals, sizes = weights[:, :-1] @ kinds[0], weights[:, :-1] @ kinds[1]
    worst = weights[:, -1] * size
    low = np.quantile((totals - worst) / (sizes + worst), one_sided, method="lower")
    high = np.quantile((totals + worst) / (sizes + worst), 1 - one_sided, method="higher")
    return float(low), float(high)


def _studentised(clusters: Clusters, resamples: int, seed: int, one_sided: float) -> tuple[float, float]:
    """Bounds from the resampled distribution of (mean - estimate) / standard error (Efron & Tibshirani 1993, ch. 12)."""
    groups, chance = clusters.sizes.size, np.random.default_rng(seed)
    batch = max(1, _BATCH_VALUES // groups)
    means, errors = _mean_and_error(clusters.totals[None], clusters.sizes[None])
    mean, error = float(means[0]), float(errors[0])
    ratios = []
    for start in range(0, resamples, batch):
        drawn = chance.integers(0, groups, (min(batch, resamples - start), groups))
        means, errors = _mean_and_error(clusters.totals[drawn], clusters.sizes[drawn])
        away = means - mean
        # A resample of equal values says nothing of its error: it counts as far away, on its own side.
        ratios.append(
            np.where(errors > 0, away / np.where(errors > 0, errors, 1.0), np.where(away >= 0, np.inf, -np.inf))
        )
    low, high = np.quantile(np.concatenate(ratios), [1 - one_sided, one_sided], method="higher")
    return mean - float(low) * error, mean - float(high) * error


def _mean_and_error(totals: _Values, sizes: _Values) -> tuple[_Values, _Values]:
    """The mean over rows and its standard error over groups, of each line."""
    groups, rows = sizes.shape[1], sizes.sum(axis=1)
    means = totals.sum(axis=1) / rows
    squares = ((totals - means[:, None] * sizes) ** 2).sum(axis=1)
    return means, np.sqrt(squares * (groups / (groups - 1))) / rows
