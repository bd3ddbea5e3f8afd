"""The sequential rule over many simulated runs at once, for planning and for its operating characteristics.

The bets are those of `sequential`, so that what is found here is a property of the rule that decides (a test holds the two
against each other). Only the primary metric is played, and no call fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.sequential import WEIGHTS, bet_fractions

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """One entry a run. `swap` and `fine_tune` are the group (from 1) at which each was shown first, 0 for never.

    `not_worse` and `worse` are the logs of the capitals after the last group, `peak_…` of the highest until then.
    """

    swap: Counts
    fine_tune: Counts
    not_worse: Values
    worse: Values
    peak_not_worse: Values
    peak_worse: Values


class Play:
    """Runs under way: `add` settles the next group of each and gives the capitals now, (against not worse, its mirror)."""

    def __init__(self, runs: int, *, delta: float, against: float | None = None) -> None:
        self.delta, self.mean = delta, -delta if against is None else against
        self.groups = 0
        self.squares, self.capitals = np.zeros(runs), np.tile(WEIGHTS, (2, runs, 1))

    def add(self, values: Values) -> Values:
        """`values` are the sums of differences of the groups as parts of their size, in [-1, 1]: a column for each group of
        a round, or none where a group is a round."""
        values = values.reshape(len(values), -1)
        squares, which = np.unique(self.squares, return_inverse=True)  # few: most runs have as many discordant rows
        at = np.full(len(squares), float(self.groups))
        fractions = bet_fractions((1 + squares) / (2 + self.groups), np.ones(len(squares)), at, self.delta)[which]
        for capital, side in zip(self.capitals, (1, -1), strict=True):
            for stake in (side * (values - self.mean) / (1 + side * self.mean)).T:
                capital *= 1 + stake[:, None] * fractions
        self.groups += values.shape[1]
        self.squares += (values**2).sum(axis=1)
        return np.asarray(self.capitals.sum(axis=2), dtype=np.float64)

    def keep(self, runs: NDArray[np.intp]) -> None:
        """Go on with these runs only."""
        self.squares, self.capitals = self.squares[runs], self.capitals[:, runs]


def played(
    totals: NDArray[np.generic], *, delta: float, level: float = ONE_SIDED, size: int = 1, against: float | None = None,
    in_round: int = 1,
) -> Runs:  # fmt: skip
    """Play the rule over `totals` (runs x groups): the sum of differences of each group of `size` rows, all of one size.

    The bets are against a mean of `against`, -`delta` where it is left out. So many groups are `in_round`, after which the
    rule looks.
    """
    runs, groups = totals.shape
    play = Play(runs, delta=delta, against=against)
    now, peaks, first = np.ones((2, runs)), np.ones((2, runs)), np.zeros((2, runs), dtype=np.int64)
    for at in range(0, groups - in_round + 1, in_round):
        now = play.add(np.asarray(totals[:, at : at + in_round], dtype=np.float64) / size)
        first[(now >= 1 / level) & (first == 0)] = at + in_round
        np.maximum(peaks, now, out=peaks)
    (not_worse, worse), (high, low) = np.log(np.maximum(now, _TINY)), np.log(peaks)
    return Runs(
        swap=first[0], fine_tune=first[1], not_worse=not_worse, worse=worse, peak_not_worse=high, peak_worse=low
    )


def rows_to_decision(
    discordance: float, difference: float, delta: float, *, level: float = ONE_SIDED, runs: int = 400, most: int,
    seed: int,
) -> Counts:  # fmt: skip
    """The row at which each of `runs` simulated runs was decided, one row a group; `most` + 1: not within `most` rows.

    A share `discordance` of rows is right for one model only, and the true difference is `difference`.
    """
    chance = np.random.default_rng((seed, round(1e6 * discordance), round(1e6 * (1 + difference)), round(1e6 * delta)))
    gain, loss = (discordance + difference) / 2, (discordance - difference) / 2
    play, live, decided = Play(runs, delta=delta), np.arange(runs), np.full(runs, most + 1)
    for at in range(most):
        drawn = chance.random(len(live))
        over = (play.add((drawn < gain).astype(np.float64) - (drawn > 1 - loss)) >= 1 / level).any(axis=0)
        if over.any():
            decided[live[over]] = at + 1
            live = live[~over]
            play.keep(np.flatnonzero(~over))
            if not len(live):
                break
    return decided
