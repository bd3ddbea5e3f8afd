"""The files of a run directory that hold a report: where they are, how they are written and how they are read.

`report.json` has one line of `scores.jsonl` per row beside it. Every setting that can turn a run's verdict is declared in a
file of its own before the first call; what was declared first stays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from slm_ray import storage
from slm_ray.config import Declaration
from slm_ray.corpus.tracks import Track, defined, definition
from slm_ray.errors import DataError
from slm_ray.records import Report, RowResult
from slm_ray.reports.encoding import check_version, decode, encode
from slm_ray.types import DeclaredRule

REPORT = "report.json"
SCORES = "scores.jsonl"
DECLARED = "declared.json"
COMPARISON = "comparison.json"
CONFIG = "config.yaml"
_AGAIN = "run the evaluation's command again: it scores anew and asks nothing twice"
_ANOTHER = f"give a report.json that slm-ray evaluate wrote, or {_AGAIN}"


def load_report(path: str | Path) -> tuple[Report, list[RowResult]]:
    """A report and its rows; `path` is the run directory or its report.json. DataError names the file, line and key."""
    file = Path(path)
    file = file / REPORT if file.is_dir() else file
    plain = storage.read_json(file)
    check_version(plain, where=str(file), fix=_ANOTHER)
    report = decode(plain, Report, where=str(file), fix=_ANOTHER)
    try:
        defined(report.track_definition)
    except TypeError as error:
        raise DataError(f"{file}: track_definition is no track ({error}); {_ANOTHER}") from None
    scores = file.with_name(SCORES)
    rows = [
        decode(row, RowResult, where=f"{scores}:{line}", fix=_AGAIN) for line, row in storage.numbered_jsonl(scores)
    ]
    return report, rows


def write_report(run_dir: str | Path, report: Report, rows: Iterable[RowResult]) -> None:
    """Write both files, rows one by one; the report last, so that a report on disk has its rows beside it."""
    storage.write_jsonl(Path(run_dir) / SCORES, map(encode, rows))
    storage.write_json(Path(run_dir) / REPORT, encode(report))


def declared_rule(
    settings: Declaration, track: Track, *, examples: str, rows: int, baselines: Iterable[str], answers_before: int = 0
) -> DeclaredRule:
    """The settings as a record, the same for what is declared and for what is compared by.

    `examples` is the digest of the whole file of rows, of which the first `rows` are asked. What the code does not let
    anyone set (level, resamples, seeds) is not in it.
    """
    fields = {name: getattr(settings, name) for name in Declaration.model_fields if name != "force_delta"}
    plain = json.dumps(definition(track), sort_keys=True, ensure_ascii=False)
    return DeclaredRule(
        **fields, primary=track.primary, baselines=tuple(sorted(baselines)),
        track=hashlib.sha256(plain.encode()).hexdigest(), examples=examples, rows=rows, answers_before=answers_before,
    )  # fmt: skip


def declare(run_dir: str | Path, declared: DeclaredRule) -> None:
    """Write down the settings of a verdict before the run's first call; what was declared first stays.

    Only the number of rows may grow, within one file: a smoke test on its first rows is the start of the whole run.
    """
    path = Path(run_dir) / DECLARED
    first = declared_in(run_dir)
    if first is None:
        storage.write_json(path, encode(declared))
    elif first.examples == declared.examples and declared.rows > first.rows:
        storage.write_json(path, encode(dataclasses.replace(first, rows=declared.rows)))


def declared_in(path: str | Path) -> DeclaredRule | None:
    """What was declared before the first call of the run; None when nothing was."""
    file = folder_of(path) / DECLARED
    if not file.is_file():
        return None
    fix = "what was declared is lost: evaluate into a folder of its own"
    try:
        declared = decode(json.loads(file.read_bytes()), DeclaredRule, where=str(file), fix=fix)
        settings = {name: getattr(declared, name) for name in Declaration.model_fields if name != "force_delta"}
        Declaration.model_validate({**settings, "force_delta": True})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"])) or "settings"
        raise DataError(f"{file}: {name}: {wrong['msg']}; {fix}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{file}: not JSON; {fix}") from None
    return declared


def folder_of(path: str | Path) -> Path:
    """The run directory of a report."""
    return Path(path) if Path(path).is_dir() else Path(path).parent
