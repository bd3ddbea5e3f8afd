"""Settings of the job that sends a finished run's traces to Langfuse."""

from __future__ import annotations

from slm_ray.config.words import RunDir


class TraceConfig(RunDir):
    """A run directory or a traffic log, as `run_dir`. Keys are read from the environment."""
