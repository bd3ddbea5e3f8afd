"""Settings of the job that trains one recipe in 4, 8 and 16 bits and compares them."""

from __future__ import annotations

from slm_ray.config.train import Variations


class PrecisionsConfig(Variations):
    """The training run to repeat in each precision, and the rows that score it."""
