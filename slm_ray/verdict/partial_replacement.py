"""How much of the traffic the SLM may take when it may not take all: rows it is sure of go to it, the rest to the LLM.

The mixture is judged by the same paired rule and margin as a whole swap; a row that the LLM answers differs by nothing.
The threshold is the one with the largest share that passes on validation rows and that so many test rows would confirm
with 90 % power. Trying many thresholds makes that choice lucky, so it is checked once, as it stands, on test rows: that
one check has the error of one test, whatever was done on validation rows. Pure; asks nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm_ray.errors import ComparisonError, choices
from slm_ray.records import MixturePoint, PartialReplacement, Report, RowResult
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.decide import not_worse, too_many_failed
from slm_ray.verdict.routing import Mixture, Routed, choose, mixture, ranked, thresholds

_Evaluation = tuple[Report, Sequence[RowResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD per request of either model; None where unknown."""

    llm_usd: float | None = None
    slm_usd: float | None = None

    def of(self, share: float) -> float | None:
        """USD per request of a mixture: the SLM is asked first every time, since its answer says how sure it is."""
        if self.llm_usd is None or self.slm_usd is None:
            return None
        return self.slm_usd + (1 - share) * self.llm_usd


def partial_replacement_of(
    validation: _Evaluation, test: _Evaluation, *, llm: str, slm: str, delta: float, resamples: int, seed: int,
    guardrails: Sequence[str] = (), prices: Prices | None = None,
    cost_hypothetical: bool = False,
) -> PartialReplacement:  # fmt: skip
    """`partial_replacement` of two evaluations, each a report with its rows; `guardrails` are besides those that the track names.

    Raises ComparisonError where the two are of different tracks or share rows, and where the validation rows lack a
    model or hold rows that it was trained on: a threshold that was chosen on the rows that check it shows nothing.
    """
    tracks = [track_of(report) for report, _ in (validation, test)]
    if (tracks[0].name, tracks[0].primary) != (tracks[1].name, tracks[1].primary):
        raise ComparisonError(
            f"the validation report is of {tracks[0].name} by {tracks[0].primary}, the other of {tracks[1].name} by"
            f" {tracks[1].primary}; give two evaluations of one track"
        )
    for spec in (llm, slm):
        if spec not in (models := validation[0].models):
            raise ComparisonError(f"{spec!r} is not in the validation report: {choices(spec, models)}")
        if models[spec].trained_on:
            raise ComparisonError(f"{spec} was trained on {models[spec].trained_on} of the validation rows")
    asked = {row.prompt_hash for row in test[1]}
    both = sum(row.prompt_hash in asked for row in validation[1])
    if both:
        raise ComparisonError(
            f"{both} of {len(validation[1])} validation rows are also in the report that checks the threshold;"
            " give an evaluation of other rows as validation_report"
        )
    named = zip(("validation", "test"), (validation[1], test[1]), strict=True)
    if missing := [words for name, rows in named for spec in (llm, slm) if (words := _out_of_reach(rows, spec, name))]:
        return PartialReplacement(
            delta=delta,
            primary=tracks[1].primary,
            ranked_by="",
            validation_rows=len(validation[1]),
            test_rows=len(test[1]),
            **_nothing(delta, f"{'; '.join(missing)}: mend it and run that evaluation's command again."),
        )
    held = tuple(dict.fromkeys((*tracks[1].guardrails, *guardrails)))
    stages = [
        ranked(rows, llm=llm, slm=slm, primary=tracks[0].primary, guardrails=held) for _, rows in (validation, test)
    ]
    found = partial_replacement(
        stages[0], stages[1], primary=tracks[0].primary, delta=delta, resamples=resamples, seed=seed, prices=prices
    )
    return replace(found, cost_hypothetical=cost_hypothetical)


