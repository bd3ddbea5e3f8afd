"""A finished traffic log of given rows: a copy of what another log held at some moment, or of it with other answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from slm_ray.traffic.parts import by_day, part_bytes
from slm_ray.traffic.place import Place, day_name, mark
from slm_ray.traffic.record import Entry, TrafficRow


def write_snapshot(folder: str | Path, rows: Iterable[TrafficRow]) -> int:
    """Write the rows with their feedback as a log that no writer adds to, in place of what the folder held; how many rows.

    Rows are taken as they are: they come from a log and are redacted. Not in one step: note elsewhere that it is whole.
    """
    place = Place(Path(folder))
    shutil.rmtree(place.folder, ignore_errors=True)
    entries: list[Entry] = []
    count = 0
    for row in rows:
        entries += [dataclasses.replace(row, feedback=()), *row.feedback]
        count += 1
    for day, of_day in by_day(entries).items():
        place.put(f"{day_name(day)}/part-snapshot.parquet", part_bytes(of_day))
    mark(place)
    return count
