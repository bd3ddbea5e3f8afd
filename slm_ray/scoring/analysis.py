"""Where a model goes wrong: its issues counted, its metrics by tag, and the rows that show a kind of error best.

Takes scored rows and their tags, and scores nothing again. Same rows, same answer, whatever their order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm_ray.corpus.tracks import Track
from slm_ray.scoring.run import summarise
from slm_ray.scoring.scorer import Metrics, mean
from slm_ray.scoring.strip import NOTES
from slm_ray.types import RowScore

NO_ISSUE = "other"

Tags = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMetrics:
    """The run metrics of the `n` rows that have one value of one tag."""

    tag: str
    value: str
    n: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """The `n` wrong rows with one issue and one value of a tag, the most typical ones by id."""

    issue: str
    tag: str
    value: str
    n: int
    typical: tuple[str, ...]


def issue_counts(rows: Sequence[RowScore]) -> dict[str, int]:
    """How many rows have each issue, the most frequent first, ties by name."""
    counts = Counter(issue for row in rows for issue in row.issues)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def by_tag(track: Track, rows: Sequence[RowScore], tags: Tags, *, fewest: int = 1) -> tuple[TagMetrics, ...]:
    """Run metrics per tag and value with at least `fewest` rows, sorted; `tags` are by example id."""
    found: dict[tuple[str, str], list[RowScore]] = {}
    for row in rows:
        for place in tags.get(row.example_id, {}).items():
            found.setdefault(place, []).append(row)
    return tuple(
        TagMetrics(tag=tag, value=value, n=len(group), metrics=summarise(track, group))
        for (tag, value), group in sorted(found.items())
        if len(group) >= fewest
    )


def typical_errors(
    rows: Sequence[RowScore], tags: Tags, *, primary: str, tag: str = "", groups: int = 10, per_group: int = 3
) -> tuple[ErrorGroup, ...]:
    """The largest groups of wrong rows by (issue, value of `tag`), and the rows nearest to each group's mean scores.

    Wrong means a primary score below 1. A row is in the group of each of its issues, in that of "other" when it has
    none; that stripping was needed is no error. Rows without the tag, and all rows when no tag is named, have the
    value "". Distance is the mean absolute difference over the metrics that are defined; ties go by id.
    """
    found: dict[tuple[str, str], list[RowScore]] = {}
    for row in rows:
        right = row.value(primary)
        if right is None or right >= 1:
            continue
        value = tags.get(row.example_id, {}).get(tag, "")
        for issue in [issue for issue in row.issues if issue not in NOTES] or [NO_ISSUE]:
            found.setdefault((issue, value), []).append(row)
    largest = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:groups]
    return tuple(
        ErrorGroup(issue=issue, tag=tag, value=value, n=len(group), typical=_typical(group, per_group))
        for (issue, value), group in largest
    )


def _typical(group: Sequence[RowScore], count: int) -> tuple[str, ...]:
    names = [score.name for score in group[0].scores]
    centre = {name: mean([row.value(name) for row in group]) for name in names}

    def distance(row: RowScore) -> float:
        apart = [abs(a - b) for name in names if (a := row.value(name)) is not None and (b := centre[name]) is not None]
        return math.fsum(apart) / len(apart) if apart else 0.0

    return tuple(row.example_id for row in sorted(group, key=lambda row: (distance(row), row.example_id))[:count])
