"""The order in which rows are asked under the sequential rule: drawn from a seed before the first call, and kept.

Groups are drawn as a whole, each by a hash of the seed and its name, so that the order depends on nothing else: not on the
order of the file, on the machine or on the number of rows that are asked in the end. Rows that are added later come behind
all earlier ones, drawn among themselves. `order.json` in the run directory holds what the order follows from; a command
that would ask these rows in another order is refused, since whoever may draw again draws until it suits.

An order is made of rounds, after each of which the rule looks. A plain one has a round for every group. A stratified one
lays the groups out by the values of a tag, cuts them into `ROUND` equal parts and draws one group of each part for every
round. So each round has each value's share to within two groups: the parts that are all of one value give theirs exactly,
and which value comes out of a part that holds several is left to chance, which a whole file of rounds evens out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.corpus.balance import tag_error
from slm_ray.errors import ConfigError
from slm_ray.reports.encoding import decode, encode
from slm_ray.storage import read_json, write_json
from slm_ray.types import Example, Rounds

ORDER = "order.json"
ROUND = 10  # groups of a stratified round: how fine its shares are, and how long the rule waits for its next look

Round = tuple[tuple[Example, ...], ...]  # its groups


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOrder:
    """What an order follows from: its seed, the tag that it is stratified by, and the files (digests), in their order.

    `largest_group` is the most rows of one group in the first file: what the sequential rule sizes its bets by, and so
    fixed before the first call.
    """

    seed: int
    files: tuple[str, ...]
    largest_group: int
    stratify: str | None = None


def drawn(rows: Iterable[Example], seed: int, stratify: str | None = None) -> list[Round]:
    """The rounds in the order that `seed` draws, groups together, rows of a group as they stand.

    With `stratify` a group is of the value that its first row has of this tag; the few groups that fill no round come last,
    each a round of its own. DataError when no row has the tag.
    """
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault(_unit(row), []).append(row)
    units = sorted(groups, key=lambda unit: _draw(seed, *unit))
    if stratify is None:
        return [(tuple(groups[unit]),) for unit in units]
    if not any(stratify in row.tags for group in groups.values() for row in group):
        raise tag_error(stratify, Counter(name for group in groups.values() for row in group for name in row.tags))
    many = len(units) // ROUND
    full, rest = units[: many * ROUND], units[many * ROUND :]
    full.sort(key=lambda unit: groups[unit][0].tags.get(stratify, ""))
    # Drawn once more: within a part that holds two values, those of the first one would all come first.
    parts = [
        sorted(full[at * many : (at + 1) * many], key=lambda unit: _draw(seed, "part", *unit)) for at in range(ROUND)
    ]
    rounds = [sorted(units, key=lambda unit: _draw(seed, *unit)) for units in zip(*parts, strict=True)]
    return [tuple(tuple(groups[unit]) for unit in units) for units in (*rounds, *([unit] for unit in rest))]


def whole_rounds(rounds: Sequence[Round], limit: int | None) -> list[Round]:
    """The first rounds that have at most `limit` rows together; the first one always."""
    found: list[Round] = []
    rows = 0
    for one in rounds:
        rows += sum(map(len, one))
        if found and limit is not None and rows > limit:
            break
        found.append(one)
    return found


def run_lengths(rounds: Iterable[Round]) -> Rounds:
    """How many groups a round has, and how many such rounds follow each other."""
    return tuple((groups, len(list(same))) for groups, same in itertools.groupby(map(len, rounds)))


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
    elif kept.stratify != order.stratify:
        differs = f"{_by(kept.stratify)}, and declare.stratify makes it {_by(order.stratify)} now"
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


def _by(tag: str | None) -> str:
    return "drawn plainly" if tag is None else f"stratified by {tag!r}"


def _draw(seed: int, *name: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, *name]).encode()).digest()


def _unit(row: Example) -> tuple[str, str]:
    return ("row", row.id) if row.group is None else ("group", row.group)