def partial_replacement(
    validation: tuple[Sequence[Routed], str],
    test: tuple[Sequence[Routed], str],
    *,
    primary: str,
    delta: float,
    resamples: int,
    seed: int,
    prices: Prices | None = None,
) -> PartialReplacement:
    """What the rows of both stages say of a mixture.

    Both stages come from `ranked` and share no row, which is the caller's to see to. With the same rows it gives the
    same figures. No share is accepted that the test rows do not confirm, and none where the two stages rank otherwise.
    """
    prices = prices or Prices()
    (rows, by), (test_rows, test_by) = validation, test
    judge = functools.partial(mixture, resamples=resamples, seed=seed)
    points = [judge(rows, threshold) for threshold in thresholds(rows)] if by == test_by else []
    found = PartialReplacement(
        delta=delta,
        primary=primary,
        ranked_by=by,
        validation_rows=len(rows),
        test_rows=len(test_rows),
        curve=tuple(_point(point, delta, prices) for point in points),
        line="",
        because=(),
    )
    if by != test_by:
        words = f"validation rows are ranked by {by}, test rows by {test_by}; evaluate both alike."
        return replace(found, **_nothing(delta, words))
    passing = [point for point in points if point.passes(delta)]
    chosen = choose(passing, len(test_rows), delta=delta, seed=seed)
    if chosen is None:
        return replace(found, **_nothing(delta, _none_passes(points, len(rows), delta), f"ranked by {by}."))
    checked = judge(test_rows, chosen.threshold) if test_rows else None
    how = (
        f"ranked by {by}; the threshold {chosen.threshold:.4f} is that of the largest share that passes on {len(rows)}"
        f" validation rows and that {len(test_rows)} test rows would confirm with 90 % power"
        f" ({_percent(chosen.share)}, {_bounds(chosen, delta)})."
    )
    return replace(
        found,
        validation_share=chosen.share,
        threshold=chosen.threshold,
        test_share=checked.share if checked else None,
        test=_point(checked, delta, prices) if checked else None,
        **_checked(chosen, checked, len(test_rows), how, primary=primary, delta=delta),
    )


def _out_of_reach(rows: Sequence[RowResult], spec: str, name: str) -> str:
    """That a model's calls failed on too many of these rows to say anything; empty where they did not."""
    failures = [row.models[spec].failure for row in rows if spec in row.models]
    failed = sum(failure is not None and failure.kind == "error" for failure in failures)
    return (
        f"calls of {spec} failed on {failed} of {len(rows)} {name} rows" if too_many_failed(failed, len(rows)) else ""
    )


def _checked(
    chosen: Mixture, checked: Mixture | None, n: int, how: str, *, primary: str, delta: float
) -> dict[str, Any]:
    """The last word of the test rows."""
    if checked is None or not checked.passes(delta):
        where = "there are no test rows" if checked is None else f"on {n} test rows it is {_bounds(checked, delta)}"
        return _nothing(delta, f"what passed on validation rows was not confirmed: {where}.", how)
    return {
        "share": checked.share,
        "line": f"SLM can take {_percent(checked.share)} at delta {delta:g} ({_percent(chosen.share)} of validation rows;"
        f" test rows: {primary} {_bounds(checked, delta)})",
        "because": (
            how,
            f"checked once on {n} test rows, which had no part in choosing it: the error of this check is that of one test.",
        ),
    }


def _nothing(delta: float, *because: str) -> dict[str, Any]:
    return {"line": f"SLM can take 0 % at delta {delta:g}: {because[0]}", "because": because[1:]}


def _none_passes(points: Sequence[Mixture], n: int, delta: float) -> str:
    if not points:
        return f"on none of {n} validation rows is its answer in the right form."
    unseen = -float(1.0 - 0.05 ** (1.0 / n))
    if unseen <= -delta:
        return (
            f"{n} validation rows are too few: even with no row lost or gained the lower bound would be {unseen:+.4f}."
        )
    best = max(points, key=lambda point: point.interval.lower)
    return f"no share passes on {n} validation rows; the nearest, {_percent(best.share)}, is {_bounds(best, delta)}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bounds(point: Mixture, delta: float) -> str:
    """The primary metric's figures, and those of guardrails that do not hold."""
    failing = {name: found for name, found in point.guardrails.items() if not not_worse(found, delta)}
    said = [
        f"; the guardrail {name} {found.estimate:+.4f}, lower bound {found.lower:+.4f}"
        for name, found in failing.items()
    ]
    return f"{point.interval.estimate:+.4f}, lower bound {point.interval.lower:+.4f}{''.join(said)}"


def _point(point: Mixture, delta: float, prices: Prices) -> MixturePoint:
    return MixturePoint(
        share=point.share,
        threshold=point.threshold,
        quality=point.quality,
        difference=point.interval.estimate,
        lower=point.interval.lower,
        passes=point.passes(delta),
        guardrails_lower={name: interval.lower for name, interval in point.guardrails.items()},
        per_request_usd=prices.of(point.share),
    )
