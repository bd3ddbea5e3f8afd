"""Training rows that show similar training rows before they ask (an adapter trained with Dr.ICL's demonstrations).

The same retrieval and the same turns as in front of a question at evaluation. Only training rows are shown, never one that
asks the same; held-out rows are neither shown nor changed. The tag `demonstrations` says how many stand in a row, so that
leak checks still see what the row itself asks. The time grows with the square of the rows: a second for 7,000 short ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from slm_ray.corpus.filters import Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.retrieve import DEMONSTRATIONS, Retriever, questions
from slm_ray.corpus.tracks import Track
from slm_ray.encoders import open_retriever
from slm_ray.errors import DataError
from slm_ray.parallel import Executor, map_batches
from slm_ray.prepare.ingest import TokenCounter, token_counts
from slm_ray.types import Message

_PAIRS = 20  # held against each other in the time of reading a byte, workers' start included


def with_demonstrations(
    rows: Sequence[ParsedRow], track: Track, *, k: int, retriever: str, beside: Path, most: int | None,
    token_counter: TokenCounter | None, executor: Executor,
) -> tuple[list[ParsedRow], Step]:  # fmt: skip
    """Training rows with the `k` most similar others in front, or as many as there are; the most similar one comes last.

    `retriever` finds them; an encoder's vectors are kept beside `beside`, the file that the rows will stand in. DataError
    for a row of more than `most` tokens with them: neither an answer nor a demonstration is cut.
    """
    by_id = {row.id: row for row in rows}
    examples = [row.example() for row in rows]
    asked = questions(examples)
    pool = open_retriever(retriever, examples, asked, beside=beside)
    near = map_batches(
        executor, partial(_nearest, pool, k), asked, like_bytes=len(rows) ** 2 // _PAIRS,
        title="demonstrations",
    )  # fmt: skip
    shown = [_with(row, [by_id[name] for name in names], track) for row, names in zip(rows, near, strict=True)]
    if most is not None and token_counter is not None:
        _refuse_long(list(token_counts(shown, token_counter, executor)), k, most)
    note = f"up to {k} similar training rows in front of each"
    return shown, Step(name="demonstrations", kept=len(shown), dropped=0, note=note)


def _with(row: ParsedRow, shots: Sequence[ParsedRow], track: Track) -> ParsedRow:
    if not shots:
        return row
    *before, last = row.turns
    turns = [
        turn for shot in reversed(shots) for turn in (shot.turns[-1], Message(role="assistant", content=shot.target))
    ]
    tags = {**row.tags, DEMONSTRATIONS: str(len(shots))}
    return dataclasses.replace(row, turns=(*before, *turns, last), tags=tags).shown_by(track)


def _nearest(pool: Retriever, k: int, asked: Sequence[str]) -> Iterator[list[str]]:
    for question in asked:
        yield [example.id for example in pool.nearest(question, k)]


def _refuse_long(counts: Sequence[int | str], k: int, most: int) -> None:
    lengths = [count for count in counts if isinstance(count, int)]
    if refused := next((count for count in counts if isinstance(count, str)), ""):
        raise DataError(f"a training row with its {k} demonstrations: {refused}")
    over = sum(length > most for length in lengths)
    if over:
        raise DataError(
            f"{over} of {len(lengths)} training rows have more than max_tokens {most} with their {k} demonstrations, the"
            f" longest {max(lengths)}; lower few_shot, or raise max_tokens"
        )
