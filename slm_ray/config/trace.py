"""Settings of the job that sends a finished run's traces to Langfuse."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Config


class TraceConfig(Config):
    """A run directory or a traffic log, and how patient to be. Keys are read from the environment."""

    run_dir: str
    wait_s: float = Field(1800.0, gt=0, description="how long to go on, waits that Langfuse asks for included")
