"""Where a model goes wrong: the largest groups of wrong rows, and the rows that show a kind of error best.

Takes scored rows and their tags, and scores nothing again. Same rows, same answer, whatever their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm_ray.scoring.scorer import mean
from slm_ray.scoring.strip import NOTES
from slm_ray.types import RowScore

NO_ISSUE = "other"

Tags = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """The `n` wrong rows with one issue and one value of a tag, the most typical ones by id."""

    issue: str
    tag: str
    value: str
    n: int
    typical: tuple[str, ...]


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
