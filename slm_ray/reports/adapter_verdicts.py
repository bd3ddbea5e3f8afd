"""Which comparisons on file name an adapter: what a run said of it, found again from the adapter's side.

Reads the comparison.json of every run under a folder. What is no comparison of this version is passed over: it is no verdict
that could be believed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from slm_ray.errors import SlmRayError
from slm_ray.providers import parse
from slm_ray.records import ComparisonReport
from slm_ray.reports.encoding import check_version, decode
from slm_ray.reports.files import COMPARISON
from slm_ray.storage import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVerdict:
    """One comparison of an adapter as the SLM, and the file that holds it."""

    path: Path
    report: ComparisonReport


def verdicts_by_adapter(runs: str | Path) -> dict[str, list[AdapterVerdict]]:
    """Adapter id to its comparisons under `runs`, the latest file last; an absent folder holds none."""
    found: defaultdict[str, list[AdapterVerdict]] = defaultdict(list)
    for path in sorted(_comparisons(runs), key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            plain = read_json(path)
            check_version(plain, where=str(path), fix="")
            report = decode(plain, ComparisonReport, where=str(path), fix="")
            adapter = parse(report.comparison.slm).provider.adapter
        except SlmRayError:
            continue
        if adapter:
            found[adapter].append(AdapterVerdict(path=path, report=report))
    return dict(found)


def _comparisons(runs: str | Path) -> list[Path]:
    return [Path(folder) / COMPARISON for folder, _, files in os.walk(runs) if COMPARISON in files]
