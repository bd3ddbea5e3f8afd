"""From a comparison to what to do, in words with the numbers in them, and as an exit status.

`paired` (the default) asks whether the SLM can be *shown* to be no more than `delta` worse on the primary metric;
`sequential` asks the same of rows that were looked at as they came; `point` is the earlier system's rule and has no notion
of chance. Decides only; trains and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from slm_ray.errors import ConfigError, choices
from slm_ray.types import Action, Comparison, Decision, Interval
from slm_ray.verdict.non_inferiority import FEWEST_ROWS, rows_by_width, rows_for_power
from slm_ray.verdict.replay import sequential_reasons
from slm_ray.verdict.stats import FEWEST_GROUPS
from slm_ray.verdict.words import number, rows_text

EXIT: dict[Action, int] = {"swap": 0, "fine_tune": 10, "inconclusive": 20}
MOST_FAILED = 0.02  # share of rows that a model may leave without an answer; above it nothing is decided

Ruling = tuple[Action, list[str], str | None]  # what to do, why, and what would decide where it is not decided

# 0.50 - 0.48 is a hair more than 0.02 in binary: a gap of exactly delta must not become more than delta.
_ROUNDING = 1e-12
_LEAST_MARGIN = 1e-4


def decide(comparison: Comparison, *, rule: str, delta: float) -> Decision:
    """Apply `rule` ("paired", "sequential" or "point") with margin `delta` in [0, 1]; ConfigError names the known rules.

    paired: swap when the lower bound is above -delta, fine_tune when the upper bound is below -delta, else
    inconclusive (a bound exactly at -delta shows neither). A guardrail that does not hold or a slice that is clearly worse
    blocks a swap and is named.
    sequential: what `Comparison.sequential` decided while rows came in, guardrails and readings of failed calls included
    (see `replay`); a slice that is clearly worse makes a swap inconclusive. ComparisonError where it is None.
    point: fine_tune when the LLM leads on any core metric by more than delta, else swap; an undefined metric has no
    gap and no say, and with none defined the result is inconclusive.
    Any rule: a call that failed in transport is a missing answer, not a wrong one. With more than 2 % of them on
    either side the result is inconclusive; below that the rows that both models were reached on have to give the same
    action, and a swap has to hold over the rows that both answered too, else the result is inconclusive.
    Any rule: no swap below a floor. Two models at 0 on the primary metric are below it, and so is an SLM that is not
    better than a trivial baseline that was asked, or than a declared number (`point`: by the estimate; else the lower
    bound says so, which needs no correction, since every floor has to be exceeded). `paired`: fewer than 14 pairs, on
    which no unforced margin can be shown, are no swap, and rows of fewer than 10 groups decide nothing.
    """
    rules = {"paired": _paired, "sequential": _sequential, "point": _point}
    if rule not in rules:
        raise ConfigError(f"unknown rule {rule!r}: {choices(rule, rules)}")
    because = [*_outage(comparison), *(_few_groups(comparison) if rule == "paired" else [])]
    action: Action = "inconclusive"
    advice = None
    if not because:
        action, because, advice = rules[rule](comparison, delta)
        if rule != "sequential":  # which holds every reading to its own bets
            action, more = _both_readings(comparison, action, lambda found: rules[rule](found, delta)[0])
            because += more
        if action == "swap" and (short := _below_floor(comparison, rule)):
            action = "inconclusive"
            because += short
    because += _caveats(comparison)
    return Decision(action=action, rule=rule, delta=delta, because=tuple(because), advice=advice)


def _paired(comparison: Comparison, delta: float) -> Ruling:
    name, interval = comparison.primary, comparison.interval
    because = [
        f"{name}: SLM minus LLM is {interval.estimate:+.4f} over {rows_text(comparison)}, with one-sided"
        f" {100 * (1 - comparison.level):.4g} % bounds {interval.lower:+.4f} and {interval.upper:+.4f} ({interval.method});"
        f" the SLM alone is right on"
        f" {comparison.slm_only_right} rows, the LLM alone on {comparison.llm_only_right}.",
        *_answered(comparison),
    ]
    action: Action = _by_bounds(interval, delta)
    because.append(_reading(comparison, delta, action))
    if action == "swap" and interval.lower > 0:
        because.append(f"the SLM is superior on {name}: even the lower bound {interval.lower:+.4f} is above 0.")
    advice = _advice(comparison, delta) if action == "inconclusive" else None
    if action == "swap":
        action, reasons, advice = _guarded(comparison, delta)
        because += reasons
    return action, because, advice


def not_worse(interval: Interval, delta: float) -> bool:
    """The rule of a swap: the lower bound is above -`delta` (at it is not above it)."""
    return interval.lower > -delta + _ROUNDING


def too_many_failed(failed: int, n: int) -> bool:
    """The rule of an outage: `failed` of `n` calls did not come to an end, and that is more than 2 %."""
    return failed > n * MOST_FAILED + _ROUNDING


def out_of_reach(comparison: Comparison) -> bool:
    """Whether a model's calls failed on too many rows for any verdict."""
    return any(too_many_failed(failed, comparison.n) for failed in (comparison.llm_failed, comparison.slm_failed))


