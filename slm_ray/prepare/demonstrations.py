"""Training rows that show similar training rows before they ask (an adapter trained with Dr.ICL's demonstrations).

The same retrieval and the same turns as in front of a question at evaluation. Only training rows are shown, never one that
asks the same; held-out rows are neither shown nor changed. The tag `demonstrations` says how many stand in a row, so that
leak checks still see what the row itself asks. The time grows with the square of the rows: a minute for 7,000 short ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from slm_ray.corpus import formats
from slm_ray.corpus.pair import Pair
from slm_ray.corpus.retrieve import DEMONSTRATIONS, Retriever
from slm_ray.corpus.step import Step
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError
from slm_ray.prepare.gather import Count
from slm_ray.types import Message

Row = dict[str, Any]


def shown(
    rows: Sequence[Row], track: Track, *, k: int, most: int | None, count: Count | None
) -> tuple[list[Row], Step]:
    """Prepared training rows with the `k` most similar others in front, the most similar first, or as many as there are.

    DataError for a row of more than `most` tokens with them: neither an answer nor a demonstration is cut.
    """
    pairs = [pair for row in rows if (pair := formats.pair(row, track)) is not None]
    by_id = {pair.example(track).id: pair for pair in pairs}
    pool = Retriever([pair.example(track) for pair in pairs])
    made = [_with(pair, [by_id[shot.id] for shot in pool.nearest(_asked(pair, track), k)]) for pair in pairs]
    if most is not None and count is not None:
        _refuse_long(made, track, k, most, count)
    note = f"up to {k} similar training rows in front of each"
    return [pair.as_row() for pair in made], Step(name="demonstrations", kept=len(made), dropped=0, note=note)


def _with(pair: Pair, shots: Sequence[Pair]) -> Pair:
    *before, last = pair.turns
    turns = [turn for shot in shots for turn in (shot.turns[-1], Message(role="assistant", content=shot.answer))]
    tags = {**pair.tags, DEMONSTRATIONS: str(len(shots))} if shots else pair.tags
    return dataclasses.replace(pair, turns=(*before, *turns, last), tags=tags)


def _asked(pair: Pair, track: Track) -> str:
    return pair.example(track).prompt.messages[-1].content


def _refuse_long(pairs: Sequence[Pair], track: Track, k: int, most: int, count: Count) -> None:
    lengths = [count(pair.example(track)) for pair in pairs]
    over = sum(length > most for length in lengths)
    if over:
        raise DataError(
            f"{over} of {len(pairs)} training rows have more than max_tokens {most} with their {k} demonstrations, the"
            f" longest {max(lengths)}; lower demonstrations, or raise max_tokens"
        )
