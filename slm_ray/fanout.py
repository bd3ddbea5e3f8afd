"""Long work as Ray tasks with a progress bar: many files of rows to read, tokens to count, answers to score.

The work itself is plain functions of the floors below, called the same way here and there, and results come in the
order of the work whatever ends first: so what comes out is the same as without Ray, to the byte, errors included. At most
one task per CPU runs, and each waits when nobody has taken its last results. Small work stays in this process, since
starting Ray costs seconds.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from slm_ray.corpus.tracks import Track
from slm_ray.encoders import Encoder
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.scoring import Answered, score, score_rows, scorers
from slm_ray.scoring.similarity import Idf, idf_of, with_similarity
from slm_ray.types import RowScore

Item = TypeVar("Item")
Part = TypeVar("Part")

WORTH_CHARACTERS = 10_000_000  # of answers and references for a slow scorer: about 15 s of one core
WORTH_TEXTS = 5_000  # to be encoded
_ROWS = 500
_UNTAKEN = 2
_CPUS = 0.1  # how many run is counted here; an endpoint that holds the CPUs must not stop them


def in_order(work: Callable[[Item], Iterator[Part]], items: Iterable[Item], *, title: str) -> Iterator[Part]:
    """Everything that `work` yields for each item, item after item, each item a Ray task.

    An error of ours that a task raises is raised here when its turn comes; ResourceError when Ray loses a task for good.
    """
    import ray

    from slm_ray import cluster  # Ray takes seconds to import

    cluster.connect()
    todo = list(items)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(_run).options(
        num_returns="streaming", _generator_backpressure_num_objects=_UNTAKEN, num_cpus=_CPUS,
        scheduling_strategy="SPREAD",
    )  # fmt: skip
    shared = ray.put(work)  # it may hold a large table, and there is one task per item
    waiting = iter(todo)
    running = deque(task.remote(shared, item) for _, item in zip(range(most), waiting, strict=False))
    try:
        for _ in _shown(todo, title):
            for part in running[0]:
                yield _taken(part)
            running.popleft()
            running.extend(task.remote(shared, item) for _, item in zip(range(1), waiting, strict=False))
    finally:
        for stream in running:
            ray.cancel(stream)


def score_all(track: Track, rows: Iterable[Answered]) -> Iterator[RowScore]:
    """The scores of the rows, in order: as tasks where a slow scorer has much to read, else here, row by row."""
    if any(scorer.slow for scorer in scorers(track)):
        rows = told = list(rows)
        if sum(len(text or "") + len(reference) for _, text, reference in told) >= WORTH_CHARACTERS:
            parts = [told[start : start + _ROWS] for start in range(0, len(told), _ROWS)]
            for part in in_order(functools.partial(_scored, track), parts, title="scoring"):
                yield from part
            return
    yield from (score(track, *row) for row in rows)


def similar_by(
    folder: str, *, idf: bool
) -> Callable[[Sequence[RowScore], Sequence[str | None], Sequence[str]], list[RowScore]]:
    """BERTScore and embedding cosine with the encoder in `folder`: a function of rows, predictions and references.

    Raises ModelError at once when there is no encoder.
    """
    encoder = Encoder(folder)

    def added(rows: Sequence[RowScore], predictions: Sequence[str | None], references: Sequence[str]) -> list[RowScore]:
        weights = idf_of(references, encoder.token_ids) if idf else None
        # The same parts here and there: in another batch a vector has other last digits.
        cuts = [slice(start, start + _ROWS) for start in range(0, len(rows), _ROWS)]
        parts = [(rows[cut], predictions[cut], references[cut]) for cut in cuts]
        if len({*predictions, *references}) < WORTH_TEXTS:
            return [row for part in parts for row in with_similarity(*part, encoder.tokens, weights)]
        told = (weights.table, weights.references) if weights else None
        work = functools.partial(_compared, str(encoder.folder.absolute()), told)
        return [row for part in in_order(work, parts, title="comparing meanings") for row in part]

    return added


def _run(work: Callable[[Item], Iterator[Part]], item: Item) -> Iterator[Part]:
    yield from work(item)


def _scored(track: Track, rows: Sequence[Answered]) -> Iterator[list[RowScore]]:
    yield score_rows(track, rows)


def _compared(
    folder: str, weights: tuple[Any, int] | None,
    part: tuple[Sequence[RowScore], Sequence[str | None], Sequence[str]],
) -> Iterator[list[RowScore]]:  # fmt: skip
    encoder = _encoder(folder)
    idf = Idf(token_ids=encoder.token_ids, table=weights[0], references=weights[1]) if weights else None
    yield with_similarity(*part, encoder.tokens, idf)


@functools.lru_cache(maxsize=1)
def _encoder(folder: str) -> Encoder:
    """One per worker process, since loading it takes longer than a part."""
    return Encoder(folder)


def _taken(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SlmRayError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ResourceError(
            f"Ray lost a part of the work ({str(error).splitlines()[0]}); look for memory limits or failing nodes, then "
            "run the same command again"
        ) from None


def _shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track

    yield from track(items, title, console=Console(stderr=True), transient=True)
