"""What people said of pairs of answers, read strictly and told apart again: which model each label is for.

One JSON object a line: `queue`, `id`, `labeller`, and `prefers` ("A", "B" or "tie") or `grades` ({"A": 1 to 7, "B": 1 to
7}); the answers as they were shown may stand beside them (`A`, `B`). A label is refused with file, line and fix when it
was given to another queue, to a row that is not in it, to other answers, twice and differently by one person, or in
another way than the first one. Several people may label a row: their mean counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray import storage
from slm_ray.errors import DataError
from slm_ray.judging.queue import QUEUE, Queue
from slm_ray.records import RowResult
from slm_ray.scoring.judge import HIGHEST, LOWEST

_PREFERS = {"A": 1.0, "tie": 0.0, "B": -1.0}
_KEYS = {"queue", "id", "labeller", "prefers", "grades", "A", "B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What people see: SLM minus LLM in [-1, 1] by row id, failed calls settled without them, and who labelled."""

    differences: Mapping[str, float]
    labellers: tuple[str, ...]
    by_people: int


def read_labels(paths: Sequence[str], queue: Queue, rows: Sequence[RowResult]) -> Labels:
    """Every label of the files, for rows with both answers; where one is missing it has lost, where both are it is a tie."""
    known = {row.id: row for row in rows}
    seen: dict[tuple[str, str], tuple[str, float]] = {}
    way = None
    for path in paths:
        for line, label in storage.numbered_jsonl(path):
            where = f"{path}:{line}"
            row = _row(label, queue, known, where)
            kind, value = _value(label, where)
            way = way or (kind, where)
            if kind != way[0]:
                raise DataError(
                    f"{where}: has {kind!r} and {way[1]} has {way[0]!r}; label all rows in one way: they weigh differently"
                )
            _check_answers(label, queue, row, where)
            person = label.get("labeller")
            if not isinstance(person, str) or not person.strip():
                raise DataError(f"{where}: 'labeller' is {person!r}; write who labelled, such as initials")
            before = seen.setdefault((row.id, person), (where, value))
            if before[1] != value:
                raise DataError(f"{where}: {person} labelled {row.id!r} otherwise at {before[0]}; keep one of the two")
    people: dict[str, list[float]] = {}
    for (row_id, _), (_, value) in seen.items():
        people.setdefault(row_id, []).append(value if queue.slm_first(row_id) else -value)
    means = {row_id: sum(values) / len(values) for row_id, values in people.items()}
    return Labels(
        differences=means | settled(queue, rows),
        labellers=tuple(sorted({person for _, person in seen})),
        by_people=len(means),
    )


def settled(queue: Queue, rows: Sequence[RowResult]) -> dict[str, float]:
    """SLM minus LLM on the rows on which an answer is missing, which nobody needs to label."""
    found = {}
    for row in rows:
        llm, slm = (row.models[spec].text is not None for spec in (queue.llm, queue.slm))
        if not (llm and slm):
            found[row.id] = float(slm) - float(llm)
    return found


def _row(label: Mapping[str, Any], queue: Queue, known: Mapping[str, RowResult], where: str) -> RowResult:
    unknown = sorted(set(label) - _KEYS)
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; a label has {', '.join(sorted(_KEYS))}")
    if label.get("queue") != queue.key:
        raise DataError(
            f"{where}: was given to the queue {label.get('queue')!r} and this is {queue.key!r} (other answers, order,"
            f" margin or looks); give the labels to the run directory whose {QUEUE} they belong to, or label again"
        )
    row = known.get(label["id"]) if isinstance(label.get("id"), str) else None
    if row is None:
        raise DataError(f"{where}: no row {label.get('id')!r} in the report; remove the line")
    if any(row.models[spec].text is None for spec in (queue.llm, queue.slm)):
        raise DataError(f"{where}: {row.id!r} has no two answers to choose from; remove the line")
    return row


def _value(label: Mapping[str, Any], where: str) -> tuple[str, float]:
    """How it was labelled, and A minus B in [-1, 1]."""
    given = [name for name in ("prefers", "grades") if name in label]
    if given == ["prefers"]:
        prefers = label["prefers"]
        if not isinstance(prefers, str) or prefers not in _PREFERS:
            raise DataError(f'{where}: \'prefers\' is {prefers!r}; write "A", "B" or "tie"')
        return "prefers", _PREFERS[prefers]
    if given == ["grades"]:
        grades = label["grades"]
        if not isinstance(grades, dict) or set(grades) != {"A", "B"} or not all(map(_is_grade, grades.values())):
            raise DataError(
                f'{where}: \'grades\' is {grades!r}; write {{"A": GRADE, "B": GRADE}}, whole numbers from {LOWEST} to'
                f" {HIGHEST}"
            )
        return "grades", (grades["A"] - grades["B"]) / (HIGHEST - LOWEST)
    has = "has both 'prefers' and 'grades'; remove one" if given else "has neither 'prefers' nor 'grades'; add one"
    raise DataError(f"{where}: {has}")


def _is_grade(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST


def _check_answers(label: Mapping[str, Any], queue: Queue, row: RowResult, where: str) -> None:
    names = ("slm", "llm") if queue.slm_first(row.id) else ("llm", "slm")
    for side, name in zip("AB", names, strict=True):
        if side in label and label[side] != row.models[getattr(queue, name)].text:
            raise DataError(f"{where}: answer {side} of {row.id!r} is not what was shown; label the page of this queue")
