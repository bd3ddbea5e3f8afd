"""Settings of the job that proves a published adapter again."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Config


class ParityConfig(Config):
    """One published adapter, its base, and what serves it."""

    adapter: str = Field(description="the adapter's id")
    adapters_dir: str = "runs/adapters"
    base: str = Field("data/tiny_base", description="folder of the base model, or a hub name")
    prove_on: str = Field("engine", description="as in train: engine, a Ray Serve LLM file, or an endpoint's address")
