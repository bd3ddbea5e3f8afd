"""Rows into train, validation and test: drawn, kept as the rows say, or taken from sources of their own.

Whatever the source, no question stands in two splits: a row that asks what a held-out row asks leaves the training rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from slm_ray.config import PrepareConfig
from slm_ray.corpus import balance, duplicates, leakage, split
from slm_ray.corpus.filters import Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare.curate import source_names
from slm_ray.prepare.ingest import DRAWN
from slm_ray.prepare.live import Spot, spot

SPLITS = ("train", "validation", "test")
Splits = dict[str, list[ParsedRow]]
_NO_SAMPLE = (
    "test and validation rows of a traffic log are drawn from audited requests and from those in record and shadow: audit"
    " more, have all requests asked of the LLM again (relabel in the flywheel), or give a test_source and a validation_source"
)


def splits(
    rows: Mapping[str, Sequence[ParsedRow]], config: PrepareConfig, trains_only: Collection[Spot] = ()
) -> tuple[Splits, list[Step]]:
    """The rows of each split, and what was moved or left out to keep them apart; rows of `trains_only` are in no test."""
    _check(config)
    own = {
        name: _first(rows[name], getattr(config, f"{name}_rows"), config.seed)
        for name in ("test", "validation")
        if name in rows
    }
    drawn, steps = list(rows[DRAWN]), []
    if "test" in own and "validation" in own:
        own["validation"], step = _apart(own["test"], own["validation"], config, "validation")
        steps.append(step)
    for name in own:
        drawn, step = _apart(own[name], drawn, config, name)
        steps.append(step)
    if config.keep_split:
        found = _kept(drawn, config)
    else:
        found, step = _drawn(drawn, config, dict.fromkeys(own, 0), trains_only)
        steps.append(step)
    found |= own
    if config.curation.order != "none":
        found["train"], step = _ordered(found["train"], drawn, config)
        steps.append(step)
    for name in ("validation", "test"):
        found[name] = split.with_groups(found[name], _near(found[name], config))
    return {name: found[name] for name in SPLITS}, steps


def _check(config: PrepareConfig) -> None:
    for name in ("validation", "test"):
        own = getattr(config, f"{name}_source") is not None
        if own and config.keep_split:
            raise ConfigError(
                f"keep_split takes {name} rows from `source`, {name}_source from another; drop one of them"
            )
        if not own and getattr(config, f"{name}_rows") is None:
            raise ConfigError(f"{name}_rows is null; set a number, or give a {name}_source")


def _first(rows: Sequence[ParsedRow], wanted: int | None, seed: int) -> list[ParsedRow]:
    """`wanted` rows of a split's own source, drawn by hash and in their order; all of them for None, or when fewer."""
    if wanted is None or len(rows) <= wanted:
        return list(rows)
    drawn = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).hexdigest())[:wanted]
    chosen = {row.id for row in drawn}
    return [row for row in rows if row.id in chosen]


def _apart(
    held_out: Sequence[ParsedRow], rows: Sequence[ParsedRow], config: PrepareConfig, name: str
) -> tuple[list[ParsedRow], Step]:
    """`rows` without those that ask what a held-out row of the split `name` asks."""
    threshold = duplicates.NEAR if config.separate_near else None
    leaking = {leak.row for leak in leakage.leaks(held_out, rows, threshold=threshold, seed=config.seed)}
    kept = [row for row in rows if row.id not in leaking]
    note = f"they ask what rows of {name} ask" if leaking else ""
    return kept, Step(name="leaks", kept=len(kept), dropped=len(leaking), note=note)


def _drawn(
    rows: Sequence[ParsedRow], config: PrepareConfig, own: Mapping[str, int], trains_only: Collection[Spot]
) -> tuple[Splits, Step]:
    try:
        return split.counted(
            rows,
            validation=own.get("validation", config.validation_rows or 0),
            test=own.get("test", config.test_rows or 0),
            train=config.train_rows,
            seed=config.seed,
            stratify=config.stratify,
            groups=_near(rows, config),
            trains_only=(lambda row: spot(row) in trains_only) if trains_only else None,
        )
    except DataError as error:
        if trains_only:
            raise DataError(f"{error}. {_NO_SAMPLE}") from None
        raise


def _near(rows: Sequence[ParsedRow], config: PrepareConfig) -> list[int] | None:
    """The groups of near-duplicates, where they are to stay together."""
    return duplicates.groups(rows, seed=config.seed) if config.separate_near else None


def _kept(rows: Sequence[ParsedRow], config: PrepareConfig) -> Splits:
    name = str(config.source)
    kept = split.keep(rows, name=name)
    asked = {"train": config.train_rows, "validation": config.validation_rows, "test": config.test_rows}
    for split_name, wanted in asked.items():
        there = len(kept[split_name])
        if wanted is not None and there < wanted:
            raise DataError(
                f"{name}: asked for {wanted} {split_name} rows, the file has {there}; set `{split_name}_rows` lower"
            )
    return {split_name: kept[split_name][: asked[split_name]] for split_name in SPLITS}


def _ordered(
    train: Sequence[ParsedRow], drawn: Sequence[ParsedRow], config: PrepareConfig
) -> tuple[list[ParsedRow], Step]:
    """The training rows in the order of a curriculum; ties keep the order of the source."""
    chosen = {row.id for row in train}
    rows = [row for row in drawn if row.id in chosen]
    if config.curation.order == "shortest_first":
        return balance.shortest_first(rows)
    names = source_names(list(config.source)) if isinstance(config.source, dict) else {}
    return balance.by_source(rows, list(names.values()))
