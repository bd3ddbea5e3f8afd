"""Settings of the job that trains one adapter."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Recipe


class TrainConfig(Recipe):
    """One QLoRA run: a recipe, its rows, its base and where the adapter goes."""

    track: str
    train: str = Field(description="training JSONL")
    base: str
    run_dir: str
    adapters_dir: str
    prove_on: str = Field(
        "engine",
        description="what serves the adapter while it is proved, before it is published: engine (one that is started for it), a"
        " Ray Serve LLM file (an engine with its arguments), the address of an endpoint over adapters_dir, or nothing",
    )
    name: str = Field("run", description="what the run is called; the adapter id adds a content hash")
