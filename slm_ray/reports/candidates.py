"""The record of all tests made on a file of rows: `EXAMPLES.candidates.jsonl` beside it, a line per comparison.

The records of other files in the same folder are read too, so that rows which were written on into a new file are known.
A comparison holds the file from reading to writing, so that two at once get two levels. A last line that was cut short was
never written. Where the record may only be read, the count goes on from it in the run directory, of which other runs do not
know; where the rows are not here, it knows only of the tests of that run. Either is said. A place that is merely away, full
or busy ends the comparison: a count that began anew would give out the error a second time.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from slm_ray import storage
from slm_ray.errors import ConfigError, DataError, ReadOnlyError
from slm_ray.records import AnswerResult
from slm_ray.remote import NotThere, here, is_remote, one_file
from slm_ray.reports.encoding import check_version, decode, encode
from slm_ray.reports.files import CONFIG, folder_of
from slm_ray.types import Action, CandidateFigures, Completion, DeclaredRule, EarlierCandidate
from slm_ray.verdict.candidates import (
    HASH_DIGITS,
    Candidate,
    CandidateTest,
    SlmScores,
    Turn,
    earlier_than,
    level_of,
    tells_more,
    turn_text,
    turns_of,
)
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.yaml_file import read_yaml

SUFFIX = ".candidates.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTurn:
    """A candidate's turn, while nobody else may compare on the same rows.

    `note` is to be called with what came of it and what was found: without, the turn was not taken. `caveat`: what the
    record does not know. `earlier`: who was tried on these rows before.
    """

    turn: Turn
    earlier: tuple[EarlierCandidate, ...]
    caveat: str
    note: Callable[[Action, CandidateFigures | None], None]


@contextmanager
def turn_on_rows(
    candidate: Candidate, report_path: str, *, planned: int | None, beside: Sequence[Candidate] = (),
    scores: SlmScores | None = None,
) -> Iterator[OpenTurn]:  # fmt: skip
    """This candidate's turn; those `beside` it, whose answers were seen with its own, take theirs at once.

    Its `scores` are held against those of the candidate before, and kept for the one after. Raises as `turn_of` does,
    DataError for a record that is damaged, and ResourceError where it is out of reach.
    """
    with ExitStack() as stack:
        path, file, known, caveat = _opened(stack, report_path, _examples(report_path))
        own = _tests(file.rows, path)
        record = [*known, *own]
        turn, *others = turns_of([candidate, *beside], record, planned=planned)
        if beside and turn.level and not math.isclose(turn.level, level_of(turn.number, planned)):
            shared = (
                f"{len(beside) + 1} SLMs were asked on these rows, and whoever saw one saw all of them: they share the error"
                " equally, so that choosing among them is paid for."
            )
            caveat = f"{shared} {caveat}".strip()

        def note(action: Action, figures: CandidateFigures | None) -> None:
            test = replace(_noted(candidate, turn, action), figures=figures)
            if figures and scores:
                by_hash = scores.by_hash
                kept = tuple(row.score if (row := by_hash.get(digits)) else None for digits in candidate.rows)
                test = replace(test, scores=kept)
            noted = [] if any(replace(old, date=test.date) == test for old in [*known, *own]) else [test]
            noted += [
                _noted(one, its, "inconclusive") for one, its in zip(beside, others, strict=True) if not its.again
            ]
            _append(file, noted, own)

        yield OpenTurn(turn=turn, earlier=earlier_than(turn, candidate, record, scores), caveat=caveat, note=note)


def reserve(
    candidates: Sequence[Candidate], run_dir: str | Path, *, examples: str, planned: int | None
) -> dict[str, float]:
    """The level of each SLM, noted before its first answer: under `sequential` whoever watches has looked.

    Those that are asked together share equally. Called again when answers are there, it notes them.

    ConfigError where nothing is left of the error that all candidates on these rows share.
    """
    with ExitStack() as stack:
        path, file, known, _ = _opened(stack, run_dir, examples)
        own = _tests(file.rows, path)
        record = [*known, *own]
        turns = dict(zip(candidates, turns_of(candidates, record, planned=planned), strict=True))
        for candidate, turn in turns.items():
            if turn.level == 0:
                other = any(
                    (test.candidate.llm, test.candidate.slm) == (candidate.llm, candidate.slm)
                    and test.candidate.settings != candidate.settings
                    for test in record
                )
                why = " It was tested before under other settings, which is another test." if other else ""
                raise ConfigError(
                    f"{candidate.slm}: {turn_text(turn, planned=planned)}{why} Go on in the run directory in which it was asked,"
                    f" or evaluate fresh rows; see {path}"
                )
        noted = [
            _noted(candidate, turn, "inconclusive")
            for candidate, turn in turns.items()
            if not turn.again or tells_more(candidate, record, turn)
        ]
        _append(file, noted, own)
        return {candidate.slm: turn.level for candidate, turn in turns.items()}


def candidate_of(
    now: DeclaredRule,
    *,
    llm: str,
    slm: str,
    rows: Iterable[tuple[str, str]],
    order: tuple[int | None, str | None] = (None, None),
) -> Candidate:
    """What a comparison by the settings `now` tests; another drawn order is another test.

    `order` is its seed and the digest of the file that it was drawn for: rows that come behind that file go on with it, and
    a file that was written on is asked in another order. `rows` are the hash of each prompt and the `said` of it.
    """
    alike = replace(
        now, answers_before=0, rows=0, examples="", candidates=None, stop="never"
    )  # these make no other test of it
    plain = json.dumps([encode(alike), *order], sort_keys=True, ensure_ascii=False)
    return Candidate.of(rows, llm=llm, slm=slm, rule=now.rule, settings=_sha256(plain))


def said(*answers: Completion | AnswerResult | None) -> str:
    """A digest of what the models answered to one row; empty where one was not asked yet, or may be asked again."""
    texts = []
    for answer in answers:
        if answer is None or (answer.failure is not None and answer.failure.in_transport):
            return ""
        texts.append([answer.text, answer.failure.kind if answer.failure else None])
    return _sha256(json.dumps(texts))[:HASH_DIGITS]


def _noted(candidate: Candidate, turn: Turn, action: Action) -> CandidateTest:
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return CandidateTest(candidate=candidate, number=turn.number, level=turn.level, action=action, date=date)


def _opened(
    stack: ExitStack, report_path: str | Path, examples: str | None
) -> tuple[Path, storage.GrowingFile, list[CandidateTest], str]:
    """Where the record is, the record, the tests that other files hold, and what has to be said of it."""
    path = folder_of(report_path) / SUFFIX.removeprefix(".")
    if examples is None:
        caveat = (
            f"the file of rows is not where this run had it: the count of candidates, kept in {path.name} of the run directory,"
            " knows of this run alone."
        )
        return path, stack.enter_context(storage.growing_jsonl(path)), [], caveat
    there = Path(examples + SUFFIX)
    with suppress(ReadOnlyError):
        file = stack.enter_context(storage.growing_jsonl(stack.enter_context(one_file(there))))
        return there, file, _beside(there), ""
    known = [*_beside(there), *_tests(storage.grown_rows(there), there)]
    caveat = (
        "the record of candidates beside the rows may only be read: the count goes on from it in"
        f" {path.name} of the run directory, and other runs do not know of that."
    )
    return path, stack.enter_context(storage.growing_jsonl(path)), known, caveat


def _examples(report_path: str) -> str | None:
    """The file of rows that the run names, where it is here."""
    config = folder_of(report_path) / CONFIG
    if not config.is_file():
        return None
    named = read_yaml(config, what="config")
    examples = named.get("examples") if isinstance(named, dict) else None
    if isinstance(examples, str) and is_remote(examples):
        with suppress(NotThere, ConfigError):
            examples = str(here(examples, near=report_path))
    return examples if isinstance(examples, str) and Path(examples).is_file() else None


def _beside(path: Path) -> list[CandidateTest]:
    """What the records of other files in the folder hold. Whoever writes there just now is not waited for."""
    others = [other for other in sorted(path.parent.glob(f"*{SUFFIX}")) if other.name != path.name and other.is_file()]
    return [test for other in others for test in _tests(storage.grown_rows(other), other)]


def _tests(rows: Sequence[tuple[int, dict[str, object]]], path: Path) -> list[CandidateTest]:
    """The lines as records; the rows of a test stand only in its first line, for they may be many."""
    found, known = [], {}
    for line, row in rows:
        where, fix = f"{path}:{line}", "remove the line; what was tested there is then forgotten"
        check_version(row, where=where, fix=fix)
        digest = str(row.pop("rows_digest", None))
        plain = row.get("candidate")
        if not isinstance(plain, dict):
            raise DataError(f"{where}: no candidate; {fix}")
        if plain.get("rows"):
            known[digest] = plain["rows"]
        test = decode(
            {**row, "candidate": {**plain, "rows": known.get(digest, ())}}, CandidateTest, where=where, fix=fix
        )
        if not 0 <= test.level <= ONE_SIDED or test.number < 1:
            raise DataError(
                f"{where}: candidate number {test.number} at level {test.level:g}, and they count from 1 and share"
                f" {ONE_SIDED:g}; {fix}"
            )
        if len(test.candidate.rows) != len(test.candidate.answers):
            raise DataError(f"{where}: the line that holds the rows of this one is not there; {fix}")
        if test.scores and len(test.scores) != len(test.candidate.rows):
            raise DataError(f"{where}: {len(test.scores)} scores of {len(test.candidate.rows)} rows; {fix}")
        found.append(test)
    return found


def _append(file: storage.GrowingFile, tests: Sequence[CandidateTest], own: list[CandidateTest]) -> None:
    """In one write: after a kill between two, those that share their error would be counted as if they had not."""
    lines = []
    for test in tests:
        lines.append(_line(test, own))
        own.append(test)
    if lines:
        file.append(*lines)


def _line(test: CandidateTest, record: Sequence[CandidateTest]) -> dict[str, object]:
    digest = _sha256("".join(test.candidate.rows))
    if any(known.candidate.rows == test.candidate.rows for known in record):
        test = replace(test, candidate=replace(test.candidate, rows=()))
    return {**encode(test), "rows_digest": digest}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
