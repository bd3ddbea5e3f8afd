"""One source read in shards, a shard per file, that may be read in other processes: what goes there and what comes back.

A shard comes back as blocks of bytes: rows and what is wrong with the bad ones, since pickled records would take longer to
read than the rows themselves. Whoever puts shards together again, in their order, has what one reader of the whole source
has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter

import msgspec

from slm_ray.corpus.parsed_row import Exchange, ParsedRow, RowId, parsed_row
from slm_ray.corpus.read import parsed
from slm_ray.corpus.row_errors import BadRow, RowError
from slm_ray.corpus.tracks import Track
from slm_ray.parallel import Executor
from slm_ray.scoring import unreadable
from slm_ray.sources import File, files, is_data_set, raw_rows, rows_of
from slm_ray.types import Message

BLOCK_ROWS = 2000

Rows = Iterator[ParsedRow | RowError | None]
# A good row: id, own id, split, turns, target, tags, group. A bad one: kind, reason, fix.
_Good = tuple[str, RowId, str | None, tuple[Message, ...], str, Mapping[str, str], str | None]
_Bad = tuple[str, str, str]
_Packed = tuple[int, _Good | None, _Bad | None]
Block = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of the source with that number, to be read for a track in a format."""

    number: int
    file: File
    track: Track
    format_name: str


def source_rows(names: Sequence[str], format_name: str, track: Track, executor: Executor) -> Iterator[Rows]:
    """The rows of each source in turn, to be taken to their end one source after the other.

    Several large files are read by `executor`. An answer that no scorer of the track can read makes a row a bad one.
    """
    shards = [
        Shard(number=number, file=file, track=track, format_name=format_name)
        for number, name in enumerate(names)
        if not is_data_set(name)
        for file in files(name)
    ]
    if len(shards) < 2 or not executor.pays_off(sum(shard.file.size_bytes for shard in shards)):
        yield from (_scorable(parsed(raw_rows(name), track, format_name), track) for name in names)
        return
    sharded = {shard.number for shard in shards}
    blocks = groupby(executor.map(packed, shards, title="reading files"), key=itemgetter(0))
    following = next(blocks, None)
    for number, name in enumerate(names):
        if number not in sharded:
            yield _scorable(parsed(raw_rows(name), track, format_name), track)
        elif following is None or following[0] != number:  # its files hold no row
            yield iter(())
        else:
            yield (row for block in following[1] for row in unpacked(block, track))
            following = next(blocks, None)


def packed(shard: Shard) -> Iterator[Block]:
    """The rows of one file as blocks; for another process."""
    encode = msgspec.msgpack.Encoder().encode
    rows = _scorable(parsed(rows_of(shard.file), shard.track, shard.format_name), shard.track)
    while block := [_pack(row) for row in islice(rows, BLOCK_ROWS)]:
        yield shard.number, shard.file.name, encode(block)


def unpacked(block: Block, track: Track) -> Rows:
    """The rows of a block again."""
    _, file, data = block
    for line, good, bad in msgspec.msgpack.decode(data, type=list[_Packed]):
        if bad is not None:
            yield BadRow(*bad).at(file, line)
        elif good is None:
            yield None
        else:
            name, own_id, split, turns, target, tags, group = good
            exchange = Exchange(turns=turns, target=target, tags=tags, group=group)
            yield parsed_row(track, exchange, own_id=own_id, split=split, file=file, line=line, name=name)


def _scorable(rows: Iterable[ParsedRow | RowError | None], track: Track) -> Rows:
    """The rows, those whose answer nothing could match as what is wrong with them."""
    for row in rows:
        form = unreadable(track, row.target) if isinstance(row, ParsedRow) else None
        if form is None or not isinstance(row, ParsedRow):
            yield row
        else:
            reason = f"its answer is not {form}, which track {track.name} scores"
            fix = "write it so, or choose the track of these answers"
            yield BadRow("unscorable", reason, fix).at(row.file, row.line)


def _pack(row: ParsedRow | RowError | None) -> _Packed:
    if row is None:
        return 0, None, None
    if isinstance(row, RowError):
        return row.line, None, (row.kind, row.reason, row.fix)
    return row.line, (row.id, row.own_id, row.split, row.turns, row.target, row.tags, row.group), None
