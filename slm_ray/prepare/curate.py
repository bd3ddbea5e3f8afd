"""What is left out of the rows that splits are drawn from, step by step, each counted.

The order is fixed: equal rows, near-duplicates, length, cut answers, refusals, scripts, classes, weights. Validation and
test rows that have a source of their own are somebody's benchmark and stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slm_ray.config import Curation, PrepareConfig
from slm_ray.corpus import balance, duplicates, filters
from slm_ray.corpus.filters import Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.prepare.ingest import DRAWN, Ingested

Filter = Callable[[Sequence[ParsedRow]], tuple[list[ParsedRow], Step]]


def curated(ingested: Ingested, config: PrepareConfig, *, equal: int) -> tuple[dict[str, list[ParsedRow]], list[Step]]:
    """The rows by split, and what each step left out; `equal` rows were dropped by the reader already."""
    steps = list(ingested.steps)
    if equal:
        kept = sum(len(rows) for rows in ingested.rows[DRAWN].values())
        steps.append(Step(name="equal rows", kept=kept, dropped=equal))
    if ingested.skipped:
        note = "the tool is not in the row's own list, or it is no generation"
        steps.append(Step(name="no task row", kept=len(ingested.all()), dropped=ingested.skipped, note=note))
    drawn = dict(ingested.rows[DRAWN])
    for chosen in chosen_filters(config.curation, config.stratify, config.seed):
        for source, rows in drawn.items():
            drawn[source], step = chosen(rows)
            named = step.name if len(drawn) == 1 else f"{step.name} in {source}"
            steps.append(dataclasses.replace(step, name=named))
    mixed, mix_steps = _mixed(drawn, config)
    own = {split: next(iter(by_source.values())) for split, by_source in ingested.rows.items() if split != DRAWN}
    return {DRAWN: mixed, **own}, [*steps, *mix_steps]


def chosen_filters(settings: Curation, tag: str | None, seed: int) -> Iterator[Filter]:
    """The filters that the settings ask for, in their order; classes are the values of `tag`, or the answers without one."""
    if settings.duplicates != "refuse":
        yield duplicates.exact
    if settings.duplicates == "near":
        yield lambda rows: duplicates.near(rows, seed=seed)
    if (settings.prompt_words, settings.target_words) != ((0, None), (0, None)):
        yield lambda rows: filters.length(rows, prompt_words=settings.prompt_words, target_words=settings.target_words)
    if "cut" in settings.drop:
        yield filters.cut
    if "refusals" in settings.drop:
        yield filters.refusals
    if settings.scripts:
        yield lambda rows: filters.script(rows, allowed=settings.scripts)
    if settings.cap is not None:
        most = settings.cap
        yield lambda rows: balance.cap(rows, most=most, tag=tag, seed=seed)
    if settings.balance is not None:
        ratio = settings.balance
        yield lambda rows: balance.balance(rows, tag=tag, ratio=ratio, seed=seed)


def source_names(sources: Sequence[str]) -> dict[str, str]:
    """What sources are called in ids and tags: the file's stem, or the whole name where stems are equal."""
    stems = [Path(source).stem for source in sources]
    return {source: stem if stems.count(stem) == 1 else source for source, stem in zip(sources, stems, strict=True)}


def _mixed(drawn: dict[str, list[ParsedRow]], config: PrepareConfig) -> tuple[list[ParsedRow], list[Step]]:
    """The rows of the one source, or those of several by weight, told apart by ids and by the tag `source`."""
    if isinstance(config.source, str):
        return drawn[config.source], []
    names = source_names(list(drawn))
    weights = {names[source]: weight for source, weight in config.source.items()}
    mixed, step = balance.mix({names[source]: rows for source, rows in drawn.items()}, weights, seed=config.seed)
    return [dataclasses.replace(row, own_id=row.id) for row in mixed], [step]
