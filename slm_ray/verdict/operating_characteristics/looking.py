"""How a verdict is really used, simulated under both rules: watched, extended, repeated for many candidates, on groups.

Every error here is counted where it is hardest to avoid, at a true difference of exactly -delta, where a swap and a
fine_tune are both false. `paired` is judged by the bounds of a real comparison and `sequential` by the bets of the real
test. Rows are right or wrong, and candidates are independent of each other, which is about the worst case for a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.verdict.candidates import level_of
from slm_ray.verdict.decide import clearly_worse, not_worse
from slm_ray.verdict.non_inferiority import ONE_SIDED, rows_for_power, shows
from slm_ray.verdict.sequential_runs import Runs, played
from slm_ray.verdict.stats import paired_interval

_Signs = NDArray[np.int8]
_ADVISED_LOOKS = 3
_RESAMPLES = 199  # which right-or-wrong rows do not need


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """Shares of runs that ended in a swap and in a fine_tune, both false, when `rule` was used as `how` says."""

    how: str
    rule: str
    false_swap: float
    false_fine_tune: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The share of families of `candidates` in which at least one was swapped in falsely, by how the error is shared; and,
    under the shared error, in which at least one was fine-tuned falsely."""

    candidates: int
    unshared: float
    paired: float
    sequential: float
    paired_fine_tune: float
    sequential_fine_tune: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of runs whose confidence sequence held the true difference at every row: each bound at 5 %, and the
    two-sided 95 % sequence, whose bounds stand at 2.5 % each."""

    difference: float
    lower: float
    upper: float
    both: float


def draws(runs: int, rows: int, discordance: float, difference: float, seed: int) -> _Signs:
    """runs x rows of 1 (the SLM alone is right), -1 (the LLM alone) and 0."""
    chance = np.random.default_rng((seed, rows, round(1e6 * discordance), round(1e6 * (1 + difference))))
    uniform = chance.random((runs, rows), dtype=np.float32)
    gain, loss = (discordance + difference) / 2, (discordance - difference) / 2
    return (uniform < gain).astype(np.int8) - (uniform > 1 - loss).astype(np.int8)


def looks(signs: _Signs, runs: Runs, discordance: float, delta: float) -> list[Wrong]:
    """`runs` are `signs` played. Both rules on the same rows: one look, watched, following the advice, extended while it is not decided."""
    rows = signs.shape[1]
    gained, lost = (np.cumsum(signs == sign, axis=1, dtype=np.int32) for sign in (1, -1))
    every = {step: tuple(range(step, rows + 1, step)) for step in (10, 50)}
    first, extended = rows // 4, [rows // 4]
    while extended[-1] * 3 // 2 <= rows:
        extended.append(extended[-1] * 3 // 2)
    advised = rows_for_power(discordance, delta) or rows
    advice = [first + advised * again for again in range(_ADVISED_LOOKS) if first + advised * again <= rows]
    ways = {
        f"one look at {rows} rows": (rows,),
        **{f"a look every {step} rows, stop when it is clear": times for step, times in every.items()},
        f"{first} rows, then {advised} more, as advised, {len(advice)} looks": advice,
        f"{first} rows, then half as many again, {len(extended)} looks": extended,
    }
    found = [_wrong(how, _decided(gained, lost, times, delta)) for how, times in ways.items()]
    return [
        *found,
        _sequential(f"a look after every row, up to {first} rows", runs, first),
        _sequential(f"extended row by row up to {rows}, looking at each", runs, rows),
    ]


def families(signs: _Signs, runs: Runs, delta: float, sizes: Sequence[int]) -> list[Family]:
    """`runs` are `signs` played. Candidates 1 to k, each worse by exactly `delta`, each tested at its own level, and all at 0.05."""
    rows = signs.shape[1]
    gained, lost = (signs == 1).sum(axis=1), (signs == -1).sum(axis=1)
    levels = [level_of(number) for number in range(1, max(sizes) + 1)]
    once = float(np.mean(shows(gained, lost, rows, delta)))
    paired = [float(np.mean(shows(gained, lost, rows, delta, one_sided=level))) for level in levels]
    trailing = [float(np.mean(shows(lost, gained, rows, -delta, one_sided=level))) for level in levels]
    sequential, behind = (
        [float(np.mean(peaks >= -np.log(level))) for level in levels]
        for peaks in (runs.peak_not_worse, runs.peak_worse)
    )

    def any_of(shares: Sequence[float]) -> float:
        return float(1 - np.prod([1 - share for share in shares]))

    return [
        Family(
            candidates=size,
            unshared=1 - (1 - once) ** size,
            paired=any_of(paired[:size]),
            sequential=any_of(sequential[:size]),
            paired_fine_tune=any_of(trailing[:size]),
            sequential_fine_tune=any_of(behind[:size]),
        )
        for size in sizes
    ]


def grouped(runs: int, groups: int, size: int, alike: float, discordance: float, delta: float, seed: int) -> _Signs:
    """runs x groups x `size`: a share `alike` of the groups holds one row `size` times, the others independent rows."""
    rows = draws(runs, groups * size, discordance, -delta, seed).reshape(runs, groups, size)
    same = np.random.default_rng((seed, size)).random((runs, groups)) < alike
    return np.where(same[:, :, None], rows[:, :, :1], rows)


def grouped_looks(signs: _Signs, delta: float, how: str) -> list[Wrong]:
    """Rows in groups: one look at the rows as if they were independent, one at the groups, and a bet on each group."""
    _, groups, size = signs.shape
    gained, lost = ((signs == sign).sum(axis=(1, 2))[:, None] for sign in (1, -1))
    how = f"{groups} groups of {size}, {how}"
    row_wise = _decided(gained, lost, (groups * size,), delta)
    over_groups = row_wise.copy()
    names = [str(at // size) for at in range(groups * size)]
    for run in np.flatnonzero(row_wise):  # bounds over groups are wider, so that the other runs are not decided either
        found = paired_interval(signs[run].ravel().tolist(), resamples=_RESAMPLES, seed=0, groups=names)
        over_groups[run] = int(not_worse(found, delta)) - int(clearly_worse(found, delta))
    return [
        _wrong(f"{how}: rows as if independent, one look", row_wise),
        _wrong(f"{how}: bounds over groups, one look", over_groups),
        _sequential(f"{how}: a look after every group", played(signs.sum(axis=2), delta=delta, size=size), groups),
    ]


def coverage(signs: _Signs, difference: float, delta: float) -> Coverage:
    """The bets against the true mean itself: a bound is wrong at some row just when one of them has ever passed 1/level.

    The bounds of the real test lie between the means that it tries, on the safe side of this.
    """
    runs = played(signs, delta=delta, against=difference)
    low, high = runs.peak_not_worse, runs.peak_worse
    return Coverage(
        difference=difference,
        lower=float((low < -np.log(ONE_SIDED)).mean()),
        upper=float((high < -np.log(ONE_SIDED)).mean()),
        both=float((np.maximum(low, high) < -np.log(ONE_SIDED / 2)).mean()),
    )


def _decided(
    gained: NDArray[np.integer], lost: NDArray[np.integer], times: Sequence[int], delta: float
) -> NDArray[np.int8]:
    """By run: 1 swap, -1 fine_tune, 0 neither, at the first of the looks after `times` rows that decides.

    Counts are runs x rows, or runs x 1 where there is one look only.
    """
    decided = np.zeros(len(gained), dtype=np.int8)
    for rows in times:
        right, wrong = (counts[:, min(rows, counts.shape[1]) - 1] for counts in (gained, lost))
        for sign, one, other, margin in ((1, right, wrong, delta), (-1, wrong, right, -delta)):
            open_ = decided == 0
            decided[open_] = np.where(shows(one[open_], other[open_], rows, margin), sign, 0)
    return decided


def _wrong(how: str, decided: NDArray[np.int8], rule: str = "paired") -> Wrong:
    swap, fine_tune = (float((decided == sign).mean()) for sign in (1, -1))
    return Wrong(how=how, rule=rule, false_swap=swap, false_fine_tune=fine_tune)


def _sequential(how: str, runs: Runs, most: int) -> Wrong:
    """First decisions: a run that shows both in turn ends with the first."""
    swap, fine_tune = (np.where(at == 0, most + 1, at) for at in (runs.swap, runs.fine_tune))
    decided = np.where(np.minimum(swap, fine_tune) > most, 0, np.where(swap < fine_tune, 1, -1)).astype(np.int8)
    return _wrong(how, decided, "sequential")