def clearly_worse(interval: Interval, delta: float) -> bool:
    """The rule of a fine-tune, and of a slice that blocks a swap: even the upper bound is below -`delta`."""
    return interval.upper < -delta - _ROUNDING


def _by_bounds(interval: Interval, delta: float) -> Action:
    if not_worse(interval, delta):
        return "swap"
    return "fine_tune" if clearly_worse(interval, delta) else "inconclusive"


def _reading(comparison: Comparison, delta: float, action: Action) -> str:
    interval = comparison.interval
    if action == "swap":
        return (
            f"the lower bound {interval.lower:+.4f} is above {-delta:+.4f}: the SLM is not worse by {delta:g} or more."
        )
    if action == "fine_tune":
        return f"the upper bound {interval.upper:+.4f} is below {-delta:+.4f}: the SLM trails by more than {delta:g}."
    return (
        f"{-delta:+.4f} lies between the bounds: {comparison.n} rows show neither that the SLM trails by more than"
        f" {delta:g} nor that it does not."
    )


def _guarded(comparison: Comparison, delta: float) -> Ruling:
    """A swap, unless a guardrail metric is not shown to hold or a slice is shown to be worse.

    All guardrails have to hold, each at the full level: an intersection-union test, which needs no correction. Slices have
    to be shown worse, at a level shared among them.
    """
    action: Action = "swap"
    reasons, advice = [], None
    for name, interval in comparison.guardrails.items():
        found = _by_bounds(interval, delta)
        bounds = f"{name}: {interval.estimate:+.4f}, bounds {interval.lower:+.4f} and {interval.upper:+.4f}"
        if found == "swap":
            reasons.append(f"the guardrail {bounds}: holds.")
            continue
        if found == "fine_tune":
            reasons.append(f"the guardrail {bounds}: worse by more than {delta:g}, which blocks the swap.")
        else:
            reasons.append(f"the guardrail {bounds}: not shown to be within {delta:g}, which blocks the swap.")
            advice = advice or _guardrail_advice(comparison, name, delta)
        action = "fine_tune" if "fine_tune" in (action, found) else "inconclusive"
    worse = _worse_slices(comparison, delta)
    return ("fine_tune" if worse else action), [*reasons, *worse], advice


def _worse_slices(comparison: Comparison, delta: float) -> list[str]:
    """The slices on which the SLM is clearly worse, the worst first, in words."""
    return [
        f"the SLM is worse where {worst.tag} is {worst.value!r}: {worst.interval.estimate:+.4f} over {worst.n} rows, upper"
        f" bound {worst.interval.upper:+.4f} (shared among {len(comparison.slices)} slices), which blocks the swap."
        for worst in sorted(comparison.slices, key=lambda part: part.interval.upper)
        if clearly_worse(worst.interval, delta)
    ]


def _sequential(comparison: Comparison, delta: float) -> Ruling:
    return sequential_reasons(comparison, delta, blocked=_worse_slices(comparison, delta))


