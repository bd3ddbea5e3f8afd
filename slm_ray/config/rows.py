"""Settings of the job that says how many rows a verdict will take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from slm_ray.config.words import Margin


class RowsConfig(Margin):
    """Rows until a decision, under both rules, for assumed differences or for those seen so far."""

    delta: float = Field(0.02, gt=0, lt=1, description="non-inferiority margin")
    discordance: float = Field(0.2, gt=0, le=1, description="share of rows that one model alone gets right")
    differences: tuple[Annotated[float, Field(ge=-1, le=1)], ...] = Field(
        (0.0, 0.1, -0.1), min_length=1, description="assumed true differences, SLM minus LLM"
    )
