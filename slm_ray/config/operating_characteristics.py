"""Settings of the simulation that says how often the verdict is wrong, and how often it helps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.shared import Config


class OperatingCharacteristicsConfig(Config):
    """Simulated evaluations that the paired rule judges."""

    delta: float = Field(0.05, gt=0, le=1)
    rows: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    discordance: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.4), description="shares of rows only one model gets right"
    )
    runs: int = Field(40_000, ge=100)
    parts: tuple[Literal["binary", "graded", "partial"], ...] = Field(
        ("binary", "graded", "partial"), description="right-or-wrong rows, graded ones, partial replacement"
    )
    slow_runs: int = Field(2000, ge=100, description="simulated runs per cell of the graded and the partial part")
    graded_rows: tuple[int, ...] = (50, 100, 200, 500)
    partial_rows: tuple[int, int] = Field((200, 400), description="validation and test rows")
    resamples: int = Field(999, ge=99, description="of the bootstrap behind graded bounds")
    seed: int = 42
