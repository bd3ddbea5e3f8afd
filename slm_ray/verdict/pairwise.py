"""Several arms on the same rows, every one against every other, with one error for all of it.

A table of m pairs has 2m bounds, and whoever reads it looks for the ones that stand out. Each bound is therefore wrong with
probability 5 % / 2m at most, so that with 95 % all of them hold at once (Bonferroni, which holds for tests that depend, as
those of one arm against several do). "Better" is said of a pair whose bounds exclude zero, in the order in which the arms
are given; nothing is said of the size that matters, which is delta's part. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from slm_ray.records import Report, RowResult
from slm_ray.types import Interval
from slm_ray.verdict.compare import compare
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.stats import RESAMPLES, SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two arms by spec on the `n` rows that both have: `interval` is of second minus first, on the primary metric.

    `better` is the one that is shown to be better, None: no difference is shown.
    """

    first: str
    second: str
    n: int
    interval: Interval
    first_only_right: int
    second_only_right: int
    better: str | None


def pairwise(
    report: Report, rows: Sequence[RowResult], specs: Sequence[str], *, min_paired: float
) -> tuple[float, tuple[Pair, ...]]:
    """The error of each bound, and all pairs of `specs` in their order.

    Raises ComparisonError as `compare.compare` does, for any pair.
    """
    places = list(combinations(specs, 2))
    level = ONE_SIDED / (2 * len(places)) if places else ONE_SIDED
    return level, tuple(_pair(report, rows, first, second, level, min_paired) for first, second in places)


def _pair(
    report: Report, rows: Sequence[RowResult], first: str, second: str, level: float, min_paired: float
) -> Pair:  # fmt: skip
    found = compare(
        report, rows, llm=first, slm=second, min_paired=min_paired, resamples=RESAMPLES, seed=SEED, level=level,
        slice_rows=report.examples.n + 1,
    )  # fmt: skip
    bounds = found.interval
    return Pair(
        first=first, second=second, n=found.n, interval=bounds, first_only_right=found.llm_only_right,
        second_only_right=found.slm_only_right,
        better=second if bounds.lower > 0 else first if bounds.upper < 0 else None,
    )  # fmt: skip
