"""Right or wrong, in pairs: bounds on the difference of two shares, and how many rows it takes to show one.

All that matters of n pairs is how many the SLM alone got right (`gained`) and how many the LLM alone did (`lost`). The
bounds are Tango's (1998, Statistics in Medicine 17), widened where few rows are discordant: by enumeration of all
outcomes, Tango's test alone is wrong in up to 7 % of runs there, the widened one in at most 5.2 % (n from 50 on, margins
to 0.05). Assumes pairs drawn independently.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

ONE_SIDED = 0.05  # per bound: together they are a 90 % two-sided interval
# With every pair equal, fewer cannot show a difference within 0.2, the widest margin unforced.
FEWEST_ROWS = math.ceil(math.log(ONE_SIDED) / math.log(1 - 0.2))
_SPARSE = 20  # discordant rows below which the bounds are widened
_MANY = 500  # discordant rows from which on the normal approximation is exact enough
_TOOTH = 0.1  # of the rows between one lost row that is allowed and the next: numbers tried lie so far apart
_EDGE = 1 - 1e-9


def bounds(
    gained: float, lost: float, n: float, *, one_sided: float = ONE_SIDED, freedom: float | None = None
) -> tuple[float, float]:
    """Lower and upper bound of the mean difference, each wrong with probability `one_sided`.

    Counts need not be whole, as those of effective rows are not; with `freedom` the quantile is Student's with so many
    degrees of freedom, since a design effect is estimated.
    """
    z = float(scipy.stats.norm.ppf(1 - one_sided) if freedom is None else scipy.stats.t.ppf(1 - one_sided, freedom))
    return _lower(gained, lost, n, one_sided, z), -_lower(lost, gained, n, one_sided, z)


def shows(gained: Any, lost: Any, n: int, delta: float, *, one_sided: float = ONE_SIDED) -> Any:
    """Whether the lower bound is above -`delta`; arrays or numbers. The same as asking `bounds`, much sooner."""
    gained, lost = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    z = scipy.stats.norm.ppf(1 - one_sided)
    shown = np.atleast_1d(tango_score(gained, lost, n, -delta) > z)
    shown &= (gained + lost >= _SPARSE) | (_plus_two(gained, lost, n, z) > -delta)
    alone = shown & (gained == 0)  # the rest of the rows would pay for a slow quantile that they do not need
    shown[alone] = _at_most(np.broadcast_to(lost, shown.shape)[alone], n, one_sided) < delta
    return shown.reshape(np.broadcast(gained, lost).shape)


def tango_score(gained: Any, lost: Any, n: float, difference: float) -> Any:
    """Tango's statistic for "the true difference is `difference`", standard normal when it is; arrays or numbers.

    It falls as `difference` grows.
    """
    gained, lost = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    # The larger root of the score equation: the share of lost rows under the hypothesis.
    linear = (2 * n - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    share = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    return (gained - lost - n * difference) / np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny))


def rows_for_power(
    discordance: float, delta: float, *, power: float = 0.8, one_sided: float = ONE_SIDED, most: int = 1_000_000
) -> int | None:
    """The rows from which on "not worse by `delta`" is shown with probability `power`, were both models equally good.

    `discordance` is the share of rows on which one of them alone is right. Counts are whole, so that power falls a little
    before each further row that may be lost: the number is one that no larger number falls short of. Exact over all
    outcomes while fewer than 500 rows are discordant, normal beyond. None when it takes more than `most`.
    """
    reach = float(scipy.stats.norm.ppf(1 - one_sided) + scipy.stats.norm.ppf(power))
    if reach**2 * discordance > most * delta**2:
        return None
    guess = reach**2 * discordance / delta**2
    if guess * discordance > _MANY:
        return math.ceil(guess)
    low, high = 1, max(2, round(guess))
    while swap_power(high, discordance, delta, one_sided=one_sided) < power:
        low, high = high, high * 2
        if low > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = swap_power(middle, discordance, delta, one_sided=one_sided) >= power
        low, high = (low, middle) if enough else (middle, high)
    return _from_here_on(high, discordance, delta, power=power, one_sided=one_sided)


def _from_here_on(n: int, discordance: float, delta: float, *, power: float, one_sided: float) -> int:
    """The least number from `n` on after which power stays; numbers are tried as far on as one more lost row is felt."""
    step = max(1, int(_TOOTH / delta))
    at = n
    while at <= n * (1 + 1 / math.sqrt(max(1.0, n * discordance))):
        if swap_power(at, discordance, delta, one_sided=one_sided) < power:
            n = at + step
        at += step
    return n


def rows_by_width(width: float, n: int, delta: float, *, power: float = 0.8, one_sided: float = ONE_SIDED) -> int:
    """Rows that show "not worse by `delta`" with probability `power`, were both models equally good, by normal bounds.

    `width` is how far apart the bounds of `n` rows lie, which is all that is known of the spread of their differences.
    """
    z = float(scipy.stats.norm.ppf(1 - one_sided))
    return math.ceil(n * (width / 2 / z * (z + float(scipy.stats.norm.ppf(power))) / delta) ** 2)


def swap_power(n: int, discordance: float, delta: float, *, one_sided: float = ONE_SIDED) -> float:
    """The probability that `n` rows of two equally good models have a lower bound above -`delta`."""
    # What lies further than seven standard deviations out is rarer than one in a hundred billion.
    spread = 7 * math.sqrt(n * discordance * (1 - discordance)) + 7
    first, last = max(0, math.floor(n * discordance - spread)), min(n, math.ceil(n * discordance + spread))
    discordant = np.arange(first, last + 1)[:, None]
    around = math.ceil(3.5 * math.sqrt(last)) + 7
    gained = discordant // 2 + np.arange(-around, around + 1)
    possible = (gained >= 0) & (gained <= discordant)
    gained = np.clip(gained, 0, discordant)
    shown = possible & shows(gained, discordant - gained, n, delta, one_sided=one_sided)
    fewest = np.take_along_axis(gained, shown.argmax(axis=1)[:, None], axis=1)  # more gained never show less
    chance = np.where(shown.any(axis=1, keepdims=True), scipy.stats.binom.sf(fewest - 1, discordant, 0.5), 0.0)
    return float((scipy.stats.binom.pmf(discordant, n, discordance) * chance).sum())


def _lower(gained: float, lost: float, n: float, one_sided: float, z: float) -> float:
    mean = (gained - lost) / n
    if mean <= -_EDGE:
        return -1.0
    found: Any = scipy.optimize.brentq(lambda d: float(tango_score(gained, lost, n, d)) - z, -_EDGE, mean, xtol=1e-12)
    lower = float(found)
    if gained + lost < _SPARSE:
        lower = min(lower, float(_plus_two(gained, lost, n, z)))
    if gained == 0:
        lower = min(lower, -float(_at_most(lost, n, one_sided)))
    return max(lower, -1.0)


def _plus_two(gained: Any, lost: Any, n: float, z: float) -> Any:
    """Normal bound after one row gained and one lost were added (Bonett & Price 2012)."""
    mean = (gained - lost) / (n + 2)
    return mean - z * np.sqrt(((gained + lost + 2) / (n + 2) - mean**2) / (n + 2))


def _at_most(lost: Any, n: float, one_sided: float) -> Any:
    """Clopper and Pearson's bound on the share of lost rows: all there is to go by when none was gained."""
    return scipy.stats.beta.ppf(1 - one_sided, lost + 1, np.maximum(n - lost, 1e-9))
