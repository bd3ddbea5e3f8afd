"""Settings of the job that watches an evaluation."""

from __future__ import annotations

from slm_ray.config.words import RunDir


class LiveConfig(RunDir):
    """Watch an evaluation that runs in another shell."""
