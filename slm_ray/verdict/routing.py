"""Rows routed by the confidence of the SLM in its answer: to itself above a threshold, to the LLM below it.

Its confidence is told without the expected answer: an answer has to be in the right form (valid JSON, a valid call, the
track's schema) and is then ranked by its mean token log-probability, where rows carry one. Knows mixtures and which
threshold to try; whether a share is accepted is decided in `partial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from slm_ray.records import AnswerResult, Metrics, RowResult
from slm_ray.types import Interval
from slm_ray.verdict.decide import not_worse
from slm_ray.verdict.non_inferiority import ONE_SIDED, shows
from slm_ray.verdict.stats import paired_interval

FORMS = ("json_valid", "valid_call", "schema_valid")
MOST_THRESHOLDS = 50
CONFIRMED = 0.9
_DRAWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One row that both models have a score for; `confidence` is None where the SLM's answer is not in the right form.

    `guardrails` holds SLM minus LLM of the further metrics that must not be worse, where both are defined. Bounds stand on
    the rows' groups.
    """

    confidence: float | None
    llm: float
    slm: float
    guardrails: Mapping[str, float] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The rows at or above `threshold` answered by the SLM, the others by the LLM.

    `interval` is of the primary metric, `guardrails` of the others; `differences` are the rows behind each of them.
    """

    threshold: float
    share: float
    quality: float
    interval: Interval
    guardrails: Mapping[str, Interval]
    differences: tuple[NDArray[np.float64], ...]

    def passes(self, delta: float) -> bool:
        """The rule of a whole swap: every metric is shown to be less than `delta` worse."""
        return all(not_worse(interval, delta) for interval in (self.interval, *self.guardrails.values()))


def ranked(
    rows: Sequence[RowResult], *, llm: str, slm: str, primary: str, guardrails: Sequence[str] = ()
) -> tuple[list[Routed], str]:
    """The rows as `Routed`, and in words what ranks them."""
    both = [(row.group, row.models) for row in rows if {llm, slm} <= row.models.keys()]
    forms, logprobs = _seen([models[slm] for _, models in both])
    found = [
        Routed(
            confidence=_confidence(models[slm], forms, logprobs),
            llm=float(a),
            slm=float(b),
            guardrails=_gaps(models[llm].scores, models[slm].scores, guardrails),
            group=group,
        )
        for group, models in both
        if (a := models[llm].scores.get(primary)) is not None and (b := models[slm].scores.get(primary)) is not None
    ]
    form = " and ".join(forms) or "an answer at all"
    return (
        found,
        f"{form}, then mean token log-probability" if logprobs else f"{form} only (rows carry no log-probability)",
    )


def taken(rows: Sequence[RowResult], *, llm: str, slm: str, threshold: float) -> dict[str, bool]:
    """By id of the rows that both models answered, whether the SLM takes the row at this threshold."""
    both = {row.id: row.models[slm] for row in rows if {llm, slm} <= row.models.keys()}
    forms, logprobs = _seen(list(both.values()))
    sure = {row: _confidence(answer, forms, logprobs) for row, answer in both.items()}
    return {row: confidence is not None and confidence >= threshold for row, confidence in sure.items()}


def mixture(rows: Sequence[Routed], threshold: float, *, resamples: int, seed: int) -> Mixture:
    """The mixture at one threshold, with the interval of its difference to the LLM alone."""
    taken = [row.confidence is not None and row.confidence >= threshold for row in rows]
    answered = [row.slm if own else row.llm for row, own in zip(rows, taken, strict=True)]
    differences = {"": [value - row.llm for value, row in zip(answered, rows, strict=True)]}
    for name in dict.fromkeys(name for row in rows for name in row.guardrails):
        differences[name] = [
            row.guardrails[name] if own else 0.0 for row, own in zip(rows, taken, strict=True) if name in row.guardrails
        ]
    grouped = any(row.group is not None for row in rows)
    groups = {
        name: [row.group for row in rows if not name or name in row.guardrails] if grouped else []
        for name in differences
    }
    intervals = {
        name: paired_interval(values, resamples=resamples, seed=seed, groups=groups[name])
        for name, values in differences.items()
    }
    return Mixture(
        threshold=threshold,
        share=sum(taken) / len(rows),
        quality=math.fsum(answered) / len(rows),
        interval=intervals.pop(""),
        guardrails=intervals,
        differences=tuple(map(np.asarray, differences.values())),
    )


def thresholds(rows: Sequence[Routed], most: int = MOST_THRESHOLDS) -> list[float]:
    """How confident the SLM has to be, from the strictest on: every value met, or `most` of them evenly spread."""
    values = sorted({row.confidence for row in rows if row.confidence is not None}, reverse=True)
    if len(values) <= most:
        return values
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def choose(passing: Sequence[Mixture], test_rows: int, *, delta: float, seed: int) -> Mixture | None:
    """The largest share that `test_rows` rows like these would confirm with 90 % power, else the likeliest one.

    The largest passing share alone would be one that just passes, which other rows confirm about every second time.
    """
    chances = [
        min(_confirmed(values, test_rows, delta=delta, seed=seed) for values in point.differences) for point in passing
    ]
    best = max(
        zip(chances, passing, strict=True), key=lambda pair: (min(pair[0], CONFIRMED), pair[1].share), default=None
    )
    return best and best[1]


def _confirmed(differences: NDArray[np.float64], n: int, *, delta: float, seed: int) -> float:
    """The share of draws of `n` rows from `differences` that pass the rule (graded ones by their normal bound)."""
    if n == 0:
        return 0.0
    chance = np.random.default_rng(seed)
    if bool(np.isin(differences, (-1.0, 0.0, 1.0)).all()):
        shares = [float((differences == value).mean()) for value in (1.0, -1.0)]
        drawn = chance.multinomial(n, [*shares, max(0.0, 1.0 - sum(shares))], size=_DRAWS)
        return float(np.mean(shows(drawn[:, 0], drawn[:, 1], n, delta)))
    drawn_rows = chance.choice(differences, size=(_DRAWS, n))
    z = float(stats.norm.ppf(1 - ONE_SIDED))
    return float(np.mean(drawn_rows.mean(axis=1) - z * drawn_rows.std(axis=1, ddof=1) / math.sqrt(n) > -delta))


def _gaps(llm: Metrics, slm: Metrics, names: Sequence[str]) -> dict[str, float]:
    return {name: b - a for name in names if (a := llm.get(name)) is not None and (b := slm.get(name)) is not None}


def _seen(answers: Sequence[AnswerResult]) -> tuple[list[str], bool]:
    """Which forms these answers of the SLM are checked for, and whether they carry log-probabilities."""
    forms = [name for name in FORMS if any(answer.scores.get(name) is not None for answer in answers)]
    return forms, any(answer.logprob is not None for answer in answers)


def _confidence(answer: AnswerResult, forms: Sequence[str], logprobs: bool) -> float | None:
    if answer.failure or any(answer.scores.get(name) == 0 for name in forms):
        return None
    return answer.logprob if logprobs else 0.0