def _below_floor(comparison: Comparison, rule: str) -> list[str]:
    """Why an SLM that is no worse than the LLM may not take its place all the same; empty where nothing is in the way."""
    name = comparison.primary
    found = [
        f"{name}: SLM minus {what} is {floor.estimate:+.4f}, with a lower bound of {floor.lower:+.4f}: not shown to be"
        " better, which blocks the swap. Two models that do no better than this are equally useless."
        for what, floor in comparison.floors.items()
        if (floor.estimate if rule == "point" else floor.lower) <= _ROUNDING
    ]
    if all(side.get(name) == 0 for side in (comparison.llm_metrics, comparison.slm_metrics)):
        found.append(
            f"both models are at 0 on {name}: neither does this task, so that neither can take the other's place. Look at"
            " the answers: the prompt, the cap on tokens or the metric does not fit."
        )
    if rule == "paired" and comparison.n < FEWEST_ROWS:
        found.append(
            f"{comparison.n} pairs are too few for a swap at any margin that is not forced; evaluate {FEWEST_ROWS} or more."
        )
    return found


def _few_groups(comparison: Comparison) -> list[str]:
    """Why nothing can be decided: rows in too few groups; empty where they are not, or in none."""
    if comparison.largest_group == 1 or comparison.groups >= FEWEST_GROUPS:
        return []
    return [
        f"no verdict: the {comparison.n} rows come from {comparison.groups} groups, and fewer than {FEWEST_GROUPS} do not show"
        " how groups differ, however many rows each has; evaluate rows of more groups."
    ]


def _outage(comparison: Comparison) -> list[str]:
    """Why nothing can be decided: a model that was out of reach on too many rows; empty where none was."""
    arms = (("LLM", comparison.llm, comparison.llm_failed), ("SLM", comparison.slm, comparison.slm_failed))
    found = [
        f"no verdict: the calls of the {role} ({spec}) failed on {failed} of {comparison.n} rows"
        f" ({failed / comparison.n:.1%}, more than {MOST_FAILED:.0%}); these answers are missing, not wrong. Mend its"
        " endpoint and run the evaluation's command again, which asks only the failed rows; then compare again."
        for role, spec, failed in arms
        if too_many_failed(failed, comparison.n)
    ]
    reached = comparison.readings.get("reached")
    if found and reached:
        found.append(
            f"over the {reached.n} rows on which no call failed {comparison.primary} is {reached.interval.estimate:+.4f}"
            f" ({reached.interval.lower:+.4f} to {reached.interval.upper:+.4f}), which decides nothing: rows that fail"
            " need not be like the others."
        )
    return found


def _both_readings(
    comparison: Comparison, action: Action, act: Callable[[Comparison], Action]
) -> tuple[Action, list[str]]:
    """The action, where the rows without failures give the same one; else inconclusive, and which rows disagree."""
    which = {"reached": "the rows on which no call failed", "answered": "the rows that both models answered"}
    for name, rows in which.items():
        if name not in comparison.readings or action == "inconclusive" or (name, action) == ("answered", "fine_tune"):
            continue
        found = comparison.readings[name]
        other = act(found) if found else None
        if other != action:
            n, said = (found.n, f"they say {other}") if found else (0, "there is none to tell by")
            return "inconclusive", [
                f"failures decide here: with them counted as wrong the action is {action}; of {rows} ({n} of"
                f" {comparison.n}) {said}. Find out why calls fail or are refused, mend it, and run the evaluation's"
                " command again."
            ]
    return action, []


def _answered(comparison: Comparison) -> list[str]:
    """Both readings of failed calls, where there are any."""
    found = comparison.answered
    if found is None:
        return []
    return [
        f"failed, refused and cut calls count as wrong above; over the {comparison.answered_n} rows that both answered it"
        f" is {found.estimate:+.4f} ({found.lower:+.4f} to {found.upper:+.4f})."
    ]


def _guardrail_advice(comparison: Comparison, name: str, delta: float) -> str | None:
    width = comparison.guardrails[name].upper - comparison.guardrails[name].lower
    if delta < _LEAST_MARGIN:
        return None
    rows = rows_by_width(width, comparison.n, delta, one_sided=comparison.level)
    if rows <= comparison.n:
        return (
            f"{comparison.n} rows would have shown models that are equally good on {name} to be so with more than 80 %"
            " power: these are probably not."
        )
    return f"were both equally good on {name}, {rows:,} fresh held-out rows would show it with 80 % power."


