"""What a loop knows of one track: filled in step by step, read by the page at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slm_ray.adapters import Manifest
from slm_ray.config import CompareConfig, Source
from slm_ray.page.data import Stage
from slm_ray.prepare import Prepared
from slm_ray.records import ComparisonReport, Report


@dataclass(slots=True, kw_only=True)
class TrackRun:
    """One track; `compared` (as `compare_configs` say) and `reports` are by stage (validation, test), `adapter` is None
    until one is trained."""

    config: Source
    prepared: Prepared
    folder: Path
    compared: dict[Stage, ComparisonReport] = field(default_factory=dict)
    compare_configs: dict[Stage, CompareConfig] = field(default_factory=dict)
    reports: dict[Stage, Report] = field(default_factory=dict)
    adapter: Manifest | None = None

    @property
    def name(self) -> str:
        """The track's name, which is also the adapter's."""
        return self.prepared.track
