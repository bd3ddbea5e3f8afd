"""The sequential rule on the rows of a report, replayed in the order in which they were asked, and in words.

The same rows give the same decision at the same row as the run that asked them. Refuses a report whose rows were not asked
in a drawn order: rows as they stand in a file need not begin like the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from slm_ray.errors import ComparisonError
from slm_ray.types import Action, Comparison, SequentialResult
from slm_ray.verdict.arms import ComparedArm, track_of
from slm_ray.verdict.sequential import PairedRow, SequentialTest


def replay(
    left: ComparedArm, right: ComparedArm, *, delta: float, level: float, guardrails: Sequence[str]
) -> SequentialResult:
    """The LLM (`left`) and the SLM over the rows that both have, in the order of the LLM's report.

    `guardrails` are row metrics besides those that the track names. A candidate is tested at the level of its run where
    that is stricter than `level`. ComparisonError without a drawn order.
    """
    report, track = left.report, track_of(left.report)
    if report.order_seed is None:
        raise ComparisonError(
            "the sequential rule needs rows that were asked in an order drawn beforehand, and this report's were asked as"
            " they stand in the file; evaluate into a new run_dir with declare: {rule: sequential}, or compare with rule:"
            " paired, once"
        )
    both = [row for key, row in left.rows.items() if key in left.scored() and key in right.scored()]
    groups = [
        [row.id for row in rows]
        for _, rows in itertools.groupby(both, key=lambda row: (row.group is None and row.id, row.group))
    ]
    seen = max(map(len, groups), default=1)
    asked = report.sequential.candidates.get(right.spec) if report.sequential else None
    test = SequentialTest(
        primary=track.primary,
        delta=delta,
        level=min(level, asked.level) if asked else level,
        guardrails=tuple(dict.fromkeys((*track.guardrails, *guardrails))),
        largest_group=max(seen, report.sequential.largest_group if report.sequential else 1),
    )
    names = (track.primary, *track.guardrails, *guardrails)
    for ids in groups:
        test.add([_paired(left, right, key, names) for key in ids])
    return test.result


def sequential_reasons(comparison: Comparison, delta: float) -> tuple[Action, list[str]]:
    """The action of the sequential rule and why. ComparisonError where the comparison was made without it.

    Slices are not watched row by row: a clearly worse one takes a swap back, and is no fine_tune by itself.
    """
    looked, name = comparison.sequential, comparison.primary
    if looked is None:
        raise ComparisonError(
            "the sequential rule decides on rows in their asking order, which were not looked at here"
        )
    now = looked.interval
    because = [
        f"{name}: SLM minus LLM is {now.estimate:+.4f} over {looked.rows} rows"
        f"{f' in {looked.groups} groups' if looked.groups < looked.rows else ''} in the order they were asked; confidence"
        f" sequence {now.lower:+.4f} to {now.upper:+.4f}, each bound wrong at any time in at most {looked.level:.2%} of runs,"
        " however often it is looked at."
    ]
    if looked.action is None:
        because.append(
            f"{looked.rows} rows show neither that the SLM trails by more than {delta:g} nor that it does not"
            f"{' with the guardrails' if comparison.guardrails else ''} (capital of the bets {looked.e_not_worse:.3g} and"
            f" {looked.e_worse:.3g}, {1 / looked.level:,.0f} decides). This run may be extended: evaluate further rows"
            " with extend=FILE, and it goes on where it is."
        )
        return "inconclusive", because
    because.append(f"decided at row {looked.decided_at}; rows after it do not change that.")
    worst = min(comparison.slices, key=lambda part: part.interval.upper, default=None)
    if looked.action == "swap" and worst is not None and worst.interval.upper < -delta:
        because.append(
            f"the SLM is worse where {worst.tag} is {worst.value!r}: {worst.interval.estimate:+.4f} over {worst.n} rows,"
            f" upper bound {worst.interval.upper:+.4f}, which blocks the swap. Slices were not watched row by row, so that"
            " this is no fine_tune either."
        )
        return "inconclusive", because
    return looked.action, because


def _paired(left: ComparedArm, right: ComparedArm, key: str, names: Sequence[str]) -> PairedRow:
    llm, slm = left.score(key), right.score(key)
    differences = {}
    for name in names:
        a, b = llm.value(name), slm.value(name)
        differences[name] = None if a is None or b is None else b - a
    return PairedRow(
        group=left.rows[key].group,
        differences=differences,
        reached=left.reached(key) and right.reached(key),
        answered=left.answered(key) and right.answered(key),
    )
