"""The running figures of models that are being asked: sums that grow by one answer at a time, never a pass over all rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scipy import stats

from slm_ray.types import Completion
from slm_ray.verdict.binary import ONE_SIDED, bounds

_Z = float(stats.norm.ppf(1 - ONE_SIDED))


@dataclass(slots=True, kw_only=True, eq=False)
class Standing:
    """One model: questions done of `total`, and the deciding score of each row that has one."""

    total: int
    done: int = 0
    failed: int = 0
    retried: int = 0
    fresh: int = 0
    in_flight: int = 0
    usd: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    _sum: float = 0.0

    @property
    def mean(self) -> float | None:
        """The deciding metric so far; None before the first row that has one."""
        return self._sum / len(self.values) if self.values else None

    def count(self, completion: Completion, *, fresh: bool) -> None:
        """One more question is answered."""
        self.done += 1
        self.failed += completion.failure is not None
        self.retried += completion.attempts - 1
        self.fresh += fresh

    def note(self, example_id: str, value: float | None) -> bool:
        """Keep a row's deciding score; False when it has none."""
        if value is None:
            return False
        self.values[example_id] = value
        self._sum += value
        return True


class Gap:
    """One model's score minus another's, over the rows that both have: the mean with its two one-sided 95 % bounds.

    Score bounds where all rows are right or wrong, as in the verdict; normal ones of the padded sample elsewhere, which
    are near those of the verdict's bootstrap.
    """

    def __init__(self, ours: Standing, theirs: Standing) -> None:
        self._ours = ours
        self._theirs = theirs
        self._n = self._gained = self._lost = 0
        self._sum = self._squares = 0.0
        self._binary = True

    def note(self, changed: Standing, example_id: str) -> None:
        """`changed` has a new score for this row; counts once the other has one too."""
        if changed is not self._ours and changed is not self._theirs:
            return
        ours, theirs = self._ours.values.get(example_id), self._theirs.values.get(example_id)
        if ours is None or theirs is None:
            return
        difference = ours - theirs
        self._n += 1
        self._sum += difference
        self._squares += difference * difference
        self._gained += difference == 1
        self._lost += difference == -1
        self._binary = self._binary and difference in (-1, 0, 1)

    def interval(self) -> tuple[float, float, float] | None:
        """(mean, lower, upper); None before the first pair."""
        if not self._n:
            return None
        if self._binary:
            return (self._sum / self._n, *bounds(self._gained, self._lost, self._n))
        n = self._n + 2  # one pair at +1 and one at -1 added
        middle = self._sum / n
        half = _Z * math.sqrt(max((self._squares + 2) / n - middle**2, 0.0) / n)
        return self._sum / self._n, max(-1.0, middle - half), min(1.0, middle + half)

    def text(self) -> str:
        """The interval as the board shows it."""
        found = self.interval()
        return "-" if found is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found)
