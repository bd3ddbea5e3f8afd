"""Training rows that show similar training rows before they ask (an adapter trained with Dr.ICL's demonstrations).

The same retrieval and the same turns as in front of a question at evaluation. Only training rows are shown, never one that
asks the same; held-out rows are neither shown nor changed. The tag `demonstrations` says how many stand in a row, so that
leak checks still see what the row itself asks. The time grows with the square of the rows: a second for 7,000 short ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from slm_ray.corpus import formats
from slm_ray.corpus.pair import Pair
from slm_ray.corpus.retrieve import DEMONSTRATIONS, Retriever
from slm_ray.corpus.step import Step
from slm_ray.corpus.tracks import Track
from slm_ray.errors import DataError
from slm_ray.prepare.gather import Count, counted
from slm_ray.prepare.spread import Spread
from slm_ray.types import Message

Row = dict[str, Any]
_PAIRS = 20  # held against each other in the time of reading a byte, workers' start included


def shown(
    rows: Sequence[Row], track: Track, *, k: int, most: int | None, count: Count | None, spread: Spread
) -> tuple[list[Row], Step]:
    """Prepared training rows with the `k` most similar others in front, the most similar first, or as many as there are.

    DataError for a row of more than `most` tokens with them: neither an answer nor a demonstration is cut.
    """
    pairs = [pair for row in rows if (pair := formats.pair(row, track)) is not None]
    examples = [pair.example(track) for pair in pairs]
    by_id = {example.id: pair for example, pair in zip(examples, pairs, strict=True)}
    asked = [example.prompt.messages[-1].content for example in examples]
    near = spread.over(
        partial(_nearest, Retriever(examples), k), asked, like_bytes=len(pairs) ** 2 // _PAIRS, title="demonstrations"
    )
    made = [_with(pair, [by_id[name] for name in names]) for pair, names in zip(pairs, near, strict=True)]
    if most is not None and count is not None:
        _refuse_long(list(counted([pair.example(track) for pair in made], count, spread)), k, most)
    note = f"up to {k} similar training rows in front of each"
    return [pair.as_row() for pair in made], Step(name="demonstrations", kept=len(made), dropped=0, note=note)


def _with(pair: Pair, shots: Sequence[Pair]) -> Pair:
    *before, last = pair.turns
    turns = [turn for shot in shots for turn in (shot.turns[-1], Message(role="assistant", content=shot.answer))]
    tags = {**pair.tags, DEMONSTRATIONS: str(len(shots))} if shots else pair.tags
    return dataclasses.replace(pair, turns=(*before, *turns, last), tags=tags)


def _nearest(pool: Retriever, k: int, asked: Sequence[str]) -> Iterator[list[str]]:
    for question in asked:
        yield [example.id for example in pool.nearest(question, k)]


def _refuse_long(lengths: Sequence[int], k: int, most: int) -> None:
    over = sum(length > most for length in lengths)
    if over:
        raise DataError(
            f"{over} of {len(lengths)} training rows have more than max_tokens {most} with their {k} demonstrations, the"
            f" longest {max(lengths)}; lower few_shot, or raise max_tokens"
        )
