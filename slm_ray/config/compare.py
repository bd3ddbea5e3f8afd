"""Settings of the job that compares two evaluated models and decides."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Comparison, Priced
from slm_ray.config.words import Finished, LeakChecked, Pair


class CompareConfig(Priced, Comparison, LeakChecked, Pair, Finished):
    """One report with both models, or two reports over the same rows."""

    other_report: str | None = None
    validation_report: str | None = Field(
        None,
        description="both models on other rows: orders the shares that the SLM may take, which are tested on `report`",
    )
    out: str | None = Field(None, description="where the comparison goes as JSON; beside `report` when not set")
