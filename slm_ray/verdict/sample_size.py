"""How many rows a verdict will take, for an assumed difference between the models, under both rules.

Right-or-wrong rows of groups of one. The `paired` rule is asked for the rows of one declared look, the `sequential` one for
the row at which it stops. Figures are simulated with a seed (to about 2 % for `paired`, 3 to 5 % for `sequential`), but for
the exact ones of `paired` at equal models. A plan says how long it takes to be decided, not whether the assumption holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from slm_ray.tables import format_table
from slm_ray.types import Action
from slm_ray.verdict.non_inferiority import FEWEST_ROWS, ONE_SIDED, rows_for_power, shows
from slm_ray.verdict.sequential_runs import rows_to_decision

_DRAWS = 4000  # simulated evaluations behind a power
_RUNS = 400  # simulated evaluations behind a stopping row
_MOST = 40_000  # rows that a plan looks ahead
_NEAR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rows until `action` is shown, were the true difference (SLM minus LLM) `difference`.

    `discordance` is the share of rows that one model alone gets right. `paired_80` and `paired_90` give one look that
    power; `median`, `mean` and `ninety` (enough in nine of ten runs) are those of the sequential stop. None: more than
    40,000 rows, or a difference of exactly -delta, which no number of rows decides.
    """

    difference: float
    discordance: float
    action: Action
    paired_80: int | None
    paired_90: int | None
    median: int | None
    mean: int | None
    ninety: int | None


def plan(
    differences: Sequence[float], discordance: float, delta: float, *, level: float = ONE_SIDED, seed: int = 42
) -> tuple[Plan, ...]:
    """One plan for each assumed difference; where a difference needs more discordant rows than that, it has them.

    During a run: the differences and the discordance seen so far. Takes seconds for small margins.
    """
    return tuple(_plan(one, max(discordance, abs(one)), delta, level, seed) for one in differences)


def plan_text(plans: Sequence[Plan], delta: float) -> str:
    """The plans as a table, and what the sequential rule costs where both models are equal."""
    head = ["true difference", "discordance", "ends in", "80 % power", "90 % power", "median", "mean", "90 % of runs"]
    body = [
        [f"{one.difference:+.1%}", f"{one.discordance:.1%}", one.action]
        + [_count(n) for n in (one.paired_80, one.paired_90, one.median, one.mean, one.ninety)]
        for one in plans
    ]
    lines = [
        f"rows until a decision at delta {delta:g}: one look (paired: 80 %, 90 % power), or a stop (sequential: median, mean, 90 %)",
        *format_table([head, *body], left=(2,)),
    ]
    if any("-" in cells[3:] for cells in body):
        lines.append(
            f"-: more rows than are looked ahead ({_MOST:,} at most), or no number will do: a true difference of exactly"
            f" {-delta:+.1%} is never decided."
        )
    equal = next((one for one in plans if one.difference == 0), None)
    if equal and equal.mean and equal.ninety and equal.paired_80 and equal.paired_90:
        lines.append(
            f"Were both models equal, the sequential rule would take {equal.mean:,} rows on average and"
            f" {equal.ninety:,} in nine runs of ten, one look {equal.paired_80:,} for 80 % power and"
            f" {equal.paired_90:,} for 90 %. One look takes them whatever the truth is; the sequential rule stops"
            " sooner where the models are far apart, and looks as often as you like."
        )
    return "\n".join(lines)


def rows_for_one_look(discordance: float, difference: float, delta: float, *, power: float, level: float) -> int | None:
    """The rows that one look needs to decide a true `difference` with probability `power`; None: over 40,000, or never."""
    distance = difference + delta
    if abs(distance) < _NEAR:
        return None
    if difference == 0:
        return rows_for_power(discordance, delta, power=power, one_sided=level, most=_MOST)
    reach = float(scipy.stats.norm.ppf(1 - level) + scipy.stats.norm.ppf(power))
    guess = reach**2 * max(discordance - difference**2, 0.0) / distance**2
    low, high = 0, max(2, math.ceil(guess / 2))
    while _power(high, discordance, difference, delta, level) < power:
        low, high = high, 2 * high
        if low > _MOST:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        enough = _power(middle, discordance, difference, delta, level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return max(high, FEWEST_ROWS) if difference > -delta else high


def _power(n: int, discordance: float, difference: float, delta: float, level: float) -> float:
    gain, loss = (discordance + difference) / 2, (discordance - difference) / 2
    shares = [max(gain, 0.0), max(loss, 0.0), max(1 - discordance, 0.0)]
    gained, lost, _ = np.random.default_rng((n, _DRAWS)).multinomial(n, shares, size=_DRAWS).T
    if difference > -delta:
        return float(np.mean(shows(gained, lost, n, delta, one_sided=level)))
    return float(np.mean(shows(lost, gained, n, -delta, one_sided=level)))


def _plan(difference: float, discordance: float, delta: float, level: float, seed: int) -> Plan:
    eighty, ninety = (
        rows_for_one_look(discordance, difference, delta, power=power, level=level) for power in (0.8, 0.9)
    )
    median: int | None = None
    mean: int | None = None
    tenth: int | None = None
    if eighty is not None:
        most = min(10 * eighty + 200, _MOST)
        rows = rows_to_decision(discordance, difference, delta, level=level, runs=_RUNS, most=most, seed=seed)
        median, tenth = (None if (at := math.ceil(np.quantile(rows, part))) > most else at for part in (0.5, 0.9))
        mean = round(float(rows.mean())) if float((rows > most).mean()) < 0.02 else None
    return Plan(
        difference=difference,
        discordance=discordance,
        action="swap" if difference > -delta else "fine_tune",
        paired_80=eighty,
        paired_90=ninety,
        median=median,
        mean=mean,
        ninety=tenth,
    )


def _count(rows: int | None) -> str:
    return "-" if rows is None else f"{rows:,}"
