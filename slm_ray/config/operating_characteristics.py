"""Settings of the simulation that says how often the verdict is wrong, and how often it helps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from slm_ray.config.words import Margin


class OperatingCharacteristicsConfig(Margin):
    """Simulated evaluations that both rules judge."""

    delta: float = Field(0.05, gt=0, le=1)
    rows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (50, 100, 200, 500, 1000, 2000), min_length=1, description="graded metrics up to 500, they are slow"
    )
    runs: int = Field(
        40_000,
        ge=2000,
        description="per cell; a twentieth of it for the graded and the partial part, a fortieth for the watch",
    )
    parts: tuple[Literal["binary", "graded", "partial", "looks", "strata", "rows", "watching"], ...] = Field(
        ("binary", "graded", "partial", "looks", "strata", "rows", "watching"),
        min_length=1,
        description="right-or-wrong rows, graded ones, partial replacement, looking again, rows of several kinds, rows to a decision, live traffic",
    )
