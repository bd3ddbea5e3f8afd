"""The verdict's operating characteristics: how often it is wrong and how often it helps, over simulated evaluations.

Pairs are right or wrong, drawn independently with a given share of discordant rows and a given true difference. The
simulated runs are judged by the same bounds as a real comparison, so a figure here is a figure of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.non_inferiority import bounds, rows_for_power, shows

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Shares of runs: swaps when the SLM is worse by exactly delta, and fine_tunes when both are equally good."""

    n: int
    discordance: float
    delta: float
    false_swap: float
    false_fine_tune: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The rows advised for `promised` power and the share of runs of equal models that then ended in a swap."""

    discordance: float
    delta: float
    rows: int
    promised: float
    found: float


def errors(n: int, discordance: float, delta: float, *, runs: int, seed: int) -> Errors:
    """Both false verdicts; `discordance` is at least `delta`."""
    chance = np.random.default_rng((seed, n, round(discordance * 1e6), round(delta * 1e6)))
    worse, equal = _draw(chance, n, discordance, -delta, runs), _draw(chance, n, discordance, 0.0, runs)
    return Errors(
        n=n, discordance=discordance, delta=delta,
        false_swap=float(np.mean(shows(worse[:, 0], worse[:, 1], n, delta))),
        false_fine_tune=float(np.mean(_trails(equal, n, delta))),
    )  # fmt: skip


def coverage(n: int, discordance: float, difference: float, *, runs: int, seed: int) -> float:
    """The share of runs whose two-sided 95 % interval holds the true difference."""
    chance = np.random.default_rng((seed, n, round(discordance * 1e6), round((1 + difference) * 1e6)))
    outcomes, times = np.unique(_draw(chance, n, discordance, difference, runs)[:, :2], axis=0, return_counts=True)
    inside = 0
    for (gained, lost), count in zip(outcomes.tolist(), times.tolist(), strict=True):
        lower, upper = bounds(gained, lost, n, one_sided=0.025)
        inside += count * (lower <= difference <= upper)
    return inside / runs


def power(discordance: float, delta: float, *, runs: int, seed: int, promised: float = 0.8) -> Power | None:
    """Whether the advice keeps its promise; None where no affordable number of rows does."""
    rows = rows_for_power(discordance, delta, power=promised)
    if rows is None:
        return None
    drawn = _draw(np.random.default_rng((seed, rows)), rows, discordance, 0.0, runs)
    found = float(np.mean(shows(drawn[:, 0], drawn[:, 1], rows, delta)))
    return Power(discordance=discordance, delta=delta, rows=rows, promised=promised, found=found)


def _draw(chance: np.random.Generator, n: int, discordance: float, difference: float, runs: int) -> Counts:
    """(gained, lost, rest) of each run."""
    gain, loss = (discordance + difference) / 2, (discordance - difference) / 2
    return chance.multinomial(n, [gain, loss, 1 - discordance], size=runs)


def _trails(counts: Counts, n: int, delta: float) -> NDArray[np.bool_]:
    """Runs whose upper bound is below -delta. Only runs whose estimate is can be, so only their bounds are worked out."""
    gained, lost = counts[:, 0], counts[:, 1]
    candidates = (gained - lost) / n < -delta
    found = np.zeros(len(counts), dtype=np.bool_)
    for place in np.flatnonzero(candidates):
        found[place] = bounds(int(gained[place]), int(lost[place]), n)[1] < -delta
    return found
