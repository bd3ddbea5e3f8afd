"""Rows into train, validation and test: drawn, kept as the rows say, or taken from sources of their own.

Whatever the source, no question stands on two sides: a row that asks what a held-out row asks leaves the training side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.config import PrepareConfig
from slm_ray.corpus import balance, duplicates, leakage, split
from slm_ray.corpus.read import Row
from slm_ray.corpus.step import Step
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare.curate import source_names
from slm_ray.prepare.gather import DRAWN

SPLITS = ("train", "validation", "test")
Parts = dict[str, list[dict[str, Any]]]


def sides(rows: Mapping[str, Sequence[Row]], config: PrepareConfig) -> tuple[Parts, list[Step]]:
    """The prepared rows of each split, and what was moved or left out to keep them apart."""
    _check(config)
    own = {
        side: _first(rows[side], getattr(config, f"{side}_rows"), config.seed)
        for side in ("test", "validation")
        if side in rows
    }
    drawn, steps = list(rows[DRAWN]), []
    if "test" in own and "validation" in own:
        own["validation"], step = _apart(own["test"], own["validation"], config, "validation")
        steps.append(step)
    for side in own:
        drawn, step = _apart(own[side], drawn, config, side)
        steps.append(step)
    if config.keep_split:
        parts = _kept([row.pair.as_row() for row in drawn], config)
    else:
        parts, step = _drawn(drawn, config, dict.fromkeys(own, 0))
        steps.append(step)
    for side, found in own.items():
        parts[side] = [row.pair.as_row() for row in found]
    ordered = _ordered(parts["train"], drawn, config)
    if ordered is not None:
        parts["train"], step = ordered
        steps.append(step)
    return {name: parts[name] for name in SPLITS}, steps


def _check(config: PrepareConfig) -> None:
    for side in ("validation", "test"):
        own = getattr(config, f"{side}_source") is not None
        if own and config.keep_split:
            raise ConfigError(
                f"keep_split takes {side} rows from `source`, {side}_source from another; drop one of them"
            )
        if not own and getattr(config, f"{side}_rows") is None:
            raise ConfigError(f"{side}_rows is null; set a number, or give a {side}_source")


def _first(rows: Sequence[Row], wanted: int | None, seed: int) -> list[Row]:
    """`wanted` rows of a side's own source, drawn by hash and in their order; all of them for None, or when fewer."""
    if wanted is None or len(rows) <= wanted:
        return list(rows)
    drawn = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.example.id}".encode()).hexdigest())[:wanted]
    chosen = {row.example.id for row in drawn}
    return [row for row in rows if row.example.id in chosen]


def _apart(held: Sequence[Row], rows: Sequence[Row], config: PrepareConfig, side: str) -> tuple[list[Row], Step]:
    """`rows` without those that ask what a held-out row of `side` asks."""
    threshold = duplicates.NEAR if config.separate_near else None
    found = leakage.leaks(
        [row.example for row in held], [row.example for row in rows], threshold=threshold, seed=config.seed
    )  # fmt: skip
    leaking = {leak.row for leak in found}
    kept = [row for row in rows if row.example.id not in leaking]
    note = f"they ask what rows of {side} ask" if leaking else ""
    return kept, Step(name="leaks", kept=len(kept), dropped=len(leaking), note=note)


def _drawn(rows: Sequence[Row], config: PrepareConfig, own: Mapping[str, int]) -> tuple[Parts, Step]:
    examples = [row.example for row in rows]
    near = duplicates.groups(examples, seed=config.seed) if config.separate_near else None
    return split.counted(
        [row.pair.as_row() for row in rows],
        validation=own.get("validation", config.validation_rows or 0),
        test=own.get("test", config.test_rows or 0),
        train=config.train_rows,
        seed=config.seed,
        stratify=config.stratify,
        groups=near,
    )


def _kept(rows: list[dict[str, Any]], config: PrepareConfig) -> Parts:
    name = str(config.source)
    parts = split.keep(rows, name=name)
    asked = {"train": config.train_rows, "validation": config.validation_rows, "test": config.test_rows}
    for side, wanted in asked.items():
        if wanted is not None and len(parts[side]) < wanted:
            raise DataError(
                f"{name}: asked for {wanted} {side} rows, the file has {len(parts[side])}; set `{side}_rows` lower"
            )
    return {side: parts[side][: asked[side]] for side in SPLITS}


def _ordered(
    train: list[dict[str, Any]], rows: Sequence[Row], config: PrepareConfig
) -> tuple[list[dict[str, Any]], Step] | None:
    """The training rows in the order of a curriculum; None when none is asked for."""
    if config.curation.order == "none":
        return None
    chosen = {_key(row): row for row in train}
    examples = {row.example.id: row for row in rows if _key(row.pair.as_row()) in chosen}
    given = [row.example for row in examples.values()]
    if config.curation.order == "shortest_first":
        ordered, step = balance.shortest_first(given)
    else:
        names = source_names(list(config.source)) if isinstance(config.source, dict) else {}
        ordered, step = balance.by_source(given, list(names.values()))
    return [chosen[_key(examples[example.id].pair.as_row())] for example in ordered], step


def _key(row: Mapping[str, Any]) -> str:
    return repr([row.get("id"), row["prompt"], row["completion"]])
