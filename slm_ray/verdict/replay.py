"""The sequential rule over a finished report: its rows go through the test once more in their asking order, and into words.

The order is that in which the rows were drawn before the first call, which is the order of the report's rows; a report
without a drawn order is refused, since any other order may have been chosen after the answers were seen. Looked at is the
longest beginning of the order for which both models have an answer, whole groups at a time (rounds of them, where the order
is stratified), so that a model which was no longer asked once it was decided needs no more rows.

Held to the same standard as the primary metric, over all looks together: every guardrail, and every reading of failed
calls (an intersection-union over their own bets). Not held to it: slices and floors, whose bounds are those of one look.
They can only block a swap, which makes swaps rarer, and never turn it into a fine_tune.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from slm_ray.errors import ComparisonError
from slm_ray.types import Action, Comparison, Rounds, SequentialResult
from slm_ray.verdict.arms import ComparedArm, track_of
from slm_ray.verdict.sample_size import plan
from slm_ray.verdict.sequential import PairedRow, SequentialTest, paired_row, rounds_of


def replay(
    left: ComparedArm, right: ComparedArm, *, delta: float, level: float, guardrails: Sequence[str] = ()
) -> SequentialResult:
    """What the rule saw of the SLM (`right`) against the LLM (`left`), each group one bet.

    A candidate is tested at the level of its run where that is stricter than `level`.

    ComparisonError where either report's rows were not asked in a drawn order, or in another one.
    """
    for arm in (left, right):
        if arm.report.order_seed is None:
            raise ComparisonError(
                f"the rows of {arm.spec} were not asked in an order that was drawn before the first call, which the rule"
                " sequential needs; evaluate with declare: {rule: sequential}, or compare by the rule paired"
            )
    if left.report.order_seed != right.report.order_seed:
        raise ComparisonError(
            f"the rows of {left.spec} were asked in an order drawn from {left.report.order_seed}, those of {right.spec} in"
            f" one from {right.report.order_seed}; evaluate both models with one seed"
        )
    shared = [[key for key in arm.rows if key in other.rows] for arm, other in ((left, right), (right, left))]
    if shared[0] != shared[1]:
        raise ComparisonError(
            f"{left.spec} and {right.spec} were asked the same rows in different orders; evaluate both on the same"
            " examples and extend, with one declare.stratify"
        )
    rounds = [arm.report.sequential.rounds if arm.report.sequential else () for arm in (left, right)]
    track = track_of(left.report)
    metrics = tuple(dict.fromkeys((track.primary, *track.guardrails_with(guardrails))))
    scored = left.scored() & right.scored()
    keys = list(itertools.takewhile(lambda key: key in scored, left.rows))
    cut = [
        left.rows[key].group for key in itertools.islice(left.rows, len(keys), len(keys) + 1)
    ]  # of the row after them
    keys = [key for key in keys if left.rows[key].group is None or left.rows[key].group not in cut]
    groups = [list(rows) for _, rows in itertools.groupby(keys, lambda key: left.rows[key].group or (key,))]
    drawn = [arm.report.sequential.largest_group for arm in (left, right) if arm.report.sequential]
    asked = right.report.sequential.candidates.get(right.spec) if right.report.sequential else None
    test = SequentialTest(
        primary=track.primary, delta=delta, level=min(level, asked.level) if asked else level, guardrails=metrics[1:],
        largest_group=max([*drawn, *map(len, groups)], default=1),
    )  # fmt: skip
    for asked_together in rounds_of(groups, max(rounds, key=_groups_of)):
        test.add_round([[_paired(left, right, key, metrics) for key in group] for group in asked_together])
    return test.result


def sequential_reasons(
    comparison: Comparison, delta: float, *, blocked: Sequence[str]
) -> tuple[Action, list[str], str | None]:
    """The action, why, and what would decide; `blocked` are sentences on slices that are clearly worse, which stand in the way of a swap."""
    seen = comparison.sequential
    if seen is None:
        raise ComparisonError("this comparison was not made by the rule sequential; compare the report again by it")
    name, interval = comparison.primary, seen.interval
    groups = f" in {seen.groups} groups" if seen.groups != seen.rows else ""
    because = [
        f"{name}: SLM minus LLM is {interval.estimate:+.4f} over {seen.rows} rows{groups} in the order in which they were"
        f" asked; the confidence sequence is {interval.lower:+.4f} to {interval.upper:+.4f}, each end wrong at any row at all"
        f" with a chance of {100 * seen.level:.3g} % at most.",
        f"the e-values (what a bet of 1 has become, {1 / seen.level:,.4g} decide) are {_number(seen.e_not_worse)} against"
        f" worse by {delta:g} or more, and {_number(seen.e_worse)} against its opposite.",
    ]
    if seen.action is None:
        low = [
            f"the guardrail {name}: {found.estimate:+.4f}, bounds of one look {found.lower:+.4f} and {found.upper:+.4f}:"
            f" worse by more than {delta:g}, which keeps a swap away however many rows come."
            for name, found in comparison.guardrails.items()
            if found.upper < -delta
        ]
        return "inconclusive", [*because, *low], _more_rows(comparison, seen, delta)
    more = seen.rows - (seen.decided_at or seen.rows)
    what = (
        f"the SLM is not worse by {delta:g} or more"
        if seen.action == "swap"
        else f"the SLM trails by more than {delta:g}"
    )
    after = f"; the {more} rows after it were not needed" if more else ""
    because.append(f"decided at row {seen.decided_at}: {what}{after}.")
    if seen.action == "swap" and blocked:
        return "inconclusive", [*because, *blocked], None
    return seen.action, because, None


def _more_rows(comparison: Comparison, seen: SequentialResult, delta: float) -> str:
    """How many rows it will take, were the true difference the one seen, and were both models equal."""
    wrong = comparison.deviation**2 + seen.interval.estimate**2  # discordance, where rows are right or wrong
    found = []
    for difference, what in ((seen.interval.estimate, "the difference seen"), (0.0, "no difference")):
        (one,) = plan([difference], min(max(wrong, 1 / (seen.rows + 2)), 1.0), delta, level=seen.level)
        if one.median is None:
            found.append(f"were {what} the true one, more than 40,000 rows")
        elif one.median <= seen.rows:
            found.append(f"were {what} the true one, a decision would be due by now")
        else:
            ninety = f", {one.ninety - seen.rows:,} in nine of ten runs" if one.ninety else ""
            found.append(f"were {what} the true one, about {one.median - seen.rows:,} more rows{ninety}")
    grouped = "; rows in groups take more than that" if comparison.largest_group > 1 else ""
    return (
        f"not decided yet after {seen.rows} rows; {'; '.join(found)}{grouped}. Rows may be added: evaluate again with extend:"
        " FILE.jsonl, then compare."
    )


def _groups_of(rounds: Rounds) -> int:
    return sum(groups * times for groups, times in rounds)


def _paired(left: ComparedArm, right: ComparedArm, key: str, metrics: Sequence[str]) -> PairedRow:
    llm, slm = left.rows[key].models[left.spec].scores, right.rows[key].models[right.spec].scores
    return paired_row(
        llm, slm, metrics, group=left.group(key), reached=left.reached(key) and right.reached(key),
        answered=left.answered(key) and right.answered(key),
    )  # fmt: skip


def _number(value: float) -> str:
    """An e-value; below 1 it says little, and how little does not matter."""
    if value < 1:
        return f"{value:.2f}" if value >= 0.01 else "less than 0.01"
    return f"{value:,.3g}" if value < 1e6 else f"{value:.1e}"
