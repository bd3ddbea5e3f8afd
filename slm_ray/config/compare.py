"""Settings of the job that compares two evaluated models and decides."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Comparison, Priced
from slm_ray.config.words import Finished, LeakChecked, Pair, Written


class CompareConfig(Priced, Comparison, LeakChecked, Pair, Finished, Written):
    """One report with both models, or two reports over the same rows."""

    other_report: str | None = None
    validation_report: str | None = Field(
        None,
        description="both models on other rows: orders the shares that the SLM may take, which are tested on `report`",
    )
    out: str = Field("", description="where the comparison goes as JSON; beside `report` when empty")
