"""What runs said of an adapter, found again from the adapter's side: evaluations that asked it, comparisons that judged it.

Reads the report.json and comparison.json of every run under a folder. What is none of this version is passed over: it holds
no figure that could be believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from slm_ray.errors import SlmRayError
from slm_ray.providers import parse
from slm_ray.records import ComparisonReport, Report
from slm_ray.reports.encoding import check_version, decode
from slm_ray.reports.files import COMPARISON, REPORT
from slm_ray.storage import read_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterResults:
    """Reports that an adapter is in, and comparisons that have it as the SLM; both by file, the latest last.

    Where it was asked with demonstrations in front is not what it does by itself: such comparisons come before all others,
    and of a report that has both the arm without them counts.
    """

    reports: dict[Path, Report] = field(default_factory=dict)
    comparisons: dict[Path, ComparisonReport] = field(default_factory=dict)

    @property
    def score(self) -> tuple[str, float | None] | None:
        """The primary metric's name and value in the latest comparison, else in the latest report; None without any."""
        for comparison in reversed(self.comparisons.values()):
            compared = comparison.comparison
            return compared.primary, compared.slm_metrics.get(compared.primary)
        for report in reversed(self.reports.values()):
            primary = str(report.track_definition.get("primary"))
            return primary, next(iter(report.models.values())).metrics.get(primary)
        return None


def results_by_adapter(runs: str | Path) -> dict[str, AdapterResults]:
    """Adapter id to what runs under `runs` said of it; a report there holds that adapter alone."""
    found: dict[str, AdapterResults] = {}
    for path, report in _read(runs, REPORT, Report):
        for spec, model in sorted(report.models.items(), key=lambda arm: _by_itself(arm[0])):
            if adapter := model.facts.adapter:
                alone = Report(
                    track=report.track,
                    track_definition=report.track_definition,
                    examples=report.examples,
                    models={spec: model},
                )
                found.setdefault(adapter, AdapterResults()).reports[path] = alone
    compared = _read(runs, COMPARISON, ComparisonReport)
    for path, comparison in sorted(compared, key=lambda one: _by_itself(one[1].comparison.slm)):
        try:
            judged = parse(comparison.comparison.slm).provider.adapter
        except SlmRayError:
            continue
        if judged:
            found.setdefault(judged, AdapterResults()).comparisons[path] = comparison
    return found


def _by_itself(spec: str) -> bool:
    """Whether nothing stood in front of the questions."""
    try:
        return not parse(spec).demonstrations
    except SlmRayError:
        return False


def _read(runs: str | Path, name: str, kind: type[T]) -> Iterator[tuple[Path, T]]:
    """The files of that name that hold such a record, the oldest first."""
    paths = [Path(folder) / name for folder, _, files in os.walk(runs) if name in files]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            plain = read_json(path)
            check_version(plain, where=str(path), fix="")
            record = decode(plain, kind, where=str(path), fix="")
        except SlmRayError:
            continue
        yield path, record
