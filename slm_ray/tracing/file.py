"""The trace file of a run directory: OTLP/JSON, whole, always written, whatever becomes of the sending."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_ray.storage import read_jsonl, write_jsonl
from slm_ray.tracing.record import Run
from slm_ray.tracing.spans import KIND, SESSION, lines, resource_of, spans_of

FILE_NAME = "traces.jsonl"


def keep(folder: str | Path, run: Run) -> bool:
    """Write a run into the folder's trace file; the earlier one of its kind goes, other kinds stay.

    False, and the file as it was, when it holds this very run.
    """
    path = Path(folder) / FILE_NAME
    there = read_jsonl(path) if path.exists() else []
    mine = [line for line in there if resource_of(line).get(KIND) == run.kind]
    if mine and all(resource_of(line).get(SESSION) == run.session for line in mine):
        return False
    others = [line for line in there if resource_of(line).get(KIND) != run.kind]
    write_jsonl(path, [*others, *lines(run.kind, run.session, run.spans)])
    return True


def kept(folder: str | Path) -> list[Run]:
    """The runs of a folder's trace file, in its order; none when there is no file, and none that is not of this house."""
    path = Path(folder) / FILE_NAME
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in read_jsonl(path) if path.exists() else []:
        resource = resource_of(line)
        if KIND in resource and SESSION in resource:
            found.setdefault((str(resource[KIND]), str(resource[SESSION])), []).append(line)
    return [
        Run(kind=kind, session=session, spans=tuple(span for line in group for span in spans_of(line)))
        for (kind, session), group in found.items()
    ]
