"""The order in which rows are asked under the sequential rule: drawn from a seed before the first call, and kept.

Groups are drawn as a whole, each by a hash of the seed and its name, so that the order depends on nothing else: not on the
order of the file, on the machine or on the number of rows that are asked in the end. Rows that are added later come behind
all earlier ones, drawn among themselves. `order.json` in the run directory holds what the order follows from; a command
that would ask these rows in another order is refused, since whoever may draw again draws until it suits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.errors import ConfigError
from slm_ray.reports.encoding import decode, encode
from slm_ray.storage import read_json, write_json
from slm_ray.types import Example

ORDER = "order.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOrder:
    """What an order follows from: its seed and the files (digests), in their order.

    `largest_group` is the most rows of one group in the first file: what the sequential rule sizes its bets by, and so
    fixed before the first call.
    """

    seed: int
    files: tuple[str, ...]
    largest_group: int


def drawn(rows: Iterable[Example], seed: int) -> list[Example]:
    """The rows in the order that `seed` draws, groups together, rows of a group as they stand."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault(_unit(row), []).append(row)
    units = sorted(groups, key=lambda unit: hashlib.sha256(json.dumps([seed, *unit]).encode()).digest())
    return [row for unit in units for row in groups[unit]]


def whole_groups(rows: Sequence[Example], limit: int | None) -> list[Example]:
    """The first rows, at most `limit`, without the group that the limit would cut; the first group always."""
    if limit is None or limit >= len(rows):
        return list(rows)
    while limit < len(rows) and limit > 0 and _unit(rows[limit]) == _unit(rows[limit - 1]):
        limit -= 1
    if limit == 0:
        limit = sum(_unit(row) == _unit(rows[0]) for row in rows)
    return list(rows[:limit])


def largest_group(rows: Iterable[Example]) -> int:
    """The most rows that one group has; 1 where there are no groups."""
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        sizes[_unit(row)] = sizes.get(_unit(row), 0) + 1
    return max(sizes.values(), default=1)


def keep_order(run_dir: Path, order: AskingOrder) -> None:
    """Write the order down before the first call; ConfigError where the run directory holds another one.

    Files may be added behind those that are there; a run on fewer of them changes nothing.
    """
    path = run_dir / ORDER
    if not path.is_file():
        write_json(path, encode(order))
        return
    kept = decode(read_json(path), AskingOrder, where=str(path), fix="evaluate into another run_dir")
    shared = min(len(kept.files), len(order.files))
    if kept.seed != order.seed:
        differs = f"drawn from seed {kept.seed}, and generation.seed is {order.seed} now"
    elif kept.files[:shared] != order.files[:shared]:
        differs = "drawn for other rows than examples and extend name now"
    else:
        if len(order.files) > len(kept.files):
            write_json(path, encode(order))
        return
    raise ConfigError(
        f"{path}: the order of the rows was {differs}; an order is drawn once, before the first call: put it back as it was,"
        " or choose another run_dir"
    )


def _unit(row: Example) -> tuple[str, str]:
    return ("row", row.id) if row.group is None else ("group", row.group)
