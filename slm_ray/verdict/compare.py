"""Two models on the same rows, paired by example id, or one line that says why they cannot be compared.

Metrics are summed again from the score rows, over the pairs only, so both sides always stand on the same rows. Reads no
file and decides nothing.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from slm_ray.errors import ComparisonError, choices
from slm_ray.scoring import summarise
from slm_ray.types import Comparison, Interval, RowScore, Score, Slice
from slm_ray.verdict.binary import ONE_SIDED
from slm_ray.verdict.report import track_in
from slm_ray.verdict.stats import paired_interval

_Rows = Mapping[str, Mapping[str, Any]]
_JUDGES = ("scorers", "primary", "core", "labels", "answer_schema", "strip")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One model's part of one report: its summary and its rows by example id."""

    spec: str
    report: Mapping[str, Any]
    rows: _Rows

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

    def score(self, example_id: str) -> RowScore:
        answer = self.rows[example_id]["models"][self.spec]
        shared, extra, missed = answer["counts"]
        return RowScore(
            example_id=example_id,
            scores=tuple(Score(name=name, value=value) for name, value in answer["scores"].items()),
            issues=tuple(answer["issues"]),
            counts=(shared, extra, missed),
            facts=answer.get("facts", {}),
        )


def compare(
    report_a: Mapping[str, Any],
    rows_a: Sequence[Mapping[str, Any]],
    report_b: Mapping[str, Any] | None = None,
    rows_b: Sequence[Mapping[str, Any]] | None = None,
    *,
    llm: str,
    slm: str,
    min_paired: float,
    resamples: int,
    seed: int,
    train_prompts: Set[str] | None = None,
    gates: Sequence[str] = (),
    slice_rows: int = 20,
) -> Comparison:
    """Pair `llm` and `slm` over the rows of one report (B left out) or of two.

    With two reports the LLM is looked for in A first and the SLM in B first. `min_paired` is the least share of the
    examples with a row of both models; `train_prompts` are prompt hashes of training rows. The track names the core
    metrics and the primary one, whose row differences give the interval; "right" means a primary score of 1. A metric
    that is undefined for a side has no gap. A failed call counts against the side that failed. `gates` are row metrics
    with an interval of their own, besides those that the track names; tag values on at least `slice_rows` rows are slices.
    Raises ComparisonError, with counts: model not found, other track, other rows or prompts, training rows, too few
    pairs; and for a gate that is no row metric of the track.
    """
    first = (report_a, _by_id(rows_a, "report A"))
    second = first if report_b is None else (report_b, _by_id(rows_b or (), "report B"))
    left, right = _side(llm, "LLM", first, second), _side(slm, "SLM", second, first)
    _refuse_other_rows(left, right)
    ids = sorted(left.scored() & right.scored())
    _refuse_training_rows(left, right, ids, train_prompts or frozenset())
    _refuse_too_few(left, right, len(ids), min_paired)
    return _pair(left, right, ids, gates, slice_rows, resamples=resamples, seed=seed)


def _pair(
    left: _Side, right: _Side, ids: Sequence[str], gates: Sequence[str], slice_rows: int, *, resamples: int, seed: int
) -> Comparison:
    track = track_in(left.report)
    pairs = [(left.score(key), right.score(key)) for key in ids]
    llm_metrics = summarise(track, [a for a, _ in pairs])
    slm_metrics = summarise(track, [b for _, b in pairs])
    primary = _differences(track.primary, ids, pairs)
    answered = {key: primary[key] for key in primary if left.answered(key) and right.answered(key)}
    interval = functools.partial(paired_interval, resamples=resamples, seed=seed)
    defined = [
        (a.value(track.primary) or 0.0, b.value(track.primary) or 0.0) for a, b in pairs if a.example_id in primary
    ]
    return Comparison(
        track=track.name,
        llm=left.spec,
        slm=right.spec,
        n=len(ids),
        digest=left.report["examples"]["digest"],
        primary=track.primary,
        llm_metrics=llm_metrics,
        slm_metrics=slm_metrics,
        gaps={
            name: b - a
            for name in track.core
            if (a := llm_metrics[name]) is not None and (b := slm_metrics[name]) is not None
        },
        interval=interval(list(primary.values())),
        gates={
            name: interval(list(_differences(name, ids, pairs).values()))
            for name in dict.fromkeys((*track.gates, *gates))
        },
        slices=sliced(primary, {key: left.rows[key].get("tags") or {} for key in ids}, slice_rows, interval),
        deviation=statistics.pstdev(primary.values()),
        answered=interval(list(answered.values())) if answered and len(answered) < len(primary) else None,
        answered_n=len(answered),
        slm_only_right=sum(a < 1 <= b for a, b in defined),
        llm_only_right=sum(b < 1 <= a for a, b in defined),
        labels={side.spec: "stand-in" for side in (left, right) if side.summary["stand_in"]},
    )


