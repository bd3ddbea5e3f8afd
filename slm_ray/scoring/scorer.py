"""What a scorer is, and the two ways in which most run metrics come from rows: means and summed counts.

The order of rows changes nothing, to the last bit. No metric of an empty run is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_ray.corpus.tracks import Track
from slm_ray.scoring.items import ratios
from slm_ray.types import RowScore, Score

Metrics = dict[str, float | None]
Summary = Callable[[Sequence[RowScore], Track], Metrics]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """One way to judge answers.

    `score(example_id, prediction, target, track)` judges a row; a `prediction` of None is a failed call. `summarise`
    gives the run's metrics, exactly those in `metrics`, in the order of a report. `check` raises ConfigError when the
    track lacks what the scorer needs of it. `raw`: the scorer wants answers as given and strips them itself. `slow`: it
    takes a second or more for a thousand answers of a paragraph. `read` finds what the scorer looks for in a text, as
    people may be shown it: None where the text is not in the `form` without which nothing could ever match it; a scorer
    without it takes any text. `form_metrics` say whether an answer is in the right form, and need no target for it.
    """

    metrics: tuple[str, ...]
    score: Callable[[str, str | None, str, Track], RowScore]
    summarise: Summary
    check: Callable[[Track], object] = lambda _: None
    raw: bool = False
    slow: bool = False
    read: Callable[[str | None], object] | None = None
    form: str = ""
    form_metrics: tuple[str, ...] = ()


def means(*names: str) -> Summary:
    """Run metrics that are means over rows, a row left out where its value is None.

    A value is None only where the *target* lacks what the metric is about (for `args_partial_match`: `arguments`): the
    same rows for every model. Invalid and failed answers hold 0s and stay in.
    """
    return lambda rows, _: {name: mean([row.value(name) for row in rows]) for name in names}


def micro(precision: str, recall: str, f1: str) -> Summary:
    """Precision, recall and F1 from the summed (TP, FP, FN), as the earlier system has them.

    Precision is 0 in a run that predicts nothing though something was expected, and recall where nothing was expected is
    None; all are None where there is neither.
    """

    def summed(rows: Sequence[RowScore], _: Track) -> Metrics:
        shared, extra, missed = (sum(row.counts[i] for row in rows) for i in range(3))
        values = ratios((shared, extra, missed))
        if values[0] is None and missed:
            values = (0.0, *values[1:])
        return dict(zip((precision, recall, f1), values, strict=True))

    return summed


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the defined values, None when there are none; the same to the last bit in any order."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def as_scores(values: Metrics) -> tuple[Score, ...]:
    """Named values as the scores of a row."""
    return tuple(Score(name=name, value=value) for name, value in values.items())
