"""The two arms of a comparison, and every reason why they cannot be compared, each with its counts.

An arm here is one model's part of one report. Refusing is all that is done here; what is left is paired in `compare`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from slm_ray.corpus.leakage import leakage_text, leaked
from slm_ray.corpus.tracks import Track, defined
from slm_ray.errors import ComparisonError, choices
from slm_ray.records import ModelReport, Report, RowResult
from slm_ray.types import RowScore, Score

Rows = Mapping[str, RowResult]
_JUDGES = ("scorers", "primary", "core", "labels", "answer_schema", "strip")
_TELLS = ("system", "prefix", "template")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedArm:
    """One model's part of one report: its summary and its rows by example id."""

    spec: str
    report: Report
    rows: Rows

    @property
    def summary(self) -> ModelReport:
        """What the report says of the model."""
        return self.report.models[self.spec]

    def scored(self) -> set[str]:
        """Ids of the rows that this model has a score for; a failed call has one, an absent row has not."""
        return {key for key, row in self.rows.items() if self.spec in row.models}

    def answered(self, example_id: str) -> bool:
        """Whether the call gave a text at all."""
        return self.rows[example_id].models[self.spec].failure is None

    def reached(self, example_id: str) -> bool:
        """Whether the call came to an end at all: a refusal or a cut answer did, a server error or a time-out did not."""
        failure = self.rows[example_id].models[self.spec].failure
        return failure is None or not failure.in_transport

    def group(self, example_id: str) -> str | None:
        """The group that the row belongs to; None: it is one of its own."""
        return self.rows[example_id].group

    def score(self, example_id: str) -> RowScore:
        """The scores of one row."""
        answer = self.rows[example_id].models[self.spec]
        return RowScore(
            example_id=example_id,
            scores=tuple(Score(name=name, value=value) for name, value in answer.scores.items()),
            issues=answer.issues,
            counts=answer.counts,
            facts=answer.facts,
        )


def track_of(report: Report) -> Track:
    """The track that a report carries."""
    return defined(report.track_definition)


def by_id(rows: Sequence[RowResult], name: str) -> Rows:
    """Score rows by example id; ComparisonError when one is there twice."""
    found = {row.id: row for row in rows}
    if len(found) < len(rows):
        raise ComparisonError(f"{name}: {len(rows) - len(found)} score rows repeat an id; evaluate again")
    return found


def arm_of(spec: str, role: str, *evaluations: tuple[Report, Rows]) -> ComparedArm:
    """The model in the first place that has it; ComparisonError names the known ones."""
    for report, rows in evaluations:
        if spec in report.models:
            return ComparedArm(spec=spec, report=report, rows=rows)
    known = {name for report, _ in evaluations for name in report.models}
    raise ComparisonError(f"the {role} {spec!r} is in no report given: {choices(spec, known)}")


def refuse_other_rows(left: ComparedArm, right: ComparedArm, train_prompts: Set[str]) -> None:
    """Two evaluations of other tracks, judged otherwise, or of other rows; also said: which of them are training rows."""
    tracks = left.report.track, right.report.track
    if tracks[0] != tracks[1]:
        raise ComparisonError(
            f"the reports are of different tracks: {tracks[0]} ({left.spec}), {tracks[1]} ({right.spec});"
            " evaluate both models on one track"
        )
    definitions = [track_of(arm.report) for arm in (left, right)]
    for part in _JUDGES:
        if getattr(definitions[0], part) != getattr(definitions[1], part):
            raise ComparisonError(
                f"the two reports judge {tracks[0]} by other {part} ({getattr(definitions[0], part)} and"
                f" {getattr(definitions[1], part)}); evaluate both models with one track file"
            )
    shared = left.rows.keys() & right.rows.keys()
    asked = [key for key in shared if left.rows[key].prompt_hash != right.rows[key].prompt_hash]
    expected = [key for key in shared if left.rows[key].target != right.rows[key].target]
    for name, keys in (("prompts", asked), ("targets", expected)):
        differing = sorted(keys)
        if differing:
            raise ComparisonError(
                f"{name} differ under the same id in {len(differing)} of {len(shared)} shared rows"
                f" ({_some(differing)}){_told_otherwise(left, right)}; evaluate both models on one examples file"
            )
    if left.report.examples.digest != right.report.examples.digest:
        only_left, only_right = len(left.rows) - len(shared), len(right.rows) - len(shared)
        raise ComparisonError(
            f"the reports are of different rows: {len(shared)} shared, {only_left} only in the LLM's ({left.spec}),"
            f" {only_right} only in the SLM's ({right.spec}){_told_otherwise(left, right)}"
            f"{_trained_in_part(left, right, train_prompts)}; evaluate both models on one examples file"
        )


def _told_otherwise(left: ComparedArm, right: ComparedArm) -> str:
    definitions = [track_of(part.report) for part in (left, right)]
    parts = [name for name in _TELLS if getattr(definitions[0], name) != getattr(definitions[1], name)]
    return f"; the two runs were told by another {' and '.join(parts)}" if parts else ""


def _trained_in_part(left: ComparedArm, right: ComparedArm, train_prompts: Set[str]) -> str:
    seen = [sum(row.prompt_hash in train_prompts for row in part.rows.values()) for part in (left, right)]
    if not any(seen):
        return ""
    return f"; and {seen[0]} of the LLM's {len(left.rows)} rows and {seen[1]} of the SLM's {len(right.rows)} are training rows"


def refuse_training_rows(left: ComparedArm, right: ComparedArm, ids: Sequence[str], train_prompts: Set[str]) -> None:
    """Rows of the training file, and rows that a model's own record says it was trained on."""
    seen = leaked({key: left.rows[key].prompt_hash for key in ids}, train_prompts)
    if seen:
        raise ComparisonError(leakage_text(seen, len(ids), rows="evaluation rows", fix="evaluate on held-out rows"))
    for arm in (left, right):
        count = arm.summary.trained_on
        if count:
            total = arm.report.examples.n
            raise ComparisonError(f"{arm.spec} was trained on {count} of the {total} rows; evaluate on held-out rows")


def refuse_too_few(
    left: ComparedArm, right: ComparedArm, paired: int, defined: int, min_paired: float, *, total: int
) -> None:
    """Fewer than `min_paired` of `total` examples with a row of both models, or with the primary metric `defined` on both."""
    if paired == 0 or paired < min_paired * total:
        raise ComparisonError(
            f"only {paired} of {total} examples have a row of both models ({len(left.scored())} of {left.spec},"
            f" {len(right.scored())} of {right.spec}), fewer than {min_paired:.0%}; finish the evaluation"
        )
    primary = track_of(left.report).primary
    if defined == 0:
        raise ComparisonError(f"{primary} is undefined on all {paired} shared rows; check their targets")
    if defined < min_paired * total:
        raise ComparisonError(
            f"{primary} is defined for both models on {defined} of {total} examples, fewer than {min_paired:.0%}; check the"
            " other targets, or lower min_paired_share for a verdict on those rows alone"
        )


def _some(ids: Iterable[str]) -> str:
    first = list(ids)[:3]
    return ", ".join(first)
