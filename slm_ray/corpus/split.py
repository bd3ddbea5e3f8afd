"""Rows into train, validation and test, so that no prompt stands in two splits.

The order is a hash of the seed and the row's content: it does not depend on the order of the file, and adding rows
moves few others. Rows that share a prompt or a `group` (xLAM pairs: the query) stay together, so both tracks of one
xLAM source split alike; so do near-duplicates when their groups are given. Rows are drawn alike from every value of a
tag only when asked (`stratify`). Rows that are no fair sample of what is to be measured can be kept for training only.
Whether sets that were not split here share a question is `leakage`'s business.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from slm_ray.corpus.balance import apportion, tag_error
from slm_ray.corpus.duplicates import UnionFind
from slm_ray.corpus.filters import Row, Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.render import normalised
from slm_ray.errors import DataError, choices
from slm_ray.types import Example

_KEY_BYTES = 16
_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def split(
    rows: Sequence[Row], *, validation: int, test: int, train: int | None, seed: int,
    stratify: str | None = None, groups: Sequence[int] | None = None, trains_only: Callable[[Row], bool] | None = None,
) -> dict[str, list[Row]]:  # fmt: skip
    """Draw exactly `test`, then `validation`, then `train` rows (all that are left when None), in hash order.

    `stratify` names a tag: every split gets each of its values in proportion, as far as groups and whole rows allow. Rows
    with the same number in `groups` (as `duplicates.groups` gives them) stay together. A row that `trains_only` is in no
    test or validation split; where one that is tied to it was drawn for them, it is dropped. Raises DataError when there
    are too few rows, or none with the tag.
    """
    _check_tag(rows, stratify)
    asked = {"test": test, "validation": validation, "train": train}
    splits = _draw(_groups(rows, groups), asked, seed, stratify, trains_only)
    only = sum(map(trains_only, rows)) if trains_only is not None else 0
    for name, wanted in asked.items():
        _check(name, len(splits[name]), wanted, len(rows), 0 if name == "train" else only)
    return {name: splits[name] for name in ("train", "validation", "test")}


def counted(
    rows: Sequence[Row], *, validation: int, test: int, train: int | None, seed: int,
    stratify: str | None = None, groups: Sequence[int] | None = None, trains_only: Callable[[Row], bool] | None = None,
) -> tuple[dict[str, list[Row]], Step]:  # fmt: skip
    """`split`, and how many rows it moved: those in another split than if every row had been drawn alone.

    That counts rows that joined others like them and rows that made room. Dropped are the rows that `train` left over
    and the rests of groups too large for a split.
    """
    splits = split(
        rows, validation=validation, test=test, train=train, seed=seed, stratify=stratify, groups=groups,
        trains_only=trains_only,
    )  # fmt: skip
    asked = {"test": test, "validation": validation, "train": train}
    alone = _split_of(_draw([[row] for row in rows], asked, seed, stratify, trains_only))
    together = _split_of(splits)
    moved = sum(alone.get(id(row)) != together.get(id(row)) for row in rows)
    kept = sum(map(len, splits.values()))
    note = f"{moved or 'no'} row{'s' * (moved != 1)} moved to keep equal questions on one side"
    return splits, Step(name="split", kept=kept, dropped=len(rows) - kept, note=note)


def keep(rows: Sequence[ParsedRow], *, name: str) -> dict[str, list[ParsedRow]]:
    """The rows by their own `split` (train, validation or val, test), in file order.

    Raises DataError for a row without one, an empty split, or a prompt that stands in two.
    """
    splits: dict[str, list[ParsedRow]] = {"train": [], "validation": [], "test": []}
    for position, row in enumerate(rows, start=1):
        if row.split not in _NAMES:
            raise DataError(f"{name}: row {position} has the split {row.split!r}; {choices(str(row.split), _NAMES)}")
        splits[_NAMES[row.split]].append(row)
    for split_name, found in splits.items():
        _check(split_name, len(found), None, len(rows))
    for group in _groups(rows):
        named = {_NAMES[str(row.split)] for row in group}
        if len(named) > 1:
            where = " and ".join(sorted(named))
            raise DataError(f"{name}: one prompt is in {where} ({_keys(group[0])[-1][:60]!r}…); keep it in one split")
    return splits


def with_groups(rows: Sequence[ParsedRow], groups: Sequence[int] | None = None) -> list[ParsedRow]:
    """The rows, each with the `group` of all rows that it is tied to, so that whoever measures on them knows of the ties.

    Rows are tied as for a split. A row tied to no other keeps what it has. Others take the first of the groups that they
    name among them, or a name made of their question.
    """
    named: dict[int, str] = {}
    for tied in _groups(rows, groups):
        if len(tied) > 1:
            own = [row.group for row in tied if row.group is not None]
            name = min(own, default="") or _hash(0, tied)[:16]
            named |= {id(row): name for row in tied}
    return [dataclasses.replace(row, group=named.get(id(row), row.group)) for row in rows]


def _draw(
    groups: Iterable[list[Row]], asked: Mapping[str, int | None], seed: int, stratify: str | None,
    trains_only: Callable[[Row], bool] | None,
) -> dict[str, list[Row]]:  # fmt: skip
    left = sorted(groups, key=lambda group: _hash(seed, group))
    every = left if trains_only is not None else None
    if trains_only is not None:
        left = [fair for group in left if (fair := [row for row in group if not trains_only(row)])]
    splits: dict[str, list[Row]] = {}
    for name, wanted in asked.items():
        if name == "train" and every is not None:  # whole groups again, without those that a row was drawn from
            taken = {id(row) for rows in splits.values() for row in rows}
            left = [group for group in every if taken.isdisjoint(map(id, group))]
        if stratify is not None and wanted is not None:
            left = _alike_first(left, wanted, stratify)
        splits[name], left = _take(left, wanted)
    return splits


def _alike_first(groups: list[list[Row]], wanted: int, stratify: str) -> list[list[Row]]:
    """The groups in another order: first those that fill each tag value's part of `wanted`, as far as whole groups do."""
    values = [_commonest([row.tags.get(stratify, "") for row in group]) for group in groups]
    sizes: Counter[str] = Counter()
    for value, group in zip(values, groups, strict=True):
        sizes[value] += len(group)
    room = apportion(min(wanted, sizes.total()), sizes) if sizes else {}
    first: list[list[Row]] = []
    rest: list[list[Row]] = []
    for value, group in zip(values, groups, strict=True):
        fits = len(group) <= room[value]
        room[value] -= len(group) if fits else 0
        (first if fits else rest).append(group)
    return first + rest


