"""Rows routed by the confidence of the SLM in its answer: to itself above a threshold, to the LLM below it.

Its confidence is told without the expected answer: an answer has to be in the right form (valid JSON, a valid call, the
track's schema) and is then ranked by its mean token log-probability, where rows carry one. Knows mixtures and which
thresholds to try; whether a share is accepted is decided in `partial_replacement`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slm_ray.records import AnswerResult, Metrics, RowResult
from slm_ray.scoring import form_metrics
from slm_ray.types import Interval, Slice
from slm_ray.verdict.compare import Bounds, sliced
from slm_ray.verdict.decide import clearly_worse, not_worse
from slm_ray.verdict.non_inferiority import ONE_SIDED

MOST_THRESHOLDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One row that both models have a score for; `confidence` is None where the SLM's answer is not in the right form.

    `guardrails` holds SLM minus LLM of the further metrics that must not be worse, where both are defined. `reached`: no
    call failed in transport; `answered`: both gave a text.
    """

    confidence: float | None
    llm: float
    slm: float
    guardrails: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    reached: bool = True
    answered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The rows at or above `threshold` answered by the SLM, the others by the LLM.

    `interval` is of the primary metric, `guardrails` of the others, `readings` of the primary one over fewer rows, where
    calls failed; `slices` only where they were asked for.
    """

    threshold: float
    share: float
    quality: float
    interval: Interval
    guardrails: Mapping[str, Interval]
    readings: Mapping[str, Interval]
    slices: tuple[Slice, ...] = ()

    def passes(self, delta: float) -> bool:
        """Every guard of a whole swap: all metrics, over all rows and those without failures, and no slice clearly worse."""
        held = (self.interval, *self.guardrails.values(), *self.readings.values())
        return all(not_worse(interval, delta) for interval in held) and not self.worse(delta)

    def worse(self, delta: float) -> list[Slice]:
        """The slices that stand in the way."""
        return [part for part in self.slices if clearly_worse(part.interval, delta)]


def ranked(
    rows: Sequence[RowResult], *, llm: str, slm: str, primary: str, guardrails: Sequence[str] = ()
) -> tuple[list[Routed], str]:
    """The rows as `Routed`, and in words what ranks them."""
    both = [row for row in rows if {llm, slm} <= row.models.keys()]
    forms, logprobs = _seen([row.models[slm] for row in both])
    found = [
        Routed(
            confidence=_confidence(models[slm], forms, logprobs),
            llm=float(a),
            slm=float(b),
            guardrails=_gaps(models[llm].scores, models[slm].scores, guardrails),
            tags=row.tags,
            group=row.group,
            answered=not (failures := [one for spec in (llm, slm) if (one := models[spec].failure)]),
            reached=not any(one.in_transport for one in failures),
        )
        for row in both
        if (models := row.models)
        and (a := models[llm].scores.get(primary)) is not None
        and (b := models[slm].scores.get(primary)) is not None
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


def mixture(
    rows: Sequence[Routed], threshold: float, *, resamples: int, seed: int, level: float = ONE_SIDED,
    slice_rows: int | None = None,
) -> Mixture:  # fmt: skip
    """The mixture at one threshold, with the bounds of its difference to the LLM alone, each at `level`.

    With `slice_rows` also those of the tag values on at least so many rows.
    """
    keyed = {str(at): row for at, row in enumerate(rows)}
    taken = {key for key, row in keyed.items() if row.confidence is not None and row.confidence >= threshold}
    bounds = Bounds(groups={key: row.group for key, row in keyed.items()}, level=level, resamples=resamples, seed=seed)
    gaps = {key: row.slm - row.llm if key in taken else 0.0 for key, row in keyed.items()}
    kept = {
        "reached": {key: gap for key, gap in gaps.items() if keyed[key].reached},
        "answered": {key: gap for key, gap in gaps.items() if keyed[key].answered},
    }
    guardrails = {
        name: {
            key: row.guardrails[name] if key in taken else 0.0 for key, row in keyed.items() if name in row.guardrails
        }
        for name in dict.fromkeys(name for row in rows for name in row.guardrails)
    }
    tags = {key: row.tags for key, row in keyed.items()}
    return Mixture(
        threshold=threshold,
        share=len(taken) / len(rows),
        quality=math.fsum(row.slm if key in taken else row.llm for key, row in keyed.items()) / len(rows),
        interval=bounds.of(gaps),
        guardrails={name: bounds.of(values) for name, values in guardrails.items()},
        readings={name: bounds.of(values) for name, values in kept.items() if values and len(values) < len(gaps)},
        slices=sliced(gaps, tags, slice_rows, bounds) if slice_rows else (),
    )


def thresholds(rows: Sequence[Routed], most: int = MOST_THRESHOLDS) -> list[float]:
    """How confident the SLM has to be, from the strictest on: every value met, or `most` of them evenly spread."""
    values = sorted({row.confidence for row in rows if row.confidence is not None}, reverse=True)
    if len(values) <= most:
        return values
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def _gaps(llm: Metrics, slm: Metrics, names: Sequence[str]) -> dict[str, float]:
    return {name: b - a for name in names if (a := llm.get(name)) is not None and (b := slm.get(name)) is not None}


def _seen(answers: Sequence[AnswerResult]) -> tuple[list[str], bool]:
    """Which forms these answers of the SLM are checked for, and whether they carry log-probabilities."""
    forms = [name for name in form_metrics() if any(answer.scores.get(name) is not None for answer in answers)]
    return forms, any(answer.logprob is not None for answer in answers)


def _confidence(answer: AnswerResult, forms: Sequence[str], logprobs: bool) -> float | None:
    if answer.failure or any(answer.scores.get(name) == 0 for name in forms):
        return None
    return answer.logprob if logprobs else 0.0
