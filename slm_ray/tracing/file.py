"""The trace file of a run directory: OTLP/JSON, whole, always written, whatever becomes of the sending."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_ray.errors import DataError
from slm_ray.storage import row_of, write_jsonl
from slm_ray.tracing.otlp import KIND, SESSION, lines, resource_of, spans_of
from slm_ray.tracing.spans import Run

FILE_NAME = "traces.jsonl"
_FIX = "delete the file, and the next run or replay makes it anew"


def write_run(folder: str | Path, run: Run) -> bool:
    """Write a run into the folder's trace file; the earlier one of its kind goes, other kinds stay.

    False, and the file as it was, when it holds this very run.
    """
    path = Path(folder) / FILE_NAME
    there = set(map(_owner, _lines(path)))
    if {session for kind, session in there if kind == run.kind} == {run.session}:
        return False
    others = (line for line in _lines(path) if _owner(line)[0] != run.kind)
    write_jsonl(path, itertools.chain(others, lines(run.kind, run.session, run.spans)))
    return True


def read_runs(folder: str | Path) -> list[Run]:
    """The runs of a folder's trace file, in its order; none when there is no file, and none that is not of this house."""
    path = Path(folder) / FILE_NAME
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in _lines(path):
        resource = resource_of(line)
        if KIND in resource and SESSION in resource:
            found.setdefault((str(resource[KIND]), str(resource[SESSION])), []).append(line)
    return [
        Run(kind=kind, session=session, spans=tuple(span for line in group for span in spans_of(line)))
        for (kind, session), group in found.items()
    ]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The file's lines one by one: each holds hundreds of spans, and all of them take many times the room of a report."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield row_of(line, where=f"{path}:{number}", fix=_FIX)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; make it readable, or delete it") from None


def _owner(line: Mapping[str, Any]) -> tuple[Any, Any]:
    resource = resource_of(line)
    return resource.get(KIND), resource.get(SESSION)
