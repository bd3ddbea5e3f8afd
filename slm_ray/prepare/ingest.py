"""Every source of one preparation read to the end: the good rows by split, the bad ones, and a verdict on those.

Bad rows are listed in `bad_rows.jsonl` whatever is decided about them. One of them refuses the whole
source, unless `max_bad_share` allows some: then they are left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slm_ray import storage
from slm_ray.config import PrepareConfig
from slm_ray.corpus.filters import Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.read import Reader
from slm_ray.corpus.row_errors import BadRow, RowError, refuse, table
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, DataError
from slm_ray.parallel import Executor, map_batches
from slm_ray.prepare.live import Spot, is_live, live_rows
from slm_ray.prepare.shards import Rows, source_rows
from slm_ray.types import Example

BAD_ROWS = "bad_rows.jsonl"
DRAWN = "drawn"
EQUAL = "duplicate_content"

Log = Callable[[str], None]
TokenCounter = Callable[[Example], int]
BySource = dict[str, list[ParsedRow]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """Good rows by split (DRAWN ones are still to be split) and source, the bad ones, and how many rows their format left out.

    `steps` says what was left out of traffic logs, `held_back` which of their rows are not for training, `trains_only` which
    are for nothing else.
    """

    rows: Mapping[str, BySource]
    errors: tuple[RowError, ...]
    skipped: int
    steps: tuple[Step, ...] = ()
    held_back: frozenset[Spot] = frozenset()
    trains_only: frozenset[Spot] = frozenset()

    def all(self) -> list[ParsedRow]:
        """Every good row."""
        return [row for by_source in self.rows.values() for rows in by_source.values() for row in rows]


def sources(config: PrepareConfig) -> dict[str, list[str]]:
    """The sources of each split."""
    drawn = [config.source] if isinstance(config.source, str) else list(config.source)
    if not drawn:
        raise ConfigError("source is empty; give a file, a folder, a URI or hf:NAME")
    own = {"validation": config.validation_source, "test": config.test_source}
    return {DRAWN: drawn} | {split: [source] for split, source in own.items() if source is not None}


def ingest(config: PrepareConfig, track: Track, executor: Executor) -> Ingested:
    """Read all sources; ids (the rows' own or content hashes) are told apart within each of them."""
    rows: dict[str, BySource] = {}
    errors: list[RowError] = []
    steps: list[Step] = []
    held_back: set[Spot] = set()
    trains_only: set[Spot] = set()
    skipped = 0
    named = [(split, name, is_live(name)) for split, names in sources(config).items() for name in names]
    read = source_rows([name for _, name, live in named if not live], config.format, track, executor)
    for split, name, live in named:
        found: Rows
        if live:
            logged = live_rows(name, track, config.live)
            found = iter((*(logged.rows if split == DRAWN else logged.sampled), *logged.errors))
            steps += logged.steps
            held_back |= logged.held_back
            trains_only |= logged.trains_only
        else:
            found = next(read)
        reader = Reader(track=track, format_name=config.format)
        good = rows.setdefault(split, {}).setdefault(name, [])
        for row in reader.told_apart(found):
            if isinstance(row, ParsedRow):
                good.append(row)
            else:
                errors.append(row)
        skipped += reader.skipped
    return Ingested(
        rows=rows, errors=tuple(errors), skipped=skipped, steps=tuple(steps), held_back=frozenset(held_back),
        trains_only=frozenset(trains_only),
    )  # fmt: skip


def shown_by(track: Track, ingested: Ingested) -> Ingested:
    """The same rows as `track`, which knows its labels by now, shows them."""
    rows = {
        split: {source: [row.shown_by(track) for row in found] for source, found in by_source.items()}
        for split, by_source in ingested.rows.items()
    }
    return dataclasses.replace(ingested, rows=rows)


def without_long(ingested: Ingested, *, most: int, token_counter: TokenCounter, executor: Executor) -> Ingested:
    """The rows of at most `most` tokens; longer ones are bad rows, since an answer is never cut.

    The errors come in the order of files and lines.
    """
    errors: list[RowError] = list(ingested.errors)
    rows: dict[str, BySource] = {}
    for split, by_source in ingested.rows.items():
        for source, found in by_source.items():
            good = rows.setdefault(split, {}).setdefault(source, [])
            for row, tokens in zip(found, token_counts(found, token_counter, executor), strict=True):
                if isinstance(tokens, str):
                    errors.append(_refused(tokens).at(row.file, row.line))
                elif tokens <= most:
                    good.append(row)
                else:
                    errors.append(_too_long(tokens, most).at(row.file, row.line))
    return dataclasses.replace(ingested, rows=rows, errors=_in_order(errors))


def token_counts(rows: Sequence[ParsedRow], token_counter: TokenCounter, executor: Executor) -> Iterator[int | str]:
    """The tokens of each row, in order; for a chat that the base's template refuses, why.

    A character takes longer than a byte to read, but workers load a tokenizer first: 100,000 rows of 760 characters took 53 s
    here, and 33 s, or 68 s with the start of Ray, as tasks on two cores that had other work.
    """
    characters = sum(len(row.target) + sum(len(turn.content) for turn in row.prompt.messages) for row in rows)
    examples = [row.example() for row in rows]
    return map_batches(
        executor, partial(_lengths, token_counter), examples, like_bytes=characters, title="counting tokens"
    )


def left_out(ingested: Ingested, config: PrepareConfig, *, folder: Path, log: Log) -> tuple[dict[str, int], int]:
    """The bad rows that are left out, by kind, and how many rows equal to earlier ones are to be dropped.

    DataError when bad rows are not to be left out, are too many, or leave nothing.
    """
    drop_equal = config.curation.duplicates != "refuse"
    bad = [error for error in ingested.errors if not (drop_equal and error.kind == EQUAL)]
    _list_and_judge(bad, len(ingested.all()), config, folder / BAD_ROWS, log)
    _refuse_empty(ingested)
    return dict(sorted(Counter(error.kind for error in bad).items())), len(ingested.errors) - len(bad)


def _lengths(token_counter: TokenCounter, examples: Sequence[Example]) -> Iterator[int | str]:
    for example in examples:
        try:
            yield token_counter(example)
        except DataError as error:
            yield str(error)


def _in_order(errors: Sequence[RowError]) -> tuple[RowError, ...]:
    files = {file: place for place, file in enumerate(dict.fromkeys(error.file for error in errors))}
    return tuple(sorted(errors, key=lambda error: (files[error.file], error.line)))


def _refused(reason: str) -> BadRow:
    return BadRow("refused_chat", reason, "repair the row, or leave it out with max_bad_share")


def _too_long(tokens: int, most: int) -> BadRow:
    return BadRow("too_long", f"it has {tokens} tokens, more than max_tokens {most}", "shorten it or raise max_tokens")


def _list_and_judge(bad: Sequence[RowError], good: int, config: PrepareConfig, path: Path, log: Log) -> None:
    path.unlink(missing_ok=True)
    if not bad:
        return
    storage.write_jsonl(path, [dataclasses.asdict(error) for error in bad])
    share = len(bad) / (len(bad) + good)
    log(f"{len(bad):,} of {len(bad) + good:,} rows are bad ({share:.2%}); all of them are in {path}")
    log(table(bad))
    if not config.max_bad_share:
        refuse(bad, hint=f"all of them are in {path}; repair them, or set max_bad_share to leave some out")
    if share > config.max_bad_share:
        raise DataError(
            f"{len(bad)} of {len(bad) + good} rows are bad ({share:.2%}), more than max_bad_share"
            f" {config.max_bad_share:.2%}; repair the rows in {path} or raise max_bad_share"
        )


def _refuse_empty(ingested: Ingested) -> None:
    for by_source in ingested.rows.values():
        for source, rows in by_source.items():
            if rows:
                continue
            if ingested.steps:
                left = "; ".join(map(str, ingested.steps))
                raise DataError(f"{source}: no request of the traffic log makes a row ({left}); see `live`")
            if ingested.skipped:
                reason = f"all of its {ingested.skipped} rows are left out by their format"
                fix = "give xLAM rows whose tool is in their own list, or generations of Langfuse"
                raise DataError(f"{source}: {reason}; {fix}")
            raise DataError(f"{source}: there are no rows in it; give rows in a format that README names")
