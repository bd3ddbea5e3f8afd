"""Settings of the job that serves the base and its adapters."""

from __future__ import annotations

from slm_ray.config.shared import Serving


class ServeConfig(Serving):
    """The endpoint, until Ctrl-C."""
