"""Every source of one preparation read to the end: the good rows by side, the bad ones, and a verdict on those.

Bad rows are listed in `bad_rows.jsonl` whatever is decided about them. Without `skip_bad` one of them refuses the whole
source; with it they are left out and counted, unless they are too many.
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
from slm_ray.corpus.problems import BadRow, Problem, refuse, table
from slm_ray.corpus.read import Reader, Row
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare.parts import converted_rows
from slm_ray.prepare.spread import FanOut, Spread
from slm_ray.types import Example

BAD_ROWS = "bad_rows.jsonl"
DRAWN = "drawn"
EQUAL = "duplicate_content"

Say = Callable[[str], None]
Count = Callable[[Example], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Good rows by side (DRAWN ones are still to be split) and source, what is wrong with the bad ones, and how many
    xLAM rows were skipped."""

    rows: Mapping[str, Mapping[str, list[Row]]]
    problems: tuple[Problem, ...]
    skipped: int

    def all(self) -> list[Row]:
        """Every good row."""
        return [row for by_source in self.rows.values() for rows in by_source.values() for row in rows]


def sources(config: PrepareConfig) -> dict[str, list[str]]:
    """The sources of each side."""
    drawn = [config.source] if isinstance(config.source, str) else list(config.source)
    if not drawn:
        raise ConfigError("source is empty; give a file, a folder, a URI or hf:NAME")
    own = {"validation": config.validation_source, "test": config.test_source}
    return {DRAWN: drawn} | {side: [source] for side, source in own.items() if source is not None}


def gather(config: PrepareConfig, track: Track, *, fan_out: FanOut | None = None) -> Gathered:
    """Read all sources; ids (the rows' own or content hashes) are told apart within each of them.

    With `fan_out`, several large files are read by it; what is found is the same.
    """
    rows: dict[str, dict[str, list[Row]]] = {}
    problems: list[Problem] = []
    skipped = 0
    named = [(side, name) for side, names in sources(config).items() for name in names]
    for (side, name), found in zip(named, converted_rows([n for _, n in named], config, track, fan_out), strict=True):
        reader = Reader(track=track, format_name=config.format)
        good = rows.setdefault(side, {}).setdefault(name, [])
        for row in reader.told_apart(found):
            if isinstance(row, Row):
                good.append(row)
            else:
                problems.append(row)
        skipped += reader.skipped
    return Gathered(rows=rows, problems=tuple(problems), skipped=skipped)


def shown_as(found: Gathered, track: Track, *, most: int | None, count: Count | None, spread: Spread) -> Gathered:
    """The rows as `track` shows them; those of more than `most` tokens are bad rows, since an answer is never cut.

    The problems come in the order of files and lines. Tokens are counted by `spread`.
    """
    problems: list[Problem] = []
    rows: dict[str, dict[str, list[Row]]] = {}
    for side, by_source in found.rows.items():
        for source, given in by_source.items():
            good = rows.setdefault(side, {}).setdefault(source, [])
            shown = [dataclasses.replace(row, example=row.pair.example(track)) for row in given]
            lengths = (
                counted([row.example for row in shown], count, spread)
                if most is not None and count
                else [0] * len(shown)
            )
            for row, again, tokens in zip(given, shown, lengths, strict=True):
                if most is None or tokens <= most:
                    good.append(again)
                else:
                    problems.append(_too_long(tokens, most).at(row.file, row.line))
    return dataclasses.replace(found, rows=rows, problems=_in_order([*found.problems, *problems]))


def counted(examples: Sequence[Example], count: Count, spread: Spread) -> Iterator[int]:
    """The tokens of each example, in order.

    A character takes longer than a byte to read, but workers load a tokenizer first: 100,000 rows of 760 characters took 53 s
    here, and 33 s, or 68 s with the start of Ray, as tasks on two cores that had other work.
    """
    characters = sum(len(e.target) + sum(len(turn.content) for turn in e.prompt.messages) for e in examples)
    work = partial(_lengths, count)
    return spread.over(work, examples, like_bytes=characters, title="counting tokens")


def judged(found: Gathered, config: PrepareConfig, *, folder: Path, say: Say) -> tuple[dict[str, int], int]:
    """The bad rows that are left out, by kind, and how many rows equal to earlier ones are to be dropped.

    DataError when bad rows are not to be left out, are too many, or leave nothing.
    """
    drop_equal = config.curation.duplicates != "refuse"
    bad = [problem for problem in found.problems if not (drop_equal and problem.kind == EQUAL)]
    _judge(bad, len(found.all()), config, folder / BAD_ROWS, say)
    _refuse_empty(found)
    return dict(sorted(Counter(problem.kind for problem in bad).items())), len(found.problems) - len(bad)


def _lengths(count: Count, examples: Sequence[Example]) -> Iterator[int]:
    yield from map(count, examples)


def _in_order(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    files = {file: place for place, file in enumerate(dict.fromkeys(problem.file for problem in problems))}
    return tuple(sorted(problems, key=lambda problem: (files[problem.file], problem.line)))


def _too_long(tokens: int, most: int) -> BadRow:
    return BadRow("too_long", f"it has {tokens} tokens, more than max_tokens {most}", "shorten it or raise max_tokens")


def _judge(bad: Sequence[Problem], good: int, config: PrepareConfig, path: Path, say: Say) -> None:
    path.unlink(missing_ok=True)
    if not bad:
        return
    storage.write_jsonl(path, [dataclasses.asdict(problem) for problem in bad])
    share = len(bad) / (len(bad) + good)
    say(f"{len(bad):,} of {len(bad) + good:,} rows are bad ({share:.2%}); all of them are in {path}")
    say(table(bad))
    if not config.skip_bad:
        refuse(bad, hint=f"all of them are in {path}; repair them, or set skip_bad to leave them out")
    if share > config.max_bad_share:
        raise DataError(
            f"{len(bad)} of {len(bad) + good} rows are bad ({share:.2%}), more than max_bad_share"
            f" {config.max_bad_share:.2%}; repair the rows in {path} or raise max_bad_share"
        )


def _refuse_empty(found: Gathered) -> None:
    for by_source in found.rows.values():
        for source, rows in by_source.items():
            if rows:
                continue
            if found.skipped:
                reason = f"none of its {found.skipped} rows answers with a tool of its own tool list"
                raise DataError(f"{source}: {reason}; give xLAM rows (query, tools, answers)")
            raise DataError(f"{source}: there are no rows in it; give rows in a format that README names")
