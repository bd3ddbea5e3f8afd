"""From labels and judgements to a decision, under the paired rule, at the looks that were declared and nowhere else.

A look uses exactly as many units as were declared for it, in the order of the queue, and has its equal share of the 5 %
(Bonferroni), so that looking as often as one likes and stopping at the first look that decides keeps a false swap, and a
false fine_tune, at 5 % at most. Without people there is no verdict; the judge alone never gives one. Rows whose calls
failed count against the model that failed, and without them the action has to be the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from slm_ray.errors import ComparisonError
from slm_ray.judging.labels import Labels, settled
from slm_ray.judging.queue import PAGE, Queue
from slm_ray.records import Report, RowResult
from slm_ray.scoring.judge import preference_agreement
from slm_ray.types import Action, Decision
from slm_ray.verdict.candidates import percent
from slm_ray.verdict.decide import MOST_FAILED, clearly_worse, not_worse, too_many_failed
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.prediction_powered import (
    LEAST_LABELS,
    JudgedUnit,
    PredictionPowered,
    labels_for_decision,
    labels_for_width,
    prediction_powered,
)

_SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedVerdict:
    """A decision by judge and people, and what it rests on.

    `labelled` counts the units (groups, or rows without one) at the head of the queue that are labelled without a gap,
    `aside` the labelled rows behind a gap, which wait, `missing` the units to the next look, and `needed` about how many
    would decide if the estimate stayed what it is (None: no look yet, decided, or not even all). `seen` is None before the first look; `agreement` is the share of rows
    on which judge and people name the same answer, or both none, with Cohen's `kappa`.
    """

    decision: Decision
    level: float
    looks: tuple[int, ...]
    labelled: int
    labels_by_people: int
    labellers: tuple[str, ...]
    aside: int
    missing: int
    needed: int | None = None
    agreement: float | None = None
    kappa: float | None = None
    seen: PredictionPowered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    queue: Queue
    rows: Mapping[str, RowResult]
    judge: Mapping[str, float]
    people: Mapping[str, float]
    level: float

    def units(self, labelled: int, keep: Callable[[RowResult], bool]) -> list[JudgedUnit]:
        """The units over the rows to keep, the first `labelled` of them with what people said."""
        found = []
        for place, ids in enumerate(self.queue.units):
            kept = [key for key in ids if keep(self.rows[key])]
            if kept:
                people = sum(self.people[key] for key in kept) if place < labelled else None
                found.append(JudgedUnit(judge=sum(self.judge[key] for key in kept), people=people, rows=len(kept)))
        return found

    def answered(self, row: RowResult) -> bool:
        return all(row.models[spec].text is not None for spec in (self.queue.llm, self.queue.slm))

    def unreached(self, row: RowResult, spec: str) -> bool:
        failure = row.models[spec].failure
        return failure is not None and failure.in_transport


def judged_verdict(
    report: Report, rows: Sequence[RowResult], queue: Queue, shares: Mapping[str, float | None], labels: Labels, *,
    level: float = ONE_SIDED,
) -> JudgedVerdict:  # fmt: skip
    """The decision at the first look that decides, else at the last one that the labels reach.

    All looks together err with probability `level`, what other candidates on these rows have left of the 5 %; at 0
    nothing is decided. `shares` are the SLM's shares of the win as the judge sees them by row id, None where unreadable (a guess of a tie,
    which the correction takes in). ComparisonError when a model was trained on the rows.
    """
    for spec in (queue.llm, queue.slm):
        if trained := report.models[spec].trained_on:
            raise ComparisonError(f"{spec} was trained on {trained} of the {len(rows)} rows; judge held-out rows")
    judge = {key: 0.0 if share is None else 2 * share - 1 for key, share in shares.items()}
    case = _Case(
        queue=queue, rows={row.id: row for row in rows}, judge=judge | settled(queue, rows), people=labels.differences,
        level=level / len(queue.looks),
    )  # fmt: skip
    labelled = next(
        (place for place, ids in enumerate(queue.units) if not all(key in case.people for key in ids)), len(queue.units)
    )
    asked = [key for ids in queue.units[:labelled] for key in ids if case.answered(case.rows[key])]
    reached = [look for look in queue.looks if look <= labelled]
    later = [look for look in queue.looks if look > labelled]
    alike, kappa = preference_agreement([(case.judge[key], case.people[key]) for key in asked])
    base = JudgedVerdict(
        decision=Decision(action="inconclusive", rule="paired", delta=queue.delta, because=("no look yet.",)),
        level=case.level, looks=queue.looks, labelled=labelled, labels_by_people=labels.by_people,
        labellers=labels.labellers, aside=labels.by_people - len(asked), missing=later[0] - labelled if later else 0,
        agreement=alike, kappa=kappa,
    )  # fmt: skip
    action: Action = "inconclusive"
    seen: PredictionPowered | None = None
    because = _impossible(case)
    if not because:
        for look in reached:
            action, seen, because = _look(case, look)
            if action != "inconclusive":
                break
        if action == "inconclusive":
            needed = labels_for_decision(seen, queue.delta) if seen else None
            base = replace(base, needed=None if needed is None else max(needed, labelled + 1))
            because += _missing(case, seen, labelled, later, base.needed)
        else:
            base = replace(base, missing=0)
    because += _stand_ins(report, queue)
    return replace(base, decision=replace(base.decision, action=action, because=tuple(because)), seen=seen)


def lines(verdict: JudgedVerdict) -> Iterator[str]:
    """The verdict as a person reads it; the last line is `FINE_TUNE=0|1`."""
    decision, seen = verdict.decision, verdict.seen
    people = f"{len(verdict.labellers)} {'person' if len(verdict.labellers) == 1 else 'people'}"
    aside = f", {verdict.aside} more wait behind a row that is not labelled" if verdict.aside else ""
    yield f"labels: {verdict.labelled} units in the drawn order, {verdict.labels_by_people} rows by {people}{aside}"
    if verdict.agreement is not None:
        kappa = "-" if verdict.kappa is None else f"{verdict.kappa:.2f}"
        yield f"judge and people say the same of {verdict.agreement:.0%} of the labelled rows (kappa {kappa})"
    if seen:
        yield (
            f"judge alone, on all rows: {seen.judge_all:+.4f}; where people spoke too: judge {seen.judge:+.4f}, people"
            f" {seen.people:+.4f}, so its bias is {seen.bias:+.4f}"
        )
        yield (
            f"weight of the judge {seen.weight:.2f}: {seen.labels} labels are worth {seen.effective_labels:.0f} by people alone"
        )
    yield f"verdict: {decision.action}; rule {decision.rule}, delta {decision.delta:g} on wins minus losses"
    yield from (f"- {sentence}" for sentence in decision.because)
    yield f"FINE_TUNE={int(decision.action == 'fine_tune')}"


def note(verdict: JudgedVerdict) -> str:
    """How far the labels are, for those who label: it does not say which way they point."""
    if verdict.decision.action != "inconclusive":
        return "The verdict is made: no more labels are needed."
    if verdict.seen is None:
        return f"{verdict.labelled} of {verdict.looks[0]} labels for the first verdict have been read."
    enough = "more rows are needed than these" if verdict.needed is None else f"about {verdict.needed} would do"
    return f"{verdict.seen.labels} labels did not decide; {enough}."


def _look(case: _Case, look: int) -> tuple[Action, PredictionPowered, list[str]]:
    """One look at the first `look` units: the action that all readings of failed calls share, and the bounds behind it."""
    infer = functools.partial(prediction_powered, level=case.level, seed=_SEED)
    seen = infer(case.units(look, lambda row: True))
    delta, bounds = case.queue.delta, seen.interval
    action = _action(seen, delta)
    because = [
        f"wins minus losses of the SLM, as people see them: {bounds.estimate:+.4f} at {look} labelled of {seen.units} units,"
        f" with one-sided {1 - case.level:.2%} bounds {bounds.lower:+.4f} and {bounds.upper:+.4f} ({bounds.method}; an error of"
        f" {percent(case.level * len(case.queue.looks))} shared equally by {len(case.queue.looks)} looks).",
        {
            "swap": f"the lower bound is above {-delta:+.4f}: the SLM is not worse by {delta:g} or more.",
            "fine_tune": f"the upper bound is below {-delta:+.4f}: the SLM trails by more than {delta:g}.",
            "inconclusive": f"{-delta:+.4f} lies between the bounds.",
        }[action],
    ]
    reached = [row for row in case.rows.values() if not any(case.unreached(row, spec) for spec in _specs(case))]
    kept = {row.id for row in reached}
    readings: dict[str, Callable[[RowResult], bool]] = {}
    if len(kept) < len(case.rows):
        readings["the rows on which no call failed"] = lambda row: row.id in kept
    if action == "swap" and not all(map(case.answered, case.rows.values())):
        readings["the rows that both answered"] = case.answered
    for which, keep in readings.items():
        units = case.units(look, keep)
        enough = sum(unit.people is not None for unit in units) >= LEAST_LABELS
        other = _action(infer(units), delta) if enough else None
        if action not in ("inconclusive", other):
            said = f"they say {other}" if other else f"fewer than {LEAST_LABELS} are labelled"
            because.append(
                f"failures decide here: with them counted as losses the action is {action}; of {which} {said}."
            )
            action = "inconclusive"
    return action, seen, because


def _action(seen: PredictionPowered, delta: float) -> Action:
    if not_worse(seen.interval, delta):
        return "swap"
    return "fine_tune" if clearly_worse(seen.interval, delta) else "inconclusive"


def _specs(case: _Case) -> tuple[str, str]:
    return case.queue.llm, case.queue.slm


def _impossible(case: _Case) -> list[str]:
    """Why no label would help: no error left, a model out of reach on too many rows, or too few rows."""
    found = [] if case.level else ["no verdict: nothing is left of the error that all candidates on these rows share."]
    for role, spec in zip(("LLM", "SLM"), _specs(case), strict=True):
        failed = sum(case.unreached(row, spec) for row in case.rows.values())
        if too_many_failed(failed, len(case.rows)):
            found.append(
                f"no verdict: the calls of the {role} ({spec}) failed on {failed} of {len(case.rows)} rows (more than"
                f" {MOST_FAILED:.0%}); these answers are missing, not worse. Mend its endpoint, evaluate again and judge"
                " into another run_dir."
            )
    if len(case.queue.units) < LEAST_LABELS:
        found.append(
            f"no verdict: {len(case.queue.units)} units (groups, or rows without one), and {LEAST_LABELS} labels at least"
            " are needed for bounds that hold; evaluate more rows."
        )
    return found


def _missing(
    case: _Case, seen: PredictionPowered | None, labelled: int, later: Sequence[int], needed: int | None
) -> list[str]:
    """What is missing to the next look, and about how many labels would decide or be as narrow as the margin."""
    found = []
    if later:
        found.append(
            f"{later[0] - labelled} labels are missing to the look at {later[0]}: label on in {PAGE}, in its order. The judge"
            " alone decides nothing."
        )
    else:
        found.append(
            "that was the last look: a verdict needs fresh rows. Another queue of these rows would be a second try at"
            f" {percent(ONE_SIDED)}."
        )
    if seen is None:
        return found
    bounds, delta = seen.interval, case.queue.delta
    stays = f"if the estimate stayed at {bounds.estimate:+.4f}"
    found.append(
        f"{stays}, about {needed} labels would decide."
        if needed is not None
        else f"{stays}, not even labels on all {seen.units} units would decide: more rows, or a wider margin declared for fresh"
        " ones."
    )
    narrow = labels_for_width(seen, delta) if delta else None
    if narrow is not None and narrow > seen.labels:
        half = (bounds.upper - bounds.lower) / 2
        found.append(
            f"half the distance of the bounds is {half:.4f}; about {narrow} labels would bring it to {delta:g}."
        )
    return found


def _stand_ins(report: Report, queue: Queue) -> list[str]:
    return [
        f"the {role} here is a stand-in ({spec}): this says nothing about the model it stands for."
        for role, spec in (("LLM", queue.llm), ("SLM", queue.slm))
        if report.models[spec].stand_in
    ]
