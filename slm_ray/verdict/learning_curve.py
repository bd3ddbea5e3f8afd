"""How many training rows until the metric reaches a target: a learning curve fitted to few sizes, and how sure that is.

The curve is one of three families, each `a - b * shape(rows)` with a <= 1 and b >= 0, so that it never falls: a power law
with a floor; the rectified scaling law of fine-tuning (Lin et al. 2024, arXiv 2402.02314), which is the MMF curve of the
learning-curve literature and a logistic curve in log rows; and the Weibull curve. MMF and Weibull extrapolate best of
those compared over 246 data sets by Mohr, Viering et al. (2022, LCDB).

The answer is an interval over resampled curves: the noise of every point and of the target is drawn again, and with it
the family. It is promised up to `REACH` times the largest size; what lies beyond is not stated, and a curve that does not
fit is refused. Assumes nested training sets, one recipe, and validation rows like those that decide. Seeded, pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

Outcome = Literal["rows", "not_promised", "refused"]
_Values = NDArray[np.float64]

FEWEST_SIZES = 4
REACH = 4  # how many times the largest size an answer is promised
CONFIDENCE = 0.9
RESAMPLES = 1000
_TRAINING_NOISE = 0.01  # standard deviation of the metric between trainings on other rows or seeds, beside row noise
_FALL = 3.0  # standard errors by which a larger size may be worse before the curve is no learning curve
_BAD_FIT, _FLAT = 0.01, 0.05  # levels of the chi-squared tests
_STEPS = 400  # sizes between the smallest and the furthest at which a crossing is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeScore:
    """The metric in [0, 1] after training on `rows` rows, and its standard error over the validation rows."""

    rows: int
    score: float
    error: float

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a training size is 1 row or more, not {self.rows}")
        _check(self.score, self.error, what=f"the score at {self.rows} rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The metric to reach, in [0, 1], and its standard error (0: a number that somebody set)."""

    score: float
    error: float = 0.0

    def __post_init__(self) -> None:
        _check(self.score, self.error, what="the target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The metric to expect at a training size: the median of the curves and the bounds of 90 % of them."""

    rows: int
    score: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAnswer:
    """How many training rows reach the target.

    `rows` with `lower` and `upper` hold 90 % of the curves; of an answer that is `not_promised` only what is known
    (`lower`, the fewest rows that may do) is there. `chance` is the share of the curves that reach the target within
    `promised_rows`. `forecasts` are the metric at the sizes that were trained and up to `promised_rows`; none when refused.
    """

    outcome: Outcome
    because: str
    rows: int | None = None
    lower: int | None = None
    upper: int | None = None
    chance: float | None = None
    promised_rows: int | None = None
    forecasts: tuple[Forecast, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """What the rows that are still missing cost: fewest, expected and most.

    `payback_requests` is how many requests the saving of a swap takes to pay for them; None where there is no saving.
    """

    further_rows: tuple[int, int, int]
    usd: tuple[float, float, float]
    payback_requests: tuple[float, float, float] | None = None


def standard_error(score: float, rows: int) -> float:
    """The most that a mean of `rows` values in [0, 1] varies, after one right and one wrong row were added.

    No values in [0, 1] vary more than right and wrong ones do, so this is on the safe side for graded metrics.
    """
    if rows < 1:
        raise ValueError(f"a score needs validation rows, not {rows}")
    share = (score * rows + 1) / (rows + 2)
    return math.sqrt(share * (1 - share) / rows)


def rows_to_target(points: Sequence[SizeScore], target: Target, *, seed: int, resamples: int = RESAMPLES) -> RowsAnswer:
    """The number of training rows at which the metric reaches `target`, as an interval; or why none is stated.

    `points` in any order, one for each size (ValueError for a size that is there twice).
    """
    ordered = sorted(points, key=lambda point: point.rows)
    if len({point.rows for point in ordered}) < len(ordered):
        raise ValueError("a training size is there twice; give one score for each")
    if (reason := _refusal(ordered, target)) is not None:
        return RowsAnswer(outcome="refused", because=reason)
    generator = np.random.default_rng(seed)
    curves = Curves.fitted(ordered, generator, resamples)
    furthest = REACH * ordered[-1].rows
    forecasts = tuple(curves.forecast(rows) for rows in _shown(ordered, furthest))
    targets = target.score + target.error * generator.standard_normal(resamples)
    crossings = curves.crossings(targets, ordered[0].rows, furthest)
    chance = float(np.isfinite(crossings).mean())
    low, middle, high = (_whole(crossings, share) for share in _shares())
    promised = low is not None and middle is not None and high is not None
    return RowsAnswer(
        outcome="rows" if promised else "not_promised",
        because=_fits(len(ordered)) if promised else _not_promised(chance, ordered[-1].rows, forecasts[-1]),
        rows=middle if promised else None,
        lower=low,
        upper=high,
        chance=chance,
        promised_rows=furthest,
        forecasts=forecasts,
    )


def labelling(
    answer: RowsAnswer, *, labelled: int, usd_per_row: float, saved_per_request_usd: float | None = None
) -> Labelling | None:
    """The cost of the rows beyond the `labelled` ones that there are; None without an interval of rows.

    `saved_per_request_usd` is the LLM's cost per request less the SLM's.
    """
    if answer.lower is None or answer.rows is None or answer.upper is None:
        return None
    low, middle, high = (max(0, rows - labelled) for rows in (answer.lower, answer.rows, answer.upper))
    usd = (low * usd_per_row, middle * usd_per_row, high * usd_per_row)
    saved = saved_per_request_usd if saved_per_request_usd is not None and saved_per_request_usd > 0 else None
    payback = None if saved is None else (usd[0] / saved, usd[1] / saved, usd[2] / saved)
    return Labelling(further_rows=(low, middle, high), usd=usd, payback_requests=payback)


def in_words(answer: RowsAnswer) -> str:
    """The answer as one sentence, rows to two digits: "about 900 rows (600 to 1,600): …"."""
    if answer.outcome == "refused":
        return f"no answer: {answer.because}"
    smallest = answer.forecasts[0].rows if answer.forecasts else 0
    if answer.rows is not None and answer.lower is not None and answer.upper is not None:
        fewest = _two_digits(answer.lower) + (" or fewer" if answer.lower <= smallest else "")
        if answer.upper <= smallest:
            return f"{fewest}, the smallest size: {answer.because}"
        return f"about {_two_digits(answer.rows)} rows ({fewest} to {_two_digits(answer.upper)}): {answer.because}"
    unlikely = "" if answer.lower is None else f"; fewer than {_two_digits(answer.lower)} rows are unlikely to do"
    return f"not at any number of rows that these sizes can promise: {answer.because}{unlikely}"


@dataclass(frozen=True, slots=True)
class Curves:
    """Resampled curves `level - drop * shape(rows / largest)`; arrays by resample. `fitted` makes them."""

    largest: int
    family: NDArray[np.int64]
    parameters: _Values
    level: _Values
    drop: _Values

    @classmethod
    def fitted(cls, points: Sequence[SizeScore], generator: np.random.Generator, resamples: int) -> Curves:
        """One curve for each resample of the points' noise, of a family drawn by how well each fits.

        Level and drop have a closed form for every shape (variable projection; Golub & Pereyra 1973), and the shapes are
        tried on a grid, so no start point can lead into a minimum that is not the lowest.
        """
        x, y, error = _arrays(points)
        drawn = y + error * generator.standard_normal((resamples, y.size))
        best = [_Best.of(family, x, drawn, error) for family in _FAMILIES]
        # Akaike's weights: a further parameter has to pay for itself.
        worth = np.array(
            [-fit.misfit / 2 - family.shape_parameters for family, fit in zip(_FAMILIES, best, strict=True)]
        )
        chosen = (worth + generator.gumbel(size=worth.shape)).argmax(axis=0)
        each = np.arange(resamples)
        return cls(
            largest=points[-1].rows,
            family=chosen,
            parameters=np.stack([fit.parameters for fit in best])[chosen, each],
            level=np.stack([fit.level for fit in best])[chosen, each],
            drop=np.stack([fit.drop for fit in best])[chosen, each],
        )

    def at(self, sizes: _Values) -> _Values:
        """The metric of every curve (first axis) at every size (second axis), in [0, 1]."""
        x = sizes / self.largest
        shape = np.empty((self.family.size, x.size))
        for number, family in enumerate(_FAMILIES):
            mine = self.family == number
            shape[mine] = family.shape(x[None, :], *self.parameters[mine].T[:, :, None])
        return np.clip(self.level[:, None] - self.drop[:, None] * shape, 0.0, 1.0)

    def forecast(self, rows: int) -> Forecast:
        """What to expect of the metric at one size."""
        low, middle, high = np.quantile(self.at(np.array([float(rows)]))[:, 0], _shares())
        return Forecast(rows=rows, score=float(middle), lower=float(low), upper=float(high))

    def crossings(self, targets: _Values, smallest: int, furthest: int) -> _Values:
        """The size at which each curve reaches its target, `smallest` at the least; infinite beyond `furthest`."""
        sizes = np.geomspace(smallest, furthest, _STEPS)
        reached = self.at(sizes) >= targets[:, None]
        return np.where(reached.any(axis=1), sizes[reached.argmax(axis=1)], np.inf)


@dataclass(frozen=True, slots=True)
class _Family:
    """A shape that falls with x = rows / largest size, and the grid of its two parameters."""

    shape: Callable[..., _Values]
    first: _Values
    second: _Values

    @property
    def shape_parameters(self) -> int:
        return 1 + (self.second.size > 1)

    @property
    def grid(self) -> _Values:
        return np.stack(np.meshgrid(self.first, self.second, indexing="ij"), axis=-1).reshape(-1, 2)


# The grids span what sizes between 1/64 of the largest and REACH times it can tell apart: from nearly linear in log rows
# to done after the smallest size.
_FAMILIES = (
    _Family(lambda x, c, _: (x**-c - 1) / c, np.linspace(0.02, 1.5, 32), np.array([0.0])),  # power law with a floor
    _Family(lambda x, d, c: 1 / (d + x**c), np.geomspace(0.02, 5, 14), np.geomspace(0.2, 3, 16)),  # rectified
    _Family(lambda x, k, c: np.exp(-k * x**c), np.geomspace(0.2, 6, 14), np.geomspace(0.15, 1.5, 12)),  # Weibull
)


@dataclass(frozen=True, slots=True)
class _Best:
    """The best curve of one family for every resample, and its weighted sum of squares."""

    parameters: _Values
    level: _Values
    drop: _Values
    misfit: _Values

    @classmethod
    def of(cls, family: _Family, x: _Values, drawn: _Values, error: _Values) -> _Best:
        """Weighted least squares of `drawn` (resamples, sizes) over the family's grid, level <= 1 and drop >= 0."""
        grid, weights = family.grid, error**-2.0
        shape = family.shape(x[None, :], grid[:, :1], grid[:, 1:])
        total, s1, s2 = weights.sum(), shape @ weights, (shape * shape) @ weights
        y1, ys, y2 = (drawn @ weights)[:, None], (drawn * weights) @ shape.T, ((drawn * drawn) @ weights)[:, None]
        spread = np.maximum(s2 - s1 * s1 / total, np.finfo(np.float64).tiny)
        drop = np.maximum((y1 * s1 / total - ys) / spread, 0.0)
        level = y1 / total + drop * s1 / total
        above = level > 1
        drop = np.where(above, np.maximum((s1 - ys) / np.maximum(s2, np.finfo(np.float64).tiny), 0.0), drop)
        level = np.where(above, 1.0, level)
        misfit = y2 + level**2 * total + drop**2 * s2 - 2 * level * y1 + 2 * drop * ys - 2 * level * drop * s1
        chosen, each = misfit.argmin(axis=1), np.arange(drawn.shape[0])
        return cls(grid[chosen], level[each, chosen], drop[each, chosen], np.maximum(misfit[each, chosen], 0.0))


def _refusal(points: Sequence[SizeScore], target: Target) -> str | None:
    """Why these points carry no answer; None when they do."""
    if len(points) < FEWEST_SIZES:
        return f"a curve takes {FEWEST_SIZES} training sizes or more, and there are {len(points)}"
    x, y, error = _arrays(points)
    for number, later in enumerate(points[1:], start=1):
        top = int(y[:number].argmax())
        if y[top] - y[number] > _FALL * math.hypot(error[top], error[number]):
            return (
                f"more rows made it worse: {y[top]:.1%} at {points[top].rows:,} rows and {y[number]:.1%} at "
                f"{later.rows:,}, which is more than noise; look at the recipe (steps, learning rate) and at the rows"
            )
    mean = float(np.average(y, weights=error**-2.0))
    if scipy.stats.chi2.sf((((y - mean) / error) ** 2).sum(), y.size - 1) > _FLAT or y[-1] <= y[0]:
        where = f"below the target of {target.score:.1%}"
        if mean >= target.score:
            where = f"at or above the target of {target.score:.1%} already, so measure smaller sizes"
        return (
            f"the metric does not move between {points[0].rows:,} and {points[-1].rows:,} rows by more than noise: it is "
            f"{mean:.1%} on average, {where}"
        )
    misfit = min(float(_Best.of(family, x, y[None, :], error).misfit[0]) for family in _FAMILIES)
    if scipy.stats.chi2.sf(misfit, max(1, y.size - 3)) < _BAD_FIT:
        return (
            f"no learning curve fits these sizes: the residuals are {math.sqrt(misfit / y.size):.1f} times the noise; "
            "train the sizes with one recipe, or add validation rows"
        )
    return None


def _arrays(points: Sequence[SizeScore]) -> tuple[_Values, _Values, _Values]:
    """Sizes as shares of the largest, scores, and the noise of each point, that of training included."""
    rows = np.array([point.rows for point in points], dtype=np.float64)
    scores = np.array([point.score for point in points])
    return rows / rows[-1], scores, np.hypot([point.error for point in points], _TRAINING_NOISE)


def _check(score: float, error: float, *, what: str) -> None:
    if not 0 <= score <= 1:
        raise ValueError(f"{what} is {score!r}, not a number in [0, 1]")
    if not 0 <= error <= 1:
        raise ValueError(f"the standard error of {what} is {error!r}, not a number in [0, 1]")


def _shares() -> tuple[float, float, float]:
    return (1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2


def _whole(crossings: _Values, share: float) -> int | None:
    """A quantile of the crossings in whole rows; None where it lies beyond what is promised."""
    value = float(np.quantile(crossings, share, method="lower" if share < 0.5 else "higher"))
    return math.ceil(value - 1e-6) if math.isfinite(value) else None


def _shown(points: Sequence[SizeScore], furthest: int) -> list[int]:
    sizes = [point.rows for point in points]
    while sizes[-1] * 2 < furthest:
        sizes.append(sizes[-1] * 2)
    return [*sizes, furthest]


def _two_digits(rows: int) -> str:
    return f"{round(rows, 1 - math.floor(math.log10(rows))):,}" if rows >= 100 else str(rows)


def _fits(sizes: int) -> str:
    return f"{CONFIDENCE:.0%} of the curves that fit the {sizes} sizes and their noise lie in this interval"


def _not_promised(chance: float, largest: int, last: Forecast) -> str:
    return (
        f"{chance:.0%} of the curves that fit reach the target within {last.rows:,} rows, {REACH} times the largest size "
        f"that was trained ({largest:,}) and as far as anything is promised; there the metric is expected at "
        f"{last.lower:.1%} to {last.upper:.1%}"
    )
