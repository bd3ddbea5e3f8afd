"""The sequential rule: a verdict that may be looked at after every group of rows, stopped at any of them, and extended.

Two e-processes by betting (Waudby-Smith & Ramdas 2024, JRSS B 86; Shafer 2021, JRSS A 184) on the mean paired difference,
SLM minus LLM, in [-1, 1]: one bets against "-delta or less" (rejected: swap), its mirror against "-delta or more"
(rejected: fine_tune). Were the hypothesis true, the capital of a gambler who starts with 1 would not grow on average,
however he bets on what he has seen; so it *ever* passes 1/level with probability `level` at most (Ville 1939), at any
number of looks. The confidence sequence is the set of means that the same bets have never rejected.

Promises: the error of each decision and of each bound is at most `level` over all looks together, exactly and not only for
many rows, for right-or-wrong and for graded scores; the result does not depend on when it was looked at, and the same
groups in the same order give the same result. Assumes that groups come in an order drawn at random from the task (rows
within a group may be alike), or in rounds of one group from each of equal parts of it (`SequentialTest.add_round`). Says
nothing of slices: whoever decides may let a clearly worse slice block a swap, which makes swaps only rarer, but may not turn
it into a fine_tune, which needs a process of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from slm_ray.types import Action, Interval, Rounds, SequentialPoint, SequentialResult
from slm_ray.verdict.non_inferiority import ONE_SIDED

METHOD = "confidence sequence"
_READINGS = ("all", "reached", "answered")  # of failed calls, as `decide` has them
_HAIR = 1e-9
_STEP = 0.0025  # between the means that the confidence sequence tries
_POINTS = 199  # of the path, besides the last
_LARGEST_LOG = 700.0  # e to this is still a float
_PACE_FROM = 1.5  # what a capital of 1 has become before it is said to have a pace

# Bet sizes are fractions of the most that a bet could stake without ruin. Nobody knows beforehand which is best, so that
# the starting capital is spread over several: most on the one that is best were both models equal (the true difference is
# delta away from the hypothesis), some on those for three and nine times that distance, on two bold ones that find a large
# difference within a dozen rows, and on one that shrinks as rows come in, so that any difference is found in the end.
_DISTANCES = (1.0, 3.0, 9.0)
_BOLD = (0.5, 0.95)
WEIGHTS = np.array([0.6, 0.1, 0.1, 0.06, 0.06, 0.08])
_MOST = 0.95
_LEAST_TARGET = 0.005
_SHRINK = 2 * math.log(1 / ONE_SIDED)

_Values = NDArray[np.float64]
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow:
    """One row that both models were asked: SLM minus LLM by metric, None where a metric is undefined.

    A failed call counts as wrong in `differences`. `reached`: no call failed in transport; `answered`: both gave a text.
    """

    group: str | None
    differences: Mapping[str, float | None]
    reached: bool
    answered: bool


def paired_row(
    llm: Mapping[str, float | None], slm: Mapping[str, float | None], metrics: Iterable[str], *, group: str | None,
    reached: bool, answered: bool,
) -> PairedRow:  # fmt: skip
    """The row of two answers with these scores; a metric that either has not is undefined."""
    differences = {
        name: None if (a := llm.get(name)) is None or (b := slm.get(name)) is None else b - a for name in metrics
    }
    return PairedRow(group=group, differences=differences, reached=reached, answered=answered)


def rounds_of(groups: Sequence[Sequence[_Row]], rounds: Rounds) -> list[Sequence[Sequence[_Row]]]:
    """The groups by the rounds that they were asked in, one that is not whole left out; each is one where there are none."""
    sizes = (size for size, times in rounds for _ in range(times)) if rounds else itertools.repeat(1)
    found: list[Sequence[Sequence[_Row]]] = []
    at = 0
    for size in sizes:
        if at + size > len(groups):
            break
        found.append(groups[at : at + size])
        at += size
    return found


def bet_fractions(spread: _Values, share: _Values, groups: _Values, delta: float) -> _Values:
    """The bets on the next group, as fractions in (0, 1) of the most that may be staked; one more axis than `spread`.

    `spread` is the mean square of group totals so far and `share` the mean size, both as parts of the largest group, and
    `groups` how many there were: past data only. A target of t is best served, where a share `spread` of outcomes is
    +1 or -1 and the rest 0, by the root of t(1 - c²) = c·spread (Kelly 1956, to first order in t).
    """
    spread, groups = spread[..., None], groups[..., None]
    target = np.array(_DISTANCES) * max(delta, _LEAST_TARGET) * share[..., None]
    aimed = (np.sqrt(spread**2 + 4 * target**2) - spread) / (2 * target)
    shrinking = np.sqrt(_SHRINK / (spread * (groups + 1) * np.log(groups + 2)))
    bold = np.broadcast_to(np.array(_BOLD), (*spread.shape[:-1], len(_BOLD)))
    bets: _Values = np.concatenate((aimed, bold, shrinking), axis=-1)
    return bets.clip(max=_MOST)


class _Past:
    """What the bets of each reading of each metric may know: the groups before the next one.

    One made-up group of each moment starts it, so that the first bets are careful.
    """

    def __init__(self, parts: int, largest: int) -> None:
        self.largest = largest
        self.groups, self.squares, self.rows, self.totals = np.zeros((4, parts))

    def fractions(self, delta: float) -> _Values:
        """A row of bets for each part."""
        spread = (1.0 + self.squares) / (2.0 + self.groups)
        share = (1.0 + self.rows / self.largest) / (1.0 + self.groups)
        return bet_fractions(spread, share, self.groups, delta)

    def add(self, totals: _Values, counts: _Values) -> None:
        self.groups += counts > 0
        self.squares += (totals / self.largest) ** 2
        self.rows += counts
        self.totals += totals


class Capital:
    """The capitals of bets, each against one mean on one side (1: against "this mean or less"; -1: "or more").

    A bet depends on the mean only by the most that it may stake: capital against "m or less" falls as m grows.
    """

    def __init__(self, means: _Values, sides: _Values, largest: int) -> None:
        self.means, self.sides, self.largest = means, sides, largest
        self.logs = np.tile(np.log(WEIGHTS), (len(means), 1))
        self.now = np.zeros(len(means))
        self.peak = np.zeros(len(means))

    def settle(self, totals: _Values, counts: _Values, fractions: _Values) -> None:
        """Settle one bet of each: `totals` and `counts` of the group, by capital or for all."""
        toward = self.sides * self.means
        stakes = (self.sides * totals - counts * toward) / (self.largest * (1 + toward))
        self.logs += np.log1p(stakes[:, None] * fractions)

    def look(self) -> None:
        """What the capitals are now, and whether they have never been as high."""
        top = self.logs.max(axis=1)
        self.now = top + np.log(np.exp(self.logs - top[:, None]).sum(axis=1))
        np.maximum(self.peak, self.now, out=self.peak)

    def keep(self, first: int, last: int) -> None:
        """Forget all but the means from `first` to before `last`."""
        window = slice(first, last)
        self.means, self.sides, self.logs = self.means[window], self.sides[window], self.logs[window]
        self.now, self.peak = self.now[window], self.peak[window]


class _Bound:
    """One side of the confidence sequence: the means from the far end on that were rejected at some time.

    The bound is the last of them (were the true mean at or before it, the first mean tried from the true one on would
    have been rejected, which is one event of probability `level`), moved on by as much as the last two prove: log capital
    is convex in the mean, so that the line through them lies below it. `_side * mean` grows along the means tried.
    """

    def __init__(self, side: int, delta: float, level: float, largest: int) -> None:
        steps = np.arange(1, round(2 / _STEP)) * _STEP - 1
        means = np.union1d(steps[np.abs(steps + delta) > _HAIR], [-delta])[::side]
        self.capital = Capital(means, np.full(len(means), float(side)), largest)
        self._side, self._needed, self._far = side, -math.log(level), -1.0

    @property
    def value(self) -> float:
        return self._side * self._far

    def look(self, other: float) -> None:
        """`other` is the bound of the other side: means beyond it are not tried any more."""
        capital = self.capital
        capital.look()
        open_ = capital.peak < self._needed
        rejected = int(open_.argmax()) if open_.any() else len(open_)
        along = self._side * capital.means
        if rejected >= 2:
            before, last = capital.peak[rejected - 2], capital.peak[rejected - 1]
            step = along[rejected - 1] - along[rejected - 2]
            proven = along[rejected - 1] + (last - self._needed) * step / max(before - last, _HAIR)
            limit = along[rejected] if rejected < len(along) else 1.0
            self._far = max(self._far, float(min(proven, limit)))
        beyond = int(np.searchsorted(along, self._side * other, side="right")) + 1
        capital.keep(max(rejected - 2, 0), max(beyond, rejected + 1))


class SequentialTest:
    """The rule at work: groups go in, in asking order, and once a decision is there it stays.

    A swap needs the primary metric and every guardrail, each over all rows, over those that both models were reached on
    and over those that both answered, to have passed 1/`level` at some time: an intersection-union test, in which no part
    needs a correction. A fine_tune needs the primary metric's mirror, over all rows and over those reached. One bet per
    group, on the sum of its differences as a part of `largest_group` (the most rows a group may ever have), so that what
    is estimated stays the mean over rows; undefined differences bet nothing. Cost of `add`: some tenths of a millisecond.
    """

    def __init__(
        self, *, primary: str, delta: float, level: float, guardrails: Sequence[str] = (), largest_group: int = 1
    ) -> None:
        if not 0 <= delta < 1 or not 0 < level < 1 or largest_group < 1:
            raise ValueError(
                "the sequential rule needs delta in [0, 1), level in (0, 1) and largest_group >= 1, not"
                f" {delta!r}, {level!r} and {largest_group!r}"
            )
        self._delta, self._level, self._largest = delta, level, largest_group
        self._rows = self._groups = 0
        self._seen: set[str] = set()
        self._action: Action | None = None
        self._decided_at: int | None = None
        self._path: list[SequentialPoint] = []
        self._every = 1
        names = tuple(dict.fromkeys((primary, *guardrails)))
        self._parts = [(name, reading) for name in names for reading in _READINGS]  # the primary metric's come first
        self._past = _Past(len(self._parts), largest_group)
        # Against "not within delta" for every part, then the mirror for the primary metric over all rows and those reached.
        self._of = np.array([*range(len(self._parts)), 0, 1])
        sides = np.array([1.0] * len(self._parts) + [-1.0, -1.0])
        self._capital = Capital(np.full(len(sides), -delta), sides, largest_group)
        self._lower, self._upper = (_Bound(side, delta, level, largest_group) for side in (1, -1))

    def add(self, rows: Sequence[PairedRow]) -> None:
        """Look at the rows of one group, in a plain random order: a round of one."""
        self.add_round([rows])

    def add_round(self, groups: Sequence[Sequence[PairedRow]]) -> None:
        """Bet on each group of a round, by what was known before the round, and look at its end.

        The groups may come of different parts of the task, one of each, as long as the parts are the same in every round
        and of equal weight: a bet of fraction f on a part whose mean stake is m makes the capital grow by 1 + f·m on
        average, independent bets multiply, and the product over the parts is at most exp(f·Σm) ≤ 1 where the mean over all
        of them is within the hypothesis. Between the groups of a round that does not hold, so that nobody looks there.

        ValueError for rows of several groups as one, a group seen before, more rows than `largest_group`, or a difference
        outside [-1, 1]; nothing has changed then.
        """
        values = [[_differences(rows, name, reading) for name, reading in self._parts] for rows in groups]
        self._check(groups)
        fractions = self._past.fractions(self._delta)
        bounds, defined = (self._lower, self._upper), False
        for found in values:
            totals, counts = np.array([(math.fsum(one), len(one)) for one in found]).T
            self._capital.settle(totals[self._of], counts[self._of], fractions[self._of])
            if counts[0]:
                defined = True
                for bound in bounds:
                    bound.capital.settle(totals[0], counts[0], fractions[0])
            self._past.add(totals, counts)
        self._capital.look()
        if defined:
            self._lower.look(self._upper.value)
            self._upper.look(self._lower.value)
        self._rows += sum(map(len, groups))
        self._groups += len(groups)
        if self._action is None:
            self._decide()
        if self._groups % self._every == 0 and self._past.rows[0]:
            self._path.append(self._point())
            if len(self._path) > _POINTS:
                self._path, self._every = self._path[1::2], self._every * 2

    @property
    def action(self) -> Action | None:
        """ "swap" or "fine_tune" once decided."""
        return self._action

    @property
    def result(self) -> SequentialResult:
        """All that was seen so far; without any defined difference the interval is 0 within [-1, 1]."""
        now, capital = self._point(), self._capital.now
        path = self._path if not self._past.rows[0] or self._path[-1:] == [now] else [*self._path, now]
        return SequentialResult(
            level=self._level,
            rows=self._rows,
            groups=self._groups,
            action=self._action,
            decided_at=self._decided_at,
            interval=Interval(estimate=now.estimate, lower=now.lower, upper=now.upper, method=METHOD),
            e_not_worse=math.exp(min(capital[0], _LARGEST_LOG)),
            e_worse=math.exp(min(capital[-2], _LARGEST_LOG)),
            path=tuple(path),
        )

    def _check(self, groups: Sequence[Sequence[PairedRow]]) -> None:
        seen: set[str] = set()
        for rows in groups:
            names = {row.group for row in rows}
            if not rows or len(names) > 1 or (len(rows) > 1 and None in names):
                raise ValueError(f"rows of one group at a time, not {len(rows)} rows of {sorted(map(str, names))}")
            if len(rows) > self._largest:
                raise ValueError(
                    f"group {rows[0].group!r} has {len(rows)} rows, more than largest_group={self._largest}, which bounds the"
                    " bets"
                )
            if (group := rows[0].group) is not None:
                if group in self._seen or group in seen:
                    raise ValueError(f"group {group!r} was bet on before: its rows belong together")
                seen.add(group)
        self._seen |= seen

    def _decide(self) -> None:
        passed = self._capital.peak >= -math.log(self._level)
        if passed[: len(self._parts)].all():
            self._action = "swap"
        elif passed[len(self._parts) :].all():
            self._action = "fine_tune"
        if self._action:
            self._decided_at = self._rows

    def _point(self) -> SequentialPoint:
        estimate = float(self._past.totals[0] / self._past.rows[0]) if self._past.rows[0] else 0.0
        lower, upper = self._lower.value, self._upper.value
        if lower > upper:  # one of them is wrong then; a picture still wants the lower one below
            lower = upper = (lower + upper) / 2
        return SequentialPoint(rows=self._rows, groups=self._groups, estimate=estimate, lower=lower, upper=upper)


def rows_at_this_pace(seen: SequentialResult) -> int | None:
    """About the row at which it will be decided, should the larger capital go on growing by as much a row; a guess.

    None once it is decided, where neither capital has grown enough to have a pace, and where one has grown enough to decide:
    what is waited for then is a guardrail or a reading of failed calls, whose pace is another.
    """
    grown = max(seen.e_not_worse, seen.e_worse)
    if seen.action is not None or not _PACE_FROM <= grown < 1 / seen.level:
        return None
    return math.ceil(seen.rows * math.log(seen.level) / -math.log(grown))


def _differences(rows: Sequence[PairedRow], name: str, reading: str) -> list[float]:
    kept = [row for row in rows if reading == "all" or (row.reached if reading == "reached" else row.answered)]
    values = [value for row in kept if (value := row.differences.get(name)) is not None]
    for value in values:
        if not abs(value) <= 1 + _HAIR:
            raise ValueError(f"a difference of {name} is a number in [-1, 1], not {value!r}")
    return [min(max(value, -1.0), 1.0) for value in values]