def _take(groups: list[list[Row]], wanted: int | None) -> tuple[list[Row], list[list[Row]]]:
    """Whole groups in order until `wanted` rows are full, and the groups left over; a group too large waits.

    When only groups too large are left, the first is cut and the rest of it is dropped: no other split may have it.
    """
    taken: list[Row] = []
    left: list[list[Row]] = []
    for group in groups:
        if wanted is None or len(taken) + len(group) <= wanted:
            taken.extend(group)
        else:
            left.append(group)
    if wanted is not None and len(taken) < wanted and left:
        taken.extend(left.pop(0)[: wanted - len(taken)])
    return taken, left


def _check(name: str, found: int, wanted: int | None, total: int, train_only: int = 0) -> None:
    if found < (1 if wanted is None else wanted):
        asked = f"{wanted} {name} rows" if wanted else f"{name} rows"
        only = f" ({train_only} are for training only)" if train_only else ""
        raise DataError(
            f"asked for {asked}, but only {found} of {total} rows{only} are left for them; "
            "lower `test`, `validation` or `train`, or add rows"
        )


def _split_of(splits: Mapping[str, Sequence[Row]]) -> dict[int, str]:
    return {id(row): name for name, rows in splits.items() for row in rows}


def _check_tag(rows: Sequence[Row], tag: str | None) -> None:
    if tag is not None and rows and not any(tag in row.tags for row in rows):
        raise tag_error(tag, Counter(name for row in rows for name in row.tags))


def _groups(rows: Sequence[Row], numbers: Sequence[int] | None = None) -> Iterable[list[Row]]:
    """Rows that share a key or a number, directly or through other rows."""
    ties = UnionFind(len(rows))
    first: dict[bytes | int, int] = {}
    for index, row in enumerate(rows):
        for key in _keys(row):
            # Hashes of the questions, since the questions themselves would stand in memory once more.
            ties.join(index, first.setdefault(hashlib.sha256(key.encode()).digest()[:_KEY_BYTES], index))
    for index, number in enumerate(numbers or ()):
        ties.join(index, first.setdefault(number, index))
    groups: dict[int, list[Row]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(ties.root(index), []).append(row)
    return groups.values()


def _keys(row: Example) -> tuple[str, ...]:
    """What ties a row to others: its group if it has one, then its normalised question."""
    question = "prompt:" + normalised("\n".join(_asked(row)))
    return (question,) if row.group is None else (f"group:{row.group}", question)


def _commonest(values: Sequence[str]) -> str:
    """The value that occurs most, the first of the alphabet among equals."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _asked(row: Example) -> list[str]:
    """The texts that the row itself asks with: without system turns, and without what a track puts around them."""
    turns = row.turns if isinstance(row, ParsedRow) else row.prompt.messages
    return [turn.content for turn in turns if turn.role != "system"]


def _hash(seed: int, group: Sequence[Example]) -> str:
    key = min(_keys(row)[0] for row in group)
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
