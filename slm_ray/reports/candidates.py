"""The record of all tests made on a file of rows: `EXAMPLES.candidates.jsonl` beside it, a line per comparison.

A comparison holds the file from reading to writing, so that two at once get two levels. A last line that was cut short was
never written. Where the folder of the rows cannot be written or is not here, the record is kept in the run directory, and
knows only of the tests of that run, which is said.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from slm_ray import storage
from slm_ray.errors import DataError, ResourceError
from slm_ray.records import RowResult
from slm_ray.reports.encoding import decode, encode
from slm_ray.reports.files import CONFIG, folder_of
from slm_ray.types import Action, DeclaredRule
from slm_ray.verdict.candidates import HASH_DIGITS, Candidate, CandidateTest, Turn, turn_of
from slm_ray.yaml_file import read_yaml

SUFFIX = ".candidates.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTurn:
    """A candidate's turn, while nobody else may compare on the same rows.

    `note` is to be called with what came of it: without, the turn was not taken. `caveat`: what the record does not know.
    """

    turn: Turn
    caveat: str
    note: Callable[[Action], None]


@contextmanager
def turn_on_rows(candidate: Candidate, report_path: str, *, planned: int | None) -> Iterator[OpenTurn]:
    """This candidate's turn. Raises as `turn_of` does, and DataError for a record that is damaged."""
    with ExitStack() as stack:
        path, file, caveat = _opened(stack, report_path)
        record = _tests(file.rows, path)
        turn = turn_of(candidate, record, planned=planned)

        def note(action: Action) -> None:
            if any(test.candidate == candidate and test.action == action for test in record):
                return
            date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
            test = CandidateTest(candidate=candidate, number=turn.number, level=turn.level, action=action, date=date)
            file.append(_line(test, record))

        yield OpenTurn(turn=turn, caveat=caveat, note=note)


def candidate_of(now: DeclaredRule, rows: Sequence[RowResult], *, llm: str, slm: str) -> Candidate:
    """What a comparison by the settings `now` tests on these rows."""
    alike = replace(now, answers_before=0, rows=0, examples="", candidates=None)  # these make no other test of it
    plain = json.dumps(encode(alike), sort_keys=True, ensure_ascii=False)
    answers = [(row.prompt_hash, row.models[slm]) for row in rows if slm in row.models]
    failed = any(answer.failure is not None and answer.failure.kind == "error" for _, answer in answers)
    told = json.dumps(sorted((prompt, answer.text or "") for prompt, answer in answers))
    return Candidate(
        llm=llm, slm=slm, rule=now.rule, settings=_sha256(plain),
        rows=tuple(sorted(row.prompt_hash[:HASH_DIGITS] for row in rows)), answers=None if failed else _sha256(told),
    )  # fmt: skip


def _opened(stack: ExitStack, report_path: str) -> tuple[Path, storage.GrowingFile, str]:
    """Where the record is, the record, and what has to be said of it."""
    if (examples := _examples(report_path)) is not None:
        path = examples.with_name(examples.name + SUFFIX)
        with suppress(ResourceError):  # a folder that may only be read
            return path, stack.enter_context(storage.growing_jsonl(path)), ""
    path = folder_of(report_path) / SUFFIX.removeprefix(".")
    caveat = (
        "the file of rows is not where this run had it, or its folder may only be read: the count of candidates, kept in"
        f" {path.name} of the run directory, knows of this run alone."
    )
    return path, stack.enter_context(storage.growing_jsonl(path)), caveat


def _examples(report_path: str) -> Path | None:
    """The file of rows that the run names, where it is here."""
    config = folder_of(report_path) / CONFIG
    if not config.is_file():
        return None
    named = read_yaml(config, what="config")
    examples = named.get("examples") if isinstance(named, dict) else None
    return Path(examples) if isinstance(examples, str) and Path(examples).is_file() else None


def _tests(rows: Sequence[tuple[int, dict[str, object]]], path: Path) -> list[CandidateTest]:
    """The lines as records; the rows of a test stand only in its first line, for they may be many."""
    found, known = [], {}
    for line, row in rows:
        where, fix = f"{path}:{line}", "remove the line; what was tested there is then forgotten"
        digest = row.pop("rows_digest", None)
        plain = row.get("candidate")
        if not isinstance(plain, dict):
            raise DataError(f"{where}: no candidate; {fix}")
        if plain.get("rows"):
            known[digest] = plain["rows"]
        found.append(
            decode({**row, "candidate": {**plain, "rows": known.get(digest, ())}}, CandidateTest, where=where, fix=fix)
        )
    return found


def _line(test: CandidateTest, record: Sequence[CandidateTest]) -> dict[str, object]:
    digest = _sha256("".join(test.candidate.rows))
    if any(known.candidate.rows == test.candidate.rows for known in record):
        test = replace(test, candidate=replace(test.candidate, rows=()))
    return {**encode(test), "rows_digest": digest}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
