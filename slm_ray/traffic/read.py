"""A traffic log read back: parts and journals together, each request once, feedback joined to its request.

What a killed writer left and what a living one has not rolled yet are read too (from an object store only on the writer's
own host). A damaged part or line is an error that names it, or left out and counted, as the caller says.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from slm_ray.errors import DataError
from slm_ray.traffic.journal import entries_of, segment_paths
from slm_ray.traffic.parts import entries_in
from slm_ray.traffic.place import Place, RemotePlace, is_traffic, open_place
from slm_ray.traffic.record import Entry, Feedback, TrafficRow

Located = tuple[str, int, Entry | ValueError]  # file, row or line from 1, and what stands there


def read_traffic(folder: str, *, skip_bad: Callable[[DataError], None] | None = None) -> Iterator[TrafficRow]:
    """The requests of the log at `folder`, oldest day first, each with its feedback in order of time.

    DataError for a folder without a log, and for a damaged part or line unless `skip_bad` takes it. Holds all feedback,
    all ids and the rows of the journals in memory.
    """
    for file, number, row in located_rows(folder):
        if not isinstance(row, ValueError):
            yield row
            continue
        error = DataError(f"{file}{f':{number}' if number else ''}: {row}; put the file back from a copy, or remove it")
        if skip_bad is None:
            raise error
        skip_bad(error)


def located_rows(folder: str) -> Iterator[tuple[str, int, TrafficRow | ValueError]]:
    """As `read_traffic`, each row with its file and number, and what is wrong with a bad one in its place."""
    if not is_traffic(folder):
        raise DataError(f"{folder}: there is no traffic log in it; give the folder that a roll-out writes")
    place = open_place(folder)
    # Journals first: a segment that is rolled meanwhile is then read twice and told apart by its ids, never missed.
    waiting = [found for path in segment_paths(place.journals) for found in _of_segment(path)]
    parts = list(place.parts())
    feedback = _feedback(itertools.chain(waiting, *(_of_part(place, name, "feedback") for name in parts)))
    seen: set[str] = set()
    for file, number, entry in itertools.chain(*(_of_part(place, name, "request") for name in parts), waiting):
        if isinstance(entry, ValueError):
            yield file, number, entry
        elif isinstance(entry, TrafficRow) and entry.id not in seen:
            seen.add(entry.id)
            yield file, number, dataclasses.replace(entry, feedback=feedback.get(entry.id, ()))


def _feedback(found: Iterable[Located]) -> dict[str, tuple[Feedback, ...]]:
    """All feedback by the id of its request, in order of time; what was said twice in the same moment once."""
    said: dict[str, set[Feedback]] = {}
    for _, _, entry in found:
        if isinstance(entry, Feedback):
            said.setdefault(entry.id, set()).add(entry)
    return {name: tuple(sorted(all_of_it, key=_order)) for name, all_of_it in said.items()}


def _order(feedback: Feedback) -> tuple[float, float, str]:
    return feedback.at, -1.0 if feedback.score is None else feedback.score, feedback.answer or ""


def _of_segment(path: Path) -> Iterator[Located]:
    try:
        for number, entry in entries_of(path):
            yield str(path), number, entry
    except FileNotFoundError:  # rolled meanwhile: its rows are in parts
        return
    except OSError as error:
        yield str(path), 0, ValueError(f"it cannot be read ({error.strerror})")


def _of_part(place: Place | RemotePlace, name: str, kind: str) -> Iterator[Located]:
    """The entries of that kind; what is wrong with a part is said where its requests are read."""
    from pyarrow import ArrowException

    where = f"{place}/{name}"
    try:
        with place.open(name) as source:
            for number, entry in entries_in(source, kind=kind):
                yield where, number, entry
    except FileNotFoundError:  # its day was deleted meanwhile
        return
    except (OSError, ArrowException) as error:
        if kind == "request":
            yield where, 0, ValueError(f"it is no whole Parquet file ({str(error).splitlines()[0]})")
