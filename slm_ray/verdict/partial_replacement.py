"""How much of the traffic the SLM may take when it may not take all: rows it is sure of go to it, the rest to the LLM.

A mixture is judged by every guard of a whole swap: the same margin and bounds on the primary metric and the guardrails,
over all rows and over those without failures, and no slice clearly worse; a row that the LLM answers differs by nothing.
The share is found by fixed-sequence testing (Learn then Test: Angelopoulos et al. 2021, arXiv:2110.01052). The validation
rows give the thresholds and their order, from the most cautious up; the test rows test one after the other, each at the
full level, until the first that does not pass; the last that did is taken. To accept a share that is too large the *first*
one that is too large has to pass, so that the chance of it is that of one test, however many were tried. Pure; asks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm_ray.errors import ComparisonError, choices
from slm_ray.records import MixturePoint, PartialReplacement, Report, RowResult
from slm_ray.verdict.arms import track_of
from slm_ray.verdict.compare import SLICE_ROWS
from slm_ray.verdict.decide import not_worse, too_many_failed
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.routing import Mixture, Routed, mixture, ranked, thresholds

STEPS = 20  # thresholds that are tested: each lets the SLM take about another twentieth of the validation rows

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
    guardrails: Sequence[str] = (), prices: Prices | None = None, cost_hypothetical: bool = False,
    level: float = ONE_SIDED,
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
    held = tracks[1].guardrails_with(guardrails)
    stages = [
        ranked(rows, llm=llm, slm=slm, primary=tracks[0].primary, guardrails=held) for _, rows in (validation, test)
    ]
    found = partial_replacement(
        stages[0], stages[1], primary=tracks[0].primary, delta=delta, resamples=resamples, seed=seed, prices=prices,
        level=level,
    )  # fmt: skip
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
    level: float = ONE_SIDED,
    slice_rows: int = SLICE_ROWS,
) -> PartialReplacement:
    """What the rows of both stages say of a mixture.

    Both stages come from `ranked` and share no row, which is the caller's to see to. With the same rows it gives the
    same figures. No share is accepted that the test rows do not confirm, and none where the two stages rank otherwise.
    """
    prices = prices or Prices()
    (rows, by), (test_rows, test_by) = validation, test
    points = (
        [mixture(rows, at, resamples=resamples, seed=seed, level=level) for at in thresholds(rows)]
        if by == test_by
        else []
    )
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
    steps = _steps(rows)
    if not steps or not test_rows:
        words = (
            "there are no test rows."
            if steps
            else f"on none of {len(rows)} validation rows is its answer in the right form."
        )
        return replace(found, **_nothing(delta, words, f"ranked by {by}."))
    passed, stopped = _climb(
        test_rows, steps, delta=delta, resamples=resamples, seed=seed, level=level, slice_rows=slice_rows
    )
    last = passed[-1] if passed else stopped
    assert last is not None
    own = sum(row.confidence is not None and row.confidence >= last.threshold for row in rows) / len(rows)
    return replace(
        found,
        validation_share=own,
        threshold=last.threshold,
        test_share=last.share,
        test=_point(last, delta, prices),
        **_taken(passed, stopped, len(test_rows), own, by, primary=primary, delta=delta),
    )


def _steps(rows: Sequence[Routed]) -> list[float]:
    """The thresholds to test, the most cautious first, from validation rows alone."""
    found = thresholds(rows, STEPS + 1)
    return found[1:] if len(found) > STEPS else found  # the first would let it take a single row


def _climb(
    rows: Sequence[Routed], steps: Sequence[float], *, delta: float, resamples: int, seed: int, level: float,
    slice_rows: int,
) -> tuple[list[Mixture], Mixture | None]:  # fmt: skip
    """The mixtures that passed before the first that did not, and that one."""
    passed: list[Mixture] = []
    for threshold in steps:
        point = mixture(rows, threshold, resamples=resamples, seed=seed, level=level, slice_rows=slice_rows)
        if not point.passes(delta):
            return passed, point
        passed.append(point)
    return passed, None


def _out_of_reach(rows: Sequence[RowResult], spec: str, name: str) -> str:
    """That a model's calls failed on too many of these rows to say anything; empty where they did not."""
    failures = [row.models[spec].failure for row in rows if spec in row.models]
    failed = sum(failure is not None and failure.in_transport for failure in failures)
    return (
        f"calls of {spec} failed on {failed} of {len(rows)} {name} rows" if too_many_failed(failed, len(rows)) else ""
    )


def _taken(
    passed: Sequence[Mixture], stopped: Mixture | None, n: int, own: float, by: str, *, primary: str, delta: float
) -> dict[str, Any]:
    """The last word of the test rows."""
    how = (
        f"ranked by {by}; thresholds from the most cautious up, in the order that the validation rows give, each tested on"
        f" {n} test rows until the first that does not pass: the error is that of one test."
    )
    if not passed:
        assert stopped is not None
        unseen = -float(1.0 - ONE_SIDED ** (1.0 / n))
        few = (
            f"{n} test rows are too few: even with no row lost or gained the lower bound would be {unseen:+.4f}."
            if unseen <= -delta
            else f"the most cautious share tested, {_percent(stopped.share)}, is {_bounds(stopped, delta)} on {n} test rows."
        )
        return _nothing(delta, few, how)
    last = passed[-1]
    end = (
        f"{len(passed)} passed, the next, {_percent(stopped.share)}, does not: {_bounds(stopped, delta)}."
        if stopped
        else f"all {len(passed)} passed."
    )
    return {
        "share": last.share,
        "line": f"SLM can take {_percent(last.share)} at delta {delta:g} ({_percent(own)} of validation rows; test rows:"
        f" {primary} {_bounds(last, delta)})",
        "because": (how, end),
    }


def _nothing(delta: float, *because: str) -> dict[str, Any]:
    return {"line": f"SLM can take 0 % at delta {delta:g}: {because[0]}", "because": because[1:]}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bounds(point: Mixture, delta: float) -> str:
    """The primary metric's figures, and those of all that stands in the way."""
    failing = {name: found for name, found in point.guardrails.items() if not not_worse(found, delta)}
    said = [
        f"; the guardrail {name} {found.estimate:+.4f}, lower bound {found.lower:+.4f}"
        for name, found in failing.items()
    ]
    said += [
        f"; {part.tag} {part.value!r} {part.interval.estimate:+.4f}, upper bound {part.interval.upper:+.4f}"
        for part in point.worse(delta)
    ]
    said += [
        f"; over the rows {name} {found.estimate:+.4f}, lower bound {found.lower:+.4f}"
        for name, found in point.readings.items()
        if not not_worse(found, delta)
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
