"""The head of a track's report: the money, why it was decided so, where the small model fails, and what to do on Monday.

Sentences of figures that stand elsewhere on the page; decides and computes nothing. What is not known is said to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.cost_records import CostReport
from slm_ray.page import formatting
from slm_ray.page.data import StageDecision, TrackResult
from slm_ray.records import Report
from slm_ray.types import Comparison
from slm_ray.verdict.decide import clearly_worse, not_worse

_SLICES = 3
_ISSUES = 2
_READ = "read the rows that it lost, below"
_MONDAY = {
    "swap": (
        "serve the adapter to 5 % of the users, as below",
        "log both answers where you can, and compare again on them",
        "keep the LLM as the fallback until that comparison holds",
    ),
    "fine_tune": (
        _READ,
        "add training rows like them (the ratings below export as training rows)",
        "run the loop again: here, where only the training changes and the test rows stay, so that it counts as the next"
        " candidate on them; else into another folder, with fresh test rows",
    ),
    "inconclusive": (
        "get fresh test rows, as many as the reasons name",
        "declare the rule, and run the loop again on them: rows that were looked at already cannot decide",
    ),
    "none": ("compare two models on test rows",),
}
_GO_ON = (
    "ask further rows and go on where this ended: the sequential rule allows it (the setting extend of evaluate)",
    "compare again on all of them",
)
_REAL = (
    "set the key of the LLM that you pay for and run the same command: a stand-in decides nothing",
    _READ,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Four short answers, each a few sentences."""

    money: tuple[str, ...]
    why: tuple[str, ...]
    where: tuple[str, ...]
    monday: tuple[str, ...]


def summary(
    track: TrackResult, final: StageDecision | None, last: Report | None, lost_by: Mapping[str, Any] | None, *, stand_in: bool, graded: bool
) -> Summary:  # fmt: skip
    """Of the last decision of a track and the report that it rests on."""
    action = final.decision.action if final else "none"
    going_on = final and (final.decision.rule, action, final.decision.exploratory) == (
        "sequential",
        "inconclusive",
        None,
    )
    return Summary(
        money=_money(track.cost),
        why=_why(final),
        where=_where(final.comparison, final.decision.delta, last, lost_by, graded) if final else (),
        monday=_REAL if stand_in and final else _GO_ON if going_on else _MONDAY[action],
    )


def _money(cost: CostReport | None) -> tuple[str, ...]:
    if cost is None:
        return ("No cost was worked out.",)
    llm, slm = cost.arms.get(cost.llm), cost.arms.get(cost.slm)
    said = [formatting.sentence(cost.at_my_volume)] if cost.at_my_volume else []
    if not said and llm and slm and llm.per_request_usd is not None and slm.per_request_usd is not None:
        mark = " (hypothetical)" if llm.hypothetical or slm.hypothetical else ""
        said.append(
            f"USD per 1,000 requests: {formatting.thousand_usd(llm.per_request_usd)} for the LLM,"
            f" {formatting.thousand_usd(slm.per_request_usd)} for the SLM{mark}."
        )
    return (*said, formatting.sentence(cost.break_even.because))


def _why(final: StageDecision | None) -> tuple[str, ...]:
    """The deciding figure and how it is read, where the bounds decided; else the first reason."""
    if final is None:
        return ("Nothing was compared.",)
    interval, decision = final.interval, final.decision
    margin = formatting.points(-decision.delta)
    words = {
        "swap": (not_worse, f"even its lower bound, {formatting.points(interval.lower)}, is above {margin}"),
        "fine_tune": (clearly_worse, f"even its upper bound, {formatting.points(interval.upper)}, is below {margin}"),
    }
    reading = words.get(decision.action)
    if decision.rule == "point" or reading is None or not reading[0](interval, decision.delta):
        sentences = (decision.because[0], *([decision.advice] if decision.advice else []))
        return tuple(formatting.in_points(sentence) for sentence in sentences)
    said = (
        f"SLM − LLM is {formatting.points(interval.estimate)} points {formatting.half_width(interval)}: {reading[1]}."
    )
    return (said,)


def _where(
    comparison: Comparison, delta: float, last: Report | None, lost_by: Mapping[str, Any] | None, graded: bool
) -> tuple[str, ...]:
    said = []
    if not graded:
        said.append(
            f"Of {comparison.n:,} rows only the LLM is right on {comparison.llm_only_right:,}, only the SLM on"
            f" {comparison.slm_only_right:,}."
        )
    worse = [one for one in comparison.slices if clearly_worse(one.interval, delta)]
    if worse:
        names = ", ".join(
            f"{one.tag} {one.value} ({formatting.points(one.interval.estimate)})" for one in worse[:_SLICES]
        )
        said.append(f"Shown worse: {names}.")
    elif lost_by:
        names = ", ".join(f"{one['name']} ({one['lost']} of {one['of']})" for one in lost_by["worst"][:_SLICES])
        said.append(f"Most rows lost, by {lost_by['tag']}: {names}.")
    issues = last.models[comparison.slm].issues if last and comparison.slm in last.models else {}
    most = sorted(issues, key=lambda issue: (-issues[issue], issue))[:_ISSUES]
    if most:
        said.append(
            "Most often: " + ", ".join(f"{issue.replace('_', ' ')} ({issues[issue]:,})" for issue in most) + "."
        )
    return tuple(said) or ("No row tells.",)