def rows_advised(comparison: Comparison, delta: float, *, level: float) -> int | None:
    """Fresh rows that would show two equally good models, as often of different opinion as here, to be so: 80 % power.

    Rows of groups like these, where there are groups: each says less. None where it takes more than a million.
    """
    if delta < _LEAST_MARGIN:
        return None
    rows = rows_for_power(min(_spread(comparison), 1.0), delta, one_sided=level)
    if rows is None or comparison.effective_n is None:
        return rows
    return math.ceil(rows * comparison.n / comparison.effective_n)


def _spread(comparison: Comparison) -> float:
    """Discordance; where rows are not just right or wrong the squared deviation, which is the same for those that are."""
    if "bootstrap" in comparison.interval.method:
        return comparison.deviation**2
    return (comparison.slm_only_right + comparison.llm_only_right + 1) / (comparison.n + 2)


def _advice(comparison: Comparison, delta: float) -> str:
    """How many fresh rows would do, and what allows to add rows instead."""
    if delta < _LEAST_MARGIN:
        return (
            f"with delta {delta:g} no affordable number of rows shows that the SLM is as good; declare a wider margin."
        )
    rows = rows_advised(comparison, delta, level=comparison.level)
    if rows is None:
        return f"at delta {delta:g} more than a million rows would be needed; declare a wider margin."
    if rows <= comparison.n:
        return (
            f"{comparison.n} rows would have shown equally good models to be so with more than 80 % power: these are"
            " probably not equal."
        )
    return (
        f"were both equally good, {rows:,} rows would show it with 80 % power at this discordance"
        f" ({_spread(comparison):.3f}): evaluate {rows:,} fresh held-out rows, none of these {comparison.n} among them, or"
        " declare rule: sequential for the next run, which may then be extended until it decides. Fresh rows are a new test"
        " with an error of its own: to go on with round after round until one decides is what only sequential allows."
    )


def _point(comparison: Comparison, delta: float) -> Ruling:
    gaps = comparison.gaps
    if not gaps:
        return "inconclusive", ["no core metric is defined for both models, so there is no gap to judge."], None
    trailing = {name: gap for name, gap in gaps.items() if gap < -delta - _ROUNDING}
    because = [
        f"{name}: the LLM leads by {-gap:.4f}, more than {delta:g} (LLM {number(comparison.llm_metrics[name])},"
        f" SLM {number(comparison.slm_metrics[name])}, {comparison.n} paired rows)."
        for name, gap in trailing.items()
    ]
    if not because:
        name, gap = min(gaps.items(), key=lambda pair: pair[1])
        because.append(
            f"the LLM leads by more than {delta:g} on none of {len(gaps)} core metrics over {comparison.n} paired rows;"
            f" the lowest gap (SLM minus LLM) is {gap:+.4f} on {name}."
        )
    because.append("the point rule has no interval: chance alone may explain these gaps.")
    return ("fine_tune" if trailing else "swap"), because, None


def _caveats(comparison: Comparison) -> list[str]:
    """What the numbers do not say: undefined metrics, and models that stand in for others."""
    llm, slm = (
        {name for name, value in metrics.items() if value is None}
        for metrics in (comparison.llm_metrics, comparison.slm_metrics)
    )
    undefined = {"both models": llm & slm, "the LLM": llm - slm, "the SLM": slm - llm}
    found = [
        f"undefined for {whom} and left out: {', '.join(sorted(names))}." for whom, names in undefined.items() if names
    ]
    found += [
        f"the {role} here is a stand-in ({spec}): this says nothing about the model it stands for."
        for role, spec in (("LLM", comparison.llm), ("SLM", comparison.slm))
        if spec in comparison.stand_ins
    ]
    if comparison.undefined:
        found.append(
            f"{comparison.primary} is undefined on {comparison.undefined} more paired rows, which have no part in this."
        )
    return found
