"""Settings of the job that watches an evaluation."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Config


class LiveConfig(Config):
    """Watch an evaluation that runs in another shell."""

    run_dir: str = "runs/evaluate"
    no_progress_bar: bool = Field(False, description="progress as lines of text on a terminal too")
