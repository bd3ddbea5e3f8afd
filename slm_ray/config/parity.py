"""Settings of the job that proves a published adapter again."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.train import Proved


class ParityConfig(Proved):
    """One published adapter, its base, and what serves it."""

    adapter: str = Field(description="the adapter's id")
