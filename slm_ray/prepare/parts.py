"""One source read in parts, a part per file, that may be read in other processes: what goes there and what comes back.

A part comes back as blocks of bytes: pairs, ids and what is wrong with the bad rows, since pickled records would take
longer to read than the rows themselves. Whoever puts parts together again, in their order, has what one reader of the
whole source has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter

import msgspec

from slm_ray.config import PrepareConfig
from slm_ray.corpus.pair import Pair
from slm_ray.corpus.problems import BadRow
from slm_ray.corpus.read import Converted, converted
from slm_ray.corpus.tracks import Track
from slm_ray.prepare.spread import FanOut
from slm_ray.scoring import unreadable
from slm_ray.sources import File, files, is_data_set, raw_rows, rows_of

BLOCK_ROWS = 2000

Wrong = tuple[str, str, str]
Packed = tuple[int, str | None, Pair | None, Wrong | None]
Block = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the source with that number, to be read for a track in a format."""

    number: int
    file: File
    track: Track
    format_name: str


def converted_rows(
    names: Sequence[str], config: PrepareConfig, track: Track, fan_out: FanOut | None
) -> Iterator[Iterator[Converted]]:
    """The rows of each source in turn, to be taken to their end one source after the other."""
    parts = _parts(names, config, track)
    if fan_out is None or config.parallel_threshold_bytes is None or not _worth(parts, config.parallel_threshold_bytes):
        yield from (_scorable(converted(raw_rows(name), track, config.format), track) for name in names)
        return
    apart = {part.number for part in parts}
    blocks = groupby(fan_out(packed, parts, title="reading files"), key=itemgetter(0))
    following = next(blocks, None)
    for number, name in enumerate(names):
        if number not in apart:
            yield _scorable(converted(raw_rows(name), track, config.format), track)
        elif following is None or following[0] != number:  # its files hold no row
            yield iter(())
        else:
            yield (row for block in following[1] for row in unpacked(block, track))
            following = next(blocks, None)


def _parts(names: Sequence[str], config: PrepareConfig, track: Track) -> list[Part]:
    return [
        Part(number=number, file=file, track=track, format_name=config.format)
        for number, name in enumerate(names)
        if not is_data_set(name)
        for file in files(name)
    ]


def _worth(parts: Sequence[Part], least_bytes: int) -> bool:
    return len(parts) > 1 and sum(part.file.size_bytes for part in parts) >= least_bytes


def packed(part: Part) -> Iterator[Block]:
    """The rows of one file as blocks; for another process."""
    encode = msgspec.msgpack.Encoder().encode
    rows = _scorable(converted(rows_of(part.file), part.track, part.format_name), part.track)
    while block := [_packed(row) for row in islice(rows, BLOCK_ROWS)]:
        yield part.number, part.file.name, encode(block)


def unpacked(block: Block, track: Track) -> Iterator[Converted]:
    """The rows of a block again."""
    _, name, data = block
    for line, example_id, pair, wrong in msgspec.msgpack.decode(data, type=list[Packed]):
        if wrong is not None:
            yield name, line, BadRow(*wrong), None
        else:
            yield name, line, pair, None if pair is None else pair.example(track, name=example_id)


def _scorable(rows: Iterator[Converted], track: Track) -> Iterator[Converted]:
    """The rows, those whose answer nothing could match as what is wrong with them."""
    for file, line, made, example in rows:
        form = unreadable(track, made.answer) if isinstance(made, Pair) else None
        if form is None:
            yield file, line, made, example
        else:
            reason = f"its answer is not {form}, which track {track.name} scores"
            yield file, line, BadRow("unscorable", reason, "write it so, or choose the track of these answers"), None


def _packed(row: Converted) -> Packed:
    _, line, made, example = row
    if isinstance(made, BadRow):
        return line, None, None, (made.kind, made.reason, made.fix)
    return line, None if example is None else example.id, made, None
