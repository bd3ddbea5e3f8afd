"""Two models on the same rows, paired by example id, or one line that says why they cannot be compared.

Metrics are summed again from the score rows, over the pairs only, so both arms always stand on the same rows. Reads no
file and decides nothing.
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from slm_ray.errors import ComparisonError, choices
from slm_ray.records import Report, RowResult
from slm_ray.scoring import summarise
from slm_ray.types import Comparison, Interval, RowScore, Slice
from slm_ray.verdict.arms import (
    ComparedArm,
    arm_of,
    by_id,
    refuse_other_rows,
    refuse_too_few,
    refuse_training_rows,
    track_of,
)
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.replay import replay
from slm_ray.verdict.stats import effective_rows, paired_interval

SLICE_ROWS = 20  # a tag value on fewer rows is no slice


def compare(
    report_a: Report,
    rows_a: Sequence[RowResult],
    report_b: Report | None = None,
    rows_b: Sequence[RowResult] | None = None,
    *,
    llm: str,
    slm: str,
    min_paired: float,
    resamples: int,
    seed: int,
    train_prompts: Set[str] | None = None,
    guardrails: Sequence[str] = (),
    slice_rows: int = SLICE_ROWS,
    quality_floor: float | None = None,
    level: float = ONE_SIDED,
    sequential_delta: float | None = None,
) -> Comparison:
    """Pair `llm` and `slm` over the rows of one report (B left out) or of two.

    With two reports the LLM is looked for in A first and the SLM in B first. `min_paired` is the least share of the
    examples with a row of both models, on which the primary metric is defined; `train_prompts` are prompt hashes of training rows. The track names the core
    metrics and the primary one, whose row differences give the interval; "right" means a primary score of 1. A metric
    that is undefined for an arm has no gap. A failed call counts against the arm that failed, and where there are any the
    same comparison is made without them (`readings`), so that whoever decides can ask both. `guardrails` are row metrics
    with an interval of their own, besides those that the track names; tag values on at least `slice_rows` rows are slices.
    Rows of one group count as what they are (`stats.paired_interval`). Each bound is wrong with probability `level`.
    `floors` are the trivial baselines of the reports and, where it is set, `quality_floor`.
    With `sequential_delta` the sequential rule looks at the rows in their asking order too, at that margin.
    Raises ComparisonError, with counts: one model for both arms, model not found, other track, other rows or prompts,
    training rows, too few pairs; and for a guardrail that is no row metric of the track.
    """
    if llm == slm:
        raise ComparisonError(f"{llm!r} is both the LLM and the SLM, which agrees with itself; name two models")
    first = (report_a, by_id(rows_a, "report A"))
    second = first if report_b is None else (report_b, by_id(rows_b or (), "report B"))
    left, right = arm_of(llm, "LLM", first, second), arm_of(slm, "SLM", second, first)
    refuse_other_rows(left, right, train_prompts or frozenset())
    ids = sorted(left.scored() & right.scored())
    refuse_training_rows(left, right, ids, train_prompts or frozenset())
    primary = track_of(left.report).primary
    defined = [key for key in ids if all(arm.score(key).value(primary) is not None for arm in (left, right))]
    seen = None
    if sequential_delta is not None:
        seen = replay(left, right, delta=sequential_delta, level=level, guardrails=guardrails)
    # Under the sequential rule a model is asked only until it is decided: the share is of the rows that both were asked.
    total = len(ids) if seen else max(left.report.examples.n, right.report.examples.n)
    refuse_too_few(left, right, len(ids), len(defined), min_paired, total=total)
    bounds = Bounds(
        groups={key: left.group(key) or right.group(key) for key in ids}, level=level, resamples=resamples, seed=seed
    )
    pair = functools.partial(_pair, left, right, bounds=bounds, guardrails=guardrails, slice_rows=slice_rows)
    return replace(
        pair(ids),
        floors={name: bounds.of(values) for name, values in _floors(left, right, ids, quality_floor).items()},
        llm_failed=sum(not left.reached(key) for key in defined),
        slm_failed=sum(not right.reached(key) for key in defined),
        readings=_readings(left, right, defined, pair),
        sequential=seen,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How differences by example id become an interval: the rows' groups, the error of a bound and the resamples."""

    groups: Mapping[str, str | None]
    level: float
    resamples: int
    seed: int

    def groups_of(self, keys: Iterable[str]) -> list[str | None]:
        """The group of each row; empty when none of them has one."""
        names = [self.groups[key] for key in keys]
        return names if any(name is not None for name in names) else []

    def of(self, differences: Mapping[str, float], *, shared_by: int = 1) -> Interval:
        """The interval of these rows, the error shared out among so many of its kind."""
        return paired_interval(
            list(differences.values()), resamples=self.resamples, seed=self.seed, one_sided=self.level / shared_by,
            groups=self.groups_of(differences),
        )  # fmt: skip


