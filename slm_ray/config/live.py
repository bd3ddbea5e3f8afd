"""Settings of the job that watches an evaluation."""

from __future__ import annotations

from slm_ray.config.shared import Config


class LiveConfig(Config):
    """Watch an evaluation that runs in another shell."""

    run_dir: str = "runs/evaluate"
