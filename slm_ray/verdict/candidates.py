"""Many candidates, one set of test rows: at which level the next one is tested, so that together they err 5 % of the time.

Whoever tries SLM after SLM on the same rows will sooner or later find one that passes by luck. So the error is shared:
over a number of candidates that was declared, in equal parts, or, where none was, over any number of them in falling
parts: the k-th is tested at alpha·6/(pi²k²), which sums to alpha (a spending sequence, as in online testing; Foster & Stine
2008, JRSS B 70). Counted are the tests whose rows overlap with these. The same test again is no new one.

Promises: whatever the order and whatever was seen before, the levels of all tests on overlapping rows sum to alpha at most,
so that the chance of any false swap among them is that at most (Bonferroni, which holds for tests that depend). Assumes
that all of them are in the record, and that a model behind an unchanged name which gives the same answers is the same.
Pure: keeping the record is `slm_ray.reports.candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slm_ray.errors import ComparisonError
from slm_ray.types import Action, Comparison, Decision
from slm_ray.verdict.decide import rows_advised
from slm_ray.verdict.non_inferiority import ONE_SIDED

LEAST_LEVEL = 1e-6
HASH_DIGITS = 8
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to be tested: two models, by settings with the digest `settings`, on rows.

    `rows` are the sorted hashes of their prompts, cut to eight digits; `answers` is the digest of what the SLM answered,
    None where calls failed, since a row that is asked again makes no other model of it.
    """

    llm: str
    slm: str
    rule: str
    settings: str
    rows: tuple[str, ...]
    answers: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTest:
    """One comparison that was made: the how many-th candidate, at which level, and what came of it."""

    candidate: Candidate
    number: int
    level: float
    action: Action
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Which candidate this is on its rows, and its level; 0 where nothing is left. `again`: it is in the record already."""

    number: int
    level: float
    again: bool = False


def turn_of(candidate: Candidate, record: Sequence[CandidateTest], *, planned: int | None) -> Turn:
    """The place of a candidate behind what the record holds.

    ComparisonError under `paired` where the same two models were compared on some of these rows and others are new: the
    one look that the rule allows was taken.
    """
    rows = frozenset(candidate.rows)
    earlier = [test for test in record if not rows.isdisjoint(test.candidate.rows)]
    tests = {(test.number, _name(test.candidate)): test for test in earlier}  # of each what is known last
    for test in tests.values():
        if _same(candidate, test.candidate):
            return Turn(number=test.number, level=test.level, again=True)
    if candidate.rule == "paired":
        _refuse_second_look(candidate, earlier)
    number = max((test.number for test in earlier), default=0) + 1
    left = ONE_SIDED - math.fsum(test.level for test in tests.values())
    level = min(_share(number, planned), left)
    return Turn(number=number, level=level if level >= LEAST_LEVEL else 0.0)


def turn_text(turn: Turn, *, planned: int | None) -> str:
    """A sentence such as "third candidate on these rows: tested at 0.34 %"."""
    shared = f"one of {planned} that were planned" if planned else "5 % are shared among all that will be tried"
    if planned == 1:
        shared = "the only one that was planned"
    if turn.level == 0:
        return (
            f"{_ordinal(turn.number)} candidate on these rows ({shared}): nothing is left of the 5 % error that all of them"
            " share, so that no outcome would count."
        )
    return f"{_ordinal(turn.number)} candidate on these rows: tested at {percent(turn.level)} ({shared})."


def counted(
    decision: Decision, turn: Turn, comparison: Comparison, *, planned: int | None, caveat: str = ""
) -> Decision:
    """The decision with its place among the candidates in words; inconclusive where nothing of the error is left.

    Where what is left cannot decide on this many rows it asks for fresh ones, on which the count begins anew, and says
    how many.
    """
    because = (*decision.because, turn_text(turn, planned=planned), *([caveat] if caveat else []))
    least, n = fewest_rows(turn.level, decision.delta), comparison.n
    if turn.level == 0 or (decision.action == "inconclusive" and least is not None and n < least):
        fresh = rows_advised(comparison, decision.delta, level=_share(1, planned))
        wanted = f"{fresh:,} fresh rows" if fresh else "fresh rows"
        too_few = f"at this level {n} rows are too few even for two models that never differ; " if turn.level else ""
        because = (
            *because,
            f"{too_few}evaluate {wanted}, none of these {n} among them: on those the count begins anew.",
        )
    action = decision.action if turn.level else "inconclusive"
    return replace(decision, action=action, because=because, candidate=turn.number)


def fewest_rows(level: float, delta: float) -> int | None:
    """Rows below which two models that never differ cannot be shown to be within `delta` at this level; None: never."""
    if level <= 0 or delta <= 0:
        return None
    if delta >= 1:
        return 1
    return math.ceil(math.log(level) / math.log(1 - delta))


def percent(level: float) -> str:
    """A level as people read it: 5 %, 3.04 %, 0.34 %."""
    return f"{100 * level:.2f}".rstrip("0").rstrip(".") + " %" if level >= 1e-4 else f"{100 * level:.1g} %"


def _share(number: int, planned: int | None) -> float:
    if planned is None:
        return ONE_SIDED * 6 / (math.pi * number) ** 2
    return ONE_SIDED / planned if number <= planned else 0.0


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether the two are one test: under `sequential` more rows may have come since, or it stopped before the last."""
    named = _name(one) == _name(other)
    if one.rows != other.rows:
        return named and one.rule == "sequential"
    return named and (one.answers == other.answers or None in (one.answers, other.answers))


def _name(candidate: Candidate) -> tuple[str, ...]:
    return (candidate.llm, candidate.slm, candidate.rule, candidate.settings)


def _refuse_second_look(candidate: Candidate, earlier: Sequence[CandidateTest]) -> None:
    for test in earlier:
        before = test.candidate
        if (before.llm, before.slm) != (candidate.llm, candidate.slm) or before.rows == candidate.rows:
            continue
        seen = len(set(before.rows) & set(candidate.rows))
        raise ComparisonError(
            f"{seen} of these {len(candidate.rows)} rows were already compared for {candidate.slm} ({test.action} on"
            f" {len(before.rows)} rows, {test.date}), and the rule paired allows one look at a fixed set of rows; evaluate"
            " fresh rows, none of those among them, or declare rule: sequential for the next run, which may be extended"
        )


def _ordinal(number: int) -> str:
    return _ORDINALS[number - 1] if number <= len(_ORDINALS) else f"{number}th"
