"""The two sides of a comparison, and every reason why they cannot be compared, each with its counts.

A side is one model's part of one report. Refusing is all that is done here; what is left is paired in `compare`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from slm_ray.corpus.leakage import leakage_text, leaked
from slm_ray.errors import ComparisonError, choices
from slm_ray.types import RowScore, Score
from slm_ray.verdict.report import track_in

Rows = Mapping[str, Mapping[str, Any]]
_JUDGES = ("scorers", "primary", "core", "labels", "answer_schema", "strip")
_TELLS = ("system", "prefix", "template")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One model's part of one report: its summary and its rows by example id."""

    spec: str
    report: Mapping[str, Any]
    rows: Rows

    @property
    def summary(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.report["models"][self.spec]
        return found

    def scored(self) -> set[str]:
        """Ids of the rows that this model has a score for; a failed call has one, an absent row has not."""
        return {key for key, row in self.rows.items() if self.spec in row["models"]}

    def answered(self, example_id: str) -> bool:
        """Whether the call gave a text at all."""
        return not self.rows[example_id]["models"][self.spec].get("failure")

    def reached(self, example_id: str) -> bool:
        """Whether the call came to an end at all: a refusal or a cut answer did, a server error or a time-out did not."""
        failure = self.rows[example_id]["models"][self.spec].get("failure")
        return not failure or failure["kind"] != "error"

    def score(self, example_id: str) -> RowScore:
        """The row's scores; ComparisonError for one that is no number from 0 to 1 (NaN is not 0, and not undefined)."""
        answer = self.rows[example_id]["models"][self.spec]
        shared, extra, missed = answer["counts"]
        return RowScore(
            example_id=example_id,
            scores=tuple(self._score(example_id, name, value) for name, value in answer["scores"].items()),
            issues=tuple(answer["issues"]),
            counts=(shared, extra, missed),
            facts=answer.get("facts", {}),
        )

    def _score(self, example_id: str, name: str, value: float | None) -> Score:
        try:
            return Score(name=name, value=value)
        except ValueError as error:
            raise ComparisonError(
                f"{self.spec}, row {example_id}: {error}; run the evaluation's command again to score it anew"
            ) from None


def by_id(rows: Sequence[Mapping[str, Any]], name: str) -> Rows:
    """Score rows by example id; ComparisonError when one is there twice."""
    found = {row["id"]: row for row in rows}
    if len(found) < len(rows):
        raise ComparisonError(f"{name}: {len(rows) - len(found)} score rows repeat an id; evaluate again")
    return found


def side_of(spec: str, role: str, *places: tuple[Mapping[str, Any], Rows]) -> Side:
    """The model in the first place that has it; ComparisonError names the known ones."""
    for report, rows in places:
        if spec in report["models"]:
            return Side(spec=spec, report=report, rows=rows)
    known = {name for report, _ in places for name in report["models"]}
    raise ComparisonError(f"the {role} {spec!r} is in no report given: {choices(spec, known)}")


def refuse_other_rows(left: Side, right: Side, train_prompts: Set[str]) -> None:
    """Two evaluations of other tracks, judged otherwise, or of other rows; also said: which of them are training rows."""
    tracks = left.report["track"], right.report["track"]
    if tracks[0] != tracks[1]:
        raise ComparisonError(
            f"the reports are of different tracks: {tracks[0]} ({left.spec}), {tracks[1]} ({right.spec});"
            " evaluate both models on one track"
        )
    definitions = [track_in(side.report) for side in (left, right)]
    for part in _JUDGES:
        if getattr(definitions[0], part) != getattr(definitions[1], part):
            raise ComparisonError(
                f"the two reports judge {tracks[0]} by other {part} ({getattr(definitions[0], part)} and"
                f" {getattr(definitions[1], part)}); evaluate both models with one track file"
            )
    shared = left.rows.keys() & right.rows.keys()
    for part in ("prompt_hash", "reference"):
        differing = sorted(key for key in shared if left.rows[key][part] != right.rows[key][part])
        if differing:
            name = {"prompt_hash": "prompts", "reference": "references"}[part]
            raise ComparisonError(
                f"{name} differ under the same id in {len(differing)} of {len(shared)} shared rows"
                f" ({_some(differing)}){_told_otherwise(left, right)}; evaluate both models on one examples file"
            )
    if left.report["examples"]["digest"] != right.report["examples"]["digest"]:
        only_left, only_right = len(left.rows) - len(shared), len(right.rows) - len(shared)
        raise ComparisonError(
            f"the reports are of different rows: {len(shared)} shared, {only_left} only in the LLM's ({left.spec}),"
            f" {only_right} only in the SLM's ({right.spec}){_told_otherwise(left, right)}"
            f"{_trained_in_part(left, right, train_prompts)}; evaluate both models on one examples file"
        )


def _told_otherwise(left: Side, right: Side) -> str:
    definitions = [track_in(part.report) for part in (left, right)]
    parts = [name for name in _TELLS if getattr(definitions[0], name) != getattr(definitions[1], name)]
    return f"; the two runs were told by another {' and '.join(parts)}" if parts else ""


def _trained_in_part(left: Side, right: Side, train_prompts: Set[str]) -> str:
    seen = [sum(row["prompt_hash"] in train_prompts for row in part.rows.values()) for part in (left, right)]
    if not any(seen):
        return ""
    return f"; and {seen[0]} of the LLM's {len(left.rows)} rows and {seen[1]} of the SLM's {len(right.rows)} are training rows"


def refuse_training_rows(left: Side, right: Side, ids: Sequence[str], train_prompts: Set[str]) -> None:
    """Rows of the training file, and rows that a model's own record says it was trained on."""
    seen = leaked({key: left.rows[key]["prompt_hash"] for key in ids}, train_prompts)
    if seen:
        raise ComparisonError(leakage_text(seen, len(ids), rows="evaluation rows", fix="evaluate on held-out rows"))
    for side in (left, right):
        count = side.summary["trained_on"]
        if count:
            total = side.report["examples"]["n"]
            raise ComparisonError(f"{side.spec} was trained on {count} of the {total} rows; evaluate on held-out rows")


def refuse_too_few(left: Side, right: Side, paired: int, min_paired: float) -> None:
    """Fewer than `min_paired` of the examples with a row of both models."""
    total = max(left.report["examples"]["n"], right.report["examples"]["n"])
    if paired == 0 or paired < min_paired * total:
        raise ComparisonError(
            f"only {paired} of {total} examples have a row of both models ({len(left.scored())} of {left.spec},"
            f" {len(right.scored())} of {right.spec}), fewer than {min_paired:.0%}; finish the evaluation"
        )


def _some(ids: Iterable[str]) -> str:
    first = list(ids)[:3]
    return ", ".join(first)
