"""What a loop knows of one track: filled in step by step, read by the page at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.adapters import Manifest
from slm_ray.config import TrackSource
from slm_ray.prepare import Prepared
from slm_ray.reports import Compared


@dataclass(slots=True, kw_only=True)
class TrackRun:
    """One track; `compared` and `reports` are by stage (validation, test), `adapter` is None until one is trained."""

    config: TrackSource
    prepared: Prepared
    folder: Path
    compared: dict[str, Compared] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapter: Manifest | None = None

    @property
    def name(self) -> str:
        """The track's name, which is also the adapter's."""
        return self.prepared.track
