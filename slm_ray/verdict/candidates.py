"""Many candidates, one set of test rows: at which level the next one is tested, so that together they err 5 % of the time.

Whoever tries SLM after SLM on the same rows will sooner or later find one that passes by luck. So the error is shared:
over a number of candidates that was declared, in equal parts, or, where none was, over any number of them in falling
parts: the k-th is tested at alpha·6/(pi²k²), which sums to alpha (a spending sequence, as in online testing; Foster & Stine
2008, JRSS B 70). Counted are the tests whose rows overlap with these. The same test again is no new one.

Promises: whatever the order and whatever was seen before, the levels of all tests on overlapping rows sum to alpha at most,
so that the chance of any false swap among them is that at most (Bonferroni, which holds for tests that depend). Assumes
that all of them are in the record, and that models behind unchanged names which give the same answers are the same.
Pure: keeping the record is `slm_ray.reports.candidates`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slm_ray.errors import ComparisonError
from slm_ray.records import SCHEMA_VERSION
from slm_ray.types import Action, CandidateFigures, Comparison, Decision, EarlierCandidate, RowChanges
from slm_ray.verdict.decide import rows_advised
from slm_ray.verdict.non_inferiority import ONE_SIDED

LEAST_LEVEL = 1e-6
HASH_DIGITS = 8
_NAMED, _NAMED_CHARACTERS = 50, 4_000  # rows that changed, of each kind
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to be tested: two models, by settings with the digest `settings`, on rows.

    `rows` are the sorted hashes of their prompts, cut to eight digits; `answers` are as many digests of what both models
    said, empty where that is not known: not asked yet, or a failed call, which may be asked again.
    """

    llm: str
    slm: str
    rule: str
    settings: str
    rows: tuple[str, ...]
    answers: tuple[str, ...]

    @classmethod
    def of(
        cls, answers: Iterable[tuple[str, str]], *, llm: str, slm: str, rule: str, settings: str
    ) -> Candidate:  # fmt: skip
        """The candidate of these rows: the hash of each prompt and a digest of what was said to it."""
        pairs = sorted((prompt[:HASH_DIGITS], answer) for prompt, answer in answers)
        rows, said = (tuple(column) for column in zip(*pairs, strict=True)) if pairs else ((), ())
        return cls(llm=llm, slm=slm, rule=rule, settings=settings, rows=rows, answers=said)

    @property
    def known(self) -> dict[str, str]:
        """The answers that are known, by row."""
        return {row: answer for row, answer in zip(self.rows, self.answers, strict=True) if answer}


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTest:
    """One comparison that was made: the how many-th candidate, at which level, and what came of it.

    `scores` are the SLM's deciding ones, in the order of the candidate's rows. Neither they nor `figures` are there where
    the candidate was only noted: before its first answer, or as one whose answers were seen beside another's.
    """

    candidate: Candidate
    number: int
    level: float
    action: Action
    date: str
    figures: CandidateFigures | None = None
    scores: tuple[float | None, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """The hash of a row's prompt, its id and the SLM's deciding score; None where that is undefined or the call failed."""

    prompt_hash: str
    id: str
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlmScores:
    """What the SLM of a comparison scored by the metric `primary`, row by row."""

    primary: str
    rows: tuple[ScoredRow, ...]

    @property
    def by_hash(self) -> dict[str, ScoredRow]:
        """The rows by the digits of their hash that a record keeps, without those that these do not tell apart."""
        counted = Counter(row.prompt_hash[:HASH_DIGITS] for row in self.rows)
        return {digits: row for row in self.rows if counted[digits := row.prompt_hash[:HASH_DIGITS]] == 1}


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
    tests = _tests(earlier)
    for lines in tests:
        if _same(candidate, lines):
            return Turn(number=lines[0].number, level=lines[0].level, again=True)
    if candidate.rule == "paired":
        _refuse_second_look(candidate, earlier)
    number = max((test.number for test in earlier), default=0) + 1
    left = ONE_SIDED - math.fsum(lines[0].level for lines in tests)
    level = min(level_of(number, planned), left)
    return Turn(number=number, level=level if level >= LEAST_LEVEL else 0.0)


def turns_of(candidates: Sequence[Candidate], record: Sequence[CandidateTest], *, planned: int | None) -> list[Turn]:
    """The places of candidates whose answers were all seen at once: those that are new share their levels equally.

    Whoever saw them all may have chosen the best before he asked for its verdict. Raises as `turn_of` does.
    """
    planned = None if planned is None else max(planned, len(candidates))
    seen, turns = list(record), []
    for one in candidates:
        turn = turn_of(one, seen, planned=planned)
        turns.append(turn)
        if not turn.again:
            seen.append(
                CandidateTest(candidate=one, number=turn.number, level=turn.level, action="inconclusive", date="")
            )
    new = [turn.level for turn in turns if not turn.again]
    shared = math.fsum(new) / len(new) if new else 0.0
    return [turn if turn.again else replace(turn, level=shared) for turn in turns]


def tells_more(candidate: Candidate, record: Sequence[CandidateTest], turn: Turn) -> bool:
    """Whether an answer of the candidate is not in the record yet."""
    known: set[str] = set()
    for test in record:
        if test.number == turn.number and _name(test.candidate) == _name(candidate):
            known |= test.candidate.known.keys()
    return not candidate.known.keys() <= known


def earlier_than(
    turn: Turn, candidate: Candidate, record: Sequence[CandidateTest], scores: SlmScores | None = None
) -> tuple[EarlierCandidate, ...]:
    """The candidates before this one on some of its rows, each with what came of it last, in their order.

    With the `scores` of this one also the rows on which it differs from the last of them that has scores by the same metric
    on some of these rows.
    """
    rows = frozenset(candidate.rows)
    before = [test for test in record if test.number < turn.number and not rows.isdisjoint(test.candidate.rows)]
    tests = sorted(_tests(before), key=lambda lines: lines[0].number)
    compared = [next((test for test in reversed(lines) if test.figures), None) for lines in tests]
    since = ((test, _changes(test, scores)) for test in reversed(compared) if test and scores)
    held, changes = next(((test, found) for test, found in since if found), (None, None))
    return tuple(
        EarlierCandidate(
            slm=(last := lines[-1]).candidate.slm, number=last.number, rule=last.candidate.rule, level=last.level,
            action=last.action, date=last.date, figures=test.figures if test else None,
            changes=changes if test and test is held else None,
        )
        for lines, test in zip(tests, compared, strict=True)
    )  # fmt: skip


def _changes(before: CandidateTest, scores: SlmScores) -> RowChanges | None:
    """None where the earlier candidate was scored by another metric or its scores are not kept, or no row has a score of both."""
    if not before.scores or before.figures is None or before.figures.primary != scores.primary:
        return None
    once = Counter(before.candidate.rows)
    then = {row: s for row, s in zip(before.candidate.rows, before.scores, strict=True) if once[row] == 1}
    now = scores.by_hash
    both = [
        (row.id, row.score, was)
        for digits, row in now.items()
        if row.score is not None and (was := then.get(digits)) is not None
    ]
    lower = [name for name, score, was in both if score < was]
    higher = [name for name, score, was in both if score > was]
    if not both:
        return None
    return RowChanges(
        rows=len(both), lower=len(lower), higher=len(higher), lower_ids=_named(lower), higher_ids=_named(higher)
    )


def _named(ids: Sequence[str]) -> tuple[str, ...]:
    """The first ones, as many as are few and short enough to stand in a record and on a page."""
    named, left = [], _NAMED_CHARACTERS
    for name in ids[:_NAMED]:
        left -= len(name)
        if left < 0:
            break
        named.append(name)
    return tuple(named)


def figures_of(comparison: Comparison, *, rule: str) -> CandidateFigures:
    """What a page shows of a comparison, and a record keeps for whoever is tried on these rows later.

    The bounds are those that decided: under the sequential rule those of the confidence sequence.
    """
    looked = comparison.sequential if rule == "sequential" else None
    return CandidateFigures(
        llm=comparison.llm, primary=comparison.primary, n=comparison.n,
        llm_metric=comparison.llm_metrics.get(comparison.primary),
        slm_metric=comparison.slm_metrics.get(comparison.primary),
        interval=looked.interval if looked else comparison.interval,
    )  # fmt: skip


def turn_text(turn: Turn, *, planned: int | None) -> str:
    """A sentence such as "third candidate on these rows: tested at 0.34 %"."""
    whole = percent(ONE_SIDED)
    shared = f"one of {planned} that were planned" if planned else f"{whole} are shared among all that will be tried"
    if planned == 1:
        shared = "the only one that was planned" if turn.level == ONE_SIDED else "only one was planned"
    if turn.level == 0:
        return (
            f"{_ordinal(turn.number)} candidate on these rows ({shared}): nothing is left of the {whole} error that all of them"
            " share, so that no outcome would count."
        )
    return f"{_ordinal(turn.number)} candidate on these rows: tested at {percent(turn.level)} ({shared})."


def counted(
    decision: Decision, turn: Turn, comparison: Comparison, *, planned: int | None, caveat: str = ""
) -> Decision:
    """The decision with its place among the candidates in words; inconclusive where nothing of the error is left.

    Where what is left cannot decide on this many rows the advice is of fresh ones, on which the count begins anew, and
    how many, whatever it was before.
    """
    because = (*decision.because, turn_text(turn, planned=planned), *([caveat] if caveat else []))
    advice = decision.advice
    least, n = fewest_rows(turn.level, decision.delta), comparison.n
    if turn.level == 0 or (decision.action == "inconclusive" and least is not None and n < least):
        fresh = rows_advised(comparison, decision.delta, level=level_of(1, planned))
        wanted = f"{fresh:,} fresh rows" if fresh else "fresh rows"
        too_few = f"at this level {n} rows are too few even for two models that never differ; " if turn.level else ""
        advice = f"{too_few}evaluate {wanted}, none of these {n} among them: on those the count begins anew."
    action = decision.action if turn.level else "inconclusive"
    return replace(decision, action=action, because=because, advice=advice, candidate=turn.number)


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


def level_of(number: int, planned: int | None = None) -> float:
    """The part of the 5 % that the `number`-th candidate is tested with; 0 beyond the `planned` ones."""
    if planned is None:
        return ONE_SIDED * 6 / (math.pi * number) ** 2
    return ONE_SIDED / planned if number <= planned else 0.0


def _tests(record: Sequence[CandidateTest]) -> list[list[CandidateTest]]:
    """The lines of each test: a reservation, and the same comparison made again when more was known."""
    found: list[list[CandidateTest]] = []
    for test in record:
        for lines in found:
            first = lines[0]
            alike = (first.number, first.level, _name(first.candidate)) == (
                test.number,
                test.level,
                _name(test.candidate),
            )
            if alike and any(not set(one.candidate.rows).isdisjoint(test.candidate.rows) for one in lines):
                lines.append(test)
                break
        else:
            found.append([test])
    return found


def _same(candidate: Candidate, lines: Sequence[CandidateTest]) -> bool:
    """Whether it is the test of these lines: no row that is known of both was answered otherwise.

    Under `sequential` more rows may have come since, or it stopped before the last. A model that has not answered yet is
    the one of a test of which nothing is known either: behind the same name may be another one by now.
    """
    if _name(candidate) != _name(lines[0].candidate):
        return False
    if candidate.rule != "sequential" and candidate.rows != lines[0].candidate.rows:
        return False
    known, before = candidate.known, [line.candidate.known for line in lines]
    if not known and any(before):
        return False
    return all(known[row] == answer for one in before for row, answer in one.items() if row in known)


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