def sliced(
    differences: Mapping[str, float],
    tags: Mapping[str, Mapping[str, str]],
    fewest: int,
    interval: Callable[..., Interval],
) -> tuple[Slice, ...]:
    """The differences by tag value, for values on at least `fewest` rows and not on all of them.

    The error of a bound is shared out among the slices (Bonferroni), so that many slices do not make one of them look
    bad by chance.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for key, difference in differences.items():
        for tag, value in tags[key].items():
            found.setdefault((tag, value), []).append(difference)
    kept = {place: values for place, values in sorted(found.items()) if fewest <= len(values) < len(differences)}
    return tuple(
        Slice(tag=tag, value=value, n=len(values), interval=interval(values, one_sided=ONE_SIDED / len(kept)))
        for (tag, value), values in kept.items()
    )


def _differences(name: str, ids: Sequence[str], pairs: Sequence[tuple[RowScore, RowScore]]) -> dict[str, float]:
    """SLM minus LLM of one row metric, by example id, where both are defined."""
    found = {}
    for key, (a, b) in zip(ids, pairs, strict=True):
        try:
            llm, slm = a.value(name), b.value(name)
        except KeyError:
            known = [score.name for score in a.scores]
            raise ComparisonError(f"{name!r} is no metric of a row: {choices(name, known)}") from None
        if llm is not None and slm is not None:
            found[key] = slm - llm
    if not found:
        raise ComparisonError(f"{name} is undefined on all {len(ids)} shared rows; check their references")
    return found


def _by_id(rows: Sequence[Mapping[str, Any]], name: str) -> _Rows:
    found = {row["id"]: row for row in rows}
    if len(found) < len(rows):
        raise ComparisonError(f"{name}: {len(rows) - len(found)} score rows repeat an id; evaluate again")
    return found


def _side(spec: str, role: str, *places: tuple[Mapping[str, Any], _Rows]) -> _Side:
    for report, rows in places:
        if spec in report["models"]:
            return _Side(spec=spec, report=report, rows=rows)
    known = {name for report, _ in places for name in report["models"]}
    raise ComparisonError(f"the {role} {spec!r} is in no report given: {choices(spec, known)}")


def _refuse_other_rows(left: _Side, right: _Side) -> None:
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
                f" ({_some(differing)}); evaluate both models on one examples file"
            )
    if left.report["examples"]["digest"] != right.report["examples"]["digest"]:
        only_left, only_right = len(left.rows) - len(shared), len(right.rows) - len(shared)
        raise ComparisonError(
            f"the reports are of different rows: {len(shared)} shared, {only_left} only in the LLM's ({left.spec}),"
            f" {only_right} only in the SLM's ({right.spec}); evaluate both models on one examples file"
        )


def _refuse_training_rows(left: _Side, right: _Side, ids: Sequence[str], train_prompts: Set[str]) -> None:
    seen = [key for key in ids if left.rows[key]["prompt_hash"] in train_prompts]
    if seen:
        raise ComparisonError(
            f"{len(seen)} of {len(ids)} evaluation rows are training rows ({_some(seen)}); evaluate on held-out rows"
        )
    for side in (left, right):
        count = side.summary["trained_on"]
        if count:
            total = side.report["examples"]["n"]
            raise ComparisonError(f"{side.spec} was trained on {count} of the {total} rows; evaluate on held-out rows")


def _refuse_too_few(left: _Side, right: _Side, paired: int, min_paired: float) -> None:
    total = max(left.report["examples"]["n"], right.report["examples"]["n"])
    if paired == 0 or paired < min_paired * total:
        raise ComparisonError(
            f"only {paired} of {total} examples have a row of both models ({len(left.scored())} of {left.spec},"
            f" {len(right.scored())} of {right.spec}), fewer than {min_paired:.0%}; finish the evaluation"
        )


def _some(ids: Iterable[str]) -> str:
    first = list(ids)[:3]
    return ", ".join(first)
