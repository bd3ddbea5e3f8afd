"""How far two sides' answers are apart: their log-probabilities at positions where both have read the same tokens.

Means over all positions and over each row alone: a fault in one row of eight would be lost in the mean over all. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORST_ROW = 2.0  # times the tolerance of all rows: what a single row's own mean may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One position of an answer: the token that stands there, and log-probabilities by token id, the highest first."""

    token: int
    top: tuple[tuple[int, float], ...]


Positions = tuple[Position, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two sides are apart, in nats; `same_tokens` is the share of positions where both prefer the same token.

    `rows` are the means of the single rows, in order: a fault in one row of eight is lost in the `mean` over all.
    """

    mean: float
    rows: tuple[float, ...]
    first_mean: float
    first_max: float
    same_tokens: float
    positions: int

    @property
    def worst(self) -> float:
        """The mean of the row that is furthest apart."""
        return max(self.rows, default=0.0)

    def exceeds(self, tolerance: float) -> bool:
        """Whether rounding does not explain it: over all rows, or in one of them."""
        return self.mean > tolerance or self.worst > WORST_ROW * tolerance

    def far_rows(self, tolerance: float) -> list[int]:
        """The rows that are too far apart by themselves; all where only their mean is."""
        return [row for row, mean in enumerate(self.rows) if mean > WORST_ROW * tolerance] or list(
            range(len(self.rows))
        )

    def __str__(self) -> str:
        far = f", {self.worst:.2f} in row {self.rows.index(self.worst) + 1} of the {len(self.rows)} compared"
        return f"{self.mean:.2f} nats per token" + far * (self.worst > WORST_ROW * self.mean)


def distance(one: Sequence[Positions], other: Sequence[Positions]) -> Distance:
    """Mean difference of the listed log-probabilities, up to the first token in which the answers differ.

    After that token they are different texts. A token that one side does not list is taken to be its lowest listed one
    there at most, so that the distance is never overstated.
    """
    gaps: list[float] = []
    firsts: list[float] = []
    rows: list[float] = []
    same = 0
    for ours, theirs in zip(one, other, strict=True):
        before = len(gaps)
        for place, (here, there) in enumerate(zip(ours, theirs, strict=False)):
            gap = _gap(here, there)
            gaps.append(gap)
            same += _preferred(here) == _preferred(there)
            if place == 0:
                firsts.append(gap)
            if here.token != there.token:
                break
        rows.append(round(sum(gaps[before:]) / max(1, len(gaps) - before), 4))
    if not gaps:
        return Distance(mean=0.0, rows=tuple(rows), first_mean=0.0, first_max=0.0, same_tokens=1.0, positions=0)
    return Distance(
        mean=round(sum(gaps) / len(gaps), 4), rows=tuple(rows), first_mean=round(sum(firsts) / len(firsts), 4),
        first_max=round(max(firsts), 4), same_tokens=round(same / len(gaps), 4), positions=len(gaps),
    )  # fmt: skip


def _gap(one: Position, other: Position) -> float:
    ours, theirs = dict(one.top), dict(other.top)
    lowest_ours, lowest_theirs = min(ours.values()), min(theirs.values())
    gaps = [
        abs(ours[token] - theirs[token])
        if token in ours and token in theirs
        # The side that does not list a token has it at its lowest listed one at most.
        else max(0.0, ours[token] - lowest_theirs if token in ours else theirs[token] - lowest_ours)
        for token in ours | theirs
    ]
    return sum(gaps) / len(gaps)


def _preferred(position: Position) -> int:
    return max(position.top, key=lambda entry: entry[1])[0]
