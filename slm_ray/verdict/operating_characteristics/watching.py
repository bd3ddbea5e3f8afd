"""The watch over live traffic, simulated: how often it rings without drift, and how long it takes to ring after one.

The bets are those of `verdict.watch`, so that what is found here is a property of the watch that takes an adapter back (a
test holds the two against each other). Streams are right-or-wrong or graded; an observation is one audited request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.sequential import WEIGHTS, bet_fractions
from slm_ray.verdict.watch import RECENT, hypothesis, waiting

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, float], Values]


class WatchPlay:
    """Watches under way, one a run: `add` takes the next difference of each and gives the capitals now."""

    def __init__(self, runs: int, *, delta: float, reference: float | None) -> None:
        self.null, self._low, self._high = hypothesis(delta, reference)
        self._delta, self._rows, self._past = delta, 0, 0.0
        self._table, self._squares = np.zeros((runs, len(WEIGHTS))), np.zeros(runs)

    def add(self, differences: Values) -> Values:
        """`differences` are those of the next observation of each run."""
        middle, half = (self._high + self._low) / 2, (self._high - self._low) / 2
        scaled, null = (differences - middle) / half, (self.null - middle) / half
        squares, which = np.unique(self._squares, return_inverse=True)
        at = np.full(len(squares), self._past)
        fractions = bet_fractions((1 + squares) / (2 + self._past), np.ones(len(squares)), at, self._delta)[which]
        put_in = waiting(self._rows) - waiting(self._rows + 1)
        self._table = (self._table + put_in * WEIGHTS) * (1 + ((null - scaled) / (1 - null))[:, None] * fractions)
        self._squares = self._squares * (1 if self._past < RECENT else 1 - 1 / RECENT) + scaled**2
        self._past = min(self._past + 1, float(RECENT))
        self._rows += 1
        return np.asarray(self._table.sum(axis=1) + waiting(self._rows), dtype=np.float64)

    def keep(self, runs: NDArray[np.intp]) -> None:
        """Go on with these runs only; one that is named twice goes on twice."""
        self._table, self._squares = self._table[runs], self._squares[runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A kind of traffic. `good` is the mean difference without drift and `draw(chance, runs, mean)` one observation of each run.

    `reference` is the agreement that was shown (see `Watch`); None: differences of labels.
    """

    name: str
    good: float
    reference: float | None
    draw: Draw


def _labelled(discordance: float) -> Draw:
    """1: the SLM alone is right, -1: the LLM alone; both equally often at a mean of 0, and more rows differ as it falls."""

    def draw(chance: np.random.Generator, runs: int, mean: float) -> Values:
        share = max(discordance, abs(mean))
        drawn = chance.random(runs)
        return (drawn < (share + mean) / 2).astype(np.float64) - (drawn > 1 - (share - mean) / 2)

    return draw


def _agreeing(chance: np.random.Generator, runs: int, mean: float) -> Values:
    return -(chance.random(runs) < -mean).astype(np.float64)


def _graded(chance: np.random.Generator, runs: int, mean: float) -> Values:
    """Most answers agree wholly, the others by a half on average: field by field, as an F1 has it."""
    departs = chance.random(runs) < min(1.0, -2 * mean)
    return np.where(departs, -chance.beta(1.5, 1.5, runs) if mean >= -0.5 else mean, 0.0)


STREAMS: tuple[Stream, ...] = (
    Stream(name="labels, 5 % differ", good=0.0, reference=None, draw=_labelled(0.05)),
    Stream(name="labels, 20 % differ", good=0.0, reference=None, draw=_labelled(0.2)),
    Stream(name="labels, 40 % differ", good=0.0, reference=None, draw=_labelled(0.4)),
    Stream(name="agreement 97 %, 95 % shown", good=-0.03, reference=0.95, draw=_agreeing),
    Stream(name="agreement 85 %, 81 % shown", good=-0.15, reference=0.81, draw=_agreeing),
    Stream(name="graded agreement 92 %, 90 % shown", good=-0.08, reference=0.90, draw=_graded),
)  # fmt: skip


def alarms(
    differences: Iterable[Values], runs: int, *, delta: float, reference: float | None, level: float
) -> NDArray[np.int64]:
    """The observation, from 1, at which each run's watch rang; 0: never. `differences` are those of all runs, one by one."""
    play, live, rang = (
        WatchPlay(runs, delta=delta, reference=reference),
        np.arange(runs),
        np.zeros(runs, dtype=np.int64),
    )
    for at, values in enumerate(differences, start=1):
        over = play.add(values[live]) >= 1 / level
        if over.any():
            rang[live[over]] = at
            live = live[~over]
            play.keep(np.flatnonzero(~over))
            if not len(live):
                break
    return rang


def false_alarms(
    stream: Stream, *, delta: float, level: float, runs: int, rows: int, seed: int, at_edge: bool
) -> float:
    """The share of runs that rang in `rows` observations without drift; `at_edge`: as bad as the hypothesis allows."""
    null, *_ = hypothesis(delta, stream.reference)
    chance = np.random.default_rng((seed, rows, round(1e6 * (1 + stream.good)), at_edge))
    mean = null if at_edge else stream.good
    drawn = (stream.draw(chance, runs, mean) for _ in range(rows))
    return float((alarms(drawn, runs, delta=delta, reference=stream.reference, level=level) > 0).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Observations from the change to the alarm: their median and 90 % quantile over the runs that did not ring before it.

    None where fewer rang within the observations that were drawn. `early` is the share that rang before the change.
    """

    early: float
    median: int | None
    ninety: int | None


def delay(
    stream: Stream, *, shift: float, after: int, delta: float, level: float, runs: int, most: int, seed: int
) -> Delay:
    """The mean difference falls by `shift` after so many good observations; at most `most` follow."""
    chance = np.random.default_rng((seed, after, round(1e6 * shift), round(1e6 * (1 + stream.good))))
    means = (stream.good if at < after else max(stream.good - shift, -1.0) for at in range(after + most))
    drawn = (stream.draw(chance, runs, mean) for mean in means)
    rang = alarms(drawn, runs, delta=delta, reference=stream.reference, level=level)
    early = (rang > 0) & (rang <= after)
    waited = np.where(rang == 0, most + 1, rang - after)[~early]
    median, ninety = (int(np.quantile(waited, part, method="higher")) for part in (0.5, 0.9))
    return Delay(
        early=float(early.mean()), median=median if median <= most else None, ninety=ninety if ninety <= most else None
    )