def _readings(
    left: ComparedArm, right: ComparedArm, ids: Sequence[str], pair: Callable[[Sequence[str]], Comparison]
) -> dict[str, Comparison | None]:
    """The comparison over the rows that are left when failures are left out; absent where there are none to leave out."""
    kept = {
        "reached": [key for key in ids if left.reached(key) and right.reached(key)],
        "answered": [key for key in ids if left.answered(key) and right.answered(key)],
    }
    return {name: pair(found) if found else None for name, found in kept.items() if len(found) < len(ids)}


def _floors(
    left: ComparedArm, right: ComparedArm, ids: Sequence[str], quality_floor: float | None
) -> dict[str, dict[str, float]]:
    """The SLM's primary metric minus each floor by example id, on the rows where both are defined."""
    primary = track_of(right.report).primary
    own = {key: value for key in ids if (value := right.score(key).value(primary)) is not None}
    found = {}
    if quality_floor is not None:
        found[f"the declared floor {quality_floor:g}"] = {key: value - quality_floor for key, value in own.items()}
    for arm in (left, right):
        for spec, model in arm.report.models.items():
            if model.facts.kind != "baseline" or spec in (left.spec, right.spec):
                continue
            other = replace(arm, spec=spec)
            scored = other.scored()
            found[spec] = {
                key: value - base
                for key, value in own.items()
                if key in scored and (base := other.score(key).value(primary)) is not None
            }
    return {name: values for name, values in found.items() if values}


def _pair(
    left: ComparedArm,
    right: ComparedArm,
    ids: Sequence[str],
    *,
    bounds: Bounds,
    guardrails: Sequence[str],
    slice_rows: int,
) -> Comparison:
    track = track_of(left.report)
    pairs = [(left.score(key), right.score(key)) for key in ids]
    llm_metrics = summarise(track, [a for a, _ in pairs])
    slm_metrics = summarise(track, [b for _, b in pairs])
    primary = _differences(track.primary, ids, pairs)
    answered = {key: primary[key] for key in primary if left.answered(key) and right.answered(key)}
    groups = bounds.groups_of(primary)
    sizes = Counter(at if name is None else name for at, name in enumerate(groups))
    defined = [
        (a.value(track.primary) or 0.0, b.value(track.primary) or 0.0) for a, b in pairs if a.example_id in primary
    ]
    return Comparison(
        track=track.name,
        llm=left.spec,
        slm=right.spec,
        n=len(primary),
        digest=left.report.examples.digest,
        primary=track.primary,
        llm_metrics=llm_metrics,
        slm_metrics=slm_metrics,
        gaps={
            name: b - a
            for name in track.core
            if (a := llm_metrics[name]) is not None and (b := slm_metrics[name]) is not None
        },
        interval=bounds.of(primary),
        guardrails={name: bounds.of(_differences(name, ids, pairs)) for name in track.guardrails_with(guardrails)},
        slices=sliced(primary, {key: left.rows[key].tags for key in ids}, slice_rows, bounds),
        deviation=statistics.pstdev(primary.values()),
        answered=bounds.of(answered) if answered and len(answered) < len(primary) else None,
        answered_n=len(answered),
        slm_only_right=sum(a < 1 <= b for a, b in defined),
        llm_only_right=sum(b < 1 <= a for a, b in defined),
        stand_ins=tuple(arm.spec for arm in (left, right) if arm.summary.stand_in),
        undefined=len(ids) - len(primary),
        groups=len(sizes),
        largest_group=max(sizes.values(), default=1),
        effective_n=effective_rows(list(primary.values()), groups) if groups else None,
        level=bounds.level,
    )


def sliced(
    differences: Mapping[str, float],
    tags: Mapping[str, Mapping[str, str]],
    fewest: int,
    bounds: Bounds,
) -> tuple[Slice, ...]:
    """The differences by tag value, for values on at least `fewest` rows and not on all of them.

    The error of a bound is shared out among the slices (Bonferroni), so that many slices do not make one of them look
    bad by chance.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, difference in differences.items():
        for tag, value in tags[key].items():
            found.setdefault((tag, value), {})[key] = difference
    kept = {place: values for place, values in sorted(found.items()) if fewest <= len(values) < len(differences)}
    return tuple(
        Slice(tag=tag, value=value, n=len(values), interval=bounds.of(values, shared_by=len(kept)))
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
