"""Training rows from a teacher: the expected answers of a file of rows give way to those that a model gave when asked.

The teacher is any model of a finished evaluation of the training rows (`azure:`, `recorded:`, `served:` ...), so that its
calls have budgets, one record of every row and go on where they were stopped. Only answers that the track's scorer can
read and scores at `floor` or above are kept; a row whose answer is not is left out, and counted by the reason. It asks
nothing, and never repairs an answer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slm_ray import storage
from slm_ray.config import DistilConfig
from slm_ray.corpus.jsonl import numbered
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.read import Reader
from slm_ray.corpus.render import prompt_hash
from slm_ray.corpus.row_errors import RowError, refuse
from slm_ray.corpus.tracks import Track, defined
from slm_ray.errors import ConfigError, DataError, choices
from slm_ray.records import AnswerResult, RowResult
from slm_ray.reports.files import load_report
from slm_ray.scoring.parsed import is_readable
from slm_ray.scoring.strip import strip

SUMMARY = ".distil.json"
NOT_ASKED, NO_ANSWER, UNREADABLE, BELOW = "not asked", "no answer", "unreadable", "below the floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What was written: rows kept, rows left out by reason, answers equal to the old target, and who the teacher was.

    `stand_in`: something else answered in the teacher's name.
    """

    out: str
    teacher: str
    stand_in: bool
    metric: str
    floor: float
    kept: int
    same_as_target: int
    dropped: Mapping[str, int]

    def summary(self) -> str:
        """What was done, in some lines."""
        name = f"{self.teacher} (a stand-in)" if self.stand_in else self.teacher
        left = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items()) or "none"
        return (
            f"teacher {name}, {self.metric} of {self.floor:g} or more\n"
            f"  kept      {self.kept:>9,} rows  {self.out} ({self.same_as_target:,} as they were expected)\n"
            f"  left out  {sum(self.dropped.values()):>9,} rows  ({left})"
        )


def distil(config: DistilConfig) -> Distilled:
    """Write the rows of `examples` with the teacher's answers to `out`, and OUT.distil.json beside it.

    ConfigError for a teacher that the report does not have, and for an `out` that is `examples`, whose answers would be
    lost; DataError for rows that the report knows under another
    prompt, and when no answer is good enough.
    """
    if Path(config.out).resolve() == Path(config.examples).resolve():
        raise ConfigError(f"out: {config.out} is the file of examples, whose own answers would be lost; name another")
    report, results = load_report(config.report)
    if config.teacher not in report.models:
        raise ConfigError(
            f"teacher: {config.report} has no {config.teacher!r}; {choices(config.teacher, report.models)}"
        )
    track = defined(report.track_definition)
    answered = {row.id: row for row in results}
    kept: list[ParsedRow] = []
    dropped: Counter[str] = Counter()
    same = 0
    for row in _rows(config.examples, track):
        answer = _answer(row, answered, config)
        if (reason := _reason(answer, track, config.floor)) is not None:
            dropped[reason] += 1
            continue
        text = strip(answer.text if answer else None, track.strip)[0] or ""
        same += text == row.target
        kept.append(dataclasses.replace(row, target=text))
    if not kept:
        said = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        raise DataError(
            f"{config.report}: no answer of {config.teacher} is kept at floor {config.floor:g} ({said}); lower the floor,"
            " or ask a better teacher"
        )
    storage.write_jsonl(config.out, (row.as_row() for row in kept))
    done = Distilled(
        out=config.out, teacher=config.teacher, stand_in=report.models[config.teacher].stand_in, metric=track.primary,
        floor=config.floor, kept=len(kept), same_as_target=same, dropped=dict(dropped),
    )  # fmt: skip
    storage.write_json(Path(config.out).with_suffix(SUMMARY), dataclasses.asdict(done))
    return done


def _rows(path: str, track: Track) -> list[ParsedRow]:
    raw = ((path, number, text) for number, text in numbered(storage.read_lines(path)))
    rows = list(Reader(track=track).rows(raw))
    refuse([row for row in rows if isinstance(row, RowError)])
    return [row for row in rows if isinstance(row, ParsedRow)]


def _answer(row: ParsedRow, answered: Mapping[str, RowResult], config: DistilConfig) -> AnswerResult | None:
    """The teacher's answer to the row; None for a row that it was not asked."""
    result = answered.get(row.id)
    if result is None:
        return None
    if result.prompt_hash != prompt_hash(row.prompt):
        raise DataError(
            f"{row.file}:{row.line}: {config.report} asked another question under the id {row.id!r}; give the file that"
            " it evaluated"
        )
    return result.models.get(config.teacher)


def _reason(answer: AnswerResult | None, track: Track, floor: float) -> str | None:
    """Why a row is left out; None for one that is kept."""
    if answer is None:
        return NOT_ASKED
    if answer.failure is not None or not answer.text:
        return NO_ANSWER
    if not is_readable(track, answer.text):
        return UNREADABLE
    score = answer.scores.get(track.primary)
    return BELOW if score is None or score < floor else None
